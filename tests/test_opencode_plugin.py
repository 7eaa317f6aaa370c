"""OpenCode's plugin, run by node as OpenCode runs it: hooks called in its process."""

import json
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tracebridge.ids import span_id, trace_id
from tracebridge.model import HookEvent
from tracebridge.spool import Spool

PLUGIN = Path(__file__).parent.parent / "hooks" / "opencode.js"
NODE = shutil.which("node") or "node"
DRIVER = """
const { readFileSync } = await import("node:fs")
const code = readFileSync(process.argv[1])
const plugin = await import("data:text/javascript;base64," + code.toString("base64"))
const steps = JSON.parse(readFileSync(0))
const hooks = await plugin.Tracebridge({ directory: "/project" }, steps.options)
const answers = []
for (const [name, input, output] of steps.calls) {
  await hooks[name](input, output)
  answers.push(output)
}
process.stdout.write(JSON.stringify({ names: Object.keys(plugin), answers }))
process.exit(0)
"""
SESSION, TURN = "ses_abc", "msg_def"


def said(session=SESSION, message=TURN, text="hello"):
    parts = [{"type": "text", "text": text}]
    info = {"id": message, "role": "user", "sessionID": session, "time": {"created": 1}}
    return ["chat.message", {"sessionID": session}, {"message": info, "parts": parts}]


def happened(kind, **properties):
    return ["event", {"event": {"type": kind, "properties": properties}}, None]


def asked(session=SESSION, agent="build", message=TURN, headers=None):
    call = {"sessionID": session, "agent": agent, "message": {"id": message}}
    return ["chat.headers", call, {"headers": headers or {}}]


def drive(home, *calls, env=None, options=None):
    """Call the plugin's hooks one after the other, then leave as abruptly as OpenCode does."""
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", DRIVER, str(PLUGIN)],
        input=json.dumps({"options": options or {}, "calls": calls}).encode(),
        env={
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "TRACEBRIDGE_HOME": str(home),
            **(env or {}),
        },
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return json.loads(done.stdout)


def events(home):
    contents = [file.content for file in Spool(home).read()]
    assert all(isinstance(content, HookEvent) for content in contents)
    return contents


def payloads(home):
    return [json.loads(event.payload) for event in events(home)]


def test_requests_carry_the_turns_traceparent(home):
    """The published vector: any language computes the same ids."""
    answers = drive(home, said(), asked())["answers"]
    headers = answers[-1]["headers"]
    expected = "00-ced544c3876bb510e6a0fd836de28e94-edbef4b162dc46e1-01"
    assert headers["traceparent"] == expected
    assert headers["x-tracebridge-session"] == SESSION
    assert headers["x-tracebridge-turn"] == TURN


def test_ids_are_those_of_every_other_language(home):
    """Text that is not ASCII gives the ids that Python derives."""
    answers = drive(home, said("séance", "t-1"), asked("séance"))["answers"]
    trace = trace_id("opencode", "séance", "t-1")
    assert answers[-1]["headers"]["traceparent"].split("-")[1] == trace


def test_the_module_exports_the_plugin_alone(home):
    """OpenCode would take any other export for a plugin too."""
    assert drive(home)["names"] == ["Tracebridge"]


def test_a_subagents_request_belongs_to_the_outermost_turn(home):
    """A child session's calls carry the parent's trace, session and turn."""
    created = happened("session.created", info={"id": "ses_child", "parentID": SESSION})
    nested = happened("session.created", info={"id": "ses_nested", "parentID": "ses_child"})
    calls = [said(), created, said("ses_child", "msg_1"), nested, said("ses_nested", "msg_2")]
    answers = drive(home, *calls, asked("ses_nested", "general", "msg_2"), asked())["answers"]
    assert answers[-2]["headers"] == answers[-1]["headers"]
    assert [p.get("subagent") for p in payloads(home)] == [None, "ses_child", "ses_nested"]


def test_a_title_is_told_apart(home):
    """The request for a title says so and names no call of the turn."""
    begun = {"id": "msg_a", "role": "assistant", "sessionID": SESSION, "time": {}}
    calls = [said(), happened("message.updated", info=begun), asked(agent="title"), asked()]
    title, main = (a["headers"] for a in drive(home, *calls)["answers"][-2:])
    assert title["x-tracebridge-purpose"] == "title"
    assert "x-tracebridge-call" not in title
    assert main["x-tracebridge-call"] == "msg_a"


def test_a_traceparent_that_is_there_stays(home):
    """Another plugin's header is not overwritten; the turn is still named."""
    (*_, answer) = drive(home, said(), asked(headers={"traceparent": "theirs"}))["answers"]
    assert answer["headers"]["traceparent"] == "theirs"
    assert answer["headers"]["x-tracebridge-turn"] == TURN


def test_a_shell_gets_the_span_of_its_tool_call(home):
    """What a command traces lies under the tool call that ran it."""
    shell = ["shell.env", {"sessionID": SESSION, "callID": "call_1", "cwd": "/"}, {"env": {}}]
    (*_, answer) = drive(home, said(), shell)["answers"]
    trace = trace_id("opencode", SESSION, TURN)
    expected = f"00-{trace}-{span_id(trace, 'tool', 'call_1')}-01"
    assert answer["env"]["TRACEPARENT"] == expected


def test_everything_is_written_before_an_abrupt_exit(home):
    """A turn's events are on disk though the process leaves right after idle."""
    over = {
        "id": "msg_a",
        "role": "assistant",
        "sessionID": SESSION,
        "parentID": TURN,
        "time": {"created": 1, "completed": 2},
    }
    text = {"id": "prt_1", "type": "text", "text": "hi", "sessionID": SESSION, "time": {"end": 2}}
    calls = [
        said(),
        happened("message.part.updated", part=text),
        happened("message.updated", info=over),
        happened("message.updated", info=over),
        happened("session.idle", sessionID=SESSION),
        happened("session.idle", sessionID=SESSION),
    ]
    drive(home, *calls)
    told = payloads(home)
    assert [p["type"] for p in told] == ["prompt", "part", "message", "idle"]
    assert told[-1]["answer"] == "hi"
    assert {(p["session"], p["turn"]) for p in told} == {(SESSION, TURN)}


def test_files_are_for_their_owner_only(home):
    """Files are 0600, folders 0700, whatever the umask; nothing unfinished is left."""
    drive(home, said())
    (file,) = (home / "spool" / "new").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for folder in (home, home / "spool", home / "spool" / "tmp", home / "spool" / "new"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list((home / "spool" / "tmp").iterdir()) == []


def test_only_listed_variables_are_written(home):
    """Of the environment, which holds API keys, only what is on the list reaches the disk."""
    listed = {"RESPAN_CUSTOMER_ID": "c", "TRACEPARENT": "00-1-2-01", "TRACEBRIDGE_NOTE": "n"}
    hidden = {"ANTHROPIC_API_KEY": "k-1", "TRACEBRIDGE_GATEWAY_KEY": "k-2", "RESPAN_API_KEY": "k-3"}
    drive(home, said(), env={**listed, **hidden})
    (event,) = events(home)
    assert dict(event.env) == {**listed, "TRACEBRIDGE_HOME": str(home)}


@pytest.mark.parametrize("obstacle", ["file", "link"])
def test_a_spool_that_cannot_be_written_is_no_error(obstacle, home, tmp_path):
    """The turn goes on, and nothing is written through a link to another place."""
    (home / "spool").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if obstacle == "file":
        (home / "spool" / "new").write_text("in the way")
    else:
        (home / "spool" / "new").symlink_to(elsewhere)
    (*_, answer) = drive(home, said(), asked())["answers"]
    assert answer["headers"]["traceparent"].startswith("00-ced544c3")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["chat.message", "chat.headers", "shell.env", "event"])
@pytest.mark.parametrize("junk", [None, {}, {"event": {}}, {"event": {"type": "session.created"}}])
def test_what_it_does_not_know_is_no_error(name, junk, home):
    """Payloads of another version neither throw nor write."""
    drive(home, [name, junk, junk])
    assert not list(home.rglob("*.event"))


def test_the_watcher_is_started_with_the_turn(home, tmp_path):
    """The hook's command runs on its own, once per prompt, and knows the home."""
    mark = tmp_path / "mark"
    hook = ["/bin/sh", "-c", f'printf %s "$TRACEBRIDGE_HOME" > {mark}.new; mv {mark}.new {mark}']
    drive(home, said(), options={"hook": hook})
    limit = time.monotonic() + 30
    while not mark.exists():
        assert time.monotonic() < limit, "the hook was not run"
        time.sleep(0.005)
    assert mark.read_text() == str(home)
    mark.unlink()
    drive(home, said(), options={"hook": hook}, env={"TRACEBRIDGE_NO_WATCH": "1"})
    assert not mark.exists()

"""OpenCode's plugin, run by node as OpenCode runs it: hooks called in its process."""

import json
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from beside import started

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
# Stays until a signal ends it, as OpenCode does while a turn runs.
STAYING = (
    DRIVER.partition("process.stdout")[0]
    + """
if (steps.listener) process.on("SIGINT", () => process.exit(7))
setInterval(() => {}, 1000)
process.stdout.write("ready\\n")
"""
)
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


def signalled(home, *calls, number, listener=False):
    """Call the plugin's hooks, send its process a signal, and return how that ended."""
    steps = json.dumps({"options": {}, "calls": calls, "listener": listener}).encode()
    with started(
        [NODE, "--input-type=module", "-e", STAYING, str(PLUGIN)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TRACEBRIDGE_HOME": str(home)},
    ) as process:
        process.stdin.write(steps)
        process.stdin.close()
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        return process.wait(180)


def answering(key, prompt=TURN, session=SESSION, **facts):
    """Tell that an assistant message begins, or with *facts* that it is over."""
    times = {"created": 1, "completed": 2} if facts else {"created": 1}
    info = {"id": key, "role": "assistant", "sessionID": session, "parentID": prompt}
    return happened("message.updated", info={**info, "time": times, **facts})


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


@pytest.mark.parametrize(
    ("outer", "relation", "trace"),
    [
        (f"00-{'ab' * 16}-{'cd' * 8}-01", "parent", "ab" * 16),
        (f"00-{'ab' * 16}-{'cd' * 8}-01", "link", "ced544c3876bb510e6a0fd836de28e94"),
        (f"00-{'00' * 16}-{'cd' * 8}-01", "parent", "ced544c3876bb510e6a0fd836de28e94"),
        ("rubbish", "parent", "ced544c3876bb510e6a0fd836de28e94"),
    ],
)
def test_requests_carry_the_trace_in_which_the_turn_goes_out(home, outer, relation, trace):
    """That of the CI job where its user wants it there; the turn's span keeps its id."""
    env = {"TRACEBRIDGE_TRACEPARENT": outer, "TRACEBRIDGE_TRACEPARENT_AS": relation}
    answers = drive(home, said(), asked(), env=env)["answers"]
    assert answers[-1]["headers"]["traceparent"] == f"00-{trace}-edbef4b162dc46e1-01"


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


def test_a_spool_that_anybody_may_change_is_not_written(home):
    """What lies there could be read and replaced by others."""
    spool = home / "spool"
    spool.mkdir(parents=True)
    spool.chmod(0o777)
    drive(home, said())
    assert not list(home.rglob("*.event"))


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
    limit = time.monotonic() + 120
    while not mark.exists():
        assert time.monotonic() < limit, "the hook was not run"
        time.sleep(0.005)
    assert mark.read_text() == str(home)
    mark.unlink()
    drive(home, said(), options={"hook": hook}, env={"TRACEBRIDGE_NO_WATCH": "1"})
    assert not mark.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_told_and_still_ends_the_process(number, home):
    """A turn that a signal ends is told as interrupted, and the process dies of it as before."""
    assert signalled(home, said(), number=number) == -number
    assert [p["type"] for p in payloads(home)] == ["prompt", "interrupted"]


def test_between_turns_signals_are_none_of_ours(home):
    """Once the turn is over, nothing is told of a signal, and nothing is in its way."""
    calls = [said(), happened("session.idle", sessionID=SESSION)]
    assert signalled(home, *calls, number=signal.SIGTERM) == -signal.SIGTERM
    assert [p["type"] for p in payloads(home)] == ["prompt", "idle"]


def test_a_signal_that_somebody_else_hears_is_left_to_him(home):
    """Another listener's way to end the process stands."""
    assert signalled(home, said(), number=signal.SIGINT, listener=True) == 7
    assert payloads(home)[-1]["type"] == "interrupted"


def test_answers_that_are_cut_without_end_are_told_within_bounds(home):
    """OpenCode asks again without limit; what is told of that ends at a hundred, the rest goes on."""
    calls = [said()]
    for number in range(150):
        key = f"msg_{number:03}"
        text = {"id": f"prt_{number}", "type": "text", "text": "Once", "sessionID": SESSION}
        calls.append(answering(key))
        calls.append(happened("message.part.updated", part={**text, "time": {"end": 2}}))
        calls.append(answering(key, finish="unknown"))
    drive(home, *calls, answering("msg_z"), answering("msg_z", finish="stop"))
    kinds = [p["type"] for p in payloads(home)]
    assert kinds == ["prompt", *["part", "message"] * 100, "message"]


def test_what_is_said_meanwhile_waits_for_the_next_call(home):
    """Calls belong to the prompt that they answer, and the turn before is over then."""
    calls = [said(), answering("msg_a"), said(message="msg_next"), asked(), answering("msg_b")]
    calls += [answering("msg_c", prompt="msg_next"), asked(message="msg_next")]
    answers = drive(home, *calls)["answers"]
    turns = [a["headers"]["x-tracebridge-turn"] for a in answers if a and "headers" in a]
    assert turns == [TURN, "msg_next"]
    told = [(p["type"], p["turn"]) for p in payloads(home)]
    assert told == [("prompt", TURN), ("prompt", "msg_next"), ("idle", TURN)]


def summing_up(auto):
    info = {"id": "msg_sum", "role": "user", "sessionID": SESSION, "time": {"created": 3}}
    part = {"id": "prt_1", "type": "compaction", "auto": auto}
    about = {"sessionID": SESSION, "messageID": "msg_sum"}
    return [
        happened("message.updated", info=info),
        happened("message.part.updated", part={**part, **about}),
        answering("msg_s", prompt="msg_sum", finish="stop", summary=True),
    ]


def test_a_summary_that_the_user_wants_is_a_turn_of_its_own(home):
    """No hook tells of that prompt; the part that asks for the summary does."""
    over = happened("session.idle", sessionID=SESSION)
    drive(home, said(), over, *summing_up(auto=False))
    _, _, prompt, message = payloads(home)
    assert (prompt["turn"], prompt["origin"]) == ("msg_sum", "command")
    assert (message["turn"], message["trigger"]) == ("msg_sum", "manual")


def test_a_summary_that_a_fork_copied_is_told_no_more(home):
    """It is older than the session that it now stands in."""
    made = happened("session.created", info={"id": SESSION, "time": {"created": 9}})
    drive(home, made, *summing_up(auto=False), said())
    assert [(p["type"], p["turn"]) for p in payloads(home)] == [("prompt", TURN)]


def test_a_summary_that_opencode_wants_belongs_to_the_turn(home):
    """It goes on right after, with the same turn."""
    drive(home, said(), *summing_up(auto=True))
    assert [(p["turn"], p.get("trigger")) for p in payloads(home)] == [
        (TURN, None),
        (TURN, "auto"),
    ]


def test_an_error_that_was_got_over_is_not_how_the_turn_ended(home):
    """A call after it shows that the turn went on."""
    error = {"name": "ContextOverflowError", "data": {}}
    failed = happened("session.error", sessionID=SESSION, error=error)
    over = happened("session.idle", sessionID=SESSION)
    drive(home, said(), answering("msg_a"), failed, answering("msg_b"), over)
    assert "error" not in payloads(home)[-1]

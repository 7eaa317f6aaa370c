"""The command line as scripts and people use it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from beside import started
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tracebridge import commands as groups
from tracebridge import ids
from tracebridge.cli import COMMANDS, load, main
from tracebridge.model import CallIdentity, GatewayCall
from tracebridge.spool import Spool

SESSION = "2e23f0a0-0000-4000-8000-000000000001"
PROMPT_ID = "5d00821f-0000-4000-8000-000000000002"
TRACE = ids.trace_id("claude-code", SESSION, PROMPT_ID)
SECOND_NS = 1_000_000_000


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tracebridge", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def ok(*arguments):
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def put_hook(home, time_ns, event, **fields):
    spool = Spool(home)
    spool.create()
    payload = {"session_id": SESSION, "hook_event_name": event, "cwd": "/", **fields}
    head = f"format=1\0kind=hook\0agent=claude-code\0time_ns={time_ns}\0pid=1\0\0"
    data = head.encode() + json.dumps(payload).encode()
    (spool.new / f"{time_ns:020d}-1-0.event").write_bytes(data)


@pytest.fixture
def filled(home):
    """One turn with a tool and a gateway call, taken in by the watcher."""
    began = time.time_ns() - 60 * SECOND_NS
    tool = {"tool_name": "Bash", "tool_input": {"command": "ls"}, "tool_use_id": "toolu_01A"}
    who = {"prompt_id": PROMPT_ID}
    put_hook(home, began, "UserPromptSubmit", prompt="list \x1b[31mall\nfiles", **who)
    put_hook(home, began + 2 * SECOND_NS, "PreToolUse", **tool, **who)
    put_hook(home, began + 3 * SECOND_NS, "PostToolUse", tool_response="a", **tool, **who)
    put_hook(home, began + 5 * SECOND_NS, "Stop", last_assistant_message="done", **who)
    call = GatewayCall(
        call_id="1",
        gateway="tracebridge",
        method="POST",
        path="/v1/messages",
        start_ns=began + SECOND_NS,
        end_ns=began + 2 * SECOND_NS,
        identity=CallIdentity(agent="claude-code", session_id=SESSION, turn_key=PROMPT_ID),
        dialect="anthropic.messages",
        response_id="msg_01B",
        status_code=200,
    )
    Spool(home).write_call(call)
    ok("watch", "--once", "--close-open")
    return home


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_helps_with_an_example(name):
    """One that begins with what one would type."""
    command = load(name)
    examples = (command.help or "").partition("Example")[2]
    assert f"tracebridge {name}" in examples
    assert "Example" in ok(name, "--help")


@pytest.mark.parametrize("module", sorted(COMMANDS))
def test_every_command_is_listed_with_how_its_own_help_begins(module):
    """The list is told without loading what the commands are made of."""
    commands = import_module(f"{groups.__name__}.{module}").commands.commands
    assert COMMANDS[module] == {n: each.get_short_help_str(1000) for n, each in commands.items()}


def test_every_module_with_commands_is_listed():
    """Helpers begin with an underscore."""
    files = {path.stem for path in Path(groups.__path__[0]).glob("[!_]*.py")}
    assert files == {*COMMANDS}


def test_help_says_where_to_start():
    """Without a command, too."""
    assert "tracebridge demo" in ok("--help")
    assert "Start here" in ok("-h")
    assert ok("--version").strip()


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("show",),
        ("run",),
        ("integrate",),
        ("integrate", "emacs"),
        ("import", "x.jsonl", "--agent", "emacs"),
        ("turns", "--limit", "many"),
        ("gateway", "--listen", "nowhere"),
    ],
)
def test_wrong_usage_is_two(arguments):
    """And says what would be right, on stderr."""
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "d7c4"),
        ("import", "/nowhere/x.jsonl"),
        ("run", "--", "emacs"),
        ("demo", "--agent", "emacs"),
    ],
)
def test_what_cannot_be_done_is_one(arguments):
    """With a line that names it."""
    result = run(*arguments)
    assert result.returncode == 1
    assert arguments[-1] in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", [("turns",), ("export",), ("status",), ("show", "a")])
def test_a_damaged_store_is_one_line(home, command):
    """With the file and the remedy."""
    home.mkdir()
    (home / "store.sqlite3").write_bytes(b"this is no database " * 100)
    result = run(*command)
    assert result.returncode == 1
    assert "store.sqlite3" in result.stderr
    assert "move it away" in result.stderr
    assert len(result.stderr.strip().split("\n")) == 1


def test_damaged_settings_are_one_line(home):
    """For every command that needs them."""
    home.mkdir()
    (home / "config.toml").write_text('content = "all"')
    result = run("status")
    assert result.returncode == 1
    assert "config.toml" in result.stderr
    assert "use metadata, redacted or full" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("filled")
def test_turns_are_listed():
    """A line each, below their titles; what would steer a terminal is gone."""
    titles, line = ok("turns").splitlines()
    assert titles.startswith("turn ")
    assert line.startswith(TRACE[:8])
    assert "claude-code  completed" in line
    assert "\x1b" not in line
    (row,) = [json.loads(line) for line in ok("turns", "--json").splitlines()]
    assert row["trace_id"] == TRACE
    assert (row["agent"], row["session_id"], row["turn_key"]) == (
        "claude-code",
        SESSION,
        PROMPT_ID,
    )
    assert row["told"] is True
    assert ok("turns", "--limit", "0") != line


def test_without_turns_the_list_says_how_to_get_one():
    """As JSON it is just empty."""
    assert "tracebridge run" in ok("turns")
    assert ok("turns", "--json") == ""


@pytest.mark.usefixtures("filled")
def test_a_turn_is_shown_by_the_beginning_of_its_id():
    """In small or capital letters."""
    shown = ok("show", TRACE[:6].upper())
    assert "claude-code" in shown
    assert "└─ Bash" in shown
    assert "turn_id" in shown
    assert TRACE in shown
    assert "\x1b" not in shown
    assert json.loads(ok("show", TRACE, "--json")) == json.loads(ok("export"))


def as_request(document):
    """Return OTLP/JSON as protobuf, whose own JSON has ids in base64."""
    for resource_spans in document["resourceSpans"]:
        for scope_spans in resource_spans["scopeSpans"]:
            for span in scope_spans["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in span:
                        span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    return ParseDict(document, ExportTraceServiceRequest())


@pytest.mark.usefixtures("filled")
def test_the_export_is_valid_otlp():
    """One document, with the ids that anybody can compute."""
    (resource_spans,) = as_request(json.loads(ok("export"))).resource_spans
    resource = {a.key: a.value.string_value for a in resource_spans.resource.attributes}
    assert resource["service.name"] == "claude-code"
    (scope_spans,) = resource_spans.scope_spans
    spans = {span.span_id.hex(): span for span in scope_spans.spans}
    root = ids.root_span_id(TRACE)
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert spans[root].parent_span_id == b""
    for span_id in (ids.span_id(TRACE, "tool", "toolu_01A"), ids.span_id(TRACE, "llm", "msg_01B")):
        assert spans[span_id].parent_span_id.hex() == root
        assert spans[span_id].end_time_unix_nano > spans[span_id].start_time_unix_nano


def test_an_empty_export_is_a_document_too():
    """Scripts need not ask first."""
    assert json.loads(ok("export")).get("resourceSpans", []) == []


@pytest.mark.usefixtures("filled")
def test_status_counts_what_came_in():
    """For programs and for people."""
    state = json.loads(ok("status", "--json"))
    assert state["links"]["by_evidence"]["turn_id"] == 1
    assert state["turns"]["finished"] == 1
    assert state["spool"] == 0
    assert "1 linked exactly" in ok("status")


@pytest.mark.usefixtures("home")
def test_a_transcript_is_taken_in_once(tmp_path):
    """What cannot be read is named, the rest is taken in."""
    path = tmp_path / f"{SESSION}.jsonl"
    path.write_text('{"type":"summary"}\ngarbage\n')
    assert "1 session taken in" in ok("import", str(path))
    assert "1 session taken in" in ok("import", str(path))
    result = run("import", str(path), str(tmp_path / "missing.jsonl"))
    assert result.returncode == 1
    assert "missing.jsonl" in result.stderr
    assert "1 session taken in" in result.stdout


def test_tail_ends_with_its_reader(filled):
    """A closed pipe is no error."""
    tail = [sys.executable, "-m", "tracebridge", "tail", "--json"]
    with started(tail, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        deadline = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < deadline:
            who = {"prompt_id": f"prompt {time.time_ns()}"}
            put_hook(filled, time.time_ns(), "UserPromptSubmit", prompt="more", **who)
            ok("watch", "--once")
        process.kill()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.usefixtures("filled")
def test_nothing_is_written_outside_the_home():
    """The user's own home stays empty."""
    assert list(Path.home().iterdir()) == []

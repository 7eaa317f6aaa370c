"""Codex CLI's adapter on input that is cut, odd, hostile or huge, and on what formats promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tracebridge import lines
from tracebridge.agents import Cursor, Launch, codex_cli, identify_call
from tracebridge.model import (
    Compaction,
    FileEdit,
    HookEvent,
    ModelCall,
    Outcome,
    Prompt,
    SessionInfo,
    Source,
    Subagent,
    Thinking,
    ToolCall,
    TurnEnd,
    Usage,
)
from tracebridge.turns import TurnAssembler, merge

GOLDEN = Path(__file__).parent / "codex-cli"
SESSION, TURN, CHILD, CHILD_TURN = "thread-1", "turn-1", "thread-2", "turn-2"
COMMANDS = {
    "hook": "/py -I -S /x/tracebridge_hook.py codex-cli /h",
    "hot": "/bin/sh /x/tracebridge_hook.sh codex-cli /h",
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)


def hook(payload: bytes | dict[str, Any], size: int | None = None) -> HookEvent:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return HookEvent(
        agent="codex-cli",
        time_ns=1,
        pid=1,
        env={},
        payload=data,
        payload_bytes=len(data) if size is None else size,
    )


def stamp(second: float) -> str:
    return f"2026-11-21T01:00:{second:06.3f}Z"


def line(kind: str, second: float = 1.0, /, **payload: Any) -> dict[str, Any]:
    return {"timestamp": stamp(second), "type": kind, "payload": payload}


def event(kind: str, second: float = 1.0, /, **fields: Any) -> dict[str, Any]:
    return line("event_msg", second, type=kind, turn_id=TURN, **fields)


def item(kind: str, second: float = 1.0, /, **fields: Any) -> dict[str, Any]:
    given = {"type": kind, "id": "i", **fields}
    return event("item_completed", second, thread_id=SESSION, item=given)


def answered(response_id: str, second: float, **usage: int) -> dict[str, Any]:
    return line(
        "token_usage_record",
        second,
        thread_id=SESSION,
        turn_id=TURN,
        root_turn_id=TURN,
        response_id=response_id,
        usage=usage,
        turn_token_usage={"input_tokens": 999_999},
    )


META = line("session_meta", 0, id=SESSION, session_id=SESSION, cwd="/p", cli_version="0.169.0")
STARTED = event("task_started", 0.1, root_turn_id=TURN)


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read_all(path: Path):
    sightings, notes, cursor = [], {}, Cursor()
    while True:
        reading = codex_cli.read_transcript(path, cursor)
        sightings += reading.sightings
        notes |= reading.notes
        if reading.cursor == cursor:
            return sightings, notes
        cursor = reading.cursor


def read(folder: Path, *records: dict[str, Any]):
    return read_all(write(folder / "rollout-x.jsonl", META, STARTED, *records))[0]


@given(payload=st.binary(max_size=200))
def test_any_bytes_are_a_hook_payload(payload):
    """Whatever bytes a hook was given: no exception, and what was passed over is noted."""
    reading = codex_cli.parse_hook(hook(payload))
    assert reading.sightings or reading.notes


FIELDS = [
    "prompt",
    "turn_id",
    "agent_id",
    "agent_type",
    "tool_name",
    "tool_input",
    "tool_response",
    "tool_use_id",
    "trigger",
    "last_assistant_message",
    "transcript_path",
    "cwd",
    "thread-id",
    "turn-id",
]


@settings(max_examples=300)
@given(
    name=st.sampled_from([*codex_cli.wiring.EVENTS, "PostModelRequest", "SomethingNew"]),
    fields=st.dictionaries(st.sampled_from(FIELDS), json_values | st.just("apply_patch")),
    kind=st.sampled_from(["", "agent-turn-complete"]),
)
def test_any_values_may_stand_in_a_hook_payload(name, fields, kind):
    """Fields of any type in any event: no exception, also not when turns are put together."""
    payload = {**fields, "session_id": "s", "hook_event_name": name, "type": kind}
    try:
        reading = codex_cli.parse_hook(hook(payload))
    except UnicodeEncodeError:
        return
    assembler = TurnAssembler("codex-cli", "s")
    assembler.add(reading.sightings)
    assembler.turns()


def test_unknown_events_are_noted():
    """A new hook event is passed over and counted; the session is known all the same."""
    reading = codex_cli.parse_hook(hook({"session_id": "s", "hook_event_name": "New"}))
    assert reading.notes == {"hook event New ignored": 1}
    assert len(reading.sightings) == 1


def test_a_subagents_hook_names_no_turn():
    """Its turn id is not the user's turn; the subagent is what says where it belongs."""
    payload = {
        "session_id": SESSION,
        "turn_id": CHILD_TURN,
        "agent_id": CHILD,
        "hook_event_name": "PreToolUse",
        "tool_name": "Bash",
        "tool_input": {"command": "ls"},
        "tool_use_id": "call_1",
        "transcript_path": "/child.jsonl",
    }
    info, tool = codex_cli.parse_hook(hook(payload)).sightings
    assert (tool.turn_key, tool.subagent_id) == (None, CHILD)
    assert replace(tool.part, input_digest=None) == ToolCall(
        key="call_1", name="exec_command", input='{"command":"ls"}', start_ns=1
    )
    assert info.part.transcript is None


def test_notify_tells_an_end_but_makes_no_turn():
    """A notification ends the turn of its thread; of a thread that made a title it makes none."""
    payload = {
        "type": "agent-turn-complete",
        "thread-id": SESSION,
        "turn-id": TURN,
        "last-assistant-message": "Done.",
    }
    sightings = codex_cli.parse_hook(hook(payload)).sightings
    (ended,) = parts_of(sightings, TurnEnd)
    assert (ended.outcome, ended.message) == (Outcome.COMPLETED, "Done.")
    assembler = TurnAssembler("codex-cli", SESSION)
    assembler.add(sightings)
    assert assembler.turns() == []


def parts_of(sightings, kind):
    return [s.part for s in sightings if isinstance(s.part, kind)]


@given(garbage=st.binary(max_size=500))
def test_any_bytes_are_a_rollout(garbage, tmp_path_factory):
    """Lines of any bytes are passed over, and what stands after them is read."""
    path = tmp_path_factory.mktemp("rollouts") / "rollout-x.jsonl"
    tail = "".join(json.dumps(each) + "\n" for each in (META, STARTED, answered("r", 2)))
    path.write_bytes(garbage + b"\n" + tail.encode())
    sightings, _ = read_all(path)
    assert parts_of(sightings, ModelCall)


KINDS = [
    "session_meta",
    "compacted",
    "event_msg",
    "response_item",
    "token_usage_record",
    "turn_context",
    "new",
]
TYPES = [
    "item_completed",
    "task_started",
    "task_complete",
    "turn_aborted",
    "agent_reasoning",
    "exec_command_end",
    "patch_apply_end",
    "thread_settings_applied",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "agent_message",
    "new",
]
ITEMS = [
    "UserMessage",
    "Reasoning",
    "AgentMessage",
    "CommandExecution",
    "FileChange",
    "SubAgentActivity",
    "CollabAgentToolCall",
    "McpToolCall",
    "ContextCompaction",
    "New",
]
PAYLOADS = [
    "id",
    "thread_id",
    "turn_id",
    "root_turn_id",
    "response_id",
    "usage",
    "error",
    "call_id",
    "name",
    "input",
    "output",
    "arguments",
    "changes",
    "status",
    "server",
    "result",
    "duration",
    "namespace",
    "compaction_response_id",
    "exit_code",
    "content",
    "summary_text",
    "codex_error_info",
    "source",
    "started_at_ms",
    "completed_at_ms",
    "agent_thread_id",
    "kind",
    "internal_chat_message_metadata_passthrough",
]


@settings(max_examples=300)
@given(
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(TYPES),
    item_name=st.sampled_from(ITEMS),
    fields=st.dictionaries(
        st.sampled_from(PAYLOADS), json_values | st.sampled_from(["call_1", "apply_patch", TURN])
    ),
)
def test_any_values_may_stand_in_a_rollout_line(kind, name, item_name, fields, tmp_path_factory):
    """Fields of any type in any line: no exception, also not when turns are put together."""
    folder = tmp_path_factory.mktemp("rollouts")
    within = {"type": item_name, "id": "i", **fields}
    odd = line(kind, 2, **{"turn_id": TURN, "item": within, **fields, "type": name})
    try:
        sightings = read(folder, odd, answered("r", 3))
    except UnicodeEncodeError:
        return
    assembler = TurnAssembler("codex-cli", SESSION)
    assembler.add([s for s in sightings if s.session_id == SESSION])
    assembler.turns()


@pytest.mark.parametrize("name", ["tools", "subagent", "stream_cut", "resume"])
def test_a_growing_rollout_is_read_as_a_whole_one(name, tmp_path):
    """However the writer's pieces and our looks fall together, the sightings are the same."""
    for number, path in enumerate(sorted((GOLDEN / name / "transcripts").rglob("*.jsonl"))):
        whole = path.read_bytes()
        copy = tmp_path / f"rollout-{number}.jsonl"
        cursor, found = Cursor(), []
        for cut in range(0, len(whole) + 400, 400):
            with copy.open("ab") as file:
                file.write(whole[max(0, cut - 400) : cut])
            reading = codex_cli.read_transcript(copy, cursor)
            cursor = reading.cursor
            found += reading.sightings
        expected, _ = read_all(copy)
        assert found == expected


def test_a_huge_line_does_not_stop_the_rest(tmp_path, monkeypatch):
    """A line beyond the limit is noted; the next is read."""
    monkeypatch.setattr(lines, "LONGEST_LINE", 5000)
    path = write(
        tmp_path / "rollout-x.jsonl",
        META,
        STARTED,
        line("world_state", big="x" * 20_000),
        answered("r", 2),
    )
    sightings, notes = read_all(path)
    assert notes == {"rollout line line longer than 5000 bytes": 1}
    assert parts_of(sightings, ModelCall)


def test_what_is_new_is_noted(tmp_path):
    """Unknown lines, events and items are passed over and counted."""
    new = [line("new_line"), event("new_event"), item("NewItem")]
    _, notes = read_all(write(tmp_path / "rollout-x.jsonl", META, STARTED, *new))
    assert notes == {
        "rollout line type 'new_line' ignored": 1,
        "rollout event 'new_event' ignored": 1,
        "rollout item 'NewItem' ignored": 1,
    }


def test_usage_is_that_of_the_call(tmp_path):
    """Sums over the turn stand beside it and are not taken for it; cached ones are included."""
    usage = {
        "input_tokens": 1000,
        "cached_input_tokens": 500,
        "cache_write_input_tokens": 20,
        "output_tokens": 100,
        "reasoning_output_tokens": 40,
    }
    (call,) = parts_of(read(tmp_path, answered("resp_1", 2, **usage)), ModelCall)
    assert call.key == call.response_id == "resp_1"
    assert call.usage == Usage(
        input_tokens=1000,
        output_tokens=100,
        cache_read_tokens=500,
        cache_write_tokens=20,
        reasoning_tokens=40,
    )


def test_thinking_belongs_to_the_call_that_it_came_with(tmp_path):
    """Reasoning stands before the line that names its response; its times are the item's."""
    thought = item("Reasoning", id="rs_1", summary_text=["Hm.", "So."])
    thought["payload"] |= {"started_at_ms": 1_000, "completed_at_ms": 2_000}
    (found,) = parts_of(read(tmp_path, thought, answered("resp_1", 2)), Thinking)
    assert found == Thinking(
        key="rs_1",
        call_key="resp_1",
        start_ns=1_000_000_000,
        end_ns=2_000_000_000,
        text="Hm.\nSo.",
        redacted=False,
    )


def test_a_command_has_the_times_and_the_end_that_its_item_tells(tmp_path):
    """Times of the item win over those of lines and of hooks around it."""
    done = item(
        "CommandExecution", 5, id="call_1", status="failed", exit_code=3, aggregated_output="no"
    )
    done["payload"] |= {"started_at_ms": 1_795_222_803_000, "completed_at_ms": 1_795_222_804_000}
    sightings = read(
        tmp_path,
        line("response_item", 2, type="function_call", call_id="call_1", name="exec_command"),
        done,
        line(
            "response_item",
            6,
            type="function_call_output",
            call_id="call_1",
            output="Process exited with code 3\nno",
        ),
    )
    for name in ("PreToolUse", "PostToolUse"):
        fields = {"tool_name": "Bash", "tool_use_id": "call_1", "tool_response": "no"}
        known = {"session_id": SESSION, "turn_id": TURN, "hook_event_name": name}
        sightings += codex_cli.parse_hook(hook({**known, **fields})).sightings
    (tool,) = merge(sightings, ToolCall)
    assert (tool.start_ns, tool.end_ns) == (1_795_222_803_000_000_000, 1_795_222_804_000_000_000)
    assert (tool.name, tool.exit_code, tool.error_type) == ("exec_command", 3, "exit_nonzero")


PATCH = """*** Begin Patch
*** Add File: a.py
+one
+two
*** Update File: /abs/b.py
*** Move to: /abs/c.py
@@ def f
-old
+new
 kept
*** Delete File: d.py
*** End Patch"""


def test_a_failed_patch_is_one_failed_edit_per_file(tmp_path):
    """What it asked for is kept; lines that were never written are not counted."""
    sightings = read(
        tmp_path,
        line(
            "response_item",
            2,
            type="custom_tool_call",
            call_id="call_1",
            name="apply_patch",
            input=PATCH,
        ),
        line(
            "response_item",
            3,
            type="custom_tool_call_output",
            call_id="call_1",
            output="apply_patch verification failed: no such lines",
        ),
    )
    edits = parts_of(sightings, FileEdit)
    assert [(e.path, e.operation, e.lines_added, e.failed) for e in edits] == [
        ("/p/a.py", "create", None, True),
        ("/abs/b.py", "update", None, True),
        ("/p/d.py", "delete", None, True),
    ]
    assert edits[0].diff == "+one\n+two"
    (tool,) = merge(sightings, ToolCall)
    assert tool.error_type == "tool_error"


def test_a_thought_of_an_older_version_is_told_once(tmp_path):
    """As an event of its own; a version that tells an item too does not think it twice."""
    hm = event("agent_reasoning", 1, text="Hm.")
    (found,) = parts_of(read(tmp_path, hm, answered("resp_1", 2)), Thinking)
    assert (found.text, found.call_key, found.end_ns) == ("Hm.", "resp_1", 1_795_222_801 * 10**9)
    both = [hm, item("Reasoning", id="rs_1", summary_text=["Hm."]), answered("resp_1", 2)]
    (found,) = parts_of(read(tmp_path, *both), Thinking)
    assert found.key == "rs_1"


def test_a_server_of_tools_is_told_alike_by_hooks_and_rollout(tmp_path):
    """Name, server and text of the answer, and a failure, also one that gave no answer at all."""
    known = {"session_id": SESSION, "turn_id": TURN, "tool_name": "mcp__weather__forecast"}
    answer = {"content": [{"type": "text", "text": "sunny"}], "isError": False}
    payload = {"hook_event_name": "PostToolUse", "tool_use_id": "c1", "tool_response": answer}
    (hooked,) = parts_of(codex_cli.parse_hook(hook({**known, **payload})).sightings, ToolCall)
    asked = {"name": "forecast", "namespace": "mcp__weather", "arguments": "{}"}
    sightings = read(
        tmp_path,
        line("response_item", 1, type="function_call", call_id="c1", **asked),
        item("McpToolCall", 2, id="c1", server="weather", status="completed", result=answer),
        item("McpToolCall", 3, id="c2", status="failed", error={"message": "gone"}, result=[1]),
    )
    told, failed = sorted(merge(sightings, ToolCall), key=lambda tool: tool.key)
    for tool in (hooked, told):
        assert (tool.name, tool.mcp_server) == ("mcp__weather__forecast", "weather")
        assert (tool.output, tool.error_type) == ("sunny", None)
    assert (failed.error_type, failed.error_message) == ("tool_error", "gone")


def test_a_question_finds_its_tool():
    """It comes without the tool's id, and with a reason that the tool has not."""
    known = {"session_id": SESSION, "turn_id": TURN, "tool_name": "Bash"}
    asked = {"tool_input": {"command": "rm x", "description": "May I?"}}
    sightings = []
    for name, more in (
        ("PreToolUse", {"tool_input": {"command": "rm x"}, "tool_use_id": "c1"}),
        ("PermissionRequest", asked),
        ("PostToolUse", {"tool_input": {"command": "rm x"}, "tool_use_id": "c1"}),
    ):
        event = {**known, **more, "hook_event_name": name}
        sightings += codex_cli.parse_hook(hook(event)).sightings
    assembler = TurnAssembler("codex-cli", SESSION)
    assembler.add(sightings)
    ((wait,),) = (turn.waits for turn in assembler.turns())
    assert (wait.tool_key, wait.tool_name, wait.decision) == ("c1", "exec_command", "allow")


@pytest.mark.parametrize(
    ("name", "more", "kept"),
    [
        ("PostToolUse", {"tool_name": "Bash", "tool_response": "x" * 999}, []),
        ("UserPromptSubmit", {"prompt": "x" * 999}, []),
        ("Stop", {"last_assistant_message": "x" * 999}, [TurnEnd]),
    ],
)
def test_a_payload_that_was_cut_still_says_whom_it_is_about(name, more, kept):
    """What stands before the cut is taken, and nothing is made up of what does not."""
    known = {"session_id": SESSION, "turn_id": TURN, "hook_event_name": name, "cwd": "/p"}
    whole = json.dumps({**known, **more}).encode()
    reading = codex_cli.parse_hook(hook(whole[:300], len(whole)))
    assert reading.notes == {"hook payload cut at its cap": 1}
    session, *parts = reading.sightings
    assert (session.session_id, session.part.cwd) == (SESSION, "/p")
    assert [type(sighting.part) for sighting in parts] == kept


def test_the_answer_that_was_a_summary_is_told(tmp_path):
    """What follows a compaction names it; before, the call is told as any other."""
    summed = line("compacted", 3, message="...", compaction_response_id="resp_1")
    (call,) = merge(read(tmp_path, answered("resp_1", 2, input_tokens=1), summed), ModelCall)
    assert (call.purpose, call.usage.input_tokens) == ("compaction", 1)


def test_a_transcript_is_looked_for_on_the_day_that_its_id_tells(tmp_path, monkeypatch):
    """Among years of sessions, in the folders of three days at most; else everywhere."""
    monkeypatch.delenv("CODEX_HOME", raising=False)
    thread = "01a1fce8-d168-7540-b445-ce328ffcc139"
    sessions = tmp_path / ".codex" / "sessions"
    elsewhere = write(sessions / "2020/01/01" / f"rollout-x-{thread}.jsonl", META)
    assert codex_cli.find_transcript(thread, tmp_path) is None
    there = write(sessions / "2026/11/20" / f"rollout-x-{thread}.jsonl", META)
    assert codex_cli.find_transcript(thread, tmp_path) == there
    elsewhere.rename(sessions / "2020/01/01" / "rollout-x-any-other-id.jsonl")
    assert codex_cli.find_transcript("any-other-id", tmp_path) is not None


def test_lines_of_older_versions_parse_too(tmp_path):
    """Ends of commands and patches as events, and exit codes inside of JSON."""
    changes = {"/p/a.py": {"type": "add", "content": "x\ny\n"}}
    sightings = read(
        tmp_path,
        event("exec_command_end", 2, call_id="c1", exit_code=2, aggregated_output="no"),
        event("patch_apply_end", 3, call_id="c2", success=True, changes=changes),
        line("response_item", 4, type="function_call", call_id="c3", name="shell"),
        line(
            "response_item",
            5,
            type="function_call_output",
            call_id="c3",
            output='{"output":"no","metadata":{"exit_code":7}}',
        ),
    )
    tools = {tool.key: tool for tool in merge(sightings, ToolCall)}
    assert (tools["c1"].exit_code, tools["c3"].exit_code) == (2, 7)
    (edit,) = parts_of(sightings, FileEdit)
    assert (edit.lines_added, edit.failed) == (2, False)


@pytest.mark.parametrize(
    ("info", "kind", "status"),
    [
        ({"http_connection_failed": {"http_status_code": 401}}, "401", 401),
        ("internal_server_error", "internal_server_error", None),
        ({"other": None}, "other", None),
        (None, "unknown", None),
    ],
)
def test_a_failed_turn_says_of_what(info, kind, status, tmp_path):
    """The last attempt is told where its status or request id is; nothing else is made up."""
    error = {"message": "unexpected status", "codex_error_info": info}
    sightings = read(tmp_path, event("task_complete", 3, error=error))
    (end,) = parts_of(sightings, TurnEnd)
    assert (end.outcome, end.error_type) == (Outcome.FAILED, kind)
    assert [call.status_code for call in parts_of(sightings, ModelCall)] == [status] * bool(status)


def test_input_while_the_turn_runs_is_no_turn(tmp_path):
    """A second message of the user in one turn was said while it ran."""
    said = [{"type": "text", "text": "and this"}]
    sightings = read(
        tmp_path,
        item("UserMessage", 1, content=[{"type": "text", "text": "do"}]),
        item("UserMessage", 2, content=said),
    )
    assert [p.mid_turn for p in parts_of(sightings, Prompt)] == [None, True]


def test_a_compaction_is_told(tmp_path):
    """It has the times of its item."""
    done = item("ContextCompaction")
    done["payload"] |= {"started_at_ms": 1_000, "completed_at_ms": 2_000}
    (compaction,) = parts_of(read(tmp_path, done), Compaction)
    assert (compaction.start_ns, compaction.end_ns) == (1_000_000_000, 2_000_000_000)


def subagent_rollout() -> list[dict[str, Any]]:
    spawn = {"parent_thread_id": SESSION, "agent_path": "/root/look", "agent_role": "scout"}
    source = {"subagent": {"thread_spawn": spawn}}
    return [
        line("session_meta", 2, id=CHILD, session_id=SESSION, source=source),
        META,
        STARTED,
        item("Reasoning", 2, id="rs_parent", summary_text=["Copied."]),
        answered("resp_parent", 2),
        line("response_item", 2, type="function_call", call_id="call_parent", name="x"),
        event("turn_aborted", 2, reason="interrupted"),
        line("event_msg", 2, type="thread_settings_applied", thread_id=CHILD),
        line("event_msg", 3, type="task_started", turn_id=CHILD_TURN, root_turn_id=TURN),
        line("response_item", 4, type="function_call", call_id="call_own", name="x"),
        line("event_msg", 5, type="task_complete", turn_id=CHILD_TURN, last_agent_message="Seen."),
    ]


def test_what_a_subagent_copied_is_not_its_own(tmp_path):
    """The parent's history at the start of its file is passed over, its false end too."""
    sightings, _ = read_all(write(tmp_path / "rollout-x.jsonl", *subagent_rollout()))
    assert {s.turn_key for s in sightings} == {TURN}
    assert {s.session_id for s in sightings} == {SESSION}
    assert [tool.key for tool in parts_of(sightings, ToolCall)] == ["call_own"]
    assert not parts_of(sightings, TurnEnd | ModelCall | Thinking)
    (subagent,) = merge(sightings, Subagent)
    assert (subagent.key, subagent.type, subagent.output) == (CHILD, "scout", "Seen.")


def test_a_reviews_hooks_are_those_of_its_thread(tmp_path):
    """They name its own turn, and no subagent; the user's turn has neither its prompt nor its end."""
    source = {"subagent": "review"}
    child = [
        line("session_meta", 1, id=CHILD, session_id=SESSION, source=source),
        line("event_msg", 1, type="task_started", turn_id=CHILD_TURN, root_turn_id=TURN),
        line("event_msg", 5, type="task_complete", turn_id=CHILD_TURN),
    ]
    sightings, _ = read_all(write(tmp_path / "rollout-child.jsonl", *child))
    review = item("EnteredReviewMode", 1, id="e", user_facing_hint="current changes")
    over = event("task_complete", 6)
    sightings += read_all(write(tmp_path / "rollout-x.jsonl", META, review, over))[0]
    known = {"session_id": SESSION, "turn_id": CHILD_TURN}
    for name, more in (
        ("UserPromptSubmit", {"prompt": "Review it."}),
        ("PreToolUse", {"tool_name": "Bash", "tool_use_id": "c1"}),
        ("Interrupt", {}),
    ):
        payload = {**known, **more, "hook_event_name": name}
        sightings += codex_cli.parse_hook(hook(payload)).sightings
    assembler = TurnAssembler("codex-cli", SESSION)
    assembler.add(sightings)
    (turn,) = assembler.turns()
    assert (turn.turn_key, turn.outcome) == (TURN, Outcome.COMPLETED)
    assert [prompt.text for prompt in turn.prompts] == ["current changes"]
    assert turn.tool_owners == {"c1": CHILD}
    assert [subagent.type for subagent in turn.subagents] == ["review"]


def test_a_session_has_the_files_of_its_subagents(tmp_path, monkeypatch):
    """They are found by the session that their first line names, on its day and later."""
    monkeypatch.delenv("CODEX_HOME", raising=False)
    sessions = tmp_path / ".codex" / "sessions"
    main = write(sessions / "2026/11/21" / f"rollout-2026-11-21T01-{SESSION}.jsonl", META)
    child = write(sessions / "2026/11/21" / f"rollout-2026-11-21T02-{CHILD}.jsonl")
    other = line("session_meta", id="thread-9", session_id="thread-9")
    write(sessions / "2026/11/21" / "rollout-2026-11-21T03-thread-9.jsonl", other)
    assert codex_cli.find_transcript(SESSION, tmp_path) == main
    assert codex_cli.find_transcript("../etc", tmp_path) is None
    # Not even its first line is whole yet.
    assert list(codex_cli.transcripts(main)) == [main]
    write(child, *subagent_rollout())
    assert list(codex_cli.transcripts(main)) == [main, child]


def test_requests_say_who_they_are_from():
    """By header, or by the same text in the body; titles and summaries are side calls."""
    told = {"session_id": "s", "thread_id": "s", "turn_id": "t", "root_turn_id": "t"}

    def identify(**more: str):
        return identify_call({"x-codex-turn-metadata": json.dumps({**told, **more})}, {})

    main = identify(thread_source="user", request_kind="turn")
    assert (main.session_id, main.turn_key, main.subagent_id) == ("s", "t", None)
    assert main.request_class == "main"
    body = {"client_metadata": {"x-codex-turn-metadata": json.dumps(told)}}
    assert identify_call({}, body) == main
    child = identify(thread_source="subagent", thread_id="c", turn_id="u")
    assert (child.turn_key, child.subagent_id, child.request_class) == ("t", "c", "subagent")
    assert identify(thread_source="thread_title").request_class == "auxiliary"
    assert identify(request_kind="compaction").request_class == "compaction"
    assert identify_call({"x-codex-turn-metadata": "[" * 100_000}, {}) is None
    assert identify_call({}, {"client_metadata": [1]}) is None


def test_hooks_are_added_and_taken_out_again():
    """Everything else stays as and where it was, an approved hook of somebody else too."""
    own = {"hooks": {"Stop": [{"hooks": [{"type": "command", "command": "mine"}]}], "X": 1}}
    wired = codex_cli.wire(own, COMMANDS)
    assert wired["hooks"]["Stop"][0] == own["hooks"]["Stop"][0]
    assert wired["hooks"]["Stop"][1]["hooks"][0]["command"] == COMMANDS["hook"]
    assert wired["hooks"]["PreToolUse"][0]["hooks"][0]["command"] == COMMANDS["hot"]
    assert codex_cli.wire(wired, COMMANDS) == wired
    assert codex_cli.unwire(wired) == own
    assert codex_cli.unwire(codex_cli.wire({}, COMMANDS)) == {}
    with pytest.raises(ValueError, match="not an object"):
        codex_cli.wire({"hooks": []}, COMMANDS)
    with pytest.raises(ValueError, match=r"hooks\.Stop"):
        codex_cli.wire({"hooks": {"Stop": {}}}, COMMANDS)


CONFIG = """
model_provider = "corp"
[model_providers.corp]
base_url = "https://gateway.example/api"
"""


@pytest.mark.parametrize(
    ("config", "key", "upstream"),
    [
        (CONFIG, "model_providers.corp.base_url", "openai=https://gateway.example/api"),
        ("", "openai_base_url", "openai"),
        ("no [ toml", "openai_base_url", "openai"),
        ('openai_base_url = "http://x/v1"', "openai_base_url", "openai=http://x/v1"),
    ],
)
def test_a_launch_changes_only_where_requests_go(config, key, upstream, tmp_path):
    """By an argument, for the provider in use; the gateway passes on to where they went before."""
    (tmp_path / "config.toml").write_text(config)
    env = {"CODEX_HOME": str(tmp_path)}
    assert codex_cli.upstream(env, tmp_path, tmp_path) == upstream
    launch = Launch(commands=COMMANDS, gateway_url="http://127.0.0.1:1", env=env)
    words, given = codex_cli.launch(["codex", "exec", "hi"], launch)
    assert words == ["codex", "-c", f'{key}="http://127.0.0.1:1/api"', "exec", "hi"]
    assert given == env


def test_every_sighting_says_where_it_is_from(tmp_path):
    """The session's own facts belong to no turn; all else to one."""
    sightings = read(tmp_path, line("turn_context", turn_id=TURN, model="m"), answered("r", 2))
    for sighting in sightings:
        assert sighting.source is Source.TRANSCRIPT
        assert (sighting.turn_key is None) == isinstance(sighting.part, SessionInfo)

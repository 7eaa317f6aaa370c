"""Claude Code's adapter on input that is cut, odd, hostile or huge, and on what formats promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from claude_files import SESSION, TURN, Claude, said, used
from hypothesis import given, settings
from hypothesis import strategies as st

from tracebridge import lines
from tracebridge.agents import Cursor, claude_code, identify_call
from tracebridge.model import (
    FileEdit,
    HookEvent,
    ModelCall,
    Outcome,
    SessionInfo,
    Source,
    Subagent,
    ToolCall,
    TurnEnd,
)
from tracebridge.turns import TurnAssembler, merge

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)
NAMES = [
    "UserPromptSubmit",
    "PreToolUse",
    "PostToolUse",
    "PostToolUseFailure",
    "PermissionRequest",
    "PermissionDenied",
    "SubagentStart",
    "SubagentStop",
    "PreCompact",
    "PostCompact",
    "Stop",
    "StopFailure",
    "SessionEnd",
    "SomethingNew",
]
FIELDS = [
    "prompt",
    "prompt_id",
    "agent_id",
    "agent_type",
    "tool_name",
    "tool_input",
    "tool_response",
    "tool_use_id",
    "duration_ms",
    "error",
    "trigger",
    "background_tasks",
    "last_assistant_message",
    "transcript_path",
    "cwd",
]


def hook(payload: bytes, size: int | None = None, **env: str) -> HookEvent:
    return HookEvent(
        agent="claude-code",
        time_ns=1,
        pid=1,
        env=env,
        payload=payload,
        payload_bytes=len(payload) if size is None else size,
    )


def read_all(path: Path):
    sightings, notes, cursor = [], {}, Cursor()
    while True:
        reading = claude_code.read_transcript(path, cursor)
        sightings += reading.sightings
        notes |= reading.notes
        if reading.cursor == cursor:
            return sightings, notes
        cursor = reading.cursor


def parts(sightings, kind):
    return merge(sightings, kind)


@given(payload=st.binary(max_size=200))
def test_any_bytes_are_a_hook_payload(payload):
    """Whatever bytes a hook was given: no exception, and what was passed over is noted."""
    reading = claude_code.parse_hook(hook(payload))
    assert reading.sightings or reading.notes


@settings(max_examples=300)
@given(name=st.sampled_from(NAMES), fields=st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_any_values_may_stand_in_a_hook_payload(name, fields):
    """Fields of any type in any event: no exception, also not when turns are put together."""
    payload = {**fields, "session_id": "s", "hook_event_name": name}
    try:
        encoded = json.dumps(payload).encode()
    except UnicodeEncodeError:
        return
    reading = claude_code.parse_hook(hook(encoded))
    assembler = TurnAssembler("claude-code", "s")
    assembler.add(reading.sightings)
    assembler.turns()


def test_unknown_events_are_noted():
    """An event that is new to us is ignored with a note, not with an error."""
    payload = {"session_id": "s", "prompt_id": "t", "hook_event_name": "SomethingNew"}
    reading = claude_code.parse_hook(hook(json.dumps(payload).encode()))
    assert reading.notes == {"hook event SomethingNew ignored": 1}


def test_a_cut_payload_still_says_whose_it_is():
    """Of a payload that was cut at the hook's cap the first fields are used."""
    whole = json.dumps(
        {
            "session_id": SESSION,
            "prompt_id": TURN,
            "hook_event_name": "UserPromptSubmit",
            "prompt": "x" * 1000,
        }
    ).encode()
    reading = claude_code.parse_hook(hook(whole[:400], size=len(whole)))
    assert reading.notes == {"hook payload cut at its cap": 1}
    assert {sighting.turn_key for sighting in reading.sightings} == {None, TURN}


def test_the_session_is_told_by_environment_and_payload():
    """Version and process come from the hook's environment, folder and file from its payload."""
    payload = {
        "session_id": "s",
        "hook_event_name": "SessionStart",
        "cwd": "/project",
        "transcript_path": "/t.jsonl",
    }
    env = {"AI_AGENT": "claude-code_2-1-329_harness", "CLAUDE_PID": "77"}
    reading = claude_code.parse_hook(hook(json.dumps(payload).encode(), **env))
    (info,) = parts(reading.sightings, SessionInfo)
    assert (info.agent_version, info.pid, info.cwd) == ("2.1.329", 77, "/project")


@given(garbage=st.binary(max_size=300))
def test_any_bytes_are_a_transcript(garbage, tmp_path_factory):
    """Whatever stands in a transcript: no exception, and the offset never passes the end."""
    path = tmp_path_factory.mktemp("t") / f"{SESSION}.jsonl"
    path.write_bytes(garbage)
    reading = claude_code.read_transcript(path, Cursor())
    assert reading.cursor.offset <= len(garbage)


@settings(max_examples=200)
@given(
    kind=st.sampled_from(["user", "assistant", "system", "attachment", "api-request", "new"]),
    fields=st.dictionaries(
        st.sampled_from(
            [
                "message",
                "promptId",
                "subtype",
                "error",
                "toolUseResult",
                "attachment",
                "id",
                "requestId",
                "requestRef",
                "compactMetadata",
                "permissionDecision",
                "sessionId",
            ]
        ),
        json_values,
    ),
)
def test_any_values_may_stand_in_a_transcript_line(kind, fields, tmp_path_factory):
    """Lines of every type with fields of any type: no exception, also not in the turns."""
    path = tmp_path_factory.mktemp("t") / f"{SESSION}.jsonl"
    stamped = {"timestamp": "2026-11-21T01:45:22.025Z"}
    prompt = {"type": "user", "promptId": TURN, "message": {"content": "hi"}, **stamped}
    odd = {**stamped, **fields, "type": kind}
    path.write_text(f"{json.dumps(prompt)}\n{json.dumps(odd)}\n", "utf-8", "surrogatepass")
    sightings, _ = read_all(path)
    for session_id in {sighting.session_id for sighting in sightings}:
        assembler = TurnAssembler("claude-code", session_id)
        assembler.add(s for s in sightings if s.session_id == session_id)
        assembler.turns()


@given(cuts=st.lists(st.integers(0, 5000), max_size=5))
def test_a_growing_transcript_is_read_as_a_whole_one(cuts, tmp_path_factory):
    """Looking at any moments, also in the middle of a line, gives what one look at the end gives."""
    folder = tmp_path_factory.mktemp("t")
    claude = Claude(folder / "home", folder)
    claude.simple_turn()
    claude.turn = "second"
    claude.simple_turn(began=10)
    whole = claude.transcript.read_bytes()
    expected, _ = read_all(claude.transcript)
    path = folder / "growing" / f"{SESSION}.jsonl"
    path.parent.mkdir()
    path.touch()
    found, cursor = [], Cursor()
    for cut in [*sorted(cuts), len(whole)]:
        with path.open("r+b") as stream:
            stream.write(whole[:cut])
        reading = claude_code.read_transcript(path, cursor)
        found += reading.sightings
        cursor = reading.cursor

    def comparable(sightings):
        return [s for s in sightings if not isinstance(s.part, SessionInfo)]

    assert comparable(found) == comparable(expected)


def test_a_replaced_transcript_is_read_anew(tmp_path):
    """A file that shrank or is another one is read from its beginning."""
    claude = Claude(tmp_path / "home", tmp_path)
    claude.simple_turn()
    cursor = claude_code.read_transcript(claude.transcript, Cursor()).cursor
    text = claude.transcript.read_text()
    claude.transcript.unlink()
    claude.transcript.write_text(text)
    again = claude_code.read_transcript(claude.transcript, cursor)
    assert again.cursor.offset == cursor.offset
    claude.transcript.write_text(text.splitlines(keepends=True)[0])
    assert claude_code.read_transcript(claude.transcript, again.cursor).sightings


def test_a_huge_line_does_not_stop_the_rest(tmp_path, monkeypatch):
    """A line beyond every measure is passed over with a note; the lines around it count."""
    monkeypatch.setattr(lines, "LONGEST_LINE", 2000)
    claude = Claude(tmp_path / "home", tmp_path)
    claude.prompt_line(0, "hello")
    claude.line("attachment", 1, filler="x" * 10_000)
    claude.answer_line(2, "msg_1", said("done"), began=1)
    sightings, notes = read_all(claude.transcript)
    assert any("longer than 2000" in note for note in notes)
    assert [call.key for call in parts(sightings, ModelCall)] == ["msg_1"]


def test_usage_is_repeated_on_each_block_and_counted_once(tmp_path):
    """Three lines of one message are one call with the message's usage."""
    claude = Claude(tmp_path / "home", tmp_path)
    claude.prompt_line(0, "hello")
    blocks = (said("a"), used("toolu_1", "Bash", command="true"), said("b"))
    claude.answer_line(2, "msg_1", *blocks, began=1, output_tokens=50)
    (call,) = parts(read_all(claude.transcript)[0], ModelCall)
    assert call.usage.output_tokens == 50
    # Anthropic's input_tokens leaves the cache out; OpenTelemetry's includes it.
    assert call.usage.input_tokens == 10 + 5 + 100
    assert call.tool_call_ids == ("toolu_1",)


def test_lines_of_2_1_197_parse_too(tmp_path):
    """An older Claude Code names no request and no origin: the call is there without its start."""
    claude = Claude(tmp_path / "home", tmp_path)
    claude.prompt_line(0, "hello")
    message = {
        "id": "msg_1",
        "role": "assistant",
        "model": "claude-opus-4-8",
        "content": [said("done")],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    claude.line("assistant", 2, message=message, requestId="req_1")
    sightings, notes = read_all(claude.transcript)
    (call,) = parts(sightings, ModelCall)
    assert (call.start_ns, call.request_id, call.usage.input_tokens) == (None, "req_1", 3)
    assert notes == {}


def test_an_unanswered_thinking_text_keeps_its_time(tmp_path):
    """A thinking block whose text the vendor keeps still has a time and is marked as redacted."""
    claude = Claude(tmp_path / "home", tmp_path)
    claude.prompt_line(0, "hello")
    block = {"type": "thinking", "thinking": "", "signature": "x"}
    claude.answer_line(2, "msg_1", block, began=1, thinkingDurationMs=250)
    sightings, _ = read_all(claude.transcript)
    thinking = next(s.part for s in sightings if getattr(s.part, "call_key", None) == "msg_1")
    assert thinking.end_ns - thinking.start_ns == 250_000_000
    assert thinking.redacted


@pytest.mark.parametrize(
    ("name", "given", "response", "expected"),
    [
        (
            "Write",
            {"content": "a\nb\n"},
            {"type": "create", "structuredPatch": []},
            ("create", 2, 0),
        ),
        (
            "Edit",
            {"old_string": "a", "new_string": "b\nc"},
            {"structuredPatch": [{"lines": [" x", "-a", "+b", "+c"]}]},
            ("update", 2, 1),
        ),
        ("Edit", {"old_string": "a", "new_string": "b"}, None, ("update", 1, 1)),
        ("Edit", {"old_string": "a", "new_string": "b"}, "text", ("update", 1, 1)),
        ("NotebookEdit", {"new_source": "x"}, {"structuredPatch": "?"}, ("update", 1, 0)),
    ],
)
def test_edits_have_path_operation_and_line_counts(name, given, response, expected):
    """From the tool's patch, or where there is none from what was asked."""
    payload = {
        "session_id": "s",
        "prompt_id": "t",
        "hook_event_name": "PostToolUse",
        "tool_name": name,
        "tool_use_id": "toolu_1",
        "tool_input": {"file_path": "/p/a.py", "notebook_path": "/p/a.py", **given},
        "tool_response": response,
    }
    reading = claude_code.parse_hook(hook(json.dumps(payload).encode()))
    (edit,) = parts(reading.sightings, FileEdit)
    assert edit.path == "/p/a.py"
    assert (edit.operation, edit.lines_added, edit.lines_removed) == expected


def test_the_original_file_is_not_kept():
    """PostToolUse carries the whole file as it was: that is not ours to keep."""
    payload = {
        "session_id": "s",
        "prompt_id": "t",
        "hook_event_name": "PostToolUse",
        "tool_name": "Edit",
        "tool_use_id": "toolu_1",
        "tool_input": {"file_path": "/p/a.py"},
        "tool_response": {"originalFile": "the whole file", "structuredPatch": []},
    }
    reading = claude_code.parse_hook(hook(json.dumps(payload).encode()))
    (tool,) = parts(reading.sightings, ToolCall)
    assert "the whole file" not in (tool.output or "")


def test_subagent_files_tell_whose_they_are(tmp_path):
    """File name and meta file link a subagent to the tool call that started it."""
    claude = Claude(tmp_path / "home", tmp_path)
    claude.prompt_line(0, "hello")
    folder = claude.transcript.with_suffix("") / "subagents"
    folder.mkdir(parents=True)
    file = folder / "agent-a1.jsonl"
    claude.line("user", 1, file=file, promptId=TURN, isSidechain=True, message={"content": "go"})
    (folder / "agent-a1.meta.json").write_text('{"agentType": "helper", "toolUseId": "toolu_9"}')
    assert list(claude_code.transcripts(claude.transcript)) == [claude.transcript, file]
    sightings, _ = read_all(file)
    (subagent,) = parts(sightings, Subagent)
    assert (subagent.key, subagent.type, subagent.tool_key) == ("a1", "helper", "toolu_9")
    (folder / "agent-a1.meta.json").write_text("{cut")
    assert any("not JSON" in note for note in read_all(file)[1])


def test_a_transcript_is_found_by_its_session(tmp_path):
    """A session id off the wire finds its file, and never leads anywhere else."""
    claude = Claude(tmp_path / "home", tmp_path / ".claude")
    claude.simple_turn()
    assert claude_code.find_transcript(SESSION, tmp_path) == claude.transcript
    for hostile in ("../../etc/passwd", "*", "", "a/b", "\0"):
        assert claude_code.find_transcript(hostile, tmp_path) is None


def test_requests_say_who_they_are_from():
    """Headers name session, turn, subagent and class; the body names the session where they do not."""
    headers = {
        "x-claude-code-session-id": "s",
        "x-claude-code-prompt-id": "t",
        "x-claude-code-agent-id": "a",
        "x-claude-code-request-class": "subagent",
    }
    identity = identify_call(headers, {})
    assert identity is not None
    assert (identity.session_id, identity.turn_key, identity.subagent_id) == ("s", "t", "a")
    body = {"metadata": {"user_id": '{"device_id": "d", "session_id": "s"}'}}
    assert identify_call({}, body).session_id == "s"
    for odd in (
        {},
        {"metadata": 7},
        {"metadata": {"user_id": "session_id{"}},
        {"metadata": {"user_id": '["session_id"]'}},
    ):
        assert identify_call({}, odd) is None


def results(*ids):
    blocks = [{"type": "tool_result", "tool_use_id": each, "content": "x"} for each in ids]
    return {"role": "user", "content": [*blocks, {"type": "text", "text": "go on"}]}


@pytest.mark.parametrize(
    ("header", "messages", "told"),
    [
        ("Read=22;Bash=1013", [results("a"), results("b", "c")], {"b": 22, "c": 1013}),
        # What stands behind the results is not the user's.
        ("mcp__x__y=0", [results("a"), {"role": "system", "content": "x"}], {"a": 0}),
        # One was refused before it ran: whose the other's time is nobody can say.
        ("Read=22", [results("b", "c")], {}),
        ("Read=22;Bash=7", [results("b")], {}),
        ("Read=22;Bash=soon", [results("b", "c")], {"b": 22}),
        ("Read=" + "9" * 4000, [results("b")], {}),
        ("", [results("b")], {}),
        ("=;=", [results("b", 7)], {}),
        ("Read=-3", [{"role": "user", "content": "text"}], {}),
        ("Read=2", 7, {}),
        (None, [results("b")], {}),
    ],
)
def test_requests_say_how_long_tools_took(header, messages, told):
    """A request tells the durations of the tools whose results it brings, or of none."""
    headers = {"x-claude-code-session-id": "s"}
    if header is not None:
        headers["x-claude-code-prev-tool-durations"] = header
    identity = identify_call(headers, {"messages": messages})
    assert identity.tool_durations_ns == {key: ms * 1_000_000 for key, ms in told.items()}


def test_an_interrupt_ends_the_turn(tmp_path):
    """The line in the user's name that tells of an interrupt is the turn's end."""
    claude = Claude(tmp_path / "home", tmp_path)
    claude.prompt_line(0, "hello")
    text = [{"type": "text", "text": "[Request interrupted by user]"}]
    claude.line("user", 3, promptId=TURN, message={"role": "user", "content": text})
    ends = [s.part for s in read_all(claude.transcript)[0] if isinstance(s.part, TurnEnd)]
    assert [end.outcome for end in ends] == [Outcome.INTERRUPTED]


def test_every_sighting_says_where_it_is_from(tmp_path):
    """Hooks give hook sightings, transcripts transcript sightings, both of this agent."""
    claude = Claude(tmp_path / "home", tmp_path)
    claude.simple_turn()
    assert {(s.agent, s.source) for s in read_all(claude.transcript)[0]} == {
        ("claude-code", Source.TRANSCRIPT)
    }


def test_a_compaction_is_recognised_without_a_header():
    """Where no header says the class, the request for a summary shows what it is."""
    asked = "Your task is to create a detailed summary of the conversation so far"
    headers = {"x-claude-code-session-id": "s"}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": asked}]}]}
    assert identify_call(headers, body).request_class == "compaction"
    assert identify_call(headers, {"messages": [{"content": "hello"}]}).request_class is None

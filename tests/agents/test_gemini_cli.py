"""What Gemini CLI's hook events, chat files and settings come to."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracebridge.agents import Cursor, Launch, gemini_cli
from tracebridge.agents.gemini_cli.prompts import turn_compacted_for
from tracebridge.model import (
    Compaction,
    HookEvent,
    ModelCall,
    Outcome,
    Prompt,
    Sighting,
    ToolCall,
    TurnEnd,
    Usage,
)
from tracebridge.turns import TurnAssembler

SESSION = "ab9d37ea-0cb2-452a-aefd-bf08809ad8d1"
RECORDINGS = Path(__file__).parent / "gemini-cli"
# Behind the prompt, behind its answer, behind the next prompt: from the minute's beginning.
SECONDS = (2_000_000_000, 4_000_000_000, 6_000_000_000)
COMMANDS = {"hook": "/usr/bin/python3 -I -S /x/tracebridge_hook.py gemini-cli /h", "hot": ""}


def hook(payload: dict, time_ns: int = 1_795_000_000_000_000_000, **env: str):
    data = json.dumps(payload).encode()
    return gemini_cli.parse_hook(
        HookEvent(
            agent="gemini-cli",
            time_ns=time_ns,
            pid=1,
            env=env,
            payload=data,
            payload_bytes=len(data),
        )
    )


def write_chat(folder: Path, *lines: dict) -> Path:
    path = folder / f"session-2026-11-21T05-31-{SESSION[:8]}.jsonl"
    header = {"sessionId": SESSION, "startTime": "2026-11-21T05:31:00Z", "kind": "main"}
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    return path


def said(number: int, text: str) -> dict:
    stamp = f"2026-11-21T05:31:0{number}.000Z"
    return {"id": f"u{number}", "timestamp": stamp, "type": "user", "content": [{"text": text}]}


def answered(number: int, **fields) -> dict:
    stamp = f"2026-11-21T05:31:0{number}.500Z"
    return {"id": f"g{number}", "timestamp": stamp, "type": "gemini", "content": "", **fields}


def parts(path: Path, kind: type) -> list:
    return [
        s.part
        for s in gemini_cli.read_transcript(path, Cursor()).sightings
        if isinstance(s.part, kind)
    ]


def recorded(name: str, folder: Path) -> list[Sighting]:
    """Return what a recording tells, its chat file lying where its hooks say."""
    recording = RECORDINGS / name
    home = folder / "home" / ".gemini"
    shutil.copytree(recording / "transcripts", home)
    sightings: list[Sighting] = []
    lines = (recording / "recorded_hooks.jsonl").read_text().replace("/home/user", str(folder))
    for line in lines.splitlines():
        event = json.loads(line)
        sightings += hook(event["payload"], event["time_ns"]).sightings
    for path in home.rglob("*.jsonl"):
        sightings += gemini_cli.read_transcript(path, Cursor()).sightings
    return sightings


@pytest.mark.parametrize(
    ("name", "outcomes", "tools"),
    [
        ("resume", ["completed", "completed"], [1, 1]),
        ("resume_after_failure", ["completed", "failed", "completed"], [0, 0, 1]),
    ],
)
def test_resume(name, outcomes, tools, tmp_path):
    """Hooks and chat file of a resumed session agree on its turns; copied history is not told."""
    sightings = recorded(name, tmp_path)
    assembler = TurnAssembler("gemini-cli", sightings[0].session_id)
    assembler.add(sightings)
    turns = assembler.turns()
    assert [turn.turn_key for turn in turns] == [str(n + 1) for n in range(len(turns))]
    assert [turn.outcome for turn in turns] == outcomes
    assert [len(turn.tools) for turn in turns] == tools
    assert [len(turn.prompts) for turn in turns] == [1] * len(turns)


def test_thoughts_are_output_and_the_last_line_of_a_message_counts(tmp_path):
    """Tokens include thoughts and cache, and tool calls have the id that the model gave them."""
    tokens = {"input": 100, "output": 20, "cached": 60, "thoughts": 5, "tool": 3, "total": 128}
    call = {
        "id": "read_file__call_7",
        "name": "read_file",
        "args": {},
        "status": "success",
        "timestamp": "2026-11-21T05:31:01.900Z",
        "result": [{"functionResponse": {"response": {"output": "text"}}}],
    }
    first = answered(1, tokens=tokens, model="m")
    path = write_chat(tmp_path, said(1, "go"), first, {**first, "toolCalls": [call]})
    calls = parts(path, ModelCall)
    assert {each.key for each in calls} == {"g1"}
    assert calls[-1].usage == Usage(
        input_tokens=103, output_tokens=25, cache_read_tokens=60, reasoning_tokens=5
    )
    assert calls[-1].tool_call_ids == ("call_7",)
    assert {tool.key for tool in parts(path, ToolCall)} == {"call_7"}


def test_a_failed_turn_is_rolled_back(tmp_path):
    """A patch that leaves the prompt out says that its turn failed."""
    patch = {"$set": {"messages": [{"id": "c"}], "lastUpdated": "2026-11-21T05:31:03Z"}}
    (end,) = parts(write_chat(tmp_path, said(1, "go"), patch), TurnEnd)
    assert end.outcome is Outcome.FAILED


def test_context_and_tool_results_are_no_prompts(tmp_path):
    """What stands in the user's name without being said by him begins no turn."""
    context = said(1, "<session_context>\nall of it")
    result = {**said(3, ""), "content": [{"functionResponse": {"id": "x"}}]}
    path = write_chat(tmp_path, context, said(2, "go"), result)
    assert [prompt.text for prompt in parts(path, Prompt)] == ["go"]


def test_hook_without_its_chat_file():
    """Without a chat file turns are counted: two prompts are two turns, and tools are theirs."""
    payload = {"session_id": SESSION, "hook_event_name": "BeforeAgent", "prompt": "p"}
    tool = {**payload, "hook_event_name": "BeforeTool", "tool_name": "t", "tool_input": {}}
    stop = {**payload, "hook_event_name": "AfterAgent"}
    start = 1_795_000_000_000_000_000
    events = [payload, tool, stop, payload, tool, stop]
    readings = [
        hook(each, start + number * 1_000_000_000, TRACEBRIDGE_AGENT_PID="77")
        for number, each in enumerate(events)
    ]
    assert readings[0].sightings[0].part.pid == 77
    assembler = TurnAssembler("gemini-cli", SESSION)
    for reading in reversed(readings):
        assembler.add(reading.sightings)
    turns = assembler.turns()
    assert [(turn.turn_key, len(turn.tools)) for turn in turns] == [("1", 1), ("2", 1)]


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "/proc/1/mem/x", "/", "", "\ud800"])
def test_a_hook_with_an_impossible_chat_file(path):
    """Whatever a hook names as its chat file, its turn is told by counting."""
    payload = {"session_id": SESSION, "hook_event_name": "BeforeAgent", "prompt": "p"}
    reading = hook({**payload, "transcript_path": path})
    assert [s.part.text for s in reading.sightings if isinstance(s.part, Prompt)] == ["p"]


@given(st.binary(max_size=200))
def test_garbage_hooks(data):
    """Whatever a hook was given, parsing it does not fail and says what was wrong."""
    event = HookEvent(
        agent="gemini-cli", time_ns=1, pid=1, env={}, payload=data, payload_bytes=len(data)
    )
    assert gemini_cli.parse_hook(event).notes


def test_a_chat_file_without_its_header(tmp_path):
    """A file that goes on without its beginning is its session's by what a hook told of it."""
    path = write_chat(tmp_path, said(1, "go"), answered(1, content="done", model="m"))
    path.write_bytes(path.read_bytes().partition(b"\n")[2])
    assert parts(path, Prompt) == []
    reading = gemini_cli.read_transcript(path, Cursor())
    assert (reading.notes, reading.cursor.offset) == ({"transcript without its header": 1}, 0)
    payload = {"session_id": SESSION, "hook_event_name": "AfterAgent"}
    stop = hook({**payload, "transcript_path": str(path), "timestamp": "2026-11-21T05:31:02Z"})
    assert stop.sightings[-1].turn_key == "1"
    (told,) = parts(path, Prompt)
    assert (told.text, parts(path, ModelCall)[-1].output_text) == ("go", "done")
    other = path.with_name(f"session-2026-11-21T05-31-{SESSION[1:9]}.jsonl")
    path.rename(other)
    assert parts(other, Prompt) == []


def test_a_chat_file_of_an_older_version(tmp_path):
    """One JSON document tells the same, once it is whole."""
    chats = tmp_path / ".gemini" / "tmp" / "project" / "chats"
    chats.mkdir(parents=True)
    path = chats / f"session-2026-11-21T05-31-{SESSION[:8]}.json"
    messages = [said(1, "go"), answered(1, content="done", model="m"), {"type": "new"}, 7]
    document = {"sessionId": SESSION, "startTime": "2026-11-21T05:31:00Z", "messages": messages}
    text = json.dumps(document, indent=2)
    path.write_text(text[:-20])
    assert gemini_cli.read_transcript(path, Cursor()).cursor.offset == 0
    path.write_text(text)
    reading = gemini_cli.read_transcript(path, Cursor())
    kinds = {type(sighting.part) for sighting in reading.sightings}
    assert {Prompt, ModelCall, TurnEnd} <= kinds
    assert gemini_cli.read_transcript(path, reading.cursor).sightings == ()
    (past,) = gemini_cli.past_sessions(tmp_path)
    assert (past.session_id, past.path) == (SESSION, path)


def test_escape_interrupts(tmp_path):
    """A cancelled request interrupts its turn, though its prompt is rolled back as a failed one's."""
    cancel = {**said(2, ""), "type": "info", "content": "Request cancelled."}
    patch = {"$set": {"messages": [{"id": "c"}], "lastUpdated": "2026-11-21T05:31:03Z"}}
    (end,) = parts(write_chat(tmp_path, said(1, "go"), cancel, patch), TurnEnd)
    assert end.outcome is Outcome.INTERRUPTED


def test_what_was_taken_back_has_happened(tmp_path):
    """A conversation that was rewound keeps its turns, and the file says nothing strange."""
    path = write_chat(tmp_path, said(1, "go"), {"$rewindTo": "u1"}, said(2, "go on"))
    reading = gemini_cli.read_transcript(path, Cursor())
    assert not reading.notes
    assert [prompt.text for prompt in parts(path, Prompt)] == ["go", "go on"]


def test_garbage_in_a_chat_file(tmp_path):
    """Lines that are none are counted and passed over, and an unfinished one waits."""
    path = write_chat(tmp_path, said(1, "go"), {"type": "new", "id": "n"}, {"$set": 3})
    whole = path.read_bytes()
    path.write_bytes(whole + b'\xff\n[]\n{"type":"gemini","id":"g","timestamp":7}\n{"id":')
    reading = gemini_cli.read_transcript(path, Cursor())
    assert sum(reading.notes.values()) == 4
    assert [s.part.text for s in reading.sightings if isinstance(s.part, Prompt)] == ["go"]


def test_wiring_goes_in_and_out_again():
    """Our hooks stand beside the user's, once, and leave nothing behind."""
    theirs = {"hooks": {"AfterTool": [{"hooks": [{"type": "command", "command": "x"}]}]}, "a": 1}
    wired = gemini_cli.wire(theirs, COMMANDS | {"hot": COMMANDS["hook"]})
    assert gemini_cli.wire(wired, COMMANDS | {"hot": COMMANDS["hook"]}) == wired
    assert set(wired["hooks"]) == {
        "SessionStart",
        "BeforeAgent",
        "BeforeTool",
        "AfterTool",
        "Notification",
        "PreCompress",
        "AfterAgent",
        "SessionEnd",
    }
    # For each call of the model it would fire, too.
    assert [group["matcher"] for group in wired["hooks"]["PreCompress"]] == ["manual"]
    assert gemini_cli.unwire(wired) == theirs
    assert gemini_cli.unwire(gemini_cli.wire({}, COMMANDS | {"hot": COMMANDS["hook"]})) == {}


@pytest.mark.parametrize(
    "settings", [{"hooks": 3}, {"hooks": {"AfterTool": {}}}, {"hooksConfig": {"enabled": False}}]
)
def test_settings_that_hooks_cannot_be_added_to(settings):
    """What hooks cannot be added to is a ValueError, not lost."""
    with pytest.raises(ValueError, match="hooks"):
        gemini_cli.wire(settings, COMMANDS)


@pytest.mark.parametrize(
    ("words", "headers"),
    [
        (
            ["-p", "hi", "--session-id", "s"],
            "a: b, x-tracebridge-session: gemini-cli/s, x-tracebridge-turn: 1",
        ),
        (["--session-id=s"], "a: b, x-tracebridge-session: gemini-cli/s"),
        (["--resume", "latest", "-p", "x"], "a: b"),
    ],
)
def test_launch(words, headers, tmp_path):
    """A launched process names its session, and its turn where it has but one, in each request."""
    env = {"TRACEBRIDGE_HOME": str(tmp_path), "GEMINI_CLI_CUSTOM_HEADERS": "a: b"}
    env["GEMINI_CLI_SYSTEM_SETTINGS_PATH"] = str(tmp_path / "none.json")
    launch = Launch(commands=COMMANDS, gateway_url="http://h:1", env=env)
    given, told = gemini_cli.launch(["gemini", *words], launch)
    assert given == ["gemini", *words]
    assert told["GEMINI_CLI_CUSTOM_HEADERS"] == headers
    assert told["GOOGLE_GEMINI_BASE_URL"] == "http://h:1/api/google/gemini"
    # Telemetry tells turns apart where headers do not.
    exports = "x-tracebridge-turn" not in headers
    assert told.get("GEMINI_TELEMETRY_OTLP_ENDPOINT") == ("http://h:1" if exports else None)
    assert told.get("GEMINI_TELEMETRY_LOG_PROMPTS") == ("false" if exports else None)
    # Below a folder of everybody's, Gemini CLI would refuse system settings with a warning.
    assert told["GEMINI_CLI_SYSTEM_SETTINGS_PATH"] == env["GEMINI_CLI_SYSTEM_SETTINGS_PATH"]


@pytest.mark.parametrize("exporting", ["env", "settings"])
def test_launch_leaves_an_exporter_alone(exporting, tmp_path):
    """Who sends Gemini CLI's telemetry elsewhere goes on getting it."""
    env = {"TRACEBRIDGE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    if exporting == "env":
        env["GEMINI_TELEMETRY_OTLP_ENDPOINT"] = "http://theirs:4318"
    else:
        (tmp_path / ".gemini").mkdir()
        text = '// mine\n{"telemetry": {"enabled": true}}'
        (tmp_path / ".gemini" / "settings.json").write_text(text)
    launch = Launch(commands=COMMANDS, gateway_url="http://h:1", env=env)
    _, told = gemini_cli.launch(["gemini"], launch)
    assert "GEMINI_TELEMETRY_ENABLED" not in told
    assert told.get("GEMINI_TELEMETRY_OTLP_ENDPOINT") in {None, "http://theirs:4318"}


def test_identify_call():
    """A request is ours by the header that we told its process to send."""
    headers = {"x-tracebridge-session": "gemini-cli/s", "x-tracebridge-turn": "1"}
    identity = gemini_cli.identify_call(headers, {})
    assert (identity.session_id, identity.turn_key) == ("s", "1")
    router = {"generationConfig": {"responseMimeType": "application/json"}}
    assert gemini_cli.identify_call(headers, router).is_side_call
    assert gemini_cli.identify_call({"x-tracebridge-session": "other/s"}, {}) is None
    assert gemini_cli.identify_call({}, {}) is None
    unnamed = gemini_cli.identify_call({"user-agent": "GeminiCLI-tui/0.61.0/m (linux)"}, {})
    assert (unnamed.agent, unnamed.session_id, unnamed.turn_key) == ("gemini-cli", None, None)


def test_upstream(tmp_path):
    """Requests go where the environment says, else to Google."""
    assert gemini_cli.upstream({}, tmp_path, tmp_path) == "google"
    base = {"GOOGLE_GEMINI_BASE_URL": "http://g"}
    assert gemini_cli.upstream(base, tmp_path, tmp_path) == "gemini=http://g"
    vertex = {"GOOGLE_GENAI_USE_VERTEXAI": "true", "GOOGLE_VERTEX_BASE_URL": "http://v"}
    assert gemini_cli.upstream(vertex, tmp_path, tmp_path) == "vertex=http://v"


def context(number: int) -> dict:
    return {**said(number, "<session_context>\nall of it"), "id": f"c{number}"}


def copied(number: int, line: dict) -> dict:
    """Return a line as it stands in history that is written anew."""
    fresh = {"id": f"copy of {line['id']}", "timestamp": f"2026-11-21T05:31:0{number}.000Z"}
    return {name: line[name] for name in ("type", "content")} | fresh


def history(number: int, *messages: dict) -> dict:
    stamp = f"2026-11-21T05:31:0{number}.000Z"
    return {"$set": {"messages": list(messages), "lastUpdated": stamp}}


def turn_keys(path: Path, kind: type) -> list[str | None]:
    told = gemini_cli.read_transcript(path, Cursor()).sightings
    return [each.turn_key for each in told if isinstance(each.part, kind)]


def summed_up(number: int) -> dict:
    """Return history that begins with a summary; what it keeps has new ids."""
    taken = {"type": "gemini", "content": [{"text": "Got it. Thanks for the additional context!"}]}
    kept = copied(number, said(1, "go"))
    summary = {**said(number, "the summary"), "id": f"s{number}"}
    return history(number, context(1), summary, {**taken, "id": f"t{number}"}, kept)


def test_history_that_is_written_anew_is_not_told_again(tmp_path):
    """Neither its prompts nor its answers are, and prompts behind it are counted as before."""
    lines = [said(1, "go"), answered(1, content="gone", model="m"), said(2, "go on")]
    again = [context(4), *(copied(4, line) for line in lines)]
    path = write_chat(tmp_path, *lines, *again, history(4, *again), said(5, "and on"))
    assert [prompt.text for prompt in parts(path, Prompt)] == ["go", "go on", "and on"]
    assert turn_keys(path, Prompt) == ["1", "2", "3"]
    assert [call.key for call in parts(path, ModelCall)] == ["g1"]


def test_what_a_session_was_begun_with_is_not_told_again(tmp_path):
    """Lines older than their session are another one's."""
    old = [said(1, "go"), answered(1, content="gone", model="m")]
    path = write_chat(tmp_path, *old, history(4, context(3), *old), said(5, "and on"))
    path.write_text(path.read_text().replace("05:31:00Z", "05:31:04Z", 1))
    assert [prompt.text for prompt in parts(path, Prompt)] == ["and on"]
    assert turn_keys(path, Prompt) == ["1"]
    assert not parts(path, ModelCall)


def test_what_was_answered_does_not_fail_when_it_is_gone_back_behind(tmp_path):
    """History that leaves an answered prompt out says nothing of its turn."""
    lines = [said(1, "go"), answered(1, content="gone", model="m")]
    path = write_chat(tmp_path, *lines, {"$rewindTo": "u1"}, history(4, context(3)))
    assert [end.outcome for end in parts(path, TurnEnd)] == [Outcome.COMPLETED]


@pytest.mark.parametrize(
    ("behind", "told"),
    [
        ([{"type": "info", "content": ""}], [("manual", "1/compress")]),
        ([{"type": "info", "content": "Context compressed."}, said(5, "on")], [("auto", "2")]),
        ([], []),
    ],
    ids=["manual", "auto", "not yet known"],
)
def test_history_that_is_summed_up_between_turns(behind, told, tmp_path):
    """By itself it is a turn of its own, else of the prompt behind it; no turn fails of it."""
    lines = [said(1, "go"), answered(1, content="gone", model="m"), summed_up(3)]
    path = write_chat(tmp_path, *lines, *behind)
    triggers = [compaction.trigger for compaction in parts(path, Compaction)]
    assert list(zip(triggers, turn_keys(path, Compaction), strict=True)) == told
    assert {end.outcome for end in parts(path, TurnEnd)} == {Outcome.COMPLETED}


def test_history_that_is_summed_up_while_a_turn_runs(tmp_path):
    """It is a compaction of that turn, once however often the summary stands there."""
    asking = answered(1, model="m", toolCalls=[{"id": "x__1", "name": "x"}])
    path = write_chat(
        tmp_path, history(0, context(0)), said(1, "go"), asking, summed_up(3), summed_up(3)
    )
    assert [compaction.trigger for compaction in parts(path, Compaction)] == ["auto"]
    assert turn_keys(path, Compaction) == ["1"]


def test_a_resumed_session_whose_history_was_summed_up(tmp_path):
    """The summary that a process begins with is none of its own."""
    path = write_chat(tmp_path, history(2, context(2)), summed_up(3), said(5, "on"), summed_up(6))
    assert [compaction.end_ns for compaction in parts(path, Compaction)] == [
        1_795_239_066_000_000_000
    ]


def test_a_question_is_about_the_tool_that_began_last():
    """A notification names none; it tells of a wait in the tool whose hook came before it."""
    ask = {"hook_event_name": "Notification", "notification_type": "ToolPermission"}
    tool = {"tool_name": "write_file", "tool_input": {"file_path": "a"}}
    second = 1_000_000_000
    assembler = TurnAssembler("gemini-cli", SESSION)
    for number, event in enumerate(
        [
            {"hook_event_name": "BeforeAgent", "prompt": "go"},
            {"hook_event_name": "BeforeTool", **tool, "tool_name": "read_file"},
            {"hook_event_name": "BeforeTool", **tool},
            ask,
            {"hook_event_name": "AfterTool", **tool, "tool_response": {}},
            {**ask, "notification_type": "SomethingNew"},
        ]
    ):
        payload = {"session_id": SESSION, **event}
        assembler.add(hook(payload, 1_795_000_000_000_000_000 + number * second).sightings)
    (turn,) = assembler.turns()
    (wait,) = turn.waits
    (asked,) = [tool for tool in turn.tools if tool.name == "write_file"]
    assert (wait.tool_key, wait.decision, wait.end_ns) == (asked.key, "allow", None)
    assert asked.start_ns < wait.start_ns < asked.end_ns


def test_a_call_that_sums_up_is_named_by_its_instruction():
    """It asks for no tool, and has an instruction of its own."""
    headers = {"user-agent": "GeminiCLI-tui/0.61.0"}
    body = {"systemInstruction": {"parts": [{"text": "write a <state_snapshot>."}]}}
    assert gemini_cli.identify_call(headers, body).request_class == "compaction"
    assert gemini_cli.identify_call(headers, {**body, "tools": []}).request_class is None
    for odd in (3, {"parts": 3}, {"parts": [{"text": 3}]}):
        assert gemini_cli.identify_call(headers, {"systemInstruction": odd}).request_class is None


def test_the_turn_that_history_is_summed_up_for(tmp_path):
    """While a turn runs it is that one; behind its answer it is the next."""
    path = write_chat(
        tmp_path, said(1, "go"), {**answered(2, model="m"), "content": "so"}, said(5, "on")
    )
    at = [turn_compacted_for(path, SESSION, 1_795_239_060_000_000_000 + s) for s in SECONDS]
    assert at == ["1", "2", "2"]


def test_compress_is_told_by_its_hook_and_its_history(tmp_path):
    """Both tell of one compaction, in the turn of its own behind the last prompt."""
    lines = [said(1, "go"), answered(1, content="gone", model="m"), summed_up(5)]
    path = write_chat(tmp_path, *lines, {"type": "info", "content": ""})
    event = {
        "session_id": SESSION,
        "hook_event_name": "PreCompress",
        "trigger": "manual",
        "timestamp": "2026-11-21T05:31:03Z",
        "transcript_path": str(path),
    }
    began_ns = 1_795_239_063_010_000_000
    assembler = TurnAssembler("gemini-cli", SESSION)
    assembler.add(gemini_cli.read_transcript(path, Cursor()).sightings)
    assembler.add(hook(event, began_ns).sightings)
    # Before each call of the model it says that history might be summed up.
    assembler.add(hook({**event, "trigger": "auto"}, began_ns).sightings)
    first, second = assembler.turns()
    assert (first.turn_key, first.compactions, first.outcome) == ("1", (), Outcome.COMPLETED)
    (compaction,) = second.compactions
    assert (second.turn_key, compaction.trigger) == ("1/compress", "manual")
    assert (compaction.start_ns, compaction.end_ns) == (began_ns, 1_795_239_065_000_000_000)
    # Which prompt it is behind is not known then.
    lost = hook({**event, "transcript_path": str(tmp_path / "none")}, began_ns)
    assert [type(each.part).__name__ for each in lost.sightings] == ["SessionInfo"]

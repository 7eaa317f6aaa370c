"""The real Gemini CLI, behaviour by behaviour, judged by what the scripted model knows to be true."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gemini import API_KEY
from gemini_scenarios import SCENARIOS, Stage
from judge import (
    ERROR,
    Kind,
    Trial,
    judge_calls,
    judge_secrets,
    judge_spans,
    judge_tags,
    judge_tools,
    trial,
)

from tracebridge import semconv
from tracebridge.store import Store
from tracebridge.testing.scripted_gemini import ScriptedGemini
from tracebridge.testing.scripted_model import Attempt

pytestmark = pytest.mark.real_agent


def _stage(wired: Mapping[str, Any], **rest: Any) -> Stage:
    return Stage(settings=wired, **rest)


GEMINI_CLI = Kind(
    slug="gemini-cli",
    scenarios=SCENARIOS,
    stage=_stage,
    model=ScriptedGemini,
    family="gemini",
    path="/api/google/gemini",
    transcripts=".gemini/tmp/*/chats/*.jsonl",
    api_key=API_KEY,
)
LAUNCHER = (sys.executable, "-m", "tracebridge", "run", "--")


def _exporting_stage(wired: Mapping[str, Any], *, base_url: str, **rest: Any) -> Stage:
    """Return a stage in which Gemini CLI's own telemetry goes to our gateway, by settings."""
    telemetry = {
        "enabled": True,
        "target": "local",
        "otlpEndpoint": base_url.removesuffix(GEMINI_CLI.path),
        "otlpProtocol": "http",
        "logPrompts": False,
    }
    return Stage(settings={**wired, "telemetry": telemetry}, base_url=base_url, **rest)


def _vertex_stage(wired: Mapping[str, Any], *, env: Mapping[str, str], **rest: Any) -> Stage:
    """Return a stage in which Gemini CLI goes to Vertex AI."""
    vertex = {
        "GOOGLE_GENAI_USE_VERTEXAI": "true",
        "GOOGLE_API_KEY": API_KEY,
        "GOOGLE_VERTEX_BASE_URL": rest["base_url"],
    }
    settings = {**wired, "security": {"auth": {"selectedType": "vertex-ai"}}}
    return Stage(settings=settings, env={**env, **vertex}, **rest)


VERTEX = replace(GEMINI_CLI, stage=_vertex_stage, family="vertex", path="/api/google/vertexai")
EXPORTING = replace(GEMINI_CLI, stage=_exporting_stage)

OUTCOMES = {
    "simple": ["completed"],
    "tools": ["completed"],
    "parallel_tools": ["completed"],
    "retry_429_500": ["completed"],
    "error_400": ["failed"],
    "error_401": ["failed"],
    "stream_cut": ["failed"],
    "stream_cut_once": ["completed"],
    "sigint_stream": ["interrupted"],
    "sigterm_stream": ["interrupted"],
    "sigkill_stream": ["abandoned"],
    "interactive": ["completed", "completed", "interrupted"],
    "subagent": ["completed"],
    "two_sessions": ["completed", "completed"],
}


def judge_tokens(played: Trial) -> None:
    """No token is counted twice: what all answers have is what the model gave."""
    answers = [chat for chat in played.of_type("llm") if chat.status != ERROR]
    for name in (semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS):
        counted = sum(chat.attributes.get(name, 0) for chat in answers)
        assert counted == sum(_true(attempt)[name] for attempt in played.truth)


def _true(attempt: Attempt) -> Mapping[str, int]:
    usage = attempt.usage or {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
    return {
        semconv.INPUT_TOKENS: usage["input_tokens"] + usage["cache_read_input_tokens"],
        semconv.OUTPUT_TOKENS: usage["output_tokens"],
    }


@pytest.mark.parametrize("name", sorted(OUTCOMES.keys() - {"interactive", "subagent"}))
def test_behaviour(name, tmp_path, monkeypatch):
    """Launched by us, each call is once in its turn with its usage, and twice gives the same."""
    # With hooks in the user's settings: Gemini CLI trusts no system settings below /tmp.
    with trial(
        name, tmp_path, monkeypatch, kind=GEMINI_CLI, gateway=False, launcher=LAUNCHER
    ) as played:
        assert played.outcomes == OUTCOMES[name]
        judge_calls(played, evidence={"turn_id"})
        judge_tools(played)
        judge_spans(played)
        judge_tags(played)
        judge_secrets(played)
        before = len(played.spans)
        played.take_in_again()
        assert len(played.spans) == before


@pytest.mark.shows("escape_stream")
def test_in_a_terminal(tmp_path, monkeypatch):
    """Of three prompts in one session each has its calls; the one ended by Escape says so."""
    with trial(
        "interactive", tmp_path, monkeypatch, kind=GEMINI_CLI, gateway=False, launcher=LAUNCHER
    ) as played:
        assert played.outcomes == OUTCOMES["interactive"]
        judge_calls(played, evidence={"response_id", "tool_call_id", "session_window"})
        judge_tools(played)
        judge_spans(played)
        judge_tokens(played)
        assert [turn.attributes[semconv.TURN_CALLS] for turn in played.turns] == [1, 2, 1]


@pytest.mark.shows("subagent")
def test_nothing_edited(tmp_path, monkeypatch):
    """`run` needs no hook: gateway, telemetry and chat file tell of subagents and tools alike."""
    with trial(
        "subagent",
        tmp_path,
        monkeypatch,
        kind=GEMINI_CLI,
        gateway=False,
        hooks=False,
        launcher=LAUNCHER,
    ) as played:
        assert played.outcomes == ["completed"]
        judge_calls(played, evidence={"turn_id"})
        judge_tools(played)
        judge_spans(played)
        judge_tags(played)
        judge_tokens(played)
        (agent,) = played.of_type("subagent")
        inside = [s.name for s in played.spans if s.parent_span_id == agent.span_id]
        assert sorted(inside) == [
            "chat gemini-2.5-pro",
            "chat gemini-2.5-pro",
            "execute_tool complete_task",
            "execute_tool run_shell_command",
        ]


def test_vertex(tmp_path, monkeypatch):
    """Calls that go to Vertex AI are linked as those to the Gemini API are."""
    with trial("parallel_tools", tmp_path, monkeypatch, kind=VERTEX) as played:
        assert played.outcomes == ["completed"]
        judge_calls(played, evidence={"tool_call_id"})
        judge_tools(played)
        judge_tokens(played)


@pytest.mark.shows("resume")
def test_without_a_launcher(tmp_path, monkeypatch):
    """Hooks in the settings and a gateway: calls with tools are linked by their tool call ids."""
    with trial("resume", tmp_path, monkeypatch, kind=GEMINI_CLI) as played:
        assert played.outcomes == ["completed", "completed"]
        judge_calls(played, evidence={"tool_call_id"})
        judge_tools(played)
        judge_spans(played)


@pytest.mark.parametrize("name", ["simple", "error_400", "stream_cut_once"])
def test_without_a_launcher_and_without_tools(name, tmp_path, monkeypatch):
    """A call that names nothing is its who tells of such an answer then: inferred, and once."""
    with trial(name, tmp_path, monkeypatch, kind=GEMINI_CLI) as played:
        assert played.outcomes == OUTCOMES[name]
        judge_calls(played, evidence={"tool_call_id", "session_window"})
        judge_spans(played)
        judge_tokens(played)


@pytest.mark.parametrize("name", ["tools", "stream_cut_once"])
def test_native_telemetry(name, tmp_path, monkeypatch):
    """Its own telemetry, sent to our gateway, makes the links of answers without tools exact, too."""
    with trial(name, tmp_path, monkeypatch, kind=EXPORTING) as played:
        assert played.outcomes == OUTCOMES[name]
        # Under load a turn may be over for longer than telemetry takes to come.
        judge_calls(played, evidence={"response_id", "tool_call_id", "session_window"})
        judge_tools(played)
        judge_spans(played)
        judge_tokens(played)
        with Store(played.home) as store:
            assert "response_id" in store.link_counts()
            assert set(store.link_counts()) <= {"response_id", "tool_call_id"}


def test_without_a_gateway(tmp_path, monkeypatch):
    """With no gateway in the path the chat file tells of the calls and their usage."""
    with trial("tools", tmp_path, monkeypatch, kind=GEMINI_CLI, gateway=False) as played:
        assert played.outcomes == ["completed"]
        used = sorted(chat.attributes[semconv.OUTPUT_TOKENS] for chat in played.of_type("llm"))
        assert used == sorted(attempt.usage["output_tokens"] for attempt in played.truth)
        judge_tools(played)
        judge_spans(played)
        judge_tags(played)


def test_tools_and_edits(tmp_path, monkeypatch):
    """Edits have path and line counts, the failed command its exit code, a failed edit its error."""
    with trial("tools", tmp_path, monkeypatch, kind=GEMINI_CLI) as played:
        tools = [span for span in played.of_type("tool") if span.status == ERROR]
        assert [tool.name for tool in sorted(tools, key=lambda span: span.start_ns)] == [
            "execute_tool run_shell_command",
            "execute_tool replace",
        ]
        (shell,) = [tool for tool in tools if tool.name.endswith("run_shell_command")]
        assert shell.attributes[semconv.TOOL_EXIT_CODE] == 3
        edits = [
            (
                edit.attributes[semconv.CODE_FILE_PATH],
                edit.attributes.get(semconv.EDIT_LINES_ADDED),
                edit.attributes.get(semconv.EDIT_LINES_REMOVED),
                edit.status == ERROR,
            )
            for edit in sorted(played.of_type("edit"), key=lambda span: span.start_ns)
        ]
        assert edits == [
            ("greet.py", 2, 0, False),
            ("greet.py", 2, 1, False),
            ("nope.py", None, None, True),
        ]
        assert len(played.of_type("thinking")) == 3


UNLAUNCHED = {
    "permission": ["completed", "interrupted", "completed"],
    "compact": ["completed", "completed", "completed"],
    "auto_compact": ["completed", "completed"],
    "queued_prompt": ["completed", "completed"],
    "fork": ["completed", "completed"],
}


@contextmanager
def judged(name: str, tmp_path: Path, monkeypatch: Any, **more: Any) -> Iterator[Trial]:
    """Play a behaviour with hooks in the settings, and judge what is true of all of them."""
    with trial(name, tmp_path, monkeypatch, kind=GEMINI_CLI, **more) as played:
        assert played.outcomes == UNLAUNCHED[name]
        judge_calls(played, evidence={"turn_id", "response_id", "tool_call_id", "session_window"})
        judge_tools(played)
        judge_spans(played)
        judge_tags(played)
        judge_tokens(played)
        judge_secrets(played)
        before = len(played.spans)
        played.take_in_again()
        assert len(played.spans) == before
        yield played


@pytest.mark.shows("permission")
def test_waiting_for_approval(tmp_path, monkeypatch):
    """Each wait is a span in its tool call; what was refused says so, and the next turn is clean."""
    with judged("permission", tmp_path, monkeypatch) as played:
        tools = {tool.span_id: tool for tool in played.of_type("tool")}
        waits = sorted(played.of_type("permission"), key=lambda span: span.start_ns)
        decided = [wait.attributes[semconv.PERMISSION_DECISION] for wait in waits]
        assert decided == ["allow", "allow", "deny"]
        assert {wait.parent_span_id for wait in waits} == tools.keys()
        for wait in waits:
            tool = tools[wait.parent_span_id]
            assert tool.start_ns <= wait.start_ns < wait.end_ns <= tool.end_ns
        # When it was allowed nobody tells, when it was refused the tool's end.
        assert [semconv.END_UNKNOWN in wait.attributes for wait in waits] == [True, True, False]
        refused = tools[waits[-1].parent_span_id]
        assert refused.attributes[semconv.ERROR_TYPE] == "permission_denied"
        assert [turn.attributes[semconv.TURN_CALLS] for turn in played.turns] == [2, 2, 1]


@pytest.mark.shows("compact")
@pytest.mark.parametrize("launched", [False, True], ids=["hooks", "launched"])
def test_compress(launched, tmp_path, monkeypatch):
    """/compress is a turn with a compaction, its calls underneath; the turn before it stays well."""
    how = {"gateway": False, "launcher": LAUNCHER} if launched else {}
    with judged("compact", tmp_path, monkeypatch, **how) as played:
        (compaction,) = played.of_type("compaction")
        assert compaction.attributes[semconv.COMPACTION_TRIGGER] == "manual"
        inside = [c for c in played.of_type("llm") if c.parent_span_id == compaction.span_id]
        assert {call.attributes[semconv.LLM_PURPOSE] for call in inside} == {"compaction"}
        assert all(compaction.start_ns <= c.start_ns < compaction.end_ns for c in inside)
        # It has its summary looked over by the model that wrote it.
        assert [turn.attributes[semconv.TURN_CALLS] for turn in played.turns] == [2, 2, 2]
        assert len(inside) == 2


@pytest.mark.shows("auto_compact")
@pytest.mark.parametrize("launched", [False, True], ids=["hooks", "launched"])
def test_automatic_compression(launched, tmp_path, monkeypatch):
    """Before a prompt's first call and between its tools: each with its calls, all in its turn."""
    how = {"gateway": False, "launcher": LAUNCHER} if launched else {}
    with judged("auto_compact", tmp_path, monkeypatch, **how) as played:
        _, second = played.turns
        compactions = sorted(played.of_type("compaction"), key=lambda span: span.start_ns)
        assert len(compactions) == 2
        for compaction in compactions:
            assert compaction.trace_id == second.trace_id
            assert compaction.attributes[semconv.COMPACTION_TRIGGER] == "auto"
            inside = [c for c in played.of_type("llm") if c.parent_span_id == compaction.span_id]
            assert [call.attributes[semconv.LLM_PURPOSE] for call in inside] == ["compaction"] * 2
            assert all(compaction.start_ns <= c.start_ns < compaction.end_ns for c in inside)


@pytest.mark.shows("queued_prompt")
def test_prompts_said_while_it_works(tmp_path, monkeypatch):
    """What was said meanwhile is together the prompt of the next turn."""
    with judged("queued_prompt", tmp_path, monkeypatch) as played:
        prompts = [turn.attributes[semconv.OI_INPUT] for turn in played.turns]
        assert prompts == ["tell a tale", "say hello\n\nand be brief"]
        assert [turn.attributes[semconv.TURN_CALLS] for turn in played.turns] == [1, 2]


@pytest.mark.shows("fork")
def test_a_session_that_begins_with_anothers(tmp_path, monkeypatch):
    """What a session took over from a file is not told of again."""
    with judged("fork", tmp_path, monkeypatch) as played:
        sessions = [turn.attributes[semconv.CONVERSATION_ID] for turn in played.turns]
        assert tuple(sessions) == played.played.session_ids
        assert [turn.attributes[semconv.TURN_CALLS] for turn in played.turns] == [2, 2]

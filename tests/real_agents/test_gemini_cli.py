"""The real Gemini CLI, behaviour by behaviour, judged by what the scripted model knows to be true."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest
from gemini import API_KEY
from gemini_scenarios import SCENARIOS, Stage
from judge import (
    ERROR,
    Kind,
    judge_calls,
    judge_secrets,
    judge_spans,
    judge_tags,
    judge_tools,
    trial,
)

from tracebridge import semconv
from tracebridge.testing.scripted_gemini import ScriptedGemini

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
    "two_sessions": ["completed", "completed"],
}


@pytest.mark.parametrize("name", OUTCOMES)
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


def test_without_a_launcher(tmp_path, monkeypatch):
    """Hooks in the settings and a gateway: calls with tools are linked by their tool call ids."""
    with trial("resume", tmp_path, monkeypatch, kind=GEMINI_CLI) as played:
        assert played.outcomes == ["completed", "completed"]
        judge_calls(played, evidence={"tool_call_id"})
        judge_tools(played)
        judge_spans(played)


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

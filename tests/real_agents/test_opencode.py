"""The real OpenCode, behaviour by behaviour, judged by what the scripted model knows to be true.

Everything is real but the model: agent, plugin, gateway, watcher, store, delivery, backend.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
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
from opencode import API_KEY
from opencode_scenarios import SCENARIOS, Stage

from tracebridge import semconv
from tracebridge.store import Store
from tracebridge.testing.scripted_model import ScriptedModel

pytestmark = pytest.mark.real_agent

# What each turn of a behaviour comes to, in the order of their beginnings.
OUTCOMES = {
    "simple": ["completed"],
    "tools": ["completed"],
    "parallel_tools": ["completed"],
    "subagents": ["completed"],
    "retry_429": ["completed"],
    "error_400": ["failed"],
    "stream_cut": ["completed"],
    # Killed by a signal, OpenCode says nothing: how the turn ended is not known.
    "sigint_stream": ["abandoned"],
    "sigkill_tool": ["abandoned"],
    "continue": ["completed", "completed"],
}


def make_stage(wired: Mapping[str, Any], **rest: Any) -> Stage:
    return Stage(settings=wired, **rest)


OPENCODE = Kind(
    slug="opencode",
    scenarios=SCENARIOS,
    stage=make_stage,
    model=ScriptedModel,
    family="anthropic",
    path="/api/anthropic/v1",
    transcripts=".local/share/opencode/opencode.db",
    api_key=API_KEY,
)


def judge(played: Trial, outcomes: list[str], evidence: set[str]) -> None:
    assert played.outcomes == outcomes
    judge_calls(played, evidence=evidence)
    judge_tools(played)
    judge_spans(played)
    judge_tags(played)
    judge_secrets(played)
    before = len(played.spans)
    played.take_in_again()
    assert len(played.spans) == before


@pytest.mark.parametrize("name", OUTCOMES)
def test_behaviour(name, tmp_path, monkeypatch):
    """One trace per turn, each call once in its place with its usage, and twice gives the same."""
    with trial(name, tmp_path, monkeypatch, kind=OPENCODE) as played:
        judge(played, OUTCOMES[name], {"traceparent"})
        with Store(played.home) as store:
            assert "orphan" not in store.link_counts()
            assert "waiting" not in store.link_counts()


def test_every_scenario_is_judged():
    """No behaviour is played without being judged."""
    assert OUTCOMES.keys() == SCENARIOS.keys()


@pytest.mark.parametrize("name", ["tools", "subagents", "continue"])
def test_without_a_gateway(name, tmp_path, monkeypatch):
    """With no gateway in the path plugin and database tell of the calls: same usage, once each."""
    with trial(name, tmp_path, monkeypatch, kind=OPENCODE, gateway=False) as played:
        assert played.outcomes == OUTCOMES[name]
        judge_tools(played)
        judge_spans(played)
        judge_tags(played)
        truth = [a for a in played.truth if a.request_class != "auxiliary"]
        outputs = Counter(attempt.usage["output_tokens"] for attempt in truth)
        chats = played.of_type("llm")
        assert Counter(chat.attributes[semconv.OUTPUT_TOKENS] for chat in chats) == outputs


def test_without_the_plugin(tmp_path, monkeypatch):
    """With no plugin, session headers and database are enough: each call once, in its turn."""
    with trial("subagents", tmp_path, monkeypatch, kind=OPENCODE, hooks=False) as played:
        assert played.outcomes == ["completed"]
        judge_calls(played, evidence={"tool_call_id", "session_window"})
        judge_tools(played)
        judge_spans(played)


def test_tools_and_edits(tmp_path, monkeypatch):
    """Edits have path and line counts, thinking its time, and the failed command its exit code."""
    with trial("tools", tmp_path, monkeypatch, kind=OPENCODE) as played:
        tools = {span.attributes[semconv.TOOL_NAME]: span for span in played.of_type("tool")}
        assert set(tools) == {"write", "edit", "bash", "read"}
        bash = tools["bash"]
        assert (bash.status, bash.attributes[semconv.TOOL_EXIT_CODE]) == (ERROR, 3)
        edits = [
            (
                edit.attributes[semconv.CODE_FILE_PATH],
                edit.attributes.get(semconv.EDIT_OPERATION),
                edit.attributes.get(semconv.EDIT_LINES_ADDED),
                edit.attributes.get(semconv.EDIT_LINES_REMOVED),
            )
            for edit in sorted(played.of_type("edit"), key=lambda span: span.start_ns)
        ]
        assert edits == [
            ("greet.py", "create", 2, 0),
            ("greet.py", "update", 2, 1),
            ("greet.py", None, None, None),
        ]
        by_id = {span.span_id: span for span in played.spans}
        assert len(played.of_type("thinking")) == 2
        for thinking in played.of_type("thinking"):
            assert by_id[thinking.parent_span_id].attributes[semconv.SPAN_TYPE] == "llm"


def test_subagents(tmp_path, monkeypatch):
    """Each subagent lies under the tool call that started it, with its own calls and tools."""
    with trial("subagents", tmp_path, monkeypatch, kind=OPENCODE) as played:
        tools = {span.span_id: span for span in played.of_type("tool")}
        subagents = played.of_type("subagent")
        assert len(subagents) == 2
        for subagent in subagents:
            assert tools[subagent.parent_span_id].attributes[semconv.TOOL_NAME] == "task"


def test_a_title_is_a_side_call(tmp_path, monkeypatch):
    """The request for a title is typed, and its words are not the answer."""
    with trial("simple", tmp_path, monkeypatch, kind=OPENCODE) as played:
        purposes = Counter(c.attributes.get(semconv.LLM_PURPOSE) for c in played.of_type("llm"))
        assert purposes["auxiliary"] == 1
        (root,) = played.turns
        assert root.attributes[semconv.OI_OUTPUT] == "Hello there."


def test_run_edits_nothing_and_links_exactly(tmp_path, monkeypatch):
    """`tracebridge run -- opencode …` traces one command without a line in any settings file."""
    launcher = (sys.executable, "-m", "tracebridge", "run", "--")
    alone = {"hooks": False, "gateway": False}
    with trial("tools", tmp_path, monkeypatch, **alone, launcher=launcher, kind=OPENCODE) as played:
        assert played.played.exit_codes == (0,)
        judge(played, ["completed"], {"traceparent"})

"""The real OpenCode, behaviour by behaviour, judged by what the scripted model knows to be true.

Everything is real but the model: agent, plugin, gateway, watcher, store, delivery, backend.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
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
from opencode_scenarios import SCENARIOS, Stage, patch

from tracebridge import semconv
from tracebridge.store import Store
from tracebridge.testing.scripted_chat import ScriptedChat
from tracebridge.testing.scripted_model import ScriptedModel
from tracebridge.testing.scripted_responses import ScriptedResponses

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
    "sigint_stream": ["interrupted"],
    "sigterm_tool": ["interrupted"],
    "nohup": ["completed"],
    # Nobody could say how the turn ended.
    "sigkill_tool": ["abandoned"],
    "continue": ["completed", "completed"],
    "fork": ["completed", "completed"],
    "stream_cut_forever": ["interrupted"],
    "too_long": ["completed"],
    "compact": ["completed"] * 3,
    "escape_stream": ["interrupted", "completed"],
    "permission_allowed": ["completed"],
    # Refused, OpenCode stops and waits for what the user has to say.
    "permission_denied": ["interrupted"],
    "queued_prompt": ["completed", "completed"],
    "two_sessions": ["completed", "completed"],
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


def make_responses_stage(wired: Mapping[str, Any], **rest: Any) -> Stage:
    return Stage(settings=wired, llm="openai/gpt-5.5", **rest)


def make_chat_stage(wired: Mapping[str, Any], **rest: Any) -> Stage:
    return Stage(settings=wired, llm="some-gateway/scripted-1", **rest)


# The same agent at models of other shapes.
RESPONSES = replace(
    OPENCODE,
    # Of OpenAI's models alone it wants patches.
    scenarios={**SCENARIOS, "patch": patch},
    stage=make_responses_stage,
    model=ScriptedResponses,
    family="openai",
    path="/api",
)
CHAT = replace(RESPONSES, stage=make_chat_stage, model=ScriptedChat)


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


def shows_attempts(played: Trial) -> None:
    """Judge that what follows an answer that was cut short is the next attempt."""
    calls = [c for c in played.of_type("llm") if semconv.LLM_PURPOSE not in c.attributes]
    calls.sort(key=lambda call: call.start_ns)
    numbers = [call.attributes[semconv.LLM_ATTEMPT] for call in calls]
    assert numbers == list(range(1, len(calls) + 1))
    assert len(calls) >= 15


def shows_one_compaction(played: Trial, trigger: str) -> None:
    """Judge that the call that wrote the summary lies under the compaction."""
    (compaction,) = played.of_type("compaction")
    assert compaction.attributes[semconv.COMPACTION_TRIGGER] == trigger
    (call,) = [c for c in played.of_type("llm") if c.parent_span_id == compaction.span_id]
    assert call.attributes[semconv.LLM_PURPOSE] == "compaction"


def shows_a_wait(played: Trial, decision: str) -> None:
    """Judge that the tool waited for somebody's word."""
    (wait,) = played.of_type("permission")
    assert wait.attributes[semconv.PERMISSION_DECISION] == decision
    (tool,) = played.of_type("tool")
    assert wait.parent_span_id == tool.span_id
    assert tool.start_ns <= wait.start_ns < wait.end_ns <= tool.end_ns


def shows_tools_and_edits(played: Trial) -> None:
    """Judge paths and line counts of edits, the place of thinking, and the exit code."""
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


def shows_subagents(played: Trial) -> None:
    """Judge that each subagent lies under the tool call that started it."""
    tools = {span.span_id: span for span in played.of_type("tool")}
    subagents = played.of_type("subagent")
    assert len(subagents) == 2
    for subagent in subagents:
        assert tools[subagent.parent_span_id].attributes[semconv.TOOL_NAME] == "task"


def shows_a_title(played: Trial) -> None:
    """Judge that the request for a title is typed, and its words are not the answer."""
    purposes = Counter(c.attributes.get(semconv.LLM_PURPOSE) for c in played.of_type("llm"))
    assert purposes["auxiliary"] == 1
    (root,) = played.turns
    assert root.attributes[semconv.OI_OUTPUT] == "Hello there."
    # Neither we nor what we make OpenCode do wrote into the user's folder.
    assert list((played.workdir / "project").iterdir()) == []


CHECKS: dict[str, Callable[[Trial], None]] = {
    "simple": shows_a_title,
    "tools": shows_tools_and_edits,
    "subagents": shows_subagents,
    "stream_cut_forever": shows_attempts,
    "too_long": partial(shows_one_compaction, trigger="auto"),
    "compact": partial(shows_one_compaction, trigger="manual"),
    "permission_allowed": partial(shows_a_wait, decision="allow"),
    "permission_denied": partial(shows_a_wait, decision="deny"),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_behaviour(name, tmp_path, monkeypatch):
    """One trace per turn, each call once in its place with its usage, and twice gives the same."""
    with trial(name, tmp_path, monkeypatch, kind=OPENCODE) as played:
        judge(played, OUTCOMES[name], {"traceparent"})
        if name in CHECKS:
            CHECKS[name](played)
        with Store(played.home) as store:
            assert "orphan" not in store.link_counts()
            assert "waiting" not in store.link_counts()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("subagents", RESPONSES), ("error_400", RESPONSES), ("error_400", CHAT)],
    ids=["subagents-responses", "error_400-responses", "error_400-chat"],
)
def test_other_providers(name, kind, tmp_path, monkeypatch):
    """Over OpenAI's APIs as over Anthropic's: each call once in its place with its usage."""
    with trial(name, tmp_path, monkeypatch, kind=kind) as played:
        judge(played, OUTCOMES[name], {"traceparent"})


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


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("subagents", OPENCODE),
        ("error_400", OPENCODE),
        ("continue", OPENCODE),
        ("sigkill_tool", OPENCODE),
        ("too_long", OPENCODE),
        ("too_long", CHAT),
    ],
    ids=["subagents", "error_400", "continue", "sigkill_tool", "too_long", "too_long-chat"],
)
def test_without_the_plugin(name, kind, tmp_path, monkeypatch):
    """With no plugin, session headers and database are enough: each call once, in its turn."""
    with trial(name, tmp_path, monkeypatch, kind=kind, hooks=False) as played:
        assert played.outcomes == OUTCOMES[name]
        judge_calls(played, evidence={"tool_call_id", "request_id", "session_window"})
        judge_tools(played)
        judge_spans(played)
        for call in played.of_type("llm"):
            inferred = call.attributes[semconv.LINK_EVIDENCE] == "session_window"
            assert (call.attributes[semconv.LINK_CONFIDENCE] == "inferred") == inferred
        if name in CHECKS:
            CHECKS[name](played)


def test_a_patch_is_an_edit_of_each_file(tmp_path, monkeypatch):
    """A patch tells of every file what was done to it, with its lines."""
    with trial("patch", tmp_path, monkeypatch, kind=RESPONSES) as played:
        judge(played, ["completed"], {"traceparent"})
        edits = {
            edit.attributes[semconv.CODE_FILE_PATH]: (
                edit.attributes[semconv.EDIT_OPERATION],
                edit.attributes[semconv.EDIT_LINES_ADDED],
                edit.attributes[semconv.EDIT_LINES_REMOVED],
            )
            for edit in played.of_type("edit")
        }
        assert edits == {
            "new.py": ("create", 2, 0),
            "old.py": ("update", 1, 1),
            "gone.py": ("delete", 0, 1),
        }


@pytest.mark.parametrize("kind", [OPENCODE, CHAT], ids=["anthropic", "chat"])
def test_run_edits_nothing_and_links_exactly(kind, tmp_path, monkeypatch):
    """`tracebridge run -- opencode …` traces one command without a line in any settings file."""
    launcher = (sys.executable, "-m", "tracebridge", "run", "--")
    alone = {"hooks": False, "gateway": False}
    name = "parallel_tools"
    with trial(name, tmp_path, monkeypatch, **alone, launcher=launcher, kind=kind) as played:
        assert played.played.exit_codes == (0,)
        judge(played, ["completed"], {"traceparent"})

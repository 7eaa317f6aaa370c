"""The real Codex CLI, behaviour by behaviour, judged by what the scripted model knows to be true.

Everything is real but the model: agent, hooks, gateway, watcher, store, delivery, backend.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from codex import API_KEY
from codex_scenarios import SCENARIOS, Played, Stage
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
from terminal import wait_until

from tracebridge import semconv
from tracebridge.settings import read_settings
from tracebridge.store import Store
from tracebridge.testing.scripted_responses import ScriptedResponses
from tracebridge.views.status import status
from tracebridge.watch import watch_once

pytestmark = pytest.mark.real_agent

# What each turn of a behaviour comes to, in the order of their beginnings.
OUTCOMES = {
    "simple": ["completed"],
    "tools": ["completed"],
    "parallel_tools": ["completed"],
    "subagent": ["completed"],
    "error_401": ["failed"],
    "error_429": ["failed"],
    "error_500": ["failed"],
    "retry_500": ["completed"],
    "stream_cut": ["completed"],
    "response_failed": ["failed"],
    "sigint_stream": ["interrupted"],
    "sigterm_stream": ["abandoned"],
    "sigint_tool": ["interrupted"],
    "sigkill_tool": ["abandoned"],
    "resume": ["completed", "completed"],
    "two_sessions": ["completed", "completed"],
    "compact": ["completed", "completed", "completed"],
    "escape_stream": ["interrupted", "completed"],
    "auto_compact": ["completed"],
    "fork": ["completed", "completed"],
    "mcp_tool": ["completed"],
    "long_command": ["completed"],
    "many_attempts": ["failed"],
    "websocket": ["completed"],
    "steering": ["completed"],
    "permission": ["interrupted"],
    "shared_server": ["completed"],
    "review": ["completed"],
    "unreachable": ["interrupted"],
}
IN_A_TERMINAL = {"compact", "escape_stream", "fork", "steering", "permission", "shared_server"}
# Without hooks these show nothing else, or, where no call is made, nothing at all.
WITH_HOOKS_ONLY = {
    "long_command",
    "many_attempts",
    "permission",
    "shared_server",
    "steering",
    "unreachable",
    "websocket",
}
BEHAVIOURS = [(name, True) for name in OUTCOMES] + [
    (name, False) for name in OUTCOMES if name not in WITH_HOOKS_ONLY
]
# Killed without a word: that nobody has the rollout open any more is all that tells the end.
KILLED = {"sigterm_stream", "sigkill_tool"}


def make_stage(wired: Mapping[str, Any], **rest: Any) -> Stage:
    return Stage(hooks=wired.get("hooks", {}), **rest)


CODEX_CLI = Kind(
    slug="codex-cli",
    scenarios=SCENARIOS,
    stage=make_stage,
    model=ScriptedResponses,
    family="openai",
    path="/api",
    transcripts=".codex/sessions/*/*/*/*.jsonl",
    api_key=API_KEY,
)


def judge(trial: Trial, outcomes: list[str], *, tagged: bool = True) -> None:
    assert trial.outcomes == outcomes
    if trial.truth:
        judge_calls(trial, evidence={"turn_id"})
    judge_tools(trial)
    judge_spans(trial)
    if tagged:
        judge_tags(trial)
    judge_secrets(trial)
    before = len(trial.spans)
    trial.take_in_again()
    assert len(trial.spans) == before


def told_while_watched(name: str) -> Kind:
    """Return a kind whose scenario is over once the watcher, which goes on, has told its turn."""

    def play(stage: Stage) -> Played:
        played = SCENARIOS[name](stage)
        with Store(Path(stage.env["TRACEBRIDGE_HOME"])) as store:
            wait_until(
                lambda: [turn.told for turn in store.turns()] == [True],
                complaint="the turn of a killed agent is not told",
            )
        return played

    return replace(CODEX_CLI, scenarios={name: play})


@pytest.mark.parametrize(
    ("name", "trusted"),
    BEHAVIOURS,
    ids=[f"{name}-{'hooks' if trusted else 'untrusted_hooks'}" for name, trusted in BEHAVIOURS],
)
def test_behaviour(name, trusted, tmp_path, monkeypatch):
    """One trace per turn, each call once in its place, whether or not the user approved the hooks.

    Tags come with the hooks alone.
    """
    # In a terminal Codex begins by asking about hooks that nobody approved: there it has none.
    hooks = trusted or name not in IN_A_TERMINAL
    kind = told_while_watched(name) if name in KILLED else CODEX_CLI
    with trial(name, tmp_path, monkeypatch, kind=kind, hooks=hooks, trusted=trusted) as played:
        # In a terminal Codex asks for titles in threads of their own, that name no turn of ours.
        titles = [a for a in played.truth if a.request_class == "auxiliary"]
        assert bool(titles) == (name in IN_A_TERMINAL)
        played.truth = [a for a in played.truth if a not in titles]
        judge(played, OUTCOMES[name], tagged=trusted)
        with Store(played.home) as store:
            counts = store.link_counts()
            assert counts.get("waiting", 0) == len(titles)
            assert "orphan" not in counts


def test_titles_are_side_calls(tmp_path, monkeypatch):
    """Made in a thread of its own, a title call has no turn: it stands alone, typed, and no orphan."""
    with trial("compact", tmp_path, monkeypatch, kind=CODEX_CLI) as played:
        titles = [a for a in played.truth if a.request_class == "auxiliary"]
        assert titles
        assert watch_once(read_settings(), close_open=True)
        for title in titles:
            chat = played.chat_of(title)
            assert chat.attributes[semconv.LLM_PURPOSE] == "auxiliary"
            assert chat.parent_span_id in {None, ""}
        links = status(read_settings())["links"]
        assert links["side_calls"] == len(titles)
        assert (links["orphans"], links["waiting"]) == (0, 0)


def test_every_scenario_is_judged():
    """No behaviour is played without being judged."""
    assert OUTCOMES.keys() == SCENARIOS.keys()


@pytest.mark.parametrize("name", ["tools", "subagent", "stream_cut", "resume", "mcp_tool"])
def test_without_a_gateway(name, tmp_path, monkeypatch):
    """With no gateway in the path the rollout tells of the answered calls: same turns and usage."""
    with trial(name, tmp_path, monkeypatch, kind=CODEX_CLI, gateway=False) as played:
        assert played.outcomes == OUTCOMES[name]
        answered = [a for a in played.truth if a.outcome == "answered"]
        assert len(played.of_type("llm")) == len(answered)
        for attempt in answered:
            chat = played.chat_of(attempt)
            usage = attempt.usage
            read, write = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
            assert chat.attributes[semconv.INPUT_TOKENS] == usage["input_tokens"] + read + write
            assert chat.attributes[semconv.CACHE_READ_TOKENS] == read
            assert chat.attributes[semconv.OUTPUT_TOKENS] == usage["output_tokens"]
        judge_tools(played)
        judge_spans(played)
        judge_tags(played)


def test_tools_and_edits(tmp_path, monkeypatch):
    """Patches are edits with line counts, one that failed is one too; commands have exit codes."""
    with trial("tools", tmp_path, monkeypatch, kind=CODEX_CLI) as played:
        tools = sorted(played.of_type("tool"), key=lambda span: span.start_ns)
        assert [tool.name for tool in tools] == [
            *["execute_tool apply_patch"] * 3,
            *["execute_tool exec_command"] * 2,
        ]
        failed = [tool.attributes.get(semconv.ERROR_TYPE) for tool in tools]
        assert failed == [None, None, "tool_error", "exit_nonzero", None]
        assert [tool.attributes.get(semconv.TOOL_EXIT_CODE) for tool in tools][3:] == [3, 0]
        edits = sorted(
            (
                edit.attributes[semconv.CODE_FILE_PATH],
                edit.attributes[semconv.EDIT_OPERATION],
                edit.attributes.get(semconv.EDIT_LINES_ADDED),
                edit.attributes.get(semconv.EDIT_LINES_REMOVED),
                edit.status == ERROR,
            )
            for edit in played.of_type("edit")
            if edit.status != ERROR
        )
        assert edits == [
            ("greet.py", "create", 2, 0, False),
            ("greet.py", "update", 2, 1, False),
            ("notes.txt", "create", 1, 0, False),
            ("notes.txt", "delete", 0, 1, False),
        ]
        (wrong,) = [edit for edit in played.of_type("edit") if edit.status == ERROR]
        assert wrong.attributes[semconv.CODE_FILE_PATH] == "greet.py"
        by_id = {span.span_id: span for span in played.spans}
        thoughts = played.of_type("thinking")
        assert len(thoughts) == 2
        assert all(by_id[t.parent_span_id].name.startswith("chat") for t in thoughts)


def test_subagent(tmp_path, monkeypatch):
    """A subagent is nested under the tool call that started it, its work underneath."""
    with trial("subagent", tmp_path, monkeypatch, kind=CODEX_CLI) as played:
        tree = played.tree()
        assert ("invoke_agent default", "execute_tool spawn_agent") in tree
        assert ("execute_tool exec_command", "invoke_agent default") in tree


def test_compaction(tmp_path, monkeypatch):
    """/compact is a turn with a compaction, its call underneath."""
    with trial("compact", tmp_path, monkeypatch, kind=CODEX_CLI) as played:
        (compaction,) = played.of_type("compaction")
        assert compaction.attributes[semconv.COMPACTION_TRIGGER] == "manual"
        (inside,) = [c for c in played.of_type("llm") if c.parent_span_id == compaction.span_id]
        assert inside.attributes[semconv.LLM_PURPOSE] == "compaction"
        assert inside.attributes[semconv.LINK_CONFIDENCE] == "exact"


def test_compaction_within_a_turn(tmp_path, monkeypatch):
    """With no gateway too: the rollout says which answer was the summary."""
    with trial("auto_compact", tmp_path, monkeypatch, kind=CODEX_CLI, gateway=False) as played:
        (compaction,) = played.of_type("compaction")
        assert compaction.attributes[semconv.COMPACTION_TRIGGER] == "auto"
        (inside,) = [c for c in played.of_type("llm") if c.parent_span_id == compaction.span_id]
        assert inside.attributes[semconv.LLM_PURPOSE] == "compaction"
        assert len(played.of_type("llm")) == len(played.truth)


def test_a_server_of_tools(tmp_path, monkeypatch):
    """A tool of an MCP server has the server's name; one that failed says so."""
    with trial("mcp_tool", tmp_path, monkeypatch, kind=CODEX_CLI) as played:
        good, bad = sorted(played.of_type("tool"), key=lambda span: span.start_ns)
        for tool in (good, bad):
            assert tool.name == "execute_tool mcp__weather__forecast"
            assert tool.attributes[semconv.MCP_SERVER] == "weather"
        assert good.attributes[semconv.TOOL_RESULT] == "sunny"
        assert bad.attributes[semconv.ERROR_TYPE] == "tool_error"


def test_permission(tmp_path, monkeypatch):
    """A wait for the user's word is a span in its tool call, with what was decided."""
    with trial("permission", tmp_path, monkeypatch, kind=CODEX_CLI) as played:
        tools = {tool.span_id: tool for tool in played.of_type("tool")}
        waits = sorted(played.of_type("permission"), key=lambda span: span.start_ns)
        assert [w.attributes[semconv.PERMISSION_DECISION] for w in waits] == ["allow", "deny"]
        assert {wait.parent_span_id for wait in waits} == tools.keys()
        for wait in waits:
            tool = tools[wait.parent_span_id]
            assert tool.start_ns <= wait.start_ns < wait.end_ns <= tool.end_ns


def test_words_while_the_turn_runs(tmp_path, monkeypatch):
    """What the user says meanwhile is an event of the turn, not another turn."""
    with trial("steering", tmp_path, monkeypatch, kind=CODEX_CLI) as played:
        (turn,) = played.turns
        assert turn.attributes[semconv.OI_INPUT] == "wait a while"
        (said,) = turn.message.events
        told = {each.key: each.value.string_value for each in said.attributes}
        assert told[semconv.PROMPT_TEXT] == "and be polite"


@pytest.mark.parametrize(
    ("name", "attempts"),
    # Codex tries a request three times, and the whole call with that three times.
    [("retry_500", [1, 1, 2, 3]), ("many_attempts", [1, 2, 3, 4, 5, 6, 7, 8, 9])],
)
def test_attempts(name, attempts, tmp_path, monkeypatch):
    """Attempts at one request are counted, each is there, and all say which was the first."""
    with trial(name, tmp_path, monkeypatch, kind=CODEX_CLI) as played:
        chats = sorted(played.of_type("llm"), key=lambda span: span.start_ns)
        assert [c.attributes[semconv.LLM_ATTEMPT] for c in chats] == attempts
        first = chats[attempts.index(2) - 1]
        again = [c for c in chats if c.attributes[semconv.LLM_ATTEMPT] > 1]
        assert {c.attributes[semconv.LLM_RETRY_OF] for c in again} == {first.span_id}


def test_run_edits_nothing_and_links_exactly(tmp_path, monkeypatch):
    """`tracebridge run -- codex …` traces one command, tags and all, and edits no settings file."""
    launcher = (sys.executable, "-m", "tracebridge", "run", "--")
    alone = {"hooks": False, "gateway": False}
    with trial("tools", tmp_path, monkeypatch, **alone, launcher=launcher, kind=CODEX_CLI) as it:
        assert it.played.exit_codes == (0,)
        judge(it, ["completed"])

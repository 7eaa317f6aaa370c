"""The real Claude Code, behaviour by behaviour, judged by what the scripted model knows to be true.

Everything is real but the model: agent, hooks, gateway, watcher, store, delivery, backend.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from claude import ClaudeCode
from judge import (
    CLAUDE_CODE,
    ERROR,
    Trial,
    judge_calls,
    judge_secrets,
    judge_spans,
    judge_tags,
    judge_tools,
    trial,
)
from scenarios import SCENARIOS, Stage
from terminal import wait_until

from tracebridge import semconv
from tracebridge.agents.claude_code.wiring import LIGHT_EVENTS
from tracebridge.store import Store
from tracebridge.testing.receiver import Receiver
from tracebridge.testing.scripted_model import Reply, ScriptedModel, Text
from tracebridge.watch_lock import is_watched

pytestmark = pytest.mark.real_agent

# What each turn of a behaviour comes to, in the order of their beginnings.
OUTCOMES = {
    "simple": ["completed"],
    "tools": ["completed"],
    "parallel_tools": ["completed"],
    "subagents": ["completed", "completed"],
    "retry_429_529": ["completed"],
    "error_400": ["failed"],
    "error_401": ["failed"],
    "stream_cut": ["completed"],
    "stream_error": ["completed"],
    "stream_truncated": ["completed"],
    "sigint_stream": ["interrupted"],
    "sigterm_stream": ["interrupted"],
    "sigint_tool": ["interrupted"],
    "sigkill_tool": ["abandoned"],
    "resume": ["completed", "completed"],
    "continue": ["completed", "completed"],
    "fork": ["completed", "completed"],
    "compact": ["completed", "completed", "completed"],
    "clear": ["completed", "completed"],
    "permission_allowed": ["completed"],
    "permission_denied": ["interrupted"],
    "escape_stream": ["interrupted", "completed"],
    "escape_permission": ["interrupted"],
    "queued_prompt": ["completed", "completed"],
    "absorbed_prompt": ["completed"],
    "no_persistence": ["completed"],
    "print_environment": ["completed"],
    "hint_headers_off": ["completed"],
    "task_notification": ["completed", "completed"],
    "three_sessions": ["completed", "completed", "completed"],
}


def judge(trial: Trial, outcomes: list[str], evidence: set[str]) -> None:
    assert trial.outcomes == outcomes
    judge_calls(trial, evidence=evidence)
    judge_tools(trial)
    judge_spans(trial)
    judge_tags(trial)
    judge_secrets(trial)
    before = len(trial.spans)
    trial.take_in_again()
    assert len(trial.spans) == before


@pytest.mark.parametrize("name", OUTCOMES)
def test_behaviour(name, tmp_path, monkeypatch):
    """One trace per turn, each call once in its place with its usage, and twice gives the same."""
    evidence = {"turn_id"}
    if name == "compact":
        # Its requests name the session and no turn.
        evidence = {"turn_id", "session_window"}
    elif name == "hint_headers_off":
        evidence = {"response_id", "tool_call_id", "request_id"}
    with trial(name, tmp_path, monkeypatch) as played:
        judge(played, OUTCOMES[name], evidence)
        with Store(played.home) as store:
            assert "orphan" not in store.link_counts()
            assert "waiting" not in store.link_counts()


def test_every_scenario_is_judged():
    """No behaviour is played without being judged."""
    assert OUTCOMES.keys() == SCENARIOS.keys()


@pytest.mark.parametrize(
    "name", ["tools", "subagents", "retry_429_529", "compact", "three_sessions"]
)
def test_without_a_gateway(name, tmp_path, monkeypatch):
    """With no gateway in the path the transcript tells of the calls: same turns, same usage."""
    with trial(name, tmp_path, monkeypatch, gateway=False) as played:
        assert played.outcomes == OUTCOMES[name]
        truth = [a for a in played.truth if a.request_class != "compaction"]
        played.truth = truth
        judge_calls(played, evidence={"response_id", "request_id"}, answered_only=True)
        judge_tools(played)
        judge_spans(played)
        judge_tags(played)


def test_tools_and_edits(tmp_path, monkeypatch):
    """Edits have path and line counts, thinking its time, and the failed command its exit code."""
    with trial("tools", tmp_path, monkeypatch) as played:
        tools = {span.name: span for span in played.of_type("tool")}
        assert set(tools) == {f"execute_tool {name}" for name in ("Write", "Edit", "Bash", "Read")}
        bash = tools["execute_tool Bash"]
        assert (bash.status, bash.attributes[semconv.TOOL_EXIT_CODE]) == (ERROR, 3)
        assert bash.attributes[semconv.ERROR_TYPE] == "exit_nonzero"
        edits = [
            (
                edit.attributes[semconv.CODE_FILE_PATH],
                edit.attributes[semconv.EDIT_OPERATION],
                edit.attributes[semconv.EDIT_LINES_ADDED],
                edit.attributes[semconv.EDIT_LINES_REMOVED],
            )
            for edit in sorted(played.of_type("edit"), key=lambda span: span.start_ns)
        ]
        assert edits == [("greet.py", "create", 2, 0), ("greet.py", "update", 2, 1)]
        by_id = {span.span_id: span for span in played.spans}
        assert len(played.of_type("thinking")) == 2
        for thinking in played.of_type("thinking"):
            chat = by_id[thinking.parent_span_id]
            assert chat.start_ns <= thinking.start_ns <= thinking.end_ns
        (root,) = played.turns
        assert root.attributes[semconv.TURN_LINES_ADDED] == 4
        assert root.attributes[semconv.TURN_FAILED_TOOL_CALLS] == 1


def test_parallel_tools(tmp_path, monkeypatch):
    """Four tools of one answer are four spans, two of the same name told apart."""
    with trial("parallel_tools", tmp_path, monkeypatch) as played:
        names = sorted(span.name.removeprefix("execute_tool ") for span in played.of_type("tool"))
        assert names == ["Bash", "Bash", "Read", "Write"]
        failed = [span for span in played.of_type("tool") if span.status == ERROR]
        assert [span.attributes[semconv.TOOL_EXIT_CODE] for span in failed] == [4]


def test_subagents(tmp_path, monkeypatch):
    """Each subagent lies under the tool call that started it, also the one that outlives its turn."""
    with trial("subagents", tmp_path, monkeypatch) as played:
        first, second = played.turns
        subagents = played.of_type("subagent")
        tools = {span.span_id: span for span in played.of_type("tool")}
        assert len(subagents) == 2
        for subagent in subagents:
            assert subagent.trace_id == first.trace_id
            assert tools[subagent.parent_span_id].name == "execute_tool Agent"
        assert max(subagent.end_ns for subagent in subagents) > second.start_ns


def test_a_permission_wait_is_its_own_span(tmp_path, monkeypatch):
    """The time somebody was asked is told apart from the time the tool took."""
    with trial("permission_allowed", tmp_path, monkeypatch) as played:
        (wait,) = played.of_type("permission")
        (tool,) = played.of_type("tool")
        assert wait.parent_span_id == tool.span_id
        assert wait.attributes[semconv.PERMISSION_DECISION] == "allow"
        assert wait.attributes[semconv.PERMISSION_DECIDED_BY] == "user"
        # Claude Code asks while the hook that tells of it runs: of a wait that was answered before
        # that had begun nothing is left.
        took_ns = int(tool.attributes[semconv.TOOL_DURATION_MS]) * 1_000_000
        assert wait.end_ns == max(wait.start_ns, tool.end_ns - took_ns)
        assert tool.start_ns <= wait.start_ns <= wait.end_ns <= tool.end_ns


def light_stage(wired: Mapping[str, Any], **rest: Any) -> Stage:
    hooks = {event: wired["hooks"][event] for event in LIGHT_EVENTS}
    return CLAUDE_CODE.stage({**wired, "hooks": hooks}, **rest)


def judge_durations(trial: Trial) -> None:
    """Each duration that a request told is that of a tool, and no other is."""
    told = Counter(
        took
        for attempt in trial.truth
        for took in attempt.headers.get("x-claude-code-prev-tool-durations", "").split(";")
        if took
    )
    tools = [tool.attributes for tool in trial.of_type("tool")]
    found = Counter(
        f"{tool[semconv.TOOL_NAME]}={tool[semconv.TOOL_DURATION_MS]:.0f}"
        for tool in tools
        if semconv.TOOL_DURATION_MS in tool
    )
    assert found == told


@pytest.mark.parametrize("name", ["tools", "subagents", "sigint_tool", "permission_allowed"])
def test_without_hooks_at_tool_calls(name, tmp_path, monkeypatch):
    """A light integration links all the same and has the same tools, edits, subagents and waits."""
    kind = replace(CLAUDE_CODE, stage=light_stage)
    with trial(name, tmp_path, monkeypatch, kind=kind) as played:
        judge(played, OUTCOMES[name], {"turn_id"})
        judge_durations(played)
        assert len(played.of_type("edit")) == (2 if name == "tools" else 0)
        assert len(played.of_type("subagent")) == (2 if name == "subagents" else 0)
        waits = played.of_type("permission")
        if name != "permission_allowed":
            assert not waits
            return
        # It was allowed when its tool began, and how long that took the next request says.
        (wait,), (tool,) = waits, played.of_type("tool")
        took_ns = int(tool.attributes[semconv.TOOL_DURATION_MS]) * 1_000_000
        assert (wait.parent_span_id, wait.end_ns) == (tool.span_id, tool.end_ns - took_ns)
        assert semconv.END_UNKNOWN not in wait.attributes
        assert wait.attributes[semconv.PERMISSION_DECISION] == "allow"
        assert wait.attributes[semconv.PERMISSION_DECIDED_BY] == "user"


def test_a_denied_tool_is_an_error(tmp_path, monkeypatch):
    """A tool that the user did not allow is an error of that type, and its wait says deny."""
    with trial("permission_denied", tmp_path, monkeypatch) as played:
        (tool,) = played.of_type("tool")
        assert tool.attributes[semconv.ERROR_TYPE] == "permission_denied"
        (wait,) = played.of_type("permission")
        assert wait.attributes[semconv.PERMISSION_DECISION] == "deny"


def test_compaction(tmp_path, monkeypatch):
    """/compact is a turn with a compaction, its calls underneath, linked by session and time."""
    with trial("compact", tmp_path, monkeypatch) as played:
        (compaction,) = played.of_type("compaction")
        assert compaction.attributes[semconv.COMPACTION_TRIGGER] == "manual"
        inside = [c for c in played.of_type("llm") if c.parent_span_id == compaction.span_id]
        truth = [a for a in played.truth if a.request_class == "compaction"]
        assert len(inside) == len(truth) > 0
        for chat in inside:
            assert chat.attributes[semconv.LLM_PURPOSE] == "compaction"
            assert chat.attributes[semconv.LINK_CONFIDENCE] == "inferred"


def test_said_while_it_ran(tmp_path, monkeypatch):
    """Input that a running turn took in is an event of that turn, not a turn."""
    with trial("absorbed_prompt", tmp_path, monkeypatch) as played:
        (root,) = played.turns
        assert root.attributes[semconv.OI_INPUT] == "run a tool"
        (event,) = root.message.events
        assert event.name == semconv.PROMPT_EVENT


def test_transcript_alone(tmp_path, monkeypatch):
    """Without a single hook, a gateway that names the session is enough to find the transcript."""
    with trial("tools", tmp_path, monkeypatch, hooks=False) as played:
        assert played.outcomes == ["completed"]
        judge_calls(played, evidence={"response_id", "turn_id"})
        judge_tools(played)
        judge_spans(played)


def test_run_edits_nothing_and_links_exactly(tmp_path, monkeypatch):
    """`tracebridge run -- claude …` traces one command without a line in any settings file."""
    launcher = (sys.executable, "-m", "tracebridge", "run", "--")
    alone = {"hooks": False, "gateway": False}
    with trial("tools", tmp_path, monkeypatch, **alone, launcher=launcher) as played:
        assert played.played.exit_codes == (0,)
        judge(played, ["completed"], {"turn_id"})


def test_integrate_is_all_it_takes(tmp_path, monkeypatch):
    """Hooks installed by the command, nothing started by hand: the turn arrives; then back again."""
    home = tmp_path / "state"
    monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
    monkeypatch.setenv("HOME", str(tmp_path / "play" / "home"))
    command = [sys.executable, "-m", "tracebridge"]
    with Receiver() as receiver, ScriptedModel() as model:
        model.script({"say hello": [Reply([Text("Hello there.")])]})
        home.mkdir()
        # Claude Code keeps OTEL_* from its hooks, so the watcher they start reads it here.
        endpoint = f'OTEL_EXPORTER_OTLP_ENDPOINT = "{receiver.endpoint}"\n'
        (home / "config.toml").write_text(f"idle_minutes = 0.02\n[env]\n{endpoint}")
        claude = ClaudeCode(
            workdir=tmp_path / "play",
            base_url=f"{model.url}/api/anthropic",
            settings_env={},
            env={"TRACEBRIDGE_HOME": str(home)},
        )
        settings = claude.home / ".claude" / "settings.json"
        before = settings.read_bytes()
        subprocess.run([*command, "integrate", "claude-code"], check=True)
        assert settings.read_bytes() != before
        assert claude.run("say hello").exit_code == 0
        receiver.wait_for(lambda receiver: len(receiver.spans) == 2)
        wait_until(lambda: not is_watched(home), complaint="the idle watcher does not leave")
        names = {span.name.split()[0] for span in receiver.spans}
        assert names == {"invoke_agent", "chat"}
        subprocess.run([*command, "integrate", "claude-code", "--remove"], check=True)
        assert settings.read_bytes() == before

"""What an upstream is told of real agents' calls: ids of spans that the finished trace has."""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import replace

import pytest
from judge import CLAUDE_CODE, Trial, trial
from test_codex_cli import CODEX_CLI
from test_opencode import OPENCODE

from tracebridge import semconv
from tracebridge.testing.scripted_model import Attempt

pytestmark = pytest.mark.real_agent

# Respan's layout, paths kept.
BASE = "{url}"


def judge_context(trial: Trial, attempt: Attempt) -> None:
    """Hold what the upstream was told of a call against where its span lies in the end."""
    chat = trial.chat_of(attempt)
    session = chat.attributes[semconv.CONVERSATION_ID]
    parent = chat.parent_span_id
    assert attempt.headers["traceparent"] == f"00-{chat.trace_id}-{parent}-01"
    assert parent in {span.span_id for span in trial.spans}
    assert attempt.headers["baggage"] == f"session.id={session}"
    params = base64.b64decode(attempt.headers["x-data-respan-params"], validate=True)
    assert json.loads(params) == {
        "trace_unique_id": chat.trace_id,
        "span_parent_id": parent,
        "session_identifier": session,
        "thread_identifier": session,
    }


@pytest.mark.parametrize(
    ("kind", "name"),
    [(CLAUDE_CODE, "subagents"), (CODEX_CLI, "subagent")],
    ids=["claude-code", "codex-cli"],
)
def test_upstream_spans_have_a_parent_in_the_trace(kind, name, tmp_path, monkeypatch):
    """Main calls lie under the turn and a subagent's under the subagent, at the upstream too."""
    with trial(name, tmp_path, monkeypatch, kind=kind, upstream=BASE) as played:
        calls = [a for a in played.truth if a.request_class in {"main", "subagent"}]
        assert {a.request_class for a in calls} == {"main", "subagent"}
        for attempt in calls:
            judge_context(played, attempt)


def aliased(tmp_path, alias: str, model: str) -> None:
    home = tmp_path / "state"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[[gateway.requests]]\naliases = {{ "{alias}" = "{model}" }}\ncache_ttl = 7\n'
    )


def judge_alias(played: Trial, alias: str, model: str) -> None:
    calls = [a for a in played.truth if a.request_class == "main"]
    assert calls
    for attempt in calls:
        assert (attempt.body or {})["model"] == model
        chat = played.chat_of(attempt)
        assert chat.attributes[semconv.REQUEST_MODEL] == model
        assert chat.attributes[semconv.LLM_MODEL_ALIAS] == alias
        params = json.loads(base64.b64decode(attempt.headers["x-data-respan-params"]))
        assert params["cache_ttl"] == 7


def test_claude_code_by_an_alias(tmp_path, monkeypatch):
    """It asks for a model of the user's own naming, and its tools and turns are as ever."""
    aliased(tmp_path, "quick-one", "claude-haiku-4-5")
    stage = CLAUDE_CODE.stage

    def with_model(wired, **rest):
        env = {**wired.get("env", {}), "ANTHROPIC_MODEL": "quick-one"}
        return stage({**wired, "env": env}, **rest)

    kind = replace(CLAUDE_CODE, stage=with_model)
    with trial("tools", tmp_path, monkeypatch, kind=kind, upstream=BASE) as played:
        assert played.outcomes == ["completed"]
        judge_alias(played, "quick-one", "claude-haiku-4-5")


def test_codex_by_an_alias(tmp_path, monkeypatch):
    """The model of its config becomes another on the way, and nothing else of the request does."""
    aliased(tmp_path, "openai/gpt-5.5", "openai/gpt-5.5-mini")
    with trial("tools", tmp_path, monkeypatch, kind=CODEX_CLI, upstream=BASE) as played:
        assert played.outcomes == ["completed"]
        judge_alias(played, "openai/gpt-5.5", "openai/gpt-5.5-mini")


@pytest.mark.parametrize("kind", [CLAUDE_CODE, CODEX_CLI, OPENCODE], ids=lambda kind: kind.slug)
def test_a_launched_turn_in_the_trace_of_its_job(kind, tmp_path, monkeypatch):
    """Turn, calls and what the upstream is told lie in the job's trace; not in that of TRACEPARENT."""
    stage = kind.stage
    outer = {
        "TRACEPARENT": f"00-{'12' * 16}-{'34' * 8}-01",
        "TRACEBRIDGE_TRACEPARENT": f"00-{'ab' * 16}-{'cd' * 8}-01",
        "TRACEBRIDGE_TRACEPARENT_AS": "parent",
    }

    def in_a_job(wired, env, **rest):
        return stage(wired, env={**env, **outer}, **rest)

    launcher = (sys.executable, "-m", "tracebridge", "run", "--")
    alone = {"hooks": False, "gateway": False, "launcher": launcher}
    kind = replace(kind, stage=in_a_job)
    with trial("tools", tmp_path, monkeypatch, kind=kind, **alone) as played:
        assert played.outcomes == ["completed"]
        assert {span.trace_id for span in played.spans} == {"ab" * 16}
        (root,) = played.turns
        assert root.parent_span_id == "cd" * 8
        calls = [a for a in played.truth if a.request_class == "main"]
        assert calls
        for attempt in calls:
            chat = played.chat_of(attempt)
            assert chat.parent_span_id == root.span_id
            assert attempt.headers["traceparent"] == f"00-{'ab' * 16}-{root.span_id}-01"


def test_claudes_own_traceparent(tmp_path, monkeypatch):
    """It goes upstream as Claude sent it, and what Claude gives its hooks is no outer context."""
    stage = CLAUDE_CODE.stage
    native = {
        "CLAUDE_CODE_ENABLE_TELEMETRY": "1",
        "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA": "1",
        "CLAUDE_CODE_PROPAGATE_TRACEPARENT": "1",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        # Nobody is there.
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        # Without a context beside it, it says nothing.
        "TRACEBRIDGE_TRACEPARENT_AS": "parent",
    }
    seen = tmp_path / "seen"
    look = {"type": "command", "command": f"printenv TRACEPARENT >>{seen}; true"}

    def traced(wired, env, **rest):
        hooks = dict(wired["hooks"])
        hooks["Stop"] = [*hooks["Stop"], {"hooks": [look]}]
        return stage({**wired, "hooks": hooks}, env={**env, **native}, **rest)

    kind = replace(CLAUDE_CODE, stage=traced)
    with trial("simple", tmp_path, monkeypatch, kind=kind, upstream=BASE) as played:
        (root,) = played.turns
        assert not root.parent_span_id
        assert not root.message.links
        assert semconv.OUTER_TRACE not in root.attributes
        (given,) = seen.read_text().split()
        (call,) = [a for a in played.truth if a.request_class == "main"]
        own = call.headers["traceparent"]
        # Both are of Claude's own trace.
        assert own[:36] == given[:36]
        assert root.trace_id not in own
        params = json.loads(base64.b64decode(call.headers["x-data-respan-params"]))
        assert params["trace_unique_id"] == root.trace_id
        chat = played.chat_of(call)
        assert chat.parent_span_id == root.span_id
        assert chat.attributes[semconv.LINK_CONFIDENCE] == "exact"


@pytest.mark.parametrize("kind", [CLAUDE_CODE, CODEX_CLI], ids=lambda kind: kind.slug)
def test_a_launched_commands_tags_reach_respan(kind, tmp_path, monkeypatch):
    """Whose work it is stands in Respan's own parameters, as it does on our spans."""
    stage = kind.stage

    def in_front_of_respan(wired, base_url, **rest):
        base = base_url.removesuffix(kind.path)
        launcher = (sys.executable, "-m", "tracebridge", "run", "--upstream", base, "--")
        return stage(wired, base_url=base_url, **{**rest, "launcher": launcher})

    launched = replace(kind, stage=in_front_of_respan)
    alone = {"hooks": False, "gateway": False, "kind": launched}
    with trial("simple", tmp_path, monkeypatch, **alone) as played:
        (root,) = played.turns
        calls = [a for a in played.truth if a.request_class == "main"]
        assert calls
        for attempt in calls:
            params = json.loads(base64.b64decode(attempt.headers["x-data-respan-params"]))
            assert params["customer_identifier"] == root.attributes[semconv.RESPAN_CUSTOMER]
            assert params["metadata"] == json.loads(root.attributes[semconv.RESPAN_METADATA])
            assert params["trace_unique_id"] == root.trace_id
            assert params["span_parent_id"] == root.span_id

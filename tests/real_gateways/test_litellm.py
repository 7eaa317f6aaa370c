"""Real agents through the real LiteLLM proxy, which exports its spans to us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from judge import CLAUDE_CODE, Kind
from real_gateways.foreign import litellm
from real_gateways.turns import KEYS, Starter, played
from test_codex_cli import CODEX_CLI

from tracebridge import semconv
from tracebridge.testing.scripted_model import HttpError

pytestmark = [pytest.mark.real_agent, pytest.mark.heavy]

BOTH = pytest.mark.parametrize("kind", [CLAUDE_CODE, CODEX_CLI], ids=lambda kind: kind.slug)


def starter(kind: Kind, folder: Path, **how: Any) -> Starter:
    def start(model: str, otlp: str):
        key = KEYS[kind.slug]
        return litellm(folder / "litellm", key=key, anthropic=model, openai=model, otlp=otlp, **how)

    return start


@pytest.mark.parametrize("version", [1, 2])
@BOTH
def test_litellm_alone(kind, version, tmp_path, monkeypatch):
    """Agent → LiteLLM → model, our proxy not in the path: its spans come under the agent's calls."""
    start = starter(kind, tmp_path, version=version)
    with played(kind, tmp_path, monkeypatch, start, name="litellm") as turn:
        turn.judge({"response_id", "turn_id"})


def test_litellm_that_hides_ids(tmp_path, monkeypatch):
    """As LiteLLM is by default, Codex is told ids that nobody else knows: session, time and tokens."""
    start = starter(CODEX_CLI, tmp_path, plain_ids=False)
    with played(CODEX_CLI, tmp_path, monkeypatch, start, name="litellm") as turn:
        turn.judge({"response_id", "session_window"})
        below = [span for chat in turn.chats for span in turn.below(chat)]
        told = {span.attributes.get(semconv.LINK_EVIDENCE) for span in below}
        assert told - {None} == {"session_window"}


@BOTH
@pytest.mark.parametrize("plain_ids", [True, False])
def test_our_gateway_in_front_of_litellm(kind, plain_ids, tmp_path, monkeypatch):
    """Agent → our gateway → LiteLLM → model: what both saw is one call, told once."""
    start = starter(kind, tmp_path, plain_ids=plain_ids)
    with played(kind, tmp_path, monkeypatch, start, name="litellm", ours_in_front=True) as turn:
        turn.judge({"response_id", "turn_id", "traceparent"})
        names = {chat.attributes[semconv.LLM_GATEWAY] for chat in turn.chats}
        # LiteLLM's exporter may come when the last chat is told.
        assert names <= {"tracebridge", "tracebridge+litellm"}


def test_what_litellm_tries_again_by_itself(tmp_path, monkeypatch):
    """Failed attempts that the agent never heard of lie inside of the call that came of them."""
    failures = (HttpError(529), HttpError(503))
    start = starter(CLAUDE_CODE, tmp_path)
    with played(
        CLAUDE_CODE, tmp_path, monkeypatch, start, name="litellm", failures=failures
    ) as turn:
        turn.judge({"response_id"})
        failed = [span for span in turn.inside if span.status == 2]
        assert failed
        assert all(span.resource["service.name"] == "litellm" for span in failed)

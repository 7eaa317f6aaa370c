"""Real agents through the real Envoy, which exports its spans to us."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from judge import CLAUDE_CODE
from pypi_programs import installed
from real_gateways.foreign import ENVOY, envoy, envoy_on_page
from real_gateways.turns import Played, Starter, played
from requests.certs import where
from test_codex_cli import CODEX_CLI

from tracebridge import semconv
from tracebridge.settings import read_settings
from tracebridge.testing.scripted_model import HttpError
from tracebridge.views.status import status

pytestmark = pytest.mark.real_agent


def starter(folder: Path, **how: Any) -> Starter:
    def start(model: str, otlp: str):
        return envoy(folder / "envoy", model=model, otlp=otlp, **how)

    return start


def evidence(turn: Played) -> set[str | None]:
    """Return by what Envoy's calls found their turn."""
    below = [span for chat in turn.chats for span in turn.below(chat)]
    assert {span.resource["service.name"] for span in below} == {"envoy"}
    return {span.attributes.get(semconv.LINK_EVIDENCE) for span in below} - {None}


def test_the_whole_configuration_on_the_page_is_accepted(tmp_path):
    """As it stands there, with the vendors behind it, whose certificates are checked."""
    path = tmp_path / "envoy.yaml"
    config, _ = envoy_on_page()
    # Where they lie differs from system to system.
    path.write_text(config.replace("/etc/ssl/certs/ca-certificates.crt", where()))
    command = [installed(ENVOY), "--mode", "validate", "--config-path", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("kind", "found_by"),
    [(CLAUDE_CODE, "response_id"), (CODEX_CLI, "turn_id")],
    ids=lambda given: getattr(given, "slug", given),
)
def test_envoy_alone(kind, found_by, tmp_path, monkeypatch):
    """Agent → Envoy → model, our proxy not in the path: its spans come under the agent's calls."""
    with played(kind, tmp_path, monkeypatch, starter(tmp_path), name="envoy") as turn:
        turn.judge({"response_id", "turn_id"})
        assert evidence(turn) == {found_by}


def test_envoy_that_reads_no_answers(tmp_path, monkeypatch):
    """Without what it reads in the stream, the provider's id in the response's head is enough."""
    start = starter(tmp_path, without="gen_ai.response.id")
    with played(CLAUDE_CODE, tmp_path, monkeypatch, start, name="envoy") as turn:
        turn.judge({"request_id", "response_id"})
        assert evidence(turn) == {"request_id"}


def test_our_gateway_in_front_of_envoy(tmp_path, monkeypatch):
    """Agent → our gateway → Envoy → model: its spans are born in the turn's trace, each call is one."""
    with played(
        CODEX_CLI, tmp_path, monkeypatch, starter(tmp_path), name="envoy", ours_in_front=True
    ) as turn:
        turn.judge({"turn_id", "traceparent"})
        assert evidence(turn) == {"traceparent"}
        assert not [span for span in turn.spans if semconv.ORIGINAL_TRACE in span.attributes]
        names = {chat.attributes[semconv.LLM_GATEWAY] for chat in turn.chats}
        # Envoy's export may come when the last chat is told.
        assert names <= {"tracebridge", "tracebridge+envoy"}


def test_what_envoy_tries_again_by_itself(tmp_path, monkeypatch):
    """Failed attempts that the agent never heard of lie inside of the call that came of them."""
    failures = (HttpError(529), HttpError(503))
    with played(
        CLAUDE_CODE, tmp_path, monkeypatch, starter(tmp_path), name="envoy", failures=failures
    ) as turn:
        turn.judge({"response_id"})
        assert evidence(turn) == {"response_id"}
        last = max(turn.chats, key=lambda chat: chat.start_ns)
        failed = [span for span in turn.below(last) if span.status == 2]
        assert sorted(span.attributes["http.status_code"] for span in failed) == ["503", "529"]
        assert len(failed) == len([span for span in turn.spans if span.status == 2])


def test_envoy_that_logs_its_calls(tmp_path, monkeypatch):
    """Instead of spans: each answer in its log is one call; of what failed the agent tells."""
    log = tmp_path / "records" / "calls.jsonl"
    log.parent.mkdir()
    monkeypatch.setenv("TRACEBRIDGE_RECORDS", str(log.parent))

    start = starter(tmp_path, log=log)
    failures = (HttpError(429),)
    with played(CLAUDE_CODE, tmp_path, monkeypatch, start, name="envoy", failures=failures) as turn:
        answered = [attempt for attempt in turn.truth if attempt.outcome == "answered"]
        tokens = [chat.attributes.get(semconv.OUTPUT_TOKENS) for chat in turn.chats]
        true = [attempt.usage["output_tokens"] for attempt in answered]
        assert sorted(filter(None, tokens)) == sorted(true)
        assert len(turn.chats) == len(turn.truth) == 3
        links = status(read_settings())["links"]
        assert links["by_gateway"] == {"envoy": {"response_id": 2}}
        assert links["orphans"] == 0

"""What goes through the gateway and belongs to no turn: told apart from what has lost its turn."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tracebridge import semconv
from tracebridge.run import started_gateway
from tracebridge.settings import read_settings
from tracebridge.testing.receiver import Receiver
from tracebridge.testing.scripted_model import Reply, Text
from tracebridge.testing.scripted_responses import ScriptedResponses
from tracebridge.views.status import status
from tracebridge.watch import watch_once


@pytest.fixture
def receiver(monkeypatch):
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


@contextmanager
def gateway() -> Iterator[str]:
    """Give the URL of a gateway in front of a model; what it saw is recorded once it has ended."""
    with ScriptedResponses() as model:
        model.script({"name it": [Reply([Text("A name")])]})
        with started_gateway([f"openai={model.url}"], dict(os.environ)) as url:
            assert url is not None
            yield url


def post(url: str, body: object, **headers: str) -> None:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            response.read()
    except urllib.error.HTTPError as error:
        error.close()


def test_what_goes_to_no_model_is_counted_and_makes_no_span(receiver):
    """As Codex's analytics: by the shape of the path, without what differs or could be a secret."""
    with gateway() as url:
        post(f"{url}/api/analytics/codex/turn-costs", {"turn_ids": ["x"]})
        post(f"{url}/api/files/file-0123456789/part?key=sk-secret", {})
    assert watch_once(read_settings(), close_open=True)
    state = status(read_settings())
    assert state["notes"] == {
        "request to no model's API: POST /api/analytics/codex/turn-costs": 1,
        "request to no model's API: POST /api/files/*/part": 1,
    }
    links = state["links"]
    assert (links["orphans"], links["side_calls"], links["waiting"]) == (0, 0, 0)
    assert receiver.spans == []


def test_embeddings_are_no_chat(receiver):
    """A call for embeddings is called what it is, everywhere."""
    with gateway() as url:
        post(f"{url}/api/embeddings", {"model": "text-embedding-3-small", "input": "a name"})
    assert watch_once(read_settings(), close_open=True)
    (span,) = receiver.spans
    assert span.name == "embeddings text-embedding-3-small"
    assert span.attributes[semconv.OPERATION] == "embeddings"
    assert span.attributes[semconv.OI_KIND] == "EMBEDDING"
    assert span.attributes[semconv.RESPAN_LOG_TYPE] == "embedding"


@pytest.mark.parametrize(
    ("source", "counted"), [("thread_title", "side_calls"), ("user", "orphans")]
)
def test_only_a_call_that_should_have_a_turn_is_an_orphan(source, counted, receiver):
    """A title is asked for in a thread of its own; a call of the user's thread has lost its turn."""
    told = {"session_id": "t", "thread_id": "t", "turn_id": "u", "thread_source": source}
    body = {"model": "m", "input": "name it"}
    with gateway() as url:
        post(f"{url}/api/responses", body, **{"x-codex-turn-metadata": json.dumps(told)})
    assert watch_once(read_settings(), close_open=True)
    links = status(read_settings())["links"]
    assert links[counted] == 1
    assert links["orphans"] + links["side_calls"] == 1
    assert sum(links["orphan_reasons"].values()) == links["orphans"]
    (chat,) = receiver.spans
    purpose = "auxiliary" if counted == "side_calls" else None
    assert chat.attributes.get(semconv.LLM_PURPOSE) == purpose

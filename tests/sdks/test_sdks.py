"""The official SDKs through our gateway, unchanged but for the base URL in their environment."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from pypi_programs import Program, installed

from tracebridge import semconv
from tracebridge.model import GatewayCall, Usage
from tracebridge.run import started_gateway
from tracebridge.scripts import is_of_script
from tracebridge.settings import read_settings
from tracebridge.spool import Spool
from tracebridge.testing.receiver import Receiver
from tracebridge.testing.scripted_chat import ScriptedChat
from tracebridge.testing.scripted_gemini import ScriptedGemini
from tracebridge.testing.scripted_model import (
    Attempt,
    HttpError,
    Reply,
    ScriptedModel,
    StreamError,
    Text,
    Thinking,
    ToolUse,
)
from tracebridge.testing.scripted_responses import ScriptedResponses
from tracebridge.views.status import status
from tracebridge.watch import watch_once

SDKS = Program(
    "google-genai", "3.4.0", "bin/python", beside=("anthropic==2.11.0", "openai==3.52.0")
)
SCRIPT = Path(__file__).with_name("script.py")
KEY = "sk-scripted-0123456789"
TEXT = "Größe: 3 µm, 寸法 🙂"
LIMIT_S = 300


@dataclass(frozen=True, kw_only=True)
class Api:
    # In script.py.
    name: str
    model: type[ScriptedModel]
    # Of our gateway's upstream, and what a base URL has behind the gateway's address.
    family: str
    path: str
    variable: str
    dialect: str
    # Or it has no such count, and leaves others out where they are zero.
    tells_all_counts: bool = True
    # Whether its SDK tries a refused call again by itself.
    is_persistent: bool = True


ANTHROPIC = Api(
    name="Anthropic",
    model=ScriptedModel,
    family="anthropic",
    path="/api/anthropic",
    variable="ANTHROPIC_BASE_URL",
    dialect="anthropic.messages",
)
CHAT = Api(
    name="Chat",
    model=ScriptedChat,
    family="openai",
    path="/api",
    variable="OPENAI_BASE_URL",
    dialect="openai.chat_completions",
)
RESPONSES = replace(CHAT, name="Responses", model=ScriptedResponses, dialect="openai.responses")
GEMINI = Api(
    name="Gemini",
    model=ScriptedGemini,
    family="gemini",
    path="/api/google/gemini",
    variable="GOOGLE_GEMINI_BASE_URL",
    dialect="gemini.",
    tells_all_counts=False,
    is_persistent=False,
)
APIS = [ANTHROPIC, CHAT, RESPONSES, GEMINI]
KINDS: Mapping[str, Reply] = {
    "say": Reply([Text(TEXT)]),
    "think": Reply([Thinking("hm"), Text(TEXT)]),
    "call": Reply([ToolUse("weather", {"city": "Zürich"}), ToolUse("weather", {"city": "Ḥaifa"})]),
    "refused": Reply([], failures=[HttpError(400, "no such thing")] * 4),
    "busy": Reply([Text(TEXT)], failures=[HttpError(429, "later")]),
    "broken": Reply([Text(TEXT)], failures=[StreamError()] * 4),
}


@pytest.fixture
def receiver(monkeypatch):
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


def asked(api_name: str, variable: str, url: str, wishes: list[dict[str, Any]]) -> list[dict]:
    """Return what the SDK gave a script for each wish."""
    done = subprocess.run(
        [installed(SDKS), "-I", str(SCRIPT), api_name],
        input="".join(json.dumps(wish) + "\n" for wish in wishes),
        env={
            "HOME": os.environ["HOME"],
            "ANTHROPIC_API_KEY": KEY,
            "OPENAI_API_KEY": KEY,
            "GEMINI_API_KEY": KEY,
            variable: url,
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def recorded(home: Path) -> list[GatewayCall]:
    calls = [file.content for file in Spool(home).read()]
    assert all(isinstance(call, GatewayCall) for call in calls)
    return sorted(calls, key=lambda call: call.start_ns)


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.name)
def test_each_request_is_one_call(api: Api, home: Path, receiver):
    """Streamed or not, sync or async, with tools, refused, tried again: exact ids and usage."""
    wishes = [
        {
            "prompt": f"{kind} {streaming} {asynchronous}",
            "streaming": streaming,
            "asynchronous": asynchronous,
        }
        for kind, streaming, asynchronous in product(KINDS, (False, True), (False, True))
        if streaming or kind != "broken"
    ]
    with api.model(
        {wish["prompt"]: [KINDS[wish["prompt"].split()[0]]] for wish in wishes}
    ) as model:
        with started_gateway([f"{api.family}={model.url}"], dict(os.environ)) as url:
            answers = asked(api.name, api.variable, f"{url}{api.path}", wishes)
        truth = [attempt for attempt in model.attempts if attempt.method == "POST"]
    calls = recorded(home)
    for attempt, call in zip(truth, calls, strict=True):
        assert_is(call, attempt, api)
    by_prompt = {attempt.prompt: attempt for attempt in truth}
    for wish, answer in zip(wishes, answers, strict=True):
        attempt = by_prompt[wish["prompt"]]
        kind = wish["prompt"].split()[0]
        if kind in {"refused", "broken"} or (kind == "busy" and not api.is_persistent):
            assert "error" in answer, answer
            assert kind == "broken" or answer["status"] == attempt.status
        else:
            assert answer["id"] == attempt.message_id
            assert answer["text"] == ("" if kind == "call" else TEXT)
            assert answer["tools"] == attempt.tool_use_ids
    assert not any(KEY in path.read_text() for path in Spool(home).new.iterdir())
    assert watch_once(read_settings())
    links = status(read_settings())["links"]
    assert (links["scripts"], links["orphans"], links["waiting"]) == (len(truth), 0, 0)
    assert len({span.trace_id for span in receiver.spans}) == len(receiver.spans) == len(truth)
    assert {span.attributes[semconv.OPERATION] for span in receiver.spans} == {"chat"}


def assert_is(call: GatewayCall, attempt: Attempt, api: Api) -> None:
    assert is_of_script(call)
    assert call.dialect.startswith(api.dialect)
    assert call.requested_model == "scripted-1"
    assert call.streaming == attempt.streaming
    assert call.status_code == attempt.status
    assert call.response_id == attempt.message_id
    assert call.tool_call_ids == tuple(attempt.tool_use_ids)
    assert call.stop_reason == attempt.stop_reason
    assert not call.partial
    if attempt.outcome == "answered":
        assert call.error_type is None
        assert call.usage == true_usage(attempt, api)
    elif attempt.outcome == "http_error":
        assert call.error_type == str(attempt.status)
        assert call.error_message
    else:
        assert call.error_type is not None


def true_usage(attempt: Attempt, api: Api) -> Usage:
    usage = attempt.usage
    thought = usage["output_tokens_details"]["thinking_tokens"]
    read, write = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    return Usage(
        input_tokens=usage["input_tokens"] + read + write,
        output_tokens=usage["output_tokens"],
        cache_read_tokens=read,
        cache_write_tokens=write if api.tells_all_counts else None,
        reasoning_tokens=thought if thought or api.tells_all_counts else None,
    )


@contextmanager
def embedder(answer: dict[str, Any]) -> Iterator[str]:
    """Serve *answer* to each POST; give the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("api", "answer", "tokens"),
    [
        (
            replace(CHAT, name="OpenAIEmbeddings"),
            {
                "object": "list",
                "model": "scripted-1",
                "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
                "usage": {"prompt_tokens": 7, "total_tokens": 7},
            },
            7,
        ),
        (
            replace(GEMINI, name="GeminiEmbeddings"),
            {"embeddings": [{"values": [0.5, -0.25]}], "embedding": {"values": [0.5, -0.25]}},
            None,
        ),
    ],
)
def test_embeddings(api: Api, answer, tokens, receiver):
    """They are calls of their own kind, with the tokens that the vendor counts."""
    wishes = [
        {"prompt": TEXT, "streaming": False, "asynchronous": asynchronous}
        for asynchronous in (False, True)
    ]
    with (
        embedder(answer) as upstream,
        started_gateway([f"{api.family}={upstream}"], dict(os.environ)) as url,
    ):
        answers = asked(api.name, api.variable, f"{url}{api.path}", wishes)
    assert answers == [{"vectors": [[0.5, -0.25]]}] * 2
    assert watch_once(read_settings())
    assert [span.name for span in receiver.spans] == ["embeddings scripted-1"] * 2
    for span in receiver.spans:
        assert span.attributes[semconv.OPERATION] == "embeddings"
        assert span.attributes.get(semconv.INPUT_TOKENS) == tokens
        assert semconv.OUTPUT_TOKENS not in span.attributes
    assert status(read_settings())["links"]["scripts"] == 2

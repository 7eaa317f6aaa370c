"""Relays in this process and as processes, what is sent to them, and what comes out."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from redis_server import RedisServer

from tracebridge.encode import encode_span, export_request
from tracebridge.ids import root_span_id, span_id, trace_id
from tracebridge.model import Span, SpanKind
from tracebridge.relay.rules import Rules
from tracebridge.relay.serve import RelayOptions, read_backend, serve
from tracebridge.testing.receiver import Receiver

NOW = 1_795_000_000_000_000_000
SECOND = 1_000_000_000
PATIENCE_S = 120
PROTOBUF = {"content-type": "application/x-protobuf"}
SESSION = "2e23f0a0-0000-4000-8000-000000000001"


def turn(number: int = 1) -> str:
    """Return the trace of one turn of Claude Code."""
    return trace_id("claude-code", SESSION, prompt(number))


def prompt(number: int = 1) -> str:
    return f"5d00821f-0000-4000-8000-{number:012}"


def watchers_request(trace: str, *response_ids: str, skew_ns: int = 0) -> bytes:
    """Return what a watcher sends of a turn: a chat for each response, and the root."""
    start = NOW + skew_ns
    chats = [
        Span(
            trace_id=trace,
            span_id=span_id(trace, "llm", response_id),
            parent_span_id=root_span_id(trace),
            name="chat claude-opus-5",
            kind=SpanKind.CLIENT,
            start_ns=start,
            end_ns=start + SECOND,
            attributes={
                "gen_ai.response.id": response_id,
                "gen_ai.usage.input_tokens": 100,
                # No relay touches what is final, not even this.
                "note": "api_key=sk-ant-api03-0123456789abcdefghij",
            },
        )
        for response_id in response_ids
    ]
    root = Span(
        trace_id=trace,
        span_id=root_span_id(trace),
        parent_span_id=None,
        name="invoke_agent claude-code",
        kind=SpanKind.INTERNAL,
        start_ns=start,
        end_ns=start + 2 * SECOND,
        attributes={"gen_ai.operation.name": "invoke_agent"},
    )
    spans = [encode_span(span) for span in (*chats, root)]
    return export_request({(("service.name", "claude-code"),): spans})


class GatewayCall:
    """One request as LiteLLM's second OpenTelemetry version shows it: server span, noise, chat."""

    def __init__(
        self,
        response_id: str | None = None,
        *,
        number: int = 1,
        attributes: dict[str, Any] | None = None,
        trace: bytes | None = None,
        remote_parent: bytes = b"",
        skew_ns: int = 0,
    ) -> None:
        self.trace = trace or bytes([number % 256]) * 15 + bytes([number // 256 + 1])
        self.ids = [number.to_bytes(7, "big") + bytes([each + 1]) for each in range(3)]
        self.chat_attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "claude-opus-5",
            "gen_ai.usage.input_tokens": 100,
            "gen_ai.usage.output_tokens": 7,
            "litellm.call_id": f"call-{number}",
            **({"gen_ai.response.id": response_id} if response_id is not None else {}),
            **(attributes or {}),
        }
        self.remote_parent = remote_parent
        self.start = NOW + skew_ns

    @property
    def span_ids(self) -> list[str]:
        return [each.hex() for each in self.ids]

    def request(self, *which: int) -> bytes:
        """Return an export of all spans, or of these: 0 the server's, 1 noise, 2 the chat."""
        message = ExportTraceServiceRequest()
        group = message.resource_spans.add()
        _add(group.resource.attributes, {"service.name": "litellm"})
        scope = group.scope_spans.add()
        scope.scope.name = "litellm"
        server, noise, _ = self.ids
        for index in which or range(3):
            span = scope.spans.add(
                trace_id=self.trace,
                span_id=self.ids[index],
                parent_span_id=(self.remote_parent, server, noise)[index],
                name=("POST /v1/messages", "auth /v1/messages", "chat claude-opus-5")[index],
                kind=(2, 1, 3)[index],
                start_time_unix_nano=self.start,
                end_time_unix_nano=self.start + SECOND,
                flags=0x300 if index == 0 and self.remote_parent else 0x101,
            )
            _add(span.attributes, self.chat_attributes if index == 2 else {"http.route": "/v1"})
        return message.SerializeToString()


def keys(number: int = 1) -> dict[str, Any]:
    """Return the attributes of a gateway that keeps the headers of the agent's requests."""
    return {
        "http.request.header.x-claude-code-session-id": [SESSION],
        "http.request.header.x-claude-code-prompt-id": [prompt(number)],
    }


def _add(holder: Any, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        added = holder.add(key=name).value
        if isinstance(value, list):
            for each in value:
                added.array_value.values.add(string_value=each)
        elif isinstance(value, int):
            added.int_value = value
        else:
            added.string_value = value


def with_more(request: bytes, *others: bytes) -> bytes:
    """Return one request with the groups of several."""
    return b"".join([request, *others])


class RunningRelay:
    """A relay in a thread of this process."""

    def __init__(self, options: RelayOptions) -> None:
        self._options = options
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay")
        self.url = ""

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._serving = asyncio.ensure_future(serve(self._options, self._announce))
            try:
                await self._serving
            except asyncio.CancelledError:
                return
            finally:
                self._ready.set()

        asyncio.run(main())

    def _announce(self, url: str) -> None:
        self.url = url
        self._ready.set()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        assert self.url

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the relay does not stop"


class RelayProcess:
    """A relay as its users start it."""

    def __init__(self, *arguments: str, home: Path, env: dict[str, str] | None = None) -> None:
        own = {"TRACEBRIDGE_HOME": str(home), "HOME": str(home), "PATH": os.defpath}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tracebridge", "relay", "--listen", "127.0.0.1:0", *arguments],
            env={**own, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().strip()
        assert self.url, "the relay did not start"

    def end(self, *, kill: bool = True) -> int:
        if self.process.poll() is None:
            (self.process.kill if kill else self.process.terminate)()
        self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode


def post(url: str, request: bytes, **headers: str) -> requests.Response:
    return requests.post(
        f"{url}/v1/traces", data=request, headers={**PROTOBUF, **headers}, timeout=PATIENCE_S
    )


def status(url: str) -> dict[str, Any]:
    found = requests.get(f"{url}/tracebridge/status", timeout=PATIENCE_S)
    assert found.status_code == 200
    return json.loads(found.content)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def redis(tmp_path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def start_relay(tmp_path, receiver):
    """Start relays in this process; each has a home of its own unless it is given one."""
    started: list[RunningRelay] = []

    def start(**options) -> RunningRelay:
        home = options.pop("home", tmp_path / f"relay-{len(started)}")
        chosen = {
            "listen": "127.0.0.1:0",
            "backend": read_backend(receiver.endpoint, {}),
            "home": home,
            "rules": Rules(),
            "client_keys": home / "gateway-keys.toml",
            **options,
        }
        relay = RunningRelay(RelayOptions(**chosen))
        started.append(relay)
        relay.start()
        return relay

    yield start
    for each in started:
        each.stop()


@pytest.fixture(params=["alone", "redis"])
def index(request, tmp_path) -> dict[str, Any]:
    """Return the options of relays that know things together: in one home, or in one Redis."""
    if request.param == "alone":
        return {"home": tmp_path / "shared"}
    return {"redis_url": request.getfixturevalue("redis").url}

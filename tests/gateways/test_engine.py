"""`--engine respan-gateway`: the real program behind our gateway, its attempts under our call."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import trustme
from claude_files import SECOND, SESSION, START, TURN, Claude, said
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pypi_programs import Program, installed

from tests.gateways.conftest import LIMIT_SECONDS
from tracebridge.gateways import engine
from tracebridge.gateways.client_keys import FILE, add_key
from tracebridge.gateways.engine import Engine, EngineError, find_program, with_exports
from tracebridge.gateways.figures import METRICS
from tracebridge.gateways.proxy import GatewayOptions, OptionsError
from tracebridge.gateways.recorder import Complaints
from tracebridge.model import GatewayCall, SpanExport
from tracebridge.settings import read_settings
from tracebridge.testing.receiver import Receiver
from tracebridge.watch import watch_once

RESPAN_GATEWAY = Program("respan-gateway", "0.3.0", "bin/respan-gateway")
KEY = "sk-of-the-provider"
HEADERS = {
    "User-Agent": "claude-cli/2.1.329 (external, cli)",
    "x-claude-code-session-id": SESSION,
    "x-claude-code-prompt-id": TURN,
    "anthropic-version": "2023-06-01",
}


class Model:
    """Answers, or refuses with a status, and keeps the keys that it was asked with."""

    def __init__(self) -> None:
        self.refusals: list[int] = []
        self.keys: list[str] = []
        self.answers = 0
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                model.keys.append(self.headers["x-api-key"])
                refused = model.refusals.pop(0) if model.refusals else None
                body = model.refusal() if refused else model.answer()
                self.send_response(refused or 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self) -> bytes:
        self.answers += 1
        return json.dumps(
            {
                "id": f"msg_{self.answers}",
                "type": "message",
                "role": "assistant",
                "model": "claude-a",
                "content": [{"type": "text", "text": "hello"}],
                "stop_reason": "end_turn",
                "usage": {"input_tokens": 3, "output_tokens": 10 + self.answers},
            }
        ).encode()

    @staticmethod
    def refusal() -> bytes:
        error = {"type": "overloaded_error", "message": "too much to do"}
        return json.dumps({"type": "error", "error": error}).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def models() -> Iterator[list[Model]]:
    both = [Model(), Model()]
    yield both
    for each in both:
        each.close()


@pytest.fixture
def config(models, tmp_path) -> Path:
    """Give a config in which the second model answers where the first does not."""
    providers = "".join(
        f'[providers.{name}]\nvendor = "anthropic"\nbase_url = "{model.url}"\nkey = "{KEY}"\n'
        for name, model in zip(("one", "two"), models, strict=True)
    )
    route = '[routes.m]\nto = ["one/claude-a", "two/claude-a"]\npick = "first"\nbackoff = "1ms"\n'
    path = tmp_path / "engine" / "routes.toml"
    path.parent.mkdir()
    path.write_text(providers + route)
    return path


class Gateway:
    def __init__(self, home: Path, config: Path, *words: str) -> None:
        words = ("--engine", "respan-gateway", "--engine-config", str(config), *words)
        program = installed(RESPAN_GATEWAY)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tracebridge", "gateway", "--listen", "127.0.0.1:0", *words],
            env={
                "TRACEBRIDGE_HOME": str(home),
                "HOME": str(home),
                "PATH": f"{program.parent}:{os.defpath}",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().strip()
        self.trusted: str | None = None

    def ask(self, **headers: str) -> requests.Response:
        body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        url = f"{self.url}/api/anthropic/v1/messages"
        return requests.post(
            url,
            json=body,
            headers={**HEADERS, **headers},
            timeout=LIMIT_SECONDS,
            verify=self.trusted,
        )

    def answers(self) -> bool:
        try:
            return self.ask().ok
        except requests.ConnectionError:
            return False

    def engines(self) -> list[int]:
        """Return the processes below ours: the leash, and the engine on it."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"serve" in words:
                found.append(int(path.parent.name))
        return sorted(pid for pid in found if _is_below(pid, self.process.pid))

    def stop(self) -> str:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.communicate(timeout=LIMIT_SECONDS)[1].decode()


def _is_below(pid: int, above: int) -> bool:
    while pid > 1:
        if pid == above:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


@pytest.fixture
def start(home, config) -> Iterator[Callable[..., Gateway]]:
    started: list[Gateway] = []

    def start(*words: str) -> Gateway:
        started.append(Gateway(home, config, *words))
        assert started[-1].url, started[-1].process.communicate()
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def receiver(monkeypatch) -> Iterator[Receiver]:
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


def wait_until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def kinds_in(agent: Claude) -> set[str]:
    """Return what waits in the spool."""
    files = [path.read_bytes() for path in agent.spool.new.iterdir()]
    return {kind for kind in ("call", "spans") if any(f"kind={kind}".encode() in f for f in files)}


def now() -> float:
    return (time.time_ns() - START) / SECOND


def test_attempts_lie_under_the_call(start, models, receiver, home, tmp_path):
    """Of a call that fell back, both attempts, in the turn's trace; tokens are counted once."""
    began = now()
    gateway = start()
    models[0].refusals = [529]
    assert gateway.ask().json()["id"] == "msg_1"
    assert [len(model.keys) for model in models] == [1, 1]
    assert models[1].keys == [KEY]
    agent = Claude(home, tmp_path)
    wait_until(lambda: kinds_in(agent) == {"call", "spans"})
    agent.hook(began, "UserPromptSubmit", prompt="hi")
    agent.prompt_line(began, "hi")
    agent.answer_line(now(), "msg_1", said("hello"), began=began)
    agent.hook(now(), "Stop", last_assistant_message="hello", background_tasks=[])
    assert watch_once(read_settings())
    spans = {span.span_id: span for span in receiver.spans}
    assert len({span.trace_id for span in receiver.spans}) == 1
    (chat,) = (s for s in receiver.spans if s.attributes.get("gen_ai.response.id") == "msg_1")
    providers = {}
    for span in receiver.spans:
        if "gateway.provider" in span.attributes:
            root = spans[span.parent_span_id]
            assert root.parent_span_id == chat.span_id
            providers[span.attributes["gateway.provider"]] = span.status
    assert providers == {"one": 2, "two": 1}
    counted = [s for s in receiver.spans if "gen_ai.usage.output_tokens" in s.attributes]
    assert counted == [chat]
    assert not any("gen_ai.usage.completion_tokens" in s.attributes for s in receiver.spans)


def test_it_is_started_again_when_it_dies(start):
    """Clients see failed calls for a moment, and then answers."""
    gateway = start()
    assert gateway.ask().status_code == 200
    before = gateway.engines()
    os.kill(before[-1], signal.SIGKILL)
    wait_until(lambda: gateway.engines()[-1:] not in ([], before[-1:]) and gateway.answers())
    assert "the engine ended: exit code 137" in gateway.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_dies_with_us(start, number):
    """Even if nobody could tell it to."""
    gateway = start()
    engines = gateway.engines()
    assert len(engines) == 2
    gateway.process.send_signal(number)
    gateway.process.wait(LIMIT_SECONDS)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in engines))


def test_its_config_is_followed(start, config, home, models):
    """A new route is taken once it is written, what cannot be read never; no copy is left behind."""
    gateway = start()
    text = config.read_text()
    (copy,) = home.glob("engine-*.toml")
    assert copy.stat().st_mode & 0o777 == 0o600
    before = copy.read_text()
    config.write_text("[")
    wait_until(lambda: "not reloaded" in requests.get(f"{gateway.url}{METRICS}", timeout=99).text)
    assert copy.read_text() == before
    config.write_text(text.replace('to = ["one/claude-a", ', "to = ["))
    wait_until(lambda: gateway.ask().ok and models[1].keys)
    gateway.stop()
    assert not list(home.glob("engine-*"))


def test_clients_have_keys_of_ours(start, models, home):
    """The engine sees none of them, and its providers see its own."""
    key = add_key(home / FILE, "alice", None)
    gateway = start()
    assert gateway.ask().status_code == 401
    assert gateway.ask(**{"x-api-key": key}).status_code == 200
    assert models[0].keys == [KEY]


def test_families_of_their_own_go_elsewhere(start, models, config, upstream):
    """What a family's URL is for does not go to the engine."""
    del config, models
    gateway = start("--upstream", f"anthropic={upstream.url}")
    done = threading.Thread(target=gateway.ask)
    done.start()
    peer = upstream.accept()
    assert peer.read_until(b"\r\n\r\n").startswith(b"POST /v1/messages HTTP/1.1\r\n")
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    done.join()


def test_a_config_that_it_refuses(home, config):
    """Its own words say why, and we do not listen."""
    config.write_text("[providers.one]\nvendor = 'no-such-vendor'\n")
    gateway = Gateway(home, config)
    assert gateway.url == ""
    assert "no-such-vendor" in gateway.stop()
    assert gateway.process.returncode == 2


@pytest.mark.parametrize("text", ["[", "a = 1\na = 2", None])
def test_a_config_that_cannot_be_read(tmp_path, text):
    """It is named, with the reason."""
    path = tmp_path / "routes.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EngineError, match=r"routes\.toml"):
        with_exports(path, "http://127.0.0.1:1", "k")


def test_exports_of_the_users_own_stay(tmp_path):
    """Who sends them to Respan goes on doing so."""
    path = tmp_path / "routes.toml"
    path.write_text("[plugins.respan]\nkey = 'env:RESPAN_API_KEY'\n")
    assert with_exports(path, "http://127.0.0.1:1", "k") is None


def test_an_engine_that_is_not_installed(tmp_path, monkeypatch):
    """The error says how to install it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(engine.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(EngineError, match="pip install respan-gateway"):
        find_program()
    with pytest.raises(OptionsError, match="pip install respan-gateway"):
        GatewayOptions(upstream=(), home=tmp_path, engine_config=tmp_path / "c")


@pytest.fixture
def listening(tmp_path, monkeypatch) -> Engine:
    """Give an engine of which only the log is there."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "respan-gateway"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return Engine(tmp_path / "c", Complaints())


def log_line(call_id: str, start_ms: int, took_ms: int, output_tokens: int) -> str:
    started = datetime.fromtimestamp(start_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return json.dumps(
        {
            "msg": "request",
            "path": f"/{call_id}/v1/messages",
            "started_at": started.replace("+00:00", "Z"),
            "duration_ms": took_ms,
            "usage": {"input_tokens": 3, "output_tokens": output_tokens},
        }
    )


def exported(start_ns: int, took_ns: int, output_tokens: int) -> SpanExport:
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.add(key="service.name").value.string_value = "respan-gateway"
    scope = group.scope_spans.add()
    root = scope.spans.add(trace_id=b"t" * 16, span_id=b"r" * 8)
    chat = scope.spans.add(trace_id=b"t" * 16, span_id=b"c" * 8, parent_span_id=b"r" * 8)
    for span in (root, chat):
        span.start_time_unix_nano, span.end_time_unix_nano = start_ns, start_ns + took_ns
    tokens = {"gen_ai.usage.prompt_tokens": 3, "gen_ai.usage.completion_tokens": output_tokens}
    for name, number in tokens.items():
        chat.attributes.add(key=name).value.int_value = number
    return SpanExport(time_ns=1, request=request.SerializeToString())


def names(export: SpanExport) -> set[str]:
    request = ExportTraceServiceRequest.FromString(export.request)
    return {
        attribute.value.string_value
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
        for attribute in span.attributes
        if attribute.key == "respan.gateway.log_id"
    }


def test_a_trace_is_named_only_where_that_is_sure(listening):
    """By its millisecond; of several in one by tokens, then by how long; else not at all."""
    ms = 1_795_256_854_557
    calls = ["1" * 32, "2" * 32, "3" * 32, "4" * 32, "5" * 32]
    for line in (
        log_line(calls[0], ms, 46, 11),
        log_line(calls[1], ms, 46, 12),
        log_line(calls[2], ms, 48, 12),
        log_line(calls[3], ms + 1, 2, 12),
        log_line(calls[4], ms + 90, 2, 13),
    ):
        listening._take(line)
    ns = ms * 1_000_000
    assert names(listening.with_names(exported(ns + 999_999, 46_900_000, 11))) == {calls[0]}
    assert names(listening.with_names(exported(ns + 5, 46_100_000, 12))) == {calls[1]}
    assert names(listening.with_names(exported(ns + 5, 48_900_000, 12))) == {calls[2]}
    assert names(listening.with_names(exported(ns + 1_000_000, 2_000_000, 1))) == {calls[3]}
    # Late on a busy machine, but alone with these tokens.
    assert names(listening.with_names(exported(ns, 2_000_000, 13))) == {calls[4]}
    listening._take(log_line("6" * 32, ms, 46, 12))
    for other in (exported(ns, 46_100_000, 12), exported(ns - 1, 46_100_000, 9)):
        assert listening.with_names(other) is other


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "null",
        '{"msg": "request"}',
        '{"msg": "request", "path": 1, "duration_ms": "x"}',
        '{"msg": "listening", "addr": 7}',
        log_line("1" * 32, 0, 1, 1).replace("1970", "x"),
        log_line("1" * 32, 0, 1, 1).replace('"usage"', '"other"'),
        '{"level": "error", "msg": {}}',
        "[" * 10_000,
    ],
)
def test_any_line_of_its_log_is_taken(listening, line):
    """What it means nobody may know; it stops nothing."""
    assert listening._take(line) is None


def test_calls_to_others_get_no_name(listening):
    """Only what went to the engine is known there."""
    call = GatewayCall(
        call_id="c", gateway="tracebridge", method="POST", path="/", start_ns=0, end_ns=1
    )
    assert listening.named(call) is call


def test_it_reports_to_a_gateway_that_speaks_tls(home, config, tmp_path):
    """By a door of its own on loopback, at which nobody else is let in."""
    authority = trustme.CA()
    certificate, trusted = tmp_path / "certificate.pem", tmp_path / "authority.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
    authority.cert_pem.write_to_path(trusted)
    key = add_key(home / FILE, "alice", None)
    gateway = Gateway(home, config, "--listen", "0.0.0.0:0", "--tls-cert", str(certificate))
    try:
        gateway.url = gateway.url.replace("0.0.0.0", "localhost")
        gateway.trusted = str(trusted)
        assert gateway.ask(**{"x-api-key": key}).status_code == 200
        agent = Claude(home, tmp_path)
        wait_until(lambda: kinds_in(agent) == {"call", "spans"})
        (copy,) = home.glob("engine-*.toml")
        door = tomllib.loads(copy.read_text())["plugins"]["respan"]["url"]
        assert requests.post(door, json={}, timeout=LIMIT_SECONDS).status_code == 401
    finally:
        gateway.stop()

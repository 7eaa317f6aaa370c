"""The gateway as a whole process: killed in the middle of a stream, and with keys in its hands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from beside import free_port
from claude_files import SECOND, SESSION, START, TURN, Claude, said

from tests.gateways.conftest import LIMIT_SECONDS, Peer
from tracebridge.gateways.client_keys import FILE, add_key
from tracebridge.settings import read_settings
from tracebridge.spool import Spool
from tracebridge.testing.receiver import Receiver
from tracebridge.watch import watch_once

HEAD = (
    "POST /api/anthropic/v1/messages HTTP/1.1",
    "Host: localhost",
    "User-Agent: claude-cli/2.1.329 (external, cli)",
    f"x-claude-code-session-id: {SESSION}",
    f"x-claude-code-prompt-id: {TURN}",
    "anthropic-version: 2023-06-01",
)
REAL = "canary-sk-ant-of-the-upstream-0123456789"


class Gateway:
    def __init__(self, home: Path, *words: str, listen: str = "127.0.0.1:0", **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tracebridge", "gateway", "--listen", listen, *words],
            env={"TRACEBRIDGE_HOME": str(home), "HOME": str(home), "PATH": os.defpath, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().strip()
        self.port = int(line.rpartition(":")[2])
        self._clients: list[Peer] = []

    def connect(self) -> Peer:
        self._clients.append(Peer(socket.create_connection(("127.0.0.1", self.port))))
        return self._clients[-1]

    def stop(self) -> str:
        """End it in order; return what it said on stderr."""
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.communicate(timeout=LIMIT_SECONDS)[1].decode()


@pytest.fixture
def start(home) -> Iterator[Any]:
    started = []

    def start(*words: str, **options: str) -> Gateway:
        started.append(Gateway(home, *words, **options))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def agent(home, tmp_path) -> Claude:
    return Claude(home, tmp_path)


@pytest.fixture
def receiver(monkeypatch) -> Iterator[Receiver]:
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


def now() -> float:
    """Return the time as `Claude` counts it."""
    return (time.time_ns() - START) / SECOND


def ask(client: Peer, *fields: str) -> None:
    client.send("\r\n".join((*HEAD, *fields, "Content-Length: 2", "", "{}")).encode())


def stream(message_id: str) -> list[bytes]:
    """Return the chunks of an answer, its end alone in the last."""
    usage = {"input_tokens": 10, "output_tokens": 1}
    message = {"id": message_id, "type": "message", "model": "claude-opus-5-5", "usage": usage}
    events = [
        {"type": "message_start", "message": message},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
        {"type": "message_stop"},
    ]
    chunks = []
    for event in events:
        data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        chunks.append(b"%x\r\n%s\r\n" % (len(data), data))
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return [head + chunks[0], chunks[1] + chunks[2] + b"0\r\n\r\n"]


def wait_for_spool(home: Path, number: int) -> None:
    limit = time.monotonic() + LIMIT_SECONDS
    while len(Spool(home).read()) < number:
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_gateway_that_is_killed_in_the_middle_of_a_stream(start, upstream, receiver, home, agent):
    """Its client sees a cut; the next one on that port serves the next attempt; each call is told once.

    Of the call that died with it the transcript alone tells.
    """
    began = now()
    address = f"127.0.0.1:{free_port()}"
    first = start("--upstream", upstream.url, listen=address)
    client = first.connect()
    ask(client)
    begun, _ = stream("msg_killed")
    peer = upstream.accept()
    peer.read_until(b"\r\n\r\n{}")
    peer.send(begun)
    assert client.read(len(begun)) == begun
    first.process.send_signal(signal.SIGKILL)
    # The kernel closes its connections: with an error or an end, but without the answer's own.
    with contextlib.suppress(ConnectionResetError):
        assert client.read_to_end() == b""
    first.process.wait(LIMIT_SECONDS)
    assert Spool(home).depth() == 0

    second = start("--upstream", upstream.url, listen=address)
    client = second.connect()
    ask(client)
    answer = b"".join(stream("msg_next"))
    peer = upstream.accept()
    peer.read_until(b"\r\n\r\n{}")
    peer.send(answer)
    assert client.read(len(answer)) == answer
    wait_for_spool(home, 1)

    agent.hook(began, "UserPromptSubmit", prompt="go")
    agent.prompt_line(began, "go")
    agent.answer_line(now(), "msg_killed", said("half"), began=began, stop=None)
    agent.answer_line(now(), "msg_next", said("done"), began=began)
    agent.hook(now(), "Stop", last_assistant_message="done", background_tasks=[])
    assert watch_once(read_settings())
    told = sorted(
        (span.attributes["gen_ai.response.id"], span.attributes["tracebridge.llm.source"])
        for span in receiver.spans
        if "gen_ai.response.id" in span.attributes
    )
    assert told == [("msg_killed", "transcript"), ("msg_next", "gateway+transcript")]


@pytest.mark.parametrize("tag", [None, "acme"])
def test_the_name_of_a_key_is_the_customer(start, upstream, receiver, agent, tag):
    """Of the whole turn, on every span, unless tags name another."""
    began = now()
    key = add_key(read_settings().home / FILE, "alice@example.com", None)
    gateway = start("--upstream", upstream.url)
    client = gateway.connect()
    ask(client, f"x-api-key: {key}")
    peer = upstream.accept()
    peer.read_until(b"\r\n\r\n{}")
    answer = b"".join(stream(f"msg_{TURN}"))
    peer.send(answer)
    assert client.read(len(answer)) == answer
    wait_for_spool(read_settings().home, 1)
    env = {} if tag is None else {"RESPAN_CUSTOMER_ID": tag}
    agent.hook(began, "UserPromptSubmit", env, prompt="hello")
    agent.prompt_line(began, "hello")
    agent.answer_line(now(), f"msg_{TURN}", said("done"), began=began)
    agent.hook(now(), "Stop", env, last_assistant_message="done", background_tasks=[])
    assert watch_once(read_settings())
    spans = receiver.spans
    assert len(spans) >= 2
    customers = {span.attributes.get("user.id") for span in spans}
    assert customers == {tag or "alice@example.com"}


def test_no_key_is_written_anywhere(start, upstream, home):
    """Neither the client's nor the upstream's, even where the upstream repeats it."""
    key = add_key(home / FILE, "alice", None)
    gateway = start("--upstream", upstream.url, "--upstream-key", "ENV:CANARY", CANARY=REAL)
    sent = (f"x-api-key: {key}", f"Authorization: Bearer {key}", f"X-Other: {key}")
    for fields in ((sent[0],), (sent[1],), sent[:2], ("x-api-key: tbk_wrong-canary",)):
        client = gateway.connect()
        ask(client, *fields)
        if "wrong" in fields[0]:
            assert client.read_head().startswith(b"HTTP/1.1 401 ")
            continue
        peer = upstream.accept()
        seen = peer.read_until(b"\r\n\r\n{}")
        assert key.encode() not in seen
        message = f"invalid key: {REAL} (client {key})"
        error = {"type": "error", "error": {"type": "authentication_error", "message": message}}
        body = json.dumps(error).encode()
        peer.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n" % len(body), body)
        client.read_until(body)
    wait_for_spool(home, 3)
    said_on_stderr = gateway.stop()
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) >= 2
    for secret in (key, REAL, "wrong-canary"):
        assert secret not in said_on_stderr
        for path in files:
            assert secret.encode() not in path.read_bytes(), path


def test_a_command_of_its_own_needs_no_key(start, upstream, home):
    """The gateway that `tracebridge run` starts for one command is not for the team."""
    add_key(home / FILE, "alice", None)
    gateway = start("--upstream", upstream.url, "--launcher-pid", str(os.getpid()))
    client = gateway.connect()
    ask(client, "x-api-key: sk-mine")
    assert b"x-api-key: sk-mine\r\n" in upstream.accept().read_until(b"\r\n\r\n{}")

"""Clients that keep the gateway waiting, or send too much, are told so and let go; others never."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from tests.gateways.conftest import Peer
from tracebridge.gateways.limits import Limits, Standstill

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
HEAD = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n"
# Long enough for a test that is held up on a busy machine not to be taken for a client that waits.
SHORT = 1.5


def error_in(client: Peer, status: bytes) -> dict:
    assert client.read_head().startswith(b"HTTP/1.1 " + status)
    return json.loads(client.read_to_end())["error"]


def test_a_head_that_does_not_end(start_gateway, upstream):
    """However steadily it drips, it has its time, and then gets 408."""
    gateway = start_gateway(upstream.url, limits=Limits(header_seconds=SHORT))
    client = gateway.connect()
    client.send(HEAD + b"X-Slow: ")
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.02):
            try:
                client.send(b"y")
            except OSError:
                return

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        assert error_in(client, b"408 ")["type"] == "timeout_error"
    finally:
        stop.set()
        dripping.join()
    assert upstream.has_nobody_waiting()


def test_a_body_that_stops_coming(start_gateway, upstream):
    """The upstream's connection is cut, so that nobody takes what came for all of it."""
    gateway = start_gateway(upstream.url, limits=Limits(idle_seconds=SHORT))
    client = gateway.connect()
    client.send(HEAD + b"Content-Length: 10\r\n\r\n12345")
    peer = upstream.accept()
    peer.read_until(b"12345")
    assert error_in(client, b"408 ")["status"] == "DEADLINE_EXCEEDED"
    with pytest.raises((ConnectionResetError, EOFError)):
        peer.read(1)
    (call,) = gateway.wait_for_calls(1)
    assert call.error_type == "bad_request"


def test_a_connection_that_nobody_uses(start_gateway, upstream):
    """It is closed, its upstream's with it, without a word."""
    gateway = start_gateway(upstream.url, limits=Limits(idle_seconds=SHORT))
    client = gateway.connect()
    client.send(HEAD + b"Content-Length: 2\r\n\r\n{}")
    peer = upstream.accept()
    peer.read_until(b"\r\n\r\n{}")
    peer.send(OK)
    assert client.read_to_end() == OK
    assert gateway.connect().read_to_end() == b""


def test_a_model_may_think_as_long_as_it_likes(start_gateway, upstream):
    """And so may it between two events; only the client is waited for with a clock."""
    limits = Limits(idle_seconds=SHORT, header_seconds=SHORT)
    gateway = start_gateway(upstream.url, limits=limits)
    client = gateway.connect()
    client.send(HEAD + b"Content-Length: 2\r\n\r\n{}")
    peer = upstream.accept()
    peer.read_until(b"\r\n\r\n{}")
    # Others that are let go show how much time went by.
    assert gateway.connect().read_to_end() == b""
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n")
    client.read_until(b"1\r\n1\r\n")
    assert gateway.connect().read_to_end() == b""
    peer.send(b"1\r\n2\r\n0\r\n\r\n")
    assert client.read_until(b"0\r\n\r\n") == b"1\r\n2\r\n0\r\n\r\n"


def test_a_connection_in_use_is_not_idle(start_gateway, upstream):
    """One request after the other, for longer than an idle one would live."""
    gateway = start_gateway(upstream.url, limits=Limits(idle_seconds=SHORT))
    client = gateway.connect()
    idle = gateway.connect()
    ended = threading.Event()
    watching = threading.Thread(target=lambda: (idle.read_to_end(), ended.set()))
    watching.start()
    peer = None
    while not ended.is_set():
        client.send(HEAD + b"Content-Length: 2\r\n\r\n{}")
        peer = peer or upstream.accept()
        peer.read_until(b"\r\n\r\n{}")
        peer.send(OK)
        assert client.read(len(OK)) == OK
    watching.join()


def test_standstill_counts_from_when_it_was_first_seen():
    """Any change begins it anew."""
    standstill = Standstill()
    assert [
        standstill.seconds(at, now) for at, now in (("a", 1), ("a", 3), ("b", 4), ("a", 9))
    ] == [
        0,
        2,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: 101\r\n\r\n", b""),
        (b"Content-Length: 999999999999\r\n\r\n", b""),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"65\r\n" + bytes(101) + b"\r\n0\r\n\r\n"),
    ],
)
def test_a_request_that_is_too_large(start_gateway, upstream, framing, body):
    """Where that can be seen at once, not a byte of it goes upstream."""
    gateway = start_gateway(upstream.url, limits=Limits(request_bytes=100))
    client = gateway.connect()
    client.send(HEAD + framing + body)
    assert error_in(client, b"413 ")["type"] == "request_too_large"
    assert upstream.has_nobody_waiting()


def test_a_request_that_becomes_too_large(start_gateway, upstream):
    """Its upstream sees that it was cut; one at the limit passes."""
    gateway = start_gateway(upstream.url, limits=Limits(request_bytes=100))
    client = gateway.connect()
    client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\n" + bytes(100) + b"\r\n")
    peer = upstream.accept()
    peer.read_until(bytes(100))
    client.send(b"1\r\nx\r\n")
    error_in(client, b"413 ")
    with pytest.raises((ConnectionResetError, EOFError)):
        peer.read(3)
    client = gateway.connect()
    client.send(HEAD + b"Content-Length: 100\r\n\r\n" + bytes(100))
    peer = upstream.accept()
    peer.read_until(bytes(100))
    peer.send(OK)
    assert client.read(len(OK)) == OK


def test_an_upstream_that_does_not_answer_the_phone(start_gateway):
    """After its time the client gets a 502 that says so."""
    # A listener whose queue is full.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = []
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(address)
        gateway = start_gateway(
            f"http://127.0.0.1:{address[1]}", limits=Limits(connect_seconds=SHORT)
        )
        client = gateway.connect()
        client.send(HEAD + b"Content-Length: 2\r\n\r\n{}")
        assert "no answer in 1.5 s" in error_in(client, b"502 ")["message"]
        for each in waiting:
            each.close()

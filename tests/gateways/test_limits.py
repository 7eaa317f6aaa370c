"""What a hostile or broken end can make the gateway keep has a limit, and the bytes pass."""

from __future__ import annotations

import json
import resource
import time
import zlib

import pytest

from tests.gateways.conftest import LIMIT_SECONDS
from tracebridge.gateways import decompress
from tracebridge.gateways.decompress import OUTPUT_LIMIT, CannotDecompressError, Decompressor
from tracebridge.gateways.framing import HEAD_LIMIT
from tracebridge.gateways.limits import Limits

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
MESSAGES = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"


def memory_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])
def test_one_connection_too_many_is_told_so(start_gateway, upstream, loop_name):
    """By a status on which agents come again; those that are there go on, and room is used again."""
    gateway = start_gateway(
        upstream.url, limits=Limits(connections=2), use_uvloop=loop_name == "uvloop"
    )
    clients = [gateway.connect() for _ in range(2)]
    for client in clients:
        client.send(MESSAGES)
        upstream.accept().read_until(b"{}")
    other = gateway.connect()
    other.send(MESSAGES)
    answer = other.read_to_end()
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nretry-after: 1\r\n" in answer
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "overloaded_error"
    assert "2 connections" in error["message"]
    other.close()
    upstream.peers[0].send(ANSWER)
    assert clients[0].read(len(ANSWER)) == ANSWER
    clients[0].close()
    limit = time.monotonic() + LIMIT_SECONDS
    while True:
        client = gateway.connect()
        client.send(b"GET /tracebridge/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if b" 200 OK" in client.read_to_end():
            break
        client.close()
        assert time.monotonic() < limit
    assert upstream.has_nobody_waiting()


def test_a_response_head_without_end_is_relayed_and_not_kept(gateway, upstream):
    """The client gets every byte of it; of the copy no more than the limit is kept."""
    client = gateway.connect()
    client.send(MESSAGES)
    peer = upstream.accept()
    peer.read_until(b"{}")
    field = b"x-pad: " + b"y" * 1000 + b"\r\n"
    sent = b"HTTP/1.1 200 OK\r\n" + field * (4 * HEAD_LIMIT // len(field))
    before = memory_kb()
    for start in range(0, len(sent), 65536):
        peer.send(sent[start : start + 65536])
    assert client.read(len(sent)) == sent
    peer.send(b"Content-Length: 0\r\n\r\n")
    peer.close()
    assert client.read_to_end() == b"Content-Length: 0\r\n\r\n"
    (call,) = gateway.wait_for_calls(1)
    assert sum(map(len, call.response_headers.values())) < HEAD_LIMIT
    assert memory_kb() - before < 50_000


def test_a_chunked_body_of_tiny_chunks_is_not_kept_twice(gateway, upstream):
    """A million chunks of one byte pass; what is copied of them has its limit."""
    client = gateway.connect()
    client.send(MESSAGES)
    peer = upstream.accept()
    peer.read_until(b"{}")
    head = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
    )
    body = b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n"
    peer.send(head)
    assert client.read(len(head)) == head
    for start in range(0, len(body), 60_000):
        piece = body[start : start + 60_000]
        peer.send(piece)
        assert client.read(len(piece)) == piece
    (call,) = gateway.wait_for_calls(1)
    assert call.response_bytes == 200_000


class Bomb:
    """Makes of each four bytes as much as zstd can."""

    def decompress(self, data: bytes) -> bytes:
        return b"\0" * (len(data) // 4 * 128 * 1024)


def test_a_bomb_is_left_at_the_limit(monkeypatch):
    """A decompressor that knows no limit is given little by little, and stopped in time."""
    module = type(
        "module", (), {"ZstdDecompressor": lambda: type("d", (), {"decompressobj": Bomb})}
    )
    known = {"zstandard": module}
    monkeypatch.setattr(decompress, "_optional_module", known.get)
    before = memory_kb()
    with pytest.raises(CannotDecompressError, match="more than"):
        Decompressor("zstd").feed(b"\x28" * 65536)
    assert memory_kb() - before < 3 * OUTPUT_LIMIT // 1024


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip"])
def test_a_bomb_of_zeros_is_left_at_the_limit(encoding):
    """So is one that the standard library can make."""
    wbits = 31 if "gzip" in encoding else 15
    packer = zlib.compressobj(9, wbits=wbits)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush()
    if "," in encoding:
        outer = zlib.compressobj(9, wbits=31)
        bomb = outer.compress(bomb) + outer.flush()
    with pytest.raises(CannotDecompressError, match="more than"):
        Decompressor(encoding).feed(bomb)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "lie",
    [
        b"Content-Length: %d\r\nContent-Length: 0\r\n\r\n" % len(SMUGGLED),
        b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".replace(b"\r\n\r\n0", b"\n\r\n0"),
        b"Content-Length: 0x0\r\n\r\n",
        b"Content-Length : 0\r\n\r\n",
        b"Content-Length: 00000000000000000000\r\n\r\n",
    ],
)
def test_a_request_cannot_be_smuggled(gateway, upstream, lie):
    """Of a request whose end two servers could see in two places, not one byte goes upstream."""
    client = gateway.connect()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n" + lie + SMUGGLED)
    assert client.read_head().startswith(b"HTTP/1.1 400 ")
    assert upstream.has_nobody_waiting()


@pytest.mark.parametrize("path", [b"/v1/messages", b"/v1/traces", b"/health", b"/metrics", b"/"])
@pytest.mark.parametrize(
    "fields",
    [
        b"Host: evil.example\r\n",
        b"Host: 127.0.0.1.evil.example\r\n",
        b"Host: localhost@evil.example\r\n",
        b"Host: localhost\r\nOrigin: https://evil.example\r\n",
        b"Host: localhost\r\nOrigin: null\r\n",
    ],
)
def test_every_face_is_shut_to_web_pages(gateway, upstream, path, fields):
    """DNS rebinding and pages of other origins get 403 wherever they knock."""
    client = gateway.connect()
    client.send(b"POST %s HTTP/1.1\r\n%sContent-Length: 0\r\n\r\n" % (path, fields))
    assert client.read_head().startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 "))
    assert upstream.has_nobody_waiting()

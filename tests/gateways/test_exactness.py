"""Every byte passes unchanged, but for path prefix, Host and what `outward` adds."""

import gzip
import random
import threading
from hashlib import sha256

import pytest

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@pytest.fixture
def gateway(start_gateway, upstream, loop_name):
    return start_gateway(upstream.url, use_uvloop=loop_name == "uvloop")


def exchange(gateway, upstream, request: bytes, response: bytes) -> tuple[bytes, bytes]:
    """Return what the upstream got and what the client got."""
    client = gateway.connect()
    client.send(request)
    peer = upstream.accept()
    got = peer.read(len(request))
    peer.send(response)
    return got, client.read(len(response))


def test_heads_pass_unchanged(gateway, upstream):
    """Case, order, duplicates, empty and latin-1 values survive in both directions."""
    host = upstream.url.removeprefix("http://").encode()
    odd = (
        b"X-Dup: a\r\nx-dup: b\r\nX-DUP:c  \r\nEmpty:\r\nEmpty2: \r\n"
        b"Latin: caf\xe9 \xff\r\naccept-ENCODING: gzip\r\n"
    )
    start = b"GET /api/x%2Fy/~+?q=%20&r HTTP/1.1\r\n" + odd + b"HOST:  "
    response = b"HTTP/1.1 200 Fine Indeed\r\n" + odd + b"Content-Length: 2\r\n\r\nhi"
    client = gateway.connect()
    client.send(start, b"LocalHost:1", b"\r\nZ: z\r\n\r\n")
    peer = upstream.accept()
    assert peer.read_head() == start + host + b"\r\nZ: z\r\n\r\n"
    peer.send(response)
    assert client.read(len(response)) == response


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n",
        b"HTTP/1.1 529 \r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 529\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"
        b"1\r\na\r\n2;ext=1\r\nbc\r\n003\r\ndef\r\n0\r\nX-T: t\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 25\r\n\r\n"
        + gzip.compress(b"hello", mtime=0),
    ],
)
def test_connection_stays_usable(gateway, upstream, response):
    """Each shape of a response passes, and the next request on the connection is answered."""
    client = gateway.connect()
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    client.send(request)
    peer = upstream.accept()
    peer.read_head()
    peer.send(response)
    assert client.read(len(response)) == response
    client.send(request)
    peer.read_head()
    peer.send(OK)
    assert client.read(len(OK)) == OK


def test_head_request(gateway, upstream):
    """The answer to HEAD keeps its Content-Length and has no body; the next one is answered."""
    client = gateway.connect()
    client.send(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    peer = upstream.accept()
    peer.read_head()
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n"
    peer.send(response)
    assert client.read(len(response)) == response
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    peer.read_head()
    peer.send(OK)
    assert client.read(len(OK)) == OK


@pytest.mark.parametrize("chunked", [False, True])
def test_five_megabytes(gateway, upstream, chunked):
    """A body of 5 MB arrives byte by byte the same, both ways, chunk sizes included."""
    body = random.Random(1).randbytes(5_000_000)
    head = b"Content-Length: 5000000\r\n\r\n"
    if chunked:
        head = b"Transfer-Encoding: chunked\r\n\r\n"
        sizes = [1, 2, 3, 1000, 70000] * 70
        parts, start = [], 0
        for size in sizes:
            parts.append(b"%x\r\n%s\r\n" % (size, body[start : start + size]))
            start += size
        body = b"".join(parts) + b"0\r\nX-Trailer: t\r\n\r\n"
    client = gateway.connect()
    sender = threading.Thread(
        target=client.send,
        args=(b"POST /api/anthropic/v1/messages HTTP/1.1\r\nHost: localhost\r\n" + head, body),
    )
    sender.start()
    peer = upstream.accept()
    peer.read_head()
    assert sha256(peer.read(len(body))).digest() == sha256(body).digest()
    sender.join()
    answer = b"HTTP/1.1 200 OK\r\n" + head + body
    sender = threading.Thread(target=peer.send, args=(answer,))
    sender.start()
    assert sha256(client.read(len(answer))).digest() == sha256(answer).digest()
    sender.join()
    [call] = gateway.wait_for_calls(1)
    assert call.response_bytes == (5_000_000 if not chunked else sum(sizes))
    assert call.request_bytes == call.response_bytes


def test_large_head(gateway, upstream):
    """A head of 64 kB passes both ways."""
    fields = b"".join(b"X-%d: %s\r\n" % (number, b"v" * 1000) for number in range(64))
    got, answer = exchange(
        gateway,
        upstream,
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s\r\n" % (upstream.port, fields),
        b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 0\r\n\r\n",
    )
    assert fields in got
    assert fields in answer


def test_head_in_single_bytes(gateway, upstream):
    """A request that arrives byte by byte is the same request."""
    request = (
        b"POST /x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;a=b\r\nabc\r\n0\r\nT: t\r\n\r\n" % upstream.port
    )
    client = gateway.connect()
    for number in range(len(request)):
        client.send(request[number : number + 1])
    peer = upstream.accept()
    assert peer.read(len(request)) == request


def test_continue(gateway, upstream):
    """The upstream's 100 reaches a client that waits for it before it sends its body."""
    client = gateway.connect()
    client.send(b"POST /x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n")
    client.send(b"Content-Length: 3\r\n\r\n")
    peer = upstream.accept()
    peer.read_head()
    peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert client.read_head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"abc")
    assert peer.read(3) == b"abc"
    peer.send(OK)
    assert client.read(len(OK)) == OK


def test_upgrade(gateway, upstream):
    """After a 101 both directions are opaque, and the end of one is told to the other."""
    client = gateway.connect()
    client.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n")
    client.send(b"Connection: Upgrade\r\n\r\n\x81\x00early")
    peer = upstream.accept()
    peer.read_head()
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
    switch += b"Connection: Upgrade\r\n\r\n"
    peer.send(switch, b"\x82\x7e\xff\xff")
    assert client.read(len(switch) + 4) == switch + b"\x82\x7e\xff\xff"
    assert peer.read(7) == b"\x81\x00early"
    client.send(b"\x00\xff")
    assert peer.read(2) == b"\x00\xff"
    peer.close()
    assert client.read_to_end() == b""


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\x16\x03\x01garbage without any head",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nnot a chunk",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 2000 OK\nX\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded\r\n\r\nx",
    ],
)
def test_garbage_passes(gateway, upstream, garbage):
    """What the parser of the copy cannot follow is relayed all the same, and marked."""
    client = gateway.connect()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    peer = upstream.accept()
    peer.read_head()
    peer.send(garbage)
    peer.close()
    assert client.read_to_end() == garbage
    [call] = gateway.wait_for_calls(1)
    assert call.partial


def test_next_request_after_garbage(gateway, upstream):
    """A client that could follow what our parser could not goes on with its next request."""
    client = gateway.connect()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    peer = upstream.accept()
    peer.read_head()
    odd = b"HTTP/1.1 200 OK\r\nbad name : x\r\nContent-Length: 2\r\n\r\nhi"
    peer.send(odd)
    assert client.read(len(odd)) == odd
    client.send(b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n")
    peer.read(2)
    assert peer.read_head().startswith(b"GET /next ")


def test_pipelined_requests(gateway, upstream):
    """Requests sent at once, the first one chunked, are each answered, in order."""
    host = b"Host: 127.0.0.1:%d\r\n" % upstream.port
    first = (
        b"POST /1 HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    )
    second = b"POST /2 HTTP/1.1\r\n" + host + b"Content-Length: 1\r\n\r\nb"
    third = b"GET /3 HTTP/1.1\r\n" + host + b"\r\n"
    client = gateway.connect()
    client.send(first, second, third)
    peer = upstream.accept()
    for number, request in enumerate((first, second, third)):
        assert peer.read(len(request)) == request
        assert peer._buffer == b""
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number
        peer.send(answer)
        assert client.read(len(answer)) == answer


def test_requests_to_two_upstreams_on_one_connection(start_gateway, upstream):
    """Each request of a connection goes to its own family's upstream."""
    gateway = start_gateway(
        f"anthropic={upstream.url}", f"openai=http://localhost:{upstream.port}/v1"
    )
    client = gateway.connect()
    for path, target in ((b"/api/anthropic/x", b"/x"), (b"/api/y", b"/v1/y"), (b"/z", b"/z")):
        client.send(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
        peer = upstream.accept()
        assert peer.read_head().startswith(b"GET %s HTTP/1.1\r\n" % target)
        peer.send(OK)
        assert client.read(len(OK)) == OK


def test_early_answer(gateway, upstream):
    """An answer that comes before the request is whole is relayed at once."""
    client = gateway.connect()
    client.send(b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab")
    peer = upstream.accept()
    peer.read_head()
    answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"
    peer.send(answer)
    assert client.read(len(answer)) == answer
    client.send(b"cd", b"GET /y HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert peer.read(4) == b"abcd"
    assert peer.read_head().startswith(b"GET /y ")


SESSION = b"X-Claude-Code-Session-Id: 2e23f0a0-0000-4000-8000-000000000001\r\n"
TURN = b"x-claude-code-prompt-id: 5d00821f-0000-4000-8000-000000000002\r\n"
BAGGAGE = b"baggage: session.id=2e23f0a0-0000-4000-8000-000000000001\r\n"


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        (
            SESSION + TURN,
            {},
            b"traceparent: 00-d7c487cd7106e0dd92e7bece2e8dd15f-d4f74fd32f47b44c-01\r\n" + BAGGAGE,
        ),
        (SESSION, {}, BAGGAGE),
        (TURN, {}, b""),
        (SESSION + TURN, {"send_traceparent": False}, b""),
        (SESSION + TURN + b"TraceParent: mine\r\n", {}, BAGGAGE),
    ],
)
def test_traceparent(start_gateway, upstream, fields, options, expected):
    """A request that names its turn gets the turn's traceparent, unless it has one."""
    client = start_gateway(upstream.url, **options).connect()
    request = b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s" % (upstream.port, fields)
    client.send(request, b"\r\n")
    assert upstream.accept().read_head() == request + expected + b"\r\n"

"""What the gateway's records say of the calls that passed."""

import gc
import gzip
import itertools
import json
import threading
import time
import zlib

import pytest

from tests.gateways.conftest import LIMIT_SECONDS
from tracebridge.gateways.framing import ResponseReader
from tracebridge.gateways.recorder import Recording
from tracebridge.model import CallIdentity, Usage

EVENTS = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","model":"m-1",'
    b'"usage":{"input_tokens":1,"cache_read_input_tokens":2,"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","content_block":'
    b'{"type":"tool_use","id":"toolu_2","input":{}}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"tool_use"},'
    b'"usage":{"output_tokens":9}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
)
BODY = (
    b'{"model":"m","stream":true,"messages":[{"role":"user","content":'
    b'[{"type":"tool_result","tool_use_id":"toolu_1"}]}]}'
)
AGENT = (
    b"User-Agent: claude-cli/2.1.329\r\nX-Api-Key: sk-secret-1\r\n"
    b"Authorization: Bearer sk-secret-2\r\nCookie: c=sk-secret-3\r\n"
    b"X-Claude-Code-Session-Id: s1\r\nx-claude-code-prompt-id: p1\r\n"
    b"x-claude-code-request-class: main\r\ntracestate: a=b\r\n"
)


def post(
    gateway,
    upstream,
    response: bytes,
    *,
    body: bytes = BODY,
    fields: bytes = AGENT,
    path="/v1/messages",
):
    """Send one request on a new connection and return its record."""
    before = len(gateway.calls)
    client = gateway.connect()
    client.send(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode(),
        fields,
        b"Content-Length: %d\r\n\r\n" % len(body),
        body,
    )
    peer = upstream.accept()
    peer.read_head()
    peer.read(len(body))
    peer.send(response)
    peer.close()
    assert client.read_to_end() == response
    return gateway.wait_for_calls(before + 1)[-1]


def sse(body: bytes, fields: bytes = b"") -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        b"request-id: req_1\r\nSet-Cookie: s=1\r\n%sContent-Length: %d\r\n\r\n%s"
        % (fields, len(body), body)
    )


def document(status: int, body: bytes, fields: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
    return head % (status, fields, len(body)) + body


def test_streamed_call(gateway, upstream):
    """The record of a streamed call holds what request and response say, and no key."""
    call = post(gateway, upstream, sse(b"".join(EVENTS)), path="/api/anthropic/v1/messages?k=v")
    assert call.gateway == "tracebridge"
    assert (call.method, call.path) == ("POST", "/api/anthropic/v1/messages")
    assert call.identity == CallIdentity(
        agent="claude-code", session_id="s1", turn_key="p1", request_class="main"
    )
    assert (call.dialect, call.provider) == ("anthropic.messages", "anthropic")
    assert (call.server_address, call.server_port) == ("127.0.0.1", upstream.port)
    assert (call.requested_model, call.model) == ("m", "m-1")
    assert (call.streaming, call.status_code, call.error_type) == (True, 200, None)
    assert (call.response_id, call.request_id) == ("msg_1", "req_1")
    assert call.stop_reason == "tool_use"
    assert call.usage == Usage(input_tokens=3, output_tokens=9, cache_read_tokens=2)
    assert (call.tool_call_ids, call.tool_result_ids) == (("toolu_2",), ("toolu_1",))
    assert (call.attempt, call.partial, call.traceparent) == (1, False, None)
    assert call.request_bytes == len(BODY)
    assert call.response_bytes == len(b"".join(EVENTS))
    assert call.request_headers == {
        "user-agent": "claude-cli/2.1.329",
        "x-claude-code-session-id": "s1",
        "x-claude-code-prompt-id": "p1",
        "x-claude-code-request-class": "main",
        "tracestate": "a=b",
    }
    assert call.response_headers == {
        "content-type": "text/event-stream; charset=utf-8",
        "request-id": "req_1",
    }
    assert "sk-secret" not in repr(call)


def test_request_in_chunks(gateway, upstream):
    """A request that comes in chunks of all sizes is understood as one."""
    body = json.dumps({"model": "m", "system": "s" * 200_000, "stream": True}).encode()
    sizes = itertools.cycle((1, 5000, 2, 3, 70_000, 4096))
    chunks = []
    rest = body
    while rest:
        size = next(sizes)
        chunks.append(b"%x\r\n%s\r\n" % (len(rest[:size]), rest[:size]))
        rest = rest[size:]
    client = gateway.connect()
    client.send(
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for chunk in chunks:
        client.send(chunk)
    client.send(b"0\r\n\r\n")
    peer = upstream.accept()
    peer.read_head()
    assert peer.read_until(b"\r\n0\r\n\r\n") == b"".join(chunks) + b"0\r\n\r\n"
    peer.send(document(200, b"{}"))
    [call] = gateway.wait_for_calls(1)
    assert (call.requested_model, call.streaming, call.partial) == ("m", True, False)
    assert call.request_bytes == len(body)


def test_times(gateway, upstream):
    """First byte, first token and end are when they came, in order."""
    client = gateway.connect()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    peer = upstream.accept()
    peer.read_until(b"{}")
    peer.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    client.read_head()
    for event in EVENTS:
        # Each is out before the next is written, so each has a time of its own.
        peer.send(b"%x\r\n%s\r\n" % (len(event), event))
        client.read_until(event)
    peer.send(b"0\r\n\r\n")
    [call] = gateway.wait_for_calls(1)
    assert call.first_byte_ns is not None
    assert call.first_token_ns is not None
    assert call.start_ns < call.first_byte_ns < call.first_token_ns < call.end_ns


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        (b"gzip", gzip.compress),
        (b"deflate", zlib.compress),
        (b"deflate", lambda data: zlib.compress(data)[2:-4]),
        (b"gzip, identity", gzip.compress),
        (b"deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
    ],
)
def test_compressed(gateway, upstream, encoding, compress):
    """Compressed bodies pass as they are, and the record says what is in them."""
    field = b"Content-Encoding: " + encoding + b"\r\n"
    call = post(
        gateway,
        upstream,
        sse(compress(b"".join(EVENTS)), field),
        body=compress(BODY),
        fields=AGENT + field,
    )
    assert (call.response_id, call.requested_model, call.partial) == ("msg_1", "m", False)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"gzip", b"not gzip"),
        (b"gzip", gzip.compress(b"".join(EVENTS), mtime=0)[:30]),
        (b"rot13", b"".join(EVENTS)),
        (b"gzip", gzip.compress(bytes(100_000_000), mtime=0)),
    ],
    # Workers that collect the same tests must name them alike.
    ids=["not gzip", "cut", "unknown", "bomb"],
)
def test_cannot_decompress(gateway, upstream, encoding, body):
    """A body that cannot be decompressed, or only to something absurd, is relayed and marked."""
    call = post(gateway, upstream, sse(body, b"Content-Encoding: " + encoding + b"\r\n"))
    assert call.status_code == 200
    assert call.partial or call.error_type == "stream_cut"
    assert call.response_id is None


def test_http_error(gateway, upstream):
    """An HTTP error has its status as type and the vendor's words as message, keys masked."""
    error = {
        "type": "error",
        "error": {
            "type": "authentication_error",
            "message": "bad key sk-secret-1 or sk-secret-2 " + "x" * 1000,
        },
    }
    call = post(gateway, upstream, document(401, json.dumps(error).encode(), b"retry-after: 3\r\n"))
    assert (call.status_code, call.error_type) == (401, "401")
    assert call.error_message is not None
    assert call.error_message.startswith("bad key [redacted] or [redacted] xxx")
    assert len(call.error_message) == 500
    assert call.response_headers["retry-after"] == "3"
    assert call.usage is None


def test_compressed_http_error(gateway, upstream):
    """The message of a compressed error is readable."""
    body = gzip.compress(b'{"error":{"message":"slow down"}}')
    call = post(gateway, upstream, document(429, body, b"Content-Encoding: gzip\r\n"))
    assert (call.error_type, call.error_message) == ("429", "slow down")


def test_error_in_the_stream(gateway, upstream):
    """An error in a stream has its own type; the status stays what it was."""
    error = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":'
    call = post(gateway, upstream, sse(EVENTS[0] + error + b'"sk-secret-1 is busy"}}\n\n'))
    assert (call.status_code, call.error_type) == (200, "overloaded_error")
    assert call.error_message == "[redacted] is busy"


def test_stream_without_its_end(gateway, upstream):
    """A stream that ends cleanly for HTTP but without message_stop was cut."""
    call = post(gateway, upstream, sse(EVENTS[0] + EVENTS[1]))
    assert (call.error_type, call.response_id) == ("stream_cut", "msg_1")


def test_client_that_leaves_after_the_end(gateway, upstream):
    """A client that closes once it has message_stop did not abort."""
    client = gateway.connect()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    peer = upstream.accept()
    peer.read_until(b"{}")
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", *EVENTS)
    client.read_until(b"message_stop")
    client.close()
    peer.close()
    [call] = gateway.wait_for_calls(1)
    assert call.error_type is None


def test_attempts_are_counted(gateway, upstream):
    """The same messages of the same turn again are the next attempt; other turns count alone."""
    error = document(529, b'{"error":{"message":"Overloaded"}}')
    other_turn = AGENT.replace(b"p1", b"p2")
    attempts = [
        post(gateway, upstream, error).attempt,
        post(gateway, upstream, error).attempt,
        post(gateway, upstream, error, fields=other_turn).attempt,
        post(gateway, upstream, error, body=BODY.replace(b"true", b"false")).attempt,
        post(gateway, upstream, error, body=BODY.replace(b"toolu_1", b"toolu_9")).attempt,
        post(gateway, upstream, error, fields=b"").attempt,
    ]
    assert attempts == [1, 2, 1, 3, 1, None]


def test_of_requests_without_a_session_the_first_is_known(gateway, upstream):
    """Equal ones may be of strangers, so that a second one is not called a second attempt."""
    nameless = b"User-Agent: GeminiCLI/0.61.0\r\n"
    answer = document(200, b"{}")
    attempts = [post(gateway, upstream, answer, fields=nameless).attempt for _ in range(2)]
    assert attempts == [1, None]


def test_identity_from_the_body(gateway, upstream):
    """A caller that only its body names is known all the same."""
    body = {"model": "m", "messages": [], "metadata": {"user_id": '{"session_id":"s9"}'}}
    call = post(gateway, upstream, document(200, b"{}"), body=json.dumps(body).encode(), fields=b"")
    assert call.identity == CallIdentity(agent="claude-code", session_id="s9")


def test_traceparent_of_the_client(gateway, upstream):
    """The client's own traceparent is recorded."""
    call = post(gateway, upstream, sse(b""), fields=b"Traceparent: 00-x-y-01\r\n")
    assert call.traceparent == "00-x-y-01"


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages/count_tokens", "anthropic.count_tokens"),
        ("/api/whatever", "unknown"),
    ],
)
def test_other_posts(gateway, upstream, path, dialect):
    """Counting tokens uses none; a POST of an unknown kind is recorded as unknown."""
    call = post(gateway, upstream, document(200, b'{"input_tokens":5}'), path=path)
    assert (call.dialect, call.usage) == (dialect, None)
    assert call.identity is not None
    assert not call.partial


def test_gets_are_not_recorded(gateway, upstream):
    """GET and HEAD leave no record."""
    client = gateway.connect()
    peer = None
    for method in (b"GET", b"HEAD"):
        client.send(method + b" /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        peer = peer or upstream.accept()
        peer.read_head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        client.read_head()
    assert post(gateway, upstream, sse(b"")).method == "POST"
    assert len(gateway.calls) == 1


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"[1]", b'{"messages":3,"model":[]}', b"{" * 99]
)
def test_strange_requests(gateway, upstream, body):
    """A request body that is not understood is relayed and recorded."""
    call = post(gateway, upstream, sse(b"".join(EVENTS)), body=body)
    assert (call.response_id, call.requested_model) == ("msg_1", None)


def test_large_bodies(gateway, upstream):
    """What exceeds the copy's cap is relayed whole; the record is marked and counts all bytes."""
    size = 9_000_000
    client = gateway.connect()
    head = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size
    sender = threading.Thread(target=client.send, args=(head, bytes(size)))
    sender.start()
    peer = upstream.accept()
    peer.read_head()
    assert peer.read(size) == bytes(size)
    sender.join()
    sender = threading.Thread(target=peer.send, args=(document(200, bytes(size)),))
    sender.start()
    client.read_head()
    assert client.read(size) == bytes(size)
    sender.join()
    [call] = gateway.wait_for_calls(1)
    assert call.partial
    assert (call.request_bytes, call.response_bytes) == (size, size)


def test_long_stream(gateway, upstream):
    """The end of a stream longer than the cap is still understood."""
    filler = EVENTS[1] * 150_000
    client = gateway.connect()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    peer = upstream.accept()
    peer.read_until(b"{}")
    response = sse(EVENTS[0] + filler + EVENTS[2])
    sender = threading.Thread(target=peer.send, args=(response,))
    sender.start()
    assert client.read(len(response)) == response
    sender.join()
    [call] = gateway.wait_for_calls(1)
    assert (call.stop_reason, call.error_type, call.partial) == ("tool_use", None, False)
    assert call.usage == Usage(input_tokens=3, output_tokens=9, cache_read_tokens=2)


def test_recording_that_fails(gateway, upstream, capfd):
    """Where recording fails the bytes still pass, it is said once, and later calls are recorded."""
    failed = set()

    def fail_twice(call):
        if len(failed | {call.call_id}) <= 2:
            failed.add(call.call_id)
            raise OSError(28, "No space left on device")
        gateway.record(call)

    gateway.on_record = fail_twice
    for _ in range(3):
        send_and_read(gateway, upstream)
    [call] = gateway.wait_for_calls(1)
    assert call.call_id not in failed
    assert len(failed) == 2
    assert capfd.readouterr().err.count("No space left on device") == 1


def test_recording_that_hangs(gateway, upstream):
    """While recording hangs, calls pass; once it goes on, all are recorded, and together."""
    release = threading.Event()
    record = gateway.record

    def hang(call):
        release.wait(LIMIT_SECONDS)
        record(call)

    gateway.on_record = hang
    for _ in range(30):
        send_and_read(gateway, upstream)
    assert gateway.calls == []
    release.set()
    gateway.wait_for_calls(30)
    assert len(gateway.batches) < 10


def test_what_was_recorded_is_let_go(gateway, upstream):
    """Copies of megabytes do not lie about until garbage is collected."""
    gc.collect()
    gc.disable()
    try:
        post(gateway, upstream, sse(b"".join(EVENTS)))
        limit = time.monotonic() + LIMIT_SECONDS
        while any(isinstance(each, (Recording, ResponseReader)) for each in gc.get_objects()):
            assert time.monotonic() < limit
            time.sleep(0.01)
    finally:
        gc.enable()


def send_and_read(gateway, upstream):
    client = gateway.connect()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    peer = upstream.accept()
    peer.read_until(b"{}")
    response = sse(b"".join(EVENTS))
    peer.send(response)
    assert client.read(len(response)) == response

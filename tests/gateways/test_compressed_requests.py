"""A request whose body is compressed, as Codex sends it to some: passed on as it is, and read."""

from __future__ import annotations

import gzip
import json

import pytest
from backports import zstd

from tracebridge.model import Usage

BODY = {
    "model": "gpt-5.5",
    "stream": False,
    "input": [
        {"type": "message", "role": "user", "content": "hello"},
        {"type": "function_call", "call_id": "call_1", "name": "x", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "y"},
    ],
    "client_metadata": {
        "x-codex-turn-metadata": json.dumps({"session_id": "s", "thread_id": "s", "turn_id": "t"})
    },
}
ANSWER = {
    "id": "resp_1",
    "model": "gpt-5.5",
    "status": "completed",
    "output": [],
    "usage": {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
    },
}
CODINGS = {
    "zstd": zstd.compress,
    "gzip": gzip.compress,
    "gzip, zstd": lambda data: zstd.compress(gzip.compress(data)),
}


@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_request(coding, gateway, upstream):
    """The upstream gets the very bytes; the record has model, caller and tool results."""
    sent = CODINGS[coding](json.dumps(BODY).encode())
    client = gateway.connect()
    client.send(
        b"POST /api/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n",
        f"Content-Encoding: {coding}\r\nContent-Length: {len(sent)}\r\n\r\n".encode(),
        sent,
    )
    peer = upstream.accept()
    assert f"Content-Encoding: {coding}".encode() in peer.read_head()
    assert peer.read(len(sent)) == sent
    answer = json.dumps(ANSWER).encode()
    peer.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",
        f"Content-Length: {len(answer)}\r\n\r\n".encode(),
        answer,
    )
    client.read_head()
    assert client.read(len(answer)) == answer
    (call,) = gateway.wait_for_calls(1)
    assert (call.dialect, call.requested_model) == ("openai.responses", "gpt-5.5")
    assert (call.identity.session_id, call.identity.turn_key) == ("s", "t")
    assert call.tool_result_ids == ("call_1",)
    assert call.usage == Usage(
        input_tokens=10, output_tokens=5, cache_read_tokens=4, reasoning_tokens=3
    )
    assert not call.partial


def test_a_body_in_an_unknown_coding_is_passed_on(gateway, upstream):
    """Nothing is read of it, and the record says so."""
    client = gateway.connect()
    client.send(
        b"POST /api/responses HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Encoding: rot13\r\nContent-Length: 3\r\n\r\nabc"
    )
    peer = upstream.accept()
    peer.read_head()
    assert peer.read(3) == b"abc"
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    client.read_head()
    (call,) = gateway.wait_for_calls(1)
    assert (call.dialect, call.requested_model, call.partial) == ("openai.responses", None, True)

"""An alias in a request becomes the model that it stands for, and nothing else changes."""

from __future__ import annotations

import gzip
import json
import threading
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateways.conftest import RunningGateway
from tracebridge import semconv
from tracebridge.gateways.aliases import (
    HELD_LIMIT,
    ModelSearch,
    Renamed,
    rename_in_target,
    splice_chunks,
)
from tracebridge.gateways.framing import ChunkedBody
from tracebridge.linker import Orphan
from tracebridge.spans import render_orphan

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"id":"msg_1"}'
MODEL = "claude-haiku-4-5"
ALIASES = {"fast": MODEL, "Pläne": "claude-opus-5"}
CONFIG = f"""
[[gateway.requests]]
aliases = {{ fast = "{MODEL}", "Pläne" = "claude-opus-5" }}
"""


@pytest.fixture
def gateway(start_gateway, upstream, tmp_path) -> RunningGateway:
    (tmp_path / "config.toml").write_text(CONFIG)
    return start_gateway(upstream.url)


def head(*fields: str, path: str = "/v1/messages") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", *fields, "", "")
    return "\r\n".join(lines).encode("latin-1")


def with_length(body: bytes, *fields: str, path: str = "/v1/messages") -> bytes:
    return head("X-Before: 1", f"content-LENGTH:{len(body)}", *fields, path=path) + body


def renamed(body: bytes) -> bytes:
    """Return the request as it arrives with another body: its length is written anew."""
    return with_length(body).replace(b"content-LENGTH:", b"content-LENGTH: ")


def chunked(body: bytes, *sizes: int) -> bytes:
    """Return the body in chunks of these sizes, again and again, with all that chunks can have."""
    parts, at, number = [], 0, 0
    while at < len(body):
        size = min(sizes[number % len(sizes)], len(body) - at)
        parts.append(b"%04X;n=%d\r\n%s\r\n" % (size, number, body[at : at + size]))
        at, number = at + size, number + 1
    return b"".join(parts) + b"0\r\nX-Trailer: t\r\n\r\n"


def passed_on(gateway: RunningGateway, upstream, sent: bytes, expected: bytes) -> None:
    """Send a request and hold what arrives against what is expected, by length and hash."""
    client = gateway.connect()
    sender = threading.Thread(target=client.send, args=(sent,))
    sender.start()
    peer = upstream.accept()
    expected = expected.replace(b"localhost", upstream.url.removeprefix("http://").encode())
    seen = peer.read(len(expected))
    sender.join()
    assert sha256(seen).digest() == sha256(expected).digest(), (seen[:500], expected[:500])
    peer.send(OK)
    assert client.read(len(OK)) == OK
    assert peer._buffer == b""
    client.close()


PLAN = "Pläne"


@pytest.mark.parametrize(
    ("parts", "alias"),
    [
        (('{"model":', '"fast"', ',"stream":true}'), "fast"),
        ((' \n{ "n": 1, "model" : ', '"fast"', ' , "x": "\\"model\\": \\"fast\\""}'), "fast"),
        (('{"m":[{"model":"fast","c":"é ☃ \\\\"}],"model":', '"fast"', "}"), "fast"),
        (('{"mod\\u0065l":', '"f\\u0061st"', "}"), "fast"),
        (('{"model":', f'"{PLAN}"', ',"a":[1,{"b":[]}]}'), PLAN),
    ],
)
def test_the_slug_and_the_length_change(gateway, upstream, parts, alias):
    """In whatever place and spelling it stands; of the body's other bytes none changes."""
    model = ALIASES[alias]
    before, _, after = parts
    sent = "".join(parts).encode()
    expected = renamed(f'{before}"{model}"{after}'.encode())
    passed_on(gateway, upstream, with_length(sent), expected)
    (call,) = gateway.wait_for_calls(1)
    assert (call.requested_model, call.model_alias) == (model, alias)
    assert call.request_bytes == len(sent)
    assert not call.partial


@pytest.mark.parametrize("sizes", [(1,), (3, 1, 7), (10, 100), (1000,)])
def test_chunks(gateway, upstream, sizes):
    """Of a chunked body those chunks change in which the name stands, and no other."""
    text = json.dumps({"pad": "x" * 40, "model": "fast", "messages": ["y" * 40]})
    body = text.encode()
    start = body.index(b'"fast"')
    raw = chunked(body, *sizes)
    expected = splice_chunks(raw, start, start + 6, b'"%s"' % MODEL.encode())
    reader = ChunkedBody()
    used, content = reader.feed(expected)
    assert (used, reader.done) == (len(expected), True)
    assert b"".join(content) == body.replace(b'"fast"', b'"%s"' % MODEL.encode())
    fields = head("Transfer-Encoding: chunked")
    passed_on(gateway, upstream, fields + raw, fields + expected)


def test_both_names_stand_on_the_span(gateway, upstream):
    """`gen_ai.request.model` is what the upstream was asked for; what the agent said is beside it."""
    body = b'{"model":"fast"}'
    passed_on(gateway, upstream, with_length(body), renamed(body.replace(b"fast", MODEL.encode())))
    (call,) = gateway.wait_for_calls(1)
    span = render_orphan(Orphan(call, "alone"), "ab" * 16)
    assert span.attributes[semconv.REQUEST_MODEL] == MODEL
    assert span.attributes[semconv.LLM_MODEL_ALIAS] == "fast"
    assert span.name == f"chat {MODEL}"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"claude-opus-5","x":"fast"}',
        b'{"model":["fast"],"n":"fast"}',
        b'{"model":null,"x":{"model":"fast"}}',
        b'["model","fast"]',
        b'{"model":"fast',
        b'\xff\xfe{"model":"fast"}',
        b'{"model":"fa\xffst"}',
        b'{"model":"\\ud800"}',
        b"model=fast",
        b"",
        b"{" * 100_000,
    ],
)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_what_names_no_alias_passes_byte_for_byte(gateway, upstream, body, is_chunked):
    """Chunk boundaries included, whatever it is."""
    sent = with_length(body)
    if is_chunked:
        sent = head("Transfer-Encoding: chunked") + chunked(body, 5, 1, 70_000)
    passed_on(gateway, upstream, sent, sent)
    (call,) = gateway.wait_for_calls(1)
    assert call.model_alias is None


def test_a_long_body_is_not_held_back(gateway, upstream):
    """Once its model is known, what is there goes on, and the rest as it comes."""
    client = gateway.connect()
    client.send(head("Content-Length: 1000000"), b'{"model":"fast","messages":["')
    peer = upstream.accept()
    assert b"Content-Length: 1000012\r\n" in peer.read_head()
    peer.read_until(b'{"model":"claude-haiku-4-5","messages":["')
    rest = b"x" * (1_000_000 - 29)
    sender = threading.Thread(target=client.send, args=(rest,))
    sender.start()
    assert peer.read(len(rest)) == rest
    sender.join()


def test_without_aliases_nothing_is_held_back(start_gateway, upstream):
    """The head goes on before a byte of the body has come."""
    client = start_gateway(upstream.url).connect()
    client.send(head("Content-Length: 16"))
    peer = upstream.accept()
    peer.read_head()
    client.send(b'{"model":"fast"}')
    assert peer.read(16) == b'{"model":"fast"}'


def test_five_megabytes_before_the_model(gateway, upstream):
    """An alias at the end of a large body is found too."""
    text = '{"messages":["' + 'ab\\"' * 1_250_000 + '"],"model":"fast"}'
    expected = renamed(text.replace("fast", MODEL).encode())
    passed_on(gateway, upstream, with_length(text.encode()), expected)


@pytest.mark.parametrize("bulk", [b'"' + b"x" * (HELD_LIMIT + 2_000_000) + b'"', b"[]," * 200_000])
def test_more_than_may_be_held_passes(gateway, upstream, capfd, bulk):
    """A model that stands further behind is not looked for, which is said."""
    body = b'{"messages":[' + bulk + b'],"model":"fast"}'
    passed_on(gateway, upstream, with_length(body), with_length(body))
    assert "no alias looked for (long body)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ("Content-Encoding: gzip", "no alias looked for (compressed body)"),
        ("Expect: 100-continue", "no alias looked for (100-continue)"),
    ],
)
def test_what_cannot_be_looked_into_passes(gateway, upstream, capfd, field, complaint):
    """A compressed body, or one whose client waits for the upstream's word; it is counted."""
    body = b'{"model":"fast"}'
    sent = with_length(gzip.compress(body, mtime=0) if "gzip" in field else body, field)
    passed_on(gateway, upstream, sent, sent)
    assert capfd.readouterr().err.count(complaint) == 1


def test_google_has_it_in_the_path(start_gateway, upstream, tmp_path):
    """There the segment changes and the body does not."""
    config = '[[gateway.requests]]\naliases = { "fast one" = "gemini-2.5/é" }\n'
    (tmp_path / "config.toml").write_text(config)
    gateway = start_gateway(f"gemini={upstream.url}")
    path = "/api/google/gemini/v1beta/models/{}:generateContent?alt=sse&k=/fast%20one:x"
    body = b'{"model":"fast one"}'
    expected = path.replace("/api/google/gemini", "").format("gemini-2.5%2F%C3%A9")
    passed_on(
        gateway,
        upstream,
        with_length(body, path=path.format("fast%20one")),
        with_length(body, path=expected),
    )
    (call,) = gateway.wait_for_calls(1)
    assert (call.requested_model, call.model_alias) == ("gemini-2.5/é", "fast one")


def test_the_next_request_of_a_connection(gateway, upstream):
    """Requests that come at once are each held back and passed on in their turn."""
    body = b'{"model":"fast"}'
    expected = body.replace(b"fast", MODEL.encode())
    client = gateway.connect()
    client.send(with_length(body), head("Transfer-Encoding: chunked") + chunked(body, 4))
    peer = upstream.accept()
    peer.read_head()
    assert peer.read(len(expected)) == expected
    peer.send(OK)
    assert client.read(len(OK)) == OK
    peer.read_head()
    assert peer.read_until(b"X-Trailer: t\r\n\r\n").endswith(b"0\r\nX-Trailer: t\r\n\r\n")
    peer.send(OK)
    assert client.read(len(OK)) == OK


def test_an_upstream_that_leaves_before_the_model_is_known(gateway, upstream):
    """It ended an idle connection; the request, of which it has seen nothing, takes another."""
    body = b'{"model":"fast"}'
    client = gateway.connect()
    client.send(with_length(body))
    peer = upstream.accept()
    peer.read_until(MODEL.encode() + b'"}')
    peer.send(OK)
    assert client.read(len(OK)) == OK
    client.send(head("Content-Length: 16"), body[:9])
    # What comes later is seen later, so that the end has been seen once another is answered.
    peer.close()
    passed_on(gateway, upstream, with_length(b"{}"), with_length(b"{}"))
    client.send(body[9:])
    peer = upstream.accept()
    assert b"\r\nContent-Length: 28\r\n" in peer.read_head()
    assert peer.read(28) == body.replace(b"fast", MODEL.encode())
    peer.send(OK)
    assert client.read(len(OK)) == OK


def test_a_client_that_leaves_before_its_model_is_known(gateway, upstream):
    """Nothing of its request has gone anywhere; the call is recorded as its own doing."""
    client = gateway.connect()
    client.send(head("Content-Length: 50"), b'{"messages":')
    client.reset()
    (call,) = gateway.wait_for_calls(1)
    assert call.error_type == "client_abort"
    assert upstream.has_nobody_waiting()


def test_a_bad_chunk_before_the_model_is_known(gateway, upstream):
    """The request is refused before a byte of it goes upstream."""
    client = gateway.connect()
    client.send(head("Transfer-Encoding: chunked"), b"3\r\n{  \r\nzz\r\n")
    assert client.read_head().startswith(b"HTTP/1.1 400 ")
    assert upstream.has_nobody_waiting()


NAMES = st.sampled_from(["model", "mod", "x", "models"]) | st.text(max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just('{"model":"a"'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
BODIES = st.builds(
    lambda fields, ascii_only, indent: json.dumps(
        fields, ensure_ascii=ascii_only, indent=indent
    ).encode("utf-8", "surrogatepass"),
    st.dictionaries(NAMES, VALUES, max_size=5),
    st.booleans(),
    st.sampled_from([None, 0, 2]),
)


@given(BODIES, st.lists(st.integers(1, 9), min_size=1))
def test_any_body_in_any_pieces(body, sizes):
    """The model is found where a parser of the whole finds it, or nowhere."""
    search, at, number = ModelSearch(), 0, 0
    while at < len(body):
        size = sizes[number % len(sizes)]
        search.feed(body[at : at + size])
        at, number = at + size, number + 1
    model = json.loads(body.decode("utf-8", "surrogatepass")).get("model")
    if not isinstance(model, str):
        assert search.found is None
        assert search.is_over
        return
    assert search.found is not None
    start, end = search.found
    assert json.loads(body[start:end].decode("utf-8", "surrogatepass")) == model


@given(st.binary(max_size=200))
def test_any_bytes(data):
    """What is no JSON leads to an answer or to none, and never to an error."""
    search = ModelSearch()
    search.feed(data)
    assert search.found is None or data[search.found[0] : search.found[1]].startswith(b'"')


@given(
    st.binary(min_size=1, max_size=60),
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.binary(min_size=1, max_size=30),
    st.data(),
)
def test_any_chunks(content, sizes, new, data):
    """What comes of it is the content with its part replaced, wherever *raw* ends behind that."""
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start + 1, len(content)))
    raw = chunked(content, *sizes)
    # The first bytes with which the part has come.
    seen, least = 0, 0
    reader = ChunkedBody()
    while seen < end:
        _, pieces = reader.feed(raw[least : least + 1])
        seen += sum(map(len, pieces))
        least += 1
    cut = data.draw(st.integers(least, len(raw)))
    again = ChunkedBody()
    _, pieces = again.feed(splice_chunks(raw[:cut], start, end, new) + raw[cut:])
    assert again.done
    assert b"".join(pieces) == content[:start] + new + content[end:]


def test_other_targets_stay():
    """Only the model's segment is looked at, and only in the path."""
    aliases = {"fast": "m"}
    assert rename_in_target("/x/fast:y/models/fast:go?a=/fast:b", "fast", aliases) == (
        "/x/fast:y/models/m:go?a=/fast:b",
        Renamed("fast", "m"),
    )
    assert rename_in_target("/models/slow:go", "slow", aliases) == ("/models/slow:go", None)

"""What Anthropic's bodies tell."""

import json
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracebridge.dialects import EventStream, ResponseFacts, anthropic, find_dialect
from tracebridge.dialects import parse_error_message as error_message
from tracebridge.model import Usage


def event(name: str, **fields) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


START = event(
    "message_start",
    message={
        "id": "msg_é1",
        "model": "claude-opus-5-5",
        "stop_reason": None,
        "content": [],
        "usage": {
            "input_tokens": 3,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 20,
            "output_tokens": 1,
        },
    },
)
TOOL = event("content_block_start", index=1, content_block={"type": "tool_use", "id": "toolu_1"})
DELTA = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "hü"})
END = event(
    "message_delta",
    delta={"stop_reason": "tool_use"},
    usage={
        "output_tokens": 42,
        "input_tokens": None,
        "output_tokens_details": {"thinking_tokens": 7},
    },
)
STOP = event("message_stop")
STREAM = START + b": comment\n\nevent: ping\ndata: {}\n\n" + TOOL + DELTA + DELTA + END + STOP


def parse(*pieces: bytes, content_type: str = "text/event-stream") -> ResponseFacts:
    parser = anthropic.response_parser(anthropic.MESSAGES, content_type)
    for number, piece in enumerate(pieces):
        parser.feed(piece, number)
    return parser.facts()


def test_stream():
    """A stream tells id, model, usage, stop reason, tool calls and when the first token came."""
    facts = parse(START, TOOL, DELTA, DELTA, END, STOP)
    assert facts == ResponseFacts(
        response_id="msg_é1",
        model="claude-opus-5-5",
        stop_reason="tool_use",
        usage=Usage(
            input_tokens=123,
            output_tokens=42,
            cache_read_tokens=100,
            cache_write_tokens=20,
            reasoning_tokens=7,
        ),
        tool_call_ids=("toolu_1",),
        blocks=1,
        first_token_ns=2,
        ended=True,
    )


@given(st.lists(st.integers(0, len(STREAM)), max_size=30), st.booleans())
def test_stream_in_any_pieces(cuts, crlf):
    """However the bytes arrive, inside a character or a line end, the facts are the same."""
    stream = STREAM.replace(b"\n", b"\r\n") if crlf else STREAM
    cuts = sorted({0, len(stream), *cuts})
    facts = parse(*(stream[start:end] for start, end in pairwise(cuts)))
    whole = parse(STREAM)
    assert {**fields(facts), "first_token_ns": 0} == {**fields(whole), "first_token_ns": 0}


def fields(facts: ResponseFacts) -> dict:
    return {name: getattr(facts, name) for name in ResponseFacts.__slots__}


def test_usage_of_the_end_wins():
    """The usage at the end is cumulative and replaces what the start said, field by field."""
    late = event("message_delta", delta={}, usage={"input_tokens": 9, "output_tokens": 5})
    assert parse(START, late, STOP).usage == Usage(
        input_tokens=129, output_tokens=5, cache_read_tokens=100, cache_write_tokens=20
    )


def test_cut_stream():
    """A cut stream has not ended, and its output tokens are unknown, not the placeholder."""
    facts = parse(START, DELTA)
    assert not facts.ended
    assert facts.usage is not None
    assert (facts.usage.input_tokens, facts.usage.output_tokens) == (123, None)


def test_content_in_a_block_start_is_a_token():
    """A block that starts with content counts as first token, an empty one does not."""
    empty = event("content_block_start", content_block={"type": "text", "text": ""})
    full = event("content_block_start", content_block={"type": "redacted_thinking", "data": "x"})
    assert parse(START, empty).first_token_ns is None
    assert parse(START, empty, full).first_token_ns == 2


def test_error_event():
    """An error in the middle of a stream tells its type and message."""
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    facts = parse(START, error)
    assert (facts.error_type, facts.error_message) == ("overloaded_error", "Overloaded")


def test_document():
    """An answer that is not streamed tells the same facts, but no time of a first token."""
    document = {
        "id": "msg_2",
        "type": "message",
        "model": "m",
        "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "x"}, {"type": "tool_use", "id": "toolu_2"}],
        "usage": {"input_tokens": 5, "output_tokens": 6},
    }
    facts = parse(*(bytes([byte]) for byte in json.dumps(document).encode()), content_type="")
    assert facts == ResponseFacts(
        response_id="msg_2",
        model="m",
        stop_reason="end_turn",
        usage=Usage(input_tokens=5, output_tokens=6),
        tool_call_ids=("toolu_2",),
        blocks=2,
        ended=True,
    )


@given(st.binary(max_size=300), st.sampled_from(["text/event-stream", "application/json"]))
def test_garbage(garbage, content_type):
    """Whatever comes as an answer, parsing it does not fail."""
    parse(garbage, START[:40], garbage, content_type=content_type)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "message",
                    "usage",
                    "content",
                    "error",
                    "delta",
                    "content_block",
                    "id",
                    "messages",
                    "role",
                    "model",
                    "stream",
                    "input_tokens",
                    "output_tokens_details",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
TYPES = st.sampled_from(
    ["message_start", "content_block_start", "content_block_delta", "message_delta", "error", "x"]
)


@given(TYPES, JSON)
def test_unexpected_shapes(name, document):
    """Fields of any type in any place do not make parsing fail, as answer or as request."""
    body = {"type": name, **document} if isinstance(document, dict) else document
    data = json.dumps(body).encode()
    parse(data, content_type="application/json")
    parse(b"data: " + data + b"\n\n")
    with suppress(ValueError):
        anthropic.parse_request(anthropic.MESSAGES, data)


@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
def test_deep_nesting(content_type):
    """Nesting beyond any parser's depth is not understood, and nothing worse."""
    deep = b"[" * 200_000
    assert not parse(b"data: " + deep + b"\n\n", content_type=content_type).understood
    with pytest.raises(ValueError, match="nested"):
        anthropic.parse_request(anthropic.MESSAGES, b'{"model":' + deep)


def test_huge_line():
    """A line beyond the limit is passed over and said to be; what follows is understood."""
    parser = anthropic.response_parser(anthropic.MESSAGES, "text/event-stream")
    parser.feed(b"data: ", 0)
    for _ in range(20):
        parser.feed(b"x" * 1_000_000, 0)
    parser.feed(b"\n\n" + STREAM, 0)
    facts = parser.facts()
    assert facts.response_id == "msg_é1"
    assert not facts.understood


@pytest.mark.parametrize(
    ("lines", "events"),
    [
        (b"event: a\ndata: 1\ndata:2\nid: 3\nretry\n\n", [(b"a", b"1\n2")]),
        (b"\xef\xbb\xbfdata: 1\r\n\r\ndata: 2\n\n", [(b"", b"1"), (b"", b"2")]),
        (b"event: only\n\n: comment\n\ndata:  x\n\n", [(b"", b" x")]),
        (b"data: no end\n", []),
    ],
)
def test_event_stream(lines, events):
    """Events are cut as the standard for server-sent events has it."""
    assert list(EventStream().feed(lines)) == events


def request(**body):
    return anthropic.parse_request(anthropic.MESSAGES, json.dumps(body).encode())


def test_request():
    """A request tells its model, whether it streams, and the tool results new in it."""

    def results(*names):
        return {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": name} for name in names],
        }

    facts = request(
        model="m",
        stream=True,
        metadata={"user_id": "u"},
        messages=[
            results("old"),
            {"role": "assistant", "content": "x"},
            results("new1", "new2"),
            {"role": "system", "content": "reminder"},
        ],
    )
    assert facts.requested_model == "m"
    assert facts.streaming
    assert facts.tool_result_ids == ("new1", "new2")
    assert facts.body == {
        "model": "m",
        "stream": True,
        "metadata": {"user_id": "u"},
        "messages": [results("new1", "new2")],
    }


def test_digest():
    """Two requests have the same digest if their messages are the same."""
    first = request(model="m", messages=[{"role": "user", "content": "x"}])
    again = request(model="n", messages=[{"role": "user", "content": "x"}], tools=[])
    other = request(model="m", messages=[{"role": "user", "content": "y"}])
    assert first.digest == again.digest != other.digest
    assert request(model="m").digest is None
    assert request(messages=[]).digest != request(messages=[[]]).digest


def test_digest_of_a_long_conversation():
    """A digest tells requests apart that differ in their end, or in how long their history is."""
    history = [{"role": "user", "content": "x" * 100}] * 50
    digests = {
        request(messages=messages).digest
        for messages in (
            history,
            history[1:],
            [{"role": "user", "content": "[cleared]"}, *history[1:]],
            [*history[:-1], {"role": "user", "content": "y" * 100}],
        )
    }
    assert len(digests) == 4


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model":}', b"\xff", b'"x"'])
def test_bad_request(body):
    """A request that is no JSON object is a ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011 - the message is the JSON library's.
        anthropic.parse_request(anthropic.MESSAGES, body)


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/v1/messages", "anthropic.messages"),
        ("POST", "/api/anthropic/v1/messages", "anthropic.messages"),
        ("POST", "/api/anthropic/v1/v1/messages/", "anthropic.messages"),
        ("POST", "/v1/messages/count_tokens", "anthropic.count_tokens"),
        ("POST", "/v1/messages/batches", None),
        ("GET", "/v1/messages", None),
    ],
)
def test_name_call(method, path, name):
    """Calls are known by method and the end of the path."""
    found = find_dialect(method, path)
    assert (found and found[1]) == name


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"type":"error","error":{"type":"x","message":"Anthropic"}}', "Anthropic"),
        (b'[{"error":{"code":429,"message":"Google"}}]', "Google"),
        (b'{"error":"plain"}', "plain"),
        (b'{"detail":"FastAPI"}', "FastAPI"),
        (b"<html>Bad Gateway</html>", "<html>Bad Gateway</html>"),
        (b"", None),
        (b'{"error":[]}', None),
        (b"[]", None),
    ],
)
def test_error_message(body, message):
    """The message of an error is found in every vendor's shape."""
    assert error_message(body) == message

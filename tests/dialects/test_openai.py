"""What OpenAI's bodies tell."""

import json
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracebridge.dialects import ResponseFacts, find_dialect, openai
from tracebridge.model import Usage

USAGE = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 500},
    "output_tokens": 100,
    "output_tokens_details": {"reasoning_tokens": 40},
    "total_tokens": 1100,
}
CHAT_USAGE = {
    "prompt_tokens": 1000,
    "prompt_tokens_details": {"cached_tokens": 500},
    "completion_tokens": 100,
    "completion_tokens_details": {"reasoning_tokens": 40},
}
SAME_USAGE = Usage(input_tokens=1000, output_tokens=100, cache_read_tokens=500, reasoning_tokens=40)
ITEMS = [
    {"type": "reasoning", "id": "rs_1", "summary": []},
    {"type": "function_call", "id": "fc_1", "call_id": "call_é1", "name": "x", "arguments": "{}"},
    {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "y", "input": ""},
    {"type": "web_search_call", "id": "ws_1"},
]


def event(name: str, **fields) -> bytes:
    data = json.dumps({"type": name, **fields}, ensure_ascii=False)
    return f"event: {name}\ndata: {data}\n\n".encode()


def response(status: str, **fields) -> dict:
    return {"id": "resp_1", "object": "response", "model": "gpt-5.5", "status": status, **fields}


CREATED = event("response.created", response=response("in_progress", usage=None, output=[]))
DELTA = event("response.reasoning_summary_text.delta", item_id="rs_1", delta="hü")
ITEM_EVENTS = [event("response.output_item.done", item=item) for item in ITEMS]
COMPLETED = event("response.completed", response=response("completed", usage=USAGE, output=ITEMS))
STREAM = CREATED + b": comment\n\n" + DELTA + DELTA + b"".join(ITEM_EVENTS) + COMPLETED


def chunk(delta: dict | None = None, finish: str | None = None, **fields) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    document = {"id": "chatcmpl-1", "model": "gpt-5.5", "choices": choices, **fields}
    return f"data: {json.dumps(document)}\n\n".encode()


CHAT = (
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "x"}),
    chunk({"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f"}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
    chunk({}, "tool_calls"),
    chunk(usage=CHAT_USAGE),
    b"data: [DONE]\n\n",
)


def parse(
    *pieces: bytes, name: str = openai.RESPONSES, content_type: str = "text/event-stream"
) -> ResponseFacts:
    parser = openai.response_parser(name, content_type)
    for number, piece in enumerate(pieces):
        parser.feed(piece, number)
    return parser.facts()


def fields(facts: ResponseFacts) -> dict:
    return {name: getattr(facts, name) for name in ResponseFacts.__slots__}


def test_responses_stream():
    """A Responses stream tells id, model, usage, call ids and when the first token came."""
    assert parse(CREATED, DELTA, DELTA, *ITEM_EVENTS, COMPLETED) == ResponseFacts(
        response_id="resp_1",
        model="gpt-5.5",
        stop_reason="completed",
        usage=SAME_USAGE,
        tool_call_ids=("call_é1", "call_2"),
        blocks=4,
        first_token_ns=1,
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


def test_responses_document():
    """A Responses answer that is not streamed tells the same facts, but no first token."""
    document = response("completed", usage=USAGE, output=ITEMS, error=None)
    facts = parse(
        *(bytes([byte]) for byte in json.dumps(document).encode()), content_type="application/json"
    )
    assert facts == ResponseFacts(
        response_id="resp_1",
        model="gpt-5.5",
        stop_reason="completed",
        usage=SAME_USAGE,
        tool_call_ids=("call_é1", "call_2"),
        blocks=4,
        ended=True,
    )


def test_cut_responses_stream():
    """A cut stream has not ended; the calls it named and its id are known, its usage is not."""
    facts = parse(CREATED, DELTA, ITEM_EVENTS[1])
    assert not facts.ended
    assert (facts.response_id, facts.usage) == ("resp_1", None)
    assert facts.tool_call_ids == ("call_é1",)


def test_failed_response():
    """A response that failed behind status 200 tells its code, its message and what it used."""
    error = {"code": "rate_limit_exceeded", "message": "Slow down"}
    facts = parse(
        CREATED, event("response.failed", response=response("failed", error=error, usage=USAGE))
    )
    assert (facts.error_type, facts.error_message) == ("rate_limit_exceeded", "Slow down")
    assert facts.ended
    assert facts.usage == SAME_USAGE


@pytest.mark.parametrize("rest", [{}, {"error": None}, {"error": []}])
def test_failed_response_without_reason(rest):
    """A failure without a reason is a failure all the same."""
    assert parse(event("response.failed", response=rest)).error_type == "response_failed"


def test_incomplete_response():
    """An incomplete response is an end, with the reason, and no error."""
    incomplete = response("incomplete", incomplete_details={"reason": "max_output_tokens"})
    facts = parse(CREATED, event("response.incomplete", response=incomplete))
    assert (facts.stop_reason, facts.error_type) == ("max_output_tokens", None)
    assert facts.ended


@pytest.mark.parametrize(
    "error",
    [
        event("error", code="server_error", message="Oops", param=None),
        event("error", error={"code": "server_error", "message": "Oops"}),
        event("error", error={"type": "server_error", "message": "Oops"}),
    ],
)
def test_error_event(error):
    """An error event in the middle of a stream tells its type and message in each shape."""
    facts = parse(CREATED, DELTA, error)
    assert (facts.error_type, facts.error_message) == ("server_error", "Oops")


def test_bare_error_event():
    """An error event that tells nothing more is an error."""
    assert parse(event("error")).error_type == "error"


def test_chat_stream():
    """A Chat stream tells id, model, usage, call ids and when the first token came."""
    assert parse(*CHAT, name=openai.CHAT_COMPLETIONS) == ResponseFacts(
        response_id="chatcmpl-1",
        model="gpt-5.5",
        stop_reason="tool_calls",
        usage=SAME_USAGE,
        tool_call_ids=("call_1",),
        blocks=2,
        first_token_ns=1,
        ended=True,
    )


def test_chat_usage_on_each_chunk():
    """Usage on every chunk is cumulative: the last one counts, and null takes nothing back."""
    facts = parse(
        chunk({"content": "x"}, usage={"prompt_tokens": 3, "completion_tokens": 1}),
        chunk({"content": "y"}, "stop", usage={"prompt_tokens": 3, "completion_tokens": 2}),
        chunk(usage=None),
        name=openai.CHAT_COMPLETIONS,
    )
    assert facts.usage == Usage(input_tokens=3, output_tokens=2)


def test_cut_chat_stream():
    """A Chat stream without finish reason has not ended."""
    assert not parse(*CHAT[:3], name=openai.CHAT_COMPLETIONS).ended


def test_reasoning_is_a_token():
    """Reasoning that a compatible server streams under its own name is the first token too."""
    facts = parse(
        chunk({"role": "assistant"}),
        chunk({"reasoning_content": "hm"}),
        name=openai.CHAT_COMPLETIONS,
    )
    assert facts.first_token_ns == 1


@pytest.mark.parametrize("error", [{"code": 502, "message": "Bad"}, "Bad"])
def test_chat_error_chunk(error):
    """An error in the middle of a Chat stream is told, in each shape."""
    facts = parse(chunk({"content": "x"}), chunk(error=error), name=openai.CHAT_COMPLETIONS)
    assert (facts.error_type, facts.error_message) == ("error", "Bad")


def test_chat_document():
    """A chat completion that is not streamed tells the same facts."""
    document = {
        "id": "chatcmpl-2",
        "model": "m",
        "choices": [
            {"message": {"content": None, "tool_calls": [{"id": "a"}]}, "finish_reason": "length"}
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 6},
    }
    facts = parse(json.dumps(document).encode(), name=openai.CHAT_COMPLETIONS, content_type="")
    assert facts == ResponseFacts(
        response_id="chatcmpl-2",
        model="m",
        stop_reason="length",
        usage=Usage(input_tokens=5, output_tokens=6),
        tool_call_ids=("a",),
        blocks=1,
        ended=True,
    )


def test_blocks_are_counted_as_clients_make_them():
    """Of reasoning each summary is a block, of a Chat stream each run of text or thought."""
    thoughts = {"type": "reasoning", "id": "rs_1", "summary": [{"text": "a"}, {"text": "b"}]}
    begun = event("response.output_item.added", item={**thoughts, "summary": []})
    done = event("response.output_item.done", item=thoughts)
    assert parse(CREATED, begun).blocks == 1
    assert parse(CREATED, begun, done).blocks == 2
    # Which of these are the same is not known.
    assert parse(event("response.output_item.done", item={"type": "message"})).blocks is None
    runs = [{"reasoning_content": "a"}, {"content": "b"}, {"content": "c"}, {"reasoning": "d"}]
    said = [chunk(delta) for delta in runs]
    assert parse(*said, name=openai.CHAT_COMPLETIONS).blocks == 3
    assert parse(chunk({"content": ""}), name=openai.CHAT_COMPLETIONS).blocks is None


def test_embeddings():
    """Embeddings tell model and input tokens."""
    document = {
        "object": "list",
        "data": [{"embedding": [0.1], "index": 0}],
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    facts = parse(json.dumps(document).encode(), name=openai.EMBEDDINGS, content_type="")
    assert facts.model == "text-embedding-3-small"
    assert facts.usage == Usage(input_tokens=8)
    assert facts.ended


@given(
    st.binary(max_size=300),
    st.sampled_from(["text/event-stream", "application/json"]),
    st.sampled_from([openai.RESPONSES, openai.CHAT_COMPLETIONS, openai.EMBEDDINGS]),
)
def test_garbage(garbage, content_type, name):
    """Whatever comes as an answer, parsing it does not fail."""
    parse(garbage, CREATED[:40], garbage, name=name, content_type=content_type)


KEYS = [
    "type",
    "id",
    "call_id",
    "item",
    "response",
    "output",
    "status",
    "error",
    "code",
    "message",
    "usage",
    "choices",
    "delta",
    "tool_calls",
    "finish_reason",
    "input",
    "messages",
    "role",
    "model",
    "stream",
    "input_tokens",
    "input_tokens_details",
    "prompt_tokens",
    "cached_tokens",
    "incomplete_details",
    "tool_call_id",
]
WORDS = st.sampled_from(["function_call", "function_call_output", "user", "tool", "failed", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=20,
)
TYPES = st.sampled_from(
    [
        "response.created",
        "response.output_item.done",
        "response.output_text.delta",
        "response.completed",
        "response.failed",
        "error",
        "x",
    ]
)


@given(TYPES, JSON)
def test_unexpected_shapes(kind, document):
    """Fields of any type in any place do not make parsing fail, as answer or as request."""
    body = {"type": kind, **document} if isinstance(document, dict) else document
    data = json.dumps(body).encode()
    for name in (openai.RESPONSES, openai.CHAT_COMPLETIONS, openai.EMBEDDINGS):
        parse(data, name=name, content_type="application/json")
        parse(b"data: " + data + b"\n\n", name=name)
        with suppress(ValueError):
            openai.parse_request(name, data)


@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
def test_deep_nesting(content_type):
    """Nesting beyond any parser's depth is not understood, and nothing worse."""
    deep = b"[" * 200_000
    assert not parse(b"data: " + deep + b"\n\n", content_type=content_type).understood
    with pytest.raises(ValueError, match="nested"):
        openai.parse_request(openai.RESPONSES, b'{"model":' + deep)


def test_huge_line():
    """A line beyond the limit is passed over and said to be; what follows is understood."""
    parser = openai.response_parser(openai.RESPONSES, "text/event-stream")
    parser.feed(b"data: ", 0)
    for _ in range(20):
        parser.feed(b"x" * 1_000_000, 0)
    parser.feed(b"\n\n" + STREAM, 0)
    facts = parser.facts()
    assert facts.response_id == "resp_1"
    assert not facts.understood


def test_huge_document():
    """A document beyond the limit is not understood."""
    facts = parse(*[b"x" * 1_000_000] * 20, content_type="application/json")
    assert not facts.understood


def request(name=openai.RESPONSES, **body):
    return openai.parse_request(name, json.dumps(body).encode())


def test_responses_request():
    """A Responses request tells its model, whether it streams, and the tool results new in it."""
    facts = request(
        model="openai/gpt-5.5",
        stream=True,
        client_metadata={"turn_id": "t"},
        input=[
            {"type": "function_call_output", "call_id": "old", "output": ""},
            {"type": "function_call", "call_id": "new1", "name": "x", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "new2", "name": "y", "input": ""},
            {"type": "function_call_output", "call_id": "new1", "output": ""},
            {"type": "custom_tool_call_output", "call_id": "new2", "output": ""},
            {"type": "message", "role": "developer", "content": []},
        ],
    )
    assert facts.requested_model == "openai/gpt-5.5"
    assert facts.streaming
    assert facts.tool_result_ids == ("new1", "new2")
    assert facts.body == {
        "model": "openai/gpt-5.5",
        "stream": True,
        "client_metadata": {"turn_id": "t"},
    }


def test_chat_request():
    """A Chat request tells the tool results that are new in it."""
    facts = request(
        openai.CHAT_COMPLETIONS,
        messages=[
            {"role": "tool", "tool_call_id": "old", "content": ""},
            {"role": "assistant", "tool_calls": [{"id": "new1"}, {"id": "new2"}]},
            {"role": "tool", "tool_call_id": "new1", "content": ""},
            {"role": "tool", "tool_call_id": "new2", "content": ""},
            {"role": "user", "content": "and?"},
        ],
    )
    assert facts.tool_result_ids == ("new1", "new2")


@pytest.mark.parametrize("name", [openai.RESPONSES, openai.EMBEDDINGS])
def test_text_input(name):
    """Input may be a plain text: no tool results in it, and equal texts are equal requests."""
    facts = request(name, input="hello")
    assert facts.tool_result_ids == ()
    assert facts.digest == request(name, input="hello", model="m").digest
    assert facts.digest != request(name, input="bye").digest


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model":}', b"\xff", b'"x"'])
def test_bad_request(body):
    """A request that is no JSON object is a ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011 - the message is the JSON library's.
        openai.parse_request(openai.RESPONSES, body)


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/api/responses", "openai.responses"),
        ("POST", "/v1/responses/", "openai.responses"),
        ("POST", "/api/chat/completions", "openai.chat_completions"),
        ("POST", "/v1/chat/completions", "openai.chat_completions"),
        ("POST", "/api/embeddings", "openai.embeddings"),
        ("POST", "/v1/embeddings", "openai.embeddings"),
        ("POST", "/api/responses/resp_1/cancel", None),
        ("GET", "/api/responses", None),
        ("POST", "/api/analytics/codex/turn-costs", None),
    ],
)
def test_name_call(method, path, name):
    """Calls are known by method and the end of the path."""
    found = find_dialect(method, path)
    assert (found and found[1]) == name

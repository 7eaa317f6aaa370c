"""What the bodies of Google's generateContent tell."""

import json
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracebridge.dialects import ResponseFacts, find_dialect, gemini
from tracebridge.dialects import parse_error_message as error_message
from tracebridge.model import Usage

SSE = "text/event-stream; charset=UTF-8"
MODEL = "/v1beta/models/gemini-2.5-pro"


def chunk(*parts, finish=None, **fields) -> dict:
    candidate = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "modelVersion": "gemini-2.5-pro",
        "responseId": "resp_é1",
        **fields,
    }


CHUNKS = [
    chunk({"text": ""}, usageMetadata={"promptTokenCount": 90}),
    chunk({"text": "Hmm.", "thought": True}, usageMetadata={"promptTokenCount": 90}),
    chunk({"functionCall": {"id": "call_1", "name": "read_file", "args": {"path": "hü"}}}),
    chunk(
        {"text": ""},
        finish="STOP",
        usageMetadata={
            "promptTokenCount": 100,
            "cachedContentTokenCount": 20,
            "candidatesTokenCount": 30,
            "thoughtsTokenCount": 7,
            "totalTokenCount": 137,
        },
    ),
]
FACTS = {
    "response_id": "resp_é1",
    "model": "gemini-2.5-pro",
    "stop_reason": "STOP",
    "usage": Usage(input_tokens=100, output_tokens=37, cache_read_tokens=20, reasoning_tokens=7),
    "tool_call_ids": ("call_1",),
    "ended": True,
}


def sse(*chunks) -> bytes:
    return b"".join(
        b"data: " + json.dumps(each, ensure_ascii=False).encode() + b"\r\n\r\n" for each in chunks
    )


def parse(*pieces: bytes, name=gemini.STREAM, content_type=SSE) -> ResponseFacts:
    parser = gemini.response_parser(name, content_type)
    for number, piece in enumerate(pieces):
        parser.feed(piece, number)
    return parser.facts()


def test_stream():
    """A stream tells id, model, usage, finish reason, tool calls and when the first token came."""
    facts = parse(*(sse(each) for each in CHUNKS))
    assert facts == ResponseFacts(**FACTS, first_token_ns=1)


@given(st.lists(st.integers(0, len(sse(*CHUNKS))), max_size=30))
def test_stream_in_any_pieces(cuts):
    """However the bytes arrive, inside a character or a line end, the facts are the same."""
    stream = sse(*CHUNKS)
    pieces = [stream[start:end] for start, end in pairwise(sorted({0, len(stream), *cuts}))]
    facts = parse(*pieces)
    assert {name: getattr(facts, name) for name in FACTS} == FACTS
    assert facts.understood


def test_stream_as_an_array():
    """Without alt=sse a stream is a JSON array of the same chunks, and tells the same."""
    body = json.dumps(CHUNKS).encode()
    assert parse(body[:50], body[50:], content_type="application/json") == ResponseFacts(**FACTS)


def test_whole_answer():
    """An answer that is not streamed is one such chunk."""
    answer = chunk(
        {"text": "Hi.", "thoughtSignature": "c2ln"},
        finish="MAX_TOKENS",
        usageMetadata={"promptTokenCount": 5, "toolUsePromptTokenCount": 2, "totalTokenCount": 7},
    )
    facts = parse(json.dumps(answer).encode(), name=gemini.GENERATE, content_type="text/json")
    assert facts == ResponseFacts(
        response_id="resp_é1",
        model="gemini-2.5-pro",
        stop_reason="MAX_TOKENS",
        usage=Usage(input_tokens=7, output_tokens=0),
        ended=True,
    )


def test_cut_stream():
    """A cut stream has not ended, and what it said of its output so far is not the truth."""
    early = chunk({"text": "x"}, usageMetadata={"promptTokenCount": 9, "candidatesTokenCount": 1})
    facts = parse(sse(early))
    assert not facts.ended
    assert facts.usage == Usage(input_tokens=9)


def test_blocked_prompt():
    """The answer to a blocked prompt is whole, and says why it was blocked."""
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "responseId": "r"}
    assert parse(sse(blocked)) == ResponseFacts(response_id="r", stop_reason="SAFETY", ended=True)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 503, "message": "Busy", "status": "UNAVAILABLE"}, "UNAVAILABLE"),
        ({"code": 503, "message": "Busy"}, "503"),
        ({"message": "Busy"}, "error"),
    ],
)
def test_error_in_a_stream(error, kind):
    """An error may come in the middle of a stream whose status was 200."""
    facts = parse(sse(CHUNKS[1], {"error": error}))
    assert (facts.error_type, facts.error_message, facts.ended) == (kind, "Busy", False)
    in_array = json.dumps([CHUNKS[1], {"error": error}]).encode()
    assert parse(in_array, content_type="application/json").error_type == kind


def test_error_message():
    """What Google says to people about a failed request is found, in an array too."""
    error = {"error": {"code": 401, "message": "No key.", "status": "UNAUTHENTICATED"}}
    assert error_message(json.dumps(error).encode()) == "No key."
    assert error_message(json.dumps([error]).encode()) == "No key."


def test_counting_tokens_uses_none():
    """The answer to countTokens is no usage."""
    body = b'{"totalTokens": 31, "usageMetadata": {"promptTokenCount": 31}}'
    facts = parse(body, name=gemini.COUNT_TOKENS, content_type="application/json")
    assert facts == ResponseFacts(ended=True)


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", f"{MODEL}:generateContent", gemini.GENERATE),
        ("POST", f"{MODEL}:streamGenerateContent", gemini.STREAM),
        ("POST", f"{MODEL}:countTokens", gemini.COUNT_TOKENS),
        ("POST", f"/api/google/gemini{MODEL}:streamGenerateContent", gemini.STREAM),
        (
            "POST",
            "/api/google/vertexai/v1/projects/p/locations/l/publishers/google/models/"
            "gemini-2.5-pro:generateContent",
            gemini.GENERATE,
        ),
        (
            "POST",
            "/api/google/vertexai/v1beta1/publishers/google/models/gemini-2.5-pro"
            ":streamGenerateContent",
            gemini.STREAM,
        ),
        ("POST", f"{MODEL}:embedContent", gemini.EMBEDDINGS),
        ("POST", "/v1/projects/p/publishers/anthropic/models/claude:rawPredict", None),
        ("POST", "/v1/models/m", None),
        ("GET", f"{MODEL}:generateContent", None),
    ],
)
def test_name_call(method, path, name):
    """Calls are known by method and the end of the path, which also names the model."""
    found = find_dialect(method, path)
    assert (found and found[1]) == name
    if name:
        assert gemini.model_in_path(path) == "gemini-2.5-pro"


def request(name=gemini.STREAM, **body):
    return gemini.parse_request(name, json.dumps(body).encode())


def test_request():
    """A request tells whether it streams, and the tool results new in it."""

    def results(*names):
        parts = [{"functionResponse": {"id": name, "name": "t", "response": {}}} for name in names]
        return {"role": "user", "parts": parts}

    facts = request(
        generationConfig={"temperature": 1},
        contents=[results("old"), {"role": "model", "parts": []}, results("new1", "new2")],
    )
    assert facts.streaming
    assert facts.requested_model is None
    assert facts.tool_result_ids == ("new1", "new2")
    assert facts.body == {"generationConfig": {"temperature": 1}}
    assert not request(gemini.GENERATE).streaming


def test_digest():
    """Two requests have the same digest if their contents are the same."""
    first = request(contents=[{"role": "user"}])
    again = request(contents=[{"role": "user"}], tools=[])
    other = request(contents=[{"role": "model"}])
    assert first.digest == again.digest != other.digest
    assert request().digest is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"contents":}', b"\xff", b'"x"'])
def test_bad_request(body):
    """A request that is no JSON object is a ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011 - the message is the JSON library's.
        gemini.parse_request(gemini.STREAM, body)


@given(st.binary(max_size=300), st.sampled_from([SSE, "application/json"]))
def test_garbage(garbage, content_type):
    """Whatever comes as an answer, parsing it does not fail."""
    parse(garbage, sse(CHUNKS[0])[:40], garbage, content_type=content_type)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "candidates",
                    "content",
                    "contents",
                    "error",
                    "finishReason",
                    "functionCall",
                    "functionResponse",
                    "id",
                    "parts",
                    "promptFeedback",
                    "promptTokenCount",
                    "responseId",
                    "role",
                    "usageMetadata",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_unexpected_shapes(document):
    """Fields of any type in any place do not make parsing fail, as answer or as request."""
    data = json.dumps(document).encode()
    parse(data, content_type="application/json")
    parse(b"data: " + data + b"\n\n")
    with suppress(ValueError):
        gemini.parse_request(gemini.STREAM, data)


@pytest.mark.parametrize("content_type", [SSE, "application/json"])
def test_deep_nesting(content_type):
    """Nesting beyond any parser's depth is not understood, and nothing worse."""
    deep = b"[" * 200_000
    assert not parse(b"data: " + deep + b"\n\n", content_type=content_type).understood
    with pytest.raises(ValueError, match="nested"):
        gemini.parse_request(gemini.STREAM, b'{"tools":' + deep)


def test_huge_line():
    """A line beyond the limit is passed over and said to be; what follows is understood."""
    pieces = [b"data: ", *[b"x" * 1_000_000] * 20, b"\n\n" + sse(*CHUNKS)]
    facts = parse(*pieces)
    assert facts.response_id == "resp_é1"
    assert not facts.understood

"""What is remembered of foreign spans, so that most cost no parsing, and what is never assumed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tracebridge.relay.rules import Judge, Rules
from tracebridge.spans import Content

NAMES = [
    *("gen_ai.operation.name", "gen_ai.response.id", "gen_ai.request.model", "litellm.call_id"),
    *("gen_ai.usage.input_tokens", "cost", "model", "client.port", "input.value", "n" * 130),
    *("http.request.header.x-api-key", "metadata.user_api_key_end_user_id"),
    *(
        "http.request.header.x-claude-code-session-id",
        "http.request.header.x-claude-code-prompt-id",
    ),
]
SECRET = "sk-ant-api03-0123456789abcdefghij"
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        ["", "chat", "claude-opus-5", "deadbeef", "msg_01A", "chatcmpl-9", SECRET, "é"]
    ),
    st.from_regex(r"[0-9a-f-]{1,70}", fullmatch=True),
    st.text(max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(allow_nan=False),
    st.just(["a", SECRET]),
)


def attribute(name: str, value: Any) -> KeyValue:
    message = KeyValue(key=name)
    if isinstance(value, bool):
        message.value.bool_value = value
    elif isinstance(value, int):
        message.value.int_value = value
    elif isinstance(value, float):
        message.value.double_value = value
    elif isinstance(value, str):
        message.value.string_value = value
    else:
        for each in value:
            message.value.array_value.values.add(string_value=each)
    return message


ATTRIBUTES = st.lists(st.builds(attribute, st.sampled_from(NAMES), VALUES), max_size=6)
WARM = {level: Judge(Rules(level)) for level in Content}


@given(st.sampled_from(Content), st.lists(ATTRIBUTES, max_size=4))
def test_what_was_seen_before_changes_nothing(level, spans):
    """Who has read thousands of spans tells of the next one what a newcomer would."""
    for attributes in spans:
        rest = Span(name="n", attributes=attributes).SerializeToString()
        fresh = Judge(Rules(level)).told(rest)
        assert WARM[level].told(rest) == fresh
        assert WARM[level].told(rest) == fresh


@given(ATTRIBUTES)
def test_an_attribute_among_others_is_told_as_it_is_alone(attributes):
    """Of what is neither text nor list nothing but a header's name can take anything."""
    judge = Judge(Rules())
    told = judge.told(Span(name="n", attributes=attributes).SerializeToString())
    kept = []
    for each in attributes:
        alone = judge.told(Span(attributes=[each]).SerializeToString())
        found = Span.FromString(alone.clean).attributes
        kept += found
        if each.value.WhichOneof("value") not in ("string_value", "array_value"):
            assert list(found) == ([] if "api-key" in each.key else [each])
    assert list(Span.FromString(told.clean).attributes) == kept


def test_usage_is_put_aside_whatever_its_value():
    """Of numbers that come once as of those that come again."""
    judge = Judge(Rules())
    for tokens in (0, 7, 7, 300, 70_000, 2**40):
        usage = attribute("gen_ai.usage.input_tokens", tokens)
        told = judge.told(Span(attributes=[usage]).SerializeToString())
        assert Span.FromString(told.clean).attributes == [usage]
        aside = attribute("tracebridge.original.gen_ai.usage.input_tokens", tokens)
        assert Span.FromString(told.uncounted).attributes == [aside]


def test_a_pattern_of_the_users_own_finds_ids_too():
    """What is no secret to us may be one to them."""
    judge = Judge(Rules(patterns=[re.compile("dead")]))
    for _ in range(2):
        told = judge.told(Span(attributes=[attribute("session", "deadbeef")]).SerializeToString())
        assert b"dead" not in told.clean


def test_a_text_behind_a_number_is_no_number():
    """Of a value that is told twice the last one counts, and it may be a secret."""
    text = b"\x0a" + bytes([len(SECRET)]) + SECRET.encode()
    value = b"\x18\x01" + text
    encoded = b"\x0a\x01n\x12" + bytes([len(value)]) + value
    told = Judge(Rules()).told(b"\x4a" + bytes([len(encoded)]) + encoded)
    assert SECRET.encode() not in told.clean


@pytest.mark.parametrize("name", ["litellm.call_id", "gen_ai.request.model", "gen_ai.response.id"])
@pytest.mark.parametrize("value", [["a", "b"], 7, True, 1.5])
def test_names_with_values_of_another_kind_are_read(name, value):
    """Whoever writes a list where an id belongs gets the span passed on."""
    facts = {"gen_ai.operation.name": "chat", "gen_ai.response.id": "msg_1", name: value}
    span = Span(attributes=[attribute(*each) for each in facts.items()])
    told = Judge(Rules()).told(span.SerializeToString())
    assert told.is_call
    assert Span.FromString(told.clean).attributes == span.attributes

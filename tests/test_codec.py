"""Records survive the way to disk and back."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracebridge.codec import PARTS, decode, encode, part_kind
from tracebridge.model import (
    GatewayCall,
    HookEvent,
    ModelCall,
    Part,
    Sighting,
    Span,
    SpanEvent,
    SpanKind,
    SpanLink,
    Usage,
)

# What UTF-8 can hold; the readers see to it that nothing else gets here.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
COUNT = st.integers(-(2**63), 2**63 - 1)
st.register_type_strategy(str, TEXT)
st.register_type_strategy(int, COUNT)

CALL = GatewayCall(call_id="1", gateway="g", method="POST", path="/", start_ns=1, end_ns=2)


@pytest.mark.parametrize("part_type", get_args(Part))
def test_every_part_comes_back_as_it_was(part_type):
    """With any text and any number in any field."""

    @given(st.from_type(part_type))
    def check(part):
        assert decode(encode(part), part_type) == part
        assert encode(decode(encode(part), part_type)) == encode(part)
        assert PARTS[part_kind(part)] is part_type

    check()


HEADERS = st.dictionaries(TEXT, TEXT, max_size=3)


@given(st.builds(GatewayCall, request_headers=HEADERS, response_headers=HEADERS))
def test_a_gateway_call_comes_back_as_it_was(call):
    """Identity, usage and headers included."""
    assert decode(encode(call), GatewayCall) == call


@given(TEXT, COUNT, st.none() | COUNT, TEXT)
def test_a_span_comes_back_as_it_was(text, start_ns, end_ns, value):
    """Attributes of every type keep their type and their order."""
    attributes = {"b": value, "a": True, "i": start_ns, "f": 0.5, text: ("x", value)}
    span = Span(
        trace_id="0" * 32,
        span_id="1" * 16,
        parent_span_id=None,
        name=text,
        kind=SpanKind.CLIENT,
        start_ns=start_ns,
        end_ns=end_ns,
        attributes=attributes,
        events=(SpanEvent(name=text, time_ns=1, attributes={"n": 1}),),
        links=(SpanLink(trace_id="2" * 32, span_id="3" * 16),),
    )
    assert decode(encode(span), Span) == span


def test_equal_records_have_equal_bytes():
    """Fields stand in the order of their definition."""
    one = replace(CALL, usage=Usage(input_tokens=1), model="m")
    other = replace(CALL, model="m", usage=Usage(input_tokens=1))
    assert encode(one) == encode(other)


def test_fields_of_a_newer_version_are_passed_over():
    """A record with more fields than we know is still a record."""
    data = encode(CALL)[:-1] + b',"not_yet_invented":{"x":[1]}}'
    assert decode(data, GatewayCall) == CALL


@pytest.mark.parametrize(
    ("data", "record_type", "complaint"),
    [
        (encode(CALL).replace(b'"start_ns":1', b'"start_ns":"x"'), GatewayCall, "start_ns"),
        (encode(CALL).replace(b'"call_id":"1",', b""), GatewayCall, "call_id"),
        (b'{"key":"k","usage":{"input_tokens":[]}}', ModelCall, "usage.input_tokens"),
        (b'{"key":1}', ModelCall, "key"),
        (b"[]", ModelCall, "object"),
        (b"", ModelCall, "truncated"),
        (encode(CALL)[:50], GatewayCall, "truncated"),
        (b"\xff\xfe", GatewayCall, "malformed"),
        (b'{"key":"\xff"}', ModelCall, "utf-8"),
        (b"[" * 100_000, HookEvent, ""),
    ],
)
def test_what_does_not_fit_is_refused_by_name(data, record_type, complaint):
    """The error says which field, or what is wrong with the whole."""
    with pytest.raises(ValueError, match=r"(?i)" + complaint):
        decode(data, record_type)


def test_a_sighting_tells_its_kind_of_part():
    """The union itself is not decoded: whoever stores it stores the kind beside it."""
    sighting = Sighting(
        agent="a", session_id="s", source="hook", time_ns=1, part=ModelCall(key="k")
    )
    assert part_kind(sighting.part) == "ModelCall"

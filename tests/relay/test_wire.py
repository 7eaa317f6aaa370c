"""Export requests cut up and put together again."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.relay.conftest import GatewayCall, keys, turn, watchers_request
from tracebridge.relay.foreign import Reader
from tracebridge.relay.rules import Rules
from tracebridge.relay.wire import (
    Resource,
    Scope,
    WireError,
    cut,
    ids_of,
    join,
    name_of,
    split,
)

GOOD = watchers_request(turn(), "msg_1") + GatewayCall("msg_2", attributes=keys()).request()


def test_what_was_cut_up_is_the_same_when_it_is_put_together():
    """Byte for byte, and span for span as protobuf sees it."""
    resources = split(GOOD)
    assert join(resources) == GOOD
    message = ExportTraceServiceRequest.FromString(GOOD)
    seen = [
        (name_of(scope.rest).decode(), span)
        for resource in resources
        for scope in resource.scopes
        for span in scope.spans
    ]
    assert seen == [
        (scope.scope.name, span.SerializeToString())
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert [ids_of(span) for _, span in seen] == [
        (span.trace_id, span.span_id)
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def test_attributes_are_told_from_the_other_fields_of_a_span():
    """Wherever they stand, whatever else there is."""
    name, kind, first, second = b"\x2a\x01n", b"\x30\x01", b"\x0a\x01a", b"\x0a\x01b"
    new = b"\x82\x06\x03new"
    span = b"\x4a\x03" + first + name + b"\x4a\x03" + second + new + kind + b"\x4a\x00"
    assert cut(span) == ([first, second, b""], name + new + kind)


def test_what_has_no_spans_left_is_left_out():
    """Scopes and resources alike."""
    (ours, foreign) = split(GOOD)
    empty = [Scope(scope.rest, []) for scope in ours.scopes]
    assert join([Resource(ours.rest, empty), Resource(foreign.rest, [])]) == b""
    assert join([Resource(ours.rest, [*empty, *ours.scopes])]) == join([ours])
    assert split(b"") == []


def test_fields_of_the_future_are_kept():
    """Whatever a newer OTLP puts beside resource, scope and spans."""
    unknown = b"\x82\x06\x03new"
    scope = b"\x12" + bytes([len(unknown) + 4]) + b"\x12\x02\x08\x01" + unknown
    resource = scope + unknown
    request = b"\x0a" + bytes([len(resource)]) + resource
    (found,) = split(request)
    assert found.rest == unknown
    assert found.scopes[0].rest == unknown
    assert sorted(join([found])) == sorted(request)


@given(st.data())
def test_damaged_requests_raise_one_kind_of_error(data):
    """Cut, overwritten or made up: no crash, no other exception."""
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    _read(cut)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_error(made_up):
    """No crash, no other exception."""
    _read(made_up)


def _read(request: bytes) -> None:
    reader = Reader(Rules())
    with contextlib.suppress(WireError):
        for resource in split(request):
            for scope in resource.scopes:
                name_of(scope.rest)
                for span in scope.spans:
                    ids_of(span)
    try:
        for resource in split(request):
            reader.clean_resource(resource.rest)
            for scope in resource.scopes:
                reader.clean_scope(scope.rest)
                for span in scope.spans:
                    reader.read(span).unchanged()
    except WireError:
        return


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x0a",
        b"\x0a\xff",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0b",
        b"\x00\x00",
        b"\x0a\x03\x12\x05ab",
        b"\x0a\x05\x12\x03\x12\x7fa",
    ],
)
def test_lengths_that_lead_nowhere_are_errors(request_bytes):
    """A reader that trusted them would read somebody else's bytes."""
    with pytest.raises(WireError):
        split(request_bytes)

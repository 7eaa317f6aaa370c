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
from tracebridge.relay.wire import WireError, ids_of, join, spans_of, split

GOOD = watchers_request(turn(), "msg_1") + GatewayCall("msg_2", attributes=keys()).request()


def test_what_was_cut_up_is_the_same_when_it_is_put_together():
    """Byte for byte, and span for span as protobuf sees it."""
    resources = split(GOOD)
    assert join(resources) == GOOD
    rebuilt = [resource.with_scopes(resource.scopes) for resource in resources]
    assert join([each for each in rebuilt if each is not None]) == GOOD
    message = ExportTraceServiceRequest.FromString(GOOD)
    seen = [
        (scope.name.decode(), span)
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
    assert [ids_of(span, 0, len(span)) for _, span in seen] == [
        (span.trace_id, span.span_id)
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def test_requests_of_one_scope_alone_are_told_from_others():
    """Where their spans lie is found without a copy; one of another scope is enough."""
    ours = watchers_request(turn(), "msg_1", "msg_2")
    places = spans_of(ours * 2, b"tracebridge")
    assert places is not None
    spans = [span for each in split(ours) for scope in each.scopes for span in scope.spans]
    assert [(ours * 2)[start:end] for start, end in places] == spans * 2
    assert spans_of(GOOD, b"tracebridge") is None
    assert spans_of(b"", b"tracebridge") == []
    # Spans before the scope that they are of, and spans of none.
    span = b"\x12\x02\x08\x01"
    for scope in (span + b"\x0a\x0d\x0a\x0btracebridge", span):
        inner = b"\x12" + bytes([len(scope)]) + scope
        assert spans_of(b"\x0a" + bytes([len(inner)]) + inner, b"tracebridge") is None


def test_what_has_no_spans_left_is_left_out():
    """Scopes and resources alike."""
    (ours, foreign) = split(GOOD)
    assert ours.with_scopes([scope.with_spans([]) for scope in ours.scopes]) is None
    assert foreign.with_scopes([]) is None
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
    rebuilt = found.with_scopes(found.scopes)
    assert rebuilt is not None
    assert sorted(join([rebuilt])) == sorted(request)


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
        for start, end in spans_of(request, b"tracebridge") or ():
            ids_of(request, start, end)
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

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, TraceFlags
from opentelemetry.trace import SpanKind as OfficialKind
from opentelemetry.trace.status import Status as OfficialStatus
from opentelemetry.trace.status import StatusCode

from tracebridge import ids
from tracebridge.encode import (
    SCOPE_NAME,
    encode_span,
    export_request,
    is_intact,
    package_version,
    to_json,
)
from tracebridge.model import Span, SpanEvent, SpanKind, SpanLink, Status
from tracebridge.testing.receiver import parse_spans, plain

TRACE_ID = ids.trace_id("claude-code", "session", "turn")
ROOT_ID = ids.root_span_id(TRACE_ID)


def a_span(**changes) -> Span:
    values = {
        "trace_id": TRACE_ID,
        "span_id": ids.span_id(TRACE_ID, "tool", "toolu_1"),
        "parent_span_id": ROOT_ID,
        "name": "execute_tool Bash",
        "kind": SpanKind.CLIENT,
        "start_ns": 1_700_000_000_000_000_001,
        "end_ns": 1_700_000_001_000_000_002,
        "status": Status.ERROR,
        "status_message": "exit 1",
        "attributes": {
            "text": "é\n",
            "yes": True,
            "number": -3,
            "ratio": 0.25,
            "list": ("a", "b"),
        },
        "events": (SpanEvent(name="exception", time_ns=5, attributes={"exception.type": "E"}),),
        "links": (SpanLink(trace_id="ab" * 16, span_id="cd" * 8, attributes={"kind": "gateway"}),),
    }
    return Span(**(values | changes))


def official(span: Span) -> ReadableSpan:
    def context(trace_id: str, span_id: str) -> SpanContext:
        flags = TraceFlags(1)
        return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=flags)

    return ReadableSpan(
        name=span.name,
        context=context(span.trace_id, span.span_id),
        parent=context(span.trace_id, span.parent_span_id) if span.parent_span_id else None,
        resource=Resource({"service.name": "claude-code", "host.name": "h"}),
        attributes=span.attributes,
        events=[Event(e.name, e.attributes, e.time_ns) for e in span.events],
        links=[Link(context(k.trace_id, k.span_id), k.attributes) for k in span.links],
        kind=OfficialKind[span.kind.name],
        instrumentation_scope=InstrumentationScope(SCOPE_NAME, package_version()),
        status=OfficialStatus(StatusCode[span.status.name], span.status_message or None),
        start_time=span.start_ns,
        end_time=span.end_ns,
    )


@pytest.mark.parametrize(
    "span",
    [
        a_span(),
        a_span(parent_span_id=None, status=Status.UNSET, status_message="", links=(), events=()),
        a_span(status=Status.OK, status_message="", attributes={}),
    ],
    ids=["full", "root", "bare"],
)
def test_a_request_is_what_the_official_exporter_would_send(span):
    """But for the flags: ours say that the span is sampled, not whether its parent is remote."""
    resource = (("service.name", "claude-code"), ("host.name", "h"))
    ours = ExportTraceServiceRequest.FromString(export_request({resource: [encode_span(span)]}))
    theirs = encode_spans([official(span)])
    for request, flags in ((ours, 1), (theirs, 0x100)):
        (message,) = request.resource_spans[0].scope_spans[0].spans
        assert message.flags == flags
        message.flags = 0
        for link in message.links:
            link.flags = 0
    assert ours == theirs


texts = st.text(max_size=20) | st.sampled_from(["\ud800", "a\udcff", "\0", "x" * 300])
values = texts | st.booleans() | st.integers() | st.floats() | st.tuples(texts, texts)
attributes = st.dictionaries(texts, values, max_size=5)
times = st.integers(-(2**70), 2**70)
spans = st.builds(
    a_span,
    name=texts,
    status_message=texts,
    start_ns=times,
    end_ns=times,
    attributes=attributes,
    events=st.lists(
        st.builds(SpanEvent, name=texts, time_ns=times, attributes=attributes), max_size=2
    ).map(tuple),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(span=spans)
def test_any_span_encodes_and_always_to_the_same_bytes(span):
    """Lone surrogates, huge numbers and impossible times included; and JSON says the same."""
    data = encode_span(span)
    assert encode_span(span) == data
    request = export_request({(): [data, data]})
    received = parse_spans(request)
    assert [each.message.SerializeToString(deterministic=True) for each in received] == [data] * 2
    assert request.count(data) == 2
    document = json.loads(json.dumps(to_json({(): [data]})))
    (from_json,) = parse_spans(json.dumps(document).encode(), is_json=True)
    assert repr(from_json.message) == repr(received[0].message)


def test_values_keep_their_types():
    """A bool is no number, and what no 64 bits can hold becomes text."""
    given_values = {"t": True, "i": 2**63 - 1, "huge": 2**63, "f": 1.0, "none": (), "nan": math.inf}
    span = a_span(attributes=given_values)
    message = SpanMessage.FromString(encode_span(span))
    assert [each.value.WhichOneof("value") for each in message.attributes] == [
        "bool_value",
        "int_value",
        "string_value",
        "double_value",
        "array_value",
        "double_value",
    ]
    assert plain(message.attributes)["huge"] == "0x8000000000000000"


def test_json_is_otlp_json():
    """Ids in hex, 64-bit numbers as strings, enums as numbers, names in camel case."""
    document = to_json({(("service.name", "x"),): [encode_span(a_span())]})
    (resource_spans,) = document["resourceSpans"]
    assert resource_spans["resource"]["attributes"] == [
        {"key": "service.name", "value": {"stringValue": "x"}}
    ]
    (scope_spans,) = resource_spans["scopeSpans"]
    assert scope_spans["scope"] == {"name": "tracebridge", "version": package_version()}
    (span,) = scope_spans["spans"]
    assert (span["traceId"], span["parentSpanId"]) == (TRACE_ID, ROOT_ID)
    assert (span["startTimeUnixNano"], span["kind"]) == ("1700000000000000001", 3)
    assert span["status"] == {"code": 2, "message": "exit 1"}
    assert {"key": "number", "value": {"intValue": "-3"}} in span["attributes"]
    assert span["links"][0]["traceId"] == "ab" * 16


def test_an_open_span_is_not_encoded():
    """It would be sent as finished."""
    with pytest.raises(ValueError, match="still open"):
        encode_span(a_span(end_ns=None))


def test_damaged_bytes_are_noticed():
    """A cut span is told from a whole one."""
    data = encode_span(a_span())
    assert is_intact(data)
    assert not is_intact(data[:-3])
    assert not is_intact(b"\xff\xff")

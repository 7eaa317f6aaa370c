"""Spans to OTLP: protobuf bytes for the outbox and the wire, and the same as OTLP/JSON.

A span is encoded once, when it is final, and those bytes are what every sink is given. A request
is laid around them on the level of the wire format, so a re-send is byte-identical even where a
newer protobuf library would encode the span in another way.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, TypeAlias

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tracebridge.model import AttributeValue, Span

# What is true of the process that made a span, such as service.name.
Resource: TypeAlias = tuple[tuple[str, str], ...]
# Encoded spans by the resource they share, in the order in which they are to be sent.
Groups: TypeAlias = Mapping[Resource, Sequence[bytes]]

SCOPE_NAME = "tracebridge"
_SAMPLED = 1
_INT64 = range(-(2**63), 2**63)
_FIXED64_MAX = 2**64 - 1
_IDS = ("traceId", "spanId", "parentSpanId")


def encode_span(span: Span) -> bytes:
    """Return *span* as an OTLP Span; equal spans give equal bytes. Raise ValueError if it is open."""
    if span.end_ns is None:
        raise ValueError(f"span {span.span_id} ({span.name}) is still open, so it cannot be sent")
    message = SpanMessage()
    message.trace_id = bytes.fromhex(span.trace_id)
    message.span_id = bytes.fromhex(span.span_id)
    if span.parent_span_id:
        message.parent_span_id = bytes.fromhex(span.parent_span_id)
    # Whether the parent is remote is left unsaid: a hook and a gateway are not one process.
    message.flags = _SAMPLED
    _set_text(message, "name", span.name)
    message.kind = SpanMessage.SpanKind.ValueType(span.kind)
    message.start_time_unix_nano = _time(span.start_ns)
    message.end_time_unix_nano = _time(span.end_ns)
    _add_attributes(message.attributes, span.attributes)
    for event in span.events:
        event_message = message.events.add()
        event_message.time_unix_nano = _time(event.time_ns)
        _set_text(event_message, "name", event.name)
        _add_attributes(event_message.attributes, event.attributes)
    for link in span.links:
        link_message = message.links.add()
        link_message.trace_id = bytes.fromhex(link.trace_id)
        link_message.span_id = bytes.fromhex(link.span_id)
        _add_attributes(link_message.attributes, link.attributes)
    # As the official exporters do, the status is there even where it is unset.
    message.status.SetInParent()
    message.status.code = message.status.StatusCode.ValueType(span.status)
    _set_text(message.status, "message", span.status_message)
    return message.SerializeToString(deterministic=True)


def export_request(groups: Groups) -> bytes:
    """Return an ExportTraceServiceRequest holding the encoded spans, each as the bytes it is."""
    return b"".join(
        _field(
            1,
            _field(1, _encoded_resource(resource))
            + _field(
                2, _field(1, _encoded_scope()) + b"".join(_field(2, span) for span in encoded_spans)
            ),
        )
        for resource, encoded_spans in groups.items()
    )


def is_intact(encoded_span: bytes) -> bool:
    try:
        SpanMessage.FromString(encoded_span)
    except DecodeError:
        return False
    return True


def to_json(groups: Groups) -> dict[str, Any]:
    """Return OTLP/JSON. Raise DecodeError where a span is not intact."""
    request = ExportTraceServiceRequest.FromString(export_request(groups))
    # The standard mapping but for ids, which OTLP/JSON wants in hex and not in base64.
    document: dict[str, Any] = MessageToDict(request, use_integers_for_enums=True)
    for resource_spans in document.get("resourceSpans", ()):
        for scope_spans in resource_spans.get("scopeSpans", ()):
            for span in scope_spans.get("spans", ()):
                for bearer in (span, *span.get("links", ())):
                    _ids_to_hex(bearer)
    return document


@cache
def package_version() -> str:
    """Return the version of tracebridge, or "" where it runs without having been installed."""
    try:
        return version("tracebridge")
    except PackageNotFoundError:
        return ""


class _AttributeList(Protocol):
    def add(self) -> KeyValue: ...


def _add_attributes(messages: _AttributeList, attributes: Mapping[str, AttributeValue]) -> None:
    for name, value in attributes.items():
        message = messages.add()
        _set_text(message, "key", name)
        _set_value(message.value, value)


def _set_value(message: AnyValue, value: AttributeValue) -> None:
    # bool before int, of which it is a kind.
    if isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, str):
        _set_text(message, "string_value", value)
    elif isinstance(value, int):
        if value in _INT64:
            message.int_value = value
        else:
            # Hexadecimal, because Python refuses to print huge numbers in decimal.
            message.string_value = hex(value)
    elif isinstance(value, float):
        message.double_value = value
    else:
        message.array_value.SetInParent()
        for element in value:
            _set_text(message.array_value.values.add(), "string_value", element)


def _set_text(message: object, field: str, text: str) -> None:
    try:
        setattr(message, field, text)
    except UnicodeEncodeError:
        # Lone surrogates reach us from damaged JSON; protobuf has no place for them.
        setattr(message, field, text.encode("utf-8", "replace").decode())


def _time(time_ns: int) -> int:
    return min(max(time_ns, 0), _FIXED64_MAX)


@cache
def _encoded_scope() -> bytes:
    scope = InstrumentationScope(name=SCOPE_NAME, version=package_version())
    return scope.SerializeToString(deterministic=True)


def _encoded_resource(resource: Resource) -> bytes:
    message = ResourceMessage()
    _add_attributes(message.attributes, dict(resource))
    return message.SerializeToString(deterministic=True)


def _field(number: int, data: bytes) -> bytes:
    """Return *data* as a length-delimited protobuf field."""
    head = bytearray([number << 3 | 2])
    length = len(data)
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + data


def _ids_to_hex(bearer: dict[str, Any]) -> None:
    for name in _IDS:
        if name in bearer:
            bearer[name] = base64.b64decode(bearer[name]).hex()

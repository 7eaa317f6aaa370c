"""Spans to OTLP: protobuf bytes for the outbox and the wire, and the same as OTLP/JSON.

A span is encoded once, when it is final, and those bytes are what every sink is given. A request
is laid around them on the level of the wire format, so a re-send is byte-identical even where a
newer protobuf library would encode the span in another way.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from struct import Struct
from typing import Any, TypeAlias

from tracebridge.model import AttributeValue, Span

# What is true of the process that made a span, such as service.name.
Resource: TypeAlias = tuple[tuple[str, str], ...]
# Encoded spans by the resource they share, in the order in which they are to be sent.
Groups: TypeAlias = Mapping[Resource, Sequence[bytes]]

SCOPE_NAME = "tracebridge"
# Of `flags`, a fixed32.
_SAMPLED = b"\x85\x01\x01\x00\x00\x00"
_INT64 = range(-(2**63), 2**63)
_FIXED64_MAX = 2**64 - 1
_FIXED64, _DOUBLE = Struct("<Q"), Struct("<d")
_BYTES = [bytes([number]) for number in range(0x80)]
# How a length-delimited field of each number below 16 begins.
_HEADS = [bytes([number << 3 | 2]) for number in range(16)]
_IDS = ("traceId", "spanId", "parentSpanId")


def encode_span(span: Span) -> bytes:
    """Return *span* as an OTLP Span; equal spans give equal bytes. Raise ValueError if it is open."""
    if span.end_ns is None:
        raise ValueError(f"span {span.span_id} ({span.name}) is still open, so it cannot be sent")
    parent = span.sent_parent_span_id
    # A span's own ids have 16 and 8 bytes. As the official exporters do, the status is there even where
    # it is unset. Whether the parent is remote is left unsaid: a hook and a gateway are not one
    # process.
    return b"".join(
        [
            bytes.fromhex(f"0a10{span.sent_trace_id}1208{span.span_id}"),
            _field(4, bytes.fromhex(parent)) if parent else b"",
            _text(5, span.name),
            _number(6, span.kind),
            _fixed64(7, span.start_ns),
            _fixed64(8, span.end_ns),
            _attributes(9, span.attributes),
            *[
                _field(
                    11,
                    _fixed64(1, event.time_ns)
                    + _text(2, event.name)
                    + _attributes(3, event.attributes),
                )
                for event in span.events
            ],
            *[
                _field(
                    13,
                    bytes.fromhex(f"0a10{link.trace_id}1208{link.span_id}")
                    + _attributes(4, link.attributes),
                )
                for link in span.links
            ],
            _field(15, _text(2, span.status_message) + _number(3, span.status)),
            _SAMPLED,
        ]
    )


def export_request(groups: Groups) -> bytes:
    """Return an ExportTraceServiceRequest holding the encoded spans, each as the bytes it is."""
    pieces = []
    for resource, encoded_spans in groups.items():
        about = _field(1, _encoded_resource(resource))
        scope = _field(1, _encoded_scope())
        spans = [piece for span in encoded_spans for piece in (_head(2, len(span)), span)]
        scope_head = _head(2, len(scope) + sum(map(len, spans)))
        length = len(about) + len(scope_head) + len(scope) + sum(map(len, spans))
        # Put together once: each copy of a large batch costs as much as all that is around it.
        pieces += [_head(1, length), about, scope_head, scope, *spans]
    return b"".join(pieces)


def is_intact(encoded_span: bytes) -> bool:
    # Protobuf's own library is loaded where something is read; most commands only look.
    from google.protobuf.message import DecodeError  # noqa: PLC0415
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage  # noqa: PLC0415

    try:
        SpanMessage.FromString(encoded_span)
    except DecodeError:
        return False
    return True


def to_json(groups: Groups) -> dict[str, Any]:
    """Return OTLP/JSON. Raise DecodeError where a span is not intact."""
    # As in `is_intact`.
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415
        ExportTraceServiceRequest,
    )

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
    # As in `is_intact`: it takes as long as all else that is needed to look at the store.
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("tracebridge")
    except PackageNotFoundError:
        return ""


def _attributes(number: int, attributes: Mapping[str, AttributeValue]) -> bytes:
    # As text with a character for each byte, which Python puts together faster than bytes.
    pieces: list[str] = []
    for name, value in attributes.items():
        if type(value) is str and value.isascii():
            pieces += (_before_ascii(number, name, len(value)), value)
        elif isinstance(value, str):
            pieces.append(_attribute(number, name, value))
        else:
            pieces.append(_common_attribute(number, name, value))
    return "".join(pieces).encode("latin-1")


@lru_cache(maxsize=1 << 14)
def _before_ascii(number: int, name: str, length: int) -> str:
    """Return all of an attribute but its value, a text of so many characters of ASCII."""
    inside = _head(1, length)
    before = _text(1, name) + _head(2, len(inside) + length) + inside
    return (_head(number, len(before) + length) + before).decode("latin-1")


def _attribute(number: int, name: str, value: AttributeValue) -> str:
    return _field(number, _text(1, name) + _field(2, _any_value(value))).decode("latin-1")


# Numbers, truths and short lists often come again. Typed, for True equals 1.
_common_attribute = lru_cache(maxsize=4096, typed=True)(_attribute)


def _any_value(value: AttributeValue) -> bytes:
    # bool before int, of which it is a kind. Which field there is says the type, so 0 is written.
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, str):
        return _field(1, _utf8(value))
    if isinstance(value, int):
        # Hexadecimal, because Python refuses to print huge numbers in decimal.
        inside = value in _INT64
        return b"\x18" + _varint(value % 2**64) if inside else _field(1, hex(value).encode())
    if isinstance(value, float):
        return b"\x21" + _DOUBLE.pack(value)
    return _field(5, b"".join(_field(1, _field(1, _utf8(element))) for element in value))


def _utf8(text: str) -> bytes:
    # Lone surrogates reach us from damaged JSON; protobuf has no place for them.
    return text.encode("utf-8", "replace")


def _text(number: int, text: str) -> bytes:
    return _field(number, _utf8(text)) if text else b""


def _number(number: int, value: int) -> bytes:
    return _BYTES[number << 3] + _varint(value) if value else b""


def _fixed64(number: int, time_ns: int) -> bytes:
    if time_ns <= 0:
        return b""
    return _BYTES[number << 3 | 1] + _FIXED64.pack(min(time_ns, _FIXED64_MAX))


@cache
def _encoded_scope() -> bytes:
    return _text(1, SCOPE_NAME) + _text(2, package_version())


@lru_cache(maxsize=64)
def _encoded_resource(resource: Resource) -> bytes:
    return _attributes(1, dict(resource))


def _field(number: int, data: bytes) -> bytes:
    """Return *data* as a length-delimited protobuf field."""
    return _head(number, len(data)) + data


def _head(number: int, length: int) -> bytes:
    return _HEADS[number] + _varint(length)


def _varint(value: int) -> bytes:
    if value <= 0x7F:
        return _BYTES[value]
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _ids_to_hex(bearer: dict[str, Any]) -> None:
    for name in _IDS:
        if name in bearer:
            bearer[name] = base64.b64decode(bearer[name]).hex()

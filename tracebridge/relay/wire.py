"""A trace export request as bytes: cut into groups of spans, and put together again. Pure.

Nothing inside a span is parsed here but its ids, so what passes unchanged costs no more than a
copy. Where bytes do not follow the wire format, WireError says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_TRACES, _RESOURCE_SCOPES, _SCOPE, _SPANS, _NAME = 1, 2, 1, 2, 1
_LENGTH_DELIMITED = 2
_SPAN_KEY = _SPANS << 3 | _LENGTH_DELIMITED
_BYTES = [bytes([number]) for number in range(0x80)]
# How a length-delimited field of each number below 16 begins.
_HEADS = [bytes([number << 3 | _LENGTH_DELIMITED]) for number in range(16)]
_TRACE_ID_KEY, _SPAN_ID_KEY, _IDS_LENGTH = b"\x0a\x10", b"\x12\x08", 28


class WireError(ValueError):
    """Bytes that are no export request."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Encoded spans of one scope."""

    name: bytes
    # The fields beside the spans, as they came.
    rest: bytes
    spans: Sequence[bytes]

    def with_spans(self, spans: Sequence[bytes]) -> Scope:
        return Scope(self.name, self.rest, spans)


@dataclass(frozen=True, slots=True)
class Resource:
    # The whole, as it came.
    encoded: bytes
    # The fields beside the scopes.
    rest: bytes
    scopes: Sequence[Scope]

    def with_scopes(self, scopes: Iterable[Scope]) -> Resource | None:
        """Return it with other scopes; None if they have no spans."""
        encoded = b"".join([_encoded_scope(scope) for scope in scopes if scope.spans])
        return Resource(self.rest + encoded, self.rest, ()) if encoded else None


def split(request: bytes) -> list[Resource]:
    """Return what an ExportTraceServiceRequest holds. Raise WireError."""
    return [
        _resource(request, start, end)
        for number, start, end in fields(request, 0, len(request))
        if number == _TRACES
    ]


def spans_of(request: bytes, scope_name: bytes) -> list[tuple[int, int]] | None:
    """Return where the spans of a request lie, None if there may be any of another scope.

    As `split`, without the price of copies. Raise WireError.
    """
    places = []
    for number, start, end in fields(request, 0, len(request)):
        for inner, scope, scope_end in fields(request, start, end) if number == _TRACES else ():
            if inner != _RESOURCE_SCOPES:
                continue
            named = False
            position = scope
            while position < scope_end:
                if request[position] == _SPAN_KEY and named:
                    length, span = varint(request, position + 1, scope_end)
                    position = span + length
                    if position > scope_end:
                        raise WireError("a span reaches beyond the end of what holds it")
                    places.append((span, position))
                    continue
                # The scope stands before its spans wherever fields are encoded in their order.
                kind, value, position = next(fields(request, position, scope_end))
                if kind == _SPANS:
                    return None
                if kind == _SCOPE:
                    named = _scope_name(request, value, position) == scope_name
                    if not named:
                        return None
    return places


def join(resources: Iterable[Resource]) -> bytes:
    """Return an ExportTraceServiceRequest."""
    return b"".join([field(_TRACES, resource.encoded) for resource in resources])


def ids_of(request: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    """Return trace id and span id of a span. Raise WireError where they are not of their lengths."""
    # As a span begins wherever it was encoded in the order of its fields.
    if (
        request[start : start + 2] == _TRACE_ID_KEY
        and request[start + 18 : start + 20] == _SPAN_ID_KEY
        and end - start >= _IDS_LENGTH
    ):
        return request[start + 2 : start + 18], request[start + 20 : start + _IDS_LENGTH]
    ids = {number: request[first:last] for number, first, last in fields(request, start, end)}
    trace_id, span_id = ids.get(1, b""), ids.get(2, b"")
    if len(trace_id) != 16 or len(span_id) != 8:
        raise WireError("a span has no trace id of 16 bytes and span id of 8")
    return trace_id, span_id


def fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of the value of each field of a message."""
    while position < end:
        key, position = varint(data, position, end)
        wire_type = key & 7
        if wire_type == _LENGTH_DELIMITED:
            length, position = varint(data, position, end)
        elif wire_type == 0:
            _, after = varint(data, position, end)
            length = after - position
        elif wire_type == 1:
            length = 8
        elif wire_type == 5:
            length = 4
        else:
            raise WireError(f"a field of the unknown wire type {wire_type}")
        if not key >> 3 or length > end - position:
            raise WireError("a field reaches beyond the end of what holds it")
        yield key >> 3, position, position + length
        position += length


def field(number: int, data: bytes) -> bytes:
    """Return *data* as a length-delimited field."""
    length = len(data)
    head = _HEADS[number]
    if length < 0x80:
        return head + _BYTES[length] + data
    return head + encoded_varint(length) + data


def encoded_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _resource(request: bytes, start: int, end: int) -> Resource:
    rest, scopes = bytearray(), []
    last = start
    for number, inner_start, inner_end in fields(request, start, end):
        if number == _RESOURCE_SCOPES:
            scopes.append(_scope(request, inner_start, inner_end))
        else:
            rest += request[last:inner_end]
        last = inner_end
    return Resource(request[start:end], bytes(rest), scopes)


def _scope(request: bytes, start: int, end: int) -> Scope:
    name, rest, spans = b"", bytearray(), []
    position = start
    while position < end:
        # As `fields` does it, without its price for each span.
        key = request[position]
        if key == _SPAN_KEY:
            length, inner_start = varint(request, position + 1, end)
            position = inner_start + length
            if position > end:
                raise WireError("a span reaches beyond the end of what holds it")
            spans.append(request[inner_start:position])
            continue
        number, inner_start, inner_end = next(fields(request, position, end))
        rest += request[position:inner_end]
        if number == _SCOPE:
            name = _scope_name(request, inner_start, inner_end)
        position = inner_end
    return Scope(name, bytes(rest), spans)


def _encoded_scope(scope: Scope) -> bytes:
    return field(_RESOURCE_SCOPES, scope.rest + b"".join([field(_SPANS, s) for s in scope.spans]))


def _scope_name(request: bytes, start: int, end: int) -> bytes:
    name = b""
    for number, inner_start, inner_end in fields(request, start, end):
        if number == _NAME:
            name = request[inner_start:inner_end]
    return name


def varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return the number at *position* and where it ends. Raise WireError."""
    if position < end and (first := data[position]) < 0x80:
        return first, position + 1
    if position + 1 < end and (second := data[position + 1]) < 0x80:
        return first & 0x7F | second << 7, position + 2
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise WireError("a number without an end")

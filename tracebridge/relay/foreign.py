"""One foreign span: what it tells of its call, and the span as it goes out. Pure.

A span is cut on the wire into its ids, its times and the rest. The rest of spans of one kind is the
same again and again (their names, routes and versions), so what is found out about it is
remembered, and most spans cost no parsing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tracebridge import semconv
from tracebridge.ids import root_span_id
from tracebridge.relay.index import Place
from tracebridge.relay.rules import Judge, Rules, Told
from tracebridge.relay.wire import WireError, as_field

# As most exporters encode a span: trace id, span id and, but for roots, the parent's.
_HEAD = re.compile(rb"\x0a\x10(.{16})\x12\x08(.{8})(?:\x22\x08(.{8})|\x22\x00)?", re.DOTALL)
_TRACE_ID, _SPAN_ID, _PARENT_ID = b"\x0a\x10", b"\x12\x08", b"\x22\x08"
_NAME, _KIND, _START, _END = 0x2A, 0x30, 0x39, 0x41
_TIMES_LENGTH = 18


@dataclass(slots=True)
class ForeignSpan:
    trace_id: bytes
    span_id: bytes
    # Empty for a root.
    parent_span_id: bytes
    times: bytes
    told: Told
    # As it goes out; None while nobody knows where it belongs.
    encoded: bytes | None = None

    def unchanged(self) -> bytes:
        """Return the span as it came, but for secrets and content that may not go out."""
        ids = _TRACE_ID + self.trace_id + _SPAN_ID + self.span_id
        parent = _PARENT_ID + self.parent_span_id if self.parent_span_id else b""
        return ids + parent + self.times + self.told.clean

    def marked(self, reason: str) -> bytes:
        """Return it unchanged, but for an attribute that says why no turn has it."""
        return self.unchanged() + attribute(semconv.LINK_REASON, reason)


class Move:
    """From one foreign trace to a place in a turn's; what spans were is kept beside them."""

    def __init__(self, trace_id: bytes, place: Place) -> None:
        new = bytes.fromhex(place.trace_id)
        self._stays = trace_id == new
        self._root = bytes.fromhex(root_span_id(place.trace_id)) if self._stays else b""
        self._below = bytes.fromhex(place.parent_span_id)
        self._head = _TRACE_ID + new + _SPAN_ID
        self._original = self._link = b""
        if not self._stays:
            self._original = _ORIGINAL_TRACE + trace_id.hex().encode()
            self._link = b"\x6a\x1c\x0a\x10" + trace_id + _SPAN_ID

    def placed(self, span: ForeignSpan, *, counted: bool) -> bytes:
        """Return *span* at its place. *counted*: no span of ours has its usage."""
        told, parent, moved = span.told, span.parent_span_id, self._original
        # Within its turn's trace only what lies under the turn itself, for want of a better parent.
        if not parent or (parent == self._root if self._stays else told.is_entry):
            if parent and self._below and parent != self._below:
                moved += _original_parent(parent)
            parent = self._below or parent
        return b"".join(
            (
                self._head,
                span.span_id,
                _PARENT_ID + parent if parent else b"",
                span.times,
                told.clean if counted else told.uncounted,
                moved,
                self._link + span.span_id if self._link else b"",
            )
        )


class Reader:
    """Read foreign spans by *rules*, remembering what is the same in many."""

    def __init__(self, rules: Rules) -> None:
        self._judge = Judge(rules)
        self.clean_resource = lru_cache(maxsize=1024)(self._judge.clean_resource)
        self.clean_scope = lru_cache(maxsize=1024)(self._judge.clean_scope)

    def read(self, span: bytes) -> ForeignSpan:
        """Raise WireError where *span* is none."""
        match = _HEAD.match(span)
        if match is None:
            return self._read_slowly(span)
        place = match.end()
        try:
            if span[place] == _NAME and span[place + 1] < 0x80:
                place += 2 + span[place + 1]
            if span[place] == _KIND and span[place + 1] < 0x80:
                place += 2
            usual = span[place] == _START and span[place + 9] == _END
        except IndexError:
            usual = False
        if not usual:
            return self._read_slowly(span)
        rest = span[match.end() : place] + span[place + _TIMES_LENGTH :]
        times = span[place : place + _TIMES_LENGTH]
        return ForeignSpan(match[1], match[2], match[3] or b"", times, self._judge.told(rest))

    def _read_slowly(self, span: bytes) -> ForeignSpan:
        try:
            message = Span.FromString(span)
        except DecodeError as error:
            raise WireError(str(error)) from error
        if len(message.trace_id) != 16 or len(message.span_id) != 8:
            raise WireError("a span has no trace id of 16 bytes and span id of 8")
        times = Span(
            start_time_unix_nano=message.start_time_unix_nano,
            end_time_unix_nano=message.end_time_unix_nano,
        )
        ids = message.trace_id, message.span_id, message.parent_span_id
        message.ClearField("trace_id")
        message.ClearField("span_id")
        message.ClearField("parent_span_id")
        message.ClearField("start_time_unix_nano")
        message.ClearField("end_time_unix_nano")
        return ForeignSpan(
            *ids, times.SerializeToString(), self._judge.told(message.SerializeToString())
        )


@lru_cache(maxsize=1024)
def _original_parent(parent: bytes) -> bytes:
    return attribute(semconv.ORIGINAL_PARENT, parent.hex())


def attribute(name: str, text: str) -> bytes:
    """Return an encoded attribute of a span."""
    message = KeyValue(key=name, value=AnyValue(string_value=text))
    return as_field(message.SerializeToString())


# As far as the trace id, which is always as long.
_ORIGINAL_TRACE = attribute(semconv.ORIGINAL_TRACE, "0" * 32)[:-32]

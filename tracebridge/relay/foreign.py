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
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tracebridge import semconv
from tracebridge.ids import root_span_id
from tracebridge.relay.index import Place
from tracebridge.relay.rules import Judge, Rules, Told
from tracebridge.relay.wire import WireError, field

# As most exporters encode a span: trace id, span id and, but for roots, the parent's.
_HEAD = re.compile(rb"\x0a\x10(.{16})\x12\x08(.{8})(?:\x22\x08(.{8})|\x22\x00)?", re.DOTALL)
_NAME, _KIND, _START, _END = 0x2A, 0x30, 0x39, 0x41
_TIMES_LENGTH = 18
# Longer ones hold somebody's words and do not come again.
_COMMON_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class ForeignSpan:
    trace_id: bytes
    span_id: bytes
    # Empty for a root.
    parent_span_id: bytes
    times: bytes
    told: Told

    def unchanged(self) -> bytes:
        """Return the span as it came, but for secrets and content that may not go out."""
        return self._with_ids(self.trace_id, self.parent_span_id) + self.told.clean

    def marked(self, reason: str) -> bytes:
        """Return it unchanged, but for an attribute that says why no turn has it."""
        return self.unchanged() + attribute(semconv.LINK_REASON, reason)

    def placed(self, place: Place, *, counted: bool) -> bytes:
        """Return the span at its place in the turn's trace; what it was is kept beside it.

        *counted*: no span of ours has its usage.
        """
        rest = self.told.clean if counted else self.told.uncounted
        trace_id = bytes.fromhex(place.trace_id)
        parent, moved = self.parent_span_id, b""
        # Within its turn's trace only what lies under the turn itself, for want of a better parent.
        if trace_id == self.trace_id:
            goes_below = not parent or parent.hex() == root_span_id(place.trace_id)
        else:
            goes_below = not parent or self.told.is_entry
            moved = _original(semconv.ORIGINAL_TRACE, self.trace_id)
        if goes_below and place.parent_span_id:
            below = bytes.fromhex(place.parent_span_id)
            if parent and parent != below:
                moved += _original(semconv.ORIGINAL_PARENT, parent)
            parent = below
        if trace_id == self.trace_id:
            return self._with_ids(trace_id, parent) + rest + moved
        link = b"\x6a\x1c\x0a\x10" + self.trace_id + b"\x12\x08" + self.span_id
        return self._with_ids(trace_id, parent) + rest + moved + link

    def _with_ids(self, trace_id: bytes, parent: bytes) -> bytes:
        ids = b"\x0a\x10" + trace_id + b"\x12\x08" + self.span_id
        return ids + (b"\x22\x08" + parent if parent else b"") + self.times


class Reader:
    """Read foreign spans by *rules*, remembering what is the same in many."""

    def __init__(self, rules: Rules) -> None:
        self._judge = Judge(rules)
        self._common = lru_cache(maxsize=8192)(self._judge.told)
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
        told = (self._common if len(rest) <= _COMMON_LENGTH else self._judge.told)(rest)
        return ForeignSpan(match[1], match[2], match[3] or b"", times, told)

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
def _original(name: str, value: bytes) -> bytes:
    return attribute(name, value.hex())


def attribute(name: str, text: str) -> bytes:
    """Return an encoded attribute of a span."""
    return field(9, field(1, name.encode()) + field(2, field(1, text.encode())))

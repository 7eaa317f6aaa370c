"""What a foreign span tells of its call, and what of it may go out. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tracebridge import fragments
from tracebridge.ids import trace_id
from tracebridge.relay.wire import WireError, field, fields
from tracebridge.scrub import scrub_text
from tracebridge.spans import Content

AnyMessage = TypeVar("AnyMessage", Span, ResourceSpans, ScopeSpans)

_ATTRIBUTES = 9
# The value of an attribute that is a bool, an int or a double, or a text of which no rule of
# `scrub` can take anything out: digits of an id, behind what vendors of models put before theirs.
_PLAIN = re.compile(
    rb"\x12[\x00-\x7f](?:[\x10\x18\x21]"
    rb"|\x0a[\x00-\x7f](?:[0-9a-f-]{1,64}|(?:msg_|resp_|chatcmpl-)[0-9A-Za-z]{1,40})\Z)",
    re.DOTALL,
)
# Names, routes and versions come again and again, words do not.
_COMMON_LENGTH = 256
# One of them stands in every span of a call.
_CALL_MARKS = (b"gen_ai.", b"llm.", b"openinference.")
# Of `flags`: whether it is known that the parent is in another process, and whether it is.
_KNOWS_REMOTE, _IS_REMOTE = 0x100, 0x200


@dataclass(frozen=True, slots=True)
class Told:
    """What the rest of a span, without ids and times, tells and is."""

    # Without secrets and without content that may not go out.
    clean: bytes
    # The same with its usage set aside: another span carries it.
    uncounted: bytes
    # Its parent, if it has one, belongs to whoever called the gateway.
    is_entry: bool
    is_call: bool = False
    # The turn's trace by the keys that the agent sent; "" where it sent none.
    turn_trace_id: str = ""
    response_id: str = ""
    is_side_call: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    content: Content = Content.REDACTED
    patterns: Sequence[re.Pattern[str]] = ()


class Judge:
    """Tell of spans by *rules*, remembering what is the same in many."""

    def __init__(self, rules: Rules) -> None:
        self._longest = rules.content.longest
        self._scrub: Callable[[str], str] = partial(scrub_text, patterns=rules.patterns)
        self._common = lru_cache(maxsize=16384)(
            lambda attribute: _as_fields(self._attribute(attribute))
        )
        self._frame = lru_cache(maxsize=4096)(self._reduced)
        self._names = lru_cache(maxsize=4096)(self._attribute)

    def told(self, rest: bytes) -> Told:
        """Return what a span without ids and times tells. Raise WireError where it is none."""
        clean, uncounted, frame = bytearray(), bytearray(), bytearray()
        last = 0
        for number, start, end in fields(rest, 0, len(rest)):
            if number == _ATTRIBUTES:
                one, other = self._pair(rest[start:end])
                clean += one
                uncounted += other
            else:
                frame += rest[last:end]
            last = end
        # All but the attributes: name, kind, status, flags, seldom an event or a link.
        bare, is_entry = self._frame(bytes(frame))
        told = Told(clean=bare + clean, uncounted=bare + uncounted, is_entry=is_entry)
        if not any(mark in rest for mark in _CALL_MARKS):
            return told
        caller = fragments.caller_in(_parsed(rest))
        if caller is None:
            return told
        identity, response_id = caller
        keys = ""
        if identity is not None and identity.session_id and identity.turn_key:
            keys = trace_id(identity.agent, identity.session_id, identity.turn_key)
        return Told(
            clean=told.clean,
            uncounted=told.uncounted,
            is_entry=is_entry,
            is_call=True,
            turn_trace_id=keys,
            response_id=response_id or "",
            # A compaction is told by transcripts, a title by nobody.
            is_side_call=identity is not None and identity.request_class == "auxiliary",
        )

    def clean_resource(self, rest: bytes) -> bytes:
        """Return the fields of a ResourceSpans beside its scopes without secrets."""
        group = _message(ResourceSpans, rest)
        self._scrub_resource(group.resource)
        return group.SerializeToString()

    def clean_scope(self, rest: bytes) -> bytes:
        """Return the fields of a ScopeSpans beside its spans without secrets."""
        group = _message(ScopeSpans, rest)
        # The attributes of a scope are a resource's, as far as secrets go.
        bearer = Resource(attributes=group.scope.attributes)
        self._scrub_resource(bearer)
        del group.scope.attributes[:]
        group.scope.attributes.extend(bearer.attributes)
        return group.SerializeToString()

    def _scrub_resource(self, resource: Resource) -> None:
        foreign = fragments.ForeignSpan(Span(), resource, InstrumentationScope())
        fragments.scrub([foreign], self._scrub)

    def _pair(self, attribute: bytes) -> tuple[bytes, bytes]:
        """Return an encoded KeyValue as `_attribute` does, as fields of a span."""
        if len(attribute) > _COMMON_LENGTH:
            return _as_fields(self._attribute(attribute))
        value = 2 + attribute[1] if attribute[:1] == b"\x0a" else len(attribute)
        if _PLAIN.match(attribute, value) is None:
            return self._common(attribute)
        # A number or an id, of which no two are the same, holds no secret: the name decides.
        _, renamed = self._names(attribute[:value])
        if not renamed:
            return b"", b""
        aside = field(_ATTRIBUTES, renamed + attribute[value:])
        return (aside if renamed == attribute[:value] else field(_ATTRIBUTES, attribute)), aside

    def _attribute(self, attribute: bytes) -> tuple[bytes, bytes]:
        """Return an encoded KeyValue as it may go out, and with usage set aside; b"" for nothing."""
        span = _parsed(field(_ATTRIBUTES, attribute))
        self._reduce(span)
        if not span.attributes:
            return b"", b""
        clean = span.attributes[0].SerializeToString()
        fragments.set_usage_aside(span)
        return clean, span.attributes[0].SerializeToString()

    def _reduced(self, frame: bytes) -> tuple[bytes, bool]:
        span = _parsed(frame)
        if span.trace_id or span.span_id or span.parent_span_id:
            raise WireError("a span has its ids twice")
        if span.flags & _KNOWS_REMOTE:
            is_entry = bool(span.flags & _IS_REMOTE)
        else:
            is_entry = span.kind in (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CONSUMER)
        self._reduce(span)
        return span.SerializeToString(), is_entry

    def _reduce(self, span: Span) -> None:
        foreign = fragments.ForeignSpan(span, Resource(), InstrumentationScope())
        fragments.scrub([foreign], self._scrub)
        fragments.reduce(span, self._longest)


def _as_fields(values: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    one, other = (field(_ATTRIBUTES, value) if value else b"" for value in values)
    return one, other


def _parsed(data: bytes) -> Span:
    return _message(Span, data)


def _message(kind: type[AnyMessage], data: bytes) -> AnyMessage:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise WireError(str(error)) from error

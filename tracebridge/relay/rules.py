"""What a foreign span tells of its call, and what of it may go out. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tracebridge import fragments
from tracebridge.ids import trace_id
from tracebridge.relay.wire import WireError, as_field, cut
from tracebridge.scrub import scrub_text
from tracebridge.spans import Content

AnyMessage = TypeVar("AnyMessage", KeyValue, Span, ResourceSpans, ScopeSpans)

# A text of which no rule of `scrub` can take anything out: digits of an id, behind what vendors of
# models put before theirs.
_ID = re.compile(rb"(?:[0-9a-f-]{1,64}|(?:msg_|resp_|chatcmpl-)[0-9A-Za-z]{1,40})\Z")
# Between an attribute's key and its value, where it is short: how long it is, and what.
_LENGTH_AND_KIND = 3
_TEXT = 0x0A
# How long the values of these kinds can be: bool, int, double.
_NUMBERS = {0x10: (2, 2), 0x18: (2, 11), 0x21: (9, 9)}
# Names, routes and versions come again and again, words do not.
_COMMON_LENGTH, _COMMON_SPAN_LENGTH, _MOST_COMMON = 256, 2048, 16384
# Of `flags`: whether it is known that the parent is in another process, and whether it is.
_KNOWS_REMOTE, _IS_REMOTE = 0x100, 0x200


class Told(NamedTuple):
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


# What becomes of an attribute, as a field of a span: as it may go out, and with usage set aside, b""
# for nothing; and name and value, where they tell who made a call.
_Fact: TypeAlias = tuple[str, Any]
_Seen: TypeAlias = tuple[bytes, bytes, _Fact | None]


@dataclass(frozen=True, slots=True)
class _Form:
    """What attributes have in common that differ in a number or an id: all is known by the name."""

    # Of the whole attribute.
    length: int
    # Where the kind of the value stands.
    kind_at: int
    is_text: bool
    # What comes before the attribute as a field of a span; None if it may not go out.
    head: bytes | None
    # What comes before the kind of the value with usage set aside; None: it is no usage.
    uncounted_head: bytes | None
    # Where it tells who made a call; of a text the value is still to come.
    fact: _Fact | None


@dataclass(frozen=True, slots=True)
class Rules:
    content: Content = Content.REDACTED
    patterns: Sequence[re.Pattern[str]] = ()


class Judge:
    """Tell of spans by *rules*, remembering what is the same in many."""

    def __init__(self, rules: Rules) -> None:
        self._longest = rules.content.longest
        self._scrub: Callable[[str], str] = partial(scrub_text, patterns=rules.patterns)
        # Only our own rules are known to leave ids alone.
        self._knows_ids = not rules.patterns
        self._told: dict[bytes, Told] = {}
        self._common: dict[bytes, _Seen] = {}
        self._form = lru_cache(maxsize=4096)(self._formed)
        self._frame = lru_cache(maxsize=4096)(self._reduced)

    def told(self, rest: bytes) -> Told:
        """Return what a span without ids and times tells. Raise WireError where it is none."""
        if len(rest) > _COMMON_SPAN_LENGTH:
            return self._read(rest)[0]
        told = self._told.get(rest)
        if told is not None:
            return told
        told, is_common = self._read(rest)
        # What has a number or an id of its own would only push out what comes again.
        if is_common:
            if len(self._told) >= _MOST_COMMON:
                self._told.clear()
            self._told[rest] = told
        return told

    def _read(self, rest: bytes) -> tuple[Told, bool]:
        """Return what a span tells, and whether it was made of known pieces only."""
        is_common = True
        attributes, frame = cut(rest)
        # All but the attributes: name, kind, status, flags, seldom an event or a link.
        bare, is_entry = self._frame(frame)
        clean, uncounted, facts = [bare], [bare], {}
        common = self._common
        for attribute in attributes:
            # To look a long one up is to hash it.
            seen = common.get(attribute) if len(attribute) <= _COMMON_LENGTH else None
            if seen is None:
                is_common = False
                seen = self._seen(attribute)
            one, other, fact = seen
            clean.append(one)
            uncounted.append(other)
            if fact is not None:
                facts[fact[0]] = fact[1]
        going = b"".join(clean), b"".join(uncounted), is_entry
        caller = fragments.caller_in(facts) if facts else None
        if caller is None:
            return Told(*going), is_common
        identity, response_id = caller
        keys = ""
        if identity is not None and identity.session_id and identity.turn_key:
            keys = trace_id(identity.agent, identity.session_id, identity.turn_key)
        told = Told(
            *going,
            is_call=True,
            turn_trace_id=keys,
            response_id=response_id or "",
            # A compaction is told by transcripts, a title by nobody.
            is_side_call=identity is not None and identity.request_class == "auxiliary",
        )
        return told, is_common

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

    def _seen(self, attribute: bytes) -> _Seen:
        """Return what becomes of an encoded KeyValue that is not known by heart."""
        try:
            form = self._form(attribute[: 2 + attribute[1] + _LENGTH_AND_KIND])
        except IndexError:
            form = None
        if form is not None and len(attribute) == form.length:
            fact, text_at = form.fact, form.kind_at + 2
            if form.is_text:
                if attribute[text_at - 1] != form.length - text_at or not _ID.match(
                    attribute, text_at
                ):
                    return self._judged(attribute)
                if fact is not None:
                    fact = fact[0], attribute[text_at:].decode()
            if form.head is None:
                return b"", b"", fact
            clean = form.head + attribute
            if form.uncounted_head is None:
                return clean, clean, fact
            return clean, form.uncounted_head + attribute[form.kind_at :], fact
        return self._judged(attribute)

    def _formed(self, beginning: bytes) -> _Form | None:
        """Return the form of attributes that begin so, as far as the kind of their value."""
        if len(beginning) < 2 + _LENGTH_AND_KIND or beginning[0] != _TEXT or beginning[1] > 0x7F:
            return None
        key, (tag, length, kind) = beginning[:-_LENGTH_AND_KIND], beginning[-_LENGTH_AND_KIND:]
        least, most = _NUMBERS.get(kind, (2, 0x7F))
        is_text = kind == _TEXT and self._knows_ids
        if tag != 0x12 or not least <= length <= most or not (is_text or kind in _NUMBERS):
            return None
        # A number or an id, of which no two are the same, holds no secret: the name decides.
        clean, renamed = self._attribute(key)
        name = _message(KeyValue, key).key
        told = fragments.tells_of_caller(name)
        if told and not is_text and not fragments.is_count(name):
            return None
        return _Form(
            length=len(beginning) - 1 + length,
            kind_at=len(beginning) - 1,
            is_text=is_text,
            head=_head(len(beginning) - 1 + length) if clean else None,
            uncounted_head=None
            if clean == renamed
            else _head(len(renamed) + 2 + length) + renamed + bytes([tag, length]),
            # Of counts it matters only that they are there.
            fact=(name, None) if told else None,
        )

    def _judged(self, attribute: bytes) -> _Seen:
        clean, uncounted = self._attribute(attribute)
        message = _message(KeyValue, attribute)
        fact = None
        if fragments.tells_of_caller(message.key):
            fact = message.key, fragments.plain(message.value)
        one = as_field(clean) if clean else b""
        other = as_field(uncounted) if uncounted != clean else one
        seen = one, other, fact
        if len(attribute) <= _COMMON_LENGTH:
            if len(self._common) >= _MOST_COMMON:
                self._common.clear()
            self._common[attribute] = seen
        return seen

    def _attribute(self, attribute: bytes) -> tuple[bytes, bytes]:
        """Return an encoded KeyValue as it may go out, and with usage set aside; b"" for nothing."""
        span = _message(Span, as_field(attribute))
        fragments.scrub_attributes(span.attributes, self._scrub)
        fragments.reduce(span, self._longest)
        if not span.attributes:
            return b"", b""
        (kept,) = span.attributes
        clean, name = kept.SerializeToString(), kept.key
        fragments.set_usage_aside(span)
        return clean, clean if kept.key == name else kept.SerializeToString()

    def _reduced(self, frame: bytes) -> tuple[bytes, bool]:
        span = _message(Span, frame)
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


def _head(length: int) -> bytes:
    """Return what comes before an encoded KeyValue as a field of a span."""
    return as_field(bytes(length))[:-length]


def _message(kind: type[AnyMessage], data: bytes) -> AnyMessage:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise WireError(str(error)) from error

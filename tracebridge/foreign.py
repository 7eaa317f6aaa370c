"""Spans of other gateways: kept until it is known which turn made their calls, then told with it.

A foreign trace is looked at as a whole once it is complete, or quiet for a while. What lies in it
under one turn goes out with that turn; what no turn claims in time goes out as it came.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

from tracebridge import semconv
from tracebridge.encode import Resource
from tracebridge.fragments import (
    PARENT_IS_REMOTE,
    ForeignSpan,
    Fragment,
    call_id_of,
    calls_in,
    nest,
    plain,
    reduce,
    set_usage_aside,
)
from tracebridge.ids import root_span_id, span_id
from tracebridge.model import (
    AttributeValue,
    Evidence,
    GatewayCall,
    Span,
    SpanEvent,
    SpanKind,
    SpanLink,
    Status,
    Turn,
)
from tracebridge.spans import Content, clock_skew_ms, common_of, placed
from tracebridge.store import ForeignRow, Store, damaged

logger = logging.getLogger(__name__)

SECOND_NS = 1_000_000_000
# A gateway's exporter sends in batches, every five seconds where nobody chose otherwise.
QUIET_NS = 10 * SECOND_NS
# Clocks of two machines may differ by so much.
SKEW_NS = 600 * SECOND_NS
# Of more sessions at the time of a call than this, the latest are asked whether it is theirs.
MOST_SESSIONS = 50
_PREFIX = call_id_of("", "").partition(":")[0] + ":"
_LATEST_NS = 2**63 - 1
_KINDS: dict[int, SpanKind] = {kind.value: kind for kind in SpanKind}
_STATUSES: dict[int, Status] = {status.value: status for status in Status}


@dataclass(frozen=True, slots=True)
class Ready:
    """What became known of foreign traces."""

    calls: list[GatewayCall]
    # Trace ids of turns to which there is more to tell, and their sessions.
    turns: set[str]
    sessions: set[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Hopeless:
    """A foreign trace with calls that no turn claims."""

    trace_id: str
    unclaimed: list[GatewayCall]
    # Session of the turn with which its spans go out all the same; None: they go out alone.
    home: tuple[str, str] | None


def is_foreign(call: GatewayCall) -> bool:
    """Say whether the span of a call is kept here, to go out in one way or the other."""
    return call.call_id.startswith(_PREFIX)


def by_origin(spans: Iterable[Span]) -> Iterable[tuple[Resource, list[Span]]]:
    """Return *spans* by the resource that they came with; () stands for the agent's."""
    groups: dict[Resource, list[Span]] = {}
    for span in spans:
        groups.setdefault(span.origin, []).append(span)
    return groups.items()


def rows_of(fragments: Iterable[Fragment]) -> list[ForeignRow]:
    """Return the spans of *fragments* as the store keeps them."""
    return [
        ForeignRow(
            fragment.trace_id,
            each.span_id,
            (
                each.resource.SerializeToString(deterministic=True),
                each.scope.SerializeToString(deterministic=True),
                each.span.SerializeToString(deterministic=True),
            ),
        )
        for fragment in fragments
        for each in fragment.spans
    ]


@dataclass(frozen=True, slots=True)
class _Look:
    """What a look at a foreign trace showed."""

    # How many of its spans waited then.
    number: int
    first_ns: int
    # Whether it is known as a whole.
    settled: bool
    # Whether no model was asked in it, nor is it anybody's answer.
    lone: bool


class ForeignSpans:
    """What the watcher knows of spans that other gateways sent."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Of foreign traces of which spans wait.
        self._looks: dict[str, _Look] = {}
        # Those that became known as a whole in this step.
        self._fresh: set[str] = set()

    def ready(self, now_ns: int, *, at_once: bool) -> Ready:
        """Return what is known of foreign traces that are complete now, or were quiet for long."""
        found = Ready([], set(), set())
        before, self._looks = self._looks, {}
        self._fresh.clear()
        for trace, number, first_ns, last_ns in self._store.waiting_fragments():
            look = before.get(trace)
            # Taken in the future: the clock was set back.
            quiet = at_once or abs(now_ns - last_ns) >= QUIET_NS
            if look is not None and look.number == number and (look.settled or not quiet):
                self._looks[trace] = look
                continue
            fragment = self._fragment(trace)
            calls = _calls_in(fragment)
            settled = quiet or _is_complete(fragment, calls)
            lone = not calls and all(each.parent_span_id is None for each in fragment.roots())
            self._looks[trace] = _Look(number, first_ns, settled, lone)
            if settled:
                found.calls.extend(calls)
                self._fresh.add(trace)
                self._note_turns(trace, found)
        return found

    def _note_turns(self, trace: str, found: Ready) -> None:
        for turn in {trace, *(each for _, each, how in self._calls_of(trace) if each and how)}:
            session = self._store.session_of_turn(turn)
            if session is not None:
                found.turns.add(turn)
                found.sessions.add(session)

    def drop(self, call_ids: Iterable[str]) -> None:
        """Forget the foreign traces of calls that are not to be recorded."""
        for trace in {call_id.split(":")[1] for call_id in call_ids}:
            self._store.drop_fragment(trace)
            self._looks.pop(trace, None)

    def sessions_for(self, strangers: Iterable[GatewayCall]) -> set[tuple[str, str]]:
        """Return the sessions that may have made calls of which no gateway tells the agent."""
        found: set[tuple[str, str]] = set()
        for call in strangers:
            known = call.conversation_id and self._store.sessions_around(
                0, 0, MOST_SESSIONS, call.conversation_id
            )
            found.update(
                known
                or self._store.sessions_around(
                    call.start_ns - SKEW_NS, call.end_ns + SKEW_NS, MOST_SESSIONS
                )
            )
        return found

    def spans_of(self, turn: Turn, content: Content) -> list[Span]:
        """Return the foreign spans that lie in *turn* and were not told yet."""
        settled = {trace for trace, look in self._looks.items() if look.settled}
        if not settled:
            return []
        chats: dict[str, dict[str, str]] = {}
        for chat in turn.chats:
            for call in (chat.seen, *chat.others):
                if call is not None and is_foreign(call):
                    _, trace, span = call.call_id.split(":")
                    chats.setdefault(trace, {})[span] = span_id(turn.trace_id, "llm", chat.key)
        spans: list[Span] = []
        # A gateway that honoured the turn's own traceparent is in it already.
        for trace in sorted({*chats, turn.trace_id} & settled):
            calls = self._calls_of(trace)
            if {found for _, found, how in calls if how} <= {turn.trace_id} and all(
                found for _, found, _ in calls
            ):
                fragment = self._fragment(trace)
                facts = _facts(calls, turn)
                under = chats.get(trace, {})
                nest(
                    fragment,
                    turn.trace_id,
                    root_span_id(turn.trace_id),
                    under,
                    facts,
                    subagents=[span_id(turn.trace_id, "subagent", s.key) for s in turn.subagents],
                )
                spans += records(fragment, content, common_of(turn))
        return list(placed(turn, spans))

    def told(self, turn: Turn, spans: Iterable[Span]) -> None:
        """Note that foreign *spans* went out with *turn*; in one step with that."""
        traces = {str(span.attributes.get(semconv.ORIGINAL_TRACE, span.trace_id)) for span in spans}
        for trace in traces:
            self._store.tell_fragment(trace, turn.trace_id)
            self._looks.pop(trace, None)

    def hopeless(self, now_ns: int, patience_ns: int, *, at_once: bool) -> list[Hopeless]:
        """Return the foreign traces that no turn will claim, or not all of their calls."""
        found = []
        for trace, look in self._looks.items():
            # Taken in the future: the clock was set back.
            over = look.lone or at_once or abs(now_ns - look.first_ns) >= patience_ns
            if not look.settled or not (over or trace in self._fresh):
                continue
            calls = self._calls_of(trace)
            turns = {turn for _, turn, how in calls if turn and how}
            unclaimed = [call for call, turn, _ in calls if turn is None]
            if not over and (unclaimed or not calls):
                continue
            if len(turns) == 1 or self._store.session_of_turn(trace) is not None:
                home = self._store.session_of_turn(next(iter(turns), trace))
                if unclaimed:
                    found.append(Hopeless(trace, unclaimed, home))
            else:
                found.append(Hopeless(trace, unclaimed, None))
        return found

    def alone(self, trace: str, content: Content) -> list[Span]:
        """Return the spans of a foreign trace as they came; what a chat of ours says is put aside."""
        fragment = self._fragment(trace)
        claimed = {
            call.call_id
            for call, told, how in self._calls_of(trace)
            # By a turn, or by what our gateway saw of a script.
            if told and (how or told != trace)
        }
        for each in fragment.spans:
            if call_id_of(trace, each.span_id) in claimed:
                set_usage_aside(each.span)
        return records(fragment, content, {})

    def told_alone(self, trace: str) -> None:
        self._store.tell_fragment(trace, trace)
        self._looks.pop(trace, None)

    def _calls_of(self, trace: str) -> list[tuple[GatewayCall, str | None, str | None]]:
        return self._store.calls_named(call_id_of(trace, ""))

    def _fragment(self, trace: str) -> Fragment:
        fragment = Fragment(trace)
        try:
            for row in self._store.foreign_spans(trace):
                resource, scope, body = row.parts
                fragment.spans.append(
                    ForeignSpan(
                        Message.FromString(body),
                        ResourceMessage.FromString(resource),
                        InstrumentationScope.FromString(scope),
                    )
                )
        except DecodeError as error:
            raise damaged(self._store.path, error) from error
        return fragment


def _facts(
    calls: Iterable[tuple[GatewayCall, str | None, str | None]], turn: Turn
) -> dict[str, list[tuple[str, str | int]]]:
    """Return what the spans of calls shall say of their link, by span id."""
    facts = {}
    for call, _, how in calls:
        told: list[tuple[str, str | int]] = [(semconv.LLM_GATEWAY, call.gateway)]
        if how is not None:
            told.append((semconv.LINK_EVIDENCE, how))
            told.append((semconv.LINK_CONFIDENCE, Evidence(how).confidence))
        skew_ms = clock_skew_ms(call, turn)
        if skew_ms is not None:
            told.append((semconv.CLOCK_SKEW_MS, skew_ms))
        facts[call.call_id.rpartition(":")[2]] = told
    return facts


def _calls_in(fragment: Fragment) -> list[GatewayCall]:
    try:
        return list(calls_in(fragment).values())
    except Exception:
        # Whatever is odd about one trace, it can still be sent on, and the others are none the worse.
        logger.exception("the spans of trace %s cannot be understood", fragment.trace_id)
        return []


def _is_complete(fragment: Fragment, calls: Iterable[GatewayCall]) -> bool:
    """Say whether nothing more is to be expected; a success is what comes of failed attempts.

    LiteLLM, for one, ends the span of a call after that of the request, in another batch.
    """
    answered = any(call.error_type is None for call in calls)
    return answered and all(map(_is_top, fragment.roots()))


def _is_top(root: ForeignSpan) -> bool:
    """Say whether a span whose parent is not here has none that is still to come."""
    return root.parent_span_id is None or bool(root.span.flags & PARENT_IS_REMOTE)


def records(
    fragment: Fragment, content: Content, common: Mapping[str, AttributeValue]
) -> list[Span]:
    """Return the spans of a fragment as records, with the resource that they came with."""
    spans = []
    for each in fragment.spans:
        message = each.span
        reduce(message, content.longest)
        own = _attributes(message.attributes)
        if each.scope.name:
            own.setdefault("otel.scope.name", each.scope.name)
        if each.scope.version:
            own.setdefault("otel.scope.version", each.scope.version)
        spans.append(
            Span(
                trace_id=message.trace_id.hex(),
                span_id=each.span_id,
                parent_span_id=each.parent_span_id,
                name=message.name,
                kind=_KINDS.get(message.kind, SpanKind.INTERNAL),
                start_ns=message.start_time_unix_nano,
                end_ns=max(message.start_time_unix_nano, message.end_time_unix_nano),
                status=_STATUSES.get(message.status.code, Status.UNSET),
                status_message=message.status.message,
                attributes={**common, **own},
                events=tuple(
                    SpanEvent(
                        name=event.name,
                        time_ns=min(event.time_unix_nano, _LATEST_NS),
                        attributes=_attributes(event.attributes),
                    )
                    for event in message.events
                ),
                links=tuple(
                    SpanLink(
                        trace_id=link.trace_id.hex(),
                        span_id=link.span_id.hex(),
                        attributes=_attributes(link.attributes),
                    )
                    for link in message.links
                    if len(link.trace_id) == 16 and len(link.span_id) == 8
                ),
                origin=_origin(each.resource),
            )
        )
    return spans


def _origin(resource: ResourceMessage) -> Resource:
    told = _attributes(resource.attributes)
    # As OpenTelemetry calls who does not say; nobody's must not pass for the agent's.
    told.setdefault("service.name", "unknown_service")
    return tuple(sorted((name, str(value)) for name, value in told.items()))


def _attributes(attributes: Iterable[KeyValue]) -> dict[str, AttributeValue]:
    values = ((each.key, _value(each.value)) for each in attributes)
    return {name: value for name, value in values if name and value is not None}


def _value(value: AnyValue) -> AttributeValue | None:
    """Return a value as our records have it: what is neither plain nor a list of texts, as JSON."""
    told = plain(value)
    if isinstance(told, list) and all(isinstance(each, str) for each in told):
        return tuple(told)
    if isinstance(told, list | dict):
        return orjson.dumps(told, default=str).decode()
    if isinstance(told, float) and not math.isfinite(told):
        # JSON has no such numbers.
        return str(told)
    return told if isinstance(told, str | bool | int | float) else None

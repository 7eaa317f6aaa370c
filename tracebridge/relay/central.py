"""One replica: a request in, its spans at their places, what the backend said of them out.

Nothing is acknowledged before the backend has it, or the index where it waits for its turn. So a
replica may die at any moment: whoever sent comes again, and the same spans come out.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

from tracebridge.ids import root_span_id, span_id
from tracebridge.model import Evidence
from tracebridge.relay.backend import Answer, Backend, later
from tracebridge.relay.foreign import ForeignSpan, Move, Reader
from tracebridge.relay.index import (
    NOWHERE,
    SEVERAL,
    Due,
    Held,
    Index,
    IndexUnavailableError,
    Place,
)
from tracebridge.relay.wire import Resource, Scope, WireError, ids_of, join, name_of, split
from tracebridge.response_ids import provider_id

OURS = b"tracebridge"
# The attribute by which a watcher's `chat` span tells of its response, as far as its value; and how
# that goes on, as far as the text: a length, a kind, a length.
_RESPONSE_ID = b"\x0a\x12gen_ai.response.id\x12"
_BEFORE_TEXT = re.compile(rb"[\x80-\xff]?[\x00-\x7f]\x0a([\x80-\xff]?[\x00-\x7f])")
_LOOK_SECONDS = 1.0
# Between two lines on stderr about troubles of one kind.
_TELL_SECONDS = 60.0
_MOST_DUE = 64
# While the index is away, what watchers told is kept here, and no more than that.
_MOST_UNLEARNED = 100_000


@dataclass(slots=True)
class _Group:
    """Spans of one scope on their way, with the fields that they share."""

    resource: bytes
    scope: bytes
    # One of both: as they came, and those that have to find their place.
    ours: Sequence[bytes] = ()
    foreign: Sequence[ForeignSpan] = ()

    def going(self) -> Scope:
        placed = [each.encoded for each in self.foreign if each.encoded is not None]
        return Scope(self.scope, self.ours or placed)

    def alone(self, span: ForeignSpan) -> bytes:
        """Return a request with *span* only, to be held."""
        return join([Resource(self.resource, [Scope(self.scope, [span.unchanged()])])])


@dataclass(slots=True)
class _Batch:
    # By resource.
    groups: list[list[_Group]] = field(default_factory=list)
    # Foreign spans by their trace.
    foreign: dict[bytes, list[ForeignSpan]] = field(default_factory=lambda: defaultdict(list))
    # Of response ids, and the traces of turns, that watchers' spans tell of.
    calls: dict[str, Place] = field(default_factory=dict)
    turns: set[str] = field(default_factory=set)
    ours: int = 0
    # Why, of spans that cannot be passed on.
    broken: list[str] = field(default_factory=list)

    def request(self) -> bytes:
        return join(
            Resource(groups[0].resource, [group.going() for group in groups])
            for groups in self.groups
        )

    def lacking(self) -> list[Held]:
        """Return the spans whose place is not known."""
        spans: dict[bytes, dict[str, bytes]] = defaultdict(dict)
        told: dict[bytes, set[str]] = defaultdict(set)
        for group in chain.from_iterable(self.groups):
            for each in group.foreign:
                if each.encoded is None:
                    spans[each.trace_id][each.span_id.hex()] = group.alone(each)
                    told[each.trace_id].add(each.told.response_id)
        return [
            Held(trace.hex(), alone, sorted(told[trace] - {""})) for trace, alone in spans.items()
        ]


class Relay:
    def __init__(self, index: Index, backend: Backend, reader: Reader, wait_seconds: float) -> None:
        self._index = index
        self._backend = backend
        self._reader = reader
        self._wait_seconds = wait_seconds
        self._reason = f"its turn was not known within {wait_seconds:g} s"
        self._unlearned: dict[str, Place] = {}
        self._look = asyncio.Event()
        # Spans by what became of them, and troubles.
        self.counts: Counter[str] = Counter()
        self.last_trouble = ""
        self._told_at: dict[str, float] = {}

    async def take(self, request: bytes) -> Answer:
        """Pass on an ExportTraceServiceRequest. Raise WireError where it is none."""
        batch = _Batch()
        self._read_into(batch, request)
        await self._learn(batch.calls, batch.turns)
        try:
            evidence = await self._place(batch.foreign)
        except IndexUnavailableError as error:
            return self._trouble("index", later(str(error)))
        waiting = batch.lacking()
        # What is ours alone goes on as it came.
        going = batch.request() if batch.foreign or batch.broken else request
        answer = await self._backend.send(going) if going else Answer()
        if not answer.is_taken:
            return self._trouble("backend", answer)
        # Last: what is sent again because of a failure before it comes to the same place.
        try:
            await self._index.hold(waiting, self._wait_seconds)
        except IndexUnavailableError as error:
            return self._trouble("index", later(str(error)))
        self.counts["ours"] += batch.ours
        self.counts.update(evidence)
        self.counts["held"] += sum(len(each.spans) for each in waiting)
        self.counts["refused"] += answer.rejected + len(batch.broken)
        reasons = [answer.message, *batch.broken[:1]]
        return Answer(
            rejected=answer.rejected + len(batch.broken),
            message="; ".join(filter(None, reasons)),
        )

    async def sweep(self) -> None:
        """Send what was held and is due, until cancelled."""
        while True:
            try:
                more = await self._sweep_once()
            except IndexUnavailableError as error:
                more = False
                self._trouble("index", later(str(error)))
            if not more:
                self._look.clear()
                # Not wait_for: in Python 3.11 it may swallow that it was cancelled.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._look.wait()

    async def waiting(self) -> int | None:
        """Return how many foreign traces wait in the index; None where it does not say."""
        try:
            return await self._index.waiting()
        except IndexUnavailableError:
            return None

    async def _sweep_once(self) -> bool:
        if self._unlearned:
            calls, self._unlearned = self._unlearned, {}
            await self._learn(calls, ())
        found = await self._index.due(_MOST_DUE)
        if not found:
            return False
        if not await self._send_due(found):
            # One of them may be what the backend does not like.
            for each in found:
                if not await self._send_due([each]):
                    await self._index.let_go(each)
                    self.counts["refused"] += len(each.spans)
        return True

    async def _send_due(self, found: Sequence[Due]) -> bool:
        """Send what was held; return False if it was refused for good."""
        batch = _Batch()
        try:
            for data in (data for due in found for data in due.spans.values()):
                self._read_into(batch, data)
        except WireError as error:
            self.last_trouble = f"a span that was held is damaged: {error}"
            return False
        evidence = await self._place(batch.foreign)
        lacking = [each.trace_id for each in batch.lacking()]
        if lacking:
            # Others may have come to know it just now: what is in force counts.
            await self._index.settle(dict.fromkeys(lacking, NOWHERE))
            evidence = await self._place(batch.foreign)
        going = batch.request()
        answer = await self._backend.send(going) if going else Answer()
        if not answer.is_taken:
            self._trouble("backend", answer)
            # What is to be sent later is not let go: the claim runs out.
            return answer.status == 503
        for due in found:
            await self._index.let_go(due)
        self.counts.update(evidence)
        return True

    def _read_into(self, batch: _Batch, request: bytes) -> None:
        for resource in split(request):
            groups = []
            rest = resource.rest
            if any(name_of(scope.rest) != OURS for scope in resource.scopes):
                # What is ours alone is sent as it came.
                rest = self._reader.clean_resource(rest)
            for scope in resource.scopes:
                if name_of(scope.rest) == OURS:
                    groups.append(_Group(rest, scope.rest, ours=scope.spans))
                    batch.ours += len(scope.spans)
                    _note_ours(scope.spans, batch)
                else:
                    foreign = self._read_foreign(batch, scope.spans)
                    clean = self._reader.clean_scope(scope.rest)
                    groups.append(_Group(rest, clean, foreign=foreign))
            if groups:
                batch.groups.append(groups)

    def _read_foreign(self, batch: _Batch, spans: Iterable[bytes]) -> list[ForeignSpan]:
        found = []
        read, by_trace = self._reader.read, batch.foreign
        for span in spans:
            try:
                foreign = read(span)
            except WireError as error:
                batch.broken.append(str(error))
                continue
            found.append(foreign)
            by_trace[foreign.trace_id].append(foreign)
        return found

    async def _learn(self, calls: Mapping[str, Place], turns: Iterable[str]) -> None:
        if not calls and not turns:
            return
        try:
            await self._index.learn(calls, list(turns))
            self._look.set()
        except IndexUnavailableError as error:
            # Watchers' spans need no index; who waits for them is told once it is back.
            self._trouble("index", later(str(error)))
            room = _MOST_UNLEARNED - len(self._unlearned)
            self._unlearned.update(list(calls.items())[: max(room, 0)])

    async def _place(self, foreign: Mapping[bytes, Sequence[ForeignSpan]]) -> Counter[str]:
        """Encode the spans whose place is known; return how many, by evidence."""
        parts = {trace.hex(): _parts(spans) for trace, spans in foreign.items()}
        own = {trace: [_place_by_keys(part) for part in parts[trace]] for trace in parts}
        unknown = [trace for trace, places in own.items() if None in places]
        calls: dict[str, Place] = {}
        wholes: dict[str, Place] = {}
        if unknown:
            spans = chain.from_iterable(chain.from_iterable(parts[trace] for trace in unknown))
            asked = {each.told.response_id for each in spans} - {""}
            wholes, calls = await self._index.find(unknown, sorted(asked))
            for trace in unknown:
                own[trace] = [
                    known or _place_by_calls(part, calls)
                    for part, known in zip(parts[trace], own[trace], strict=True)
                ]
        wholes |= await self._settled(own, wholes)
        evidence: Counter[str] = Counter()
        for trace, places in own.items():
            whole = wholes.get(trace)
            for part, place in zip(parts[trace], places, strict=True):
                where = whole if whole == NOWHERE else place or whole
                if where is not None:
                    self._encode(part, where, calls)
                    evidence[where.evidence if where.trace_id else "unmatched"] += len(part)
        return evidence

    async def _settled(
        self, own: Mapping[str, Sequence[Place | None]], wholes: Mapping[str, Place]
    ) -> dict[str, Place]:
        """Return the places of whole foreign traces that are settled now, by what their parts tell."""
        new: dict[str, Place] = {}
        divided = []
        for trace, places in own.items():
            known = [place for place in places if place is not None]
            whole = wholes.get(trace)
            if not known or whole in (NOWHERE, SEVERAL):
                continue
            if len({each.trace_id for each in [*known, whole or known[0]]}) > 1:
                divided.append(trace)
            elif whole is None:
                new[trace] = known[0]
        try:
            if divided:
                await self._index.divide(divided)
            if new:
                new = await self._index.settle(new)
            if divided or new:
                self._look.set()
        except IndexUnavailableError as error:
            # What has keys needs no index; only what comes without them later on does.
            self._trouble("index", later(str(error)))
        return {**new, **dict.fromkeys(divided, SEVERAL)}

    def _encode(
        self, part: Sequence[ForeignSpan], place: Place, calls: Mapping[str, Place]
    ) -> None:
        if not place.trace_id:
            for each in part:
                each.encoded = each.marked(self._reason)
            return
        placed = Move(part[0].trace_id, place).placed
        for each in part:
            told = each.told
            # A call that no watcher tells of is counted here or nowhere.
            counted = told.is_call and (
                (not told.response_id or told.is_side_call) and told.response_id not in calls
            )
            each.encoded = placed(each, counted=counted)

    def _trouble(self, kind: str, answer: Answer) -> Answer:
        self.counts[f"trouble with the {kind}"] += 1
        self.last_trouble = answer.message
        now = time.monotonic()
        if now - self._told_at.get(kind, -math.inf) > _TELL_SECONDS:
            self._told_at[kind] = now
            text = f"tracebridge relay: trouble with the {kind}: {answer.message}\n"
            # Nobody may be there to hear it.
            with suppress(OSError):
                os.write(2, text.encode("utf-8", "replace"))
        return answer


def _note_ours(spans: Iterable[bytes], batch: _Batch) -> None:
    """Take from watchers' spans whose the calls are."""
    turns: set[bytes] = set()
    for span in spans:
        try:
            trace_id, own_id = ids_of(span)
        except WireError:
            # As it came it goes on; the backend may say what it thinks of it.
            continue
        turns.add(trace_id)
        place = span.find(_RESPONSE_ID)
        if place >= 0 and (told := _text_after(span, place + len(_RESPONSE_ID))):
            # A gateway in between may have wrapped it, for the agent that told the watcher of it.
            batch.calls[provider_id(told)] = Place(
                trace_id.hex(), own_id.hex(), Evidence.RESPONSE_ID.value
            )
    batch.turns.update(map(bytes.hex, turns))


def _text_after(span: bytes, place: int) -> str:
    """Return the text of an AnyValue whose length stands at *place*; "" for anything else."""
    found = _BEFORE_TEXT.match(span, place)
    if found is None:
        return ""
    length = found[1][0] if len(found[1]) == 1 else found[1][0] & 0x7F | found[1][1] << 7
    return span[found.end() : found.end() + length].decode("utf-8", "replace")


def _parts(items: Sequence[ForeignSpan]) -> list[list[ForeignSpan]]:
    """Return the spans of one foreign trace by the highest span that is here of each."""
    parents = {each.span_id: each.parent_span_id for each in items}
    if len([parent for parent in parents.values() if parent not in parents]) == 1:
        return [list(items)]
    tops: dict[bytes, bytes] = {}
    for span in parents:
        # Each way up is gone once; whoever wrote the ids may have written a circle.
        way = {span: None}
        top = span
        while top not in tops and (above := parents[top]) in parents and above not in way:
            way[above] = None
            top = above
        tops.update(dict.fromkeys(way, tops.get(top, top)))
    found: dict[bytes, list[ForeignSpan]] = defaultdict(list)
    for each in items:
        found[tops[each.span_id]].append(each)
    return list(found.values())


def _place_by_keys(part: Sequence[ForeignSpan]) -> Place | None:
    """Return the place that the keys in a part give it, with no help."""
    found: dict[str, set[str]] = defaultdict(set)
    for each in part:
        told = each.told
        if told.turn_trace_id:
            trace = told.turn_trace_id
            found[trace].update(
                [span_id(trace, "llm", told.response_id)]
                if told.response_id and not told.is_side_call
                else ()
            )
    return _common(found, Evidence.TURN_ID)


def _place_by_calls(part: Sequence[ForeignSpan], calls: Mapping[str, Place]) -> Place | None:
    found: dict[str, set[str]] = defaultdict(set)
    for each in part:
        place = calls.get(each.told.response_id)
        if place is not None:
            found[place.trace_id].add(place.parent_span_id)
    return _common(found, Evidence.RESPONSE_ID)


def _common(found: Mapping[str, set[str]], evidence: Evidence) -> Place | None:
    """Return the one chat of one turn, else that turn; None where several turns have claims."""
    if len(found) != 1:
        return None
    ((trace, chats),) = found.items()
    parent = next(iter(chats)) if len(chats) == 1 else root_span_id(trace)
    return Place(trace, parent, evidence.value)

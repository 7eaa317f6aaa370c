"""One replica: a request in, its spans at their places, what the backend said of them out.

Nothing is acknowledged before the backend has it, or the index where it waits for its turn. So a
replica may die at any moment: whoever sent comes again, and the same spans come out.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tracebridge.ids import root_span_id, span_id
from tracebridge.model import Evidence
from tracebridge.relay.backend import Answer, Backend, later
from tracebridge.relay.foreign import ForeignSpan, Reader
from tracebridge.relay.index import (
    NOWHERE,
    SEVERAL,
    Due,
    Held,
    Index,
    IndexUnavailableError,
    Place,
)
from tracebridge.relay.wire import Resource, Scope, WireError, ids_of, join, spans_of, split, varint
from tracebridge.response_ids import provider_id

OURS = b"tracebridge"
# The attribute by which a watcher's `chat` span tells of its response, as far as its value.
_RESPONSE_ID = b"\x0a\x12gen_ai.response.id\x12"
_LOOK_SECONDS = 1.0
# Between two lines on stderr about troubles of one kind.
_TELL_SECONDS = 60.0
_MOST_DUE = 64
# While the index is away, what watchers told is kept here, and no more than that.
_MOST_UNLEARNED = 100_000


@dataclass(slots=True)
class _Item:
    """A foreign span on its way."""

    span: ForeignSpan
    resource: bytes
    scope: bytes
    # As it goes out; None while nobody knows where it belongs.
    encoded: bytes | None = None

    def alone(self) -> bytes:
        """Return a request with this span only, to be held."""
        scope = Scope(b"", self.scope, [self.span.unchanged()])
        whole = Resource(b"", self.resource, ()).with_scopes([scope])
        return join([whole] if whole is not None else [])


@dataclass(slots=True)
class _Batch:
    # Each with its scopes: as they came, or with the foreign spans that are in them.
    resources: list[tuple[Resource, list[tuple[Scope, list[_Item] | None]]]] = field(
        default_factory=list
    )
    foreign: dict[str, list[_Item]] = field(default_factory=lambda: defaultdict(list))
    # Of response ids, and the traces of turns, that watchers' spans tell of.
    calls: dict[str, Place] = field(default_factory=dict)
    turns: set[str] = field(default_factory=set)
    ours: int = 0
    # Why, of spans that cannot be passed on.
    broken: list[str] = field(default_factory=list)

    def request(self) -> bytes:
        going = []
        for resource, scopes in self.resources:
            if all(items is None for _, items in scopes):
                going.append(resource)
                continue
            out = resource.with_scopes(
                scope
                if items is None
                else scope.with_spans([i.encoded for i in items if i.encoded is not None])
                for scope, items in scopes
            )
            if out is not None:
                going.append(out)
        return join(going)


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
        batch = self._read(request)
        await self._learn(batch.calls, batch.turns)
        try:
            evidence = await self._place(batch.foreign)
        except IndexUnavailableError as error:
            return self._trouble("index", later(str(error)))
        waiting = [
            Held(
                trace,
                {each.span.span_id.hex(): each.alone() for each in lacking},
                sorted({i.span.told.response_id for i in lacking if i.span.told.response_id}),
            )
            for trace, items in batch.foreign.items()
            if (lacking := [each for each in items if each.encoded is None])
        ]
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
        lacking = {
            trace: NOWHERE
            for trace, items in batch.foreign.items()
            if any(each.encoded is None for each in items)
        }
        if lacking:
            # Others may have come to know it just now: what is in force counts.
            await self._index.settle(lacking)
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

    def _read(self, request: bytes) -> _Batch:
        batch = _Batch()
        ours = spans_of(request, OURS)
        if ours is None:
            self._read_into(batch, request)
        else:
            batch.ours = len(ours)
            _note_ours(request, ours, batch)
        return batch

    def _read_into(self, batch: _Batch, request: bytes) -> None:
        for resource in split(request):
            scopes: list[tuple[Scope, list[_Item] | None]] = []
            clean: bytes | None = None
            for scope in resource.scopes:
                if scope.name == OURS:
                    scopes.append((scope, None))
                    batch.ours += len(scope.spans)
                    for span in scope.spans:
                        _note_ours(span, [(0, len(span))], batch)
                    continue
                clean = self._reader.clean_resource(resource.rest)
                rest = self._reader.clean_scope(scope.rest)
                items: list[_Item] = []
                for span in scope.spans:
                    try:
                        item = _Item(self._reader.read(span), clean, rest)
                    except WireError as error:
                        batch.broken.append(str(error))
                        continue
                    items.append(item)
                    batch.foreign[item.span.trace_id.hex()].append(item)
                scopes.append((Scope(scope.name, rest, ()), items))
            # What is ours is sent as it came.
            whole = resource if clean is None else Resource(b"", clean, ())
            batch.resources.append((whole, scopes))

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

    async def _place(self, foreign: Mapping[str, Sequence[_Item]]) -> Counter[str]:
        """Encode the spans whose place is known; return how many, by evidence."""
        parts = {trace: _parts(items) for trace, items in foreign.items()}
        own = {trace: [_place_by_keys(part) for part in parts[trace]] for trace in parts}
        unknown = [trace for trace, places in own.items() if None in places]
        calls: dict[str, Place] = {}
        wholes: dict[str, Place] = {}
        if unknown:
            asked = {i.span.told.response_id for trace in unknown for i in foreign[trace]} - {""}
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

    def _encode(self, part: Sequence[_Item], place: Place, calls: Mapping[str, Place]) -> None:
        for each in part:
            told = each.span.told
            if not place.trace_id:
                each.encoded = each.span.marked(self._reason)
                continue
            # A call that no watcher tells of is counted here or nowhere.
            has_chat = bool(told.response_id) and not told.is_side_call
            counted = told.is_call and not has_chat and told.response_id not in calls
            each.encoded = each.span.placed(place, counted=counted)

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


def _note_ours(request: bytes, places: Iterable[tuple[int, int]], batch: _Batch) -> None:
    """Take from watchers' spans, which lie at *places*, whose the calls are."""
    turns: set[bytes] = set()
    for start, end in places:
        try:
            trace_id, own_id = ids_of(request, start, end)
        except WireError:
            # As it came it goes on; the backend may say what it thinks of it.
            continue
        turns.add(trace_id)
        place = request.find(_RESPONSE_ID, start, end)
        if place >= 0 and (told := _text_after(request, place + len(_RESPONSE_ID), end)):
            # A gateway in between may have wrapped it, for the agent that told the watcher of it.
            batch.calls[provider_id(told)] = Place(
                trace_id.hex(), own_id.hex(), Evidence.RESPONSE_ID.value
            )
    batch.turns.update(map(bytes.hex, turns))


def _text_after(request: bytes, place: int, end: int) -> str:
    """Return the text of an AnyValue whose length stands at *place*; "" for anything else."""
    try:
        _, start = varint(request, place, end)
        if request[start : start + 1] != b"\x0a":
            return ""
        length, start = varint(request, start + 1, end)
    except WireError:
        return ""
    return request[start : min(start + length, end)].decode("utf-8", "replace")


def _parts(items: Sequence[_Item]) -> list[list[_Item]]:
    """Return the spans of one foreign trace by the highest span that is here of each."""
    parents = {each.span.span_id: each.span.parent_span_id for each in items}
    if sum(parent not in parents for parent in parents.values()) == 1:
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
    found: dict[bytes, list[_Item]] = defaultdict(list)
    for each in items:
        found[tops[each.span.span_id]].append(each)
    return list(found.values())


def _place_by_keys(part: Sequence[_Item]) -> Place | None:
    """Return the place that the keys in a part give it, with no help."""
    found: dict[str, set[str]] = defaultdict(set)
    for each in part:
        told = each.span.told
        if told.turn_trace_id:
            trace = told.turn_trace_id
            found[trace].update(
                [span_id(trace, "llm", told.response_id)]
                if told.response_id and not told.is_side_call
                else ()
            )
    return _common(found, Evidence.TURN_ID)


def _place_by_calls(part: Sequence[_Item], calls: Mapping[str, Place]) -> Place | None:
    found: dict[str, set[str]] = defaultdict(set)
    for each in part:
        place = calls.get(each.span.told.response_id)
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

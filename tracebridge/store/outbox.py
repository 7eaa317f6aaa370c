"""The outbox: finished spans that a sink has not acknowledged.

A row holds what was told of a turn at once, for one sink: the encoded spans behind each other, and
beside them their ids and lengths. So a turn is written and deleted as a whole, which a row for each
span made three times as dear; a row is written anew only where a sink takes a part of it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Any, TypeAlias
from zlib import crc32

import orjson

from tracebridge.sinks import OutboxSpan
from tracebridge.store.database import is_locked, lock_file
from tracebridge.store.tables import Tables

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Id and encoding of a span.
Encoded: TypeAlias = tuple[str, bytes]
# How many spans; their ids and lengths; a checksum of what follows; all of their bytes.
Packed: TypeAlias = tuple[int, bytes, int, bytes]

# Longer than any sink is left alone: a later time was written by a clock that has been corrected.
LONGEST_POSTPONEMENT_NS = 2 * 3600 * 1_000_000_000
# So that a batch of a large turn does not write all the rest of the turn anew.
SPANS_PER_ROW = 128
BYTES_PER_ROW = 1_000_000
# What is read at once of large spans; no batch has more.
MOST_DUE_BYTES = 4_000_000
# The fastest of the levels that find what repeats from span to span.
COMPRESSION = 1


@dataclass(frozen=True, slots=True)
class SinkRow:
    name: str
    waiting: int
    refused: int
    sent: int
    due_ns: int
    last_success_ns: int | None
    last_error_ns: int | None
    last_error: str | None


class Outbox(Tables):
    def offer(
        self,
        trace_id: str,
        spans: Iterable[Encoded],
        resource: tuple[tuple[str, str], ...],
        sinks: Iterable[str],
    ) -> None:
        """Put spans into the outbox of each sink, but for those that wait there already."""
        spans = list(dict(spans).items())
        shared = orjson.dumps(resource)
        rows = [_packed(portion) for portion in _portions(spans)]
        for sink in sinks:
            waiting = {
                span_id
                for (lengths,) in self._all(
                    "SELECT lengths FROM outbox WHERE trace_id = ? AND sink = ?", (trace_id, sink)
                )
                for span_id in self._parsed(_span_ids, lengths)
            }
            if waiting:
                new = [span for span in spans if span[0] not in waiting]
                own = [_packed(portion) for portion in _portions(new)]
            else:
                own = rows
            for packed in own:
                self._insert(sink, trace_id, shared, packed)

    def _insert(
        self, sink: str, trace_id: str, resource: bytes, packed: Packed, refused: str | None = None
    ) -> None:
        self._db.execute(
            "INSERT INTO outbox"
            " (sink, trace_id, resource, refused, spans, lengths, checksum, data)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (sink, trace_id, resource, refused, *packed),
        )

    @contextmanager
    def delivering(self, sink: str, *, wait: bool) -> Iterator[bool]:
        """Be the only process that delivers to *sink*; give False if another is, and not *wait*."""
        name = f"outbox-{sha256(sink.encode()).hexdigest()[:16]}.lock"
        with lock_file(self.path.with_name(name)) as lock:
            yield is_locked(lock, wait=wait)

    def due(self, sink: str, now_ns: int, limit: int) -> list[OutboxSpan]:
        row = self._maybe("SELECT due_ns FROM sinks WHERE name = ?", (sink,))
        if row is not None and now_ns < row[0] < now_ns + LONGEST_POSTPONEMENT_NS:
            return []
        due: list[OutboxSpan] = []
        size = 0
        for row in self._db.each(
            "SELECT trace_id, resource, lengths, checksum, data FROM outbox"
            " WHERE sink = ? AND refused IS NULL ORDER BY id",
            (sink,),
        ):
            spans = self._parsed(parse_outbox_row, row)
            # Whole rows where that is possible, for the sake of what takes them out again.
            if due and len(due) + len(spans) > limit:
                break
            due += spans
            size += sum(len(span.data) for span in spans)
            if size > MOST_DUE_BYTES:
                break
        return due[:limit]

    def undelivered(self, trace_id: str) -> dict[str, str | None]:
        """Return the sinks that have not taken all of a trace, with why they never will."""
        return dict(
            self._all(
                "SELECT sink, max(refused) FROM outbox WHERE trace_id = ? GROUP BY sink",
                (trace_id,),
            )
        )

    def acknowledge(self, sink: str, span_ids: Sequence[str]) -> None:
        with self.transaction():
            self._take_out(sink, span_ids)
            self._db.execute(
                "INSERT INTO sinks (name, sent, last_success_ns) VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET sent = sent + excluded.sent, due_ns = 0,"
                " last_success_ns = excluded.last_success_ns",
                (sink, len(span_ids), self._clock()),
            )

    def refuse(self, sink: str, span_ids: Sequence[str], reason: str) -> None:
        """Keep spans that a sink will never take, with the reason, out of the way of the rest."""
        with self.transaction():
            self._take_out(sink, span_ids, refused=reason)
            self._set_error(sink, 0, reason)

    def _take_out(self, sink: str, span_ids: Iterable[str], refused: str | None = None) -> None:
        """Let spans wait no more: they are gone, or kept as *refused*."""
        # Two traces may have a span of the same id; what is said once is said of one.
        wanted = Counter(span_ids)
        missing = wanted.total()
        rows = []
        for row_id, lengths in self._db.each(
            "SELECT id, lengths FROM outbox WHERE sink = ? AND refused IS NULL ORDER BY id", (sink,)
        ):
            waiting = self._parsed(_span_ids, lengths)
            if taken := {span_id for span_id in waiting if wanted.get(span_id)}:
                rows.append((row_id, taken, len(taken) == len(waiting)))
                wanted.subtract(taken)
                missing -= len(taken)
            # What is taken out is mostly what comes first.
            if not missing:
                break
        for row_id, taken, is_whole in rows:
            if not is_whole:
                self._split(row_id, taken, refused)
            elif refused is None:
                self._db.execute("DELETE FROM outbox WHERE id = ?", (row_id,))
            else:
                self._db.execute("UPDATE outbox SET refused = ? WHERE id = ?", (refused, row_id))

    def _split(self, row_id: int, taken: set[str], refused: str | None) -> None:
        sink, trace_id, resource, *packed = self._one(
            "SELECT sink, trace_id, resource, lengths, checksum, data FROM outbox WHERE id = ?",
            (row_id,),
        )
        spans = self._parsed(_unpacked, packed)
        self._put_in_place(row_id, [span for span in spans if span[0] not in taken])
        if refused is not None:
            out = [span for span in spans if span[0] in taken]
            self._insert(sink, trace_id, resource, _packed(out), refused)

    def _put_in_place(self, row_id: int, spans: Sequence[Encoded]) -> None:
        self._db.execute(
            "UPDATE outbox SET spans = ?, lengths = ?, checksum = ?, data = ? WHERE id = ?",
            (*_packed(spans), row_id),
        )

    def postpone(self, sink: str, until_ns: int, reason: str) -> None:
        """Leave a sink alone until *until_ns*."""
        with self.transaction():
            self._set_error(sink, until_ns, reason)

    def hurry(self, sink: str) -> None:
        """Forget that a sink was to be left alone."""
        self._db.execute("UPDATE sinks SET due_ns = 0 WHERE name = ?", (sink,))

    def level(self, sink: str) -> str | None:
        """Return the content level of what waits for a sink, None if nobody noted it."""
        row = self._maybe("SELECT content FROM sink_levels WHERE name = ?", (sink,))
        return None if row is None else str(row[0])

    def set_level(self, sink: str, content: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO sink_levels VALUES (?, ?)", (sink, content))

    def waiting_traces(self, sink: str) -> list[str]:
        rows = self._all(
            "SELECT DISTINCT trace_id FROM outbox WHERE sink = ? AND refused IS NULL", (sink,)
        )
        return [trace_id for (trace_id,) in rows]

    def replace_waiting(self, sink: str, trace_id: str, spans: Mapping[str, bytes]) -> int:
        """Let what waits of a trace be encoded so; drop what is not among *spans*, say how many."""
        dropped = 0
        for row_id, lengths in self._all(
            "SELECT id, lengths FROM outbox WHERE trace_id = ? AND sink = ?", (trace_id, sink)
        ):
            waiting = self._parsed(_span_ids, lengths)
            kept = [(span_id, spans[span_id]) for span_id in waiting if span_id in spans]
            dropped += len(waiting) - len(kept)
            if kept:
                self._put_in_place(row_id, kept)
            else:
                self._db.execute("DELETE FROM outbox WHERE id = ?", (row_id,))
        return dropped

    def bound_outbox(self, sink: str, limit_bytes: int) -> int:
        """Take the oldest turns out of what waits for *sink* until the rest fits; say how many.

        They stay in the store, to be shown and exported, as long as all turns do.
        """
        (size,) = self._one(
            "SELECT coalesce(sum(length(data)), 0) FROM outbox WHERE sink = ?", (sink,)
        )
        if size <= limit_bytes:
            return 0
        gone = []
        with self.transaction():
            for trace_id, trace_size in self._all(
                "SELECT trace_id, sum(length(data)) FROM outbox WHERE sink = ?"
                " GROUP BY trace_id ORDER BY min(id)",
                (sink,),
            ):
                # A tenth below, so that this is not done again for each turn.
                if size <= limit_bytes * 0.9:
                    break
                gone.append((sink, trace_id))
                size -= trace_size
            self._db.executemany("DELETE FROM outbox WHERE sink = ? AND trace_id = ?", gone)
            self.add_notes({f"outbox of {sink} full, turn not sent to it": len(gone)})
        return len(gone)

    def sinks(self) -> list[SinkRow]:
        rows = self._all(
            "SELECT name,"
            " (SELECT coalesce(sum(spans), 0) FROM outbox WHERE sink = name AND refused IS NULL),"
            " (SELECT coalesce(sum(spans), 0) FROM outbox WHERE sink = name AND refused IS NOT NULL),"
            " sent, due_ns, last_success_ns, last_error_ns, last_error"
            " FROM (SELECT name FROM sinks UNION SELECT DISTINCT sink FROM outbox) AS known"
            " LEFT JOIN sinks USING (name) ORDER BY name"
        )
        return [
            SinkRow(
                name=row[0],
                waiting=row[1],
                refused=row[2],
                sent=row[3] or 0,
                due_ns=row[4] or 0,
                last_success_ns=row[5],
                last_error_ns=row[6],
                last_error=row[7],
            )
            for row in rows
        ]

    def waiting(self) -> int:
        return int(self._one("SELECT coalesce(sum(spans), 0) FROM outbox WHERE refused IS NULL")[0])

    def _set_error(self, sink: str, due_ns: int, error: str) -> None:
        self._db.execute(
            "INSERT INTO sinks (name, due_ns, last_error_ns, last_error) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET due_ns = excluded.due_ns,"
            " last_error_ns = excluded.last_error_ns, last_error = excluded.last_error",
            (sink, due_ns, self._clock(), error),
        )


def parse_outbox_row(row: Sequence[Any]) -> list[OutboxSpan]:
    """Return what a row of the outbox holds. Raise ValueError where it is damaged."""
    trace_id, resource, *packed = row
    shared = _parsed_resource(resource)
    return [
        OutboxSpan(span_id=span_id, trace_id=trace_id, resource=shared, data=data)
        for span_id, data in _unpacked(packed)
    ]


def _portions(spans: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
    first = size = 0
    for place, (_, data) in enumerate(spans):
        if place > first and (place - first == SPANS_PER_ROW or size + len(data) > BYTES_PER_ROW):
            yield spans[first:place]
            first, size = place, 0
        size += len(data)
    if spans:
        yield spans[first:]


def _packed(spans: Sequence[Encoded]) -> Packed:
    lengths = orjson.dumps([(span_id, len(data)) for span_id, data in spans])
    data = b"".join([data for _, data in spans])
    # Spans of a turn say the same again and again: most of the writing is saved.
    data = min(data, zstd.compress(data, COMPRESSION), key=len)
    return len(spans), lengths, crc32(data), data


def _unpacked(packed: Sequence[Any]) -> list[Encoded]:
    lengths, checksum, data = packed
    # Rows of the first version have none.
    if checksum is not None and checksum != crc32(data):
        raise ValueError("what waits in the outbox has changed")
    ids_and_lengths = orjson.loads(lengths)
    places = list(accumulate((length for _, length in ids_and_lengths), initial=0))
    if len(data) < places[-1]:
        try:
            data = zstd.decompress(data)
        except zstd.ZstdError as error:
            raise ValueError(f"what waits in the outbox has changed: {error}") from error
    if len(data) != places[-1]:
        raise ValueError("what waits in the outbox has changed its length")
    return [
        (span_id, data[start:end])
        for (span_id, _), (start, end) in zip(ids_and_lengths, pairwise(places), strict=True)
    ]


def _span_ids(lengths: bytes) -> list[str]:
    return [span_id for span_id, _ in orjson.loads(lengths)]


@lru_cache(maxsize=64)
def _parsed_resource(data: bytes) -> tuple[tuple[str, str], ...]:
    # All spans of a session have the same.
    return tuple((name, value) for name, value in orjson.loads(data))

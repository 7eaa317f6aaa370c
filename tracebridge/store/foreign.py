"""Spans of other gateways, each fragment by the trace that it came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tracebridge.store.sessions import Sessions


@dataclass(frozen=True, slots=True)
class ForeignRow:
    """A span of another gateway: its ids there; resource, scope and the span itself, encoded."""

    trace_id: str
    span_id: str
    parts: tuple[bytes, bytes, bytes]


class ForeignSpans(Sessions):
    def add_foreign_spans(self, spans: Iterable[ForeignRow], taken_ns: int) -> int:
        """Keep *spans* as they are and return how many are new."""
        before = self._changes()
        self._db.executemany(
            "INSERT OR IGNORE INTO foreign_spans VALUES (?, ?, ?, ?, ?, ?, NULL)",
            [(row.trace_id, row.span_id, taken_ns, *row.parts) for row in spans],
        )
        new = self._changes() - before
        if new:
            self._count_intake()
        return new

    def waiting_fragments(self) -> list[tuple[str, int, int, int]]:
        """Return the foreign traces of which spans wait: id, number, first and last time of intake."""
        return self._all(
            "SELECT trace_id, count(*), min(taken_ns), max(taken_ns) FROM foreign_spans"
            " WHERE told_as IS NULL GROUP BY trace_id"
        )

    def foreign_spans(self, trace_id: str) -> list[ForeignRow]:
        """Return all that is known of a foreign trace."""
        rows = self._all(
            "SELECT span_id, resource, scope, body FROM foreign_spans WHERE trace_id = ?"
            " ORDER BY span_id",
            (trace_id,),
        )
        return [ForeignRow(trace_id, span_id, tuple(parts)) for span_id, *parts in rows]

    def tell_fragment(self, trace_id: str, told_as: str) -> None:
        """Note under which trace the spans of a foreign trace went out; in one step with that."""
        self._db.execute(
            "UPDATE foreign_spans SET told_as = ? WHERE trace_id = ? AND told_as IS NULL",
            (told_as, trace_id),
        )

    def drop_fragment(self, trace_id: str) -> None:
        self._db.execute("DELETE FROM foreign_spans WHERE trace_id = ?", (trace_id,))

    def _changes(self) -> int:
        return int(self._one("SELECT total_changes()")[0])

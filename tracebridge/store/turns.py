"""Turns and their spans: what is shown, and what is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracebridge.codec import decode, encode
from tracebridge.model import Span, Turn
from tracebridge.store.outbox import Outbox

TURNS_PER_PAGE = 200
# SQLite's integers have 64 bits.
LATEST_NS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TurnRow:
    """One line of what `turns` and `tail` show."""

    trace_id: str
    agent: str
    session_id: str
    turn_key: str
    state: str
    outcome: str | None
    start_ns: int
    end_ns: int | None
    prompt: str | None
    customer_id: str | None
    # Whether its spans went to the outbox.
    told: bool
    revision: int


class Turns(Outbox):
    def put_turn(self, turn: Turn, spans: Sequence[Span]) -> bool:
        """Keep the present state of *turn* and say whether anything changed. Told spans stay."""
        if self._maybe("SELECT 1 FROM forgotten WHERE trace_id = ?", (turn.trace_id,)):
            # A watcher may still have it in mind; told anew, it would arrive twice.
            return False
        known = self._all(
            "SELECT span_id, iif(told, NULL, body) FROM spans WHERE trace_id = ?", (turn.trace_id,)
        )
        told = {span_id for span_id, body in known if body is None}
        before = {span_id: body for span_id, body in known if body is not None}
        now = {
            span.span_id: (position, encode(span))
            for position, span in enumerate(spans)
            if span.span_id not in told
        }
        if before == {span_id: body for span_id, (_, body) in now.items()}:
            return False
        self.unsettle_turn(turn.trace_id)
        # They are of what it was.
        self._db.execute("DELETE FROM turn_sums WHERE trace_id = ?", (turn.trace_id,))
        for span_id in before.keys() - now.keys():
            self._db.execute(
                "DELETE FROM spans WHERE trace_id = ? AND span_id = ?", (turn.trace_id, span_id)
            )
        self._db.executemany(
            "INSERT OR REPLACE INTO spans VALUES (?, ?, ?, 0, ?)",
            [
                (turn.trace_id, span_id, position, body)
                for span_id, (position, body) in now.items()
                if before.get(span_id) != body
            ],
        )
        prompt = turn.prompts[0].text if turn.prompts else None
        self._db.execute(
            "INSERT INTO turns (trace_id, agent, session_id, turn_key, state, outcome, start_ns,"
            " end_ns, prompt, customer_id, revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (trace_id) DO UPDATE SET state = excluded.state,"
            " outcome = excluded.outcome, start_ns = excluded.start_ns, end_ns = excluded.end_ns,"
            " prompt = excluded.prompt, customer_id = excluded.customer_id,"
            " revision = excluded.revision",
            (
                turn.trace_id,
                turn.agent,
                turn.session_id,
                turn.turn_key,
                turn.state,
                turn.outcome,
                turn.start_ns,
                turn.end_ns,
                None if prompt is None else prompt[:500],
                turn.tags.customer_id,
                self._next_revision(),
            ),
        )
        return True

    def put_lone_span(self, span: Span) -> None:
        """Keep a span that stands alone in its trace."""
        self._db.execute(
            "INSERT OR IGNORE INTO spans VALUES (?, ?, 0, 0, ?)",
            (span.trace_id, span.span_id, encode(span)),
        )

    def is_told(self, trace_id: str) -> bool:
        row = self._maybe("SELECT told FROM turns WHERE trace_id = ?", (trace_id,))
        return row is not None and bool(row[0])

    def untold(self, trace_id: str) -> set[str]:
        """Return the ids of the spans that are kept here and were not told yet."""
        rows = self._all("SELECT span_id FROM spans WHERE trace_id = ? AND told = 0", (trace_id,))
        return {span_id for (span_id,) in rows}

    def tell(
        self,
        trace_id: str,
        spans: Iterable[tuple[str, bytes]],
        resource: tuple[tuple[str, str], ...],
        sinks: Sequence[str],
        reduced: Mapping[str, Mapping[str, bytes]] | None = None,
        *,
        is_all: bool = True,
    ) -> int:
        """Put the spans (id and encoding) that were not told yet into the outbox of each sink.

        *is_all*: with them all of the turn is told.
        *reduced* has the encodings, by sink and id, for sinks that may not have all that is said.
        They must have been put here before; from now on they never change. Return how many
        were new.
        """
        untold = self.untold(trace_id)
        new = [(span_id, data) for span_id, data in spans if span_id in untold]
        own = {sink: data for sink, data in (reduced or {}).items() if sink in sinks}
        self.offer(trace_id, new, resource, [sink for sink in sinks if sink not in own])
        for sink, data in own.items():
            less = [(span_id, data[span_id]) for span_id, _ in new if span_id in data]
            self.offer(trace_id, less, resource, [sink])
        if len(new) == len(untold):
            self._db.execute(
                "UPDATE spans SET told = 1 WHERE trace_id = ? AND told = 0", (trace_id,)
            )
        else:
            self._db.executemany(
                "UPDATE spans SET told = 1 WHERE trace_id = ? AND span_id = ?",
                [(trace_id, span_id) for span_id, _ in new],
            )
        if new and is_all:
            self._db.execute(
                "UPDATE turns SET told = 1, revision = ? WHERE trace_id = ?",
                (self._next_revision(), trace_id),
            )
        return len(new)

    def settle_turn(self, trace_id: str) -> None:
        """Note that all that is known of a turn by now is told."""
        self._db.execute(
            "INSERT OR REPLACE INTO settled_turns"
            " SELECT trace_id, (SELECT coalesce(max(id), 0) FROM sightings) FROM turns"
            " WHERE trace_id = ? AND told = 1",
            (trace_id,),
        )

    def unsettle_turn(self, trace_id: str) -> None:
        self._db.execute("DELETE FROM settled_turns WHERE trace_id = ?", (trace_id,))

    def settled_turns(self, agent: str, session_id: str) -> list[tuple[TurnRow, int]]:
        """Return the turns that are told, each with the last sighting that was known then."""
        rows = self._all(
            "SELECT turns.trace_id, agent, session_id, turn_key, state, outcome, start_ns, end_ns,"
            " NULL, customer_id, told, revision, told_to FROM turns JOIN settled_turns"
            " USING (trace_id) WHERE agent = ? AND session_id = ? AND told = 1",
            (agent, session_id),
        )
        return [(_turn_row(row), row[12]) for row in rows]

    def turns(
        self, *, since_revision: int = 0, trace_prefix: str = "", limit: int = 1000
    ) -> list[TurnRow]:
        """Return turns that changed after a revision, the latest started last."""
        rows = self._all(
            "SELECT trace_id, agent, session_id, turn_key, state, outcome, start_ns, end_ns,"
            " prompt, customer_id, told, revision FROM turns"
            " WHERE revision > ? AND trace_id >= ? AND trace_id < ?"
            " ORDER BY start_ns DESC LIMIT ?",
            (since_revision, trace_prefix, trace_prefix + "g", limit),
        )
        return [_turn_row(row) for row in reversed(rows)]

    def find_turns(
        self,
        *,
        agent: str | None = None,
        session_prefix: str = "",
        since_ns: int = 0,
        until_ns: int | None = None,
    ) -> Iterator[TurnRow]:
        """Yield turns of a time, the latest started first."""
        latest_ns, last_id = LATEST_NS, ""
        while True:
            # Page by page: of a hundred thousand turns most callers want the latest few.
            rows = self._all(
                "SELECT trace_id, agent, session_id, turn_key, state, outcome, start_ns, end_ns,"
                " prompt, customer_id, told, revision FROM turns"
                " WHERE (?1 IS NULL OR agent = ?1) AND substr(session_id, 1, length(?2)) = ?2"
                " AND start_ns >= ?3 AND (?4 IS NULL OR start_ns < ?4)"
                " AND start_ns <= ?5 AND (start_ns < ?5 OR trace_id > ?6)"
                " ORDER BY start_ns DESC, trace_id LIMIT ?7",
                (agent, session_prefix, since_ns, until_ns, latest_ns, last_id, TURNS_PER_PAGE),
            )
            for row in rows:
                yield _turn_row(row)
            if len(rows) < TURNS_PER_PAGE:
                return
            last_id, latest_ns = rows[-1][0], rows[-1][6]

    def turn_counts(self) -> dict[str, int]:
        return dict(self._all("SELECT state, count(*) FROM turns GROUP BY state"))

    def spans(self, trace_id: str) -> list[Span]:
        """Return the spans of a trace, the root last."""
        rows = self._all(
            "SELECT body FROM spans WHERE trace_id = ? ORDER BY position, span_id", (trace_id,)
        )
        spans = [self._parsed(parse_span, body) for (body,) in rows]
        return sorted(spans, key=lambda span: span.parent_span_id is None)


def parse_span(body: bytes) -> Span:
    return decode(body, Span)


def _turn_row(row: Any) -> TurnRow:
    return TurnRow(
        trace_id=row[0],
        agent=row[1],
        session_id=row[2],
        turn_key=row[3],
        state=row[4],
        outcome=row[5],
        start_ns=row[6],
        end_ns=row[7],
        prompt=row[8],
        customer_id=row[9],
        told=bool(row[10]),
        revision=row[11],
    )

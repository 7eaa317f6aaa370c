"""What is dropped: when it is old, or because somebody wants it gone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tracebridge.model import Source
from tracebridge.store.database import BUSY_S, StoreError
from tracebridge.store.sightings import Sightings


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What is no longer in the store, and where else it may be."""

    trace_ids: tuple[str, ...]
    spans: int
    # How many of them a sink was still to get.
    waiting: int
    # Sinks that have taken spans, perhaps these.
    sinks: tuple[str, ...]
    # The agents' own files.
    transcripts: tuple[str, ...]
    # In whose trace sinks have a turn, where that is not its own.
    within: Mapping[str, str]


class Forgetting(Sightings):
    def forget_before(self, time_ns: int) -> int:
        """Drop what ended before *time_ns*, is told and is delivered; return how many turns."""
        with self.transaction():
            gone = [
                trace_id
                for (trace_id,) in self._all(
                    "SELECT trace_id FROM turns WHERE told = 1 AND end_ns < ? AND NOT EXISTS"
                    " (SELECT 1 FROM outbox WHERE outbox.trace_id = turns.trace_id"
                    " AND refused IS NULL)",
                    (time_ns,),
                )
            ]
            for trace_id in gone:
                self._db.execute(
                    "DELETE FROM sightings WHERE (agent, session_id, turn_key) ="
                    " (SELECT agent, session_id, turn_key FROM turns WHERE trace_id = ?)",
                    (trace_id,),
                )
                self._forget_trace(trace_id)
            orphans = self._all(
                "SELECT trace_id FROM (SELECT trace_id FROM calls WHERE evidence IS NULL"
                " AND trace_id IS NOT NULL AND taken_ns < ?1 UNION SELECT trace_id"
                " FROM foreign_spans WHERE told_as = trace_id AND taken_ns < ?1) AS alone"
                " WHERE NOT EXISTS (SELECT 1 FROM outbox"
                " WHERE outbox.trace_id = alone.trace_id AND refused IS NULL)",
                (time_ns,),
            )
            for (trace_id,) in orphans:
                self._forget_trace(trace_id)
            self._db.execute("DELETE FROM untraced_sessions WHERE known_ns < ?", (time_ns,))
        return len(gone)

    def forget_session(self, session_id: str) -> Forgotten:
        """Drop all that is known of a session, delivered or not."""
        with self.transaction():
            transcripts = self._transcripts_of(session_id)
            forgotten = self._forget_traces(
                self._all(
                    "SELECT trace_id FROM turns WHERE session_id = ?1"
                    " UNION SELECT trace_id FROM calls WHERE session_id = ?1"
                    " AND trace_id IS NOT NULL",
                    (session_id,),
                ),
                transcripts,
            )
            self._db.execute(
                "DELETE FROM foreign_spans WHERE trace_id IN (SELECT substr(call_id, 6, 32)"
                " FROM calls WHERE session_id = ? AND call_id LIKE 'otlp:%')",
                (session_id,),
            )
            for table in ("sightings", "calls", "unsettled_sessions"):
                self._db.execute(f"DELETE FROM {table} WHERE session_id = ?", (session_id,))  # noqa: S608  # names of our own tables
            # How far a transcript was read stays known, or it would be taken in anew.
            self._db.executemany(
                "UPDATE cursors SET memory = '{}' WHERE path = ?",
                [(path,) for path in transcripts],
            )
            self._db.execute(
                "UPDATE cursors SET memory = '{}' WHERE instr(path, ?) > 0", (session_id,)
            )
        return forgotten

    def forget_older(self, time_ns: int) -> Forgotten:
        """Drop what ended before *time_ns*, delivered or not."""
        with self.transaction():
            turns = self._all(
                "SELECT trace_id, agent, session_id, turn_key FROM turns"
                " WHERE coalesce(end_ns, start_ns) < ?",
                (time_ns,),
            )
            sessions = {session_id for _, _, session_id, _ in turns}
            transcripts = {path for each in sessions for path in self._transcripts_of(each)}
            calls = self._all(
                "SELECT trace_id FROM calls WHERE start_ns < ? AND trace_id IS NOT NULL"
                " AND evidence IS NULL",
                (time_ns,),
            )
            calls += self._all(
                "SELECT DISTINCT trace_id FROM foreign_spans WHERE told_as = trace_id"
                " AND taken_ns < ?",
                (time_ns,),
            )
            forgotten = self._forget_traces([turn[:1] for turn in turns] + calls, transcripts)
            self._db.execute("DELETE FROM foreign_spans WHERE taken_ns < ?", (time_ns,))
            self._db.executemany(
                "DELETE FROM sightings WHERE agent = ? AND session_id = ? AND turn_key = ?",
                [turn[1:] for turn in turns],
            )
            self._db.execute("DELETE FROM sightings WHERE time_ns BETWEEN 1 AND ?", (time_ns - 1,))
            self._db.execute("DELETE FROM calls WHERE start_ns < ?", (time_ns,))
        return forgotten

    def leave_out(self, agent: str, session_id: str) -> bool:
        """Remember that a session is not to be recorded; forget what its calls alone have told.

        What came while it was in a folder that is traced stays. Say whether it is forgotten.
        """
        known = any(s.source is not Source.GATEWAY for s in self.sightings(agent, session_id))
        if not known:
            self.forget_session(session_id)
        with self.transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO untraced_sessions VALUES (?, ?, ?)",
                (agent, session_id, self._clock()),
            )
            self._count_intake()
        return not known

    def compact(self) -> None:
        """Write the file anew, so that what was deleted is not in it any more."""
        self._db.execute("VACUUM")
        deadline = time.monotonic() + BUSY_S
        # Another process may be in the middle of reading the old pages.
        while self._one("PRAGMA wal_checkpoint(TRUNCATE)")[0]:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{self.path}-wal: another process still reads what was deleted; end that and"
                    " run the command again"
                )
            time.sleep(0.05)

    def _forget_traces(self, traces: Iterable[Any], transcripts: set[str]) -> Forgotten:
        trace_ids = tuple(sorted({trace_id for (trace_id,) in traces}))
        spans = waiting = 0
        within = {}
        for trace_id in trace_ids:
            if (outer := self._sent_within(trace_id)) is not None:
                within[trace_id] = outer
            spans += self._one("SELECT count(*) FROM spans WHERE trace_id = ?", (trace_id,))[0]
            waiting += self._one(
                "SELECT coalesce(sum(spans), 0) FROM outbox WHERE trace_id = ?", (trace_id,)
            )[0]
            self._forget_trace(trace_id)
        sinks = self._all("SELECT name FROM sinks WHERE sent > 0 ORDER BY name")
        return Forgotten(
            trace_ids=trace_ids,
            spans=spans,
            waiting=waiting,
            sinks=tuple(name for (name,) in sinks) if spans else (),
            transcripts=tuple(sorted(transcripts)),
            within=within,
        )

    def _sent_within(self, trace_id: str) -> str | None:
        # Also where a body is damaged, which must not keep it here.
        row = self._one(
            "SELECT max(CASE WHEN json_valid(CAST(body AS TEXT))"
            " THEN json_extract(CAST(body AS TEXT), '$.within.trace_id') END)"
            " FROM spans WHERE trace_id = ?",
            (trace_id,),
        )
        outer: str | None = row[0]
        return outer

    def _forget_trace(self, trace_id: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (trace_id,))
        self._db.execute(
            "DELETE FROM foreign_spans WHERE told_as = ?1 OR trace_id IN (SELECT"
            " substr(call_id, 6, 32) FROM calls WHERE trace_id = ?1 AND call_id LIKE 'otlp:%')",
            (trace_id,),
        )
        for table in ("spans", "outbox", "calls", "turns", "turn_sums", "settled_turns"):
            self._db.execute(f"DELETE FROM {table} WHERE trace_id = ?", (trace_id,))  # noqa: S608  # names of our own tables

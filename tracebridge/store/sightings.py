"""Sightings, and how far the transcripts that they came from are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import orjson

from tracebridge.agents import Cursor
from tracebridge.codec import PARTS, decode, encode, part_kind
from tracebridge.model import SessionInfo, Sighting, Source
from tracebridge.store.sessions import Sessions


@dataclass(frozen=True, slots=True)
class SightingGroup:
    """Sightings that name the same turn and subagent; the ids are those of the first and last."""

    turn_key: str | None
    subagent_id: str | None
    first_id: int
    last_id: int


class Sightings(Sessions):
    def add_sightings(self, sightings: Iterable[Sighting]) -> list[Sighting]:
        """Keep *sightings* and return those that are new."""
        new = []
        for sighting in sightings:
            kind, body = part_kind(sighting.part).encode(), encode(sighting)
            cursor = self._db.execute(
                "INSERT OR IGNORE INTO sightings"
                " (agent, session_id, turn_key, subagent_id, digest, time_ns, body)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    sighting.agent,
                    sighting.session_id,
                    sighting.turn_key,
                    sighting.subagent_id,
                    sha256(kind + body).digest(),
                    sighting.time_ns,
                    b'["%b",%b]' % (kind, body),
                ),
            )
            if cursor.rowcount:
                new.append(sighting)
        for agent, session_id in {(each.agent, each.session_id) for each in new}:
            self._unsettle(agent, session_id)
        if new:
            self._count_intake()
        return new

    def sightings(self, agent: str, session_id: str) -> list[Sighting]:
        rows = self._all(
            "SELECT body FROM sightings WHERE agent = ? AND session_id = ? ORDER BY id",
            (agent, session_id),
        )
        return [self._parsed(parse_sighting, body) for (body,) in rows]

    def has_sightings(self, agent: str, session_id: str) -> bool:
        row = self._maybe(
            "SELECT 1 FROM sightings WHERE agent = ? AND session_id = ? LIMIT 1",
            (agent, session_id),
        )
        return row is not None

    def is_large(self, agent: str, session_id: str, most: int, most_bytes: int) -> bool:
        """Say whether a session has more sightings than *most*, or longer ones in all."""
        count, length = self._one(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM (SELECT body FROM sightings"
            " WHERE agent = ? AND session_id = ? LIMIT ?)",
            (agent, session_id, most + 1),
        )
        return bool(count > most or length > most_bytes)

    def outline(self, agent: str, session_id: str) -> list[SightingGroup]:
        """Return of which turns and subagents a session has sightings, the oldest first."""
        rows = self._all(
            "SELECT turn_key, subagent_id, min(id), max(id) FROM sightings"
            " WHERE agent = ? AND session_id = ? GROUP BY turn_key, subagent_id ORDER BY min(id)",
            (agent, session_id),
        )
        return [SightingGroup(*row) for row in rows]

    def sightings_of(self, agent: str, session_id: str, group: SightingGroup) -> list[Sighting]:
        rows = self._all(
            "SELECT body FROM sightings"
            " WHERE agent = ? AND session_id = ? AND turn_key IS ? AND subagent_id IS ?",
            (agent, session_id, group.turn_key, group.subagent_id),
        )
        return [self._parsed(parse_sighting, body) for (body,) in rows]

    def sightings_of_subagents(self, agent: str, session_id: str) -> list[tuple[int, Sighting]]:
        """Return what tells which subagents there are, with the ids of the rows."""
        rows = self._all(
            "SELECT id, body FROM sightings WHERE agent = ? AND session_id = ?"
            " AND substr(body, 1, 11) = CAST('[\"Subagent\"' AS BLOB)",
            (agent, session_id),
        )
        return [(row_id, self._parsed(parse_sighting, body)) for row_id, body in rows]

    def _transcripts_of(self, session_id: str) -> set[str]:
        sightings = self._all("SELECT body FROM sightings WHERE session_id = ?", (session_id,))
        parts = [self._parsed(parse_sighting, body).part for (body,) in sightings]
        told = [part.transcript for part in parts if isinstance(part, SessionInfo)]
        return {path for path in told if path is not None}

    def cursor(self, path: Path) -> Cursor:
        row = self._maybe("SELECT read_to, inode, memory FROM cursors WHERE path = ?", (str(path),))
        if row is None:
            return Cursor()
        return Cursor(offset=row[0], inode=row[1], memory=self._parsed(orjson.loads, row[2]))

    def set_cursor(self, path: Path, cursor: Cursor) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO cursors VALUES (?, ?, ?, ?)",
            (str(path), cursor.offset, cursor.inode, orjson.dumps(cursor.memory)),
        )


def parse_sighting(body: bytes) -> Sighting:
    """Return the sighting that a row of the table holds. Raise ValueError where it is damaged."""
    kind, record = orjson.loads(body)
    return Sighting(
        agent=record["agent"],
        session_id=record["session_id"],
        source=Source(record["source"]),
        time_ns=record["time_ns"],
        turn_key=record["turn_key"],
        subagent_id=record["subagent_id"],
        part=decode(orjson.dumps(record["part"]), PARTS[kind]),
    )

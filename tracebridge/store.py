"""The store: sole owner of the SQLite file. Sightings, calls, turns, spans, outbox, cursors.

Everything that must happen together happens in one transaction, and a commit is on the disk when
it returns: the spool file it came from may then be deleted.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Self, TypeVar
from zlib import crc32

import orjson

from tracebridge.agents import Cursor
from tracebridge.codec import PARTS, decode, encode, part_kind
from tracebridge.model import (
    OWN_GATEWAY,
    SCRIPT_CALL,
    SIDE_CALL,
    Evidence,
    GatewayCall,
    Link,
    SessionInfo,
    Sighting,
    Source,
    Span,
    Turn,
)
from tracebridge.sinks import OutboxSpan
from tracebridge.spool import why_not_ours

Record = TypeVar("Record")
Row = TypeVar("Row")

FILE = "store.sqlite3"
# Touched after each commit that changed a turn.
CHANGED = "store.changed"
# How long one process waits for another's transaction.
BUSY_S = 30.0
TURNS_PER_PAGE = 200
# SQLite's integers have 64 bits.
LATEST_NS = 2**63 - 1
# Longer than any sink is left alone: a later time was written by a clock that has been corrected.
LONGEST_POSTPONEMENT_NS = 2 * 3600 * 1_000_000_000
DAMAGED_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# By SQLite's result codes; for all others the file itself is to blame.
REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process holds it; end that and try again",
    sqlite3.SQLITE_FULL: "make room on the disk and try again",
    sqlite3.SQLITE_READONLY: "make it writable and try again",
    sqlite3.SQLITE_CANTOPEN: "make it readable and writable and try again",
    sqlite3.SQLITE_IOERR: "see to the disk and try again",
}

# Each entry leads from one version to the next; PRAGMA user_version says which is reached.
MIGRATIONS = (
    """
    CREATE TABLE sightings (
        id INTEGER PRIMARY KEY,
        agent TEXT NOT NULL, session_id TEXT NOT NULL, turn_key TEXT, subagent_id TEXT,
        digest BLOB NOT NULL UNIQUE, time_ns INTEGER NOT NULL, body BLOB NOT NULL
    );
    CREATE INDEX sightings_of_session ON sightings (agent, session_id);
    CREATE TABLE calls (
        call_id TEXT PRIMARY KEY, agent TEXT, session_id TEXT,
        start_ns INTEGER NOT NULL, taken_ns INTEGER NOT NULL, body BLOB NOT NULL,
        trace_id TEXT, evidence TEXT, reason TEXT
    );
    CREATE INDEX calls_of_session ON calls (agent, session_id);
    CREATE INDEX calls_without_turn ON calls (taken_ns) WHERE trace_id IS NULL;
    CREATE TABLE turns (
        trace_id TEXT PRIMARY KEY,
        agent TEXT NOT NULL, session_id TEXT NOT NULL, turn_key TEXT NOT NULL,
        state TEXT NOT NULL, outcome TEXT, start_ns INTEGER NOT NULL, end_ns INTEGER,
        prompt TEXT, customer_id TEXT, told INTEGER NOT NULL DEFAULT 0,
        revision INTEGER NOT NULL
    );
    CREATE INDEX turns_by_revision ON turns (revision);
    CREATE INDEX turns_by_start ON turns (start_ns);
    CREATE INDEX turns_of_session ON turns (agent, session_id);
    CREATE TABLE spans (
        trace_id TEXT NOT NULL, span_id TEXT NOT NULL, position INTEGER NOT NULL,
        told INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (trace_id, span_id)
    ) WITHOUT ROWID;
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY,
        sink TEXT NOT NULL, span_id TEXT NOT NULL, trace_id TEXT NOT NULL,
        resource BLOB NOT NULL, data BLOB NOT NULL,
        refused TEXT,
        UNIQUE (sink, trace_id, span_id)
    );
    CREATE INDEX outbox_due ON outbox (sink, refused, id);
    CREATE TABLE sinks (
        name TEXT PRIMARY KEY, due_ns INTEGER NOT NULL DEFAULT 0,
        sent INTEGER NOT NULL DEFAULT 0,
        last_success_ns INTEGER, last_error_ns INTEGER, last_error TEXT
    );
    CREATE TABLE cursors (
        path TEXT PRIMARY KEY, read_to INTEGER NOT NULL, inode INTEGER NOT NULL, memory BLOB NOT NULL
    );
    CREATE TABLE forgotten (trace_id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE notes (text TEXT PRIMARY KEY, count INTEGER NOT NULL);
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    INSERT INTO counters VALUES ('revision', 0);
    """,
    """
    CREATE TABLE unsettled_sessions (
        agent TEXT NOT NULL, session_id TEXT NOT NULL, PRIMARY KEY (agent, session_id)
    ) WITHOUT ROWID;
    INSERT INTO unsettled_sessions
        SELECT DISTINCT agent, session_id FROM sightings WHERE turn_key IS NOT NULL
        AND (agent, session_id, turn_key) NOT IN (SELECT agent, session_id, turn_key FROM turns)
        UNION SELECT agent, session_id FROM turns
        WHERE trace_id IN (SELECT trace_id FROM spans WHERE told = 0);
    ALTER TABLE outbox ADD COLUMN checksum INTEGER;
    INSERT INTO counters VALUES ('intake', 0);
    CREATE INDEX outbox_of_span ON outbox (sink, span_id);
    CREATE INDEX outbox_of_trace ON outbox (trace_id);
    CREATE INDEX calls_of_trace ON calls (trace_id);
    CREATE TABLE local_sessions (
        agent TEXT NOT NULL, session_id TEXT NOT NULL, until_ns INTEGER NOT NULL,
        PRIMARY KEY (agent, session_id)
    ) WITHOUT ROWID;
    """,
    # Not a column of its own: rows saved out of a damaged older store have none.
    """
    ALTER TABLE calls ADD COLUMN gateway TEXT GENERATED ALWAYS AS (
        CASE WHEN json_valid(CAST(body AS TEXT))
        THEN json_extract(CAST(body AS TEXT), '$.gateway') END
    ) VIRTUAL;
    CREATE INDEX calls_of_gateway ON calls (gateway, evidence, reason, trace_id);
    CREATE INDEX calls_of_scripts ON calls (reason, start_ns) WHERE evidence IS NULL;
    """,
    """
    CREATE INDEX sightings_of_turn ON sightings (agent, session_id, turn_key, subagent_id);
    DROP INDEX sightings_of_session;
    CREATE INDEX sightings_of_subagents ON sightings (agent, session_id)
        WHERE substr(body, 1, 11) = CAST('["Subagent"' AS BLOB);
    CREATE TABLE settled_turns (trace_id TEXT PRIMARY KEY, told_to INTEGER NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE untraced_sessions (
        agent TEXT NOT NULL, session_id TEXT NOT NULL, known_ns INTEGER NOT NULL,
        PRIMARY KEY (agent, session_id)
    ) WITHOUT ROWID;
    CREATE TABLE sink_levels (name TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE foreign_spans (
        trace_id TEXT NOT NULL, span_id TEXT NOT NULL, taken_ns INTEGER NOT NULL,
        resource BLOB NOT NULL, scope BLOB NOT NULL, body BLOB NOT NULL, told_as TEXT,
        PRIMARY KEY (trace_id, span_id)
    ) WITHOUT ROWID;
    CREATE INDEX foreign_spans_waiting ON foreign_spans (trace_id) WHERE told_as IS NULL;
    CREATE INDEX foreign_spans_told_as ON foreign_spans (told_as);
    """,
    # What turns come to, so that `stats` need not read all spans. The columns are those of
    # `stats.Totals`; when they, or what they mean, change, drop the rows and set 'summed' to 0.
    """
    CREATE TABLE turn_sums (
        trace_id TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
        cwd TEXT, has_errors INTEGER NOT NULL,
        turns INTEGER, failed_turns INTEGER, calls INTEGER, failed_calls INTEGER, retries INTEGER,
        tool_calls INTEGER, failed_tool_calls INTEGER, input_tokens INTEGER, output_tokens INTEGER,
        cache_read_tokens INTEGER, cost_usd REAL, unpriced_calls INTEGER, lines_added INTEGER,
        lines_removed INTEGER, model_ns INTEGER, tools_ns INTEGER, human_ns INTEGER,
        agent_ns INTEGER, linked_exactly INTEGER, linked_by_inference INTEGER,
        told_by_transcript_alone INTEGER, orphans INTEGER,
        PRIMARY KEY (trace_id, kind, name)
    ) WITHOUT ROWID;
    CREATE INDEX turns_by_state ON turns (state);
    INSERT INTO counters VALUES ('summed', 0);
    """,
)
# By what sums are grouped, and the kind of rows that have it; "turn" for those of a turn as a whole.
SUM_GROUPS = {
    "day": ("turn", "strftime('%Y-%m-%d', start_ns / 1000000000, 'unixepoch', 'localtime')"),
    "project": ("turn", "iif(name = '', '(none)', name)"),
    "customer": ("turn", "iif(coalesce(customer_id, '') = '', '(none)', customer_id)"),
    "agent": ("turn", "agent"),
    "session": ("turn", "session_id"),
    "model": ("model", "name"),
    "tool": ("tool", "name"),
    "": ("turn", "''"),
}


class StoreError(Exception):
    """The store cannot be used; the text names the file and the remedy."""


class DamagedStoreError(StoreError):
    """What is in the file is not what was written."""


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


@dataclass(frozen=True, slots=True)
class SightingGroup:
    """Sightings that name the same turn and subagent; the ids are those of the first and last."""

    turn_key: str | None
    subagent_id: str | None
    first_id: int
    last_id: int


@dataclass(frozen=True, slots=True)
class ForeignRow:
    """A span of another gateway: its ids there; resource, scope and the span itself, encoded."""

    trace_id: str
    span_id: str
    parts: tuple[bytes, bytes, bytes]


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


class Store:
    """Open the store below *home*, making it or bringing it up to date where needed."""

    def __init__(self, home: Path, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._revised = False
        self.path = home / FILE
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (stranger := why_not_ours(home)) is not None:
                raise StoreError(f"{home}: {stranger}")
            # SQLite gives its side files the mode of the file itself.
            self.path.touch(mode=0o600, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}; make it writable") from error
        self._db = _Database(self.path)
        try:
            self._migrate()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all that happens inside one step: wholly there after a crash, or not at all."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
            if self._revised:
                # SQLite's own files change before a commit can be seen: followers wait for this.
                self._revised = False
                self.path.with_name(CHANGED).touch(mode=0o600)
        except BaseException:
            self._db.roll_back()
            raise

    def _migrate(self) -> None:
        if int(self._one("PRAGMA user_version")[0]) == len(MIGRATIONS):
            return
        with self.transaction():
            # Asked again: another process may have done the work while we waited for the lock.
            version = int(self._one("PRAGMA user_version")[0])
            if version > len(MIGRATIONS):
                raise StoreError(
                    f"{self.path} was written by a newer tracebridge (store version {version}); "
                    "update this one"
                )
            for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                # Not executescript(): that would end the transaction.
                for statement in filter(str.strip, script.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {number}")

    # Sightings and calls: what came in.

    def add_sightings(self, sightings: Iterable[Sighting]) -> list[Sighting]:
        """Keep *sightings* and return those that are new."""
        new = []
        for sighting in sightings:
            body = encode(sighting)
            cursor = self._db.execute(
                "INSERT OR IGNORE INTO sightings"
                " (agent, session_id, turn_key, subagent_id, digest, time_ns, body)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    sighting.agent,
                    sighting.session_id,
                    sighting.turn_key,
                    sighting.subagent_id,
                    sha256(part_kind(sighting.part).encode() + body).digest(),
                    sighting.time_ns,
                    orjson.dumps([part_kind(sighting.part), orjson.Fragment(body)]),
                ),
            )
            if cursor.rowcount:
                new.append(sighting)
        for agent, session_id in {(each.agent, each.session_id) for each in new}:
            self._unsettle(agent, session_id)
        if new:
            self._count_intake()
        return new

    @contextmanager
    def taking_in(self) -> Iterator[None]:
        """Be the only process that takes in and tells. Raise StoreError if another is for long."""
        path = self.path.with_name("intake.lock")
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}; make it writable") from error
        try:
            deadline = time.monotonic() + BUSY_S
            while not _flock(lock, wait=False):
                if time.monotonic() > deadline:
                    raise StoreError(f"{path}: another watcher holds it; end that and try again")
                time.sleep(0.01)
            yield
        finally:
            os.close(lock)

    def intakes(self) -> int:
        """Return a number that is another one once any process has taken something in."""
        return int(self._one("SELECT value FROM counters WHERE name = 'intake'")[0])

    def _count_intake(self) -> None:
        self._db.execute("UPDATE counters SET value = value + 1 WHERE name = 'intake'")

    def _unsettle(self, agent: str, session_id: str) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO unsettled_sessions VALUES (?, ?)", (agent, session_id)
        )

    def settle(self, agent: str, session_id: str) -> None:
        """Note that all that came in of a session is told; in one step with telling it."""
        self._db.execute(
            "DELETE FROM unsettled_sessions WHERE agent = ? AND session_id = ?", (agent, session_id)
        )

    def keep_local(self, agent: str, session_id: str, until_ns: int) -> None:
        """Note that turns of a session that began before *until_ns* go to no sink by themselves."""
        self._db.execute(
            "INSERT OR IGNORE INTO local_sessions VALUES (?, ?, ?)", (agent, session_id, until_ns)
        )

    def local_until(self, agent: str, session_id: str) -> int:
        """Return until when the turns of a session stay here; 0 if they go to the sinks."""
        row = self._maybe(
            "SELECT until_ns FROM local_sessions WHERE agent = ? AND session_id = ?",
            (agent, session_id),
        )
        return 0 if row is None else int(row[0])

    def sightings(self, agent: str, session_id: str) -> list[Sighting]:
        rows = self._all(
            "SELECT body FROM sightings WHERE agent = ? AND session_id = ? ORDER BY id",
            (agent, session_id),
        )
        return [self._parsed(parse_sighting, body) for (body,) in rows]

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

    def add_call(self, call: GatewayCall, taken_ns: int) -> bool:
        """Keep *call* and say whether it is new."""
        identity = call.identity
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO calls (call_id, agent, session_id, start_ns, taken_ns, body)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                call.call_id,
                identity.agent if identity is not None else None,
                identity.session_id if identity is not None else None,
                call.start_ns,
                taken_ns,
                encode(call),
            ),
        )
        if not cursor.rowcount:
            return False
        if identity is not None and identity.session_id is not None:
            self._unsettle(identity.agent, identity.session_id)
        self._count_intake()
        return True

    def calls(self, agent: str, session_id: str) -> list[GatewayCall]:
        """Return the calls of a session: those that name it, and those that its turns claim.

        Those that went out alone are not its any more.
        """
        rows = self._all(
            "SELECT body FROM calls WHERE call_id IN"
            " (SELECT call_id FROM calls WHERE agent = ?1 AND session_id = ?2 UNION"
            " SELECT call_id FROM calls WHERE trace_id IN"
            " (SELECT trace_id FROM turns WHERE agent = ?1 AND session_id = ?2))"
            " AND (evidence IS NOT NULL OR trace_id IS NULL)"
            " ORDER BY start_ns, call_id",
            (agent, session_id),
        )
        return [self._parsed(parse_call, body) for (body,) in rows]

    def inferred_calls(self, agent: str, session_id: str) -> list[tuple[GatewayCall, str]]:
        """Return the calls that were told although no key says whose they are, with the traces."""
        rows = self._all(
            "SELECT body, trace_id FROM calls WHERE agent = ?1 AND session_id = ?2"
            " AND trace_id IS NOT NULL AND (evidence IS NULL OR (evidence = ?3 AND trace_id IN"
            " (SELECT trace_id FROM turns WHERE agent = ?1 AND session_id = ?2 AND told = 1)))",
            (agent, session_id, Evidence.SESSION_WINDOW),
        )
        return [(self._parsed(parse_call, body), trace_id) for body, trace_id in rows]

    def unsettled_calls(self, agent: str, session_id: str) -> list[GatewayCall]:
        """Return the calls that name a session, but for those of settled turns: links may change."""
        rows = self._all(
            "SELECT body FROM calls WHERE agent = ? AND session_id = ? AND (trace_id IS NULL"
            " OR (evidence IS NOT NULL AND trace_id NOT IN (SELECT trace_id FROM settled_turns)))"
            " ORDER BY start_ns, call_id",
            (agent, session_id),
        )
        return [self._parsed(parse_call, body) for (body,) in rows]

    def calls_of_turn(self, trace_id: str) -> list[GatewayCall]:
        """Return the calls that are linked to a turn."""
        rows = self._all(
            "SELECT body FROM calls WHERE trace_id = ? AND evidence IS NOT NULL"
            " ORDER BY start_ns, call_id",
            (trace_id,),
        )
        return [self._parsed(parse_call, body) for (body,) in rows]

    def calls_without_turn(self) -> list[tuple[GatewayCall, int]]:
        """Return the calls that no turn claims, each with the time at which it came in."""
        rows = self._all(
            "SELECT body, taken_ns FROM calls WHERE trace_id IS NULL ORDER BY taken_ns"
        )
        return [(self._parsed(parse_call, body), taken_ns) for body, taken_ns in rows]

    def calls_since(self, start_ns: int) -> list[GatewayCall]:
        """Return the calls that began at *start_ns* or later."""
        rows = self._all(
            "SELECT body FROM calls WHERE start_ns >= ? ORDER BY start_ns", (start_ns,)
        )
        return [self._parsed(parse_call, body) for (body,) in rows]

    def lone_calls(self, since_ns: int, until_ns: int) -> list[tuple[GatewayCall, str, str]]:
        """Return the calls that began in a time and were told alone, with reason and trace.

        Those are calls of scripts, and what our gateway saw that no turn claims.
        """
        rows = self._all(
            "SELECT body, reason, trace_id FROM calls WHERE evidence IS NULL"
            " AND trace_id IS NOT NULL AND (reason = ? OR gateway = ?) AND start_ns BETWEEN ? AND ?",
            (SCRIPT_CALL, OWN_GATEWAY, since_ns, until_ns),
        )
        return [
            (self._parsed(parse_call, body), reason or "", trace) for body, reason, trace in rows
        ]

    def set_link(self, call_id: str, link: Link) -> None:
        self._db.execute(
            "UPDATE calls SET trace_id = ?, evidence = ?, reason = NULL WHERE call_id = ?",
            (link.trace_id, link.evidence, call_id),
        )

    def set_reason(self, call_id: str, reason: str, trace_id: str | None = None) -> None:
        """Say why no turn claims a call, and under which trace it went out alone."""
        self._db.execute(
            "UPDATE calls SET reason = ?, trace_id = ?, evidence = NULL WHERE call_id = ?",
            (reason, trace_id, call_id),
        )

    def open_sessions(self) -> list[tuple[str, str]]:
        """Return agent and id of the sessions of which not everything is told yet."""
        rows = self._all(
            "SELECT agent, session_id FROM unsettled_sessions"
            " UNION SELECT DISTINCT agent, session_id FROM turns WHERE told = 0"
            " UNION SELECT DISTINCT agent, session_id FROM calls"
            " WHERE trace_id IS NULL AND session_id IS NOT NULL"
        )
        return [(agent, session_id) for agent, session_id in rows]

    # Spans of other gateways, each fragment by the trace that it came from.

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

    def calls_named(self, prefix: str) -> list[tuple[GatewayCall, str | None, str | None]]:
        """Return the calls whose id begins so, each with trace and evidence of its link."""
        rows = self._all(
            "SELECT body, trace_id, evidence FROM calls WHERE call_id >= ? AND call_id < ?",
            (prefix, f"{prefix}~"),
        )
        return [(self._parsed(parse_call, body), turn, how) for body, turn, how in rows]

    def tell_fragment(self, trace_id: str, told_as: str) -> None:
        """Note under which trace the spans of a foreign trace went out; in one step with that."""
        self._db.execute(
            "UPDATE foreign_spans SET told_as = ? WHERE trace_id = ? AND told_as IS NULL",
            (told_as, trace_id),
        )

    def drop_fragment(self, trace_id: str) -> None:
        self._db.execute("DELETE FROM foreign_spans WHERE trace_id = ?", (trace_id,))

    def session_of_turn(self, trace_id: str) -> tuple[str, str] | None:
        """Return agent and id of the session of a turn."""
        row = self._maybe("SELECT agent, session_id FROM turns WHERE trace_id = ?", (trace_id,))
        return None if row is None else (row[0], row[1])

    def sessions_around(
        self, start_ns: int, end_ns: int, most: int, session_id: str | None = None
    ) -> list[tuple[str, str]]:
        """Return the sessions that had a turn then, or those of this id, the latest first."""
        return self._all(
            "SELECT agent, session_id FROM turns WHERE CASE WHEN ?1 IS NULL"
            " THEN start_ns <= ?3 AND coalesce(end_ns, ?2) >= ?2 ELSE session_id = ?1 END"
            " GROUP BY agent, session_id ORDER BY max(start_ns) DESC LIMIT ?4",
            (session_id, start_ns, end_ns, most),
        )

    def _changes(self) -> int:
        return int(self._one("SELECT total_changes()")[0])

    # Transcripts: how far they are read.

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

    def add_notes(self, notes: Mapping[str, int]) -> None:
        for text, count in notes.items():
            self._db.execute(
                "INSERT INTO notes VALUES (?, ?)"
                " ON CONFLICT (text) DO UPDATE SET count = count + excluded.count",
                (text, count),
            )

    def notes(self) -> dict[str, int]:
        return dict(self._all("SELECT text, count FROM notes ORDER BY text"))

    # Turns and spans: what is shown and told.

    def put_turn(self, turn: Turn, spans: Sequence[Span]) -> bool:
        """Keep the present state of *turn* and say whether anything changed. Told spans stay."""
        if self._maybe("SELECT 1 FROM forgotten WHERE trace_id = ?", (turn.trace_id,)):
            # A watcher may still have it in mind; told anew, it would arrive twice.
            return False
        told = {
            span_id
            for (span_id,) in self._all(
                "SELECT span_id FROM spans WHERE trace_id = ? AND told = 1", (turn.trace_id,)
            )
        }
        before = dict(
            self._all(
                "SELECT span_id, body FROM spans WHERE trace_id = ? AND told = 0", (turn.trace_id,)
            )
        )
        now = {
            span.span_id: (position, encode(span))
            for position, span in enumerate(spans)
            if span.span_id not in told
        }
        if before == {span_id: body for span_id, (_, body) in now.items()}:
            return False
        self.unsettle_turn(turn.trace_id)
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
        sinks: Iterable[str],
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
        untold = {
            span_id
            for (span_id,) in self._all(
                "SELECT span_id FROM spans WHERE trace_id = ? AND told = 0", (trace_id,)
            )
        }
        new = [(span_id, data) for span_id, data in spans if span_id in untold]
        for sink in sinks:
            own = (reduced or {}).get(sink)
            offered = new if own is None else [(i, own[i]) for i, _ in new if i in own]
            self.offer(trace_id, offered, resource, [sink])
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

    def offer(
        self,
        trace_id: str,
        spans: Iterable[tuple[str, bytes]],
        resource: tuple[tuple[str, str], ...],
        sinks: Iterable[str],
    ) -> None:
        """Put spans into the outbox of each sink, but for those that wait there already."""
        resource_json = orjson.dumps(resource)
        spans = list(spans)
        for sink in sinks:
            self._db.executemany(
                "INSERT OR IGNORE INTO outbox (sink, span_id, trace_id, resource, data, checksum)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [(sink, i, trace_id, resource_json, data, crc32(data)) for i, data in spans],
            )

    def put_lone_span(self, span: Span) -> None:
        """Keep a span that stands alone in its trace."""
        self._db.execute(
            "INSERT OR IGNORE INTO spans VALUES (?, ?, 0, 0, ?)",
            (span.trace_id, span.span_id, encode(span)),
        )

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

    def not_summed_up(self) -> list[str]:
        """Return the turns that have changed since they were summed up, and those that go on."""
        rows = self._all(
            "SELECT trace_id FROM turns WHERE state = 'open' OR revision >"
            " (SELECT value FROM counters WHERE name = 'summed')"
        )
        return [trace_id for (trace_id,) in rows]

    def put_sums(self, trace_id: str, sums: Iterable[Mapping[str, Any]]) -> None:
        """Keep what a turn comes to, one row for each kind and name, in place of what was kept."""
        self._db.execute("DELETE FROM turn_sums WHERE trace_id = ?", (trace_id,))
        for row in sums:
            marks = ", ".join("?" for _ in row)
            self._db.execute(
                f"INSERT INTO turn_sums (trace_id, {', '.join(row)}) VALUES (?, {marks})",  # noqa: S608  # names of our own columns
                (trace_id, *row.values()),
            )

    def summed_up_to(self, revision: int) -> None:
        self._db.execute("UPDATE counters SET value = ? WHERE name = 'summed'", (revision,))

    def sums(
        self,
        by: str,
        columns: Sequence[str],
        *,
        agent: str | None = None,
        session_prefix: str = "",
        project: str | None = None,
        errors: bool = False,
        since_ns: int = 0,
        until_ns: int | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Return sums over turns by a key of SUM_GROUPS, as far as turns have been summed up."""
        kind, group = SUM_GROUPS[by]
        totals = ", ".join(f"sum({column})" for column in columns)
        rows = self._all(
            f"SELECT {group}, {totals} FROM turns JOIN turn_sums USING (trace_id)"  # noqa: S608  # as above
            " WHERE kind = ?1 AND (?2 IS NULL OR agent = ?2)"
            " AND substr(session_id, 1, length(?3)) = ?3"
            " AND (?4 IS NULL OR EXISTS (SELECT 1 FROM turn_sums AS whole"
            " WHERE whole.trace_id = turns.trace_id AND whole.kind = 'turn'"
            " AND ?4 IN (whole.name, whole.cwd)))"
            " AND has_errors >= ?5 AND start_ns >= ?6 AND (?7 IS NULL OR start_ns < ?7)"
            " GROUP BY 1",
            (kind, agent, session_prefix, project, int(errors), since_ns, until_ns),
        )
        return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}

    def orphans_per_agent(self, since_ns: int = 0, until_ns: int | None = None) -> dict[str, int]:
        """Return how many calls of a time no turn claims, by the agent that they name."""
        return dict(
            self._all(
                "SELECT coalesce(agent, ''), count(*) FROM calls"
                " WHERE evidence IS NULL AND trace_id IS NOT NULL AND reason IS NOT ?3"
                " AND start_ns >= ?1 AND (?2 IS NULL OR start_ns < ?2) GROUP BY 1",
                (since_ns, until_ns, SCRIPT_CALL),
            )
        )

    def spans(self, trace_id: str) -> list[Span]:
        """Return the spans of a trace, the root last."""
        rows = self._all(
            "SELECT body FROM spans WHERE trace_id = ? ORDER BY position, span_id", (trace_id,)
        )
        spans = [self._parsed(parse_span, body) for (body,) in rows]
        return sorted(spans, key=lambda span: span.parent_span_id is None)

    def revision(self) -> int:
        return int(self._one("SELECT value FROM counters WHERE name = 'revision'")[0])

    def _next_revision(self) -> int:
        self._revised = True
        row = self._one(
            "UPDATE counters SET value = value + 1 WHERE name = 'revision' RETURNING value"
        )
        return int(row[0])

    # The outbox: finished spans that a sink has not acknowledged.

    @contextmanager
    def delivering(self, sink: str, *, wait: bool) -> Iterator[bool]:
        """Be the only process that delivers to *sink*; give False if another is, and not *wait*."""
        name = f"outbox-{sha256(sink.encode()).hexdigest()[:16]}.lock"
        try:
            lock = os.open(self.path.with_name(name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreError(f"{self.path.with_name(name)}: {error.strerror}") from error
        try:
            yield _flock(lock, wait=wait)
        finally:
            os.close(lock)

    def due(self, sink: str, now_ns: int, limit: int) -> list[OutboxSpan]:
        row = self._maybe("SELECT due_ns FROM sinks WHERE name = ?", (sink,))
        if row is not None and now_ns < row[0] < now_ns + LONGEST_POSTPONEMENT_NS:
            return []
        rows = self._all(
            "SELECT span_id, trace_id, resource, data, checksum FROM outbox"
            " WHERE sink = ? AND refused IS NULL ORDER BY id LIMIT ?",
            (sink, limit),
        )
        return [self._parsed(parse_outbox_row, row) for row in rows]

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
            # In one statement: five hundred cost as much again as the rest.
            self._db.execute(
                "DELETE FROM outbox WHERE sink = ? AND span_id IN (SELECT value FROM json_each(?))",
                (sink, orjson.dumps(list(span_ids)).decode()),
            )
            self._db.execute(
                "INSERT INTO sinks (name, sent, last_success_ns) VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET sent = sent + excluded.sent, due_ns = 0,"
                " last_success_ns = excluded.last_success_ns",
                (sink, len(span_ids), self._clock()),
            )

    def refuse(self, sink: str, span_ids: Sequence[str], reason: str) -> None:
        """Keep spans that a sink will never take, with the reason, out of the way of the rest."""
        with self.transaction():
            self._db.executemany(
                "UPDATE outbox SET refused = ? WHERE sink = ? AND span_id = ?",
                [(reason, sink, span_id) for span_id in span_ids],
            )
            self._set_error(sink, 0, reason)

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
        for (span_id,) in self._all(
            "SELECT span_id FROM outbox WHERE sink = ? AND trace_id = ?", (sink, trace_id)
        ):
            data = spans.get(span_id)
            if data is None:
                dropped += 1
                self._db.execute(
                    "DELETE FROM outbox WHERE sink = ? AND trace_id = ? AND span_id = ?",
                    (sink, trace_id, span_id),
                )
            else:
                self._db.execute(
                    "UPDATE outbox SET data = ?, checksum = ?"
                    " WHERE sink = ? AND trace_id = ? AND span_id = ?",
                    (data, crc32(data), sink, trace_id, span_id),
                )
        return dropped

    def bound_outbox(self, sink: str, limit_bytes: int) -> int:
        """Take the oldest turns out of what waits for *sink* until the rest fits; say how many.

        They stay in the store, to be shown and exported, as long as all turns do.
        """
        size = int(
            self._one("SELECT coalesce(sum(length(data)), 0) FROM outbox WHERE sink = ?", (sink,))[
                0
            ]
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

    def _set_error(self, sink: str, due_ns: int, error: str) -> None:
        self._db.execute(
            "INSERT INTO sinks (name, due_ns, last_error_ns, last_error) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET due_ns = excluded.due_ns,"
            " last_error_ns = excluded.last_error_ns, last_error = excluded.last_error",
            (sink, due_ns, self._clock(), error),
        )

    # What `status` tells, and tidying up.

    def sinks(self) -> list[SinkRow]:
        rows = self._all(
            "SELECT name, (SELECT count(*) FROM outbox WHERE sink = name AND refused IS NULL),"
            " (SELECT count(*) FROM outbox WHERE sink = name AND refused IS NOT NULL),"
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
        return int(self._one("SELECT count(*) FROM outbox WHERE refused IS NULL")[0])

    def turn_counts(self) -> dict[str, int]:
        return dict(self._all("SELECT state, count(*) FROM turns GROUP BY state"))

    def link_counts(self) -> Counter[str]:
        """Return how many calls were linked by which evidence.

        Beside: "waiting", "orphan", "side" for those that have no turn to be linked to, and
        "script" for those that no agent made.
        """
        return sum(self.link_counts_by_gateway().values(), Counter())

    def link_counts_by_gateway(self) -> dict[str, Counter[str]]:
        """Return what `link_counts` does for the calls that each gateway saw."""
        counts: dict[str, Counter[str]] = {}
        # By the columns of an index, in its order: of a hundred thousand calls none is sorted.
        for gateway, evidence, reason, number, claimed in self._all(
            "SELECT coalesce(gateway, ''), evidence, reason, count(*), count(trace_id)"
            " FROM calls GROUP BY gateway, evidence, reason"
        ):
            fates = counts.setdefault(gateway, Counter())
            if evidence is not None:
                fates[evidence] += number
                continue
            fate = {SIDE_CALL: "side", SCRIPT_CALL: "script"}.get(reason, "orphan")
            # Nothing that is zero stays.
            fates += Counter({"waiting": number - claimed, fate: claimed})
        return {gateway: Counter(dict(sorted(fates.items()))) for gateway, fates in counts.items()}

    def orphan_reasons(self) -> dict[str, int]:
        return dict(
            self._all(
                "SELECT reason, count(*) FROM calls WHERE evidence IS NULL AND reason NOT IN (?, ?)"
                " GROUP BY reason",
                (SIDE_CALL, SCRIPT_CALL),
            )
        )

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
            self._db.execute("PRAGMA secure_delete = ON")
            self.forget_session(session_id)
        with self.transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO untraced_sessions VALUES (?, ?, ?)",
                (agent, session_id, self._clock()),
            )
            self._count_intake()
        return not known

    def untraced_sessions(self) -> list[tuple[str, str]]:
        rows = self._all("SELECT agent, session_id FROM untraced_sessions")
        return [(agent, session_id) for agent, session_id in rows]

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

    def _transcripts_of(self, session_id: str) -> set[str]:
        sightings = self._all("SELECT body FROM sightings WHERE session_id = ?", (session_id,))
        parts = [self._parsed(parse_sighting, body).part for (body,) in sightings]
        told = [part.transcript for part in parts if isinstance(part, SessionInfo)]
        return {path for path in told if path is not None}

    def _forget_traces(self, traces: Iterable[Any], transcripts: set[str]) -> Forgotten:
        trace_ids = tuple(sorted({trace_id for (trace_id,) in traces}))
        spans = waiting = 0
        within = {}
        for trace_id in trace_ids:
            if (outer := self._sent_within(trace_id)) is not None:
                within[trace_id] = outer
            spans += self._one("SELECT count(*) FROM spans WHERE trace_id = ?", (trace_id,))[0]
            waiting += self._one("SELECT count(*) FROM outbox WHERE trace_id = ?", (trace_id,))[0]
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

    def _parsed(self, parse: Callable[[Row], Record], row: Row) -> Record:
        try:
            return parse(row)
        except (ValueError, KeyError, TypeError) as error:
            # SQLite has no checksums: a bad page may show in nothing else than what stands on it.
            raise damaged(self.path, error) from error

    # Rows out of a damaged store.

    def take_over(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Put whole rows into one of our tables, as far as they fit; return how many did."""
        columns = [name for _, name, *_ in self._all(f"PRAGMA table_info({table})")]
        values = ", ".join("?" for _ in columns)
        taken = 0
        for row in rows:
            try:
                self._db.execute(
                    f"INSERT OR REPLACE INTO {table} VALUES ({values})",  # noqa: S608  # as above
                    [row[name] for name in columns],
                )
            except (StoreError, KeyError, IndexError):
                # A value that the table does not take, or a column that came later.
                continue
            taken += 1
        return taken

    def untell(self) -> None:
        """Take all told spans for untold, so that they are told once more."""
        for table in ("spans", "turns"):
            self._db.execute(f"UPDATE {table} SET told = 0")  # noqa: S608  # as above
        self._db.execute("UPDATE foreign_spans SET told_as = NULL")
        self._db.execute("DELETE FROM outbox WHERE refused IS NULL")

    def _one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        return self._db.rows(statement, values)[0]

    def _maybe(self, statement: str, values: Sequence[Any] = ()) -> Any | None:
        return next(iter(self._db.rows(statement, values)), None)

    def _all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._db.rows(statement, values)


def damaged(path: Path, error: Exception) -> DamagedStoreError:
    return DamagedStoreError(
        f"{path}: {error}; move it away, or let `tracebridge watch --once` set it aside and make a"
        " new one of what can still be read, of spool and transcripts"
    )


class _Database:
    """A connection whose errors are StoreErrors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._told():
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S)
        try:
            self._use_wal()
            # A spool file is deleted after the commit: the commit must be on the disk.
            self.execute("PRAGMA synchronous = FULL")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self._told():
            self._connection.close()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        with self._told():
            return self._connection.execute(statement, values)

    def executemany(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        with self._told():
            self._connection.executemany(statement, values)

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._told():
            return self._connection.execute(statement, values).fetchall()

    def roll_back(self) -> None:
        # Where the disk failed, SQLite may have done it by itself.
        if self._connection.in_transaction:
            self.execute("ROLLBACK")

    def _use_wal(self) -> None:
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.Error as error:
                # SQLite does not wait here while another process does the same.
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise self._error(error) from error
                time.sleep(0.01)
            else:
                return

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _error(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        # A text that is none carries no code.
        if code in DAMAGED_CODES or "Could not decode" in str(error):
            return damaged(self._path, error)
        remedy = REMEDIES.get(code, "move it away and a new one is made from spool and transcripts")
        return StoreError(f"{self._path}: {error}; {remedy}")


def _flock(descriptor: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def parse_outbox_row(row: Sequence[Any]) -> OutboxSpan:
    """Return what a row of the outbox holds. Raise ValueError where it is damaged."""
    span_id, trace_id, resource, data, checksum = row
    if checksum is not None and checksum != crc32(data):
        raise ValueError(f"span {span_id} in the outbox has changed")
    return OutboxSpan(
        span_id=span_id,
        trace_id=trace_id,
        resource=_parsed_resource(resource),
        data=data,
    )


@lru_cache(maxsize=64)
def _parsed_resource(data: bytes) -> tuple[tuple[str, str], ...]:
    # All spans of a session have the same.
    return tuple((name, value) for name, value in orjson.loads(data))


def parse_span(body: bytes) -> Span:
    return decode(body, Span)


def parse_call(body: bytes) -> GatewayCall:
    return decode(body, GatewayCall)


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

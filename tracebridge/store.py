"""The store: sole owner of the SQLite file. Sightings, calls, turns, spans, outbox, cursors.

Everything that must happen together happens in one transaction, and a commit is on the disk when
it returns: the spool file it came from may then be deleted.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import orjson

from tracebridge.agents import Cursor
from tracebridge.codec import PARTS, decode, encode, part_kind
from tracebridge.model import GatewayCall, Link, Sighting, Source, Span, Turn
from tracebridge.sinks import OutboxSpan

FILE = "store.sqlite3"
# Touched after each commit that changed a turn.
CHANGED = "store.changed"
# How long one process waits for another's transaction.
BUSY_S = 30.0
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
)


class StoreError(Exception):
    """The store cannot be used; the text names the file and the remedy."""


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
class SinkRow:
    name: str
    waiting: int
    refused: int
    sent: int
    due_ns: int
    last_success_ns: int | None
    last_error_ns: int | None
    last_error: str | None


class Store:
    """Open the store below *home*, making it or bringing it up to date where needed."""

    def __init__(self, home: Path, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._revised = False
        self.path = home / FILE
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        return new

    def sightings(self, agent: str, session_id: str) -> list[Sighting]:
        rows = self._all(
            "SELECT body FROM sightings WHERE agent = ? AND session_id = ? ORDER BY id",
            (agent, session_id),
        )
        return [_sighting(body) for (body,) in rows]

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
        return cursor.rowcount > 0

    def calls(self, agent: str, session_id: str) -> list[GatewayCall]:
        rows = self._all(
            "SELECT body FROM calls WHERE agent = ? AND session_id = ? ORDER BY start_ns, call_id",
            (agent, session_id),
        )
        return [decode(body, GatewayCall) for (body,) in rows]

    def calls_without_turn(self) -> list[tuple[GatewayCall, int]]:
        """Return the calls that no turn claims, each with the time at which it came in."""
        rows = self._all(
            "SELECT body, taken_ns FROM calls WHERE trace_id IS NULL ORDER BY taken_ns"
        )
        return [(decode(body, GatewayCall), taken_ns) for body, taken_ns in rows]

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
        """Return agent and id of the sessions that have a turn whose spans are not told yet."""
        rows = self._all(
            "SELECT DISTINCT agent, session_id FROM turns WHERE told = 0"
            " UNION SELECT DISTINCT agent, session_id FROM calls"
            " WHERE trace_id IS NULL AND session_id IS NOT NULL"
        )
        return [(agent, session_id) for agent, session_id in rows]

    # Transcripts: how far they are read.

    def cursor(self, path: Path) -> Cursor:
        row = self._maybe("SELECT read_to, inode, memory FROM cursors WHERE path = ?", (str(path),))
        if row is None:
            return Cursor()
        return Cursor(offset=row[0], inode=row[1], memory=orjson.loads(row[2]))

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

    def tell(
        self,
        trace_id: str,
        spans: Iterable[tuple[str, bytes]],
        resource: tuple[tuple[str, str], ...],
        sinks: Iterable[str],
    ) -> int:
        """Put the spans (id and encoding) that were not told yet into the outbox of each sink.

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
        resource_json = orjson.dumps(resource)
        for sink in sinks:
            self._db.executemany(
                "INSERT OR IGNORE INTO outbox (sink, span_id, trace_id, resource, data)"
                " VALUES (?, ?, ?, ?, ?)",
                [(sink, span_id, trace_id, resource_json, data) for span_id, data in new],
            )
        self._db.executemany(
            "UPDATE spans SET told = 1 WHERE trace_id = ? AND span_id = ?",
            [(trace_id, span_id) for span_id, _ in new],
        )
        if new:
            self._db.execute(
                "UPDATE turns SET told = 1, revision = ? WHERE trace_id = ?",
                (self._next_revision(), trace_id),
            )
        return len(new)

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
        return [
            TurnRow(
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
            for row in reversed(rows)
        ]

    def spans(self, trace_id: str) -> list[Span]:
        """Return the spans of a trace, the root last."""
        rows = self._all(
            "SELECT body FROM spans WHERE trace_id = ? ORDER BY position, span_id", (trace_id,)
        )
        spans = [decode(body, Span) for (body,) in rows]
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

    def due(self, sink: str, now_ns: int, limit: int) -> list[OutboxSpan]:
        row = self._maybe("SELECT due_ns FROM sinks WHERE name = ?", (sink,))
        if row is not None and row[0] > now_ns:
            return []
        rows = self._all(
            "SELECT span_id, trace_id, resource, data FROM outbox"
            " WHERE sink = ? AND refused IS NULL ORDER BY id LIMIT ?",
            (sink, limit),
        )
        return [
            OutboxSpan(
                span_id=span_id,
                trace_id=trace_id,
                resource=tuple((name, value) for name, value in orjson.loads(resource)),
                data=data,
            )
            for span_id, trace_id, resource, data in rows
        ]

    def acknowledge(self, sink: str, span_ids: Sequence[str]) -> None:
        with self.transaction():
            self._db.executemany(
                "DELETE FROM outbox WHERE sink = ? AND span_id = ?", [(sink, i) for i in span_ids]
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

    def link_counts(self) -> dict[str, int]:
        """Return how many calls were linked by which evidence; "orphan" and "waiting" beside."""
        return dict(
            self._all(
                "SELECT coalesce(evidence, CASE WHEN trace_id IS NULL THEN 'waiting'"
                " ELSE 'orphan' END), count(*) FROM calls GROUP BY 1"
            )
        )

    def orphan_reasons(self) -> dict[str, int]:
        return dict(
            self._all(
                "SELECT reason, count(*) FROM calls WHERE evidence IS NULL AND reason IS NOT NULL"
                " GROUP BY reason"
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
                "SELECT trace_id FROM calls WHERE evidence IS NULL AND trace_id IS NOT NULL"
                " AND taken_ns < ? AND NOT EXISTS (SELECT 1 FROM outbox"
                " WHERE outbox.trace_id = calls.trace_id AND refused IS NULL)",
                (time_ns,),
            )
            for (trace_id,) in orphans:
                self._forget_trace(trace_id)
        return len(gone)

    def _forget_trace(self, trace_id: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (trace_id,))
        for table in ("spans", "outbox", "calls", "turns"):
            self._db.execute(f"DELETE FROM {table} WHERE trace_id = ?", (trace_id,))  # noqa: S608  # names of our own tables

    def _one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        return self._db.rows(statement, values)[0]

    def _maybe(self, statement: str, values: Sequence[Any] = ()) -> Any | None:
        return next(iter(self._db.rows(statement, values)), None)

    def _all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._db.rows(statement, values)


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
        remedy = REMEDIES.get(code, "move it away and a new one is made from spool and transcripts")
        return StoreError(f"{self._path}: {error}; {remedy}")


def _sighting(body: bytes) -> Sighting:
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

"""The index of a relay that is alone: a file in its home.

What is held is on the disk before it is acknowledged, so that a relay that is killed or restarted
loses nothing as long as it keeps its home.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tracebridge.relay.index import (
    CLAIM_SECONDS,
    REMEMBERED_SECONDS,
    SEVERAL,
    Due,
    Held,
    IndexUnavailableError,
    Place,
    own_place,
)

Result = TypeVar("Result")

FILE = "relay.sqlite3"
# Like the outbox of a watcher; then exporters are asked to keep what they have.
MOST_HELD_BYTES = 1 << 30
_BUSY_SECONDS = 5
_TIDY_SECONDS = 600
_SCHEMA = """
CREATE TABLE IF NOT EXISTS place (
    kind TEXT, name TEXT, place TEXT NOT NULL, until REAL NOT NULL, PRIMARY KEY (kind, name)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS place_until ON place (until);
CREATE TABLE IF NOT EXISTS held (
    trace TEXT, span TEXT, data BLOB NOT NULL, PRIMARY KEY (trace, span)
);
CREATE TABLE IF NOT EXISTS due (
    trace TEXT PRIMARY KEY, at REAL NOT NULL, claimed_until REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS due_at ON due (at);
CREATE TABLE IF NOT EXISTS wait (
    response TEXT, trace TEXT, PRIMARY KEY (response, trace)
) WITHOUT ROWID;
"""
_TRACE, _CALL = "trace", "call"
_INSERT_NEW = "INSERT OR IGNORE INTO place VALUES (?, ?, ?, ?)"
_REPLACE = "INSERT OR REPLACE INTO place VALUES (?, ?, ?, ?)"
_SELECT = "SELECT place FROM place WHERE kind = ? AND name = ?"


class LocalIndex:
    def __init__(self, home: Path) -> None:
        """Raise IndexUnavailableError where the file cannot be used."""
        self._path = home / FILE
        self._tidied_at = 0.0
        # SQLite waits for the disk; the relay must not.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="relay-index")
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
            self._db = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise IndexUnavailableError(
                f"{self._path}: {error}; make it writable, or move it away"
            ) from error

    async def find(
        self, trace_ids: Collection[str], response_ids: Collection[str]
    ) -> tuple[dict[str, Place], dict[str, Place]]:
        return await self._do(
            lambda: (self._places(_TRACE, trace_ids), self._places(_CALL, response_ids))
        )

    async def learn(self, calls: Mapping[str, Place], trace_ids: Collection[str]) -> None:
        def learn() -> None:
            self._settle({trace_id: own_place(trace_id) for trace_id in trace_ids})
            self._remember(_REPLACE, _CALL, calls)
            for response_id, place in calls.items():
                self._settle(
                    {
                        trace: place
                        for (trace,) in self._db.execute(
                            "SELECT trace FROM wait WHERE response = ?", (response_id,)
                        ).fetchall()
                    }
                )

        await self._do(learn)

    async def settle(self, places: Mapping[str, Place]) -> dict[str, Place]:
        return await self._do(lambda: self._settle(places))

    async def divide(self, trace_ids: Collection[str]) -> None:
        def divide() -> None:
            self._remember(_REPLACE, _TRACE, dict.fromkeys(trace_ids, SEVERAL))
            self._make_due(trace_ids)

        await self._do(divide)

    async def hold(self, held: Sequence[Held], seconds: float) -> None:
        def hold() -> None:
            (pages,), (size,) = (
                self._db.execute(f"PRAGMA {name}").fetchone()
                for name in ("page_count", "page_size")
            )
            (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
            if (pages - free) * size > MOST_HELD_BYTES:
                raise IndexUnavailableError(
                    f"{self._path}: {MOST_HELD_BYTES} bytes of spans wait for their turns"
                )
            for each in held:
                self._hold(each, time.time() + seconds)

        await self._do(hold)

    async def due(self, most: int) -> list[Due]:
        def due() -> list[Due]:
            now = time.time()
            self._tidy(now)
            traces = self._db.execute(
                "SELECT trace FROM due WHERE at <= ? AND claimed_until <= ? ORDER BY at LIMIT ?",
                (now, now, most),
            ).fetchall()
            self._db.executemany(
                "UPDATE due SET claimed_until = ? WHERE trace = ?",
                [(now + CLAIM_SECONDS, trace) for (trace,) in traces],
            )
            return [
                Due(
                    trace,
                    dict(self._db.execute("SELECT span, data FROM held WHERE trace = ?", (trace,))),
                )
                for (trace,) in traces
            ]

        return await self._do(due)

    async def let_go(self, due: Due) -> None:
        def let_go() -> None:
            name = due.trace_id
            self._db.executemany(
                "DELETE FROM held WHERE trace = ? AND span = ?",
                [(name, span) for span in due.spans],
            )
            self._db.execute("UPDATE due SET claimed_until = 0 WHERE trace = ?", (name,))
            self._db.execute(
                "DELETE FROM due WHERE trace = ?1"
                " AND NOT EXISTS (SELECT 1 FROM held WHERE trace = ?1)",
                (name,),
            )
            self._db.execute("DELETE FROM wait WHERE trace = ?", (name,))

        await self._do(let_go)

    async def waiting(self) -> int:
        count: tuple[int] = await self._do(
            lambda: self._db.execute("SELECT count(*) FROM due").fetchone()
        )
        return count[0]

    async def close(self) -> None:
        await self._do(lambda: None)
        self._thread.shutdown()
        self._db.close()

    def _hold(self, each: Held, until: float) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO held VALUES (?, ?, ?)",
            [(each.trace_id, span, data) for span, data in each.spans.items()],
        )
        self._db.execute(
            "INSERT OR IGNORE INTO due (trace, at) VALUES (?, ?)", (each.trace_id, until)
        )
        self._db.executemany(
            "INSERT OR IGNORE INTO wait VALUES (?, ?)",
            [(response_id, each.trace_id) for response_id in each.response_ids],
        )
        # It may have become known since it was looked for.
        known = [
            *self._places(_TRACE, [each.trace_id]).values(),
            *self._places(_CALL, each.response_ids).values(),
        ]
        if known:
            self._settle({each.trace_id: known[0]})

    def _settle(self, places: Mapping[str, Place]) -> dict[str, Place]:
        self._remember(_INSERT_NEW, _TRACE, places)
        self._make_due(places)
        return {**places, **self._places(_TRACE, places)}

    def _make_due(self, trace_ids: Iterable[str]) -> None:
        self._db.executemany(
            "UPDATE due SET at = 0 WHERE trace = ?", [(trace_id,) for trace_id in trace_ids]
        )

    def _remember(self, statement: str, kind: str, places: Mapping[str, Place]) -> None:
        until = time.time() + REMEMBERED_SECONDS
        self._db.executemany(
            statement, [(kind, name, place.encode(), until) for name, place in places.items()]
        )

    def _places(self, kind: str, names: Iterable[str]) -> dict[str, Place]:
        rows = (
            (name, self._db.execute(_SELECT, (kind, name)).fetchone())
            for name in dict.fromkeys(names)
        )
        return {name: Place.decode(row[0]) for name, row in rows if row is not None}

    def _tidy(self, now: float) -> None:
        if now - self._tidied_at > _TIDY_SECONDS:
            self._tidied_at = now
            self._db.execute("DELETE FROM place WHERE until < ?", (now,))

    async def _do(self, step: Callable[[], Result]) -> Result:
        """Do *step* in one transaction, in the thread."""

        def transaction() -> Result:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    result = step()
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except (sqlite3.Error, UnicodeEncodeError) as error:
                raise IndexUnavailableError(f"{self._path}: {error}") from error
            return result

        return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)

"""An open store: its file, its transactions, and what all of its parts share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from tracebridge.spool import why_not_ours
from tracebridge.store.database import Database, StoreError, damaged
from tracebridge.store.schema import MIGRATIONS

Record = TypeVar("Record")
Row = TypeVar("Row")

FILE = "store.sqlite3"
# Touched after each commit that changed a turn.
CHANGED = "store.changed"
# How long transactions are gathered before they are put on the disk.
GATHERED_S = 0.5


class Tables:
    """Open the store below *home*, making it or bringing it up to date where needed."""

    def __init__(self, home: Path, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._revised = False
        self._gathers = False
        self._gathered_since_s = 0.0
        self.path = home / FILE
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (stranger := why_not_ours(home)) is not None:
                raise StoreError(f"{home}: {stranger}")
            # SQLite gives its side files the mode of the file itself.
            self.path.touch(mode=0o600, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}; make it writable") from error
        self._db = Database(self.path)
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
        if not (self._gathers and self._db.in_transaction):
            self._db.execute("BEGIN IMMEDIATE")
            self._gathered_since_s = time.monotonic()
        if self._gathers:
            self._db.execute("SAVEPOINT step")
        try:
            yield
            if not self._gathers or time.monotonic() - self._gathered_since_s > GATHERED_S:
                self._commit()
            else:
                self._db.execute("RELEASE step")
        except BaseException:
            self._db.roll_back("step" if self._gathers else None)
            raise

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Put the transactions inside on the disk several at a time, because each waits for it.

        After a crash the last of them are missing: this is for what can be done again.
        """
        # What a savepoint needs would lie in a file of its own, outside our folder.
        self._db.execute("PRAGMA temp_store = MEMORY")
        self._gathers = True
        try:
            yield
        finally:
            self._gathers = False
            if self._db.in_transaction:
                try:
                    self._commit()
                except BaseException:
                    self._db.roll_back()
                    raise
            self._db.execute("PRAGMA temp_store = DEFAULT")

    def _commit(self) -> None:
        self._db.execute("COMMIT")
        if self._revised:
            # SQLite's own files change before a commit can be seen: followers wait for this.
            self._revised = False
            self.path.with_name(CHANGED).touch(mode=0o600)

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

    def revision(self) -> int:
        return int(self._one("SELECT value FROM counters WHERE name = 'revision'")[0])

    def _next_revision(self) -> int:
        self._revised = True
        row = self._one(
            "UPDATE counters SET value = value + 1 WHERE name = 'revision' RETURNING value"
        )
        return int(row[0])

    def add_notes(self, notes: Mapping[str, int]) -> None:
        for text, count in notes.items():
            self._db.execute(
                "INSERT INTO notes VALUES (?, ?)"
                " ON CONFLICT (text) DO UPDATE SET count = count + excluded.count",
                (text, count),
            )

    def notes(self) -> dict[str, int]:
        return dict(self._all("SELECT text, count FROM notes ORDER BY text"))

    def _parsed(self, parse: Callable[[Row], Record], row: Row) -> Record:
        try:
            return parse(row)
        except (ValueError, KeyError, TypeError) as error:
            # SQLite has no checksums: a bad page may show in nothing else than what stands on it.
            raise damaged(self.path, error) from error

    def _one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        return self._db.rows(statement, values)[0]

    def _maybe(self, statement: str, values: Sequence[Any] = ()) -> Any | None:
        return next(iter(self._db.rows(statement, values)), None)

    def _all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._db.rows(statement, values)

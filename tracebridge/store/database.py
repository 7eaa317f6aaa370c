"""A connection to the SQLite file whose errors name the file and the remedy, and locks beside it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

# How long one process waits for another's transaction.
BUSY_S = 30.0
DAMAGED_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# By SQLite's result codes; for all others the file itself is to blame.
REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process holds it; end that and try again",
    sqlite3.SQLITE_FULL: "make room on the disk and try again",
    sqlite3.SQLITE_READONLY: "make it writable and try again",
    sqlite3.SQLITE_CANTOPEN: "make it readable and writable and try again",
    sqlite3.SQLITE_IOERR: "see to the disk and try again",
}


class StoreError(Exception):
    """The store cannot be used; the text names the file and the remedy."""


class DamagedStoreError(StoreError):
    """What is in the file is not what was written."""


def damaged(path: Path, error: Exception) -> DamagedStoreError:
    return DamagedStoreError(
        f"{path}: {error}; move it away, or let `tracebridge watch --once` set it aside and make a"
        " new one of what can still be read, of spool and transcripts"
    )


class Database:
    """A connection whose errors are StoreErrors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._told():
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S)
        try:
            self._use_wal()
            # A spool file is deleted after the commit: the commit must be on the disk.
            self.execute("PRAGMA synchronous = FULL")
            # What was delivered or forgotten would stay in free pages; not every build has it on.
            self.execute("PRAGMA secure_delete = ON")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self._told():
            self._connection.close()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise self._error(error) from error

    def executemany(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        try:
            self._connection.executemany(statement, values)
        except sqlite3.Error as error:
            raise self._error(error) from error

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._error(error) from error

    def each(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Yield rows one by one, for those who may not want all."""
        with self._told(), closing(self._connection.execute(statement, values)) as cursor:
            yield from cursor

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def roll_back(self, savepoint: str | None = None) -> None:
        # Where the disk failed, SQLite may have done it by itself.
        if not self.in_transaction:
            return
        if savepoint is None:
            self.execute("ROLLBACK")
        else:
            self.execute(f"ROLLBACK TO {savepoint}")
            self.execute(f"RELEASE {savepoint}")

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


@contextmanager
def lock_file(path: Path) -> Iterator[int]:
    """Give a file to be locked, which is let go of in the end."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; make it writable") from error
    try:
        yield lock
    finally:
        os.close(lock)


def is_locked(descriptor: int, *, wait: bool) -> bool:
    """Lock a file and say whether it is ours now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True

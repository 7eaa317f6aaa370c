"""A damaged store in; the same without the damage out, and the damaged file set aside.

Rows that can still be read go over. What they lack comes back from the transcripts, which are read
anew, and from the spool. Where it is not certain that a span was delivered it is sent once more,
under the same id: a backend that has it already keeps one of the two.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tracebridge.store import (
    FILE,
    Store,
    parse_call,
    parse_outbox_row,
    parse_sighting,
    parse_span,
)

# What names the tables' rows, in an order in which they can be walked from both ends.
_TABLES: Mapping[str, str] = {
    "sightings": "id",
    "calls": "rowid",
    "turns": "rowid",
    "spans": "rowid",
    "outbox": "id",
    "sinks": "rowid",
    "forgotten": "trace_id",
    "untraced_sessions": "agent, session_id",
    "sink_levels": "name",
    "foreign_spans": "trace_id, span_id",
    "notes": "rowid",
    "counters": "rowid",
}
# Of stores from before these have no rowid.
_BEFORE: Mapping[str, str] = {"spans": "trace_id, span_id"}
_OUTBOX_ROW = ("trace_id", "resource", "lengths", "checksum", "data")
# SQLite has no checksums: what stands on a bad page may be anything.
_CHECKS: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "sightings": lambda row: parse_sighting(row["body"]),
    "calls": lambda row: parse_call(row["body"]),
    "spans": lambda row: parse_span(row["body"]),
    "outbox": lambda row: parse_outbox_row([row[name] for name in _OUTBOX_ROW]),
}
# Who was heard of, to be found even where no page can be read: the records are text in the file.
_SESSION = re.compile(rb'"agent":"([a-z-]{1,40})","session_id":"((?:[^"\\]|\\.){1,200})"')
_TRANSCRIPT = re.compile(
    rb'"agent":"([a-z-]{1,40})"[^{}]{0,2000}\{[^{}]{0,2000}"transcript":("(?:[^"\\]|\\.){1,4000}")'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """What was made of a damaged store."""

    set_aside: Path
    rows: int
    # Agent and id, and agent and path: what is to be read again.
    sessions: frozenset[tuple[str, str]]
    transcripts: frozenset[tuple[str, Path]]


def salvage(home: Path, clock: Callable[[], int] = time.time_ns) -> Salvage:
    """Set the damaged store below *home* aside and make a new one of what can be read in it.

    Raise StoreError where no new one can be made.
    """
    store = home / FILE
    aside = home / f"store.damaged-{clock()}.sqlite3"
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{store}{suffix}").rename(f"{aside}{suffix}")
    rows = 0
    with Store(home, clock) as new, new.transaction():
        whole = {}
        for table in _TABLES:
            found = _Rows(aside, table)
            rows += new.take_over(table, found)
            whole[table] = found.whole
        if not (whole["outbox"] and whole["sinks"]):
            # Which of the told spans were still waiting is not known.
            new.untell()
        # Sums are no rows that go over: they are reckoned anew.
        new.note_summed_up(0)
        new.add_notes({f"damaged store set aside as {aside.name}": 1})
    sessions, transcripts = _mentioned(aside)
    return Salvage(set_aside=aside, rows=rows, sessions=sessions, transcripts=transcripts)


class _Rows:
    """The rows of a table that can be read, walking to the damage from both ends."""

    def __init__(self, path: Path, table: str) -> None:
        self._path = path
        self._table = table
        # Known once all were given.
        self.whole = True

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for direction in ("ASC", "DESC"):
            try:
                for row in self._walk(direction):
                    if _is_good(self._table, row):
                        yield row
                    else:
                        self.whole = False
            except sqlite3.Error:
                self.whole = False
            else:
                return

    def _walk(self, direction: str) -> Iterator[dict[str, Any]]:
        try:
            yield from self._walk_along(_TABLES[self._table], direction)
        except sqlite3.OperationalError as error:
            if self._table not in _BEFORE or "no such column" not in str(error):
                raise
            yield from self._walk_along(_BEFORE[self._table], direction)

    def _walk_along(self, keys: str, direction: str) -> Iterator[dict[str, Any]]:
        order = ", ".join(f"{key} {direction}" for key in keys.split(", "))
        with closing(sqlite3.connect(self._path)) as database:
            database.row_factory = sqlite3.Row
            # The indexes may be damaged too, and only lead to what is in the table.
            yield from map(
                dict,
                database.execute(
                    f"SELECT * FROM {self._table} NOT INDEXED ORDER BY {order}"  # noqa: S608  # names of our own tables
                ),
            )


def _is_good(table: str, row: Mapping[str, Any]) -> bool:
    check = _CHECKS.get(table)
    try:
        return check is None or check(row) is not None
    except (ValueError, KeyError, TypeError):
        return False


def _mentioned(path: Path) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, Path]]]:
    sessions = set()
    transcripts = set()
    for piece in _pieces(path):
        for agent, session in _SESSION.findall(piece):
            with suppress(ValueError):
                sessions.add((agent.decode(), str(orjson.loads(b'"' + session + b'"'))))
        for agent, place in _TRANSCRIPT.findall(piece):
            with suppress(ValueError):
                transcripts.add((agent.decode(), Path(orjson.loads(place))))
    return frozenset(sessions), frozenset(transcripts)


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield the bytes of the file and of its log, with an overlap."""
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError), Path(f"{path}{suffix}").open("rb") as file:
            tail = b""
            while piece := file.read(4 << 20):
                yield tail + piece
                tail = piece[-8192:]

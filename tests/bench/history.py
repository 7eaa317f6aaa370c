"""Years of past sessions, made of a recorded one: its turn again and again, with other ids and times.

What tools answered is replaced by pieces of source text, as long as what agents really read, so that
a line has some kilobytes. Seeded: equal arguments give equal files.
"""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from recordings import FOLDER, PLACES  # noqa: E402  # needs the path above

AGENTS = tuple(PLACES)
ID = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?:toolu|msg|req|call|resp|rs|ses|prt)_[0-9A-Za-z_]{4,}"
)
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
MILLISECONDS = re.compile(r"\b179\d{10}\b")
TIME_BETWEEN_TURNS = timedelta(minutes=1)
TIME_BETWEEN_SESSIONS = timedelta(hours=17)
RECORDED = datetime(2026, 11, 21, tzinfo=UTC)
# Where an agent puts what a tool answered.
ANSWERS = {"output", "content", "stdout", "text", "aggregated_output", "formatted_output"}
# Lines that only a session's beginning has.
BEGINNINGS = ('"session_meta"', '"$set": {"messages"', '"projectHash"')


def write_history(
    agent: str, home: Path, megabytes: float, *, turns_per_session: int = 40, seed: int = 1
) -> int:
    """Write so much of *agent*'s past below *home*, and return how many bytes it became."""
    recording = FOLDER / agent / "tools" / "transcripts"
    (source,) = [path for path in recording.rglob("*") if path.suffix in {".jsonl", ".sql"}]
    place = home / PLACES[agent]
    place.mkdir(parents=True, exist_ok=True)
    teller = _Teller(source, random.Random(seed), turns_per_session)
    if source.suffix == ".sql":
        return _write_database(teller, place / "opencode.db", int(megabytes * 1e6))
    written = number = 0
    while written < megabytes * 1e6:
        path = place / teller.renamed(str(source.relative_to(recording)), number, None)
        # Where the name has only the beginning of the session's id, and where folders go by days.
        path = path.with_stem(path.stem.replace("34f2ce93", f"{number:08x}"))
        day = RECORDED - _age(number)
        path = Path(str(path).replace(f"{RECORDED:/%Y/%m/%d}", f"{day:/%Y/%m/%d}"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in teller.session(number)))
        written += path.stat().st_size
        _leave(path, number)
        number += 1
    return written


class _Teller:
    def __init__(self, source: Path, draw: random.Random, turns: int) -> None:
        self.source = source
        self._draw = draw
        self._turns = turns
        self._lines = source.read_text().splitlines()
        # The session's own id is the same in all of its turns.
        self._own = set(ID.findall(source.name)) | set(re.findall(r"ses_\w+", "".join(self._lines)))
        files = sorted((TESTS.parent / "tracebridge").glob("*.py"))
        self._words = "".join(path.read_text() for path in files)

    def session(self, number: int) -> Iterator[str]:
        for turn in range(self._turns):
            for line in self._lines:
                if turn and any(word in line for word in BEGINNINGS):
                    continue
                record = json.loads(self.renamed(line, number, turn))
                yield json.dumps(self.enlarged(record), separators=(",", ":"))

    def rows(self, number: int) -> Iterator[tuple[str, list[Any]]]:
        """Yield tables and rows of a session that is kept in a database."""
        with closing(sqlite3.connect(":memory:")) as database:
            database.executescript("\n".join(self._lines))
            for table in ("session", "message", "part"):
                rows = database.execute(f"SELECT * FROM {table}").fetchall()
                for turn in range(1 if table == "session" else self._turns):
                    for row in rows:
                        yield table, [self._cell(value, number, turn) for value in row]

    def _cell(self, value: Any, number: int, turn: int) -> Any:
        if isinstance(value, int):
            return int(self.renamed(str(value), number, turn))
        if not isinstance(value, str):
            return value
        text = self.renamed(value, number, turn)
        if text.startswith("{"):
            return json.dumps(self.enlarged(json.loads(text)), separators=(",", ":"))
        return text

    def renamed(self, text: str, number: int, turn: int | None) -> str:
        later = TIME_BETWEEN_TURNS * (turn or 0) - _age(number)

        def other(match: re.Match[str]) -> str:
            key = number if match[0] in self._own else (number, turn)
            letters = sha256(f"{match[0]} {key}".encode()).hexdigest()[:8]
            # The beginning may tell the order, and what kind of id it is.
            prefix = match[0][:-8] if len(match[0]) > 16 else match[0] + "_"
            return prefix + letters

        def moved(match: re.Match[str]) -> str:
            moment = datetime.fromisoformat(match[0]) + later
            return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

        text = ID.sub(other, text)
        text = MOMENT.sub(moved, text)
        return MILLISECONDS.sub(
            lambda match: str(int(match[0]) + int(later.total_seconds() * 1000)), text
        )

    def enlarged(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self.enlarged(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [self.enlarged(each) for each in value]
        if isinstance(value, str) and key in ANSWERS and len(value) > 20:
            length = min(int(self._draw.lognormvariate(7.6, 1)), 60_000)
            start = self._draw.randrange(len(self._words) - length)
            return value + self._words[start : start + length]
        return value


def _write_database(teller: _Teller, path: Path, size: int) -> int:
    with closing(sqlite3.connect(path)) as database:
        statements = teller.source.read_text().split(";\n")
        for statement in statements:
            if statement.startswith("CREATE TABLE"):
                database.execute(statement)
        written = number = 0
        while written < size:
            for table, row in teller.rows(number):
                marks = ",".join("?" * len(row))
                database.execute(f"INSERT INTO {table} VALUES ({marks})", row)
                written += sum(len(each) for each in row if isinstance(each, str))
            number += 1
        # As the agent's own.
        for table, column in (
            ("session", "id"),
            ("message", "id"),
            ("message", "session_id"),
            ("part", "id"),
            ("part", "message_id"),
            ("part", "session_id"),
        ):
            database.execute(f"CREATE INDEX {table}_{column} ON {table} ({column})")
        database.commit()
    _leave(path, 0)
    return written


def _age(number: int) -> timedelta:
    return TIME_BETWEEN_SESSIONS * (number + 3)


def _leave(path: Path, number: int) -> None:
    """Give a file the time of its session: what nobody has written to for days is over."""
    ended_s = (RECORDED + timedelta(hours=7) - _age(number)).timestamp()
    os.utime(path, (ended_s, ended_s))

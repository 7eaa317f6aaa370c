"""OpenCode's database, read only: the transcript of every session.

A path `…/opencode.db/ses_…` stands for the part of the database that is about one session and its
subagents.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from tracebridge.agents import Cursor, Reading
from tracebridge.agents.opencode.records import SLUG, message_parts, part_parts, prompt_of
from tracebridge.fields import dict_of, text_of
from tracebridge.lines import parse_object
from tracebridge.model import Part, SessionInfo, Sighting, Source, Subagent

MS = 1_000_000
# A session id becomes part of a path, and it may come off the wire.
SESSION_ID = re.compile(r"[0-9A-Za-z_-]{1,128}")
# Ids only, so that a look at a quiet session costs next to nothing.
FAMILY = """
    WITH RECURSIVE family(id, parent_id, depth) AS (
        SELECT id, NULL, 0 FROM session WHERE id = ?
        UNION ALL
        SELECT session.id, session.parent_id, depth + 1 FROM session
        JOIN family ON session.parent_id = family.id WHERE depth < 20
    )
    SELECT family.id, family.parent_id, session.directory, session.version, session.agent,
           session.time_created, session.time_updated
    FROM family JOIN session USING (id) ORDER BY depth, session.time_created
"""
MESSAGES = """
    SELECT id, time_created, time_updated, data FROM message
    WHERE session_id = ?1 AND (
        time_updated >= ?2
        OR id IN (SELECT message_id FROM part WHERE session_id = ?1 AND time_updated >= ?2)
    ) ORDER BY time_created, id
"""
PARTS = "SELECT id, time_updated, data FROM part WHERE message_id = ? ORDER BY id"
# Newer than the user message that a session's turn began with, at that time.
TURN_AT = """
    SELECT id FROM message WHERE session_id = ? AND time_created <= ?
    AND instr(data, '"role":"user"') ORDER BY time_created DESC, id DESC LIMIT 1
"""
TASK_OF = """
    SELECT message.data FROM part JOIN message ON message.id = part.message_id
    WHERE part.session_id = ? AND instr(part.data, ?) AND instr(part.data, '"tool":"task"')
    ORDER BY part.id LIMIT 1
"""


def transcripts(path: Path) -> Iterable[Path]:
    """Return *path*, or of a whole database the path of each session that no other started."""
    if not path.is_file():
        return [path]
    with closing(_open(path)) as database:
        rows = _rows(database, "SELECT id FROM session WHERE parent_id IS NULL ORDER BY id")
        return [path / row[0] for row in rows if SESSION_ID.fullmatch(str(row[0]))]


def find_transcript(session_id: str, home: Path) -> Path | None:
    if not SESSION_ID.fullmatch(session_id):
        return None
    data = os.environ.get("XDG_DATA_HOME") or home / ".local" / "share"
    path = Path(data) / "opencode" / (os.environ.get("OPENCODE_DB") or "opencode.db")
    return path / session_id if path.is_file() else None


def read_transcript(path: Path, cursor: Cursor) -> Reading:
    file, session_id = path.parent, path.name
    inode = file.stat().st_ino
    if inode != cursor.inode:
        cursor = Cursor(inode=inode)
    with closing(_open(file)) as database:
        family = _rows(database, FAMILY, session_id)
        reader = _Reader(database, path, session_id, cursor)
        sightings = tuple(reader.read(family))
    memory = {"turns": reader.turns} if reader.turns else {}
    return Reading(
        sightings=sightings,
        cursor=Cursor(offset=reader.read_to, inode=inode, memory=memory),
        notes={"rows in OpenCode's database not understood": reader.odd} if reader.odd else {},
    )


class _Reader:
    def __init__(
        self, database: sqlite3.Connection, path: Path, session_id: str, cursor: Cursor
    ) -> None:
        self._database = database
        self._path = path
        self._session_id = session_id
        self._since = cursor.offset
        # The latest time of a row: rows of the same millisecond are read once more.
        self.read_to = cursor.offset
        # The turn of the outermost session in which each subagent was started.
        self.turns: dict[str, str] = dict(cursor.memory.get("turns", {}))
        self.odd = 0

    def read(self, family: Iterable[tuple[Any, ...]]) -> Iterator[Sighting]:
        for row in family:
            session, parent, directory, version, agent, created, updated = row
            if session == self._session_id:
                if _is_time(updated) and updated >= self._since:
                    yield self._sighting(
                        SessionInfo(
                            key="session",
                            agent_version=version if isinstance(version, str) else None,
                            cwd=directory if isinstance(directory, str) else None,
                            transcript=str(self._path),
                        ),
                        0,
                    )
                yield from self._messages(session, None)
                continue
            turn = self._turn_of(session, parent, created)
            if turn is None:
                continue
            kind = agent if isinstance(agent, str) else None
            if _is_time(created) and created >= self._since:
                outer = parent if parent != self._session_id else None
                start = Subagent(key=session, type=kind, parent_key=outer, start_ns=created * MS)
                yield self._sighting(start, created * MS, turn)
            yield from self._messages(session, turn)

    def _turn_of(self, session: str, parent: str, created: Any) -> str | None:
        if session in self.turns:
            return self.turns[session]
        if parent in self.turns:
            self.turns[session] = self.turns[parent]
            return self.turns[session]
        if parent != self._session_id:
            return None
        tasks = _rows(self._database, TASK_OF, parent, session)
        if tasks:
            message = parse_object(_bytes(tasks[0][0]))
            turn = text_of(dict_of(message), "parentID")
            if turn is not None:
                self.turns[session] = turn
                return turn
        found = _rows(self._database, TURN_AT, parent, created)
        return str(found[0][0]) if found else None

    def _messages(self, session: str, turn: str | None) -> Iterator[Sighting]:
        subagent = session if turn is not None else None
        for key, created, updated, data in _rows(self._database, MESSAGES, session, self._since):
            info = parse_object(_bytes(data))
            if isinstance(info, str) or not isinstance(key, str) or not _is_time(updated):
                self.odd += 1
                continue
            self.read_to = max(self.read_to, updated)
            parts = list(self._parts(key))
            text = "\n".join(
                text_of(part, "text") or ""
                for _, _, part in parts
                if part.get("type") == "text" and not part.get("synthetic")
            )
            if info.get("role") == "user":
                if subagent is None and _is_time(created):
                    # By the time it was said: rows of a user message change long after.
                    said = prompt_of(info, key, text or None)
                    yield self._sighting(said, created * MS, key)
                continue
            own = turn or text_of(info, "parentID")
            if own is None:
                self.odd += 1
                continue
            if dict_of(info.get("time")).get("completed") or info.get("error"):
                for told in message_parts(info, key, subagent, text or None):
                    yield self._sighting(told, updated * MS, own, subagent)
            else:
                started = message_parts({**info, "tokens": None}, key, subagent)
                for told in started:
                    yield self._sighting(told, updated * MS, own, subagent)
            for part_key, part_updated, part in parts:
                for told in part_parts(part, part_key, key, subagent):
                    yield self._sighting(told, part_updated * MS, own, subagent)

    def _parts(self, message: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
        for key, updated, data in _rows(self._database, PARTS, message):
            part = parse_object(_bytes(data))
            if isinstance(part, str) or not isinstance(key, str) or not _is_time(updated):
                self.odd += 1
                continue
            self.read_to = max(self.read_to, updated)
            yield key, updated, part

    def _sighting(
        self, part: Part, time_ns: int, turn: str | None = None, subagent: str | None = None
    ) -> Sighting:
        return Sighting(
            agent=SLUG,
            session_id=self._session_id,
            source=Source.TRANSCRIPT,
            time_ns=time_ns,
            turn_key=turn,
            subagent_id=None if isinstance(part, Subagent) else subagent,
            part=part,
        )


def _open(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0.2)
    except sqlite3.Error as error:
        raise OSError(0, str(error), str(path)) from error
    # Whatever bytes a damaged row holds, the others are still worth reading.
    database.text_factory = lambda data: data.decode("utf-8", "replace")
    return database


def _rows(database: sqlite3.Connection, query: str, *values: Any) -> list[tuple[Any, ...]]:
    try:
        return database.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise OSError(0, f"{error}; the transcript of OpenCode 1.18 looks different") from error


def _bytes(value: Any) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else b""


def _is_time(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**43

"""OpenCode's database, read only: the transcript of every session.

A path `…/opencode.db/ses_…` stands for the part of the database that is about one session and its
subagents.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from tracebridge.agents import Cursor, Reading
from tracebridge.agents.opencode.records import SLUG, message_parts, part_parts, prompt_of
from tracebridge.fields import count_of, dict_of, text_of
from tracebridge.lines import parse_object
from tracebridge.model import Compaction, Part, SessionInfo, Sighting, Source, Subagent

MS = 1_000_000
# A session id becomes part of a path, and it may come off the wire.
SESSION_ID = re.compile(r"[0-9A-Za-z_-]{1,128}")
# Ids only, so that a look at a quiet session costs next to nothing.
FAMILY = """
    WITH RECURSIVE family(id, parent_id, depth) AS (
        SELECT id, NULL, 0 FROM session WHERE id = ?
        UNION
        SELECT session.id, session.parent_id, depth + 1 FROM session
        JOIN family ON session.parent_id = family.id WHERE depth < 20
    )
    SELECT family.id, family.parent_id, {columns}, session.time_created, session.time_updated
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
# What other versions may lack.
COLUMNS = ("directory", "version", "agent")
BEFORE = """
    SELECT id, data FROM message WHERE session_id = ?1
    AND (time_created, id) < (SELECT time_created, id FROM message WHERE id = ?2)
    ORDER BY time_created DESC, id DESC LIMIT 1
"""
# After an answer that was cut short OpenCode asks again, at once and without limit.
CUTS_TOLD = 100
# How soon after a summary OpenCode itself goes on; a person is slower.
GOES_ON_MS = 1000
# What is told by others, or of no turn.
STEP_PARTS = frozenset({"step-start", "step-finish", "snapshot", "patch", "retry"})
SILENT_PARTS = STEP_PARTS | {"agent", "compaction", "file", "subtask"}
TOLD_PARTS = frozenset({"reasoning", "text", "tool"})
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
        # All is of one moment: OpenCode writes meanwhile.
        _rows(database, "BEGIN")
        there = {row[1] for row in _rows(database, "PRAGMA table_info(session)")}
        columns = ", ".join(f"session.{c}" if c in there else "NULL" for c in COLUMNS)
        family = _rows(database, FAMILY.format(columns=columns), session_id)
        reader = _Reader(database, path, session_id, cursor)
        sightings = tuple(reader.read(family))
    return Reading(
        sightings=sightings,
        cursor=Cursor(offset=reader.read_to, inode=inode, memory=reader.memory),
        notes=reader.notes,
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
        self._turns: dict[str, str] = dict(cursor.memory.get("turns", {}))
        # The turn that the last user message of OpenCode's own belongs to.
        self._begun: dict[str, str] = dict(cursor.memory.get("begun", {}))
        # User messages that are not, as of this look.
        self._by_user: set[str] = set()
        # By session: the turn, how many of its answers were cut short, and the last of them.
        self._cuts: dict[str, tuple[str, int, str]] = {
            session: tuple(cut) for session, cut in cursor.memory.get("cuts", {}).items()
        }
        self.notes: Counter[str] = Counter()

    @property
    def memory(self) -> dict[str, Any]:
        """Return what has to be known to read on."""
        last = dict(list(self._begun.items())[-1:])
        known = {"turns": self._turns, "begun": last, "cuts": self._cuts}
        return {name: value for name, value in known.items() if value}

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
                # A fork begins with copies of what was said elsewhere, before it was made.
                yield from self._messages(session, None, created if _is_time(created) else 0)
                continue
            turn = self._turn_of(session, parent, created)
            if turn is None:
                continue
            kind = agent if isinstance(agent, str) else None
            if _is_time(created) and created >= self._since:
                outer = parent if parent != self._session_id else None
                start = Subagent(key=session, type=kind, parent_key=outer, start_ns=created * MS)
                yield self._sighting(start, created * MS, turn)
            yield from self._messages(session, turn, 0)

    def _turn_of(self, session: str, parent: str, created: Any) -> str | None:
        if session in self._turns:
            return self._turns[session]
        if parent in self._turns:
            self._turns[session] = self._turns[parent]
            return self._turns[session]
        if parent != self._session_id:
            return None
        tasks = _rows(self._database, TASK_OF, parent, session)
        if tasks:
            message = parse_object(_bytes(tasks[0][0]))
            turn = text_of(dict_of(message), "parentID")
            if turn is not None:
                self._turns[session] = turn
                return turn
        found = _rows(self._database, TURN_AT, parent, created)
        return str(found[0][0]) if found else None

    def _messages(self, session: str, turn: str | None, own_from: int) -> Iterator[Sighting]:
        subagent = session if turn is not None else None
        for key, created, updated, data in _rows(self._database, MESSAGES, session, self._since):
            info = parse_object(_bytes(data))
            if isinstance(info, str) or not isinstance(key, str) or not _is_time(updated):
                self._note_odd()
                continue
            self.read_to = max(self.read_to, updated)
            parts = list(self._parts(key))
            if not _is_time(created) or created < own_from:
                continue
            text = "\n".join(
                text_of(part, "text") or ""
                for _, _, part in parts
                if part.get("type") == "text" and not part.get("synthetic")
            )
            if info.get("role") == "user":
                # Its parts tell what it is, and come after it.
                if subagent is None and parts and self._turn_begun(session, key) == key:
                    origin = "command" if _compaction_in(part for _, _, part in parts) else None
                    # By the time it was said: rows of a user message change long after.
                    said = prompt_of(info, key, text or None, origin)
                    yield self._sighting(said, created * MS, key)
                continue
            asked = text_of(info, "parentID")
            if asked is None:
                self._note_odd()
                continue
            if self._is_one_cut_too_many(session, asked, key, info):
                continue
            over = dict_of(info.get("time")).get("completed") or info.get("error")
            if not over and not parts:
                # Nothing has come yet, and whether it was asked for shows at the gateway alone.
                continue
            own = turn or self._turn_begun(session, asked)
            told = message_parts(
                info if over else {**info, "tokens": None},
                key,
                subagent,
                text or None if over else None,
                self._trigger(asked) if info.get("summary") is True else None,
            )
            for part in told:
                # Told at another time, it would be another one.
                when = part.end_ns if isinstance(part, Compaction) else None
                yield self._sighting(part, when or updated * MS, own, subagent)
            for part_key, part_updated, written in parts:
                for part in part_parts(written, part_key, key, subagent):
                    yield self._sighting(part, part_updated * MS, own, subagent)

    def _is_one_cut_too_many(
        self, session: str, asked: str, key: str, info: dict[str, Any]
    ) -> bool:
        """Say whether so many answers of this turn were cut short that one more tells nothing."""
        turn, count, last = self._cuts.get(session, (asked, 0, ""))
        if turn != asked:
            turn, count, last = asked, 0, ""
        cut = info.get("finish") == "unknown"
        if cut and key > last:
            count += 1
            self._cuts[session] = (turn, count, key)
            if count > CUTS_TOLD:
                self.notes[f"answers cut short beyond the first {CUTS_TOLD} of a turn"] += 1
        over = dict_of(info.get("time")).get("completed") or info.get("error")
        return count > CUTS_TOLD if cut else count >= CUTS_TOLD and not over

    def _turn_begun(self, session: str, prompt: str) -> str:
        """Return the user message that a turn began with: to go on, OpenCode writes some itself."""
        passed: list[str] = []
        turn = prompt
        while turn not in self._begun and turn not in self._by_user and turn not in passed:
            before = _rows(self._database, BEFORE, session, turn)
            if not before or not self._goes_on(turn, before[0][1]):
                self._by_user.add(turn)
                break
            passed.append(turn)
            key, data = before[0]
            turn = text_of(dict_of(parse_object(_bytes(data))), "parentID") or str(key)
        turn = self._begun.get(turn, turn)
        self._begun.update(dict.fromkeys(passed, turn))
        return turn

    def _goes_on(self, prompt: str, before: Any) -> bool:
        """Say whether a user message is OpenCode's own, to sum up a turn or to go on after that."""
        parts = [part for _, _, part in self._parts(prompt)]
        compaction = _compaction_in(parts)
        if compaction is not None:
            return compaction.get("auto") is True
        if any(dict_of(part.get("metadata")).get("compaction_continue") for part in parts):
            return True
        # Where the prompt itself was too much, it is said once more, as if by the user.
        summary = dict_of(parse_object(_bytes(before)))
        asked = text_of(summary, "parentID")
        if summary.get("summary") is not True or asked is None or self._trigger(asked) != "auto":
            return False
        rows = _rows(self._database, "SELECT time_created FROM message WHERE id = ?", prompt)
        over = count_of(dict_of(summary.get("time")), "completed")
        if over is None or not rows or not _is_time(rows[0][0]):
            return False
        created: int = rows[0][0]
        return over <= created < over + GOES_ON_MS

    def _trigger(self, prompt: str) -> str:
        """Return who wanted the summary that a user message asks for."""
        compaction = _compaction_in(part for _, _, part in self._parts(prompt))
        return "auto" if compaction is not None and compaction.get("auto") is True else "manual"

    def _parts(self, message: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
        for key, updated, data in _rows(self._database, PARTS, message):
            part = parse_object(_bytes(data))
            if isinstance(part, str) or not isinstance(key, str) or not _is_time(updated):
                self._note_odd()
                continue
            kind = text_of(part, "type")
            if kind not in TOLD_PARTS and kind not in SILENT_PARTS:
                self.notes[f"part {str(kind)[:40]!r} in OpenCode's database ignored"] += 1
            self.read_to = max(self.read_to, updated)
            yield key, updated, part

    def _note_odd(self) -> None:
        self.notes["rows in OpenCode's database not understood"] += 1

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
        raise OSError(0, f"{error}; {_remedy(str(error))}") from error


def _remedy(complaint: str) -> str:
    if "locked" in complaint or "busy" in complaint:
        return "another program writes to it, and it is read as soon as that is done"
    if "no such" in complaint:
        return "the transcript of OpenCode 1.18 looks different"
    return "as a transcript it is damaged, and turns are told from the plugin's events alone"


def _compaction_in(parts: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    return next((part for part in parts if part.get("type") == "compaction"), None)


def _bytes(value: Any) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else b""


def _is_time(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**43

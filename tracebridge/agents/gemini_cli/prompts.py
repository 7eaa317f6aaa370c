"""Which turn a moment of a session belongs to: its user messages, counted over its chat files."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracebridge.fields import dict_of, dicts_in, moment_of, text_of
from tracebridge.lines import read_objects
from tracebridge.model import UNNAMED

CONTEXT = "<session_context>"
# What the vendor has the model say to the summary that a compaction leaves.
SUMMARY_TAKEN = "Got it. Thanks for the additional context!"
# Before 0.61, one JSON document; its ending alone tells it apart.
_CHAT = re.compile(r"session-[0-9T-]+-([0-9a-f]{8})\.jsonl?")
_MOST_FILES = 64


@dataclass(slots=True)
class Copying:
    """Tell the lines that copy what was said before.

    A session that was imported begins with lines older than itself. Going back within a session
    writes it anew: from its context up to the list of what is left.
    """

    start_ns: int = 0
    # Somebody has spoken since the process began.
    is_under_way: bool = False
    again: bool = False

    def is_copy(self, line: dict[str, Any]) -> bool:
        if "sessionId" in line:
            self.start_ns = moment_of(line.get("startTime")) or 0
            self.is_under_way = self.again = False
        elif "messages" in dict_of(line.get("$set")) or "model" in line:
            # Copied answers name no model.
            self.again = False
        elif self.is_under_way and line.get("type") == "user" and _said(line).startswith(CONTEXT):
            self.again = True
        time_ns = moment_of(line.get("timestamp"))
        is_old = time_ns is not None and time_ns < self.start_ns
        self.is_under_way |= not is_old and text_of_prompt(line) is not None
        return self.again or is_old


@dataclass(slots=True)
class _Seen:
    """What one file said so far."""

    inode: int
    offset: int = 0
    session_id: str | None = None
    # Message id to time.
    prompts: dict[str, int] = field(default_factory=dict)
    # When turns were answered, by message id.
    answers: dict[str, int] = field(default_factory=dict)
    # Ids of what stands there in the user's name a second time.
    copies: set[str] = field(default_factory=set)
    copying: Copying = field(default_factory=Copying)


# Only what stands in the files: read anew, it would be the same.
_seen: OrderedDict[Path, _Seen] = OrderedDict()


# A file's name has the first letters of its session's id alone.
_sessions: OrderedDict[Path, str] = OrderedDict()


def remember_session(path: Path, session_id: str) -> None:
    """Keep in mind whose chat file *path* is, should it turn out to lack its header."""
    _sessions[path] = session_id
    _sessions.move_to_end(path)
    if len(_sessions) > _MOST_FILES:
        _sessions.popitem(last=False)


def session_of(path: Path) -> str | None:
    found = _CHAT.fullmatch(path.name)
    known = _sessions.get(path)
    return known if known is not None and found is not None and known[:8] == found[1] else None


def session_files(path: Path) -> list[Path]:
    """Return the chat files beside *path* that are of its session by their names."""
    found = _CHAT.fullmatch(path.name)
    if found is None:
        return [path]
    return sorted({path, *path.parent.glob(f"session-*-{found[1]}.json*")})


def subagent_files(path: Path) -> list[Path]:
    """Return the chat files of the subagents of the session whose chat file is *path*."""
    found = _CHAT.fullmatch(path.name)
    return sorted(path.parent.glob(f"{found[1]}-*/*.jsonl")) if found is not None else []


def compress_key(turn_key: str) -> str:
    """Return the key of the turn that `/compress` is, behind the turn *turn_key*."""
    return f"{turn_key}/compress"


def summary_in(messages: list[dict[str, Any]]) -> str | None:
    """Return the id of the answer to the summary that history begins with, if it does."""
    for message in messages:
        if message.get("type") == "gemini" and _said(message) == SUMMARY_TAKEN:
            return text_of(message, "id")
    return None


def turn_at(path: Path | None, session_id: str, time_ns: int, *, beginning: bool = False) -> str:
    """Return the key of the turn that runs at a time, or that is just *beginning* then."""
    if path is None or not _is_there(path):
        # Whoever knows all that was told of the session can count its prompts.
        return f"{UNNAMED}{time_ns}"
    times = sorted(_prompts(path, session_id).values())
    before = sum(time < time_ns if beginning else time <= time_ns for time in times)
    return str(before + 1 if beginning else max(before, 1))


def turn_compacted_for(path: Path, session_id: str, time_ns: int) -> str:
    """Return the key of the turn that history was summed up for: one that runs, or the next."""
    said = [at for at in _prompts(path, session_id).values() if at <= time_ns]
    is_answered = any(
        max(said, default=0) <= at <= time_ns
        for seen in _files_of(path, session_id)
        for at in seen.answers.values()
    )
    return turn_at(path, session_id, time_ns, beginning=is_answered)


def _is_there(path: Path) -> bool:
    # Unlike exists(), whatever a hook was given as a path.
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def text_of_prompt(message: dict[str, Any]) -> str | None:
    """Return what a user said, None for tool results and context, which come in his name."""
    if message.get("type") != "user":
        return None
    text = _said(message)
    return None if not text or text.startswith(CONTEXT) else text


def _said(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(text for part in dicts_in(content) if (text := text_of(part, "text")))


def _prompts(path: Path, session_id: str) -> dict[str, int]:
    # The session goes on in another file, which begins with copies.
    prompts: dict[str, int] = {}
    copies: set[str] = set()
    for seen in _files_of(path, session_id):
        copies |= seen.copies
        for message_id, time_ns in seen.prompts.items():
            # A copy has the time of the copying.
            prompts[message_id] = min(prompts.get(message_id, time_ns), time_ns)
    return {message_id: at for message_id, at in prompts.items() if message_id not in copies}


def _files_of(path: Path, session_id: str) -> Iterator[_Seen]:
    for file in session_files(path):
        try:
            seen = _read(file)
        except OSError:
            continue
        # A file that was deleted and goes on lacks its beginning, and the id with it.
        if seen.session_id in {session_id, None}:
            yield seen


def _read(path: Path) -> _Seen:
    stat = path.stat()
    seen = _seen.pop(path, None)
    if seen is None or seen.inode != stat.st_ino or stat.st_size < seen.offset:
        seen = _Seen(stat.st_ino)
    while True:
        before = seen.offset
        for line, offset in read_objects(path, seen.offset):
            seen.offset = offset
            if isinstance(line, dict):
                _take(seen, line)
        if seen.offset == before:
            break
    _seen[path] = seen
    if len(_seen) > _MOST_FILES:
        _seen.popitem(last=False)
    return seen


def _take(seen: _Seen, line: dict[str, Any]) -> None:
    seen.session_id = text_of(line, "sessionId") or seen.session_id
    patched = dicts_in(dict_of(line.get("$set")).get("messages"))
    if summary_in(patched) is not None:
        # What it leaves of the latest has new ids.
        patched = []
    if seen.copying.is_copy(line) and (copy := text_of(line, "id")):
        seen.copies.add(copy)
    for message in (line, *patched):
        message_id, time_ns = text_of(message, "id"), moment_of(message.get("timestamp"))
        if message_id and time_ns is not None and text_of_prompt(message) is not None:
            seen.prompts.setdefault(message_id, time_ns)
    if line.get("type") == "gemini" and (answer_id := text_of(line, "id")):
        answered_ns = moment_of(line.get("timestamp"))
        if answered_ns is not None and _said(line) and not line.get("toolCalls"):
            seen.answers[answer_id] = answered_ns
        else:
            seen.answers.pop(answer_id, None)

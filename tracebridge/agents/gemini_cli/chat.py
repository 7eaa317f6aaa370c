"""Chat files to sightings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tracebridge.agents import Cursor, Reading
from tracebridge.agents.gemini_cli.payload import (
    SLUG,
    exit_code_of,
    file_edits,
    input_digest,
    prompt,
)
from tracebridge.agents.gemini_cli.prompts import (
    Copying,
    compress_key,
    remember_session,
    session_files,
    session_of,
    subagent_files,
    summary_in,
    text_of_prompt,
    turn_at,
)
from tracebridge.fields import as_json, count_of, dict_of, dicts_in, moment_of, text_of
from tracebridge.lines import parse_object, read_objects
from tracebridge.model import (
    Compaction,
    ModelCall,
    Outcome,
    Part,
    SessionInfo,
    Sighting,
    Source,
    Subagent,
    Thinking,
    ToolCall,
    TurnEnd,
    Usage,
)

SILENT_LINES = frozenset({"info", "error", "warning"})
# What the user is told who pressed Escape; AfterAgent fires then as after an answer.
CANCELLED = "Request cancelled."
DENIED = "User denied execution."


def transcripts(path: Path) -> Iterable[Path]:
    """Return the session's chat files: resuming it later begins another one, as do subagents."""
    return [*session_files(path), *subagent_files(path)]


def find_transcript(session_id: str, home: Path) -> Path | None:
    # The id comes off the wire and becomes part of a path.
    if not re.fullmatch(r"[0-9a-f]{8}-[0-9a-f-]{27}", session_id):
        return None
    chats = (home / ".gemini" / "tmp").glob(f"*/chats/session-*-{session_id[:8]}.json*")
    found = max(chats, key=lambda path: path.name, default=None)
    if found is not None:
        remember_session(found, session_id)
    return found


def read_transcript(path: Path, cursor: Cursor) -> Reading:
    stat = path.stat()
    if stat.st_ino != cursor.inode or stat.st_size < cursor.offset:
        cursor = Cursor(inode=stat.st_ino)
    reader = _ChatReader(path, cursor.memory)
    if path.suffix == ".json":
        return _read_document(path, cursor, reader)
    offset = cursor.offset
    for line, offset_behind in read_objects(path, cursor.offset):
        if isinstance(line, str):
            reader.notes[f"transcript line {line}"] += 1
        elif not reader.knows_session(line):
            # Once a hook has told whose it is, it is read from here.
            reader.notes["transcript without its header"] += 1
            break
        else:
            reader.read(line)
        offset = offset_behind
    return Reading(
        sightings=tuple(reader.sightings),
        cursor=Cursor(offset=offset, inode=stat.st_ino, memory=reader.memory()),
        notes=reader.notes,
    )


def _read_document(path: Path, cursor: Cursor, reader: _ChatReader) -> Reading:
    """Read a chat file as versions before 0.61 wrote it: one JSON document, written anew."""
    data = path.read_bytes()
    if len(data) == cursor.offset:
        return Reading(cursor=cursor)
    document = parse_object(data)
    if isinstance(document, str):
        # It may be in the middle of being written.
        return Reading(cursor=cursor, notes={f"transcript {document}": 1})
    for line in ({**document, "messages": None}, *dicts_in(document.get("messages"))):
        reader.read(line)
    return Reading(
        sightings=tuple(reader.sightings),
        cursor=Cursor(offset=len(data), inode=cursor.inode),
        notes=reader.notes,
    )


class _ChatReader:
    """Read one file line by line; what later lines need is kept between two looks."""

    def __init__(self, path: Path, memory: Mapping[str, Any]) -> None:
        self.sightings: list[Sighting] = []
        self.notes: Counter[str] = Counter()
        self._path = path
        # A file that was deleted while it was written goes on without its header.
        self._session_id: str | None = memory.get("session_id") or session_of(path)
        # Whose file it is, if not the session's own.
        self._subagent_id: str | None = memory.get("subagent_id")
        self._turn_key: str | None = memory.get("turn_key")
        self._prompt_id: str | None = memory.get("prompt_id")
        # When the input of the next model call was recorded.
        self._asked_ns: int | None = memory.get("asked_ns")
        # A message that is written again is still the same call.
        self._started: dict[str, int] = dict(memory.get("started", {}))
        self._copying = Copying(**memory.get("copying", {}))
        # A prompt was said that has no answer yet.
        self._at_work: bool = memory.get("at_work", False)
        # Nothing but history was read since the process began.
        self._is_fresh: bool = memory.get("is_fresh", True)
        # The answer to the summary that history begins with.
        self._summary_id: str | None = memory.get("summary_id")
        # When history was summed up between two turns, and nothing yet says for what.
        self._compacted_ns: int | None = memory.get("compacted_ns")

    def memory(self) -> Mapping[str, Any]:
        return {
            "session_id": self._session_id,
            "subagent_id": self._subagent_id,
            "turn_key": self._turn_key,
            "prompt_id": self._prompt_id,
            "asked_ns": self._asked_ns,
            "started": dict(list(self._started.items())[-50:]),
            "copying": asdict(self._copying),
            "at_work": self._at_work,
            "is_fresh": self._is_fresh,
            "summary_id": self._summary_id,
            "compacted_ns": self._compacted_ns,
        }

    def knows_session(self, line: dict[str, Any]) -> bool:
        return self._session_id is not None or isinstance(line.get("sessionId"), str)

    def read(self, line: dict[str, Any]) -> None:
        if self._copying.is_copy(line):
            return
        if "$set" in line:
            self._read_patch(dict_of(line["$set"]))
        elif "$rewindTo" in line:
            # What was taken back has happened all the same.
            return
        elif isinstance(session_id := line.get("sessionId"), str):
            if line.get("kind") == "subagent":
                self._read_subagent(session_id, moment_of(line.get("startTime")))
                return
            self._session_id = session_id
            # Resumed within the minute, the session goes on in the same file, from its beginning.
            self._prompt_id = None
            self._is_fresh = True
            info = SessionInfo(
                key="session", transcript=str(self._path), cwd=_project_root(self._path)
            )
            self._see(info, 0)
        else:
            self._read_message(line)

    def _read_subagent(self, agent_id: str, start_ns: int | None) -> None:
        # Its folder is named after the session, whose files lie beside the folder.
        folder = self._path.parent
        self._session_id, self._subagent_id = folder.name, agent_id
        chats = folder.parent.glob(f"session-*-{folder.name[:8]}.json*")
        main = max(chats, key=lambda path: path.name, default=None)
        if start_ns is not None:
            self._turn_key = turn_at(main, self._session_id, start_ns)
            self._see(Subagent(key=agent_id, start_ns=start_ns), start_ns)

    def _read_patch(self, patch: dict[str, Any]) -> None:
        messages = dicts_in(patch.get("messages"))
        if not messages:
            return
        time_ns = moment_of(patch.get("lastUpdated"))
        is_history, self._is_fresh = self._is_fresh, self._is_fresh and len(messages) == 1
        summary_id = summary_in(messages) or self._summary_id
        if summary_id != self._summary_id:
            self._summary_id = summary_id
            if not is_history and time_ns is not None:
                self._read_compaction(time_ns)
                return
        kept = {message.get("id") for message in messages}
        # What was answered can be gone back behind, and has not failed.
        is_gone = self._at_work and self._prompt_id is not None and self._prompt_id not in kept
        if is_gone and time_ns is not None:
            failed = TurnEnd(
                key=f"rolled back:{self._prompt_id}",
                end_ns=time_ns,
                outcome=Outcome.FAILED,
                error_type="rolled_back",
            )
            self._see(failed, time_ns)
            self._prompt_id = None

    def _read_compaction(self, time_ns: int) -> None:
        if self._at_work or self._subagent_id is not None:
            self._see(Compaction(key="compaction", trigger="auto", end_ns=time_ns), time_ns)
        else:
            # Asked for by itself, or by the prompt that comes behind it.
            self._compacted_ns = time_ns
            self._prompt_id = None

    def _read_message(self, message: dict[str, Any]) -> None:
        kind, message_id = text_of(message, "type"), text_of(message, "id")
        time_ns = moment_of(message.get("timestamp"))
        if kind in SILENT_LINES:
            content = message.get("content")
            if content == CANCELLED and time_ns is not None:
                self._read_cancel(time_ns)
            elif content == "" and self._compacted_ns is not None:
                self._read_compress(self._compacted_ns)
            return
        self._is_fresh = False
        if time_ns is None or message_id is None:
            self.notes[f"transcript line {str(kind)[:40]!r} without id or time ignored"] += 1
        elif kind == "user":
            self._asked_ns = time_ns
            text = text_of_prompt(message)
            if text is not None and self._subagent_id is None:
                self._prompt_id = message_id
                self._turn_key = turn_at(self._path, self._session_id or "", time_ns)
                self._see(prompt(text, time_ns), time_ns)
                self._at_work = True
                if self._compacted_ns is not None:
                    at_ns, self._compacted_ns = self._compacted_ns, None
                    self._see(Compaction(key="compaction", trigger="auto", end_ns=at_ns), time_ns)
        elif kind == "gemini":
            self._read_answer(message, message_id, time_ns)
        else:
            self.notes[f"transcript line type {str(kind)[:40]!r} ignored"] += 1

    def _read_compress(self, time_ns: int) -> None:
        """Tell of a `/compress`: what the user is shown of it has no words in the file."""
        self._compacted_ns = None
        before = self._turn_key
        self._turn_key = compress_key(turn_at(self._path, self._session_id or "", time_ns))
        self._see(Compaction(key="compaction", trigger="manual", end_ns=time_ns), time_ns)
        end = TurnEnd(key="compressed", end_ns=time_ns, outcome=Outcome.COMPLETED)
        self._see(end, time_ns)
        self._turn_key = before

    def _read_cancel(self, time_ns: int) -> None:
        if self._prompt_id is not None:
            key = f"cancelled:{self._prompt_id}"
            end = TurnEnd(key=key, end_ns=time_ns, outcome=Outcome.INTERRUPTED)
            self._see(end, time_ns)
            # It is rolled back, too, but did not fail.
            self._prompt_id = None
        self._at_work = False

    def _read_answer(self, message: dict[str, Any], key: str, time_ns: int) -> None:
        if self._turn_key is None:
            return
        if self._asked_ns is not None:
            self._started.setdefault(key, min(self._asked_ns, time_ns))
        for index, thought in enumerate(dicts_in(message.get("thoughts"))):
            words = (text_of(thought, "subject"), text_of(thought, "description"))
            self._see(
                Thinking(
                    key=f"{key}:{index}",
                    call_key=key,
                    end_ns=moment_of(thought.get("timestamp")) or time_ns,
                    text="\n".join(word for word in words if word),
                ),
                time_ns,
            )
        content = message.get("content")
        texts = [content] if isinstance(content, str) else _texts(content)
        answer = "\n".join(filter(None, texts)) or None
        tools = [tool for tool in dicts_in(message.get("toolCalls")) if text_of(tool, "id")]
        self._see(
            ModelCall(
                key=key,
                model=text_of(message, "model"),
                provider="gcp.gen_ai",
                start_ns=self._started.get(key),
                end_ns=time_ns,
                usage=_usage(dict_of(message.get("tokens"))),
                output_text=answer,
                tool_call_ids=tuple(_tool_key(tool) for tool in tools) or None,
            ),
            time_ns,
        )
        for tool in tools:
            self._read_tool(tool, time_ns)
        self._at_work = answer is None or bool(tools)
        if answer is not None and not tools and self._subagent_id is None:
            # Tools that are still to run are not in the line yet; their start says that it goes on.
            self._see(
                TurnEnd(
                    key=f"answer:{key}", end_ns=time_ns, outcome=Outcome.COMPLETED, message=answer
                ),
                time_ns,
            )

    def _read_tool(self, tool: dict[str, Any], asked_ns: int) -> None:
        key, name, arguments = _tool_key(tool), text_of(tool, "name"), tool.get("args")
        digest = input_digest(name, arguments)
        # The file tells times to the millisecond: what was asked for in one begins behind it.
        begun = ToolCall(
            key=key,
            name=name,
            start_ns=asked_ns + 1,
            input=as_json(arguments),
            input_digest=digest,
        )
        self._see(begun, asked_ns)
        end_ns = moment_of(tool.get("timestamp"))
        status = tool.get("status")
        if end_ns is None or status not in {"success", "error", "cancelled"}:
            return
        said = "\n".join(_results(tool)) or None
        code = exit_code_of(name, said)
        failed = status != "success"
        error_type = {"error": "tool_error", "cancelled": "interrupted"}.get(str(status))
        if status == "cancelled" and said is not None and said.endswith(DENIED):
            error_type = "permission_denied"
        self._see(
            ToolCall(
                key=key,
                end_ns=end_ns,
                output=None if failed else said,
                error_type=error_type or ("exit_nonzero" if code else None),
                error_message=said if failed else None,
                exit_code=code,
                input_digest=digest,
            ),
            end_ns,
        )
        for edit in file_edits(key, name, arguments, tool.get("resultDisplay"), failed=failed):
            self._see(edit, end_ns)
        if (agent_id := text_of(tool, "agentId")) is not None:
            given = dict_of(arguments)
            subagent = Subagent(
                key=agent_id,
                type=text_of(given, "agent_name"),
                description=text_of(given, "prompt"),
                tool_key=key,
                end_ns=end_ns,
                output=said,
            )
            self._see(subagent, end_ns)

    def _see(self, part: Part, time_ns: int) -> None:
        of_session = isinstance(part, SessionInfo)
        if self._session_id is None or (self._turn_key is None and not of_session):
            return
        self.sightings.append(
            Sighting(
                agent=SLUG,
                session_id=self._session_id,
                source=Source.TRANSCRIPT,
                time_ns=time_ns,
                turn_key=None if of_session else self._turn_key,
                subagent_id=None if isinstance(part, Subagent) else self._subagent_id,
                part=part,
            )
        )


def _project_root(path: Path) -> str | None:
    """Return the folder that Gemini CLI ran in, from what it wrote beside its chat files."""
    try:
        return (path.parent.parent / ".project_root").read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _tool_key(tool: dict[str, Any]) -> str:
    """Return the id that the model gave the call: the one that stands in requests."""
    name = text_of(tool, "name") or ""
    return (text_of(tool, "id") or "").removeprefix(f"{name}__")


def _results(tool: dict[str, Any]) -> Iterable[str]:
    for result in dicts_in(tool.get("result")):
        response = dict_of(dict_of(result.get("functionResponse")).get("response"))
        said = response.get("error", response.get("output"))
        if said is not None:
            yield said if isinstance(said, str) else as_json(said) or ""


def _texts(content: Any) -> list[str]:
    return [text_of(part, "text") or "" for part in dicts_in(content)]


def _usage(tokens: dict[str, Any]) -> Usage | None:
    given, said, thoughts = (count_of(tokens, name) for name in ("input", "output", "thoughts"))
    result = Usage(
        input_tokens=None if given is None else given + (count_of(tokens, "tool") or 0),
        output_tokens=None if said is None else said + (thoughts or 0),
        cache_read_tokens=count_of(tokens, "cached"),
        reasoning_tokens=thoughts,
    )
    return None if result == Usage() else result

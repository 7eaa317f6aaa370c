"""Rollout files to sightings: the session's own and those of its subagents."""

from __future__ import annotations

import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tracebridge.agents import Cursor, Reading
from tracebridge.agents.codex_cli.payload import (
    APPLY_PATCH,
    SLUG,
    changed_file,
    mcp_output,
    patched_files,
    prompt,
    tool_name,
)
from tracebridge.fields import (
    EPOCH,
    as_json,
    count_of,
    dict_of,
    dicts_in,
    moment_of,
    text_of,
    texts_in,
)
from tracebridge.lines import parse_object, read_objects
from tracebridge.model import (
    Compaction,
    ModelCall,
    Outcome,
    Part,
    Prompt,
    SessionInfo,
    Sighting,
    Source,
    Subagent,
    Thinking,
    ToolCall,
    TurnEnd,
    Usage,
)

SILENT_LINES = frozenset({"inter_agent_communication_metadata", "world_state"})
SILENT_EVENTS = frozenset(
    {
        "agent_message",
        "agent_message_delta",
        "agent_reasoning_delta",
        "agent_reasoning_section_break",
        "context_compacted",
        "entered_review_mode",
        "error",
        "exec_command_begin",
        "exited_review_mode",
        "item_started",
        "patch_apply_begin",
        "stream_error",
        "thread_settings_applied",
        "token_count",
        "turn_diff",
        "user_message",
        "warning",
    }
)
TOOL_CALLS = frozenset({"custom_tool_call", "function_call", "local_shell_call"})
TOOL_OUTPUTS = frozenset({"custom_tool_call_output", "function_call_output"})
SILENT_ITEMS = frozenset({"Plan", "HookPrompt", "ExitedReviewMode"})

MILLISECOND_NS = 1_000_000
# The instructions stand in the first line.
LONGEST_FIRST_LINE = 4 * 1024 * 1024
_REMEMBERED = 50


def transcripts(path: Path) -> Iterable[Path]:
    """Return the session's main file and those of its subagents."""
    return [path, *_subagent_files(path)]


def find_transcript(session_id: str, home: Path) -> Path | None:
    # The id comes off the wire and becomes part of a path.
    if not re.fullmatch(r"[0-9A-Za-z_-]{1,128}", session_id):
        return None
    config = os.environ.get("CODEX_HOME")
    root = Path(config) if config else home / ".codex"
    name = f"rollout-*-{session_id}.jsonl"
    days = _days_of(session_id) or ("*/*/*",)
    found = (path for day in days for path in (root / "sessions").glob(f"{day}/{name}"))
    return next(iter(sorted(found)), None)


def _days_of(thread_id: str) -> tuple[str, ...]:
    """Return the folders in which a thread's file may be: its id says when it began."""
    try:
        known = uuid.UUID(thread_id)
        began = EPOCH + timedelta(milliseconds=known.int >> 80)
    except (ValueError, OverflowError):
        return ()
    if known.version != 7:
        return ()
    # The folders go by local time.
    days = (began + timedelta(days=offset) for offset in (-1, 0, 1))
    return tuple(f"{day:%Y/%m/%d}" for day in days)


def _subagent_files(path: Path) -> Iterator[Path]:
    """Yield the files of other threads of the session: they began later, while it was written."""
    sessions = path.parents[3] if len(path.parents) > 3 else path.parent
    try:
        session_id, _ = _head(path)
        last_day = _day_of(path.stat().st_mtime)
    except (OSError, ValueError):
        return
    first_day = path.parent.relative_to(sessions).parts
    for folder in sorted(sessions.glob("[0-9]*/[0-9]*/[0-9]*")):
        if not first_day <= folder.relative_to(sessions).parts <= last_day:
            continue
        for other in sorted(folder.glob("rollout-*.jsonl")):
            try:
                if other != path and _head(other) == (session_id, True):
                    yield other
            except (OSError, ValueError):
                # Just begun; the next look finds it whole.
                continue


def _day_of(time_s: float) -> tuple[str, ...]:
    # A day more, since the folders go by local time.
    day = datetime.fromtimestamp(time_s, UTC) + timedelta(days=1)
    return (f"{day.year:04}", f"{day.month:02}", f"{day.day:02}")


@lru_cache(maxsize=10_000)
def _head(path: Path) -> tuple[str, bool]:
    """Return a file's session and whether it is a subagent's; raise ValueError if unknown yet."""
    with path.open("rb") as file:
        line = parse_object(file.readline(LONGEST_FIRST_LINE))
    meta = dict_of(line.get("payload")) if isinstance(line, dict) else {}
    thread_id = text_of(meta, "id")
    session_id = text_of(meta, "session_id") or thread_id
    if session_id is None:
        raise ValueError(path)
    return session_id, thread_id != session_id


def read_transcript(path: Path, cursor: Cursor) -> Reading:
    stat = path.stat()
    if stat.st_ino != cursor.inode or stat.st_size < cursor.offset:
        cursor = Cursor(inode=stat.st_ino)
    reader = _RolloutReader(path, cursor.memory)
    offset = cursor.offset
    for line, offset_behind in read_objects(path, cursor.offset):
        offset = offset_behind
        if isinstance(line, str):
            reader.notes[f"rollout line {line}"] += 1
        else:
            reader.read(line)
    if offset == cursor.offset:
        return Reading(cursor=cursor)
    return Reading(
        sightings=tuple(reader.sightings),
        cursor=Cursor(offset=offset, inode=stat.st_ino, memory=reader.memory()),
        notes=reader.notes,
    )


class _RolloutReader:
    """Read one file line by line; what later lines need is kept between two looks."""

    def __init__(self, path: Path, memory: Mapping[str, Any]) -> None:
        self.sightings: list[Sighting] = []
        self.notes: Counter[str] = Counter()
        self._path = path
        self._thread_id: str | None = memory.get("thread_id")
        self._session_id: str | None = memory.get("session_id")
        # What was copied from the parent goes on until the thread's own settings.
        self._copied: bool = memory.get("copied", False)
        self._turn_id: str | None = memory.get("turn_id")
        # Turn ids of the thread to the turn of the user that each works for.
        self._roots: dict[str, str] = dict(memory.get("roots", {}))
        self._prompted: str | None = memory.get("prompted")
        self._model: str | None = memory.get("model")
        self._info: dict[str, Any] = dict(memory.get("info", {}))
        self._cwd: str | None = self._info.get("cwd")
        # When the input of the next call was complete, and of the one that is being answered.
        self._input_ns: int | None = memory.get("input_ns")
        self._call_ns: int | None = memory.get("call_ns")
        # What the model said in the call that is being answered.
        self._thoughts: list[list[Any]] = list(memory.get("thoughts", []))
        self._texts: list[str] = list(memory.get("texts", []))
        self._asked: list[str] = list(memory.get("asked", []))
        # Patches by tool call, until something is known of how they went; None once an item told.
        self._tools: dict[str, str | None] = dict(memory.get("tools", {}))

    def memory(self) -> Mapping[str, Any]:
        return {
            "thread_id": self._thread_id,
            "session_id": self._session_id,
            "copied": self._copied,
            "turn_id": self._turn_id,
            "roots": dict(list(self._roots.items())[-_REMEMBERED:]),
            "prompted": self._prompted,
            "model": self._model,
            "info": self._info,
            "input_ns": self._input_ns,
            "call_ns": self._call_ns,
            "thoughts": self._thoughts[-_REMEMBERED:],
            "texts": self._texts[-_REMEMBERED:],
            "asked": self._asked[-_REMEMBERED:],
            "tools": dict(list(self._tools.items())[-_REMEMBERED:]),
        }

    @property
    def _agent_id(self) -> str | None:
        return None if self._thread_id == self._session_id else self._thread_id

    def read(self, line: dict[str, Any]) -> None:
        kind = text_of(line, "type")
        payload = dict_of(line.get("payload"))
        time_ns = moment_of(line.get("timestamp"))
        if kind in SILENT_LINES:
            return
        if time_ns is None:
            self.notes[f"rollout line {str(kind)[:40]!r} without time ignored"] += 1
        elif kind == "session_meta":
            self._read_meta(payload)
        elif self._session_id is None:
            self.notes["rollout line before session_meta ignored"] += 1
        elif self._is_copied(kind, payload):
            return
        elif kind == "turn_context":
            self._read_context(payload)
        elif kind == "event_msg":
            self._read_event(payload, time_ns)
        elif kind == "response_item":
            self._read_response_item(payload, time_ns)
        elif kind == "token_usage_record":
            self._read_usage(payload, time_ns)
        elif kind == "compacted":
            self._read_compacted(payload, time_ns)
        else:
            self.notes[f"rollout line type {str(kind)[:40]!r} ignored"] += 1

    def _is_copied(self, kind: Any, payload: dict[str, Any]) -> bool:
        if not self._copied:
            return False
        own = text_of(payload, "thread_id") == self._thread_id
        if own and (
            kind == "token_usage_record"
            or text_of(payload, "type") in {"item_completed", "thread_settings_applied"}
        ):
            self._copied = False
        return self._copied

    def _see(self, part: Part, time_ns: int, turn_id: str | None = None) -> None:
        turn_key = self._roots.get(turn_id or self._turn_id or "")
        is_info = isinstance(part, SessionInfo)
        if self._session_id is None or (turn_key is None and not is_info):
            return
        self.sightings.append(
            Sighting(
                agent=SLUG,
                session_id=self._session_id,
                source=Source.TRANSCRIPT,
                time_ns=time_ns,
                turn_key=None if is_info else turn_key,
                subagent_id=None if isinstance(part, SessionInfo | Subagent) else self._agent_id,
                part=part,
            )
        )

    def _read_meta(self, meta: dict[str, Any]) -> None:
        thread_id = text_of(meta, "id")
        if thread_id is None:
            return
        if self._thread_id is not None:
            # A second one is the parent's; a resumed session has its own again.
            self._copied |= thread_id != self._thread_id
            return
        self._thread_id = thread_id
        self._session_id = text_of(meta, "session_id") or thread_id
        self._cwd = text_of(meta, "cwd")
        self._info = {
            "agent_version": text_of(meta, "cli_version"),
            "cwd": self._cwd,
            "git_branch": text_of(dict_of(meta.get("git")), "branch"),
        }
        spawn = dict_of(dict_of(dict_of(meta.get("source")).get("subagent")).get("thread_spawn"))
        kind = dict_of(meta.get("source")).get("subagent")
        self._info["type"] = kind if isinstance(kind, str) else text_of(spawn, "agent_role")
        self._info["type"] = self._info["type"] or "default"
        self._info["name"] = text_of(spawn, "agent_path") or text_of(spawn, "agent_nickname")
        self._info["parent"] = text_of(meta, "parent_thread_id")
        if self._agent_id is None:
            self._see(
                SessionInfo(
                    key="session",
                    agent_version=self._info["agent_version"],
                    cwd=self._cwd,
                    git_branch=self._info["git_branch"],
                    transcript=str(self._path),
                ),
                0,
            )

    def _read_context(self, context: dict[str, Any]) -> None:
        self._begin_turn(context)
        self._cwd = text_of(context, "cwd") or self._cwd
        model = text_of(context, "model")
        if model is not None and model != self._model and self._agent_id is None:
            self._see(SessionInfo(key="session", model=model), 0)
        self._model = model or self._model

    def _read_compacted(self, compacted: dict[str, Any], time_ns: int) -> None:
        response_id = text_of(compacted, "compaction_response_id")
        if response_id is not None:
            call = ModelCall(key=response_id, response_id=response_id, purpose="compaction")
            self._see(call, time_ns)
        self._note_input(time_ns)

    def _begin_turn(self, payload: dict[str, Any]) -> None:
        turn_id = text_of(payload, "turn_id")
        if turn_id is None:
            return
        self._turn_id = turn_id
        self._roots[turn_id] = text_of(payload, "root_turn_id") or turn_id

    def _read_event(self, event: dict[str, Any], time_ns: int) -> None:
        kind = text_of(event, "type")
        if kind == "task_started":
            self._begin_turn(event)
            self._input_ns, self._call_ns = time_ns, None
            self._thoughts, self._texts, self._asked = [], [], []
            if self._agent_id is not None:
                own = text_of(event, "turn_id")
                self._see(self._subagent(start_ns=time_ns, own_turn_key=own), time_ns)
        elif kind == "item_completed":
            self._read_item(dict_of(event.get("item")), event, time_ns)
        elif kind == "task_complete":
            self._read_end(event, time_ns)
        elif kind == "turn_aborted":
            self._end_turn(event, time_ns, Outcome.INTERRUPTED)
        elif kind == "agent_reasoning":
            self._read_older_thought(event, time_ns)
        elif kind in {"exec_command_end", "patch_apply_end"}:
            # As older versions tell what items tell now.
            self._read_older(event, time_ns)
        elif kind not in SILENT_EVENTS:
            self.notes[f"rollout event {str(kind)[:40]!r} ignored"] += 1

    def _subagent(self, **facts: Any) -> Subagent:
        parent = self._info.get("parent")
        return Subagent(
            key=self._thread_id or "",
            type=self._info.get("type"),
            description=self._info.get("name"),
            parent_key=parent if parent != self._session_id else None,
            **facts,
        )

    def _read_end(self, event: dict[str, Any], time_ns: int) -> None:
        error = event.get("error")
        if not isinstance(error, dict):
            self._end_turn(
                event, time_ns, Outcome.COMPLETED, message=text_of(event, "last_agent_message")
            )
            return
        message = text_of(error, "message")
        kind, status = _error_of(error.get("codex_error_info"))
        named = re.search(r"request id: ([\w.:-]{1,200})", message or "")
        request_id = named[1] if named else None
        if request_id is not None or status is not None:
            # The last attempt; those before it are told by nobody.
            self._see(
                ModelCall(
                    key=request_id or f"attempt:{text_of(event, 'turn_id')}",
                    request_id=request_id,
                    requested_model=self._model,
                    provider="openai",
                    end_ns=time_ns,
                    status_code=status,
                    error_type=kind,
                    error_message=message,
                ),
                time_ns,
                text_of(event, "turn_id"),
            )
        self._end_turn(event, time_ns, Outcome.FAILED, message=message, error_type=kind)

    def _end_turn(
        self,
        event: dict[str, Any],
        time_ns: int,
        outcome: Outcome,
        *,
        message: str | None = None,
        error_type: str | None = None,
    ) -> None:
        turn_id = text_of(event, "turn_id") or self._turn_id
        self._see_thoughts(None, time_ns, turn_id)
        if self._agent_id is not None:
            self._see(self._subagent(end_ns=time_ns, output=message), time_ns, turn_id)
            return
        self._see(
            TurnEnd(
                key=f"{event.get('type')}:{turn_id}",
                end_ns=time_ns,
                outcome=outcome,
                message=message,
                error_type=error_type,
            ),
            time_ns,
            turn_id,
        )

    def _note_answer(self) -> None:
        """Note that the call whose input was complete is being answered."""
        if self._call_ns is None:
            self._call_ns = self._input_ns

    def _note_input(self, time_ns: int) -> None:
        self._input_ns = time_ns

    def _read_usage(self, record: dict[str, Any], time_ns: int) -> None:
        response_id = text_of(record, "response_id")
        if text_of(record, "thread_id") not in {None, self._thread_id}:
            return
        if response_id is None:
            self.notes["token_usage_record without response_id ignored"] += 1
            return
        turn_id = text_of(record, "turn_id")
        if turn_id is not None:
            self._roots.setdefault(turn_id, text_of(record, "root_turn_id") or turn_id)
        self._note_answer()
        usage = dict_of(record.get("usage"))
        self._see(
            ModelCall(
                key=response_id,
                response_id=response_id,
                requested_model=self._model,
                provider="openai",
                start_ns=self._call_ns,
                end_ns=time_ns,
                usage=Usage(
                    input_tokens=count_of(usage, "input_tokens"),
                    output_tokens=count_of(usage, "output_tokens"),
                    cache_read_tokens=count_of(usage, "cached_input_tokens"),
                    cache_write_tokens=count_of(usage, "cache_write_input_tokens"),
                    reasoning_tokens=count_of(usage, "reasoning_output_tokens"),
                ),
                output_text="\n".join(self._texts) or None,
                tool_call_ids=tuple(self._asked) or None,
            ),
            time_ns,
            turn_id,
        )
        self._see_thoughts(response_id, time_ns, turn_id)
        self._call_ns = None
        self._texts, self._asked = [], []

    def _see_thoughts(self, call_key: str | None, time_ns: int, turn_id: str | None) -> None:
        """Tell what was thought in a call, once it is known which; some were cut off."""
        for key, start_ns, end_ns, text in self._thoughts:
            self._see(
                Thinking(
                    key=key,
                    call_key=call_key or "",
                    start_ns=start_ns,
                    end_ns=end_ns,
                    text=text,
                    redacted=not text,
                ),
                time_ns,
                turn_id,
            )
        self._thoughts = []

    def _read_item(self, item: dict[str, Any], event: dict[str, Any], time_ns: int) -> None:
        if text_of(event, "thread_id") not in {None, self._thread_id}:
            return
        kind, key = text_of(item, "type"), text_of(item, "id")
        start_ns = _milliseconds(event, "started_at_ms")
        end_ns = _milliseconds(event, "completed_at_ms") or time_ns
        turn_id = text_of(event, "turn_id")
        if key is None:
            self.notes[f"rollout item {str(kind)[:40]!r} without id ignored"] += 1
        elif kind == "EnteredReviewMode":
            # A turn that begins with nothing else; another thread does the work.
            self._begin_turn(event)
            said = Prompt(key=key, text=text_of(item, "user_facing_hint"), start_ns=end_ns)
            self._see(replace(said, origin="review"), end_ns, turn_id)
        elif kind == "UserMessage":
            self._read_user_message(item, end_ns, turn_id)
        elif kind == "Reasoning":
            self._note_answer()
            text = "\n".join(
                [*texts_in(item.get("summary_text")), *texts_in(item.get("raw_content"))]
            )
            # Older versions told it as an event, and some may tell both.
            self._thoughts = [known for known in self._thoughts if known[3] != text]
            self._thoughts.append([key, start_ns, end_ns, text])
        elif kind == "AgentMessage":
            self._note_answer()
            self._texts += [text_of(part, "text") or "" for part in dicts_in(item.get("content"))]
        elif kind == "CommandExecution":
            self._see(_command(item, key, start_ns, end_ns), time_ns, turn_id)
            self._tools[key] = None
        elif kind == "FileChange":
            self._read_change(item, key, (start_ns, end_ns), time_ns, turn_id)
        elif kind == "SubAgentActivity":
            self._read_activity(item, key, time_ns, turn_id)
        elif kind == "ContextCompaction":
            compaction = Compaction(key="compaction", start_ns=start_ns, end_ns=end_ns)
            self._see(compaction, time_ns, turn_id)
        elif kind == "McpToolCall":
            self._see(_mcp_call(item, key, start_ns, end_ns), time_ns, turn_id)
            self._tools[key] = None
        elif isinstance(kind, str) and kind.endswith("ToolCall"):
            # Of agents: what it took and gave stands in other lines.
            self._see(ToolCall(key=key, start_ns=start_ns, end_ns=end_ns), time_ns, turn_id)
        elif kind not in SILENT_ITEMS:
            self.notes[f"rollout item {str(kind)[:40]!r} ignored"] += 1

    def _read_user_message(self, item: dict[str, Any], end_ns: int, turn_id: str | None) -> None:
        self._note_input(end_ns)
        if self._agent_id is not None:
            return
        said = [text_of(part, "text") or "" for part in dicts_in(item.get("content"))]
        mid_turn = True if self._prompted == turn_id else None
        self._prompted = turn_id
        self._see(prompt("\n".join(said), end_ns, mid_turn=mid_turn), end_ns, turn_id)

    def _read_change(
        self,
        item: dict[str, Any],
        key: str,
        times: tuple[int | None, int],
        time_ns: int,
        turn_id: str | None,
    ) -> None:
        failed = text_of(item, "status") not in {"completed", None}
        declined = item.get("status") == "declined"
        tool = ToolCall(
            key=key,
            start_ns=times[0],
            end_ns=times[1],
            output=text_of(item, "stdout") or None,
            error_type=("permission_denied" if declined else "tool_error") if failed else None,
            error_message=text_of(item, "stderr") if failed else None,
        )
        self._see(tool, time_ns, turn_id)
        self._tools[key] = None
        for path, change in dict_of(item.get("changes")).items():
            edit = changed_file(key, path, dict_of(change), failed=failed)
            self._see(edit, time_ns, turn_id)

    def _read_activity(
        self, item: dict[str, Any], key: str, time_ns: int, turn_id: str | None
    ) -> None:
        thread_id = text_of(item, "agent_thread_id")
        if thread_id is not None and item.get("kind") == "started":
            parent = self._agent_id
            subagent = Subagent(
                key=thread_id,
                description=text_of(item, "agent_path"),
                tool_key=key,
                parent_key=parent,
            )
            self._see(subagent, time_ns, turn_id)

    def _read_older_thought(self, event: dict[str, Any], time_ns: int) -> None:
        text = text_of(event, "text") or ""
        if all(known[3] != text for known in self._thoughts):
            self._note_answer()
            self._thoughts.append([f"thought:{time_ns}", None, time_ns, text])

    def _read_older(self, event: dict[str, Any], time_ns: int) -> None:
        key = text_of(event, "call_id")
        if key is None:
            return
        if event.get("type") == "patch_apply_end":
            status = "completed" if event.get("success") is True else "failed"
            self._read_change({**event, "status": status}, key, (None, time_ns), time_ns, None)
        else:
            self._see(_command(event, key, None, time_ns), time_ns)
            self._tools[key] = None

    def _read_response_item(self, item: dict[str, Any], time_ns: int) -> None:
        kind = text_of(item, "type")
        key = text_of(item, "call_id")
        passed = dict_of(item.get("internal_chat_message_metadata_passthrough"))
        turn_id = text_of(passed, "turn_id")
        turn_id = turn_id if turn_id in self._roots else None
        if kind in TOOL_CALLS and key is not None:
            self._note_answer()
            self._asked.append(key)
            name = tool_name(text_of(item, "name"), text_of(item, "namespace"))
            patch = text_of(item, "input")
            asked = text_of(item, "arguments") or patch or as_json(item.get("action"))
            if name == APPLY_PATCH and patch is not None:
                self._tools[key] = patch
            tool = ToolCall(key=key, name=name, start_ns=time_ns, input=asked)
            self._see(tool, time_ns, turn_id)
        elif kind in TOOL_OUTPUTS and key is not None:
            self._note_input(time_ns)
            self._read_output(key, _output_text(item.get("output")), time_ns, turn_id)
        elif kind == "agent_message":
            self._note_input(time_ns)

    def _read_output(self, key: str, output: str, time_ns: int, turn_id: str | None) -> None:
        is_told = key in self._tools and self._tools[key] is None
        patch = self._tools.pop(key, None)
        if is_told:
            # By an item, and better; this is how the model was told of it.
            return
        tool = ToolCall(key=key, end_ns=time_ns, output=output)
        exit_code = _exit_code(output)
        if output.rstrip().endswith("aborted by user"):
            tool = replace(tool, error_type="interrupted", error_message=output, output=None)
        elif exit_code:
            tool = replace(tool, error_type="exit_nonzero", exit_code=exit_code)
        elif output.startswith(("apply_patch verification failed", "unsupported call", "failed ")):
            tool = replace(tool, error_type="tool_error", error_message=output, output=None)
        elif exit_code is not None:
            tool = replace(tool, exit_code=exit_code)
        self._see(tool, time_ns, turn_id)
        if patch is None:
            return
        for edit in patched_files(key, patch, self._cwd):
            failed = tool.error_type is not None
            if failed:
                # What failed changed nothing.
                edit = replace(edit, lines_added=None, lines_removed=None)  # noqa: PLW2901
            self._see(replace(edit, failed=failed), time_ns, turn_id)


def _command(item: dict[str, Any], key: str, start_ns: int | None, end_ns: int) -> ToolCall:
    exit_code = item.get("exit_code")
    exit_code = exit_code if isinstance(exit_code, int) and abs(exit_code) < 2**31 else None
    error_type = None
    if item.get("status") == "declined":
        error_type = "permission_denied"
    elif exit_code:
        error_type = "exit_nonzero"
    elif item.get("status") == "failed":
        error_type = "tool_error"
    return ToolCall(
        key=key,
        start_ns=start_ns,
        end_ns=end_ns,
        duration_ns=_duration(item),
        output=text_of(item, "aggregated_output"),
        exit_code=exit_code,
        error_type=error_type,
    )


def _mcp_call(item: dict[str, Any], key: str, start_ns: int | None, end_ns: int) -> ToolCall:
    error = text_of(dict_of(item.get("error")), "message")
    output = mcp_output(item.get("result"))
    failed = item.get("status") == "failed" or error is not None
    return ToolCall(
        key=key,
        start_ns=start_ns,
        end_ns=end_ns,
        duration_ns=_duration(item),
        output=output,
        error_type="tool_error" if failed else None,
        error_message=(error or output) if failed else None,
        mcp_server=text_of(item, "server"),
    )


def _error_of(info: Any) -> tuple[str, int | None]:
    """Return type and HTTP status of what a turn failed of."""
    if isinstance(info, str):
        return info[:64], None
    kind, details = next(iter(dict_of(info).items()), ("unknown", None))
    status = count_of(dict_of(details), "http_status_code")
    return (str(status), status) if status is not None else (str(kind)[:64], None)


def _output_text(output: Any) -> str:
    if isinstance(output, list):
        return "\n".join(text_of(part, "text") or "" for part in dicts_in(output))
    if isinstance(output, dict):
        return text_of(output, "content") or as_json(output) or ""
    return output if isinstance(output, str) else ""


def _exit_code(output: str) -> int | None:
    """Return the exit code in what the model was told of a command."""
    if output.startswith('{"output"'):
        # As older versions wrote it.
        told = parse_object(output.encode("utf-8", "surrogatepass"))
        return (
            count_of(dict_of(told.get("metadata")), "exit_code") if isinstance(told, dict) else None
        )
    match = re.search(
        r"^(?:Process exited with code|Exit code:) (-?\d{1,9})$", output[:500], re.MULTILINE
    )
    return int(match[1]) if match else None


def _duration(item: dict[str, Any]) -> int | None:
    told = dict_of(item.get("duration"))
    seconds, rest_ns = count_of(told, "secs"), count_of(told, "nanos")
    if seconds is None or rest_ns is None or seconds > 10**9:
        return None
    return seconds * 1_000_000_000 + rest_ns


def _milliseconds(record: dict[str, Any], name: str) -> int | None:
    value = count_of(record, name)
    return value * MILLISECOND_NS if value is not None and value < 10**13 else None

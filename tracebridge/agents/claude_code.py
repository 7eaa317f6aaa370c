"""Claude Code: hook events and transcripts to sightings, and what its requests say of themselves.

Format facts, each seen with 2.1.329:

* A turn is a change of `prompt_id`, not a UserPromptSubmit: that also fires, with the running id,
  for input while the turn runs, and not at all for a prompt that waited in the queue.
* Hooks of a background subagent carry the id of the turn that runs now; its SubagentStart and its
  own transcript carry that of the turn that started it.
* A transcript line holds one content block; the message's usage is repeated on each.
* The last assistant line lands some 50 ms after the Stop hook started.
* Requests are told by `api-request` lines, one per attempt; `requestRef` of an answer names its own.
* PermissionRequest names no tool call id; name and input find the call.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from tracebridge.agents import Cursor, Reading
from tracebridge.lines import parse_object, read_objects
from tracebridge.model import (
    CallIdentity,
    Compaction,
    FileEdit,
    HookEvent,
    ModelCall,
    Outcome,
    Part,
    PermissionAsk,
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

SLUG = "claude-code"
ALIASES = ("claude",)
TESTED_VERSION = "2.1.329"

EDITING_TOOLS = frozenset({"Write", "Edit", "MultiEdit", "NotebookEdit"})
# Where a turn was neither answered nor failed, the transcript says so in the user's name.
INTERRUPTED = "[Request interrupted by user"
# Lines that tell nothing about a turn. Half of a transcript's bytes are prompts kept in blobs.
SILENT_LINES = frozenset(
    {
        "api-request-blob",
        "api-request-shape",
        "atis-latch",
        "cost-state",
        "file-history-delta",
        "file-history-snapshot",
        "last-prompt",
        "mode",
        "permission-mode",
        "queue-operation",
        "summary",
        "tools-used",
    }
)
SILENT_EVENTS = frozenset({"Notification", "PostToolBatch", "UserPromptExpansion"})
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def identify_call(headers: Mapping[str, str], body: Mapping[str, Any]) -> CallIdentity | None:
    session_id = headers.get("x-claude-code-session-id") or _session_of_user_id(body)
    if session_id is None:
        return None
    return CallIdentity(
        agent=SLUG,
        session_id=session_id,
        # Only with CLAUDE_CODE_GATEWAY_HINT_HEADERS=1.
        turn_key=headers.get("x-claude-code-prompt-id"),
        subagent_id=headers.get("x-claude-code-agent-id"),
        request_class=headers.get("x-claude-code-request-class"),
    )


def _session_of_user_id(body: Mapping[str, Any]) -> str | None:
    # A gateway in between may drop the headers; the body carries the session too, as JSON in JSON.
    metadata = body.get("metadata")
    user_id = metadata.get("user_id") if isinstance(metadata, dict) else None
    if not isinstance(user_id, str) or "session_id" not in user_id:
        return None
    try:
        session_id = json.loads(user_id).get("session_id")
    except (ValueError, AttributeError, RecursionError):
        return None
    return session_id if isinstance(session_id, str) else None


def parse_hook(event: HookEvent) -> Reading:
    payload = parse_object(event.payload)
    notes: Counter[str] = Counter()
    if isinstance(payload, str):
        cut = event.payload_bytes > len(event.payload)
        notes[f"hook payload {'cut at its cap' if cut else payload}"] += 1
        payload = _head_of(event.payload) if cut else {}
    session_id = _text(payload, "session_id")
    name = _text(payload, "hook_event_name")
    if session_id is None or name is None:
        notes["hook event without session_id or hook_event_name"] += 1
        return Reading(notes=notes)
    prompt_id = _text(payload, "prompt_id")
    agent_id = _text(payload, "agent_id")
    parts = tuple(_hook_parts(name, payload, event))
    if not parts and name not in SILENT_EVENTS:
        notes[f"hook event {name} ignored"] += 1
    info = SessionInfo(
        key="session",
        cwd=_text(payload, "cwd"),
        model=_text(payload, "model"),
        permission_mode=_text(payload, "permission_mode"),
        agent_version=_version(event.env.get("AI_AGENT", "")),
        pid=_pid(event.env.get("CLAUDE_PID", "")),
        transcript=_text(payload, "transcript_path"),
        ended_ns=event.time_ns if name == "SessionEnd" else None,
        end_reason=_text(payload, "reason") if name == "SessionEnd" else None,
    )
    session = Sighting(
        agent=SLUG,
        session_id=session_id,
        source=Source.HOOK,
        # The same for each event of a session as long as nothing changes.
        time_ns=event.time_ns if info.ended_ns or name == "SessionStart" else 0,
        part=info,
    )
    return Reading(
        sightings=(
            session,
            *(
                Sighting(
                    agent=SLUG,
                    session_id=session_id,
                    source=Source.HOOK,
                    time_ns=event.time_ns,
                    turn_key=prompt_id,
                    subagent_id=None if isinstance(part, Subagent) else agent_id,
                    part=part,
                )
                for part in parts
                if prompt_id is not None or agent_id is not None
            ),
        ),
        notes=notes,
    )


def _hook_parts(name: str, payload: dict[str, Any], event: HookEvent) -> Iterator[Part]:
    now = event.time_ns
    tool_id = _text(payload, "tool_use_id")
    tool_name = _text(payload, "tool_name")
    tool_input = payload.get("tool_input")
    agent_id = _text(payload, "agent_id")
    if name == "UserPromptSubmit":
        yield _prompt(_text(payload, "prompt") or "", now)
    elif name == "PreToolUse" and tool_id:
        yield _tool(tool_id, tool_name, tool_input, payload, start_ns=now)
    elif name == "PostToolUse" and tool_id:
        response = payload.get("tool_response")
        yield _tool(
            tool_id,
            tool_name,
            tool_input,
            payload,
            end_ns=now,
            duration_ns=_milliseconds(payload, "duration_ms"),
            output=_output(response),
        )
        yield from _edits(tool_id, tool_name, tool_input, response, failed=False)
        launched = response.get("agentId") if isinstance(response, dict) else None
        if isinstance(launched, str):
            yield Subagent(key=launched, tool_key=tool_id)
    elif name == "PostToolUseFailure" and tool_id:
        error = _text(payload, "error") or "failed"
        yield _tool(
            tool_id,
            tool_name,
            tool_input,
            payload,
            end_ns=now,
            duration_ns=_milliseconds(payload, "duration_ms"),
            error_type="interrupted" if payload.get("is_interrupt") else _tool_error_type(error),
            error_message=error,
            exit_code=_exit_code(error),
        )
        yield from _edits(tool_id, tool_name, tool_input, None, failed=True)
    elif name == "PermissionRequest" and tool_name:
        digest = _digest(tool_name, tool_input)
        yield PermissionAsk(
            key=f"{digest}:{now}", tool_name=tool_name, input_digest=digest, start_ns=now
        )
    elif name == "PermissionDenied" and tool_id:
        yield _tool(
            tool_id,
            tool_name,
            tool_input,
            payload,
            end_ns=now,
            error_type="permission_denied",
            error_message=_text(payload, "reason"),
        )
        yield PermissionAsk(
            key=f"decision:{tool_id}", tool_key=tool_id, decision="deny", decided_by="policy"
        )
    elif name == "SubagentStart" and agent_id:
        yield Subagent(key=agent_id, type=_text(payload, "agent_type"), start_ns=now)
    elif name == "SubagentStop" and agent_id:
        yield Subagent(
            key=agent_id,
            type=_text(payload, "agent_type"),
            end_ns=now,
            output=_text(payload, "last_assistant_message"),
        )
    elif name in {"PreCompact", "PostCompact"}:
        yield Compaction(
            key="compaction",
            trigger=_text(payload, "trigger"),
            start_ns=now if name == "PreCompact" else None,
            end_ns=now if name == "PostCompact" else None,
        )
        if name == "PostCompact" and payload.get("trigger") == "manual":
            yield TurnEnd(key="compacted", end_ns=now, outcome=Outcome.COMPLETED)
    elif name == "Stop":
        yield TurnEnd(
            key="stop",
            end_ns=now,
            outcome=Outcome.COMPLETED,
            message=_text(payload, "last_assistant_message"),
            running=tuple(
                sorted(
                    task["id"]
                    for task in _dicts(payload.get("background_tasks"))
                    if isinstance(task.get("id"), str) and task.get("type") == "subagent"
                )
            ),
        )
    elif name == "StopFailure":
        # One with an agent_id tells that a compaction failed; it ends that command's turn too.
        yield TurnEnd(
            key="failure",
            end_ns=now,
            outcome=Outcome.FAILED,
            message=_text(payload, "last_assistant_message"),
            error_type=_text(payload, "error") or "unknown",
        )


def transcripts(path: Path) -> Iterable[Path]:
    """Return the session's main file and those of its subagents."""
    return [path, *sorted((path.with_suffix("") / "subagents").glob("agent-*.jsonl"))]


def find_transcript(session_id: str, home: Path) -> Path | None:
    # The id comes off the wire and becomes part of a path.
    if not re.fullmatch(r"[0-9A-Za-z_-]{1,128}", session_id):
        return None
    config = os.environ.get("CLAUDE_CONFIG_DIR")
    root = Path(config) if config else home / ".claude"
    return next(iter(sorted((root / "projects").glob(f"*/{session_id}.jsonl"))), None)


def read_transcript(path: Path, cursor: Cursor) -> Reading:
    stat = path.stat()
    if stat.st_ino != cursor.inode or stat.st_size < cursor.offset:
        cursor = Cursor(inode=stat.st_ino)
    reader = _TranscriptReader(path, cursor.memory)
    offset = cursor.offset
    for line, offset_behind in read_objects(path, cursor.offset):
        offset = offset_behind
        if isinstance(line, str):
            reader.notes[f"transcript line {line}"] += 1
        else:
            reader.read(line)
    reader.read_meta()
    return Reading(
        sightings=tuple(reader.sightings),
        cursor=Cursor(offset=offset, inode=stat.st_ino, memory=reader.memory()),
        notes=reader.notes,
    )


class _TranscriptReader:
    """Read one file line by line; what later lines need is kept between two looks."""

    def __init__(self, path: Path, memory: Mapping[str, Any]) -> None:
        self.sightings: list[Sighting] = []
        self.notes: Counter[str] = Counter()
        self._path = path
        self._prompt_id: str | None = memory.get("prompt_id")
        # Recent requests: id to start.
        self._requests: dict[str, int] = dict(memory.get("requests", {}))
        self._attempt: int = memory.get("attempt", 0)
        self._session_id: str = memory.get("session_id") or _session_of_path(path)
        self._agent_id = _agent_of_path(path)
        self._info = SessionInfo(key="session")
        # Which tool a later result belongs to: id to name and input.
        self._tools: dict[str, list[Any]] = dict(memory.get("tools", {}))

    def memory(self) -> Mapping[str, Any]:
        return {
            "prompt_id": self._prompt_id,
            "requests": dict(list(self._requests.items())[-50:]),
            "attempt": self._attempt,
            "session_id": self._session_id,
            "tools": dict(list(self._tools.items())[-50:]),
        }

    def read(self, line: dict[str, Any]) -> None:
        kind = line.get("type")
        if kind in SILENT_LINES:
            return
        time_ns = _time_ns(line.get("timestamp"))
        if isinstance(session_id := line.get("sessionId"), str):
            self._session_id = session_id
        if kind == "api-request":
            if isinstance(request := line.get("id"), str) and time_ns:
                self._requests[request] = time_ns
            return
        if time_ns is None:
            self.notes[f"transcript line {str(kind)[:40]!r} without time ignored"] += 1
        elif kind == "user":
            self._read_user(line, time_ns)
        elif kind == "assistant":
            self._read_assistant(line, time_ns)
        elif kind == "system":
            self._read_system(line, time_ns)
        elif kind == "attachment":
            self._read_attachment(line, time_ns)
        else:
            self.notes[f"transcript line type {str(kind)[:40]!r} ignored"] += 1

    def read_meta(self) -> None:
        if self._agent_id is None or self._prompt_id is None:
            return
        try:
            meta = parse_object(self._path.with_suffix(".meta.json").read_bytes())
        except OSError:
            return
        if isinstance(meta, str):
            self.notes[f"{self._path.with_suffix('.meta.json').name}: {meta}"] += 1
            return
        self._see(
            Subagent(
                key=self._agent_id,
                type=_text(meta, "agentType"),
                description=_text(meta, "description"),
                tool_key=_text(meta, "toolUseId"),
                parent_key=_text(meta, "parentAgentId"),
            ),
            0,
        )

    def _see(self, part: Part, time_ns: int) -> None:
        self.sightings.append(
            Sighting(
                agent=SLUG,
                session_id=self._session_id,
                source=Source.TRANSCRIPT,
                time_ns=time_ns,
                turn_key=None if isinstance(part, SessionInfo) else self._prompt_id,
                subagent_id=(None if isinstance(part, SessionInfo | Subagent) else self._agent_id),
                part=part,
            )
        )

    def _read_user(self, line: dict[str, Any], time_ns: int) -> None:
        content = _dict(line.get("message")).get("content")
        results = [block for block in _dicts(content) if block.get("type") == "tool_result"]
        if isinstance(prompt_id := line.get("promptId"), str):
            if prompt_id != self._prompt_id:
                self._attempt = 0
            self._prompt_id = prompt_id
        if self._prompt_id is None:
            return
        self._read_info(line)
        if results:
            for block in results:
                self._read_result(line, block, time_ns)
            return
        text = _content_text(content)
        if text.startswith(INTERRUPTED):
            if self._agent_id is None:
                self._see(
                    TurnEnd(key="interrupt", end_ns=time_ns, outcome=Outcome.INTERRUPTED), time_ns
                )
            return
        if line.get("isMeta") or line.get("isCompactSummary"):
            return
        if self._agent_id is not None:
            self._see(Subagent(key=self._agent_id, start_ns=time_ns), time_ns)
            return
        self._see(
            _prompt(text, time_ns, origin=_text(line, "turnOrigin")),
            time_ns,
        )

    def _read_result(self, line: dict[str, Any], block: dict[str, Any], time_ns: int) -> None:
        tool_id = block.get("tool_use_id")
        if not isinstance(tool_id, str):
            return
        name, tool_input = self._tools.pop(tool_id, [None, None])
        response = line.get("toolUseResult")
        failed = block.get("is_error") is True
        text = _content_text(block.get("content"))
        denial = _text(line, "toolDenialKind")
        error_type = None
        if failed:
            error_type = "permission_denied" if denial else _tool_error_type(text)
            if isinstance(response, str) and response.startswith(INTERRUPTED):
                error_type = "interrupted"
        self._see(
            ToolCall(
                key=tool_id,
                end_ns=time_ns,
                output=None if failed else _output(response if response is not None else text),
                error_type=error_type,
                error_message=text if failed else None,
                exit_code=_exit_code(text) if failed else None,
            ),
            time_ns,
        )
        for edit in _edits(
            tool_id,
            name,
            tool_input,
            None if isinstance(response, str) else response,
            failed=failed,
        ):
            self._see(edit, time_ns)
        launched = response.get("agentId") if isinstance(response, dict) else None
        if isinstance(launched, str):
            self._see(Subagent(key=launched, tool_key=tool_id), time_ns)
        decision = _dict(line.get("permissionDecision"))
        source = _text(decision, "source") or ""
        if source.startswith("user") or denial == "user-rejected":
            accepted = decision.get("decision") == "accept"
            self._see(
                PermissionAsk(
                    key=f"decision:{tool_id}",
                    tool_key=tool_id,
                    decision="allow" if accepted else "deny",
                    decided_by="user",
                ),
                time_ns,
            )

    def _read_assistant(self, line: dict[str, Any], time_ns: int) -> None:
        message = _dict(line.get("message"))
        key = _text(message, "id")
        if key is None or self._prompt_id is None:
            return
        self._read_info(line)
        request_id = _text(line, "requestId")
        if line.get("isApiErrorMessage") or message.get("model") == "<synthetic>":
            self._read_api_error_message(line, message, request_id, time_ns)
            return
        start_ns = self._requests.get(_text(line, "requestRef") or "")
        self._attempt = 0
        texts: list[str] = []
        tools: list[str] = []
        for position, block in enumerate(_dicts(message.get("content"))):
            index = line.get("apiBlockIndex")
            index = index if isinstance(index, int) else position
            kind = block.get("type")
            if kind in {"thinking", "redacted_thinking"}:
                duration = _milliseconds(line, "thinkingDurationMs")
                self._see(
                    Thinking(
                        key=f"{key}:{index}",
                        call_key=key,
                        start_ns=time_ns - duration if duration is not None else None,
                        end_ns=time_ns,
                        text=_text(block, "thinking"),
                        redacted=kind == "redacted_thinking" or not block.get("thinking"),
                    ),
                    time_ns,
                )
            elif kind == "text":
                texts.append(_text(block, "text") or "")
            elif kind == "tool_use" and isinstance(tool_id := block.get("id"), str):
                tools.append(tool_id)
                name, tool_input = _text(block, "name"), block.get("input")
                if name in EDITING_TOOLS:
                    self._tools[tool_id] = [name, tool_input]
                self._see(_tool(tool_id, name, tool_input, block, start_ns=time_ns), time_ns)
        stop_reason = _text(message, "stop_reason")
        self._see(
            ModelCall(
                key=key,
                response_id=key,
                request_id=request_id,
                requested_model=_text(line, "requestedModel"),
                model=_text(message, "model"),
                provider="anthropic",
                start_ns=start_ns,
                end_ns=time_ns,
                # A message cut off in the middle was never counted: it says one token.
                usage=None if stop_reason is None else _usage(_dict(message.get("usage"))),
                stop_reason=stop_reason,
                error_type="interrupted" if line.get("isAbortedMidStream") else None,
                output_text="\n".join(texts) or None,
                tool_call_ids=tuple(tools) or None,
            ),
            time_ns,
        )
        if stop_reason in {"end_turn", "stop_sequence", "max_tokens", "refusal"}:
            text = "\n".join(texts) or None
            if self._agent_id is None:
                self._see(
                    TurnEnd(
                        key=f"answer:{key}",
                        end_ns=time_ns,
                        outcome=Outcome.COMPLETED,
                        message=text,
                    ),
                    time_ns,
                )
            else:
                self._see(Subagent(key=self._agent_id, end_ns=time_ns, output=text), time_ns)

    def _read_api_error_message(
        self, line: dict[str, Any], message: dict[str, Any], request_id: str | None, time_ns: int
    ) -> None:
        """Read the line that tells the user that the model could not be reached: no answer."""
        text = _content_text(message.get("content"))
        status = line.get("apiErrorStatus")
        if line.get("isApiErrorMessage"):
            self._attempt += 1
            self._see(
                ModelCall(
                    key=request_id or f"attempt:{_text(line, 'uuid')}",
                    request_id=request_id,
                    provider="anthropic",
                    requested_model=_text(line, "requestedModel"),
                    start_ns=self._last_request(),
                    end_ns=time_ns,
                    status_code=status if isinstance(status, int) else None,
                    error_type=(
                        str(status)
                        if isinstance(status, int)
                        else _text(line, "apiError") or _text(line, "error") or "unknown"
                    ),
                    error_message=text,
                    attempt=self._attempt,
                ),
                time_ns,
            )
            if self._agent_id is None:
                self._see(
                    TurnEnd(
                        key=f"error:{_text(line, 'uuid')}",
                        end_ns=time_ns,
                        outcome=Outcome.FAILED,
                        message=text,
                        error_type=_text(line, "error") or "unknown",
                    ),
                    time_ns,
                )
            else:
                self._see(Subagent(key=self._agent_id, end_ns=time_ns, output=text), time_ns)

    def _read_system(self, line: dict[str, Any], time_ns: int) -> None:
        subtype = line.get("subtype")
        if self._prompt_id is None:
            return
        if subtype == "api_error":
            error = _dict(line.get("error"))
            status = error.get("status")
            connection = _dict(error.get("connection"))
            request_id = _text(error, "requestId")
            self._attempt += 1
            self._see(
                ModelCall(
                    key=request_id or f"attempt:{_text(line, 'uuid')}",
                    request_id=request_id,
                    provider="anthropic",
                    start_ns=self._last_request(),
                    end_ns=time_ns,
                    status_code=status if isinstance(status, int) else None,
                    error_type=(
                        str(status)
                        if isinstance(status, int)
                        else _text(connection, "code") or "connection_error"
                    ),
                    error_message=_text(error, "formatted") or _text(error, "message"),
                    attempt=self._attempt,
                ),
                time_ns,
            )
        elif subtype == "compact_boundary":
            compact = _dict(line.get("compactMetadata"))
            duration = _milliseconds(compact, "durationMs")
            self._see(
                Compaction(
                    key="compaction",
                    trigger=_text(compact, "trigger"),
                    start_ns=time_ns - duration if duration is not None else None,
                    end_ns=time_ns,
                    tokens_before=_count(compact, "preTokens"),
                    tokens_after=_count(compact, "postTokens"),
                ),
                time_ns,
            )

    def _read_attachment(self, line: dict[str, Any], time_ns: int) -> None:
        attachment = _dict(line.get("attachment"))
        if attachment.get("type") != "queued_command" or self._prompt_id is None:
            return
        origin = "human" if attachment.get("humanTurn") else "task_notification"
        self._see(
            _prompt(_content_text(attachment.get("prompt")), time_ns, origin=origin, mid_turn=True),
            time_ns,
        )

    def _read_info(self, line: dict[str, Any]) -> None:
        info = SessionInfo(
            key="session",
            agent_version=_text(line, "version"),
            cwd=_text(line, "cwd"),
            git_branch=_text(line, "gitBranch"),
            transcript=str(self._path) if self._agent_id is None else None,
        )
        if info != self._info:
            self._info = info
            self._see(info, 0)

    def _last_request(self) -> int | None:
        return next(reversed(self._requests.values()), None)


def _prompt(
    text: str, time_ns: int, *, origin: str | None = None, mid_turn: bool | None = None
) -> Prompt:
    if text.startswith("<task-notification>"):
        origin = "task_notification"
    elif text.startswith(("<command-name>", "<command-message>")):
        origin = "command"
    # Hook and transcript have no id in common for a prompt but its text.
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Prompt(key=key, text=text, origin=origin, start_ns=time_ns, mid_turn=mid_turn)


def _tool(
    key: str,
    name: str | None,
    tool_input: Any,
    payload: dict[str, Any],
    *,
    start_ns: int | None = None,
    end_ns: int | None = None,
    duration_ns: int | None = None,
    output: str | None = None,
    error_type: str | None = None,
    error_message: str | None = None,
    exit_code: int | None = None,
) -> ToolCall:
    return ToolCall(
        key=key,
        name=name,
        start_ns=start_ns,
        end_ns=end_ns,
        duration_ns=duration_ns,
        input=_json(tool_input),
        output=output,
        error_type=error_type,
        error_message=error_message,
        exit_code=exit_code,
        input_digest=_digest(name, tool_input),
        mcp_server=_text(_dict(payload.get("mcp_server")), "name"),
    )


def _edits(
    tool_id: str, name: str | None, tool_input: Any, response: Any, *, failed: bool
) -> Iterator[FileEdit]:
    """Yield the file edit of an editing tool, from its result or else from what was asked."""
    if name not in EDITING_TOOLS or not isinstance(tool_input, dict):
        return
    asked = tool_input
    edit = FileEdit(
        key=f"{tool_id}:0",
        tool_key=tool_id,
        path=_text(asked, "file_path") or _text(asked, "notebook_path"),
        failed=failed,
    )
    if failed:
        yield edit
        return
    result = _dict(response)
    hunks = _dicts(result.get("structuredPatch"))
    operation = _text(result, "type") or ("update" if name != "Write" else None)
    if hunks:
        lines = [text for hunk in hunks for text in (_hunk_head(hunk), *_texts(hunk.get("lines")))]
    else:
        old = _text(asked, "old_string") or ""
        new = _text(asked, "new_string") or _text(asked, "content") or ""
        new = new or _text(asked, "new_source") or ""
        lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm=""))[2:]
    yield replace(
        edit,
        operation=operation,
        lines_added=sum(line.startswith("+") for line in lines),
        lines_removed=sum(line.startswith("-") for line in lines),
        diff="\n".join(lines) or None,
    )


def _hunk_head(hunk: dict[str, Any]) -> str:
    old, new = (f"{hunk.get(s + 'Start')},{hunk.get(s + 'Lines')}" for s in ("old", "new"))
    return f"@@ -{old} +{new} @@"


def _usage(usage: dict[str, Any]) -> Usage:
    read = _count(usage, "cache_read_input_tokens")
    write = _count(usage, "cache_creation_input_tokens")
    fresh = _count(usage, "input_tokens")
    return Usage(
        input_tokens=None if fresh is None else fresh + (read or 0) + (write or 0),
        output_tokens=_count(usage, "output_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=write,
        reasoning_tokens=_count(_dict(usage.get("output_tokens_details")), "thinking_tokens"),
    )


def _tool_error_type(message: str) -> str:
    if _exit_code(message) is not None:
        return "exit_nonzero"
    if message.startswith(("The user doesn't want", "Permission to use")):
        return "permission_denied"
    return "timeout" if "timed out" in message[:200] else "tool_error"


def _exit_code(message: str) -> int | None:
    match = re.match(r"(?:Error: )?Exit code (\d{1,5})\b", message)
    return int(match[1]) if match else None


def _output(response: Any) -> str | None:
    if isinstance(response, dict):
        # The whole file before the edit; the diff tells what matters.
        response = {name: value for name, value in response.items() if name != "originalFile"}
    return response if isinstance(response, str) or response is None else _json(response)


def _head_of(payload: bytes) -> dict[str, Any]:
    """Return the leading text fields of a payload that was cut: who it is about comes first."""
    head = payload[:65536].decode("utf-8", "replace")
    fields: dict[str, Any] = {}
    for name, value in re.findall(r'"(\w+)":("(?:[^"\\]|\\.)*")', head):
        fields.setdefault(name, orjson.loads(value) if "\\u" not in value else value[1:-1])
    return fields


def _digest(name: str | None, tool_input: Any) -> str | None:
    if name is None:
        return None
    data = orjson.dumps([name, tool_input], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()[:16]


def _session_of_path(path: Path) -> str:
    return path.parent.parent.name if path.parent.name == "subagents" else path.stem


def _agent_of_path(path: Path) -> str | None:
    return path.stem.removeprefix("agent-") if path.parent.name == "subagents" else None


def _version(ai_agent: str) -> str | None:
    match = re.match(r"claude-code_(\d+)-(\d+)-(\d+)", ai_agent)
    return ".".join(match.groups()) if match else None


def _pid(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _time_ns(stamp: Any) -> int | None:
    if not isinstance(stamp, str):
        return None
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000


def _milliseconds(record: dict[str, Any], name: str) -> int | None:
    """Return a duration given in milliseconds, in nanoseconds."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return None
    return int(value * 1_000_000)


def _count(record: dict[str, Any], name: str) -> int | None:
    value = record.get(name)
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return value if usable else None


def _text(record: dict[str, Any], name: str) -> str | None:
    value = record.get(name)
    return value if isinstance(value, str) else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_text(block, "text") or "" for block in _dicts(content))


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()

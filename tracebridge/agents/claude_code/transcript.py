"""Transcript files to sightings: the session's own and those of its subagents."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tracebridge.agents import Cursor, Reading
from tracebridge.agents.claude_code.payload import (
    EDITING_TOOLS,
    SLUG,
    content_text,
    exit_code_of,
    file_edits,
    output_of,
    prompt,
    tool_call,
    tool_error_type,
    usage_of,
)
from tracebridge.fields import count_of, dict_of, dicts_in, moment_of, nanoseconds_of, text_of
from tracebridge.lines import parse_object, read_objects
from tracebridge.model import (
    Compaction,
    ModelCall,
    Outcome,
    Part,
    PermissionAsk,
    SessionInfo,
    Sighting,
    Source,
    Subagent,
    Thinking,
    ToolCall,
    TurnEnd,
)

# Where a turn was neither answered nor failed, the transcript says so in the user's name.
INTERRUPTED = "[Request interrupted by user"
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
        # Recent requests: id to start and model.
        self._requests: dict[str, list[Any]] = dict(memory.get("requests", {}))
        # Answers whose request is not told yet: request id to turn and call.
        self._awaiting: dict[str, list[Any]] = dict(memory.get("awaiting", {}))
        # A compaction stands before the line that says whose it is.
        self._compaction: list[Any] | None = memory.get("compaction")
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
            "awaiting": dict(list(self._awaiting.items())[-50:]),
            "compaction": self._compaction,
            "attempt": self._attempt,
            "session_id": self._session_id,
            "tools": dict(list(self._tools.items())[-50:]),
        }

    def read(self, line: dict[str, Any]) -> None:
        kind = text_of(line, "type")
        if kind in SILENT_LINES:
            return
        time_ns = moment_of(line.get("timestamp"))
        if isinstance(session_id := line.get("sessionId"), str):
            self._session_id = session_id
        if kind == "api-request":
            self._read_request(line, time_ns)
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
                type=text_of(meta, "agentType"),
                description=text_of(meta, "description"),
                tool_key=text_of(meta, "toolUseId"),
                parent_key=text_of(meta, "parentAgentId"),
            ),
            0,
        )

    def _read_request(self, line: dict[str, Any], time_ns: int | None) -> None:
        request = text_of(line, "id")
        if request is None or time_ns is None:
            return
        model = text_of(dict_of(line.get("params")), "model")
        self._requests[request] = [time_ns, model]
        if request in self._awaiting:
            turn_key, key = self._awaiting.pop(request)
            self._see(ModelCall(key=key, start_ns=time_ns), time_ns, turn_key)

    def _see(self, part: Part, time_ns: int, turn_key: str | None = None) -> None:
        self.sightings.append(
            Sighting(
                agent=SLUG,
                session_id=self._session_id,
                source=Source.TRANSCRIPT,
                time_ns=time_ns,
                turn_key=(None if isinstance(part, SessionInfo) else turn_key or self._prompt_id),
                subagent_id=(None if isinstance(part, SessionInfo | Subagent) else self._agent_id),
                part=part,
            )
        )

    def _read_user(self, line: dict[str, Any], time_ns: int) -> None:
        content = dict_of(line.get("message")).get("content")
        results = [block for block in dicts_in(content) if block.get("type") == "tool_result"]
        if isinstance(prompt_id := line.get("promptId"), str):
            if prompt_id != self._prompt_id:
                self._attempt = 0
            self._prompt_id = prompt_id
        if self._prompt_id is None:
            return
        if self._compaction is not None and isinstance(prompt_id, str):
            at_ns, fields = self._compaction
            self._compaction = None
            self._see(Compaction(key="compaction", **fields), at_ns)
        self._read_info(line)
        if results:
            for block in results:
                self._read_result(line, block, time_ns)
            return
        text = content_text(content)
        if text.startswith(INTERRUPTED):
            if self._agent_id is None:
                self._see(
                    TurnEnd(key="interrupt", end_ns=time_ns, outcome=Outcome.INTERRUPTED), time_ns
                )
            return
        if line.get("isMeta") or line.get("isCompactSummary"):
            return
        if text.startswith("<local-command-"):
            # What a slash command printed: its end.
            ended = TurnEnd(key="command", end_ns=time_ns, outcome=Outcome.COMPLETED)
            self._see(ended, time_ns)
            return
        if self._agent_id is not None:
            self._see(Subagent(key=self._agent_id, start_ns=time_ns), time_ns)
            return
        self._see(
            prompt(text, time_ns, origin=text_of(line, "turnOrigin")),
            time_ns,
        )

    def _read_result(self, line: dict[str, Any], block: dict[str, Any], time_ns: int) -> None:
        tool_id = block.get("tool_use_id")
        if not isinstance(tool_id, str):
            return
        name, tool_input = self._tools.pop(tool_id, [None, None])
        response = line.get("toolUseResult")
        failed = block.get("is_error") is True
        text = content_text(block.get("content"))
        denial = text_of(line, "toolDenialKind")
        error_type = None
        if failed:
            error_type = "permission_denied" if denial else tool_error_type(text)
            if denial == "user-rejected" and not line.get("toolDenialBeforeRun"):
                # It ran and was broken off; nobody had been asked.
                denial, error_type = None, "interrupted"
        self._see(
            ToolCall(
                key=tool_id,
                end_ns=time_ns,
                output=None if failed else output_of(response if response is not None else text),
                error_type=error_type,
                error_message=text if failed else None,
                exit_code=exit_code_of(text) if failed else None,
            ),
            time_ns,
        )
        for edit in file_edits(
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
        decision = dict_of(line.get("permissionDecision"))
        source = text_of(decision, "source") or ""
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
        message = dict_of(line.get("message"))
        key = text_of(message, "id")
        if key is None or self._prompt_id is None:
            return
        self._read_info(line)
        request_id = text_of(line, "requestId")
        if line.get("isApiErrorMessage") or message.get("model") == "<synthetic>":
            self._read_api_error_message(line, message, request_id, time_ns)
            return
        request = text_of(line, "requestRef")
        start_ns = None
        if request in self._requests:
            start_ns = self._requests[request][0]
        elif request is not None:
            # Interactively the lines of an answer can come before that of its request.
            self._awaiting[request] = [self._prompt_id, key]
        self._attempt = 0
        texts: list[str] = []
        tools: list[str] = []
        indexes: list[str] = []
        for position, block in enumerate(dicts_in(message.get("content"))):
            index = line.get("apiBlockIndex")
            index = index if isinstance(index, int) else position
            indexes.append(str(index))
            kind = text_of(block, "type")
            if kind in {"thinking", "redacted_thinking"}:
                duration = nanoseconds_of(line, "thinkingDurationMs")
                self._see(
                    Thinking(
                        key=f"{key}:{index}",
                        call_key=key,
                        start_ns=time_ns - duration if duration is not None else None,
                        end_ns=time_ns,
                        text=text_of(block, "thinking"),
                        redacted=kind == "redacted_thinking" or not block.get("thinking"),
                    ),
                    time_ns,
                )
            elif kind == "text":
                texts.append(text_of(block, "text") or "")
            elif kind == "tool_use" and isinstance(tool_id := block.get("id"), str):
                tools.append(tool_id)
                name, tool_input = text_of(block, "name"), block.get("input")
                if name in EDITING_TOOLS:
                    self._tools[tool_id] = [name, tool_input]
                self._see(tool_call(tool_id, name, tool_input, block, start_ns=time_ns), time_ns)
        stop_reason = text_of(message, "stop_reason")
        self._see(
            ModelCall(
                key=key,
                response_id=key,
                request_id=request_id,
                requested_model=text_of(line, "requestedModel"),
                model=text_of(message, "model"),
                provider="anthropic",
                start_ns=start_ns,
                end_ns=time_ns,
                # A message cut off in the middle was never counted: it says one token.
                usage=None if stop_reason is None else usage_of(dict_of(message.get("usage"))),
                stop_reason=stop_reason,
                error_type="interrupted" if line.get("isAbortedMidStream") else None,
                output_text="\n".join(texts) or None,
                tool_call_ids=tuple(tools) or None,
                blocks=tuple(indexes) or None,
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
        text = content_text(message.get("content"))
        status = line.get("apiErrorStatus")
        if line.get("isApiErrorMessage"):
            start_ns, model = self._last_request()
            self._attempt += 1
            self._see(
                ModelCall(
                    key=request_id or f"attempt:{text_of(line, 'uuid')}",
                    request_id=request_id,
                    provider="anthropic",
                    requested_model=text_of(line, "requestedModel") or model,
                    start_ns=start_ns,
                    end_ns=time_ns,
                    status_code=status if isinstance(status, int) else None,
                    error_type=(
                        str(status)
                        if isinstance(status, int)
                        else text_of(line, "apiError") or text_of(line, "error") or "unknown"
                    ),
                    error_message=text,
                    attempt=self._attempt,
                ),
                time_ns,
            )
            if self._agent_id is None:
                self._see(
                    TurnEnd(
                        key=f"error:{text_of(line, 'uuid')}",
                        end_ns=time_ns,
                        outcome=Outcome.FAILED,
                        message=text,
                        error_type=text_of(line, "error") or "unknown",
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
            error = dict_of(line.get("error"))
            status = error.get("status")
            connection = dict_of(error.get("connection"))
            request_id = text_of(error, "requestId")
            start_ns, model = self._last_request()
            self._attempt += 1
            self._see(
                ModelCall(
                    key=request_id or f"attempt:{text_of(line, 'uuid')}",
                    request_id=request_id,
                    provider="anthropic",
                    requested_model=model,
                    start_ns=start_ns,
                    end_ns=time_ns,
                    status_code=status if isinstance(status, int) else None,
                    error_type=(
                        str(status)
                        if isinstance(status, int)
                        else text_of(connection, "code") or "connection_error"
                    ),
                    error_message=text_of(error, "formatted") or text_of(error, "message"),
                    attempt=self._attempt,
                ),
                time_ns,
            )
        elif subtype == "compact_boundary":
            compact = dict_of(line.get("compactMetadata"))
            duration = nanoseconds_of(compact, "durationMs")
            self._compaction = [
                time_ns,
                {
                    "trigger": text_of(compact, "trigger"),
                    "start_ns": time_ns - duration if duration is not None else None,
                    "end_ns": time_ns,
                    "tokens_before": count_of(compact, "preTokens"),
                    "tokens_after": count_of(compact, "postTokens"),
                },
            ]

    def _read_attachment(self, line: dict[str, Any], time_ns: int) -> None:
        attachment = dict_of(line.get("attachment"))
        if attachment.get("type") != "queued_command" or self._prompt_id is None:
            return
        origin = "human" if attachment.get("humanTurn") else "task_notification"
        self._see(
            prompt(content_text(attachment.get("prompt")), time_ns, origin=origin, mid_turn=True),
            time_ns,
        )

    def _read_info(self, line: dict[str, Any]) -> None:
        info = SessionInfo(
            key="session",
            agent_version=text_of(line, "version"),
            cwd=text_of(line, "cwd"),
            git_branch=text_of(line, "gitBranch"),
            transcript=str(self._path) if self._agent_id is None else None,
        )
        if info != self._info:
            self._info = info
            self._see(info, 0)

    def _last_request(self) -> tuple[int | None, str | None]:
        """Return start and model of the request that was made last."""
        last = next(reversed(self._requests.values()), None)
        return (None, None) if last is None else (last[0], last[1])


def _session_of_path(path: Path) -> str:
    return path.parent.parent.name if path.parent.name == "subagents" else path.stem


def _agent_of_path(path: Path) -> str | None:
    return path.stem.removeprefix("agent-") if path.parent.name == "subagents" else None

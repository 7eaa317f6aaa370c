"""Hook events to sightings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tracebridge.agents import Reading
from tracebridge.agents.claude_code.payload import (
    SLUG,
    exit_code_of,
    file_edits,
    input_digest,
    output_of,
    prompt,
    tool_call,
    tool_error_type,
)
from tracebridge.fields import dicts_in, nanoseconds_of, text_of
from tracebridge.lines import parse_head, parse_object
from tracebridge.model import (
    Compaction,
    HookEvent,
    Outcome,
    Part,
    PermissionAsk,
    SessionInfo,
    Sighting,
    Source,
    Subagent,
    TurnEnd,
)

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
SILENT_EVENTS = frozenset(
    {"Notification", "PostToolBatch", "SessionEnd", "SessionStart", "UserPromptExpansion"}
)


def parse_hook(event: HookEvent) -> Reading:
    payload = parse_object(event.payload)
    notes: Counter[str] = Counter()
    if isinstance(payload, str):
        cut = event.payload_bytes > len(event.payload)
        notes[f"hook payload {'cut at its cap' if cut else payload}"] += 1
        payload = parse_head(event.payload) if cut else {}
    session_id = text_of(payload, "session_id")
    name = text_of(payload, "hook_event_name")
    if session_id is None or name is None:
        notes["hook event without session_id or hook_event_name"] += 1
        return Reading(notes=notes)
    prompt_id = text_of(payload, "prompt_id")
    agent_id = text_of(payload, "agent_id")
    parts = tuple(_hook_parts(name, payload, event))
    if not parts and name not in SILENT_EVENTS:
        notes[f"hook event {name} ignored"] += 1
    info = SessionInfo(
        key="session",
        cwd=text_of(payload, "cwd"),
        model=text_of(payload, "model"),
        permission_mode=text_of(payload, "permission_mode"),
        agent_version=_version(event.env.get("AI_AGENT", "")),
        pid=_pid(event.env.get("CLAUDE_PID", "")),
        transcript=text_of(payload, "transcript_path"),
        ended_ns=event.time_ns if name == "SessionEnd" else None,
        end_reason=text_of(payload, "reason") if name == "SessionEnd" else None,
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
    tool_id = text_of(payload, "tool_use_id")
    tool_name = text_of(payload, "tool_name")
    tool_input = payload.get("tool_input")
    agent_id = text_of(payload, "agent_id")
    if name == "UserPromptSubmit":
        yield prompt(text_of(payload, "prompt") or "", now)
    elif name == "PreToolUse" and tool_id:
        yield tool_call(tool_id, tool_name, tool_input, payload, start_ns=now)
    elif name == "PostToolUse" and tool_id:
        response = payload.get("tool_response")
        yield tool_call(
            tool_id,
            tool_name,
            tool_input,
            payload,
            end_ns=now,
            duration_ns=nanoseconds_of(payload, "duration_ms"),
            output=output_of(response),
        )
        yield from file_edits(tool_id, tool_name, tool_input, response, failed=False)
        launched = response.get("agentId") if isinstance(response, dict) else None
        if isinstance(launched, str):
            yield Subagent(key=launched, tool_key=tool_id)
    elif name == "PostToolUseFailure" and tool_id:
        error = text_of(payload, "error") or "failed"
        yield tool_call(
            tool_id,
            tool_name,
            tool_input,
            payload,
            end_ns=now,
            duration_ns=nanoseconds_of(payload, "duration_ms"),
            error_type="interrupted" if payload.get("is_interrupt") else tool_error_type(error),
            error_message=error,
            exit_code=exit_code_of(error),
        )
        yield from file_edits(tool_id, tool_name, tool_input, None, failed=True)
    elif name == "PermissionRequest" and tool_name:
        digest = input_digest(tool_name, tool_input)
        yield PermissionAsk(
            key=f"{digest}:{now}", tool_name=tool_name, input_digest=digest, start_ns=now
        )
    elif name == "PermissionDenied" and tool_id:
        yield tool_call(
            tool_id,
            tool_name,
            tool_input,
            payload,
            end_ns=now,
            error_type="permission_denied",
            error_message=text_of(payload, "reason"),
        )
        yield PermissionAsk(
            key=f"decision:{tool_id}", tool_key=tool_id, decision="deny", decided_by="policy"
        )
    elif name == "SubagentStart" and agent_id:
        yield Subagent(key=agent_id, type=text_of(payload, "agent_type"), start_ns=now)
    elif name == "SubagentStop" and agent_id:
        yield Subagent(
            key=agent_id,
            type=text_of(payload, "agent_type"),
            end_ns=now,
            output=text_of(payload, "last_assistant_message"),
        )
    elif name in {"PreCompact", "PostCompact"}:
        yield Compaction(
            key="compaction",
            trigger=text_of(payload, "trigger"),
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
            message=text_of(payload, "last_assistant_message"),
            running=tuple(
                sorted(
                    task["id"]
                    for task in dicts_in(payload.get("background_tasks"))
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
            message=text_of(payload, "last_assistant_message"),
            error_type=text_of(payload, "error") or "unknown",
        )


def _version(ai_agent: str) -> str | None:
    match = re.match(r"claude-code_(\d+)-(\d+)-(\d+)", ai_agent)
    return ".".join(match.groups()) if match else None


def _pid(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None

"""Hook events to sightings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracebridge.agents import Reading
from tracebridge.agents.gemini_cli.payload import (
    SLUG,
    exit_code_of,
    file_edits,
    input_digest,
    prompt,
)
from tracebridge.agents.gemini_cli.prompts import compress_key, remember_session, turn_at
from tracebridge.agents.gemini_cli.telemetry import read_telemetry
from tracebridge.fields import as_json, dict_of, moment_of, text_of
from tracebridge.lines import parse_object
from tracebridge.model import (
    UNNAMED,
    Compaction,
    HookEvent,
    Outcome,
    Part,
    PermissionAsk,
    SessionInfo,
    Sighting,
    Source,
    ToolCall,
    TurnEnd,
)

SILENT_EVENTS = frozenset({"SessionStart", "SessionEnd", "Notification", "PreCompress"})


def parse_hook(event: HookEvent) -> Reading:
    payload = parse_object(event.payload)
    notes: Counter[str] = Counter()
    if isinstance(payload, str):
        cut = event.payload_bytes > len(event.payload)
        notes[f"hook payload {'cut at its cap' if cut else payload}"] += 1
        return Reading(notes=notes)
    if "telemetry" in payload:
        return read_telemetry(payload["telemetry"])
    session_id = text_of(payload, "session_id")
    name = text_of(payload, "hook_event_name")
    if session_id is None or name is None:
        notes["hook event without session_id or hook_event_name"] += 1
        return Reading(notes=notes)
    parts = tuple(_parts(name, payload, event.time_ns))
    if not parts and name not in SILENT_EVENTS:
        notes[f"hook event {name[:40]} ignored"] += 1
    chat = text_of(payload, "transcript_path")
    over = name == "SessionEnd"
    info = SessionInfo(
        key="session",
        cwd=text_of(payload, "cwd"),
        pid=_pid(event.env.get("TRACEBRIDGE_AGENT_PID", "")),
        transcript=chat,
        ended_ns=event.time_ns if over else None,
        end_reason=text_of(payload, "reason") if over else None,
    )
    session = Sighting(
        agent=SLUG,
        session_id=session_id,
        source=Source.HOOK,
        # The same for each event of a session as long as nothing changes.
        time_ns=event.time_ns if over or name == "SessionStart" else 0,
        part=info,
    )
    if not parts:
        return Reading(sightings=(session,), notes=notes)
    # The hook itself starts some milliseconds later.
    said_ns = moment_of(payload.get("timestamp")) or event.time_ns
    path = Path(chat) if chat else None
    if path is not None:
        remember_session(path, session_id)
    turn_key = turn_at(path, session_id, said_ns, beginning=name == "BeforeAgent")
    if name == "PreCompress":
        if turn_key.startswith(UNNAMED):
            return Reading(sightings=(session,), notes=notes)
        turn_key = compress_key(turn_key)
    told = (
        Sighting(
            agent=SLUG,
            session_id=session_id,
            source=Source.HOOK,
            time_ns=event.time_ns,
            turn_key=turn_key,
            part=part,
        )
        for part in parts
    )
    return Reading(sightings=(session, *told), notes=notes)


def _parts(name: str, payload: dict[str, Any], now: int) -> Iterator[Part]:
    tool_name, tool_input = text_of(payload, "tool_name"), payload.get("tool_input")
    digest = input_digest(tool_name, tool_input)
    key = f"{UNNAMED}{digest}:{now}"
    if name == "BeforeAgent":
        yield prompt(text_of(payload, "prompt") or "", now)
    elif name == "BeforeTool" and digest:
        yield ToolCall(
            key=key,
            name=tool_name,
            start_ns=now,
            input=as_json(tool_input),
            input_digest=digest,
        )
    elif name == "AfterTool" and digest:
        response = dict_of(payload.get("tool_response"))
        said = response.get("llmContent")
        output = said if isinstance(said, str) else as_json(said)
        error = dict_of(response.get("error"))
        code = exit_code_of(tool_name, output)
        error_type = (text_of(error, "type") or "tool_error") if error else None
        failed = bool(error)
        yield ToolCall(
            key=key,
            name=tool_name,
            end_ns=now,
            output=None if failed else output,
            error_type=error_type or ("exit_nonzero" if code else None),
            error_message=text_of(error, "message"),
            exit_code=code,
            input_digest=digest,
        )
        yield from file_edits(
            key, tool_name, tool_input, response.get("returnDisplay"), failed=failed
        )
    elif name == "Notification" and payload.get("notification_type") == "ToolPermission":
        yield PermissionAsk(key=f"ask:{now}", start_ns=now)
    elif name == "PreCompress" and payload.get("trigger") == "manual":
        yield Compaction(key="compaction", trigger="manual", start_ns=now)
    elif name == "AfterAgent":
        # What it tells of the answer has pieces of it twice.
        yield TurnEnd(key="stop", end_ns=now, outcome=Outcome.COMPLETED)


def _pid(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None

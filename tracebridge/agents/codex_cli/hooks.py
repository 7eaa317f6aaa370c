"""Hook events, and what `notify` says, to sightings."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
from msgspec.structs import replace

from tracebridge.agents import Reading
from tracebridge.agents.codex_cli.payload import (
    APPLY_PATCH,
    SLUG,
    mcp_output,
    mcp_server,
    patched_files,
    prompt,
    tool_name,
)
from tracebridge.fields import as_json, dict_of, text_of
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
    ToolCall,
    TurnEnd,
)

SILENT_EVENTS = frozenset({"PostModelRequest", "PreModelRequest", "SessionEnd", "SessionStart"})
NOTIFICATION = "agent-turn-complete"


def parse_hook(event: HookEvent) -> Reading:
    payload = parse_object(event.payload)
    notes: Counter[str] = Counter()
    if isinstance(payload, str):
        cut = event.payload_bytes > len(event.payload)
        notes[f"hook payload {'cut at its cap' if cut else payload}"] += 1
        payload = parse_head(event.payload) if cut else {}
    if payload.get("type") == NOTIFICATION:
        return _read_notification(payload, event.time_ns)
    session_id = text_of(payload, "session_id")
    name = text_of(payload, "hook_event_name")
    if session_id is None or name is None:
        if not notes:
            notes["hook event without session_id or hook_event_name"] += 1
        return Reading(notes=notes)
    agent_id = text_of(payload, "agent_id")
    # A subagent's turn id is its own; the rollout tells whose turn it works for.
    turn_key = None if agent_id is not None else text_of(payload, "turn_id")
    parts = tuple(_hook_parts(name, payload, event.time_ns))
    if not parts and not notes and name not in SILENT_EVENTS:
        notes[f"hook event {name[:40]} ignored"] += 1
    info = SessionInfo(
        key="session",
        cwd=text_of(payload, "cwd"),
        model=text_of(payload, "model") if agent_id is None else None,
        permission_mode=text_of(payload, "permission_mode"),
        # Of a subagent's event it may be the subagent's.
        transcript=text_of(payload, "transcript_path") if agent_id is None else None,
        ended_ns=event.time_ns if name == "SessionEnd" else None,
        end_reason=text_of(payload, "reason") if name == "SessionEnd" else None,
    )
    sightings = [
        Sighting(
            agent=SLUG,
            session_id=session_id,
            source=Source.HOOK,
            # The same for each event of a session as long as nothing changes.
            time_ns=event.time_ns if info.ended_ns or name == "SessionStart" else 0,
            part=info,
        )
    ]
    if turn_key is not None or agent_id is not None:
        sightings += [
            Sighting(
                agent=SLUG,
                session_id=session_id,
                source=Source.HOOK,
                time_ns=event.time_ns,
                turn_key=turn_key,
                subagent_id=agent_id,
                part=part,
            )
            for part in parts
        ]
    return Reading(sightings=tuple(sightings), notes=notes)


def _hook_parts(name: str, payload: dict[str, Any], now: int) -> Iterator[Part]:
    agent_id = text_of(payload, "agent_id")
    if name == "UserPromptSubmit" and agent_id is None:
        said = text_of(payload, "prompt")
        if said is not None:
            yield prompt(said, now)
    elif name in {"PreToolUse", "PostToolUse"}:
        yield from _tool_parts(name, payload, now)
    elif name == "PermissionRequest":
        asked = dict_of(payload.get("tool_input"))
        yield PermissionAsk(
            key=f"ask:{now}",
            tool_name=tool_name(text_of(payload, "tool_name")),
            # It has what the tool has, and the reason.
            input_digest=_digest(payload, {k: v for k, v in asked.items() if k != "description"}),
            start_ns=now,
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
            # A turn of its own, that fires no Stop.
            yield TurnEnd(key="compacted", end_ns=now, outcome=Outcome.COMPLETED)
    elif name == "Stop" and agent_id is None:
        yield TurnEnd(
            key="stop",
            end_ns=now,
            outcome=Outcome.COMPLETED,
            message=text_of(payload, "last_assistant_message"),
        )
    elif name == "Interrupt" and agent_id is None:
        yield TurnEnd(key="interrupt", end_ns=now, outcome=Outcome.INTERRUPTED)


def _tool_parts(name: str, payload: dict[str, Any], now: int) -> Iterator[Part]:
    tool_id = text_of(payload, "tool_use_id")
    if tool_id is None:
        return
    asked = dict_of(payload.get("tool_input"))
    name_of_tool = tool_name(text_of(payload, "tool_name"))
    tool = ToolCall(
        key=tool_id, name=name_of_tool, input=as_json(asked), mcp_server=mcp_server(name_of_tool)
    )
    if name == "PreToolUse":
        yield replace(tool, start_ns=now, input_digest=_digest(payload, asked))
        return
    response = payload.get("tool_response")
    output = response if isinstance(response, str) else mcp_output(response)
    yield replace(tool, end_ns=now, output=output)
    if tool.name == APPLY_PATCH:
        # It fires for a patch that was applied. The rollout has the better diff.
        for edit in patched_files(
            tool_id, text_of(asked, "command") or "", text_of(payload, "cwd")
        ):
            removed = None if edit.operation == "delete" else edit.lines_removed
            yield replace(edit, diff=None, failed=False, lines_removed=removed)


def _digest(payload: dict[str, Any], asked: dict[str, Any]) -> str:
    """Return what a tool call and the question whether it may run have in common."""
    data = orjson.dumps([payload.get("tool_name"), asked], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()[:16]


def _read_notification(payload: dict[str, Any], now: int) -> Reading:
    """Read what `notify` says: that a turn of some thread is complete, and its rollout too.

    The thread may be a subagent's or one that made a title: alone it makes no turn.
    """
    thread_id, turn_id = text_of(payload, "thread-id"), text_of(payload, "turn-id")
    if thread_id is None or turn_id is None:
        return Reading(notes={"notification without thread-id or turn-id": 1})
    end = TurnEnd(
        key="notify",
        end_ns=now,
        outcome=Outcome.COMPLETED,
        message=text_of(payload, "last-assistant-message"),
    )
    sighting = Sighting(
        agent=SLUG,
        session_id=thread_id,
        source=Source.HOOK,
        time_ns=now,
        turn_key=turn_id,
        part=end,
    )
    return Reading(sightings=(sighting,))

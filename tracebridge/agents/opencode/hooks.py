"""Events of our plugin to sightings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tracebridge.agents import Reading
from tracebridge.agents.opencode.records import (
    SLUG,
    error_type_of,
    message_parts,
    outcome_of,
    part_parts,
    prompt_of,
)
from tracebridge.fields import count_of, dict_of, text_of
from tracebridge.lines import parse_object
from tracebridge.model import (
    HookEvent,
    ModelCall,
    Outcome,
    Part,
    PermissionAsk,
    SessionInfo,
    Sighting,
    Source,
    Subagent,
    TurnEnd,
)


def parse_hook(event: HookEvent) -> Reading:
    payload = parse_object(event.payload)
    notes: Counter[str] = Counter()
    if isinstance(payload, str):
        if event.payload:
            cut = event.payload_bytes > len(event.payload)
            notes[f"hook payload {'cut at its cap' if cut else payload}"] += 1
        # Without a payload it is the Python hook, started to see to the watcher.
        return Reading(notes=notes)
    kind, session = text_of(payload, "type"), text_of(payload, "session")
    turn = text_of(payload, "turn")
    if kind is None or session is None or turn is None:
        notes["hook event without type, session or turn"] += 1
        return Reading(notes=notes)
    subagent = text_of(payload, "subagent")
    parts = list(_parts(kind, payload, subagent, event))
    if not parts:
        notes[f"hook event {kind[:40]} ignored"] += 1

    def sighting(part: Part, turn_key: str | None) -> Sighting:
        return Sighting(
            agent=SLUG,
            session_id=session,
            source=Source.HOOK,
            time_ns=event.time_ns,
            turn_key=turn_key,
            subagent_id=None if turn_key is None or isinstance(part, Subagent) else subagent,
            part=part,
        )

    told = [sighting(part, turn) for part in parts]
    if kind == "prompt":
        database = text_of(payload, "database")
        info = SessionInfo(
            key="session",
            agent_version=text_of(payload, "version"),
            cwd=text_of(payload, "directory"),
            pid=event.pid or None,
            transcript=f"{database}/{session}" if database else None,
        )
        told.insert(0, sighting(info, None))
    return Reading(sightings=tuple(told), notes=notes)


def _parts(
    kind: str, payload: dict[str, Any], subagent: str | None, event: HookEvent
) -> Iterator[Part]:
    info, part = dict_of(payload.get("info")), dict_of(payload.get("part"))
    now = event.time_ns
    if kind == "prompt" and (key := text_of(info, "id")):
        if subagent is None:
            yield prompt_of(info, key, text_of(payload, "text"), text_of(payload, "origin"))
        else:
            yield Subagent(key=subagent, type=text_of(info, "agent"), start_ns=now)
    elif kind == "message" and (key := text_of(info, "id")):
        yield from message_parts(info, key, subagent, trigger=text_of(payload, "trigger"))
    elif kind == "part" and (key := text_of(part, "id")):
        message = text_of(part, "messageID")
        if message:
            yield from part_parts(part, key, message, subagent)
    elif kind == "idle":
        error = dict_of(payload.get("error"))
        answer = text_of(payload, "answer")
        if subagent is not None:
            yield Subagent(key=subagent, end_ns=now, output=answer)
        else:
            yield TurnEnd(
                key="stop",
                end_ns=now,
                outcome=outcome_of(error),
                message=answer if not error else text_of(dict_of(error.get("data")), "message"),
                error_type=error_type_of(error),
            )
    elif kind == "interrupted":
        yield TurnEnd(key="signal", end_ns=now, outcome=Outcome.INTERRUPTED)
    elif kind == "retry" and (key := text_of(payload, "call")):
        status = dict_of(payload.get("status"))
        attempt = count_of(status, "attempt")
        # The message says why in words; there is no status with it.
        yield ModelCall(
            key=f"{key}:{attempt}",
            end_ns=now,
            error_type="retried",
            error_message=text_of(status, "message"),
            attempt=attempt,
        )
    elif kind == "permission.asked":
        asked = dict_of(payload.get("asked"))
        if key := text_of(asked, "id"):
            yield PermissionAsk(
                key=key,
                tool_key=text_of(dict_of(asked.get("tool")), "callID"),
                tool_name=text_of(asked, "permission"),
                start_ns=now,
            )
    elif kind == "permission.replied":
        replied = dict_of(payload.get("replied"))
        if key := text_of(replied, "requestID"):
            denied = replied.get("reply") == "reject"
            yield PermissionAsk(
                key=key,
                end_ns=now,
                decision="deny" if denied else "allow",
                decided_by="user",
            )

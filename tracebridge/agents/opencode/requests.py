"""What a request at a gateway says of the session, turn and subagent that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracebridge.agents.opencode.records import SLUG
from tracebridge.model import CallIdentity

# How the instructions of the agent that writes a summary begin, after some punctuation.
SUMMARIZER = "You are a context summarization agent"
INSTRUCTIONS_LENGTH = 200


def identify_call(headers: Mapping[str, str], body: Mapping[str, Any]) -> CallIdentity | None:
    own = headers.get("x-session-id")
    parent = headers.get("x-parent-session-id")
    # Set by our plugin, which knows the outermost session; without it there is the next one.
    session_id = headers.get("x-tracebridge-session") or parent or own
    ours = "x-tracebridge-turn" in headers
    if session_id is None or not (ours or headers.get("user-agent", "").startswith("opencode/")):
        return None
    purpose = headers.get("x-tracebridge-purpose") if ours else _purpose(body)
    side = {"title": "auxiliary", "compaction": "compaction"}.get(purpose or "")
    subagent = own is not None and own != session_id
    return CallIdentity(
        agent=SLUG,
        session_id=session_id,
        turn_key=headers.get("x-tracebridge-turn"),
        subagent_id=own if subagent else None,
        request_class=side or ("subagent" if subagent else "main"),
        call_key=headers.get("x-tracebridge-call"),
    )


def _purpose(body: Mapping[str, Any]) -> str | None:
    """Return what a request serves, by what it cannot do: all but side requests have tools."""
    if body.get("tools") or body.get("tool_choice"):
        return None
    # Over OpenAI's APIs it stands in the conversation, which is no part of *body*: there it is the
    # database that tells a summary from a title.
    instructions = body.get("system")
    first = instructions[0] if isinstance(instructions, list) and instructions else instructions
    return "compaction" if SUMMARIZER in str(first)[:INSTRUCTIONS_LENGTH] else "title"

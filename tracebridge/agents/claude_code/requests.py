"""What a request at a gateway says of the session, turn and subagent that it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tracebridge.agents.claude_code.payload import SLUG, content_text
from tracebridge.fields import dicts_in
from tracebridge.model import CallIdentity

COMPACTION = "create a detailed summary of the conversation"
# Only with CLAUDE_CODE_GATEWAY_HINT_HEADERS=1.
DURATIONS = "x-claude-code-prev-tool-durations"
# Milliseconds, and no more than fit.
_DURATION = re.compile(r"[^=;]+=([0-9]{1,12})")


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
        request_class=headers.get("x-claude-code-request-class") or _class_of(body),
        tool_durations_ns=_tool_durations(headers, body),
    )


def _tool_durations(headers: Mapping[str, str], body: Mapping[str, Any]) -> dict[str, int]:
    """Return how long the tools took whose results a request brings, by tool call id.

    The header tells of them in the order in which they ended, as their results do: `Read=2;Bash=1013`.
    It is silent on one that was refused before it ran, and of fewer nobody can say whose they are.
    """
    told = headers.get(DURATIONS)
    if told is None:
        return {}
    users = [each for each in dicts_in(body.get("messages")) if each.get("role") == "user"]
    blocks = dicts_in(users[-1].get("content")) if users else []
    ids = [block.get("tool_use_id") for block in blocks if block.get("type") == "tool_result"]
    durations = [_DURATION.fullmatch(each) for each in told.split(";")]
    if len(ids) != len(durations):
        return {}
    return {
        tool_id: int(duration[1]) * 1_000_000
        for tool_id, duration in zip(ids, durations, strict=True)
        if isinstance(tool_id, str) and duration is not None
    }


def _class_of(body: Mapping[str, Any]) -> str | None:
    """Return what a request is for where no header says so, as far as it shows."""
    last: dict[str, Any] = next(reversed(dicts_in(body.get("messages"))), {})
    # The summary is asked for behind whatever the last turn ended with.
    asked = content_text(last.get("content"))
    return "compaction" if COMPACTION in asked else None


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

"""What a request at a gateway says of the session, turn and subagent that it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tracebridge.agents.claude_code.payload import SLUG, content_text
from tracebridge.fields import dicts_in
from tracebridge.model import CallIdentity

COMPACTION = "create a detailed summary of the conversation"


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
    )


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

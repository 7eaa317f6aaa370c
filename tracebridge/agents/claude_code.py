"""Claude Code: hook events and transcripts to sightings, and what its requests say of themselves.

Format facts, each seen with 2.1.329.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tracebridge.agents import Cursor, Reading
from tracebridge.model import CallIdentity, HookEvent

SLUG = "claude-code"
ALIASES = ("claude",)
TESTED_VERSION = "2.1.329"


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
    except (ValueError, AttributeError):
        return None
    return session_id if isinstance(session_id, str) else None


def parse_hook(event: HookEvent) -> Reading:
    raise NotImplementedError


def transcripts(path: Path) -> Iterable[Path]:
    raise NotImplementedError


def find_transcript(session_id: str, home: Path) -> Path | None:
    raise NotImplementedError


def read_transcript(path: Path, cursor: Cursor) -> Reading:
    raise NotImplementedError

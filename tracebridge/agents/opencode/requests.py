"""What a request at a gateway says of the session, turn and subagent that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracebridge.agents.opencode.records import SLUG
from tracebridge.model import CallIdentity


def identify_call(headers: Mapping[str, str], body: Mapping[str, Any]) -> CallIdentity | None:
    own = headers.get("x-session-id")
    parent = headers.get("x-parent-session-id")
    # Set by our plugin, which knows the outermost session; without it there is the next one.
    session_id = headers.get("x-tracebridge-session") or parent or own
    ours = "x-tracebridge-turn" in headers
    if session_id is None or not (ours or headers.get("user-agent", "").startswith("opencode/")):
        return None
    # Without our plugin a title shows by what it cannot do: every other request has tools.
    side = "x-tracebridge-purpose" in headers if ours else not body.get("tools")
    subagent = own is not None and own != session_id
    return CallIdentity(
        agent=SLUG,
        session_id=session_id,
        turn_key=headers.get("x-tracebridge-turn"),
        subagent_id=own if subagent else None,
        request_class="auxiliary" if side else "subagent" if subagent else "main",
        call_key=headers.get("x-tracebridge-call"),
    )

"""What a request at a gateway says of the session and turn that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracebridge.agents.gemini_cli.payload import SLUG
from tracebridge.fields import dict_of, dicts_in, text_of
from tracebridge.model import CallIdentity

# By themselves requests say no more than which program they are of.
USER_AGENT = "GeminiCLI"
# A launched process is told to send these.
SESSION_HEADER = "x-tracebridge-session"
TURN_HEADER = "x-tracebridge-turn"
# What the model is told to write where a session is compacted.
SUMMARY = "<state_snapshot>"


def identify_call(headers: Mapping[str, str], body: Mapping[str, Any]) -> CallIdentity | None:
    agent, slash, session_id = headers.get(SESSION_HEADER, "").partition("/")
    is_launched = agent == SLUG and bool(slash and session_id)
    if not is_launched and not headers.get("user-agent", "").startswith(USER_AGENT):
        return None
    # The router picks a model: it answers in JSON, and never with a tool.
    config = dict_of(body.get("generationConfig"))
    routes = config.get("responseMimeType") == "application/json" and "tools" not in body
    sums_up = "tools" not in body and SUMMARY in _instruction(body)
    return CallIdentity(
        agent=SLUG,
        session_id=session_id if is_launched else None,
        turn_key=headers.get(TURN_HEADER) if is_launched else None,
        request_class="compaction" if sums_up else "auxiliary" if routes else None,
    )


def _instruction(body: Mapping[str, Any]) -> str:
    parts = dicts_in(dict_of(body.get("systemInstruction")).get("parts"))
    return "".join(text_of(part, "text") or "" for part in parts)

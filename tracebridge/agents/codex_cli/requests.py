"""What a request at a gateway says of the session, turn and subagent that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracebridge.agents.codex_cli.payload import SLUG
from tracebridge.fields import dict_of, text_of
from tracebridge.lines import parse_object
from tracebridge.model import CallIdentity

METADATA = "x-codex-turn-metadata"
_USERS = (None, "user")


def identify_call(headers: Mapping[str, str], body: Mapping[str, Any]) -> CallIdentity | None:
    # The same JSON text stands in the body, for gateways that drop headers.
    client = dict_of(body.get("client_metadata"))
    written = headers.get(METADATA) or text_of(client, METADATA)
    if written is None:
        return None
    parsed = parse_object(written.encode("utf-8", "surrogateescape"))
    told = parsed if isinstance(parsed, dict) else client
    session_id = text_of(told, "session_id")
    thread_id = text_of(told, "thread_id")
    source = text_of(told, "thread_source")
    if session_id is None:
        return None
    is_subagent = source == "subagent" or (
        source is None and thread_id is not None and thread_id != session_id
    )
    return CallIdentity(
        agent=SLUG,
        session_id=session_id,
        turn_key=text_of(told, "root_turn_id") or text_of(told, "turn_id"),
        subagent_id=thread_id if is_subagent else None,
        request_class=_class_of(told, source, is_subagent=is_subagent),
        # Titles and the like have threads of their own, that no rollout tells of.
        is_alone=not is_subagent and source not in _USERS,
    )


def _class_of(told: Mapping[str, Any], source: str | None, *, is_subagent: bool) -> str:
    if told.get("request_kind") == "compaction":
        return "compaction"
    if is_subagent:
        return "subagent"
    return "main" if source in _USERS else "auxiliary"

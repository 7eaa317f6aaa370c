"""Gemini CLI's own telemetry to sightings: the only place in which it tells a response's id.

Format facts, with prompts and traces not logged: a call's end is told by `api_response` or
`api_error`, and right behind it, with the same timestamp, a record by the semantic conventions
has the id of the response. `prompt_id` is the session's, with `########<n>` behind it where
somebody types, or a subagent's with `#<n>`. A call that was broken off is not told at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tracebridge.agents import Reading, Telemetry
from tracebridge.agents.gemini_cli.chat import find_transcript
from tracebridge.agents.gemini_cli.payload import SLUG
from tracebridge.agents.gemini_cli.prompts import compress_key, turn_at, turn_compacted_for
from tracebridge.fields import count_of, dicts_in, moment_of, nanoseconds_of, text_of
from tracebridge.model import UNNAMED, ModelCall, Sighting, Source, Usage

API_RESPONSE, API_ERROR = "gemini_cli.api_response", "gemini_cli.api_error"
# The role of calls that sum up a session; `/compress` has a `prompt_id` of its own.
COMPRESSOR, COMPRESS = "utility_compressor", "compress-"
DETAILS = "gen_ai.client.inference.operation.details"
_IDS = frozenset({"session.id", "event.timestamp"})
_CALL = _IDS | {"model", "prompt_id", "role", "duration_ms", "status_code"}

TELEMETRY = Telemetry(
    service=SLUG,
    kept={
        API_RESPONSE: _CALL
        | {
            "input_token_count",
            "output_token_count",
            "cached_content_token_count",
            "thoughts_token_count",
            "tool_token_count",
        },
        API_ERROR: _CALL | {"error.type"},
        DETAILS: _IDS | {"gen_ai.response.id"},
    },
)


def telemetry_env(gateway_url: str, env: Mapping[str, str], project: Path) -> dict[str, str]:
    """Return what has a process export to our gateway; nothing if it exports to somebody else."""
    home = Path(env.get("GEMINI_CLI_HOME") or env.get("HOME") or "/")
    settings = [folder / ".gemini" / "settings.json" for folder in (home, project)]
    if any(name.startswith("GEMINI_TELEMETRY_") for name in env) or any(map(_exports, settings)):
        return {}
    return {
        "GEMINI_TELEMETRY_ENABLED": "true",
        "GEMINI_TELEMETRY_TARGET": "local",
        "GEMINI_TELEMETRY_OTLP_ENDPOINT": gateway_url,
        "GEMINI_TELEMETRY_OTLP_PROTOCOL": "http",
        "GEMINI_TELEMETRY_LOG_PROMPTS": "false",
        "GEMINI_TELEMETRY_TRACES_ENABLED": "false",
    }


def _exports(settings: Path) -> bool:
    try:
        text = settings.read_text("utf-8", "replace")
    except OSError:
        return False
    # It may have comments and a telemetry block may be switched off; to leave it alone costs little.
    return '"telemetry"' in text


def read_telemetry(records: Any) -> Reading:
    """Return what reduced log records tell."""
    told = (_sighting(record, call) for record, call in _calls(dicts_in(records)))
    return Reading(sightings=tuple(sighting for sighting in told if sighting is not None))


def _calls(records: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], ModelCall]]:
    for place, record in enumerate(records):
        call = _call(record)
        if call is None:
            continue
        behind = records[place + 1] if place + 1 < len(records) else {}
        if behind.get("name") == DETAILS and all(
            behind.get(id_) == record.get(id_) for id_ in _IDS
        ):
            call = replace(call, response_id=text_of(behind, "gen_ai.response.id"))
        # Without an id it says nothing that the chat file does not.
        if call.response_id is not None or call.error_type is not None:
            yield record, call


def _call(record: dict[str, Any]) -> ModelCall | None:
    name, end_ns = record.get("name"), moment_of(record.get("event.timestamp"))
    if end_ns is None or name not in {API_RESPONSE, API_ERROR}:
        return None
    duration_ns = nanoseconds_of(record, "duration_ms")
    failed = name == API_ERROR
    status = count_of(record, "status_code")
    return ModelCall(
        key=f"telemetry:{end_ns}",
        model=text_of(record, "model"),
        provider="gcp.gen_ai",
        start_ns=None if duration_ns is None else end_ns - duration_ns,
        end_ns=end_ns,
        usage=None if failed else _usage(record),
        status_code=status,
        error_type=(str(status) if status else text_of(record, "error.type") or "error")
        if failed
        else None,
        purpose=_purpose(text_of(record, "role") or ""),
    )


def _purpose(role: str) -> str | None:
    if role == COMPRESSOR:
        return "compaction"
    return "auxiliary" if role.startswith("utility") else None


def _sighting(record: dict[str, Any], call: ModelCall) -> Sighting | None:
    session_id = text_of(record, "session.id")
    if not session_id or call.end_ns is None:
        return None
    chat = find_transcript(session_id, Path.home())
    prompt_id = text_of(record, "prompt_id") or ""
    subagent_id, number, _ = prompt_id.partition("#")
    turn_key = turn_at(chat, session_id, call.end_ns)
    if call.purpose == "compaction" and chat is not None and not turn_key.startswith(UNNAMED):
        if prompt_id.startswith(COMPRESS):
            turn_key = compress_key(turn_key)
        else:
            turn_key = turn_compacted_for(chat, session_id, call.end_ns)
    return Sighting(
        agent=SLUG,
        session_id=session_id,
        source=Source.HOOK,
        time_ns=call.end_ns,
        turn_key=turn_key,
        subagent_id=subagent_id if number and subagent_id != session_id else None,
        part=call,
    )


def _usage(record: dict[str, Any]) -> Usage:
    thoughts = count_of(record, "thoughts_token_count")
    given, said = count_of(record, "input_token_count"), count_of(record, "output_token_count")
    return Usage(
        input_tokens=None if given is None else given + (count_of(record, "tool_token_count") or 0),
        output_tokens=None if said is None else said + (thoughts or 0),
        cache_read_tokens=count_of(record, "cached_content_token_count"),
        reasoning_tokens=thoughts,
    )

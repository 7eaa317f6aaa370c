"""Respan's request logs: one row in, one `GatewayCall` out, whoever gives it to us.

Format facts (the logging API and the list of logs, as of September 2026):
- `timestamp` is when the call ended, `start_time` when it began, both in ISO 8601; `latency` and
  `time_to_first_token` are seconds, `generation_time` and `ttft` older names of them.
- Tokens stand in the row itself or in `usage`; what came from the cache is part of the prompt.
- `log_type` says what was called; only some kinds are calls to a model.
- `input`, `output`, `prompt_messages` and `full_request` hold what was said; of that, ids of tool
  calls are all that is looked at.
"""

from __future__ import annotations

import re
from typing import Any

from tracebridge.fields import count_of, dict_of, dicts_in, moment_of, text_of
from tracebridge.lines import parse_object
from tracebridge.model import GatewayCall, Usage
from tracebridge.response_ids import provider_id

SECOND_NS = 1_000_000_000
# By log type; what is no call to a model has none.
_DIALECTS = {
    "chat": "unknown",
    "completion": "unknown",
    "generation": "unknown",
    "response": "openai.responses",
    "text": "unknown",
    "unknown": "unknown",
    "embedding": "unknown.embeddings",
}
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_SPAN_ID = re.compile(r"[0-9a-f]{16}")
_NAME_LENGTH = 254
_MESSAGE_LENGTH = 500


def is_call(row: dict[str, Any]) -> bool:
    """Say whether a row tells of a call to a model and not of a tool, a step or an agent."""
    return (text_of(row, "log_type") or "chat") in _DIALECTS


def call_of_row(row: dict[str, Any], *, call_id: str, gateway: str, arrived_ns: int) -> GatewayCall:
    """Return the call that *row* tells of; *arrived_ns* is when it ended if it does not say."""
    usage = dict_of(row.get("usage"))
    start_ns, end_ns = _times(row, arrived_ns)
    first_s = _seconds(row, "time_to_first_token", "ttft")
    answer = _object(row.get("full_response"))
    response_id = text_of(answer, "id") or text_of(answer, "responseId")
    status_code = count_of(row, "status_code")
    refused = (status_code or 0) >= 400
    failed = refused or row.get("status") in ("error", "failed") or row.get("failed") is True
    customer = text_of(row, "customer_identifier") or text_of(
        dict_of(row.get("customer_params")), "customer_identifier"
    )
    model = text_of(row, "model")
    message = text_of(row, "error_message")
    return GatewayCall(
        call_id=call_id,
        gateway=gateway,
        method="POST",
        path="",
        start_ns=start_ns,
        end_ns=end_ns,
        conversation_id=text_of(row, "session_identifier") or text_of(row, "thread_identifier"),
        traceparent=_traceparent(row),
        dialect=_DIALECTS.get(text_of(row, "log_type") or "chat", "unknown"),
        provider=text_of(row, "provider_id"),
        requested_model=model,
        model=model,
        streaming=row.get("stream") is True,
        status_code=status_code,
        error_type=str(status_code) if refused else "error" if failed else None,
        error_message=message[:_MESSAGE_LENGTH] if failed and message else None,
        first_token_ns=None if first_s is None else start_ns + int(first_s * SECOND_NS),
        response_id=None if response_id is None else provider_id(response_id),
        usage=None if failed else _usage(row, usage),
        tool_call_ids=_tool_calls(row, answer),
        client_name=customer[:_NAME_LENGTH] if customer else None,
    )


def _times(row: dict[str, Any], arrived_ns: int) -> tuple[int, int]:
    start_ns, end_ns = moment_of(row.get("start_time")), moment_of(row.get("timestamp"))
    took_s = _seconds(row, "latency", "generation_time")
    took_ns = int((took_s or 0) * SECOND_NS)
    if end_ns is None:
        end_ns = arrived_ns if start_ns is None or took_s is None else start_ns + took_ns
    if start_ns is None:
        start_ns = max(0, end_ns - took_ns)
    return start_ns, max(start_ns, end_ns)


def _seconds(row: dict[str, Any], *names: str) -> float | None:
    for name in names:
        value = row.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 86_400:
            return float(value)
    return None


def _usage(row: dict[str, Any], usage: dict[str, Any]) -> Usage | None:
    read = dict_of(usage.get("prompt_tokens_details"))
    given = dict_of(usage.get("completion_tokens_details"))
    counts = {
        "input_tokens": [(row, "prompt_tokens"), (usage, "prompt_tokens")],
        "output_tokens": [(row, "completion_tokens"), (usage, "completion_tokens")],
        "cache_read_tokens": [(row, "prompt_cache_hit_tokens"), (read, "cached_tokens")],
        "cache_write_tokens": [
            (row, "prompt_cache_creation_tokens"),
            (usage, "cache_creation_prompt_tokens"),
        ],
        "reasoning_tokens": [(row, "reasoning_tokens"), (given, "reasoning_tokens")],
    }
    told = Usage(
        **{
            field: next((n for each in places if (n := count_of(*each)) is not None), None)
            for field, places in counts.items()
        }
    )
    return None if told == Usage() else told


def _traceparent(row: dict[str, Any]) -> str | None:
    """Return in which span of which trace a call was made, where the ids are OpenTelemetry's."""
    trace, span = text_of(row, "trace_unique_id") or "", text_of(row, "span_parent_id") or ""
    known = _TRACE_ID.fullmatch(trace) and _SPAN_ID.fullmatch(span)
    return f"00-{trace}-{span}-01" if known else None


def _tool_calls(row: dict[str, Any], answer: dict[str, Any]) -> tuple[str, ...]:
    said = [_object(row.get("output")), dict_of(row.get("completion_message"))]
    said += [dict_of(choice.get("message")) for choice in dicts_in(answer.get("choices"))]
    calls = [call for message in said for call in dicts_in(message.get("tool_calls"))]
    return tuple(dict.fromkeys(i for call in calls if (i := text_of(call, "id")) is not None))


def _object(value: Any) -> dict[str, Any]:
    """Return an object that may have been written as a text."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parse_object(value.encode("utf-8", "replace"))
    return dict_of(value)

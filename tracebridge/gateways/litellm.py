"""LiteLLM's log records: one record in, one `GatewayCall` out.

Format facts (1.106.2 and 1.109.1: the `generic_api` callback, and `standard_logging_object` of a
callback class):
- `litellm_call_id` names the request, not the attempt, and is the `x-litellm-call-id` of the
  answer. The `id` of an answer is its provider's, that of a failure the call id once more, and that
  of an Anthropic stream may be one that LiteLLM made up, beginning with `chatcmpl-`.
- The provider's request id stands among the headers of its answer, not for all streams.
- Of a request's headers there are those that begin with `x-`, as an object.
- `end_user` is what Claude Code sends as `metadata.user_id`: JSON in a text, with the session.
- Times are seconds with a fraction; token counts include what came from the cache.
- Prompts, answers and stack traces stand in it too; none of that is looked at.
"""

from __future__ import annotations

from typing import Any

from tracebridge.agents import identify_call
from tracebridge.fields import count_of, dict_of, dicts_in, text_of
from tracebridge.model import GatewayCall, Usage
from tracebridge.response_ids import provider_id

GATEWAY = "litellm"
CALL_ID_HEADER = "x-litellm-call-id"

_DIALECTS = {
    "messages": "anthropic.messages",
    "responses": "openai.responses",
    "completion": "openai.chat_completions",
    "embedding": "openai.embeddings",
}
_REQUEST_IDS = ("request-id", "x-request-id")
_FAILED_REQUEST_ID = "error_provider_request_id"
_MESSAGE_LENGTH = 500


def call_of_record(record: dict[str, Any]) -> GatewayCall | None:
    """Return the call that *record* tells of, None if it is no record of LiteLLM's."""
    call_id = text_of(record, "litellm_call_id")
    start_ns, end_ns = _time_of(record, "startTime"), _time_of(record, "endTime")
    if call_id is None or start_ns is None or end_ns is None:
        return None
    response_id = text_of(record, "id")
    dialect = _dialect(text_of(record, "call_type") or "")
    made_up = dialect == "anthropic.messages" and str(response_id).startswith("chatcmpl-")
    if response_id == call_id or made_up or record.get("status") == "failure":
        response_id = None
    metadata = dict_of(record.get("metadata"))
    sent = dict_of(metadata.get("requester_custom_headers"))
    headers = {name.lower(): value for name, value in sent.items() if isinstance(value, str)}
    client = text_of(record, "user_agent")
    if client is not None:
        headers["user-agent"] = client
    error_type, status_code, message = _error(record)
    streaming = record.get("stream") is True
    provider, model = text_of(record, "custom_llm_provider"), text_of(record, "model")
    return GatewayCall(
        # A failed attempt and the answer after it share the request.
        call_id=f"{GATEWAY}:{call_id}:{record.get('status')}",
        gateway=GATEWAY,
        method="POST",
        path="",
        start_ns=start_ns,
        end_ns=max(start_ns, end_ns),
        identity=identify_call(headers, {"metadata": {"user_id": record.get("end_user")}}),
        dialect=dialect,
        provider=provider,
        requested_model=text_of(record, "model_group") or model,
        model=model and model.removeprefix(f"{provider}/"),
        streaming=streaming,
        status_code=status_code,
        error_type=error_type,
        error_message=message,
        first_token_ns=_time_of(record, "completionStartTime") if streaming else None,
        response_id=response_id and provider_id(response_id),
        request_id=_request_id(record),
        usage=None if error_type is not None else _usage(record, metadata),
        tool_call_ids=_tool_calls(dict_of(record.get("response"))),
        request_headers={} if client is None else {"user-agent": client},
        response_headers={CALL_ID_HEADER: call_id},
        client_name=text_of(metadata, "user_api_key_alias"),
    )


def _time_of(record: dict[str, Any], name: str) -> int | None:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 9e9:
        return None
    return int(value * 1_000_000_000)


def _dialect(call_type: str) -> str:
    words = call_type.removeprefix("a") if call_type.startswith("a") else call_type
    return next((d for name, d in _DIALECTS.items() if words.endswith(name)), "unknown")


def _request_id(record: dict[str, Any]) -> str | None:
    headers = dict_of(dict_of(record.get("hidden_params")).get("additional_headers"))
    names = [f"{before}{name}" for before in ("llm_provider-", "") for name in _REQUEST_IDS]
    told = dict_of(record.get("error_information"))
    found = [*(text_of(headers, each) for each in names), text_of(told, _FAILED_REQUEST_ID)]
    return next((each for each in found if each), None)


def _error(record: dict[str, Any]) -> tuple[str | None, int | None, str | None]:
    if record.get("status") != "failure":
        return None, None, None
    told = dict_of(record.get("error_information"))
    code = text_of(told, "error_code") or ""
    status_code = int(code) if code.isascii() and code.isdigit() and len(code) == 3 else None
    message = text_of(told, "error_message") or text_of(record, "error_str")
    kind = code if status_code is not None else text_of(told, "error_class")
    return (kind or "error")[:64], status_code, message and message[:_MESSAGE_LENGTH]


def _usage(record: dict[str, Any], metadata: dict[str, Any]) -> Usage | None:
    told = dict_of(metadata.get("usage_object"))
    taken = dict_of(told.get("prompt_tokens_details"))
    given = dict_of(told.get("completion_tokens_details"))
    read, written = count_of(taken, "cached_tokens"), count_of(taken, "cache_creation_tokens")
    usage = Usage(
        input_tokens=count_of(record, "prompt_tokens"),
        output_tokens=count_of(record, "completion_tokens"),
        # Anthropic's names beside OpenAI's, where the API has them.
        cache_read_tokens=count_of(told, "cache_read_input_tokens") if read is None else read,
        cache_write_tokens=(
            count_of(told, "cache_creation_input_tokens") if written is None else written
        ),
        reasoning_tokens=count_of(given, "reasoning_tokens"),
    )
    return None if usage == Usage() else usage


def _tool_calls(response: dict[str, Any]) -> tuple[str, ...]:
    """Return the ids of the tool calls that an answer asks for, in whichever shape it stands."""
    found = [block.get("id") for block in dicts_in(response.get("content"))]
    for choice in dicts_in(response.get("choices")):
        calls = dicts_in(dict_of(choice.get("message")).get("tool_calls"))
        found += [call.get("id") for call in calls]
    found += [item.get("call_id") for item in dicts_in(response.get("output"))]
    return tuple(each for each in found if isinstance(each, str))

"""Respan, by RESPAN_API_KEY and RESPAN_BASE_URL: what its ingest promotes to columns, in its words.

It does not decompress what it is sent. A call that went through its own gateway is a row there
already, with usage and cost: the span points at that row and leaves both out, as Respan's own SDK
does, so that nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping

from tracebridge import semconv
from tracebridge.sinks import ReadySink
from tracebridge.sinks._backend import (
    Attributes,
    Backend,
    SpanWords,
    base_url,
    prepare_backend,
)
from tracebridge.sinks._otlp_settings import respan_traces_url

_DEFAULT_BASE_URL = "https://api.respan.ai/api"
_LONGEST_CUSTOMER = 254
_COLUMNS = {
    semconv.INPUT_TOKENS: "gen_ai.usage.prompt_tokens",
    semconv.OUTPUT_TOKENS: "gen_ai.usage.completion_tokens",
    semconv.CACHE_READ_TOKENS: "gen_ai.usage.cache_read_input_tokens",
    semconv.CACHE_WRITE_TOKENS: "gen_ai.usage.cache_creation_input_tokens",
    semconv.REASONING_TOKENS: "llm.usage.reasoning_tokens",
    semconv.OI_TOTAL_TOKENS: "llm.usage.total_tokens",
    semconv.PROVIDER: "gen_ai.system",
    semconv.REQUEST_STREAM: "llm.is_streaming",
    semconv.TIME_TO_FIRST_CHUNK: "llm.openai.chat_completions.streaming_time_to_first_token",
    semconv.HTTP_STATUS_CODE: "status_code",
    semconv.OI_INPUT: "traceloop.entity.input",
    semconv.OI_OUTPUT: "traceloop.entity.output",
}
_KINDS = {"turn": "workflow", "tool": "tool", "subagent": "agent"}
# What stands in the gateway's row already.
_OF_THE_ROW = ("gen_ai.usage.", "llm.token_count.", "llm.usage.", "llm.cost.")


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    base = base_url(argument, env, ["RESPAN_BASE_URL"], _DEFAULT_BASE_URL)
    return prepare_backend(
        name,
        env,
        Backend(
            url=respan_traces_url(base),
            keys=("RESPAN_API_KEY",),
            headers=lambda keys: {"authorization": f"Bearer {keys['RESPAN_API_KEY']}"},
            compression="none",
            translate=translate,
        ),
    )


def translate(span: SpanWords) -> Attributes:
    """Return the attributes with those that are columns at Respan under their names there."""
    given = span.attributes
    own: Attributes = {column: given[key] for key, column in _COLUMNS.items() if key in given}
    own["respan.entity.log_method"] = "tracing_integration"
    own["traceloop.entity.name"] = span.name
    own["traceloop.span.kind"] = _KINDS.get(str(given.get(semconv.SPAN_TYPE)), "task")
    customer = given.get(semconv.RESPAN_CUSTOMER)
    if isinstance(customer, str):
        own[semconv.RESPAN_CUSTOMER] = customer[:_LONGEST_CUSTOMER]
    if given.get(semconv.SPAN_TYPE) == "llm":
        own["llm.request.type"] = "chat"
        if semconv.OI_OUTPUT in given:
            own["gen_ai.completion.0.role"] = "assistant"
            own["gen_ai.completion.0.content"] = given[semconv.OI_OUTPUT]
    if span.error:
        own["error.message"] = span.error
    told = given | own
    if semconv.RESPAN_GATEWAY_LOG_ID not in given:
        return told
    left_out = {"traceloop.entity.input", "traceloop.entity.output"}
    return {
        key: value
        for key, value in told.items()
        if not key.startswith((*_OF_THE_ROW, "gen_ai.completion.")) and key not in left_out
    }

"""Langfuse, by LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY and LANGFUSE_BASE_URL.

Its kinds of usage must not overlap, where OpenTelemetry's input tokens include those from the
cache, so usage is told once more in its own words, which win. It shows what it gets at once only
with the header for ingestion version 4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from tracebridge import semconv
from tracebridge.sinks import ReadySink
from tracebridge.sinks._backend import (
    Attributes,
    Backend,
    Keys,
    SpanWords,
    base_url,
    basic,
    prepare_backend,
)


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    base = base_url(
        argument, env, ["LANGFUSE_BASE_URL", "LANGFUSE_HOST"], "https://cloud.langfuse.com"
    )
    return prepare_backend(
        name,
        env,
        Backend(
            url=f"{base.removesuffix('/api/public/otel')}/api/public/otel/v1/traces",
            keys=("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"),
            headers=_headers,
            translate=translate,
        ),
    )


def translate(span: SpanWords) -> Attributes:
    """Return the attributes with usage, first token and metadata in Langfuse's words."""
    own: Attributes = {}
    given = span.attributes
    if semconv.INPUT_TOKENS in given:
        own["langfuse.observation.usage_details"] = json.dumps(_usage(given))
    first = given.get(semconv.TIME_TO_FIRST_CHUNK)
    if isinstance(first, float):
        began = datetime.fromtimestamp(span.start_ns / 1e9 + first, UTC)
        own["langfuse.observation.completion_start_time"] = json.dumps(began.isoformat())
    for key, value in given.items():
        if key.startswith(semconv.METADATA_PREFIX):
            own[f"langfuse.trace.metadata.{key.removeprefix(semconv.METADATA_PREFIX)}"] = value
    return given | own


def _usage(given: Attributes) -> dict[str, int]:
    def count(name: str) -> int:
        value = given.get(name, 0)
        return value if isinstance(value, int) else 0

    read, written = count(semconv.CACHE_READ_TOKENS), count(semconv.CACHE_WRITE_TOKENS)
    reasoning = count(semconv.REASONING_TOKENS)
    usage = {
        "input": max(count(semconv.INPUT_TOKENS) - read - written, 0),
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "output": max(count(semconv.OUTPUT_TOKENS) - reasoning, 0),
        "output_reasoning_tokens": reasoning,
    }
    return {kind: tokens for kind, tokens in usage.items() if tokens or kind in {"input", "output"}}


def _headers(keys: Keys) -> dict[str, str]:
    return {
        "authorization": basic(keys["LANGFUSE_PUBLIC_KEY"], keys["LANGFUSE_SECRET_KEY"]),
        "x-langfuse-ingestion-version": "4",
    }

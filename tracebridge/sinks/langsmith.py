"""LangSmith, by LANGSMITH_API_KEY, LANGSMITH_PROJECT and LANGSMITH_ENDPOINT.

It knows five kinds of runs, and puts runs with one `session_id` in their metadata into a thread.
"""

from __future__ import annotations

from collections.abc import Mapping

from tracebridge import semconv
from tracebridge.sinks import ReadySink
from tracebridge.sinks._backend import (
    Attributes,
    Backend,
    Keys,
    SpanWords,
    base_url,
    prepare_backend,
)

_KINDS = {"llm": "llm", "tool": "tool"}


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    base = base_url(argument, env, ["LANGSMITH_ENDPOINT"], "https://api.smith.langchain.com")
    project = env.get("LANGSMITH_PROJECT", "").strip()

    def headers(keys: Keys) -> dict[str, str]:
        found = {"x-api-key": keys["LANGSMITH_API_KEY"]}
        return found | ({"langsmith-project": project} if project else {})

    return prepare_backend(
        name,
        env,
        Backend(
            url=f"{base}/otel/v1/traces",
            keys=("LANGSMITH_API_KEY",),
            headers=headers,
            translate=translate,
        ),
    )


def translate(span: SpanWords) -> Attributes:
    """Return the attributes with kind, thread and metadata in LangSmith's words."""
    given = span.attributes
    own: Attributes = {
        "langsmith.span.kind": _KINDS.get(str(given.get(semconv.SPAN_TYPE)), "chain")
    }
    if semconv.SESSION_ID in given:
        own["langsmith.metadata.session_id"] = given[semconv.SESSION_ID]
    if semconv.USER_ID in given:
        own["langsmith.metadata.user_id"] = given[semconv.USER_ID]
    for key, value in given.items():
        if key.startswith(semconv.METADATA_PREFIX):
            own[f"langsmith.metadata.{key.removeprefix(semconv.METADATA_PREFIX)}"] = value
    return given | own

"""Arize Phoenix, by PHOENIX_COLLECTOR_ENDPOINT, PHOENIX_API_KEY and PHOENIX_PROJECT_NAME.

Seen with 20.26.1: it keeps the first copy of a span, reads both vocabularies that we write, and
takes the project from a header.
"""

from __future__ import annotations

from collections.abc import Mapping

from tracebridge.sinks import ReadySink
from tracebridge.sinks._backend import Backend, Keys, base_url, prepare_backend

_KEY = "PHOENIX_API_KEY"


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    base = base_url(argument, env, ["PHOENIX_COLLECTOR_ENDPOINT"], "http://localhost:6006")
    project = env.get("PHOENIX_PROJECT_NAME", "").strip()

    def headers(keys: Keys) -> dict[str, str]:
        found = {"x-project-name": project} if project else {}
        if _KEY in keys:
            found["authorization"] = f"Bearer {keys[_KEY]}"
        return found

    return prepare_backend(
        name,
        env,
        Backend(
            url=base if base.endswith("/v1/traces") else f"{base}/v1/traces",
            # A Phoenix of one's own asks for none.
            keys=(_KEY,) if env.get(_KEY) else (),
            headers=headers,
        ),
    )

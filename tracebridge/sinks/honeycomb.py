"""Honeycomb, by HONEYCOMB_API_KEY and HONEYCOMB_API_ENDPOINT; HONEYCOMB_DATASET for Classic."""

from __future__ import annotations

from collections.abc import Mapping

from tracebridge.sinks import ReadySink
from tracebridge.sinks._backend import Backend, Keys, base_url, prepare_backend


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    base = base_url(argument, env, ["HONEYCOMB_API_ENDPOINT"], "https://api.honeycomb.io")
    dataset = env.get("HONEYCOMB_DATASET", "").strip()

    def headers(keys: Keys) -> dict[str, str]:
        found = {"x-honeycomb-team": keys["HONEYCOMB_API_KEY"]}
        return found | ({"x-honeycomb-dataset": dataset} if dataset else {})

    backend = Backend(url=f"{base}/v1/traces", keys=("HONEYCOMB_API_KEY",), headers=headers)
    return prepare_backend(name, env, backend)

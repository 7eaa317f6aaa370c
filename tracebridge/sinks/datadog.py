"""Datadog's LLM Observability, without its agent, by DD_API_KEY and DD_SITE."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tracebridge.sinks import ReadySink, SinkSettingsError
from tracebridge.sinks._backend import Backend, base_url, prepare_backend


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    site = env.get("DD_SITE", "").strip() or "datadoghq.com"
    if not re.fullmatch(r"[0-9a-z.-]+", site):
        raise SinkSettingsError(
            f"DD_SITE: {site[:40]!r} is no site; write it like datadoghq.eu, without https://"
        )
    base = base_url(argument, {}, ["DD_SITE"], f"https://otlp.{site}")
    return prepare_backend(
        name,
        env,
        Backend(
            url=base if base.endswith("/v1/traces") else f"{base}/v1/traces",
            keys=("DD_API_KEY",),
            headers=lambda keys: {"dd-api-key": keys["DD_API_KEY"], "dd-otlp-source": "llmobs"},
        ),
    )

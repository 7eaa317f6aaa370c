"""Respan, by RESPAN_API_KEY and RESPAN_BASE_URL: OTLP over HTTP, put in the standard's words."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from tracebridge.sinks import ReadySink, SinkSettingsError
from tracebridge.sinks import prepare as prepare_sink
from tracebridge.sinks._otlp_settings import check_url, respan_traces_url

_DEFAULT_BASE_URL = "https://api.respan.ai/api"


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    api_key = env.get("RESPAN_API_KEY", "").strip()
    if not api_key:
        raise SinkSettingsError(
            "the sink respan needs RESPAN_API_KEY; set it to a key of your Respan account"
        )
    if not api_key.isascii() or not api_key.isprintable():
        raise SinkSettingsError("RESPAN_API_KEY holds characters that no key has; copy it anew")
    base = argument or env.get("RESPAN_BASE_URL", "").strip() or _DEFAULT_BASE_URL
    check_url("TRACEBRIDGE_SINKS" if argument else "RESPAN_BASE_URL", base, _DEFAULT_BASE_URL)
    respan_env = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": respan_traces_url(base),
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": f"authorization={quote(f'Bearer {api_key}')}",
        # Respan does not decompress what it is sent.
        "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "none",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    }
    # The headers of another backend must not reach Respan; how the network is has no owner.
    for variable in ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_CERTIFICATE"):
        if variable in env:
            respan_env[variable] = env[variable]
    return prepare_sink("otlp_http", respan_env, name=name)

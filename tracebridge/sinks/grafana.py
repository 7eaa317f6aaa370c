"""Grafana Cloud, by GRAFANA_CLOUD_OTLP_ENDPOINT, GRAFANA_CLOUD_INSTANCE_ID, GRAFANA_CLOUD_API_KEY.

A Tempo or Alloy of one's own is reached with `collector`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tracebridge.sinks import ReadySink, SinkSettingsError
from tracebridge.sinks._backend import Backend, base_url, basic, prepare_backend

_ENDPOINT = "GRAFANA_CLOUD_OTLP_ENDPOINT"
_EXAMPLE = "https://otlp-gateway-prod-eu-west-0.grafana.net/otlp"


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    if not argument and not env.get(_ENDPOINT, "").strip():
        # Each stack is in a region, and a default would send the key to another one.
        raise SinkSettingsError(
            f"the sink grafana needs {_ENDPOINT}; write it like {_EXAMPLE}, as the page of your "
            "stack shows it under OpenTelemetry"
        )
    base = base_url(argument, env, [_ENDPOINT], _EXAMPLE)
    return prepare_backend(
        name,
        env,
        Backend(
            url=base if base.endswith("/v1/traces") else f"{base}/v1/traces",
            keys=("GRAFANA_CLOUD_INSTANCE_ID", "GRAFANA_CLOUD_API_KEY"),
            headers=lambda keys: {
                "authorization": basic(
                    keys["GRAFANA_CLOUD_INSTANCE_ID"], keys["GRAFANA_CLOUD_API_KEY"]
                )
            },
        ),
    )

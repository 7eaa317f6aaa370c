"""OTLP as the standard OTEL_EXPORTER_OTLP_* variables say; the protocol among them decides how."""

from __future__ import annotations

from collections.abc import Mapping

from tracebridge.sinks import ReadySink
from tracebridge.sinks import prepare as prepare_sink
from tracebridge.sinks._otlp_settings import WireProtocol, read_protocol


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    # One name for both, so that what waits for a backend goes to it after a change of protocol.
    kind = "otlp_grpc" if read_protocol(env) is WireProtocol.GRPC else "otlp_http"
    return prepare_sink(kind, env, name=name, argument=argument)

"""OTLP over gRPC. Needs the extra `tracebridge[grpc]`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tracebridge.encode import export_request, package_version
from tracebridge.sinks import (
    OutboxSpan,
    ReadySink,
    Receipt,
    SinkSettingsError,
    by_resource,
    without_secrets,
)
from tracebridge.sinks._batch import SETTINGS_RETRY_S, Answer, BatchSender, Verdict
from tracebridge.sinks._otlp_settings import (
    OtlpSettings,
    WireProtocol,
    is_loopback,
    read_otlp_settings,
)
from tracebridge.sinks._wording import excerpt

_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
# The table of the OTLP specification, and with it UNKNOWN and INTERNAL, which gRPC itself also
# uses for connections gone wrong.
_VERDICTS = {
    "CANCELLED": Verdict.LATER,
    "DEADLINE_EXCEEDED": Verdict.LATER,
    "ABORTED": Verdict.LATER,
    "OUT_OF_RANGE": Verdict.LATER,
    "UNAVAILABLE": Verdict.LATER,
    "DATA_LOSS": Verdict.LATER,
    "INVALID_ARGUMENT": Verdict.SUSPECT,
    "INTERNAL": Verdict.FAILED,
    "UNKNOWN": Verdict.FAILED,
}
_REMEDIES = {
    "UNAUTHENTICATED": "check the key in OTEL_EXPORTER_OTLP_HEADERS",
    "PERMISSION_DENIED": "check what the key in OTEL_EXPORTER_OTLP_HEADERS is allowed to do",
    "UNIMPLEMENTED": "check that the endpoint takes OTLP traces over gRPC",
    "DEADLINE_EXCEEDED": "OTEL_EXPORTER_OTLP_TIMEOUT is in milliseconds",
}


class OtlpGrpcSink:
    def __init__(self, settings: OtlpSettings) -> None:
        self._settings = settings
        self._grpc = _import_grpc()
        self._place = without_secrets(settings.endpoint)
        self._batches = BatchSender(self._export)
        self._channel = self._open_channel()
        # The request is bytes already.
        self._call = self._channel.unary_unary(
            _METHOD, response_deserializer=ExportTraceServiceResponse.FromString
        )

    def send(self, spans: Sequence[OutboxSpan]) -> Receipt:
        return self._batches.send(spans)

    def close(self) -> None:
        self._channel.close()

    def _open_channel(self) -> Any:
        grpc = self._grpc
        scheme, separator, rest = self._settings.endpoint.partition("://")
        target = rest.partition("/")[0] if separator else scheme
        options = [
            ("grpc.primary_user_agent", f"tracebridge/{package_version()}"),
            # Each retry is the outbox's, which remembers it.
            ("grpc.enable_retries", 0),
            # Left alone, a channel fails calls for two minutes without looking again.
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if is_loopback(self._settings.host):
            # A proxy variable must not carry away what is meant for this machine.
            options.append(("grpc.enable_http_proxy", 0))
        compression = grpc.Compression.Gzip if self._settings.gzip else None
        if scheme == "http" or (not separator and self._settings.insecure):
            return grpc.insecure_channel(target, options=options, compression=compression)
        settings = self._settings
        root, key, chain = (
            path.read_bytes() if path else None
            for path in (settings.certificate, settings.client_key, settings.client_certificate)
        )
        credentials = grpc.ssl_channel_credentials(root, key, chain)
        return grpc.secure_channel(target, credentials, options=options, compression=compression)

    def _export(self, spans: Sequence[OutboxSpan]) -> Answer:
        try:
            response = self._call(
                export_request(by_resource(spans)),
                timeout=self._settings.timeout_s,
                metadata=tuple(self._settings.headers.items()),
            )
        except self._grpc.RpcError as error:
            return self._judge(error)
        partial = response.partial_success
        if partial.rejected_spans > 0:
            reason = self._excerpt(partial.error_message) or "no reason given"
            message = f"{self._place}: refused by the backend: {reason}"
            return Answer(verdict=Verdict.REFUSED, message=message, refused=partial.rejected_spans)
        return Answer(verdict=Verdict.TAKEN)

    def _judge(self, error: Any) -> Answer:
        code = error.code().name
        said = self._excerpt(error.details() or "")
        message = f"{self._place}: gRPC {code}{said and ': ' + said}"
        if remedy := _REMEDIES.get(code):
            message += f"; {remedy}"
        retry_after_s = _retry_delay(error.trailing_metadata())
        if code == "RESOURCE_EXHAUSTED":
            # With a delay the backend means itself; without, most often a message of too many
            # bytes. Its quotas look the same, so a single span is not given up for it.
            verdict = Verdict.FAILED if retry_after_s is None else Verdict.LATER
            return Answer(verdict=verdict, message=message, retry_after_s=retry_after_s)
        verdict = _VERDICTS.get(code, Verdict.LATER)
        if code not in _VERDICTS or verdict is Verdict.SUSPECT:
            retry_after_s = SETTINGS_RETRY_S
        return Answer(verdict=verdict, message=message, retry_after_s=retry_after_s)

    def _excerpt(self, text: str) -> str:
        return excerpt(text.encode("utf-8", "replace"), self._settings.headers.values())


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    settings = read_otlp_settings(env, endpoint=argument, protocol=WireProtocol.GRPC)
    _import_grpc()
    return ReadySink(
        name=name,
        target=without_secrets(settings.endpoint),
        open=lambda: OtlpGrpcSink(settings),
    )


def _import_grpc() -> Any:
    try:
        return importlib.import_module("grpc")
    except ImportError as error:
        raise SinkSettingsError(
            f"OTLP over gRPC needs more than is installed ({error}); "
            "run: pip install 'tracebridge[grpc]'"
        ) from error


def _retry_delay(metadata: Sequence[tuple[str, Any]] | None) -> float | None:
    """Return the seconds that the RetryInfo of a failed call asks for."""
    for key, value in metadata or ():
        if key != "grpc-status-details-bin":
            continue
        try:
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    delay = info.retry_delay
                    return max(float(delay.seconds + delay.nanos / 1e9), 0.0)
        except DecodeError:
            return None
    return None

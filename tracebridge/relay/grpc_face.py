"""The relay's second face: OTLP over gRPC, for exporters that speak nothing else. An extra."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tracebridge.gateways.client_keys import ClientKeysError
from tracebridge.relay.backend import Answer
from tracebridge.relay.wire import WireError

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
_MOST_AT_ONCE = 64


class GrpcFace:
    """Use it within a running loop. Raise ImportError without the extra."""

    def __init__(
        self,
        take: Callable[[bytes], Awaitable[Answer]],
        admit: Callable[[Mapping[str, str]], bool],
        most_bytes: int,
    ) -> None:
        self._take = take
        self._admit = admit
        self._grpc: Any = importlib.import_module("grpc")
        aio: Any = importlib.import_module("grpc.aio")
        self._server: Any = aio.server(
            options=[("grpc.max_receive_message_length", most_bytes)],
            maximum_concurrent_rpcs=_MOST_AT_ONCE,
        )
        export = self._grpc.unary_unary_rpc_method_handler(self._export)
        self._server.add_generic_rpc_handlers(
            (self._grpc.method_handlers_generic_handler(_SERVICE, {"Export": export}),)
        )

    async def start(self, address: str, cert: Path | None, key: Path | None) -> int:
        """Listen, and return the port. Raise OSError where that is impossible."""
        try:
            if cert is None:
                port = self._server.add_insecure_port(address)
            else:
                credentials = self._grpc.ssl_server_credentials([_pair(cert, key)])
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address} for gRPC; choose another port") from error
        await self._server.start()
        return int(port)

    async def stop(self, seconds: float) -> None:
        await self._server.stop(seconds)

    async def _export(self, request: bytes, context: Any) -> bytes:
        codes = self._grpc.StatusCode
        try:
            known = self._admit(dict(context.invocation_metadata()))
        except ClientKeysError as error:
            await context.abort(codes.UNAVAILABLE, str(error))
        if not known:
            await context.abort(codes.UNAUTHENTICATED, "a key is needed, as bearer token")
        try:
            answer = await self._take(request)
        except WireError as error:
            await context.abort(codes.INVALID_ARGUMENT, f"no OTLP trace request: {error}")
        if not answer.is_taken:
            # By the specification only what is unavailable is sent again.
            code = codes.UNAVAILABLE if answer.status == 503 else codes.INVALID_ARGUMENT
            await context.abort(code, f"tracebridge relay: {answer.message}"[:500])
        return response_of(answer).SerializeToString()


def _pair(cert: Path, key: Path | None) -> tuple[bytes, bytes]:
    return (key or cert).read_bytes(), cert.read_bytes()


def response_of(answer: Answer) -> ExportTraceServiceResponse:
    """Return what OTLP says of a request that was taken."""
    message = ExportTraceServiceResponse()
    if answer.rejected or answer.message:
        message.partial_success.rejected_spans = answer.rejected
        message.partial_success.error_message = answer.message[:500]
    return message

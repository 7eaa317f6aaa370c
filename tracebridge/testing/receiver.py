"""An OTLP backend on loopback that can be told to misbehave; for tests and for the demo.

It takes protobuf, JSON and gzip over HTTP (`Receiver`) or protobuf over gRPC (`GrpcReceiver`),
keeps what it was sent, and answers well unless told otherwise: `answer_next` for the coming
requests one by one, `rule` for all others.
"""

from __future__ import annotations

import base64
import gzip
import importlib
import socket
import ssl
import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import orjson
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_IDS = ("traceId", "spanId", "parentSpanId")
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedSpan:
    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: int
    start_ns: int
    end_ns: int
    status: int
    status_message: str
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    scope: tuple[str, str]
    message: Span = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRequest:
    path: str
    # Lower-case names.
    headers: Mapping[str, str]
    # As it came, and after decompression.
    raw: bytes = field(repr=False)
    body: bytes = field(repr=False)
    spans: Sequence[ReceivedSpan]

    @property
    def span_ids(self) -> list[str]:
        return [span.span_id for span in self.spans]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How to answer one request; as it stands, as a good backend does."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    # None: an empty success, or a partial one if spans are *rejected*.
    body: bytes | None = None
    rejected: int = 0
    error_message: str = ""
    # Say nothing until this is set; then answer.
    hold: threading.Event | None = None
    # Close the connection: without an answer, or after so many bytes of it.
    hang_up_after: int | None = None
    # Send the answer byte by byte, with such a pause after each.
    drip_s: float = 0.0
    # For gRPC: the name of a status code, and trailing metadata.
    grpc_code: str = ""
    grpc_metadata: tuple[tuple[str, bytes | str], ...] = ()


class _Collector:
    """What the two receivers have in common."""

    def __init__(self) -> None:
        self.requests: list[ReceivedRequest] = []
        self.rule: Callable[[ReceivedRequest], Answer] = lambda _: Answer()
        self._answers: deque[Answer] = deque()
        # Spans of requests that were answered with success.
        self._accepted: list[ReceivedSpan] = []
        self._changed = threading.Condition()
        self._closing = threading.Event()

    @property
    def spans(self) -> list[ReceivedSpan]:
        """The spans of all requests that were answered with success, in order of arrival."""
        with self._changed:
            return list(self._accepted)

    def answer_next(self, *answers: Answer) -> None:
        with self._changed:
            self._answers.extend(answers)

    def wait_for(self, predicate: Callable[[Self], bool], timeout: float = _PATIENCE_S) -> None:
        """Return once *predicate* holds. Raise TimeoutError, saying what did arrive."""
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self), timeout):
                raise TimeoutError(
                    f"not seen within {timeout:g} s; there were {len(self.requests)} requests "
                    f"and the spans {[span.name for span in self._accepted]}"
                )

    def _take(self, request: ReceivedRequest) -> Answer:
        with self._changed:
            self.requests.append(request)
            answer = self._answers.popleft() if self._answers else self.rule(request)
            self._changed.notify_all()
        if answer.hold is not None:
            while not answer.hold.wait(0.05) and not self._closing.is_set():
                pass
        if 200 <= answer.status < 300 and not answer.grpc_code:
            with self._changed:
                self._accepted.extend(request.spans)
                self._changed.notify_all()
        return answer


class Receiver(_Collector):
    """Receive OTLP over HTTP, with TLS if a context is given; use it in a `with` statement."""

    def __init__(self, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        super().__init__()
        self._tls = tls
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.receiver = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port: int = self._server.server_address[1]
        # The interval is how long closing may take.
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="receiver"
        )

    @property
    def endpoint(self) -> str:
        """What belongs into OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut all connections and wait for the threads; closing twice does no harm."""
        self._closing.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.cut_connections()
        self._server.server_close()


class GrpcReceiver(_Collector):
    """Receive OTLP over gRPC; use it in a `with` statement."""

    def __init__(self) -> None:
        super().__init__()
        self._grpc: Any = importlib.import_module("grpc")
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="grpc-receiver")
        self._server: Any = self._grpc.server(self._pool)
        export = self._grpc.unary_unary_rpc_method_handler(self._export)
        self._server.add_generic_rpc_handlers(
            (
                self._grpc.method_handlers_generic_handler(
                    "opentelemetry.proto.collector.trace.v1.TraceService", {"Export": export}
                ),
            )
        )
        self.port: int = self._server.add_insecure_port("127.0.0.1:0")

    @property
    def endpoint(self) -> str:
        """What belongs into OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def _export(self, body: bytes, context: Any) -> bytes:
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        try:
            request = ReceivedRequest(
                path="/", headers=headers, raw=body, body=body, spans=parse_spans(body)
            )
        except ValueError as error:
            context.abort(self._grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise
        answer = self._take(request)
        if answer.grpc_code:
            context.set_trailing_metadata(answer.grpc_metadata)
            context.abort(getattr(self._grpc.StatusCode, answer.grpc_code), answer.error_message)
        return _response(answer).SerializeToString() if answer.body is None else answer.body


def parse_spans(body: bytes, *, is_json: bool = False) -> list[ReceivedSpan]:
    """Return the spans of an export request. Raise ValueError if it is none."""
    try:
        if is_json:
            document = orjson.loads(body)
            if not isinstance(document, dict):
                raise ValueError("not an OTLP trace request: no JSON object")
            request = ParseDict(
                _with_base64_ids(document),
                ExportTraceServiceRequest(),
                ignore_unknown_fields=True,
            )
        else:
            request = ExportTraceServiceRequest.FromString(body)
    except (DecodeError, ParseError, orjson.JSONDecodeError) as error:
        raise ValueError(f"not an OTLP trace request: {error}") from error
    return [
        ReceivedSpan(
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_span_id=span.parent_span_id.hex(),
            name=span.name,
            kind=span.kind,
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            status=span.status.code,
            status_message=span.status.message,
            attributes=plain(span.attributes),
            resource=plain(resource_spans.resource.attributes),
            scope=(scope_spans.scope.name, scope_spans.scope.version),
            message=span,
        )
        for resource_spans in request.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def plain(attributes: Sequence[KeyValue]) -> dict[str, Any]:
    """Return OTLP attributes as a dict of Python values."""
    return {each.key: _plain_value(each.value) for each in attributes}


def _plain_value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_plain_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return plain(value.kvlist_value.values)
    return getattr(value, kind)


def _with_base64_ids(document: Any) -> Any:
    """Return OTLP/JSON with its hex ids in the base64 of the standard JSON mapping."""
    if isinstance(document, list):
        return [_with_base64_ids(each) for each in document]
    if not isinstance(document, dict):
        return document
    return {
        key: base64.b64encode(bytes.fromhex(value)).decode()
        if key in _IDS and isinstance(value, str)
        else _with_base64_ids(value)
        for key, value in document.items()
    }


def _response(answer: Answer) -> ExportTraceServiceResponse:
    response = ExportTraceServiceResponse()
    if answer.rejected or answer.error_message:
        response.partial_success.rejected_spans = answer.rejected
        response.partial_success.error_message = answer.error_message
    return response


class _Server(ThreadingHTTPServer):
    receiver: Receiver
    # So that closing waits for them, and no thread outlives its test.
    daemon_threads = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    # The other side was faster.
                    continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away in mid-sentence are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {key.lower(): value for key, value in self.headers.items()}
        is_json = headers.get("content-type", "").startswith("application/json")
        try:
            body = gzip.decompress(raw) if headers.get("content-encoding") == "gzip" else raw
            spans = parse_spans(body, is_json=is_json)
        except (ValueError, OSError, EOFError, zlib.error) as error:
            self._respond(Answer(status=400, body=str(error).encode()), b"")
            return
        request = ReceivedRequest(path=self.path, headers=headers, raw=raw, body=body, spans=spans)
        answer = self.server.receiver._take(request)  # noqa: SLF001
        response = _response(answer)
        default = orjson.dumps(MessageToDict(response)) if is_json else response.SerializeToString()
        self._respond(answer, default)

    def _respond(self, answer: Answer, default: bytes) -> None:
        body = default if answer.body is None else answer.body
        headers = {**answer.headers, "content-length": str(len(body))}
        # Put together by hand, so that it can be dripped and cut.
        lines = [f"HTTP/1.1 {answer.status} Scripted", *(f"{k}: {v}" for k, v in headers.items())]
        head = "\r\n".join([*lines, "", ""]).encode()
        message = head + body
        if answer.hang_up_after is not None:
            message = message[: answer.hang_up_after]
            self.close_connection = True
        if answer.drip_s:
            for byte in message:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.server.receiver._closing.wait(answer.drip_s):  # noqa: SLF001
                    break
            return
        self.wfile.write(message)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep the terminal for the tests' words."""

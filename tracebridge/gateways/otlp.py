"""OTLP over HTTP, received: what other gateways export, and what an agent says about itself.

An export request comes in, as protobuf or JSON. Spans of other gateways go out as they are, as one
`SpanExport`; of each log record that an agent's module wants, the attributes that it names, as one
`HookEvent` per agent. Nothing is acknowledged before it is in the spool. All else is taken in and
let go: an exporter that was refused would tell its user so.

Served on the gateway's own port: a connection whose first request is an export is an exporter's.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tracebridge.agents import telemetry
from tracebridge.fields import dict_of, dicts_in, text_of
from tracebridge.fragments import split
from tracebridge.gateways.decompress import decompress
from tracebridge.gateways.forwarding import Forwarder
from tracebridge.gateways.framing import BadRequestError, RequestHead
from tracebridge.gateways.taken_over import TakenOver
from tracebridge.model import HookEvent, SpanExport

BODY_LIMIT = 16 * 1024 * 1024
# Ids, counts and names are short; what is longer is none of them.
VALUE_LIMIT = 256
TOO_LARGE = f"an export may have {BODY_LIMIT} bytes; export smaller batches"

PROTOBUF, JSON = "application/x-protobuf", "application/json"
_TRACES = "/v1/traces"
# Bytes that JSON has in hex, where protobuf's own mapping would have base64.
_IDS = ("traceId", "spanId", "parentSpanId")
# Notes for `status` of what was refused, by one process; whoever sends rubbish may send much of it.
_MOST_NOTES = 1000
_MESSAGES: Mapping[str, type[Message]] = {
    "/v1/logs": ExportLogsServiceRequest,
    _TRACES: ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
}
_GRPC_INVALID_ARGUMENT, _GRPC_UNAVAILABLE = 3, 14


Take: TypeAlias = Callable[[HookEvent | SpanExport | str], None]


class _TooLargeError(Exception):
    """What was compressed is larger than any export may be."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    service: str
    name: str
    time_ns: int
    attributes: Mapping[str, Any]


def parse_export(path: str, content_type: str, body: bytes) -> dict[str, Any]:
    """Return an export request in the shape of OTLP/JSON. Raise ValueError where it is none."""
    if content_type == JSON:
        document = orjson.loads(body)
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
        return document
    message = _MESSAGES[path]()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return MessageToDict(message)


def parse_spans(content_type: str, body: bytes) -> ExportTraceServiceRequest:
    """Return an export request of spans. Raise ValueError where it is none."""
    try:
        if content_type != JSON:
            return ExportTraceServiceRequest.FromString(body)
        document = parse_export(_TRACES, content_type, body)
        for group in dicts_in(document.get("resourceSpans")):
            for scope in dicts_in(group.get("scopeSpans")):
                for span in dicts_in(scope.get("spans")):
                    for bearer in (span, *dicts_in(span.get("links"))):
                        _ids_from_hex(bearer)
        return ParseDict(document, ExportTraceServiceRequest(), ignore_unknown_fields=True)
    except (DecodeError, ParseError, RecursionError) as error:
        raise ValueError(str(error)) from error


def log_records(export: Mapping[str, Any]) -> Iterator[LogRecord]:
    """Yield the log records of an export request, whatever else stands in it."""
    for group in dicts_in(export.get("resourceLogs")):
        resource = _attributes(dict_of(group.get("resource")))
        for scope in dicts_in(group.get("scopeLogs")):
            for record in dicts_in(scope.get("logRecords")):
                attributes = _attributes(record)
                yield LogRecord(
                    service=str(resource.get("service.name", "")),
                    name=text_of(record, "eventName") or str(attributes.get("event.name", "")),
                    time_ns=_number(record.get("timeUnixNano")),
                    attributes=attributes,
                )


def reduce(records: Iterator[LogRecord], now_ns: int) -> list[HookEvent]:
    """Return what the agents' modules want of *records*, as one event per agent."""
    kept: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if record.service not in telemetry():
            continue
        slug, wanted = telemetry()[record.service]
        facts = {
            name: value
            for name in sorted(wanted.kept.get(record.name, ()))
            if _is_short(value := record.attributes.get(name))
        }
        if facts:
            kept[slug].append({"name": record.name, "time_ns": record.time_ns, **facts})
    events = []
    for slug, facts_list in kept.items():
        payload = orjson.dumps({"telemetry": facts_list})
        events.append(
            HookEvent(
                agent=slug,
                time_ns=now_ns,
                pid=0,
                env={},
                payload=payload,
                payload_bytes=len(payload),
            )
        )
    return events


class OtlpReceiver:
    """Take over the connections of exporters.

    *take* gets each event, each export of spans and each note of what was refused; it may block or
    raise.
    """

    def __init__(self, take: Take) -> None:
        self._take = take

    def __call__(self, forwarder: Forwarder, head: RequestHead) -> asyncio.Protocol | None:
        return _Exporter(forwarder, self._take) if _path(head) in _MESSAGES else None


class _Exporter(TakenOver):
    """A connection on which export requests come, one after the other."""

    def __init__(self, forwarder: Forwarder, take: Take) -> None:
        super().__init__(forwarder)
        self._take = take
        # Refused: what still comes is thrown away, so that the client gets to our answer.
        self._ending = False

    def data_received(self, data: bytes) -> None:
        if self._ending or self._transport.is_closing():
            return
        self._held += data
        self._heard_bytes += len(data)
        if self._storing is not None:
            # Who does not wait for an answer is not read any further.
            self._transport.pause_reading()
            return
        try:
            self._advance()
        except BadRequestError as error:
            self._complain(error.status, str(error), self._head)

    def _advance(self) -> None:
        while self._storing is None and not self._ending:
            if self._head is None or self._reader is None:
                head = self._take_head()
                if head is None:
                    return
                self._admit(head)
                continue
            data = bytes(self._held)
            used, content = self._reader.feed(data)
            self._held[:] = data[used:]
            for piece in content:
                self._body += piece
            if len(self._body) > BODY_LIMIT:
                self._complain(413, TOO_LARGE, self._head)
            elif not self._reader.done:
                return
            else:
                self._store_soon(self._head)

    def _store_soon(self, head: RequestHead) -> None:
        body = bytes(self._body)
        self._head = self._reader = None
        self._body.clear()
        self._storing = asyncio.get_running_loop().create_task(self._store(head, body))

    def _admit(self, head: RequestHead) -> None:
        refused = self._forwarder.why_refused(head)
        if refused is not None:
            self._complain(*refused, head)
        elif _path(head) not in _MESSAGES:
            self._complain(404, f"not an OTLP path; there are {', '.join(_MESSAGES)}", head)
        elif head.method != "POST":
            self._complain(405, "exports are sent by POST", head)
        elif _content_type(head) not in {PROTOBUF, JSON}:
            self._complain(415, f"send {PROTOBUF} or {JSON}", head)
        elif (head.content_length or 0) > BODY_LIMIT:
            self._complain(413, TOO_LARGE, head)

    async def _store(self, head: RequestHead, body: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, self._take_in, head, body)
        except OSError as error:
            # The exporter keeps it and comes again.
            self._complain(503, f"the export cannot be kept: {error.strerror}", head)
        except _TooLargeError:
            self._complain(413, TOO_LARGE, head)
        # Whatever an exporter's bytes do, it must get an answer.
        except Exception as error:  # noqa: BLE001
            self._complain(400, f"the export cannot be read: {error}", head)
        else:
            self._answer(200, b"" if _content_type(head) == PROTOBUF else b"{}", head)
        finally:
            self._storing = None
        if self._forwarder.draining:
            self._transport.close()
        elif not self._ending:
            self._transport.resume_reading()
            self.data_received(b"")

    def _take_in(self, head: RequestHead, body: bytes) -> None:
        data = decompress(body, head.fields.get("content-encoding", ""))
        if len(data) > BODY_LIMIT:
            # A message takes far more memory than its bytes, and agents wait for this process.
            raise _TooLargeError
        if _path(head) == _TRACES:
            spans = parse_spans(_content_type(head), data)
            fragments, _ = split(spans)
            if fragments:
                self._take(SpanExport(time_ns=time.time_ns(), request=spans.SerializeToString()))
            return
        export = parse_export(_path(head), _content_type(head), data)
        for event in reduce(log_records(export), time.time_ns()):
            self._take(event)

    def _note(self, text: str) -> None:
        # It is told on stderr anyway.
        with suppress(OSError):
            self._take(text)

    def _complain(self, status: int, message: str, head: RequestHead | None) -> None:
        kind = f"export refused ({status})"
        self._forwarder.complaints.add(kind, message)
        if status != 503 and self._forwarder.complaints.counts[kind] <= _MOST_NOTES:
            asyncio.get_running_loop().run_in_executor(
                None, self._note, f"{kind}; the gateway says why on stderr"
            )
        code = _GRPC_UNAVAILABLE if status == 503 else _GRPC_INVALID_ARGUMENT
        text = f"tracebridge gateway: {message}"[:500]
        if head is not None and _content_type(head) == PROTOBUF:
            body = Status(code=code, message=text).SerializeToString()
        else:
            body = orjson.dumps({"code": code, "message": text})
        self._answer(status, body, head)
        if status != 503:
            self._ending = True
            self._end_lingering()

    def _answer(self, status: int, body: bytes, head: RequestHead | None) -> None:
        is_protobuf = head is not None and _content_type(head) == PROTOBUF
        self._write(status, PROTOBUF if is_protobuf else JSON, body)


def _ids_from_hex(bearer: dict[str, Any]) -> None:
    for name in _IDS:
        told = text_of(bearer, name)
        if told is not None:
            bearer[name] = base64.b64encode(bytes.fromhex(told)).decode()


def _path(head: RequestHead) -> str:
    return head.path


def _content_type(head: RequestHead) -> str:
    return head.fields.get("content-type", "").partition(";")[0].strip().lower()


def _attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _value(dict_of(each.get("value")))
        for each in dicts_in(holder.get("attributes"))
        if (key := text_of(each, "key"))
    }


def _value(value: Mapping[str, Any]) -> Any:
    """Return a plain value, None for structures: nothing that is kept is one."""
    for kind in ("stringValue", "boolValue", "doubleValue"):
        if kind in value:
            return value[kind]
    # The encodings differ in whether 64 bits are text.
    return _number(value["intValue"]) if "intValue" in value else None


def _number(value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return number if abs(number) < 2**63 else 0


def _is_short(value: Any) -> bool:
    return value is not None and (not isinstance(value, str) or len(value) <= VALUE_LIMIT)

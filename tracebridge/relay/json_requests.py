"""OTLP/JSON requests to protobuf, which is what all else here understands. Pure."""

from __future__ import annotations

import base64
from typing import Any

import orjson
from google.protobuf.json_format import ParseDict, ParseError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tracebridge.fields import dicts_in

_IDS = ("traceId", "spanId", "parentSpanId")


def parse_json(body: bytes) -> bytes:
    """Return an export request as protobuf. Raise ValueError where it is none."""
    document = orjson.loads(body)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    for resource in dicts_in(document.get("resourceSpans")):
        for scope in dicts_in(resource.get("scopeSpans")):
            for span in dicts_in(scope.get("spans")):
                for bearer in (span, *dicts_in(span.get("links"))):
                    _ids_to_base64(bearer)
    try:
        message = ParseDict(document, ExportTraceServiceRequest(), ignore_unknown_fields=True)
    except (ParseError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return message.SerializeToString()


def _ids_to_base64(bearer: dict[str, Any]) -> None:
    # The standard mapping but for ids, which OTLP/JSON has in hex.
    for name in _IDS:
        if isinstance(bearer.get(name), str):
            bearer[name] = base64.b64encode(bytes.fromhex(bearer[name])).decode()

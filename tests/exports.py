"""What real gateways exported while real agents worked through them, and what else was seen then.

`tests/gateways/exports/` has for each recording the export requests, the agent's transcript, and
what the model really answered. `tests/real_gateways/` plays the same anew.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

NOW = 1_795_000_000_000_000_000
FOLDER = Path(__file__).with_name("gateways") / "exports"


def documents(name: str) -> list[dict[str, Any]]:
    """Return the export requests of a recording, as OTLP/JSON."""
    return json.loads((FOLDER / name / "exports.json").read_text("utf-8"))


def transcript(name: str) -> Path:
    (path,) = (FOLDER / name).glob("*.jsonl")
    return path


def truth(name: str) -> list[dict[str, Any]]:
    """Return what the model answered in a recording."""
    return json.loads((FOLDER / name / "truth.json").read_text("utf-8"))


def message(document: dict[str, Any]) -> ExportTraceServiceRequest:
    """Return OTLP/JSON as a message; protobuf's own mapping has ids in base64, not in hex."""
    copy = json.loads(json.dumps(document))
    for group in copy["resourceSpans"]:
        for scope in group["scopeSpans"]:
            for span in scope["spans"]:
                for bearer in (span, *span.get("links", ())):
                    for name in ("traceId", "spanId", "parentSpanId"):
                        if name in bearer:
                            bearer[name] = base64.b64encode(bytes.fromhex(bearer[name])).decode()
    return ParseDict(copy, ExportTraceServiceRequest())


def whole(name: str) -> ExportTraceServiceRequest:
    """Return all that a recording holds, as one request."""
    request = ExportTraceServiceRequest()
    for document in documents(name):
        request.MergeFrom(message(document))
    return request


def exported(
    *spans: dict[str, Any], service: str = "litellm", scope: str = "litellm", **resource: str
) -> ExportTraceServiceRequest:
    """Return an export of spans given by name, id, parent and attributes."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    add_attributes(group.resource, {"service.name": service, **resource})
    part = group.scope_spans.add()
    part.scope.name = scope
    for number, given_ in enumerate(spans, 1):
        span = part.spans.add(
            name=given_.get("name", "chat m"),
            trace_id=bytes.fromhex(given_.get("trace", "ab" * 16)),
            span_id=bytes([given_.get("id", number)]) * 8,
            start_time_unix_nano=given_.get("start", NOW),
            end_time_unix_nano=given_.get("end", NOW + 1_000_000),
        )
        if "parent" in given_:
            span.parent_span_id = bytes([given_["parent"]]) * 8
        if "error" in given_:
            span.status.code = 2
            span.status.message = given_["error"]
        add_attributes(span, given_.get("attributes", {}))
    return request


def add_attributes(holder: Any, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        added = holder.attributes.add(key=name)
        if isinstance(value, list):
            for each in value:
                added.value.array_value.values.add(string_value=each)
        else:
            kind = {
                bool: "bool_value",
                int: "int_value",
                float: "double_value",
                str: "string_value",
            }
            setattr(added.value, kind[type(value)], value)

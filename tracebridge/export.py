"""Stored turns as one OTLP/JSON document, or as lines with one flat JSON object a span. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from tracebridge.encode import encode_span, to_json
from tracebridge.model import Span
from tracebridge.spans import resource_of
from tracebridge.store import TurnRow


def document(turns: Iterable[tuple[TurnRow, Sequence[Span]]]) -> dict[str, Any]:
    """Return `resourceSpans` with the spans of the turns; what still runs is left out."""
    groups: dict[tuple[tuple[str, str], ...], list[bytes]] = {}
    for row, spans in turns:
        resource = resource_of(row.agent, spans)
        for span in spans:
            if span.end_ns is not None:
                groups.setdefault(span.origin or resource, []).append(encode_span(span))
    return to_json(groups)


def lines(turns: Iterable[tuple[TurnRow, Sequence[Span]]]) -> Iterator[str]:
    """Yield each finished span as a line of JSON, its attributes by their full names."""
    for row, spans in turns:
        for span in spans:
            if span.end_ns is not None:
                yield orjson.dumps(_flat(row, span)).decode()


def _flat(row: TurnRow, span: Span) -> dict[str, Any]:
    return {
        "trace_id": span.sent_trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.sent_parent_span_id,
        "agent": row.agent,
        "session_id": row.session_id,
        "name": span.name,
        "kind": span.kind.name,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "status": span.status.name,
        "status_message": span.status_message,
        "attributes": dict(span.attributes),
        "events": [
            {"name": event.name, "time_ns": event.time_ns, "attributes": dict(event.attributes)}
            for event in span.events
        ],
    }

"""Stored turns as one OTLP/JSON document. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tracebridge.encode import encode_span, to_json
from tracebridge.model import Span
from tracebridge.spans import resource_of
from tracebridge.store import TurnRow


def document(turns: Iterable[tuple[TurnRow, Sequence[Span]]]) -> dict[str, Any]:
    """Return `resourceSpans` with the spans of the turns; what still runs is left out."""
    groups: dict[tuple[tuple[str, str], ...], list[bytes]] = {}
    for row, spans in turns:
        encoded = [encode_span(span) for span in spans if span.end_ns is not None]
        groups.setdefault(resource_of(row.agent, spans), []).extend(encoded)
    return to_json(groups)

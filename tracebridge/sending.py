"""Deliver now what waits for sinks, and what they, or others, are to get once more."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tracebridge import semconv
from tracebridge.delivery import deliver
from tracebridge.encode import encode_span
from tracebridge.foreign import by_origin
from tracebridge.ids import root_span_id, trace_id
from tracebridge.levels import keep_levels
from tracebridge.model import Span, SpanKind
from tracebridge.remembered import turns_of_session
from tracebridge.settings import Settings
from tracebridge.sinks import OutboxSpan, ReadySink, kinds
from tracebridge.spans import Content, render, resource_of
from tracebridge.store import Store, TurnRow


@dataclass(frozen=True, slots=True)
class Sent:
    sink: str
    # Where it is, for people.
    target: str
    spans: int
    # What stopped it, with the remedy.
    error: str | None


def deliver_now(store: Store, sinks: Iterable[ReadySink]) -> list[Sent]:
    """Send all that waits, however long a sink wanted to be left alone."""
    reports = []
    for ready in sinks:
        sink = ready.open()
        try:
            with store.delivering(ready.name, wait=True):
                store.hurry(ready.name)
                report = deliver(store, ready.name, sink)
        finally:
            sink.close()
        reports.append(Sent(ready.name, ready.target, report.acknowledged, report.error))
    return reports


def send_again(
    turns: Iterable[tuple[TurnRow, Sequence[Span]]],
    store: Store,
    sinks: Sequence[ReadySink],
    settings: Settings,
) -> list[Sent]:
    """Send finished turns to these sinks, whoever had them before: same ids, same content."""
    keep_levels(store, sinks, settings)
    with store.transaction():
        for row, spans in turns:
            resource = resource_of(row.agent, spans, settings.resource)
            told = [span for span in spans if span.end_ns is not None]
            for sink in sinks:
                offered = _reduced(told, row, store, sink)
                for origin, group in by_origin(offered):
                    encoded = [(span.span_id, encode_span(span)) for span in group]
                    store.offer(row.trace_id, encoded, origin or resource, [sink.name])
    return deliver_now(store, sinks)


def _reduced(told: Sequence[Span], row: TurnRow, store: Store, sink: ReadySink) -> Sequence[Span]:
    """Return the spans as the sink may have them."""
    if not sink.content:
        return told
    turn = turns_of_session(store, row.agent, row.session_id).get(row.trace_id)
    spans = render(turn, Content(sink.content)) if turn is not None else ()
    ids = {span.span_id for span in told}
    return [span for span in spans if span.span_id in ids and span.end_ns is not None]


def known_sinks() -> dict[str, str]:
    """Return each kind of sink with the first line of what its module says of itself."""
    found = {}
    for kind in kinds():
        said = importlib.import_module(f"tracebridge.sinks.{kind}").__doc__ or ""
        found[kind] = said.partition("\n\n")[0].replace("\n", " ")
    return found


def try_sink(ready: ReadySink) -> Sent:
    """Send one span that says what it is, past the outbox, and return what became of it."""
    now_ns = time.time_ns()
    trace = trace_id("tracebridge", "sink", str(now_ns))
    span = Span(
        trace_id=trace,
        span_id=root_span_id(trace),
        parent_span_id=None,
        name="tracebridge sink",
        kind=SpanKind.INTERNAL,
        start_ns=now_ns,
        end_ns=time.time_ns(),
        attributes={semconv.SPAN_TYPE: "test", semconv.OI_KIND: "CHAIN"},
    )
    sink = ready.open()
    try:
        receipt = sink.send(
            [
                OutboxSpan(
                    span_id=span.span_id,
                    trace_id=trace,
                    resource=resource_of("tracebridge", [span]),
                    data=encode_span(span),
                )
            ]
        )
    finally:
        sink.close()
    error = receipt.error or next(iter(receipt.refused.values()), None)
    return Sent(ready.name, ready.target, len(receipt.acknowledged), error)

"""What waits for a sink, brought down to what the sink may have since its content level was lowered."""

from __future__ import annotations

from collections.abc import Iterable

from tracebridge.encode import encode_span
from tracebridge.remembered import turns_of_session
from tracebridge.settings import Settings
from tracebridge.sinks import ReadySink
from tracebridge.spans import Content, render
from tracebridge.store import Store


def keep_levels(store: Store, sinks: Iterable[ReadySink], settings: Settings) -> None:
    """Let nothing wait for a sink that says more than the sink may have now."""
    order = list(Content)
    for sink in sinks:
        level = Content(sink.content) if sink.content else settings.content
        before = store.level(sink.name)
        if before == level:
            continue
        with store.transaction():
            if before is not None and order.index(level) < order.index(Content(before)):
                _lower(store, sink.name, level)
            store.set_level(sink.name, level)


def _lower(store: Store, sink: str, level: Content) -> None:
    dropped = 0
    for trace_id in store.waiting_traces(sink):
        row = next(iter(store.turns(trace_prefix=trace_id, limit=1)), None)
        turn = None
        if row is not None:
            turn = turns_of_session(store, row.agent, row.session_id).get(trace_id)
        spans = render(turn, level) if turn is not None else ()
        dropped += store.replace_waiting(
            sink, trace_id, {span.span_id: encode_span(span) for span in spans}
        )
    if dropped:
        # A call that no turn claims, or a turn of which only the spans are left.
        store.add_notes(
            {f"span not sent to {sink}, which may not have all of it any more": dropped}
        )

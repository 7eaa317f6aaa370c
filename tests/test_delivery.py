from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tracebridge import ids
from tracebridge.delivery import BYTES_PER_BATCH, DeliveryReport, deliver, pause_s
from tracebridge.encode import encode_span
from tracebridge.model import Span, SpanKind
from tracebridge.sinks import OutboxSpan, Receipt, prepare
from tracebridge.sinks.memory import MemorySink
from tracebridge.testing.receiver import Answer, Receiver

SECOND_NS = 1_000_000_000


@dataclass
class ListOutbox:
    """An outbox that forgets nothing it is told."""

    waiting: list[OutboxSpan]
    refused: dict[str, str] = field(default_factory=dict)
    postponed: tuple[int, str] = (0, "")

    def due(self, sink, now_ns, limit):
        assert sink == "s"
        return self.waiting[:limit] if now_ns >= self.postponed[0] else []

    def acknowledge(self, sink, span_ids):
        assert sink == "s"
        self._drop(set(span_ids))

    def refuse(self, sink, span_ids, reason):
        assert sink == "s"
        self.refused |= dict.fromkeys(span_ids, reason)
        self._drop(set(span_ids))

    def postpone(self, sink, until_ns, reason):
        assert sink == "s"
        self.postponed = (until_ns, reason)

    def _drop(self, span_ids):
        self.waiting = [span for span in self.waiting if span.span_id not in span_ids]


def make_spans(count: int, text: str = "") -> list[OutboxSpan]:
    trace_id = ids.trace_id("claude-code", "session", "turn")
    spans = []
    for number in range(count):
        # The root is put into the outbox last.
        is_root = number == count - 1
        root_id = ids.root_span_id(trace_id)
        span_id = root_id if is_root else ids.span_id(trace_id, "tool", str(number))
        span = Span(
            trace_id=trace_id,
            span_id=span_id,
            parent_span_id=None if is_root else root_id,
            name=str(number),
            kind=SpanKind.INTERNAL,
            start_ns=1,
            end_ns=2,
            attributes={"text": text},
        )
        data = encode_span(span)
        spans.append(OutboxSpan(span_id=span_id, trace_id=trace_id, resource=(), data=data))
    return spans


class ScriptedSink:
    """Gives one receipt after the other."""

    def __init__(self, *receipts) -> None:
        self.receipts = list(receipts)
        self.batches: list[int] = []

    def send(self, spans):
        self.batches.append(len(spans))
        receipt = self.receipts.pop(0)
        if isinstance(receipt, Exception):
            raise receipt
        return receipt

    def close(self):
        pass


def test_all_that_is_due_is_sent_in_order_the_root_last():
    """Batch by batch until the outbox is empty."""
    spans = make_spans(1200)
    outbox, sink = ListOutbox(list(spans)), MemorySink()
    report = deliver(outbox, "s", sink, clock=lambda: 0)
    assert report == DeliveryReport(acknowledged=1200)
    assert sink.spans == spans
    assert outbox.waiting == []


def test_a_batch_stays_below_what_receivers_take():
    """Large spans go in smaller batches, one too large for any batch alone."""
    spans = [*make_spans(1, "x" * (BYTES_PER_BATCH + 1)), *make_spans(5, "x" * 1_900_000)]
    outbox = ListOutbox(spans)
    sink = ScriptedSink(*[Receipt(error="seen")] * 9)
    sizes = []
    while outbox.waiting:
        deliver(outbox, "s", sink, clock=lambda: 10**18, draw=lambda: 0.0)
        sizes.append(sink.batches[-1])
        outbox = ListOutbox(outbox.waiting[sizes[-1] :])
    assert sizes == [1, 2, 2, 1]


def test_a_failure_postpones_the_rest_and_keeps_it():
    """What was acknowledged before is gone, the rest waits until it is time."""
    spans = make_spans(4)
    outbox = ListOutbox(list(spans))
    first = (spans[0].span_id,)
    sink = ScriptedSink(Receipt(acknowledged=first, error="down", retry_after_s=30))
    report = deliver(outbox, "s", sink, failures=5, clock=lambda: SECOND_NS, draw=lambda: 1.0)
    assert report == DeliveryReport(
        acknowledged=1, error="down", retry_at_ns=32 * SECOND_NS, failures=1
    )
    assert outbox.waiting == spans[1:]
    assert outbox.postponed == (32 * SECOND_NS, "down")
    assert deliver(outbox, "s", sink, clock=lambda: 31 * SECOND_NS) == DeliveryReport()
    memory = MemorySink()
    assert deliver(outbox, "s", memory, clock=lambda: 32 * SECOND_NS).acknowledged == 3
    assert memory.spans == spans[1:]


def test_failures_without_progress_are_counted():
    """Each delivery takes over the count of the one before; progress sets it back."""
    outbox = ListOutbox(make_spans(2))
    failures = 0
    for expected in (1, 2, 3):
        report = deliver(
            outbox,
            "s",
            ScriptedSink(Receipt(error="down")),
            failures=failures,
            clock=lambda: outbox.postponed[0],
            draw=lambda: 1.0,
        )
        failures = report.failures
        assert failures == expected
    report = deliver(
        outbox, "s", MemorySink(), failures=failures, clock=lambda: outbox.postponed[0]
    )
    assert (report.acknowledged, report.failures) == (2, 0)


def test_refused_spans_are_kept_with_their_reason():
    """They are offered no more, and the others go on."""
    spans = make_spans(3)
    outbox = ListOutbox(list(spans))
    refused = {spans[0].span_id: "bad", spans[1].span_id: "worse"}
    report = deliver(
        outbox,
        "s",
        ScriptedSink(Receipt(refused=refused), Receipt(acknowledged=(spans[2].span_id,))),
        clock=lambda: 0,
    )
    assert (report.acknowledged, report.refused, report.error) == (1, 2, None)
    assert outbox.refused == refused


@pytest.mark.parametrize("result", [RuntimeError("boom"), Receipt()])
def test_a_sink_with_a_bug_loses_nothing(result):
    """An exception or an empty receipt is a failure like any other."""
    spans = make_spans(2)
    outbox = ListOutbox(list(spans))
    report = deliver(outbox, "s", ScriptedSink(result), clock=lambda: 0)
    assert outbox.waiting == spans
    assert report.error
    assert report.failures == 1


def test_pauses_grow_to_five_minutes_with_full_jitter():
    """A second, doubled with each failure, and any part of it."""
    assert [pause_s(n, None, lambda: 1.0) for n in (1, 2, 3, 9, 10, 10_000)] == [
        1,
        2,
        4,
        256,
        300,
        300,
    ]
    assert pause_s(5, None, lambda: 0.0) == 0
    assert pause_s(5, None, lambda: 0.5) == 8


def test_what_the_backend_asks_for_is_heeded_up_to_an_hour():
    """The jitter comes on top, so nobody is back too early."""
    assert pause_s(1, 30, lambda: 0.5) == 30.5
    assert pause_s(1, 10**9, lambda: 0.0) == 3600


def test_a_backend_that_was_down_has_everything_in_the_end_once():
    """With outages, cut answers and a poisoned span, over real sockets."""
    spans = make_spans(700)
    bad = spans[100].span_id
    outbox = ListOutbox(list(spans))
    time_ns = 0
    failures = 0
    with Receiver() as receiver:
        sink = prepare("otlp_http", {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}).open()
        receiver.rule = lambda request: Answer(status=400 if bad in request.span_ids else 200)
        receiver.answer_next(
            Answer(status=503),
            Answer(status=500, hang_up_after=0),
            Answer(status=401),
            Answer(status=429),
        )
        for _ in range(10):
            now_ns = max(time_ns, outbox.postponed[0])
            report = deliver(
                outbox, "s", sink, failures=failures, clock=lambda now_ns=now_ns: now_ns
            )
            failures, time_ns = report.failures, now_ns
            if not outbox.waiting:
                break
        sink.close()
        bodies = {span.span_id: span.message.SerializeToString() for span in receiver.spans}
    assert bodies == {span.span_id: span.data for span in spans if span.span_id != bad}
    assert list(outbox.refused) == [bad]

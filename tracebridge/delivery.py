"""From the outbox to a sink: at least once, in order, and as slowly as the backend wants it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tracebridge.sinks import OutboxSpan, Receipt, Sink

SPANS_PER_BATCH = 512
# Below the 4 MiB at which gRPC receivers refuse a message, with room for what is around the spans.
BYTES_PER_BATCH = 4_000_000
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
LONGEST_RETRY_AFTER_S = 3600.0


class Outbox(Protocol):
    """What we expect of an outbox: for each sink it remembers what has not been acknowledged."""

    def due(self, sink: str, now_ns: int, limit: int) -> Sequence[OutboxSpan]:
        """Return what waits, in the order in which it came in; nothing while postponed."""
        ...

    def acknowledge(self, sink: str, span_ids: Sequence[str]) -> None:
        """Forget spans that the backend has."""
        ...

    def refuse(self, sink: str, span_ids: Sequence[str], reason: str) -> None:
        """Offer spans no more that the backend will never take, and keep why."""
        ...

    def postpone(self, sink: str, until_ns: int, reason: str) -> None:
        """Offer this sink nothing before *until_ns*, and keep why."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryReport:
    acknowledged: int = 0
    refused: int = 0
    # Why the delivery ended before the outbox was empty.
    error: str | None = None
    retry_at_ns: int | None = None
    # Deliveries that failed since one last got something through; give it to the next.
    failures: int = 0


def deliver(
    outbox: Outbox,
    sink_name: str,
    sink: Sink,
    *,
    failures: int = 0,
    clock: Callable[[], int] = time.time_ns,
    draw: Callable[[], float] = random.random,
) -> DeliveryReport:
    """Send what is due until nothing is, or until the sink stops us.

    Killed at any point, what was not acknowledged is sent again by the next delivery.
    """
    acknowledged = refused = 0
    while batch := _batch(outbox.due(sink_name, clock(), SPANS_PER_BATCH)):
        receipt = _send(sink, batch)
        if receipt.acknowledged:
            outbox.acknowledge(sink_name, receipt.acknowledged)
        for reason, span_ids in _by_reason(receipt.refused).items():
            outbox.refuse(sink_name, span_ids, reason)
        acknowledged += len(receipt.acknowledged)
        refused += len(receipt.refused)
        progress = bool(receipt.acknowledged or receipt.refused)
        if progress:
            failures = 0
        if receipt.error is None and progress:
            continue
        error = receipt.error or f"sink {sink_name} says nothing about the spans it was given"
        failures += 1
        until_ns = clock() + int(pause_s(failures, receipt.retry_after_s, draw) * 1e9)
        outbox.postpone(sink_name, until_ns, error)
        return DeliveryReport(
            acknowledged=acknowledged,
            refused=refused,
            error=error,
            retry_at_ns=until_ns,
            failures=failures,
        )
    return DeliveryReport(acknowledged=acknowledged, refused=refused, failures=failures)


def pause_s(failures: int, retry_after_s: float | None, draw: Callable[[], float]) -> float:
    """Return how long to wait after so many failures in a row: exponential, with full jitter."""
    longest = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 30), LONGEST_PAUSE_S)
    # On top of what the backend asks for, so that not all of its clients come back at once.
    return min(retry_after_s or 0.0, LONGEST_RETRY_AFTER_S) + draw() * longest


def _batch(spans: Sequence[OutboxSpan]) -> list[OutboxSpan]:
    """Return as many of the first spans as fit, and one in any case."""
    batch: list[OutboxSpan] = []
    size = 0
    for span in spans:
        size += len(span.data)
        if batch and size > BYTES_PER_BATCH:
            break
        batch.append(span)
    return batch


def _send(sink: Sink, batch: Sequence[OutboxSpan]) -> Receipt:
    try:
        return sink.send(batch)
    except Exception as error:  # noqa: BLE001 - a sink is anybody's code; others must go on
        return Receipt(error=f"the sink failed: {type(error).__name__}: {error}")


def _by_reason(refused: Mapping[str, str]) -> dict[str, list[str]]:
    span_ids: dict[str, list[str]] = {}
    for span_id, reason in refused.items():
        span_ids.setdefault(reason, []).append(span_id)
    return span_ids

"""What a gateway says of itself: that it lives, and its figures in Prometheus' text format.

What calls cost and how they went is in the watcher's metrics too, with what only it knows; these
are for those who run the gateway.
"""

from __future__ import annotations

import json
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tracebridge.gateways.forwarding import HEALTH, Forwarder
from tracebridge.model import GatewayCall

METRICS = "/tracebridge/metrics"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "tracebridge_gateway_"
_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
_Labels = tuple[tuple[str, str], ...]
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Figures:
    """Counts calls, in the recording thread, and answers for the gateway."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.time()
        self._calls: Counter[_Labels] = Counter()
        self._tokens: Counter[_Labels] = Counter()
        self._seconds: dict[_Labels, _Histogram] = defaultdict(_Histogram)
        self._first_token: dict[_Labels, _Histogram] = defaultdict(_Histogram)
        self._unpriced: Counter[_Labels] = Counter()

    def count(self, call: GatewayCall) -> None:
        who = (("client", call.client_name or ""), ("provider", call.provider or ""))
        status = "none" if call.status_code is None else str(call.status_code)
        with self._lock:
            self._calls[*who, ("status", status)] += 1
            self._seconds[who].add((call.end_ns - call.start_ns) / 1e9)
            if call.first_token_ns is not None:
                self._first_token[who].add((call.first_token_ns - call.start_ns) / 1e9)
            if call.usage is not None:
                for kind in ("input", "output", "cache_read", "cache_write"):
                    tokens = getattr(call.usage, f"{kind}_tokens") or 0
                    self._tokens[*who, ("type", kind)] += tokens

    def count_unpriced(self, call: GatewayCall) -> None:
        with self._lock:
            self._unpriced[("client", call.client_name or ""),] += 1

    def own_page(self, forwarder: Forwarder, path: str) -> tuple[str, bytes] | None:
        """Return content type and body of the page at *path*, None if there is none."""
        if path == HEALTH:
            return "application/json", json.dumps({"status": "ok"}).encode()
        # Where everybody is let in, it is nobody's business who else was.
        is_for_all = forwarder.names is not None and forwarder.access.keys is None
        if path == METRICS and not is_for_all:
            return PROMETHEUS, "".join(self._lines(forwarder)).encode()
        return None

    def _lines(self, forwarder: Forwarder) -> Iterable[str]:
        refused = _by("status", forwarder.refused)
        complaints = _by("kind", forwarder.complaints.counts)
        yield from _metric("start_time_seconds", "gauge", {(): self._started})
        yield from _metric("connections", "gauge", {(): len(forwarder.connections)})
        yield from _metric("backlog_calls", "gauge", {(): forwarder.recorder.backlog_calls})
        yield from _metric("refused_total", "counter", refused)
        yield from _metric("complaints_total", "counter", complaints)
        with self._lock:
            yield from _metric("calls_total", "counter", self._calls)
            yield from _metric("tokens_total", "counter", self._tokens)
            yield from _metric("unpriced_calls_total", "counter", self._unpriced)
            yield from _histograms("call_seconds", self._seconds)
            yield from _histograms("first_token_seconds", self._first_token)
        spending = forwarder.spending
        keys = forwarder.access.keys or ()
        if spending is not None and keys:
            spent = {key.name: spending.usd_today(key.name) for key in keys}
            yield from _metric("spent_usd_today", "gauge", _by("client", spent))
            limits = {key.name: key.usd_per_day for key in keys if key.usd_per_day is not None}
            yield from _metric("limit_usd_per_day", "gauge", _by("client", limits))


class _Histogram:
    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS_S) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(_BOUNDS_S, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: _Labels) -> Iterable[str]:
        total = 0
        for bound, number in zip((*map(str, _BOUNDS_S), "+Inf"), self._counts, strict=True):
            total += number
            yield _line(f"{name}_bucket", (*labels, ("le", bound)), total)
        yield _line(f"{name}_sum", labels, self._sum)
        yield _line(f"{name}_count", labels, total)


def _by(label: str, values: Mapping[Any, float]) -> dict[_Labels, float]:
    return {((label, str(word)),): value for word, value in values.items()}


def _metric(name: str, kind: str, values: Mapping[_Labels, float]) -> Iterable[str]:
    if values:
        yield f"# TYPE {_PREFIX}{name} {kind}\n"
        for labels, value in values.items():
            yield _line(name, labels, value)


def _histograms(name: str, values: Mapping[_Labels, _Histogram]) -> Iterable[str]:
    if values:
        yield f"# TYPE {_PREFIX}{name} histogram\n"
        for labels, histogram in values.items():
            yield from histogram.lines(name, labels)


def _line(name: str, labels: _Labels, value: float) -> str:
    text = ",".join(f'{label}="{word.translate(_ESCAPES)}"' for label, word in labels)
    return f"{_PREFIX}{name}{{{text}}} {value}\n" if text else f"{_PREFIX}{name} {value}\n"

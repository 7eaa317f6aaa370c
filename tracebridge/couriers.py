"""Deliver what is in the outbox, each sink in a thread of its own."""

from __future__ import annotations

import logging
import threading

from tracebridge.delivery import deliver
from tracebridge.settings import Settings
from tracebridge.sinks import ReadySink, Sink
from tracebridge.store import Store, StoreError
from tracebridge.watch_lock import Lock

# What may wait for a sink that does not answer; then its oldest turns are not sent to it any more.
OUTBOX_LIMIT_BYTES = 1 << 30

logger = logging.getLogger(__name__)


class Courier(threading.Thread):
    """Deliver what is in the outbox, beside the watcher: a backend that hangs stops nobody."""

    def __init__(self, settings: Settings, sink: ReadySink, lock: Lock) -> None:
        super().__init__(name=f"deliver to {sink.name}", daemon=True)
        self._settings = settings
        self._ready = sink
        self._lock = lock
        self._wake = threading.Event()
        self._stopping = False

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        sink = self._ready.open()
        while self._has_work():
            try:
                with Store(self._settings.home) as store:
                    self._deliver(store, sink)
            except StoreError as error:
                # A full disk gets room again; what was not acknowledged is sent once more.
                logger.warning("%s", error)
                self._wake.wait(1.0)
        sink.close()

    def _has_work(self) -> bool:
        # A store that is opened where there is none is made.
        return not self._stopping and self._lock.is_in_place()

    def _deliver(self, store: Store, sink: Sink) -> None:
        name = self._ready.name
        failures = 0
        while self._has_work():
            self._wake.clear()
            with store.delivering(name, wait=False) as alone:
                if alone:
                    report = deliver(store, name, sink, failures=failures)
                    failures = report.failures
                    if report.error is not None:
                        store.bound_outbox(name, OUTBOX_LIMIT_BYTES)
            self._wake.wait(1.0)

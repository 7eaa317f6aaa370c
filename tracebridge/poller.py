"""Ask other gateways for records of their calls, from time to time, and put them into the spool."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tracebridge.gateways.respan_logs import DEFAULT_BASE_URL, RespanLogs, RespanLogsError
from tracebridge.keys import KeyReferenceError, resolve
from tracebridge.settings import Settings
from tracebridge.spool import Spool
from tracebridge.store import Store, StoreError
from tracebridge.watch_lock import Lock

PAUSE_S = 30.0
LONGEST_PAUSE_S = 900.0

logger = logging.getLogger(__name__)


class Poller(threading.Thread):
    """Ask beside the watcher: an API that hangs stops nobody."""

    def __init__(self, settings: Settings, lock: Lock) -> None:
        super().__init__(name="ask for records", daemon=True)
        self._settings = settings
        self._lock = lock
        self._wake = threading.Event()

    def stop(self) -> None:
        self._wake.set()

    def run(self) -> None:
        failures = 0
        # A store that is opened where there is none is made.
        while self._lock.is_in_place():
            told_s = None
            try:
                poll(self._settings)
                failures = 0
            except (RespanLogsError, OSError, StoreError) as error:
                logger.warning("%s", error)
                failures += 1
                told_s = error.retry_after_s if isinstance(error, RespanLogsError) else None
            if self._wake.wait(pause_s(failures, told_s)):
                return


def pause_s(failures: int, told_s: float | None) -> float:
    """Return how long to wait after so many failures in a row; *told_s* is what the server asks."""
    doubled = PAUSE_S * 2 ** min(failures, 10)
    return min(max(doubled if failures else PAUSE_S, told_s or 0), LONGEST_PAUSE_S)


def poll(settings: Settings, clock: Callable[[], int] = time.time_ns) -> None:
    """Put what Respan has logged since the last time into the spool, if it is to be asked.

    Raise RespanLogsError where it does not answer; that is noted for `status` too.
    """
    reference = settings.values["respan_logs"].value
    if not reference:
        return
    base_url = settings.env.get("RESPAN_BASE_URL", "").strip() or DEFAULT_BASE_URL
    customer = settings.env.get("RESPAN_CUSTOMER_ID", "").strip() or None
    # A place of its own for each account and customer.
    place = Path(f"respan_logs:{base_url}#{customer or ''}")
    with Store(settings.home) as store:
        try:
            logs = RespanLogs(base_url, resolve(reference, settings.env), customer)
            reading = logs.read(store.cursor(place), clock())
        except (KeyReferenceError, RespanLogsError) as error:
            with store.transaction():
                store.add_notes({f"respan_logs: {error}": 1})
            if isinstance(error, RespanLogsError):
                raise
            raise RespanLogsError(f"respan_logs: {error}") from error
        spool = Spool(settings.home)
        for call in reading.calls:
            spool.write_call(call)
        # Only now: what was read and not kept is read again.
        with store.transaction():
            store.set_cursor(place, reading.cursor)

"""The watcher: spool and transcripts in, turns together, calls linked, finished spans out.

The loop, and the only module that knows all the others.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from watchdog.events import (
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)

from tracebridge.agents import agents
from tracebridge.couriers import Courier
from tracebridge.delivery import deliver
from tracebridge.file_events import observing
from tracebridge.gateways.respan_logs import RespanLogsError
from tracebridge.metrics import metrics_to
from tracebridge.poller import Poller, poll
from tracebridge.salvage import salvage
from tracebridge.settings import Settings
from tracebridge.spool import Spool
from tracebridge.store import DamagedStoreError, StoreError
from tracebridge.watch_lock import Lock, locked
from tracebridge.watcher import SECOND_NS, STALE_NS, Watcher

# How often transcripts of open turns are looked at, and the spool in case an event was lost.
BUSY_PAUSE_S = 0.1
IDLE_PAUSE_S = 2.0

logger = logging.getLogger(__name__)


class _Wake:
    """Wake the loop, also from a signal handler.

    A SimpleQueue's put may be called in the middle of its get; an Event would wait for itself.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[None] = SimpleQueue()
        self.to_stop = False

    def set(self) -> None:
        self._calls.put(None)

    def stop(self, *_: object) -> None:
        self.to_stop = True
        self.set()

    def wait(self, seconds: float) -> None:
        """Return when woken since the last wait, or after *seconds*."""
        with contextlib.suppress(Empty):
            self._calls.get(timeout=seconds)
            while True:
                self._calls.get_nowait()


class _SpoolEvents(FileSystemEventHandler):
    def __init__(self, wake: _Wake) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        del event
        self._wake.set()


def watch(settings: Settings, *, lock_fd: int | None = None, background: bool = False) -> bool:
    """Run until stopped; in the *background*, or started by a hook, until there is no work.

    Return False if another watcher has the lock.
    """
    wake = _Wake()
    signal.signal(signal.SIGTERM, wake.stop)
    signal.signal(signal.SIGINT, wake.stop)
    patience_s = settings.idle_minutes * 60 if background or lock_fd is not None else None
    damage: DamagedStoreError | None = None
    while True:
        with locked(settings.home, lock_fd) as lock:
            if lock is None:
                return False
            lock_fd = None
            try:
                _watch(settings, wake, patience_s, damage, lock)
                damage = None
            except DamagedStoreError as error:
                damage = error
                continue
            if not lock.is_in_place():
                logger.error("%s was removed or replaced; its watcher leaves", settings.home)
                return True
            if not wake.to_stop:
                lock.may_be_taken_at_once()
        # A hook that came between the last look and the release saw a living watcher.
        if wake.to_stop or not Spool(settings.home).depth():
            return True


def _watch(
    settings: Settings,
    wake: _Wake,
    patience_s: float | None,
    damage: DamagedStoreError | None,
    lock: Lock,
) -> None:
    watcher = Watcher(settings) if damage is None else _with_new_store(settings, damage)
    watcher.spool.create()
    watcher.metrics = metrics_to(settings.env, watcher.spool.depth, settings.resource)
    couriers = [Courier(settings, sink, lock) for sink in watcher.sinks]
    for courier in couriers:
        courier.start()
    poller = Poller(settings, lock)
    if settings.values["respan_logs"].value:
        poller.start()
    try:
        with observing() as observer:
            observer.schedule(
                _SpoolEvents(wake),
                str(watcher.spool.new),
                event_filter=[FileCreatedEvent, FileMovedEvent],
            )
            for folder in settings.records:
                # One that cannot be watched, or is made later, is looked at from time to time.
                with contextlib.suppress(OSError):
                    observer.schedule(
                        _SpoolEvents(wake),
                        str(folder),
                        event_filter=[FileCreatedEvent, FileMovedEvent, FileModifiedEvent],
                    )
            _until_stopped(settings, watcher, couriers, wake, patience_s=patience_s, lock=lock)
    finally:
        for courier in couriers:
            courier.stop()
        poller.stop()
        for courier in couriers:
            courier.join(timeout=10)
        if poller.is_alive():
            poller.join(timeout=10)
        if watcher.metrics is not None:
            watcher.metrics.stop()
        # Of a home that is gone.
        with contextlib.suppress(StoreError):
            watcher.close()


def _until_stopped(
    settings: Settings,
    watcher: Watcher,
    couriers: Sequence[Courier],
    wake: _Wake,
    *,
    patience_s: float | None,
    lock: Lock,
) -> None:
    last_new = time.monotonic()
    last_tidy = -math.inf
    # In a home that is not the one we know nothing may be made.
    while not wake.to_stop and lock.is_in_place():
        try:
            if time.monotonic() - last_tidy > 3600:
                last_tidy = time.monotonic()
                _tidy(settings, watcher)
            if watcher.step():
                last_new = time.monotonic()
            for courier in couriers:
                courier.wake()
            idle_s = time.monotonic() - last_new
            if patience_s is not None and idle_s > patience_s and _is_done(watcher):
                break
        except DamagedStoreError:
            raise
        except (StoreError, OSError) as error:
            # A full disk gets room again; what was not taken in still lies in the spool.
            logger.warning("%s", error)
            wake.wait(IDLE_PAUSE_S)
            continue
        wake.wait(BUSY_PAUSE_S if watcher.busy and idle_s < 60 else IDLE_PAUSE_S)


def watch_once(settings: Settings, *, close_open: bool = False) -> bool:
    """Take in all that is there, close what can be closed, deliver; say whether all arrived.

    Works beside a running watcher too: what both do has the same result.
    """
    try:
        # What it does not tell now is noted, and comes next time.
        with contextlib.suppress(RespanLogsError):
            poll(settings)
        return _watch_once(Watcher(settings), close_open=close_open)
    except DamagedStoreError as error:
        with locked(settings.home, None) as lock:
            if lock is None:
                # The watcher that lives will do it.
                raise
            return _watch_once(_with_new_store(settings, error), close_open=close_open)


def _watch_once(watcher: Watcher, *, close_open: bool) -> bool:
    try:
        while watcher.step():
            pass
        watcher.step(settle_now=True, close_open=close_open)
        for ready in watcher.sinks:
            sink = ready.open()
            with watcher.store.delivering(ready.name, wait=True):
                watcher.store.hurry(ready.name)
                deliver(watcher.store, ready.name, sink)
            sink.close()
        return watcher.store.waiting() == 0
    finally:
        watcher.close()


def _with_new_store(settings: Settings, damage: DamagedStoreError) -> Watcher:
    """Return a watcher with a new store made of the damaged one, spool and transcripts."""
    logger.warning("%s", damage)
    saved = salvage(settings.home)
    logger.warning("%d rows saved; the damaged file is %s", saved.rows, saved.set_aside)
    watcher = Watcher(settings)
    watcher.look_again(saved.sessions, saved.transcripts | _recent_transcripts())
    return watcher


def _recent_transcripts() -> set[tuple[str, Path]]:
    """Return the transcripts of the last day: what they tell may not have been delivered yet."""
    recent = set()
    for slug, agent in agents().items():
        with contextlib.suppress(OSError):
            for past in agent.past_sessions(Path.home()):
                if past.changed_ns > time.time_ns() - STALE_NS:
                    recent.add((slug, past.path))
    return recent


def _is_done(watcher: Watcher) -> bool:
    return not watcher.busy and watcher.store.waiting() == 0


def _tidy(settings: Settings, watcher: Watcher) -> None:
    watcher.spool.drop_unfinished()
    watcher.store.forget_before(time.time_ns() - int(settings.retention_days * 86400 * SECOND_NS))

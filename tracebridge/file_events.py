"""Being told by the system what changes in a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver


@contextmanager
def observing() -> Iterator[BaseObserver]:
    """Run an observer of folders; its threads have ended when the block has."""
    observer = Observer()
    observer.start()
    watchdog = logging.getLogger("watchdog.observers.inotify")
    try:
        yield observer
    finally:
        # A file that changes just when the observer stops is an error to watchdog, and its message
        # would end up in a terminal or in the watcher's log.
        watchdog.disabled = True
        observer.stop()
        observer.join()
        watchdog.disabled = False

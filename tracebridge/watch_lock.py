"""The lock that says that a watcher lives; a hook may take it for the watcher that it starts."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "watch.lock"


@contextmanager
def locked(home: Path, lock_fd: int | None) -> Iterator[bool]:
    """Hold the lock that says that a watcher lives; a hook may have taken it for us."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if lock_fd is None:
        lock_fd = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock_fd)
            yield False
            return
    try:
        yield True
    finally:
        os.close(lock_fd)


def is_watched(home: Path) -> bool:
    """Say whether a watcher lives."""
    try:
        descriptor = os.open(home / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False

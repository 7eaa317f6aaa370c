"""The lock that says that a watcher lives; a hook may take it for the watcher that it starts."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

LOCK = "watch.lock"
# How long somebody who only asks whether a watcher lives may hold the lock, on a busy machine.
ASKING_S = 1.0


@dataclass(frozen=True, slots=True)
class Lock:
    """The lock, held."""

    path: Path
    descriptor: int

    def is_in_place(self) -> bool:
        """Say whether the home is still the one that was locked: nobody removed or replaced it."""
        try:
            there, held = self.path.stat(), os.fstat(self.descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)

    def may_be_taken_at_once(self) -> None:
        """Let the next hook start a watcher, however short ago it was that one started this one."""
        os.ftruncate(self.descriptor, 0)


@contextmanager
def locked(home: Path, lock_fd: int | None) -> Iterator[Lock | None]:
    """Hold the lock that says that a watcher lives, None if another does.

    A hook may have taken it for us: *lock_fd*.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if lock_fd is None:
        lock_fd = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _take(lock_fd):
            os.close(lock_fd)
            yield None
            return
    try:
        yield Lock(home / LOCK, lock_fd)
    finally:
        os.close(lock_fd)


def _take(descriptor: int) -> bool:
    """Take the lock; say whether it was free, or soon became so."""
    deadline = time.monotonic() + ASKING_S
    while True:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


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

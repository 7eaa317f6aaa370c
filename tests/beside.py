"""What runs beside a test, and on which port."""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a program for the time of the block; whatever becomes of the test, it ends there."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def free_port() -> int:
    """Return a port on which nobody listens, and that the system gives to nobody by itself.

    One that the system has chosen may go to the next who asks, before it is used.
    """
    while True:
        # Not from `random`: its seed is the same in all processes that run tests.
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port

"""A program in a terminal of its own: what it shows can be waited for, and keys can be pressed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyte

# A wait ends when what is waited for is there: how long it may take costs nothing.
PATIENCE_S = 180.0

KEYS = {
    "enter": "\r",
    "escape": "\x1b",
    "tab": "\t",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "ctrl-c": "\x03",
    "ctrl-d": "\x04",
}


class _Screen(pyte.Screen):
    """A screen that lets pass what pyte does not know (private modes of newer terminals)."""

    def select_graphic_rendition(self, *attributes: int, **unknown: Any) -> None:
        if not unknown:
            super().select_graphic_rendition(*attributes)


class Terminal:
    """Run a command under a pty of its own; a context manager that ends it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        columns: int = 140,
        rows: int = 50,
    ) -> None:
        self._screen = _Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._changed = threading.Condition()
        self._ended = False
        self._everything = bytearray()
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.write_process_input = self._write
        try:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(env),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
            )
        finally:
            os.close(slave)
        self._pump = threading.Thread(target=self._read, name="terminal", daemon=True)
        self._pump.start()

    @property
    def text(self) -> str:
        with self._changed:
            return "\n".join(line.rstrip() for line in self._screen.display)

    def wait_for_text(self, pattern: str, timeout: float = PATIENCE_S) -> re.Match[str]:
        """Return where the screen shows *pattern*, now or when it comes."""
        found: list[re.Match[str]] = []

        def shows() -> bool:
            match = re.search(pattern, self.text)
            found[:] = [match] if match else []
            return bool(found) or self._ended

        with self._changed:
            self._changed.wait_for(shows, timeout)
        if not found:
            ended = f", ended with {self.process.poll()}" if self._ended else ""
            raise TimeoutError(
                f"the screen does not show {pattern!r}{ended}; it shows:\n{self.text}"
            )
        return found[0]

    def wait_until_gone(self, pattern: str, timeout: float = PATIENCE_S) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: not re.search(pattern, self.text), timeout):
                raise TimeoutError(f"the screen still shows {pattern!r}:\n{self.text}")

    def wait_until_it_stays(
        self, pattern: str, *, without: str, for_s: float = 1.0, timeout: float = PATIENCE_S
    ) -> None:
        """Wait until the screen shows *pattern* and not *without*, and goes on so.

        Between two things that it does a program looks for a moment as if it did nothing.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            since = None
            while since is None or time.monotonic() < since + for_s:
                text = self.text
                if not re.search(pattern, text) or re.search(without, text):
                    since = None
                elif since is None:
                    since = time.monotonic()
                if self._ended or time.monotonic() > deadline:
                    raise TimeoutError(f"the screen does not stay at {pattern!r}:\n{text}")
                self._changed.wait(for_s / 4)

    def send(self, text: str) -> None:
        self._write(text)

    def press(self, key: str) -> None:
        self._write(KEYS[key])

    def say(self, line: str) -> None:
        """Type a line and send it once the program shows that it has taken it in."""
        self.send(line)
        self.wait_for_text(re.escape(line[-20:]))
        self.press("enter")

    def answer(self, key: str, question: str, timeout: float = PATIENCE_S) -> None:
        """Press *key* until *question* is gone: a dialog ignores keys in its first moments."""
        deadline = time.monotonic() + timeout
        while True:
            self.send(KEYS.get(key, key))
            try:
                self.wait_until_gone(question, 1.0)
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def wait(self, timeout: float = PATIENCE_S) -> int:
        return self.process.wait(timeout)

    def wait_for_end(self, timeout: float = PATIENCE_S) -> None:
        """Wait until all is drawn that the program wrote before it ended."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, timeout):
                raise TimeoutError(f"the program does not end; it shows:\n{self.text}")

    def close(self) -> None:
        if self.process.poll() is None:
            # All that it started, too: some agents are a child of themselves.
            for signal_number in (signal.SIGHUP, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal_number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
            self.process.wait()
        self._ended = True
        self._pump.join(PATIENCE_S)
        os.close(self._master)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._master, text.encode())

    def _read(self) -> None:
        while not self._ended:
            readable, _, _ = select.select([self._master], [], [], 0.2)
            if not readable:
                continue
            try:
                data = os.read(self._master, 65536)
            except OSError:
                data = b""
            with self._changed:
                if not data:
                    self._ended = True
                self._everything += data
                # What a terminal cannot draw must not end the test: the text on screen decides.
                with contextlib.suppress(TypeError, ValueError, IndexError):
                    self._stream.feed(data)
                self._changed.notify_all()


def wait_until(
    condition: Callable[[], bool], timeout: float = PATIENCE_S, complaint: str = "it did not happen"
) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{complaint} in {timeout} s")
        time.sleep(0.02)

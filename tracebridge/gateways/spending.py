"""What the calls of each client key cost today, at list price; days are those of UTC.

One line per call in a file per day, so that a restart changes nothing and several gateways of one
home count together. A call is counted once its answer is over: those under way when a limit is
reached end in peace. What the price list does not know costs nothing here, and is complained of.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from tracebridge import prices
from tracebridge.model import GatewayCall

FOLDER = "gateway-spending"
_DAY_S = 86_400


class Spending:
    """Own the folder of what was spent, below *home*."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = home / FOLDER
        self._clock = clock
        self._day = -1
        self._read_bytes = 0
        self._usd: dict[str, float] = defaultdict(float)

    def usd_today(self, name: str) -> float:
        """Return what *name* has spent today, in whatever gateway of this home."""
        self._catch_up()
        return self._usd[_word(name)]

    def seconds_left_today(self) -> int:
        return _DAY_S - int(self._clock()) % _DAY_S

    def add(self, call: GatewayCall) -> bool:
        """Count *call* for the client that made it; return whether its price is known.

        Raise OSError where the disk does not take it.
        """
        model = call.model or call.requested_model
        cost = prices.cost_of(call.usage, model, call.provider, call.end_ns)
        if cost is None or call.client_name is None:
            return call.usage is None
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(self._file(int(self._clock()) // _DAY_S), flags, 0o600)
        try:
            # One write, so that lines of several gateways do not mix.
            os.write(descriptor, f"{cost.total:.9f} {_word(call.client_name)}\n".encode())
        finally:
            os.close(descriptor)
        return True

    def _catch_up(self) -> None:
        day = int(self._clock()) // _DAY_S
        if day != self._day:
            self._day, self._read_bytes = day, 0
            self._usd.clear()
            self._forget_before(day)
        with suppress(FileNotFoundError), self._file(day).open("rb") as file:
            if os.fstat(file.fileno()).st_size <= self._read_bytes:
                return
            file.seek(self._read_bytes)
            data = file.read()
            # What somebody is still writing is read the next time.
            whole = data[: data.rfind(b"\n") + 1]
            self._read_bytes += len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                usd, _, name = line.partition(" ")
                # A line that a full disk has cut is no amount.
                with suppress(ValueError):
                    self._usd[name] += max(float(usd), 0.0)

    def _forget_before(self, day: int) -> None:
        with suppress(OSError):
            for path in self._folder.iterdir():
                if path.name < self._file(day).name:
                    path.unlink(missing_ok=True)

    def _file(self, day: int) -> Path:
        return self._folder / datetime.fromtimestamp(day * _DAY_S, UTC).strftime("%Y-%m-%d")


def _word(name: str) -> str:
    """Return a name in one word."""
    return quote(name, safe="@")

"""Do a piece of tracebridge's work in a process of its own that is killed at a chosen step.

A step is a moment before or after something that outlives the process: a rename, an unlink, a
commit, a request to a backend. The product knows nothing of this: the functions that do these
things are wrapped in the forked child. One line of JSON on stdin is one order; one line on stdout
says how its process ended and which steps it passed.
"""

from __future__ import annotations

import base64
import json
import os
import posix
import resource
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "hooks"))

# What the children need, imported once.
import requests
import tracebridge_hook_main

import tracebridge.delivery
import tracebridge.sinks.otlp_http
import tracebridge.watch
import tracebridge.watcher
from tracebridge.codec import decode
from tracebridge.delivery import deliver
from tracebridge.model import GatewayCall
from tracebridge.scrub import scrub_text
from tracebridge.settings import read_settings
from tracebridge.spool import Spool
from tracebridge.store import StoreError

tracebridge.watcher.agents()
# Builds the engine that looks for secrets.
scrub_text("")

CONNECT = sqlite3.connect
WRITE = os.write


class Steps:
    def __init__(self, pipe: int, die_at: int | None) -> None:
        self._pipe = pipe
        self._die_at = die_at
        self._count = 0

    def reach(self, name: str) -> None:
        self._count += 1
        WRITE(self._pipe, name.encode() + b"\n")
        if self._count == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, place: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(place, name)

        def stepped(*args: Any, **options: Any) -> Any:
            self.reach(f"before {name}")
            try:
                return function(*args, **options)
            finally:
                self.reach(f"after {name}")

        setattr(place, name, stepped)


def watch_once(steps: Steps, order: dict[str, Any]) -> int:
    for name in ("rename", "replace", "unlink", "fsync"):
        steps.around(os, name)
    steps.around(requests.Session, "post")

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if statement != "COMMIT":
                return super().execute(statement, *values)
            steps.reach("before commit")
            try:
                return super().execute(statement, *values)
            finally:
                steps.reach("after commit")

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        options["factory"] = Connection
        return CONNECT(*args, **options)

    sqlite3.connect = connect  # type: ignore[assignment]
    if "batch" in order:
        tracebridge.delivery.SPANS_PER_BATCH = order["batch"]
    if "clock_s" in order:
        shift_clock(order["clock_s"])
    try:
        settings = read_settings(dict(os.environ))
        return 0 if tracebridge.watch.watch_once(settings) else 1
    except StoreError as error:
        sys.stderr.write(f"{error}\n")
        return 3


def shift_clock(seconds: float) -> None:
    real = time.time_ns

    def shifted() -> int:
        return real() + int(seconds * 1e9)

    time.time_ns = shifted
    time.time = lambda: shifted() / 1e9
    # Default arguments were bound when the modules were loaded.
    tracebridge.watcher.Watcher.__init__.__defaults__ = (shifted,)
    tracebridge.watcher.Store.__init__.__defaults__ = (shifted,)
    deliver.__kwdefaults__["clock"] = shifted


def hook(steps: Steps, order: dict[str, Any]) -> int:
    for name in ("open", "write", "close", "rename", "mkdir"):
        steps.around(posix, name)
    payload = os.memfd_create("payload")
    WRITE(payload, base64.b64decode(order["payload"]))
    os.lseek(payload, 0, os.SEEK_SET)
    os.dup2(payload, 0)
    posix.environ.clear()
    posix.environ.update({k.encode(): v.encode() for k, v in order["env"].items()})
    sys.argv = ["hook", order["agent"]]
    if "time_ns" in order:
        time.time_ns = lambda: order["time_ns"]
    tracebridge_hook_main.run()
    return 1


def write_call(steps: Steps, order: dict[str, Any]) -> int:
    for name in ("open", "mkdir", "rename", "unlink"):
        steps.around(os, name)
    call = decode(base64.b64decode(order["payload"]), GatewayCall)
    try:
        Spool(Path(os.environ["TRACEBRIDGE_HOME"])).write_call(call)
    except OSError:
        return 1
    return 0


def lay(steps: Steps, order: dict[str, Any]) -> int:
    """Copy *source* to the home and leave so many bytes free on its disk."""
    del steps
    home = Path(os.environ["TRACEBRIDGE_HOME"])
    shutil.rmtree(home, ignore_errors=True)
    ballast(home).unlink(missing_ok=True)
    shutil.copytree(order["source"], home)
    free = os.statvfs(home.parent)
    with ballast(home).open("wb") as file:
        file.write(b"x" * (free.f_bavail * free.f_frsize - order["leave"]))
    return 0


def make_room(steps: Steps, order: dict[str, Any]) -> int:
    del steps, order
    ballast(Path(os.environ["TRACEBRIDGE_HOME"])).unlink()
    return 0


def ballast(home: Path) -> Path:
    return home.with_name("ballast")


def settle(steps: Steps, order: dict[str, Any]) -> int:
    """Do nothing; that an answer comes says that we run."""
    del steps, order
    return 0


ACTIONS = {
    "watch_once": watch_once,
    "hook": hook,
    "write_call": write_call,
    "lay": lay,
    "make_room": make_room,
    "settle": settle,
}


def carry_out(order: dict[str, Any]) -> dict[str, Any]:
    told, pipe = os.pipe()
    said = os.memfd_create("stderr")
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.close(told)
            os.dup2(said, 2)
            os.environ.clear()
            os.environ.update(order["env"])
            if "file_limit" in order:
                limit = order["file_limit"]
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            code = ACTIONS[order["action"]](Steps(pipe, order.get("die_at")), order)
        except BaseException:  # noqa: BLE001 - told, and the process ends
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(pipe)
    with os.fdopen(told) as lines:
        steps = lines.read().splitlines()
    _, status = os.waitpid(child, 0)
    os.lseek(said, 0, os.SEEK_SET)
    with os.fdopen(said, errors="replace") as stderr:
        words = stderr.read()[-4000:]
    return {"code": os.waitstatus_to_exitcode(status), "steps": steps, "said": words}


def main() -> None:
    for line in sys.stdin:
        sys.stdout.write(json.dumps(carry_out(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

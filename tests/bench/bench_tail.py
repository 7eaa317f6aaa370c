"""From a hook event to its line in `tail --json`, against the floor: inotify and a read.

    python tests/bench/bench_tail.py [--events 100] [--json FILE]

Both are measured in the same run, in turn: a real hook process, a real watcher and a real tail on
one side; a file renamed into a watched folder and read by another process on the other. Counted is
from the moment at which the hook has its payload to the moment at which the reader has the line.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import Queue

from runner import Reach, tell
from watchdog.events import FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

HOOK = Path(__file__).resolve().parents[2] / "hooks" / "tracebridge_hook.py"
PAUSE_S = 0.15
IDLE_S = 10


class Tail:
    """`tracebridge watch` and `tracebridge tail --json` as processes of their own."""

    def __init__(self, home: Path) -> None:
        self._env = {**os.environ, "TRACEBRIDGE_HOME": str(home), "TRACEBRIDGE_NO_WATCH": "1"}
        command = [sys.executable, "-m", "tracebridge"]
        self._watch = subprocess.Popen([*command, "watch"], env=self._env)
        self._tail = subprocess.Popen(
            [*command, "tail", "--json"], env=self._env, stdout=subprocess.PIPE
        )
        self.lines: Queue[tuple[int, str]] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._tail.stdout is not None
        for line in self._tail.stdout:
            self.lines.put((time.time_ns(), json.loads(line)["trace_id"]))

    def event(self, number: int) -> float:
        """Give the hook a prompt of a new session and return how long its line took, in ms."""
        payload = {
            "session_id": f"session-{number}",
            "prompt_id": f"turn-{number}",
            "hook_event_name": "UserPromptSubmit",
            "prompt": "hello",
        }
        began = time.time_ns()
        subprocess.run(
            [sys.executable, "-I", "-S", str(HOOK), "claude-code"],
            input=json.dumps(payload).encode(),
            env=self._env,
            check=True,
        )
        seen, _ = self.lines.get(timeout=60)
        return (seen - began) / 1e6

    def idle_cpu_percent(self) -> float:
        """Return what watcher and tail use of a core while nothing happens."""
        before = [_cpu_s(process) for process in (self._tail, self._watch)]
        time.sleep(IDLE_S)
        after = [_cpu_s(process) for process in (self._tail, self._watch)]
        return (sum(after) - sum(before)) / IDLE_S * 100

    def close(self) -> None:
        for process in (self._tail, self._watch):
            process.send_signal(signal.SIGINT)
            process.wait(60)


class Floor(FileSystemEventHandler):
    """The least that any such chain does: a process writes and renames, inotify tells, a read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "tmp").mkdir()
        (folder / "new").mkdir()
        self._seen: Queue[int] = Queue()
        self._observer = Observer()
        self._observer.schedule(self, str(folder), recursive=True)
        self._observer.start()

    def on_any_event(self, event: FileSystemEvent) -> None:
        if isinstance(event, FileMovedEvent):
            Path(str(event.dest_path)).read_bytes()
            self._seen.put(time.time_ns())

    def event(self, number: int) -> float:
        source, target = (self._folder / name / str(number) for name in ("tmp", "new"))
        script = f"import posix,sys;open({str(source)!r},'wb').write(b'x'*200);posix.rename({str(source)!r},{str(target)!r})"
        began = time.time_ns()
        subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True)
        return (self._seen.get(timeout=60) - began) / 1e6

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        floor, tail = Floor(_made(Path(folder) / "floor")), Tail(Path(folder) / "home")
        # Until both have started.
        time.sleep(IDLE_S)
        idle = tail.idle_cpu_percent()
        figures: dict[str, list[float]] = {"hook event to tail": [], "floor": []}
        for number in range(options.events + 5):
            for name, chain in (("hook event to tail", tail), ("floor", floor)):
                took = chain.event(number)
                # The first few find cold caches and processes still starting.
                if number >= 5:
                    figures[name].append(took)
                time.sleep(PAUSE_S)
        waiting = tail.idle_cpu_percent()
        tail.close()
        floor.close()
    rows = {
        name: {"median": statistics.median(times), "p95": statistics.quantiles(times, n=20)[-1]}
        for name, times in figures.items()
    }
    sys.stdout.write(f"{'':22} {'median ms':>10} {'p95 ms':>10}\n")
    for name, row in rows.items():
        sys.stdout.write(f"{name:22} {row['median']:10.1f} {row['p95']:10.1f}\n")
    ratio = rows["hook event to tail"]["median"] / rows["floor"]["median"]
    reaches = [
        Reach("hook event to tail, p95", rows["hook event to tail"]["p95"], "ms", at_most=50),
        Reach("hook event to tail / inotify and a read, median", ratio),
        Reach("watcher and tail, idle", idle, "% CPU", at_most=0.3),
        Reach(f"the same, {options.events + 5} turns still open", waiting, "% CPU"),
    ]
    tell(reaches, rows, options.json)


def _cpu_s(process: subprocess.Popen[bytes]) -> float:
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()

"""One watcher and many sessions at once: CPU and memory per session, and what it takes to wait.

    python tests/bench/bench_sessions.py [--sessions 50] [--rounds 40] [--pause 0.1] [--json FILE]

Recorded sessions of the real Claude Code are played again, each under as many new ids as asked for:
hook events into the spool and transcript lines into files, in their order, with a pause between two
events of a session. Then the same once more, *rounds* times, in new sessions. A session that rests is
kept for a minute; once those of the first minute are gone memory should stay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from runner import Reach, tell

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from recordings import FOLDER, PLACES  # noqa: E402  # needs the path above

from tracebridge import semconv  # noqa: E402
from tracebridge.fields import moment_of  # noqa: E402
from tracebridge.spool import Spool  # noqa: E402
from tracebridge.testing.receiver import Receiver  # noqa: E402

BEHAVIOURS = ("tools", "subagents", "parallel_tools", "resume")
IDLE_S = 10.0
# By then as many sessions are let go of as begin.
FULL_S = 75.0
PATIENCE_S = 300.0
UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass
class Played:
    """A recorded session under a name of its own."""

    behaviour: str
    number: int
    user: Path
    _written: dict[Path, int] = field(default_factory=dict)

    def renamed(self, data: bytes) -> bytes:
        """Return *data* with ids of this session, and below this user's home."""
        data = UUID.sub(lambda found: found[0][:-8] + b"%08d" % self.number, data)
        place = str(self.user / PLACES["claude-code"]).encode()
        return re.sub(rb"/home/user/(?:home/)?\.claude/projects", place, data)

    def play(self, spool: Spool, pause_s: float) -> None:
        folder = FOLDER / "claude-code" / self.behaviour
        for position, line in enumerate((folder / "hooks.jsonl").read_bytes().splitlines()):
            event = json.loads(line)
            self.write_lines(folder / "transcripts", event["time_ns"])
            head = f"format=1\0kind=hook\0agent=claude-code\0time_ns={event['time_ns']}\0pid=1\0\0"
            name = f"{event['time_ns']:020d}-{self.behaviour}-{self.number}-{position}.event"
            waiting = spool.new.parent / "tmp" / name
            payload = self.renamed(json.dumps(event["payload"]).encode())
            waiting.write_bytes(head.encode() + payload)
            waiting.rename(spool.new / name)
            time.sleep(pause_s)
        self.write_lines(folder / "transcripts", None)

    def write_lines(self, folder: Path, until_ns: int | None) -> None:
        for source in (path for path in folder.rglob("*") if path.is_file()):
            place = self.renamed(str(source.relative_to(folder)).encode()).decode()
            target = self.user / PLACES["claude-code"] / place
            target.parent.mkdir(parents=True, exist_ok=True)
            lines = list(lines_until(source, until_ns))
            done = self._written.get(source, 0)
            with target.open("ab") as file:
                file.write(self.renamed(b"".join(lines[done:])))
            self._written[source] = max(done, len(lines))


def lines_until(path: Path, until_ns: int | None) -> Iterator[bytes]:
    for line in path.read_bytes().splitlines(keepends=True):
        if path.suffix == ".jsonl" and until_ns is not None:
            time_ns = moment_of(json.loads(line).get("timestamp"))
            if time_ns is not None and time_ns > until_ns:
                return
        yield line


@dataclass(frozen=True)
class Use:
    cpu_s: float
    rss_mb: float


def use_of(pid: int) -> Use:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return Use(cpu_s, int(fields[21]) * os.sysconf("SC_PAGESIZE") / 1e6)


def settled_use_of(pid: int) -> Use:
    """Return what a process uses once it has been still for two seconds."""
    while True:
        before = use_of(pid)
        time.sleep(2.0)
        after = use_of(pid)
        if after.rss_mb > 0 and after.cpu_s - before.cpu_s < 0.02 < after.cpu_s:
            return after


def events_in(behaviour: str) -> int:
    return len((FOLDER / "claude-code" / behaviour / "hooks.jsonl").read_bytes().splitlines())


def turns_in(behaviour: str) -> int:
    expected = FOLDER / "claude-code" / behaviour / "expected_both.txt"
    return sum(line.startswith("turn ") for line in expected.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--pause", type=float, default=0.1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Receiver() as receiver:
        user, home = Path(name) / "user", Path(name) / "state"
        user.mkdir()
        spool = Spool(home)
        spool.create()
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(user),
            "TRACEBRIDGE_HOME": str(home),
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        }
        watcher = subprocess.Popen([sys.executable, "-m", "tracebridge", "watch"], env=env)
        try:
            details = measure(watcher.pid, receiver, spool, user, options)
        finally:
            watcher.terminate()
            watcher.wait(PATIENCE_S)
    first, last = details["rounds"][0], details["rounds"][-1]
    full = next((each for each in details["rounds"] if each["after_s"] > FULL_S), None)
    if full is None or full is last:
        raise SystemExit(f"the rounds were over within {FULL_S:.0f} s: ask for more")
    tell(
        [
            Reach("before any session: memory", details["empty_mb"], "MB"),
            Reach("each session: CPU", 1000 * first["cpu_s"] / options.sessions, "ms"),
            Reach("each hook event: CPU", 1000 * first["cpu_s"] / first["events"], "ms"),
            Reach(
                f"each of {options.sessions} sessions at once: memory",
                (first["rss_mb"] - details["empty_mb"]) / options.sessions,
                "MB",
            ),
            Reach(
                f"memory after {options.rounds} rounds against after {full['after_s']:.0f} s",
                last["rss_mb"] / full["rss_mb"],
                at_most=1.02,
            ),
            Reach("memory in the end", last["rss_mb"], "MB"),
            Reach("CPU while nothing happens", details["idle_percent"], "%", at_most=0.3),
        ],
        details,
        options.json,
    )


def measure(
    pid: int, receiver: Receiver, spool: Spool, user: Path, options: argparse.Namespace
) -> dict[str, object]:
    chosen = [BEHAVIOURS[number % len(BEHAVIOURS)] for number in range(options.sessions)]
    empty = settled_use_of(pid)
    rounds = []
    turns = 0
    began = time.monotonic()
    with ThreadPoolExecutor(options.sessions) as pool:
        for one_round in range(options.rounds):
            before = use_of(pid)
            played = [
                Played(behaviour, one_round * options.sessions + number, user)
                for number, behaviour in enumerate(chosen)
            ]
            list(pool.map(lambda each: each.play(spool, options.pause), played))
            turns += sum(map(turns_in, chosen))
            receiver.wait_for(lambda each, n=turns: len(roots(each)) >= n, PATIENCE_S)
            after = use_of(pid)
            rounds.append(
                {
                    "events": sum(map(events_in, chosen)),
                    "cpu_s": after.cpu_s - before.cpu_s,
                    "rss_mb": after.rss_mb,
                    "after_s": time.monotonic() - began,
                }
            )
    before = settled_use_of(pid)
    time.sleep(IDLE_S)
    idle_percent = 100 * (use_of(pid).cpu_s - before.cpu_s) / IDLE_S
    return {"empty_mb": empty.rss_mb, "rounds": rounds, "idle_percent": idle_percent}


def roots(receiver: Receiver) -> set[str]:
    return {
        span.trace_id for span in receiver.spans if span.attributes[semconv.SPAN_TYPE] == "turn"
    }


if __name__ == "__main__":
    main()

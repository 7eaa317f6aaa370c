# ruff: noqa: E402, T201 - a program that also runs from outside of pytest
"""Much at once: agents, a huge transcript, many spans. Prints what it took: `make load`.

.venv/bin/python tests/load/run.py [--short]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import orjson
from claude_files import Claude, said

from tracebridge.agents import agents
from tracebridge.delivery import deliver
from tracebridge.encode import encode_span
from tracebridge.ids import root_span_id, span_id, trace_id
from tracebridge.integrate import hook_commands
from tracebridge.model import Outcome, Span, SpanKind, Turn, TurnState
from tracebridge.settings import read_settings
from tracebridge.sinks import OutboxSpan, Receipt
from tracebridge.spool import Spool
from tracebridge.store import Store
from tracebridge.testing.receiver import ReceivedSpan, Receiver
from tracebridge.watch import watch_once

LIMIT_S = 1200.0
SPANS_PER_TURN = 100


@dataclass(frozen=True, kw_only=True)
class Load:
    """What went in, what came out, and the memory of the process that did the work."""

    name: str
    expected: int
    arrived: int
    memory_mb: float
    took_s: float


def agents_at_once(folder: Path, sessions: int = 50, short: bool = False) -> Load:
    """Let so many sessions of four agents run real hook processes at once, with one watcher.

    What they tell was recorded from real agents; each has a session of its own. What should come
    of it is known from taking it in one after the other, with no process but one.
    """
    home = folder / "home"
    played = [recorded_session(number, short=short) for number in range(sessions)]
    expected = alone(folder / "alone", played)
    with Receiver() as receiver:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TRACEBRIDGE_HOME": str(home),
            "TRACEBRIDGE_NO_WATCH": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        }
        began = time.monotonic()
        watcher = subprocess.Popen([sys.executable, "-m", "tracebridge", "watch"], env=env)
        try:
            with ThreadPoolExecutor(sessions) as pool:
                for _ in pool.map(lambda session: replay(env, home, *session), played):
                    pass
            wait_for(lambda: Spool(home).depth() == 0)
            took_s = time.monotonic() - began
            memory_mb = memory_of(watcher.pid)
        finally:
            watcher.terminate()
            watcher.wait(60)
        once = [sys.executable, "-m", "tracebridge", "watch", "--once", "--close-open"]
        subprocess.run(once, env=env, check=True)
        arrived = Counter(known_by(span) for span in receiver.spans)
        assert len({span.span_id for span in receiver.spans}) == len(receiver.spans)
    events = sum(len(payloads) for _, payloads in played)
    return Load(
        name=f"{sessions} sessions of four agents at once, {events} hook processes, one watcher",
        expected=expected.total(),
        arrived=(arrived & expected).total() - (arrived - expected).total(),
        memory_mb=memory_mb,
        took_s=took_s,
    )


def recorded_session(number: int, *, short: bool) -> tuple[str, list[bytes]]:
    """Return agent and hook payloads of a recording, as if they were of another session."""
    slug = sorted(agents())[number % len(agents())]
    recordings = sorted((TESTS / "agents" / slug).glob("*/hooks.jsonl"))
    if short:
        recordings = [path for path in recordings if path.parent.name == "simple"]
    path = recordings[number // len(agents()) % len(recordings)]
    payloads = [orjson.loads(line)["payload"] for line in path.read_bytes().splitlines()]
    names = {payload.get("session_id") or payload.get("session") for payload in payloads}
    texts = [orjson.dumps(payload) for payload in payloads]
    for name in filter(None, names):
        texts = [
            text.replace(name.encode(), f"{name[:-4]}-{number:03d}".encode()) for text in texts
        ]
    # No transcript tells what a hook did not.
    return slug, [text.replace(b"/home/user", b"/nowhere") for text in texts]


def known_by(span: Span | ReceivedSpan) -> tuple[str, str]:
    """Return what a span is recognised by; an agent asks for permission under no id but the time."""
    asked = span.name.startswith("permission_wait")
    return span.trace_id, span.name if asked else span.span_id


def alone(home: Path, played: list[tuple[str, list[bytes]]]) -> Counter[tuple[str, str]]:
    """Return the spans that come of all this when nothing happens at the same time."""
    Spool(home).create()
    for number, (slug, payload) in enumerate((s, p) for s, payloads in played for p in payloads):
        head = f"format=1\0kind=hook\0agent={slug}\0time_ns={10**18 + number}\0pid={os.getpid()}"
        data = f"{head}\0payload_bytes={len(payload)}\0\0".encode() + payload
        (home / "spool" / "new" / f"{number:020d}-1-0.event").write_bytes(data)
    env = {"TRACEBRIDGE_HOME": str(home), "TRACEBRIDGE_SINKS": "memory"}
    watch_once(read_settings(env), close_open=True)
    with Store(home) as store:
        rows = store.turns(limit=10**6)
        return Counter(known_by(span) for row in rows for span in store.spans(row.trace_id))


def replay(env: dict[str, str], home: Path, slug: str, payloads: list[bytes]) -> None:
    """Run for each event the command that the agent has for it in its settings."""
    agent = agents()[slug]
    commands = hook_commands(agent, home)
    by_event: dict[str, str] = {}
    if slug != "opencode":
        # OpenCode's plugin needs its agent; what it writes is what the hook writes.
        wired = agent.wire({}, commands)["hooks"]
        by_event = {event: groups[0]["hooks"][0]["command"] for event, groups in wired.items()}
    for payload in payloads:
        event = str(orjson.loads(payload).get("hook_event_name"))
        command = by_event.get(event, commands["hook"])
        done = subprocess.run(["/bin/sh", "-c", command], input=payload, env=env, check=True)
        assert done.returncode == 0


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit, "it does not come to an end"
        time.sleep(0.05)


def memory_of(pid: int) -> float:
    """Return the most memory that a process ever had, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"the system says nothing about process {pid}")


def huge_transcript(folder: Path, megabytes: int = 500) -> Load:
    """Take in a transcript of so many megabytes, of turns with outputs of 100 kB."""
    claude = Claude(folder / "home", folder, session="huge", turn="turn-0")
    turns = 0
    with claude.transcript.open("w"):
        pass
    while claude.transcript.stat().st_size < megabytes << 20:
        claude.turn = f"turn-{turns}"
        claude.prompt_line(10 * turns, "read it")
        claude.answer_line(
            10 * turns + 2, f"msg_{turns}", said("x" * 100_000), began=10 * turns + 1
        )
        turns += 1
    claude.hook(0, "UserPromptSubmit", prompt="read it")
    claude.hook(10 * turns, "SessionEnd", reason="other", prompt_id=None)
    began = time.monotonic()
    code, memory_mb = in_a_process(
        folder / "home",
        "from tracebridge.cli import main; main(['watch', '--once', '--close-open'])",
    )
    took_s = time.monotonic() - began
    assert code == 0
    with Store(folder / "home") as store:
        told = sum(row.told for row in store.turns(limit=10**6))
    return Load(
        name=f"a transcript of {megabytes} MB",
        expected=turns,
        arrived=told,
        memory_mb=memory_mb,
        took_s=took_s,
    )


def in_a_process(home: Path, code: str) -> tuple[int, float]:
    """Run *code* in a process of its own; return its exit code and the most memory it had in MB."""
    script = (
        "import atexit, resource\n"
        "atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))\n"
        + code
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TRACEBRIDGE_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, int(done.stdout.split()[-1]) / 1024


def many_spans(folder: Path, spans: int = 1_000_000) -> Load:
    """Put so many spans into the store while the sink is away, then deliver them all."""
    began = time.monotonic()
    home = folder / "home"
    code, memory_mb = in_a_process(
        TESTS,
        f"import sys; sys.path[:0] = [{str(TESTS)!r}, {str(Path(__file__).parent)!r}]\n"
        f"import run; run.fill_and_empty({str(home)!r}, {spans})",
    )
    assert code == 0
    with Store(home) as store:
        left = store.waiting()
    return Load(
        name=f"{spans:,} spans through the store",
        expected=spans,
        arrived=spans - left,
        memory_mb=memory_mb,
        took_s=time.monotonic() - began,
    )


class Counting:
    """A sink that takes everything and only counts."""

    def __init__(self) -> None:
        self.spans = 0

    def send(self, spans: list[OutboxSpan]) -> Receipt:
        self.spans += len(spans)
        return Receipt(acknowledged=tuple(span.span_id for span in spans))

    def close(self) -> None:
        """Nothing is kept open."""


def fill_and_empty(home: str, spans: int) -> None:
    sink = Counting()
    with Store(Path(home)) as store:
        for number in range(spans // SPANS_PER_TURN):
            turn, made = a_turn(number)
            with store.transaction():
                store.put_turn(turn, made)
                encoded = [(span.span_id, encode_span(span)) for span in made]
                store.tell(turn.trace_id, encoded, (("service.name", "x"),), ["s"])
        assert store.waiting() == spans
        report = deliver(store, "s", sink)
    assert (report.acknowledged, sink.spans) == (spans, spans)


def a_turn(number: int) -> tuple[Turn, list[Span]]:
    trace = trace_id("claude-code", "session", f"turn-{number}")
    root = root_span_id(trace)
    made = [
        Span(
            trace_id=trace,
            span_id=root if index == 0 else span_id(trace, "tool", str(index)),
            parent_span_id=None if index == 0 else root,
            name="execute_tool Read",
            kind=SpanKind.INTERNAL,
            start_ns=number * 10**9,
            end_ns=number * 10**9 + 5,
            attributes={"gen_ai.tool.name": "Read", "text": "x" * 200},
        )
        for index in range(SPANS_PER_TURN)
    ]
    turn = Turn(
        agent="claude-code",
        session_id="session",
        turn_key=f"turn-{number}",
        trace_id=trace,
        state=TurnState.FINISHED,
        start_ns=made[0].start_ns,
        end_ns=made[0].end_ns,
        outcome=Outcome.COMPLETED,
    )
    return turn, made


@contextmanager
def places() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tracebridge-load-") as folder:
        yield Path(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    rows = []
    with places() as folder:
        rows.append(agents_at_once(folder, short=short))
    with places() as folder:
        rows.append(huge_transcript(folder, megabytes=10 if short else 500))
    with places() as folder:
        rows.append(many_spans(folder, spans=2000 if short else 1_000_000))
    for row in rows:
        print(
            f"{row.name}: {row.arrived:,} of {row.expected:,} arrived,"
            f" {row.memory_mb:.0f} MB at most, {row.took_s:.0f} s"
        )
    print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    return 0 if all(row.arrived == row.expected for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

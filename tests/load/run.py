# ruff: noqa: E402, T201 - a program that also runs from outside of pytest
"""Much at once: agents, a huge transcript, many spans. Prints what it took: part of `make faults`.

.venv/bin/python tests/load/run.py [--short]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from claude_files import Claude, said

from tracebridge.delivery import deliver
from tracebridge.encode import encode_span
from tracebridge.ids import root_span_id, span_id, trace_id
from tracebridge.model import Outcome, Span, SpanKind, Turn, TurnState
from tracebridge.sinks import OutboxSpan, Receipt
from tracebridge.spool import Spool
from tracebridge.store import Store
from tracebridge.testing.receiver import Receiver

HOOK = TESTS.parent / "hooks" / "tracebridge_hook.py"
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


def agents_at_once(folder: Path, sessions: int = 50, tools: int = 10) -> Load:
    """Let so many sessions run hook processes at the same time, with one watcher."""
    home = folder / "home"
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
                for _ in pool.map(lambda number: one_agent(env, number, tools), range(sessions)):
                    pass
            expected = sessions * (1 + tools)
            receiver.wait_for(lambda each: len(each.spans) >= expected, timeout=LIMIT_S)
            memory_mb = memory_of(watcher.pid)
        finally:
            watcher.terminate()
            watcher.wait(60)
        assert Spool(home).depth() == 0
        arrived = {(span.trace_id, span.span_id) for span in receiver.spans}
        assert len(receiver.spans) == len(arrived)
    return Load(
        name=f"{sessions} agents at once, {sessions * (2 + 2 * tools)} hook processes",
        expected=expected,
        arrived=len(arrived),
        memory_mb=memory_mb,
        took_s=time.monotonic() - began,
    )


def one_agent(env: dict[str, str], number: int, tools: int) -> None:
    common = {
        "session_id": f"session-{number}",
        "prompt_id": f"turn-{number}",
        "transcript_path": f"/nowhere/{number}.jsonl",
        "cwd": "/project",
    }
    events = [{"hook_event_name": "UserPromptSubmit", "prompt": "work"}]
    for index in range(tools):
        tool = {"tool_name": "Read", "tool_input": {}, "tool_use_id": f"toolu_{number}_{index}"}
        events.append({"hook_event_name": "PreToolUse", **tool})
        events.append({"hook_event_name": "PostToolUse", **tool, "tool_response": "fine"})
    events.append({"hook_event_name": "Stop", "background_tasks": []})
    for event in events:
        subprocess.run(
            [sys.executable, "-I", "-S", str(HOOK), "claude-code"],
            input=json.dumps({**common, **event}).encode(),
            env=env,
            check=True,
        )


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
        rows.append(agents_at_once(folder, tools=1 if short else 10))
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

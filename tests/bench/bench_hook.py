"""Measure what a hook costs the agent.

    python tests/bench/bench_hook.py [--rounds N] [--rivals] [--json FILE]

Rows of trouble have a real watcher each: one whose backend answers, refuses or hangs, and one with a
transcript of 62 MB. `--rivals` adds the hooks of others, fetched from PyPI into a cache; two of them
want Python 3.12, looked for on the PATH.
"""

import argparse
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from runner import Command, Reach, Result, measure, table, tell

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from claude_files import Claude, said  # noqa: E402  # needs the path above
from pypi_programs import Program, installed  # noqa: E402

from tracebridge.testing.receiver import Receiver  # noqa: E402

HOOKS = TESTS.parent / "hooks"
PYTHON = [sys.executable, "-I", "-S"]
PYTHON_HOOK = [*PYTHON, str(HOOKS / "tracebridge_hook.py"), "claude-code"]
SHELL_HOOK = ["sh", str(HOOKS / "tracebridge_hook.sh"), "claude-code"]
BARE_PYTHON = "python -I -S -c pass"
BARE_SHELL = "sh -c :"
TRANSCRIPT_BYTES = 62_000_000
ALL_WELL = "all well"
OURS = "our python hook"
PATIENCE_S = 300.0
# What the rivals' hooks are run with, as their own set-up writes it into Claude Code's settings.
RIVALS = (
    (Program("meshai-claude-code", "0.2.1", "bin/meshai-cc-hook"), ("PostToolUse",), (3, 11)),
    (
        Program("otel-hooks", "0.15.0", "bin/otel-hooks"),
        ("hook", "--tool", "claude", "--provider", "otlp"),
        (3, 12),
    ),
    (Program("opentelemetry-hooks", "0.15.0", "bin/otel-hook"), ("--claude",), (3, 12)),
)


def plain_commands(home: Path) -> list[Command]:
    env = {"PATH": os.environ["PATH"], "TRACEBRIDGE_HOME": str(home)}
    unwritable = env | {"TRACEBRIDGE_HOME": "/dev/null"}
    small, large = (b'{"text":"' + b"x" * size + b'"}' for size in (2036, 1_000_000))

    def empty_spool() -> None:
        for path in (home / "spool" / "new").iterdir():
            path.unlink()

    return [
        Command(BARE_PYTHON, [*PYTHON, "-c", "pass"], env=env),
        Command("python hook, 2 KB", PYTHON_HOOK, small, env, BARE_PYTHON, empty_spool),
        Command("python hook, 1 MB", PYTHON_HOOK, large, env, BARE_PYTHON, empty_spool),
        Command("python hook, home unwritable", PYTHON_HOOK, small, unwritable, BARE_PYTHON),
        Command(BARE_SHELL, ["sh", "-c", ":"], env=env),
        Command("sh hook, 2 KB", SHELL_HOOK, small, env, BARE_SHELL, empty_spool),
    ]


@contextmanager
def troubled(folder: Path, name: str, sink: str, size: int = 0) -> Iterator[Command]:
    """Yield the hook, with a watcher that lives, sends there and has followed a transcript."""
    home = folder / "home"
    env = {"PATH": os.environ["PATH"], "TRACEBRIDGE_HOME": str(home), "HOME": str(folder)}
    claude = Claude(home, folder)
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    write_transcript(claude, size)
    watching = env | {"OTEL_EXPORTER_OTLP_ENDPOINT": sink, "TRACEBRIDGE_SINKS": "otlp"}
    watcher = subprocess.Popen([sys.executable, "-m", "tracebridge", "watch"], env=watching)
    payload = {
        "session_id": claude.session,
        "prompt_id": claude.turn,
        "transcript_path": str(claude.transcript),
        "hook_event_name": "PostToolUse",
        "tool_name": "Read",
        "tool_use_id": "toolu_1",
        "tool_response": "x" * 1800,
    }

    def taken_in() -> None:
        # So that no other row finds this watcher at work.
        give_up = time.monotonic() + PATIENCE_S
        while any((home / "spool" / "new").iterdir()) and time.monotonic() < give_up:
            time.sleep(0.002)

    try:
        taken_in()
        yield Command(name, PYTHON_HOOK, json.dumps(payload).encode(), env, ALL_WELL, taken_in)
    finally:
        watcher.terminate()
        watcher.wait(PATIENCE_S)


def write_transcript(claude: Claude, size: int) -> None:
    """Write turns of the session's past until the transcript has *size* bytes."""
    own_turn = claude.turn
    text = "line of an answer that goes on for a while\n" * 150
    for number in range(size // 15_000):
        claude.turn = f"past-{number}"
        claude.prompt_line(number - 100_000, text)
        claude.answer_line(number - 99_999.5, f"msg_{number}", said(text))
        if number % 100 == 0 and claude.transcript.stat().st_size >= size:
            break
    claude.turn = own_turn


@contextmanager
def troubles(folder: Path) -> Iterator[list[Command]]:
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        closed = socket.create_server(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{closed.getsockname()[1]}"
        closed.close()
        # Takes connections and says nothing.
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        hanging = f"http://127.0.0.1:{silent.getsockname()[1]}"
        rows = []
        for name, sink, size in (
            (ALL_WELL, receiver.endpoint, 0),
            ("backend refuses", refusing, 0),
            ("backend hangs", hanging, 0),
            ("transcript of 62 MB", receiver.endpoint, TRANSCRIPT_BYTES),
        ):
            place = folder / name.replace(" ", "-")
            place.mkdir()
            rows.append(stack.enter_context(troubled(place, name, sink, size)))
        yield rows


def rivals(folder: Path) -> list[Command]:
    rows = []
    for program, arguments, oldest in RIVALS:
        python = python_of(oldest)
        if python is None:
            sys.stdout.write(
                f"{program.package} left out: no Python {oldest[0]}.{oldest[1]} here\n"
            )
            continue
        command = installed(program, python)
        home = folder / program.package
        home.mkdir()
        transcript = home / "transcript.jsonl"
        transcript.write_text("")
        payload = {
            "session_id": "session",
            "transcript_path": str(transcript),
            "cwd": str(home),
            "hook_event_name": "PostToolUse",
            "tool_name": "Read",
            "tool_use_id": "toolu_1",
            "tool_input": {"file_path": "/a"},
            "tool_response": "x" * 1800,
        }
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        }
        rows.append(
            Command(program.package, [str(command), *arguments], json.dumps(payload).encode(), env)
        )
    return rows


def python_of(oldest: tuple[int, int]) -> str | None:
    """Return an interpreter that is no older than that: ours, or another one on the PATH."""
    if sys.version_info[:2] >= oldest:
        return sys.executable
    for minor in range(oldest[1], oldest[1] + 4):
        found = shutil.which(f"python3.{minor}")
        # A version manager's shim is there for versions, too, that are switched off.
        if (
            found
            and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
        ):
            return found
    return None


def reaches(results: list[Result]) -> list[Reach]:
    paired = {result.name: result.paired_ratio or 0.0 for result in results}
    medians = {result.name: result.median_ms for result in results}
    rows = [
        Reach(
            "python hook, 2 KB / python -I -S -c pass", paired["python hook, 2 KB"], at_most=1.15
        ),
        Reach("sh hook / sh -c :", paired["sh hook, 2 KB"], at_most=4),
    ]
    rows += [
        Reach(f"hook, {name} / all well", paired[name], at_most=1.05)
        for name in ("backend refuses", "backend hangs", "transcript of 62 MB")
    ]
    rows += [
        Reach(
            f"{program.package} / our python hook",
            medians[program.package] / medians[OURS],
            at_least=5,
        )
        for program, _, _ in RIVALS
        if program.package in medians
    ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = folder / "plain"
        home.mkdir()
        # As when a watcher lives: the hook then starts none, which is what it mostly meets.
        with (home / "watch.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            results = measure(plain_commands(home), options.rounds)
        with troubles(folder) as rows:
            results += measure(rows, options.rounds, shuffled=True)
            if options.rivals:
                own = replace(rows[0], name=OURS, floor=None)
                results += measure([own, *rivals(folder)], max(10, options.rounds // 5))
    sys.stdout.write(table(results) + "\n")
    tell(reaches(results), results, options.json)


if __name__ == "__main__":
    main()

"""Past sessions taken in: transcripts to finished spans in the store, against a bare parser.

    python tests/bench/bench_import.py [--megabytes 50] [--rounds 3] [--agent SLUG] [--json FILE]

The floor reads the same files line by line (OpenCode's database row by row) and does nothing with
each but `orjson.loads`. *kept* is the floor of any import that survives a power cut and may be run
again: each line is parsed, its digest taken, and the line put into SQLite, with a commit a file. Each
import is a process of its own with an empty home; twice: all in long sessions of forty turns, and in
sessions of a single turn, of which most of a ~/.claude consists. A quarter of the files first, to see
whether time and memory grow with them.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import orjson
from history import AGENTS, write_history
from runner import Reach, tell

IMPORT = """
import json, resource, sys, time
from pathlib import Path
from tracebridge import imports
from tracebridge.agents import agents
from tracebridge.settings import read_settings
began, cpu = time.perf_counter(), time.process_time()
found = imports.find([agents()[sys.argv[1]]], Path(sys.argv[2]))
report = imports.take_in(read_settings(), found, lambda: None, local_only=True)
took, cpu = time.perf_counter() - began, time.process_time() - cpu
(count,) = report.counts.values()
assert not report.problems, report.problems
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"s": took, "cpu_s": cpu, "turns": count.turns, "memory_mb": memory}))
"""
SHAPES = {"long sessions": 40, "sessions of one turn": 1}


def floor(home: Path) -> float:
    """Return the seconds that it takes to parse each line, and do no more."""
    began = time.perf_counter()
    for path in home.rglob("*"):
        for line in lines(path):
            orjson.loads(line)
    return time.perf_counter() - began


def kept(home: Path) -> float:
    """Return the seconds that it takes to parse each line and to keep it, once, on the disk."""
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(sqlite3.connect(Path(folder) / "kept.db", isolation_level=None)) as store,
    ):
        store.execute("PRAGMA journal_mode = WAL")
        store.execute("PRAGMA synchronous = FULL")
        store.execute("CREATE TABLE lines (digest BLOB NOT NULL UNIQUE, line BLOB NOT NULL)")
        began = time.perf_counter()
        for path in home.rglob("*"):
            store.execute("BEGIN")
            for line in lines(path):
                orjson.loads(line)
                row = (sha256(line).digest(), line)
                store.execute("INSERT OR IGNORE INTO lines VALUES (?, ?)", row)
            store.execute("COMMIT")
        return time.perf_counter() - began


def lines(path: Path) -> Iterator[bytes]:
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            yield from file
    elif path.suffix == ".db":
        with closing(sqlite3.connect(path)) as database:
            database.text_factory = bytes
            for table in ("message", "part"):
                for (data,) in database.execute(f"SELECT data FROM {table}"):
                    yield data


def take_in(agent: str, user_home: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-c", IMPORT, agent, str(user_home)],
            env={**os.environ, "HOME": str(user_home), "TRACEBRIDGE_HOME": home},
            stdout=subprocess.PIPE,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(agent: str, megabytes: float, rounds: int, turns: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        quarter, whole = Path(folder) / "quarter", Path(folder) / "whole"
        part = write_history(agent, quarter, megabytes / 4, turns_per_session=turns) / 1e6
        size = write_history(agent, whole, megabytes, turns_per_session=turns) / 1e6
        small = take_in(agent, quarter)
        floors, keeping, runs = [], [], []
        for _ in range(rounds):
            floors.append(size / floor(whole))
            keeping.append(size / kept(whole))
            runs.append(take_in(agent, whole))
    rate = statistics.median(size / run["s"] for run in runs)
    return {
        "megabytes": size,
        "turns": runs[0]["turns"],
        "floor_mb_per_s": statistics.median(floors),
        "kept_mb_per_s": statistics.median(keeping),
        "mb_per_s": rate,
        "cpu_mb_per_s": statistics.median(size / run["cpu_s"] for run in runs),
        "turns_per_s": statistics.median(run["turns"] / run["s"] for run in runs),
        "ratio": rate / statistics.median(floors),
        "ratio_to_kept": rate / statistics.median(keeping),
        "memory_mb": max(run["memory_mb"] for run in runs),
        # 1 if a megabyte costs the same whether there are many or few.
        "growth": (part / small["s"]) / rate,
        "memory_growth_mb": max(run["memory_mb"] for run in runs) - small["memory_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--agent", choices=AGENTS, action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    details: dict[str, dict[str, float]] = {}
    reaches = []
    sys.stdout.write(
        f"{'':34} {'MB':>6} {'turns':>6} {'MB/s':>7} {'turns/s':>8} {'kept':>7} {'floor':>7} {'RSS MB':>7}\n"
    )
    for agent in options.agent or AGENTS:
        for shape, turns in SHAPES.items():
            # Those of one turn are for what each session costs; a tenth shows that as well.
            size = options.megabytes if turns > 1 else options.megabytes / 10
            name = f"{agent}, {shape}"
            row = details[name] = measure(agent, size, options.rounds, turns)
            sys.stdout.write(
                f"{name:34} {row['megabytes']:6.1f} {row['turns']:6.0f} {row['mb_per_s']:7.2f}"
                f" {row['turns_per_s']:8.0f} {row['kept_mb_per_s']:7.0f}"
                f" {row['floor_mb_per_s']:7.0f} {row['memory_mb']:7.0f}\n"
            )
            if turns > 1:
                reaches += [
                    Reach(f"import, {agent} / bare parser", row["ratio"], at_least=0.5),
                    Reach(f"import, {agent}, memory", row["memory_mb"], "MB", at_most=150),
                    Reach(f"import, {agent}, cost of a MB at 4 times the size", row["growth"]),
                ]
    tell(reaches, details, options.json)


if __name__ == "__main__":
    main()

"""What a command costs that people type, with a hundred thousand turns in the store.

    python tests/bench/bench_cli.py [--turns 100000] [--rounds 20] [--json FILE]

The turns are recorded ones of all four agents, told again and again at other times. `stats` as it is
mostly, and once with nothing remembered of any turn, as after an upgrade that counts differently.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from runner import Command, Reach, measure, table, tell

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from recorded_turns import put, recorded_turns  # noqa: E402  # needs the path above

from tracebridge.codec import encode  # noqa: E402
from tracebridge.model import GatewayCall  # noqa: E402
from tracebridge.store import FILE, Store  # noqa: E402
from tracebridge.totals import sums_of  # noqa: E402

RECORDED = ("claude-code/simple", "codex-cli/simple", "gemini-cli/simple", "opencode/simple")
FLOOR = "python -c pass"
MINUTE_NS = 60_000_000_000
CALLS_PER_TURN = 2
CALL = encode(
    GatewayCall(
        call_id="c",
        gateway="tracebridge",
        method="POST",
        path="/v1/messages",
        start_ns=1,
        end_ns=2,
        request_headers={"user-agent": "x" * 500},
    )
)


def fill(home: Path, count: int) -> int:
    """Put so many turns into a store and return its bytes."""
    with Store(home) as store:
        for turn, spans in recorded_turns(*RECORDED):
            put(store, turn, spans)
            with store.transaction():
                store.put_sums(turn.trace_id, sums_of(spans, 0))
    path = home / FILE
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA synchronous = OFF")
        names = [row[1] for row in database.execute("PRAGMA table_info(turns)")]
        turns = [
            dict(zip(names, row, strict=True)) for row in database.execute("SELECT * FROM turns")
        ]
        spans = {
            turn["trace_id"]: database.execute(
                "SELECT span_id, position, told, body FROM spans WHERE trace_id = ?",
                (turn["trace_id"],),
            ).fetchall()
            for turn in turns
        }
        sums = {
            turn["trace_id"]: database.execute(
                "SELECT * FROM turn_sums WHERE trace_id = ?", (turn["trace_id"],)
            ).fetchall()
            for turn in turns
        }
        marks = ",".join("?" * len(names))
        sum_marks = ",".join("?" * len(next(iter(sums.values()))[0]))
        latest = time.time_ns()
        for number, turn in zip(range(count - len(turns)), itertools.cycle(turns), strict=False):
            old, new = turn["trace_id"], f"{number + 1:032x}"
            start_ns = latest - number * MINUTE_NS
            copy = turn | {
                "trace_id": new,
                "turn_key": f"turn-{number}",
                "session_id": f"session-{number // 20}",
                "start_ns": start_ns,
                "end_ns": start_ns + MINUTE_NS // 2,
                "revision": turn["revision"] + number + 1,
            }
            database.execute(f"INSERT INTO turns VALUES ({marks})", list(copy.values()))
            database.executemany(
                "INSERT INTO spans (trace_id, span_id, position, told, body) VALUES (?, ?, ?, ?, ?)",
                [
                    (new, span_id, position, told, body.replace(old.encode(), new.encode()))
                    for span_id, position, told, body in spans[old]
                ],
            )
            database.executemany(
                f"INSERT INTO turn_sums VALUES ({sum_marks})",
                [(new, *row[1:]) for row in sums[old]],
            )
            # As our gateway would have recorded them.
            database.executemany(
                "INSERT INTO calls (call_id, agent, session_id, start_ns, taken_ns, body, trace_id,"
                " evidence) VALUES (?, ?, ?, ?, ?, ?, ?, 'turn_id')",
                [
                    (f"{new}-{n}", turn["agent"], copy["session_id"], start_ns, start_ns, CALL, new)
                    for n in range(CALLS_PER_TURN)
                ],
            )
        database.execute("UPDATE counters SET value = value + ? WHERE name = 'revision'", (count,))
        database.commit()
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        size = fill(home, options.turns)
        sys.stdout.write(f"{options.turns} turns, {size / 1e6:.0f} MB\n")
        env = {"PATH": os.environ["PATH"], "HOME": folder, "TRACEBRIDGE_HOME": folder}
        program = [sys.executable, "-m", "tracebridge"]

        def command(*words: str) -> Command:
            return Command(" ".join(words), [*program, *words], env=env, floor=FLOOR)

        slow = [command("stats")]
        quick = [
            Command(FLOOR, [sys.executable, "-c", "pass"], env=env),
            command("--help"),
            command("--version"),
            command("status"),
            command("turns", "--limit", "20"),
            command("turns", "--session", "session-17"),
        ]
        results = measure(quick, options.rounds)
        results += [
            result
            for result in measure([quick[0], *slow], max(3, options.rounds // 5), warm_up=1)
            if result.name != FLOOR
        ]
        with closing(sqlite3.connect(home / FILE)) as database:
            database.execute("DELETE FROM turn_sums")
            database.execute("UPDATE counters SET value = 0 WHERE name = 'summed'")
            database.commit()
        anew = measure([replace(slow[0], floor=None)], 1, warm_up=0)[0]
    sys.stdout.write(table(results) + "\n")
    median = {result.name: result.median_ms for result in results}
    reaches = [Reach("--help", median["--help"], "ms", at_most=150)]
    reaches += [
        Reach(f"{name}, {options.turns} turns", median[name], "ms", at_most=300)
        for name in ("status", "turns --limit 20")
    ]
    reaches += [
        Reach(f"stats, {options.turns} turns", median["stats"], "ms"),
        Reach(f"stats, {options.turns} turns, after an upgrade", anew.median_ms, "ms"),
    ]
    tell(reaches, results, options.json)


if __name__ == "__main__":
    main()

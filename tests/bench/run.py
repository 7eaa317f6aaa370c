"""Run every benchmark one after another, and put what they found into one table and one file.

    python tests/bench/run.py [--rivals] [--only NAME ...] [--folder .bench]

Writes results.json and results.md there. One that fails does not stop the others; the exit code is
then 1. `--rivals` is passed on to those that know other people's programs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from runner import Reach

HERE = Path(__file__).resolve().parent


def run(path: Path, target: Path, *, rivals: bool) -> bool:
    """Run one benchmark and say whether it went through; *target* gets its findings."""
    command = [sys.executable, str(path), "--json", str(target)]
    if rivals and '"--rivals"' in path.read_text():
        command.append("--rivals")
    sys.stdout.write(f"\n== {path.name}\n")
    sys.stdout.flush()
    return subprocess.run(command, check=False).returncode == 0


def reaches_in(found: dict[str, Any]) -> list[Reach]:
    rows = found.get("reaches", [])
    return [Reach(**{k: v for k, v in row.items() if k != "met"}) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="such as: hook import")
    parser.add_argument("--folder", type=Path, default=HERE.parents[1] / ".bench")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    failed = []
    began = time.time()
    for path in sorted(HERE.glob("bench_*.py")):
        name = path.stem.removeprefix("bench_")
        if options.only and name not in options.only:
            continue
        target = options.folder / f"{name}.json"
        target.unlink(missing_ok=True)
        if not run(path, target, rivals=options.rivals):
            failed.append(name)
        elif target.is_file():
            found[name] = json.loads(target.read_text())
    machine = {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cores": os.cpu_count(),
        # Of the last minute and of the last quarter of an hour: what else was going on.
        "load": os.getloadavg()[::2],
        "took_s": round(time.time() - began),
    }
    document = {"machine": machine, "failed": failed, "benchmarks": found}
    (options.folder / "results.json").write_text(json.dumps(document, indent=2) + "\n")
    lines = [
        f"Python {machine['python']}, {machine['system']}, {machine['cores']} cores.",
        "",
        "| what | measured | reach | |",
        "|---|---:|---:|---|",
    ]
    sys.stdout.write("\n== all of it\n")
    for name, each in found.items():
        for reach in reaches_in(each):
            sys.stdout.write(f"{name:12} {reach.line()}\n")
            lines.append(
                f"| {reach.what} | {reach.measured:.2f} {reach.unit} | {reach.aim} | {reach.verdict} |"
            )
    lines += [f"\n{name} did not go through." for name in failed]
    (options.folder / "results.md").write_text("\n".join(lines) + "\n")
    sys.stdout.write(f"written: {options.folder}/results.json and results.md\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

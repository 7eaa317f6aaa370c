# ruff: noqa: T201, SIM117 - a program that also runs from outside of pytest
"""Inject every fault and print what came of it: `make faults`.

.venv/bin/python tests/faults/run.py [--seed N] [--short] [--json] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.scenarios import SCENARIOS
from faults.world import made_world
from rich.console import Console
from rich.table import Table

COLUMNS = ("faults", "expected", "lost", "duplicated", "differing", "sent_again")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="tracebridge-faults-") as folder:
        with made_world(Path(folder)) as world:
            for scenario in SCENARIOS:
                if given.names and scenario.__name__ not in given.names:
                    continue
                began = time.monotonic()
                figures = scenario(world, random.Random(given.seed), given.short)
                took_s = time.monotonic() - began
                print(f"{took_s:6.1f} s  {figures.name}", file=sys.stderr)
                rows.append(figures)
    if given.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        table = Table("fault", *COLUMNS, "", box=None, title=f"seed {given.seed}")
        for row in rows:
            values = [str(getattr(row, column)) for column in COLUMNS]
            table.add_row(row.name, *values, row.remark)
        sums = [str(sum(getattr(row, column) for row in rows)) for column in COLUMNS]
        table.add_row("in all", *sums, "")
        Console(width=160).print(table)
    return 0 if all(row.is_clean for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

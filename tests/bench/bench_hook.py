"""Measure what a hook costs the agent: `python tests/bench/bench_hook.py [--rounds N] [--json F]`."""

import argparse
import fcntl
import os
import sys
import tempfile
from pathlib import Path

from runner import Command, measure, table, write_json

HOOKS = Path(__file__).parents[2] / "hooks"
PYTHON = [sys.executable, "-I", "-S"]
BARE_PYTHON = "python -I -S -c pass"
BARE_SHELL = "sh -c :"


def commands(home: Path) -> list[Command]:
    python_hook = [*PYTHON, str(HOOKS / "tracebridge_hook.py"), "claude-code"]
    shell_hook = ["sh", str(HOOKS / "tracebridge_hook.sh"), "claude-code"]
    env = {"PATH": os.environ["PATH"], "TRACEBRIDGE_HOME": str(home)}
    unwritable = env | {"TRACEBRIDGE_HOME": "/dev/null"}
    small = b'{"text":"' + b"x" * 2036 + b'"}'
    large = b'{"text":"' + b"x" * 1_000_000 + b'"}'

    def empty_spool() -> None:
        for path in (home / "spool" / "new").iterdir():
            path.unlink()

    return [
        Command(BARE_PYTHON, [*PYTHON, "-c", "pass"], env=env),
        Command("python hook, 2 KB", python_hook, small, env, BARE_PYTHON, empty_spool),
        Command("python hook, 1 MB", python_hook, large, env, BARE_PYTHON, empty_spool),
        Command("python hook, home unwritable", python_hook, small, unwritable, BARE_PYTHON),
        Command(BARE_SHELL, ["sh", "-c", ":"], env=env),
        Command("sh hook, 2 KB", shell_hook, small, env, BARE_SHELL, empty_spool),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        # As when a watcher lives: the hook then starts none, which is what it mostly meets.
        with (home / "watch.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            results = measure(commands(home), options.rounds)
    sys.stdout.write(table(results) + "\n")
    if options.json:
        write_json(results, options.rounds, options.json)


if __name__ == "__main__":
    main()

# ruff: noqa: T201 - a program that also runs from outside of pytest
"""Fuzzing that is led by what it reaches, with atheris: `make fuzz`.

.venv/bin/python tests/fuzz/guided.py [--seconds N] [TARGET ...]

Each reader runs in a process of its own, with bounded memory and time for each input. What was
found worth keeping lies in .cache/fuzz/TARGET and is where the next run begins; what does harm is
written to crash-* there and belongs into corpus/TARGET once mended, where `make test` tries it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(REPOSITORY)]

# Seconds for one input, and megabytes for the process.
LONGEST_S = 20
MOST_MB = 2000

Reader = Callable[[bytes], object]


def readers(tests: Any, folder: Path) -> dict[str, tuple[Reader, list[bytes]]]:
    """Return what reads bytes from outside, each with inputs to begin with."""
    found: dict[str, tuple[Reader, list[bytes]]] = {}
    for slug in tests.SLUGS:
        found[f"hook-{slug}"] = (
            lambda data, slug=slug: tests.parse_hook(slug, data),
            tests.recorded_hooks(slug),
        )
        if slug != "opencode":
            found[f"transcript-{slug}"] = (
                lambda data, slug=slug: read_transcript(tests, slug, folder, data),
                [b"\n".join(tests.recorded_lines(slug)[:8])],
            )
    for name, dialect in tests.named_calls():
        found[f"response-{name}"] = (
            lambda data, name=name, dialect=dialect: read_response(tests, dialect, name, data),
            [tests.STREAMS[name.split(".")[0]]],
        )
    found["spool"] = (lambda data: read_spool(tests, data), [tests.SPOOLED, tests.CALLED])
    found["request"] = (lambda data: read_request(tests, data), [tests.REQUEST])
    found["config"] = (lambda data: read_config(tests, folder, data), [tests.CONFIG])
    found["scrub"] = (scrub, [b"A_TOKEN=abcdef123456", b"sk-proj-" + b"a1" * 20])
    return found


def read_transcript(tests: Any, slug: str, folder: Path, data: bytes) -> None:
    path = folder / "session-2e23f0a0.jsonl"
    path.write_bytes(data)
    tests.read_all(slug, path)


def read_response(tests: Any, dialect: Any, name: str, data: bytes) -> None:
    parser = dialect.response_parser(name, "text/event-stream")
    for start in range(0, len(data), 97):
        parser.feed(data[start : start + 97], start)
    tests.encode(parser.facts())
    tests.parse_error_message(data)


def read_spool(tests: Any, data: bytes) -> None:
    try:
        tests.encode(tests.parse(data, 5))
    except tests.SpoolFileError:
        return


def read_request(tests: Any, data: bytes) -> None:
    try:
        end = tests.find_head_end(data, 0)
        if end >= 0:
            tests.parse_request_head(data[:end])
    except tests.BadRequestError:
        return


def read_config(tests: Any, folder: Path, data: bytes) -> None:
    (folder / "config.toml").write_bytes(data)
    try:
        tests.read_settings({"TRACEBRIDGE_HOME": str(folder)})
    except tests.SettingsError:
        return


def scrub(data: bytes) -> None:
    scrub_text = importlib.import_module("tracebridge.scrub").scrub_text
    once = scrub_text(data.decode("utf-8", "replace"))
    json.dumps(once)


def fuzz(target: str, seconds: int) -> None:
    """Fuzz one reader until the time is over or it fails; does not return."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["tracebridge"]):
        tests = importlib.import_module("fuzz.test_fuzz")
    place = REPOSITORY / ".cache" / "fuzz" / target
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tracebridge-fuzz-") as name:
        reader, seeds = readers(tests, Path(name))[target]
        for number, seed in enumerate([*seeds, *tests.kept(target)]):
            (place / f"seed-{number}").write_bytes(seed)
        words = [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-timeout={LONGEST_S}",
            f"-rss_limit_mb={MOST_MB}",
            f"-artifact_prefix={place}/",
            "-verbosity=0",
            "-print_final_stats=1",
            str(place),
        ]
        atheris.Setup(words, reader)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=20, help="for each reader")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    given = parser.parse_args()
    if given.one:
        fuzz(given.one, given.seconds)
    names = readers(importlib.import_module("fuzz.test_fuzz"), Path())
    failed = []
    for target in given.targets or names:
        words = [sys.executable, __file__, "--one", target, "--seconds", str(given.seconds)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        lines = done.stderr.splitlines()
        runs = [line.split()[-1] for line in lines if "number_of_executed_units" in line]
        print(f"{target:<28} {runs[0] if runs else '?':>9} inputs, exit code {done.returncode}")
        if done.returncode:
            failed.append(target)
            print("\n".join(lines[-40:]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""From nothing to a verified first trace: a new venv, `integrate`, and `verify` of one real turn.

    python tests/bench/bench_first_trace.py [--json FILE]

The model is scripted and on loopback, so what is measured is ours and the agent's own. Packages
come from pip's cache if it has them. Set-up includes the start of gateway and watcher.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests" / "real_agents"), str(REPOSITORY / "tests")]

from test_verify import KINDS, set_up  # noqa: E402  # needs the path above


def install(folder: Path) -> tuple[float, float]:
    """Return the seconds that venv and installation take, and the size of what they leave, in MB."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    before = size_of(packages)
    command = [str(folder / "bin" / "pip"), "install", "--quiet", str(REPOSITORY)]
    subprocess.run(command, check=True)
    took = time.perf_counter() - began
    subprocess.run([str(folder / "bin" / "tracebridge"), "--version"], check=True)
    return took, (size_of(packages) - before) / 1e6


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def first_trace(slug: str, folder: Path) -> tuple[float, float]:
    """Return the seconds of the set-up with `integrate`, and of `verify` with the agent's turn."""
    began = time.perf_counter()
    with set_up(slug, folder) as ready:
        integrated = time.perf_counter()
        code, report = ready.verify()
        took = time.perf_counter() - integrated
    if code:
        raise SystemExit(f"{slug}: not verified: {report}")
    return integrated - began, took


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        seconds, megabytes = install(Path(place) / "venv")
        sys.stdout.write(f"venv and install   {seconds:6.1f} s   {megabytes:.0f} MB\n")
        found: dict[str, float] = {"install_s": seconds, "install_mb": megabytes}
        for slug in KINDS:
            folder = Path(place) / slug
            folder.mkdir()
            set_up_s, verify_s = first_trace(slug, folder)
            found[f"{slug}_s"] = seconds + set_up_s + verify_s
            sys.stdout.write(
                f"{slug:16}   {set_up_s:6.1f} s set-up, {verify_s:6.1f} s verify,"
                f" {found[f'{slug}_s']:6.1f} s from nothing\n"
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

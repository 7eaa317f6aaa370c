"""From nothing to a verified first trace: the wheel, `integrate`, and `verify` of one real turn.

    python tests/bench/bench_first_trace.py [--json FILE]

The model is scripted and on loopback, so what is measured is ours and the agent's own. Packages
come from pip's cache if it has them. Set-up includes the start of gateway and watcher.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests" / "real_agents"), str(REPOSITORY / "tests")]

from runner import Reach, tell  # noqa: E402  # needs the path above
from test_verify import KINDS, set_up  # noqa: E402  # needs the path above


def install(folder: Path) -> tuple[float, float]:
    """Return the seconds that installing the wheel takes, and the size of what it leaves, in MB."""
    wheels = folder / "wheels"
    build = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(REPOSITORY)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (wheel,) = wheels.glob("tracebridge-*.whl")
    times, sizes = [], []
    # The first time fills pip's cache.
    for number in range(3):
        venv = folder / f"venv-{number}"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        packages = next((venv / "lib").glob("python*")) / "site-packages"
        before = size_of(packages)
        began = time.perf_counter()
        subprocess.run([str(venv / "bin" / "pip"), "install", "--quiet", str(wheel)], check=True)
        times.append(time.perf_counter() - began)
        sizes.append((size_of(packages) - before) / 1e6)
    subprocess.run([str(venv / "bin" / "tracebridge"), "--version"], check=True)
    return min(times[1:]), sizes[-1]


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
        seconds, megabytes = install(Path(place))
        sys.stdout.write(f"install   {seconds:6.1f} s   {megabytes:.0f} MB\n")
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
    reaches = [
        Reach("base install", megabytes, "MB", at_most=60),
        Reach("base install from a warm cache", seconds, "s", at_most=10),
        *(
            Reach(f"from nothing to a verified trace, {slug}", found[f"{slug}_s"], "s")
            for slug in KINDS
        ),
    ]
    tell(reaches, found, options.json)


if __name__ == "__main__":
    main()

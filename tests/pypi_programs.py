"""Other people's programs from PyPI, each in a virtual environment of its own outside the clone.

The cache is that of the agents: a fresh clone finds what the last one fetched.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ATTEMPTS = 3


@dataclass(frozen=True)
class Program:
    # Its name and version on PyPI, pinned: what a backend shows changes from version to version.
    package: str
    version: str
    # The file that is run, below the environment.
    command: str
    # More packages to install beside it.
    beside: tuple[str, ...] = ()


def cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or _home() / ".cache"
    return Path(cache) / "tracebridge" / "programs"


def _home() -> Path:
    """Return the real home: that of a test is empty, and pip's settings and cache are not in it."""
    return Path(pwd.getpwuid(os.getuid()).pw_dir)


def installed(program: Program, python: str = sys.executable) -> Path:
    """Return the program's command, fetched only if the cache has no complete copy."""
    version = _version(python)
    folder = cache_folder() / f"{program.package}-{program.version}-python{version}"
    command = folder / program.command.format(python=f"python{version}")
    complete = folder / "complete"
    if complete.is_file() and command.is_file():
        return command
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        # Two test runs at once: the second finds what the first fetched.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (complete.is_file() and command.is_file()):
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([python, "-m", "venv", str(folder)], check=True)
            _fetch(program, folder / "bin" / "python")
            complete.touch()
    return command


def _version(python: str) -> str:
    if python == sys.executable:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def _fetch(program: Program, python: Path) -> None:
    wanted = [f"{program.package}=={program.version}", *program.beside]
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Compiling the modules of a gigabyte takes longer than fetching it.
    command += ["--no-compile", "--retries", "2", "--timeout", "60", *wanted]
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run(
            command,
            env={**os.environ, "HOME": str(_home())},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return
        sys.stderr.write(f"attempt {attempt} of {ATTEMPTS} to fetch {wanted} failed\n")
    raise RuntimeError(
        f"pip could not fetch {' '.join(wanted)}: {done.stderr.strip()[-500:]}; "
        "is a package index reachable (pip config list)?"
    )

"""Hooks into an agent's settings and out again, leaving everything else as it was."""

from __future__ import annotations

import difflib
import hashlib
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tracebridge.agents import Agent

# What we wrote where, so that --remove can put back the very bytes that were there before.
RECORD = "integrations.json"


class IntegrateError(Exception):
    """A settings file that must not be touched; the text says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class Change:
    """One file as it is and as it shall be; None where there is no file."""

    path: Path
    before: bytes | None
    after: bytes | None

    @property
    def diff(self) -> str:
        """Return what changes as a unified diff, "" if nothing does."""
        old, new = (
            (data or b"").decode("utf-8", "replace").splitlines(keepends=True)
            for data in (self.before, self.after)
        )
        names = [
            "/dev/null" if data is None else str(self.path) for data in (self.before, self.after)
        ]
        return "".join(difflib.unified_diff(old, new, names[0], names[1]))


def hooks_directory() -> Path:
    """Return where the hooks lie: in the wheel beside the code, in a checkout beside the package."""
    package = Path(__file__).resolve().parent
    for place in (package / "_hooks", package.parent / "hooks"):
        if (place / "tracebridge_hook.py").is_file():
            return place
    raise IntegrateError(f"{package}: the hooks are missing; install tracebridge again")


def hook_commands(agent: Agent, home: Path) -> dict[str, str]:
    """Return the shell commands that run the hook.

    By the interpreter's absolute path: a version manager's shim would cost ten times the hook.
    """
    hooks = hooks_directory()
    whose = [agent.SLUG, str(home)]
    python = [sys.executable, "-I", "-S", str(hooks / "tracebridge_hook.py"), *whose]
    sh = ["/bin/sh", str(hooks / "tracebridge_hook.sh"), *whose]
    return {"hook": shlex.join(python), "hot": shlex.join(sh)}


def plan(agent: Agent, path: Path, home: Path, *, remove: bool) -> Change:
    """Return what is to be changed in a settings file. Raise IntegrateError if it must not be."""
    path = path.resolve()
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        before = None
    except OSError as error:
        raise IntegrateError(f"{path}: {error.strerror}; nothing was changed") from error
    settings = _parse(path, before)
    if remove:
        original = _original(home, path, before)
        if original is not None:
            return Change(path, before, original[0])
        rest = agent.unwire(settings)
        return Change(path, before, before if rest == settings else _bytes(rest, before))
    try:
        wired = agent.wire(settings, hook_commands(agent, home))
    except ValueError as error:
        raise IntegrateError(f"{path}: {error}; correct it, nothing was changed") from error
    return Change(path, before, before if wired == settings else _bytes(wired, before))


def apply(change: Change, home: Path, *, remove: bool) -> Path | None:
    """Write a change, all or nothing; return where the file as it was is kept.

    Raise IntegrateError if the file is not any more what the plan was made for.
    """
    if change.before == change.after:
        return None
    now = change.path.read_bytes() if change.path.exists() else None
    if now != change.before:
        raise IntegrateError(f"{change.path}: somebody else just changed it; run this again")
    backup = _back_up(home, change)
    try:
        if change.after is None:
            change.path.unlink()
        else:
            _write(change.path, change.after)
    except OSError as error:
        raise IntegrateError(f"{change.path}: {error.strerror}; nothing was changed") from error
    record = _read_record(home)
    if remove:
        record.pop(str(change.path), None)
    else:
        # Integrating again keeps the very first original.
        known = record.get(str(change.path), {})
        original = backup
        if known and known.get("written") == _digest(change.before):
            original = Path(known["original"]) if known.get("original") else None
        record[str(change.path)] = {
            "written": _digest(change.after),
            "original": str(original) if original is not None else None,
        }
    _write(home / RECORD, orjson.dumps(record, option=orjson.OPT_INDENT_2))
    return backup


def _parse(path: Path, data: bytes | None) -> dict[str, Any]:
    if data is None or not data.strip():
        return {}
    try:
        settings = orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise IntegrateError(
            f"{path}: line {error.lineno}: {error.msg}; correct it, nothing was changed"
        ) from error
    if not isinstance(settings, dict):
        raise IntegrateError(f"{path}: not a JSON object; correct it, nothing was changed")
    return settings


def _bytes(settings: Mapping[str, Any], before: bytes | None) -> bytes:
    data = orjson.dumps(settings, option=orjson.OPT_INDENT_2) + b"\n"
    return data.replace(b"\n", b"\r\n") if before is not None and b"\r\n" in before else data


def _original(home: Path, path: Path, now: bytes | None) -> tuple[bytes | None] | None:
    """Return the bytes before we came, if the file is still just what we wrote."""
    known = _read_record(home).get(str(path))
    if known is None or known.get("written") != _digest(now):
        return None
    if known.get("original") is None:
        return (None,)
    try:
        return (Path(known["original"]).read_bytes(),)
    except OSError:
        return None


def _back_up(home: Path, change: Change) -> Path | None:
    if change.before is None:
        return None
    folder = home / "backups"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    backup = folder / f"{change.path.name}.{_digest(change.before)[:16]}"
    if not backup.exists():
        _write(backup, change.before)
    return backup


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, keeping the mode of the one that is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _read_record(home: Path) -> dict[str, Any]:
    try:
        record = orjson.loads((home / RECORD).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        # Without it --remove still takes out what is ours.
        return {}
    return record if isinstance(record, dict) else {}


def _digest(data: bytes | None) -> str:
    return "absent" if data is None else hashlib.sha256(data).hexdigest()

"""Hooks into an agent's settings and out again, leaving everything else as it was."""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    # Whether *before* holds nothing of ours, so that it may be put back one day.
    clean: bool = True

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
        known = _read_record(home).get(str(path), {})
        if known.get("written") == _digest(before) and (found := _original(known)) is not None:
            return Change(path, before, found[0])
        rest = agent.unwire(settings)
        if rest != settings:
            found = _original(known)
            rest = _restored(rest, settings, _parse(path, found[0]) if found is not None else {})
        return Change(path, before, before if rest == settings else _bytes(rest, before))
    try:
        wired = agent.wire(settings, hook_commands(agent, home))
    except ValueError as error:
        raise IntegrateError(f"{path}: {error}; correct it, nothing was changed") from error
    clean = agent.unwire(settings) == settings
    return Change(path, before, before if wired == settings else _bytes(wired, before), clean)


def apply(change: Change, home: Path, *, remove: bool) -> Path | None:
    """Write a change, all or nothing; return where the file as it was is kept.

    Raise IntegrateError if the file is not any more what the plan was made for.
    """
    if change.before == change.after:
        return None
    try:
        with _alone(home):
            now = change.path.read_bytes() if change.path.exists() else None
            if now == change.before:
                backup = _back_up(home, change)
                record = _recorded(_read_record(home), change, backup, remove=remove)
                # Whatever breaks between the two: a record of what is not there does no harm.
                if not remove:
                    _write_record(home, record)
                if change.after is None:
                    change.path.unlink()
                else:
                    _write(change.path, change.after)
                if remove:
                    _write_record(home, record)
                return backup
    except OSError as error:
        place = error.filename or change.path
        raise IntegrateError(f"{change.path}: not changed: {place}: {error.strerror}") from error
    raise IntegrateError(f"{change.path}: somebody else just changed it; run this again")


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Keep other runs of us out: each would forget what the other one recorded."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(home / f"{RECORD}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _recorded(
    record: dict[str, Any], change: Change, backup: Path | None, *, remove: bool
) -> dict[str, Any]:
    path = str(change.path)
    others = {name: entry for name, entry in record.items() if name != path}
    if remove:
        return others
    known = record.get(path, {})
    if change.clean:
        entry = {"written": _digest(change.after), "original": str(backup) if backup else None}
    else:
        # The very first original stays; after an edit in between it is not what to put back.
        untouched = known.get("written") == _digest(change.before)
        entry = {**known, "written": _digest(change.after) if untouched else None}
    return {**others, path: entry}


def _restored(rest: Any, now: Any, original: Any) -> Any:
    """Return *rest* with the plain values that stood where ours stood, and were lost with them."""
    if not (isinstance(rest, dict) and isinstance(now, dict) and isinstance(original, dict)):
        return rest
    back = {
        name: _restored(value, now.get(name), original.get(name)) for name, value in rest.items()
    }
    for name, value in original.items():
        if name in now and name not in rest:
            if isinstance(value, dict):
                back |= {name: inner} if (inner := _restored({}, now[name], value)) else {}
            elif not isinstance(value, list):
                back[name] = value
    return back


def _parse(path: Path, data: bytes | None) -> dict[str, Any]:
    if data is None or not data.strip():
        return {}
    try:
        settings = orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise IntegrateError(
            f"{path}: line {error.lineno}: not JSON, which knows no comments either: {error.msg};"
            " correct it, nothing was changed"
        ) from error
    if not isinstance(settings, dict):
        raise IntegrateError(f"{path}: not a JSON object; correct it, nothing was changed")
    return settings


def _bytes(settings: Mapping[str, Any], before: bytes | None) -> bytes:
    indent = re.search(rb"\n([ \t]+)\S", before or b"")
    text = json.dumps(settings, ensure_ascii=False, indent=indent[1].decode() if indent else 2)
    data = text.encode() + b"\n"
    return data.replace(b"\n", b"\r\n") if before is not None and b"\r\n" in before else data


def _original(known: Mapping[str, Any]) -> tuple[bytes | None] | None:
    """Return the bytes before we came, (None,) if there was no file, None if nobody knows."""
    if "original" not in known:
        return None
    if known["original"] is None:
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


def _write_record(home: Path, record: Mapping[str, Any]) -> None:
    _write(home / RECORD, orjson.dumps(record, option=orjson.OPT_INDENT_2))


def _digest(data: bytes | None) -> str:
    return "absent" if data is None else hashlib.sha256(data).hexdigest()

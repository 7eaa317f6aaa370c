"""The spool: hook events and gateway calls wait here, one file each. The single way in.

A file is written in `tmp/` and renamed into `new/`, so whoever reads sees whole files only. Its
name starts with the time in nanoseconds, or with `mtime-` where its writer cannot tell the time as
fast as a hook must be. What is in it, in format 1:

    name=value NUL name=value NUL ... NUL NUL payload

The fields are `format` (1), `kind` ("hook", "call", "spans" or "note"), `time_ns`, for calls `calls`
(how many), and for hooks also `agent`, `pid`, `payload_bytes` and one `env.NAME` for each allow-listed variable. The payload
of a hook is what the agent sent, untouched; that of calls is a `GatewayCall` as JSON in each line,
that of spans an OTLP export request, that of a note a text for `status`. NUL separated because it can
be written without a JSON encoder: by a hook that has no time to import one, and by `sh`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracebridge.codec import decode, encode
from tracebridge.model import GatewayCall, HookEvent, SpanExport

SUFFIX = ".event"
UNTIMED = "mtime-"
NOTE_BYTES = 200
# Taken in at once, beside the last file; an export may have megabytes.
READ_BYTES = 64 * 1024 * 1024
# No writer takes this long: what is older was left by one that died.
UNFINISHED_S = 3600
# The store's integers have 64 bits.
LATEST_NS = 2**63


class SpoolFileError(ValueError):
    """A spool file that cannot be understood."""


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """A record, and the file in which it lies, with others perhaps."""

    path: Path
    content: HookEvent | GatewayCall | SpanExport | str | SpoolFileError


class Spool:
    """Own the spool directory below *home*."""

    def __init__(self, home: Path) -> None:
        self.new = home / "spool" / "new"
        self._tmp = home / "spool" / "tmp"
        self._bad = home / "spool" / "bad"
        self._serial = itertools.count()
        self._home = home
        self._checked = False

    def create(self) -> None:
        """Make the directories, readable by nobody else. Raise OSError where that is impossible."""
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One by one: parents that are made on the way get what the umask leaves.
        for directory in (self.new.parent, self.new, self._tmp, self._bad):
            directory.mkdir(mode=0o700, exist_ok=True)

    def write_call(self, call: GatewayCall) -> None:
        """Put *call* into the spool. Raise OSError if the disk does not take it."""
        self.write_calls((call,))

    def write_calls(self, calls: Sequence[GatewayCall]) -> None:
        """Put *calls* into one file: making it takes longer than making one of them."""
        time_ns = time.time_ns()
        payload = b"\n".join(map(encode, calls))
        head = f"format=1\0kind=call\0time_ns={time_ns}\0calls={len(calls)}"
        self._write(head, payload, time_ns)

    def take(self, told: HookEvent | SpanExport | str) -> None:
        """Put what somebody exported into the spool, or a note. Raise OSError as `write_call`."""
        time_ns = time.time_ns()
        match told:
            case HookEvent():
                self.write_hook(told)
            case SpanExport():
                head = f"format=1\0kind=spans\0time_ns={told.time_ns}"
                self._write(head, told.request, told.time_ns)
            case str():
                self._write(f"format=1\0kind=note\0time_ns={time_ns}", told.encode(), time_ns)

    def write_hook(self, event: HookEvent) -> None:
        """Put what an agent told in another way into the spool. Raise OSError as `write_call`."""
        head = f"format=1\0kind=hook\0agent={event.agent}\0time_ns={event.time_ns}\0pid={event.pid}"
        self._write(head, event.payload, event.time_ns)

    def _check(self) -> None:
        """Raise OSError where somebody else could read or change what we write."""
        if not self._checked:
            stranger = why_not_ours(self._home)
            if stranger is not None:
                raise PermissionError(errno.EPERM, stranger, str(self._home))
            self._checked = True

    def _write(self, fields: str, payload: bytes, time_ns: int) -> None:
        name = f"{time_ns:020d}-{os.getpid()}-{next(self._serial)}{SUFFIX}"
        # No Path and no stream, once for each gateway call: they take as long as the file itself.
        unfinished = f"{self._tmp}/{name}"
        self._check()
        try:
            file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            self.create()
            file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            try:
                data = memoryview(fields.encode() + b"\0\0" + payload)
                while data:
                    data = data[os.write(file, data) :]
            finally:
                os.close(file)
            os.rename(unfinished, f"{self.new}/{name}")  # noqa: PTH104
        except OSError:
            Path(unfinished).unlink(missing_ok=True)
            raise

    def read(self, limit: int = 1000) -> list[SpoolFile]:
        """Return what waits, oldest first; no further file once there are *limit* records."""
        files: list[SpoolFile] = []
        size = 0
        for path in self.waiting():
            for file in self._read_file(path):
                files.append(file)
                if isinstance(file.content, SpanExport):
                    size += len(file.content.request)
            if size > READ_BYTES or len(files) >= limit:
                break
        return files

    def all_files(self) -> Iterator[SpoolFile]:
        """Yield what is in every file, also those that were set aside or never finished."""
        for directory in (self.new, self._bad, self._tmp):
            with contextlib.suppress(FileNotFoundError):
                for path in sorted(directory.iterdir()):
                    yield from self._read_file(path)

    def depth(self) -> int:
        return sum(1 for _ in self.waiting())

    def remove(self, file: SpoolFile) -> None:
        file.path.unlink(missing_ok=True)

    def set_aside(self, file: SpoolFile) -> Path:
        """Move a file that cannot be understood out of the way; nothing is deleted."""
        self._bad.mkdir(mode=0o700, exist_ok=True)
        place = self._bad / file.path.name
        # Another watcher may have done it already.
        with contextlib.suppress(FileNotFoundError):
            file.path.rename(place)
        return place

    def drop_unfinished(self) -> None:
        """Delete what writers left in `tmp/` when they were killed."""
        latest = time.time() - UNFINISHED_S
        with contextlib.suppress(FileNotFoundError):
            for path in self._tmp.iterdir():
                if path.lstat().st_mtime < latest:
                    path.unlink(missing_ok=True)

    def waiting(self) -> Iterator[Path]:
        """Yield the files that wait, oldest first."""
        try:
            names = [name for name in os.listdir(self.new) if name.endswith(SUFFIX)]
        except FileNotFoundError:
            return
        for name in sorted(names, key=self._age):
            yield self.new / name

    def _age(self, name: str) -> str:
        if name.startswith(UNTIMED):
            # Another watcher may have been faster.
            with contextlib.suppress(FileNotFoundError):
                return f"{(self.new / name).lstat().st_mtime_ns:020d}"
        return name

    @staticmethod
    def _read_file(path: Path) -> list[SpoolFile]:
        try:
            # Not through a link: the spool may lie in a folder that others can write to. Nor
            # waiting for the other end of a pipe.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                facts = os.fstat(descriptor)
                if not stat.S_ISREG(facts.st_mode):
                    return [SpoolFile(path, SpoolFileError(f"{path}: not a file"))]
                with os.fdopen(descriptor, "rb", closefd=False) as stream:
                    data = stream.read()
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            # Another watcher was faster.
            return []
        except OSError as error:
            return [SpoolFile(path, SpoolFileError(f"{path}: {error.strerror}"))]
        files: list[SpoolFile] = []
        for record in _records(data):
            try:
                files.append(SpoolFile(path, parse(record, facts.st_mtime_ns)))
            except SpoolFileError as error:
                # A power cut tears the end off, and what stands before that is whole.
                files.append(SpoolFile(path, SpoolFileError(f"{path}: {error}")))
                break
        return files


def why_not_ours(home: Path) -> str | None:
    """Say why what lies in *home* is not safe from other users, None if it is or is not there."""
    try:
        facts = home.stat()
    except FileNotFoundError:
        return None
    # Root may work in a user's home, as in a container; it is not root that others would attack.
    if facts.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        return "it belongs to another user; set TRACEBRIDGE_HOME to a folder of your own"
    if facts.st_mode & 0o002:
        return f"everybody may write to it; run: chmod o-w {home}"
    return None


def _records(data: bytes) -> list[bytes]:
    """Return the records of a spool file, each as if it had the file for itself."""
    head, separator, payload = data.partition(b"\0\0")
    fields = head.split(b"\0")
    if b"kind=call" not in fields:
        return [data]
    lines = payload.split(b"\n")
    if (
        any(field.startswith(b"calls=") for field in fields)
        and b"calls=%d" % len(lines) not in fields
    ):
        # Torn, perhaps between two lines.
        lines.append(b"")
    return [head + separator + line for line in lines]


def parse(data: bytes, mtime_ns: int) -> HookEvent | GatewayCall | SpanExport | str:
    """Return what one record of a spool file says; *mtime_ns* stands in for a missing time."""
    head, separator, payload = data.partition(b"\0\0")
    if not separator:
        raise SpoolFileError("no end of the header: the file is cut or not ours")
    fields: dict[str, str] = {}
    for line in head.split(b"\0"):
        name, equals, value = line.partition(b"=")
        if not equals:
            raise SpoolFileError(f"header field {line[:40]!r} has no value")
        fields[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    if fields.get("format") != "1":
        raise SpoolFileError(f"format {fields.get('format')!r} is not known; update tracebridge")
    kind = fields.get("kind")
    if kind == "call":
        try:
            call = decode(payload, GatewayCall)
        except ValueError as error:
            raise SpoolFileError(f"gateway call: {error}") from error
        if not (0 <= call.start_ns < LATEST_NS and 0 <= call.end_ns < LATEST_NS):
            raise SpoolFileError("gateway call: start_ns or end_ns is no time")
        return call
    if kind == "spans":
        return SpanExport(time_ns=_number(fields, "time_ns", mtime_ns), request=payload)
    if kind == "note":
        return payload[:NOTE_BYTES].decode("utf-8", "replace")
    if kind == "hook":
        return HookEvent(
            agent=fields.get("agent", ""),
            time_ns=_number(fields, "time_ns", mtime_ns),
            pid=_number(fields, "pid", 0),
            env={
                name.removeprefix("env."): value
                for name, value in fields.items()
                if name.startswith("env.")
            },
            payload=payload,
            payload_bytes=_number(fields, "payload_bytes", len(payload)),
        )
    raise SpoolFileError(f"kind {kind!r} is not known; update tracebridge")


def _number(fields: dict[str, str], name: str, default: int) -> int:
    text = fields.get(name, "")
    usable = text.isascii() and text.isdigit() and len(text) < 20 and int(text) < LATEST_NS
    return int(text) if usable else default

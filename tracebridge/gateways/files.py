"""A folder in which other gateways leave records of their calls, followed as its files grow.

Each line is JSON: an object or an array of objects, each of them one of
- a log record of LiteLLM's (`litellm`),
- a `GatewayCall` of our own, for whoever writes records for us,
- an export request in OTLP/JSON, as the OpenTelemetry Collector's file exporter writes it.

A file is known by its inode and by what stands right before the place up to which it was read. So
one that was renamed is read on, one that was emptied is begun anew, and the copy that was made of
it before is read on in its stead.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson

from tracebridge.agents import Cursor
from tracebridge.codec import decode
from tracebridge.gateways.litellm import call_of_record
from tracebridge.gateways.otlp import JSON, log_records, parse_spans, reduce
from tracebridge.lines import LONGEST_LINE, parse_object, read_lines
from tracebridge.model import GatewayCall, HookEvent, SpanExport
from tracebridge.spool import LATEST_NS

# By which a place in a file is known again.
MARK_BYTES = 1024
# What one look takes in at most, about, so that a huge file is taken in by parts.
MOST_RECORDS = 2000
MOST_BYTES = 8 * 1024 * 1024
# How many files are remembered after they are gone: a rotation may have hidden them for a moment.
MOST_GONE = 100
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")
_TIMES = ("start_ns", "end_ns")
_DIGITS = re.compile(r"[0-9]{1,19}")
_OTLP = frozenset({"resourceLogs", "resourceMetrics"})

Record = GatewayCall | HookEvent | SpanExport


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderReading:
    """What one look at a folder gave."""

    records: tuple[Record, ...] = ()
    cursor: Cursor
    # What was passed over, by file and reason.
    notes: Mapping[str, int] = field(default_factory=dict)
    # Whether there is more to read at once.
    is_partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """How far a file is read."""

    offset: int = 0
    # Digests of what the file begins with and of what stands right before *offset*.
    head: str = ""
    tail: str = ""
    # Size and time of its last change when there was nothing more to read.
    seen: tuple[int, int] = (0, 0)
    # Whether a line that cannot be understood was told of.
    complained: bool = False


def read_folder(
    folder: Path, cursor: Cursor, clock: Callable[[], int] = time.time_ns
) -> FolderReading:
    """Return what the folder's files say beyond *cursor*. Raise OSError if it cannot be read."""
    look = _Look(cursor, clock)
    files = list(_files_in(folder))
    # A copy comes before the file that was emptied after it was made: there it was read to.
    for path, facts in sorted(files, key=lambda file: file[1].st_ino in look.known):
        look.take(path, facts)
    return look.reading({facts.st_ino for _, facts in files})


class _Look:
    """One look at a folder."""

    def __init__(self, cursor: Cursor, clock: Callable[[], int]) -> None:
        self._cursor = cursor
        self._clock = clock
        self.known = {
            int(inode): _Place(**{**place, "seen": tuple(place["seen"])})
            for inode, place in cursor.memory.items()
        }
        self._places = dict(self.known)
        self._records: list[Record] = []
        self._notes: Counter[str] = Counter()
        self._is_partial = False

    def take(self, path: Path, facts: os.stat_result) -> None:
        """Read a file on, unless it is as it was or there is enough for one look."""
        place = self.known.get(facts.st_ino)
        now = (facts.st_size, facts.st_mtime_ns)
        if self._is_partial or (place is not None and place.seen == now):
            return
        try:
            if place is None or not _is_at(path, place):
                place = next((p for p in self.known.values() if _is_at(path, p)), _Place())
            place = self._read_on(path, place)
        except FileNotFoundError:
            # Renamed just now: it has another name at the next look.
            return
        except OSError as error:
            self._notes[f"records not readable: {path}: {error.strerror}"] += 1
            place = place or _Place()
        self._places[facts.st_ino] = place if self._is_partial else replace(place, seen=now)

    def reading(self, inodes: set[int]) -> FolderReading:
        """Return what it gave; *inodes* are the files that there are."""
        gone = [inode for inode in self._places if inode not in inodes]
        for inode in gone[:-MOST_GONE]:
            del self._places[inode]
        memory = {str(inode): asdict(place) for inode, place in self._places.items()}
        return FolderReading(
            records=tuple(self._records),
            cursor=self._cursor if self._places == self.known else Cursor(memory=memory),
            notes=self._notes,
            is_partial=self._is_partial,
        )

    def _read_on(self, path: Path, place: _Place) -> _Place:
        if path.suffix in _COMPRESSED:
            self._notes[f"records not read: {path}: compressed; unpack it"] += 1
            return place
        begun, offset, complained = place.offset, place.offset, place.complained
        for line, behind in _lines(path, begun):
            found = _records_in(line, self._clock) if isinstance(line, bytes) else line
            if isinstance(found, str):
                complaint = "further lines not understood"
                if not complained:
                    complaint = f"line {_line_number(path, behind)}: {found}"
                self._notes[f"records in {path}: {complaint}"] += 1
                complained = True
            else:
                self._records += found
            offset = behind
            if len(self._records) >= MOST_RECORDS or offset - begun >= MOST_BYTES:
                self._is_partial = True
                break
        if offset == begun:
            return replace(place, complained=complained)
        head, tail = _marks(path, offset)
        return _Place(offset=offset, head=head, tail=tail, complained=complained)


def _files_in(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for name in sorted(os.listdir(folder)):
        path = folder / name
        with suppress(FileNotFoundError):
            facts = path.stat()
            if stat.S_ISREG(facts.st_mode) and not name.startswith("."):
                yield path, facts


def _is_at(path: Path, place: _Place) -> bool:
    """Say whether a file still is, or is a copy of, the one that was read up to *place*."""
    return path.stat().st_size >= place.offset > 0 and (place.head, place.tail) == _marks(
        path, place.offset
    )


def _marks(path: Path, offset: int) -> tuple[str, str]:
    """Return digests of what a file begins with and of what stands right before *offset*."""
    with path.open("rb") as file:
        head = file.read(min(MARK_BYTES, offset))
        file.seek(max(0, offset - MARK_BYTES))
        tail = file.read(min(MARK_BYTES, offset))
    return sha256(head).hexdigest(), sha256(tail).hexdigest()


def _lines(path: Path, offset: int) -> Iterator[tuple[bytes | str, int]]:
    """Yield the lines behind *offset*, and what stands behind the last one if it is whole."""
    for line, behind in read_lines(path, offset):
        offset = behind
        yield line, behind
    with path.open("rb") as file:
        file.seek(offset)
        rest = file.read(LONGEST_LINE)
    # No object or array is the beginning of another one, so it is whole once it can be read.
    if rest.endswith((b"}", b"]")) and b"\n" not in rest.strip() and _is_json(rest):
        yield rest, offset + len(rest)


def _is_json(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _line_number(path: Path, offset_behind: int) -> int:
    number, left = 1, offset_behind - 1
    with path.open("rb") as file:
        while left > 0 and (piece := file.read(min(left, 1 << 20))):
            number += piece.count(b"\n")
            left -= len(piece)
    return number


def _records_in(line: bytes, clock: Callable[[], int]) -> list[Record] | str:
    """Return what a line says, or in words why it cannot be understood."""
    if line.lstrip().startswith(b"["):
        try:
            values = orjson.loads(line)
        except orjson.JSONDecodeError:
            return "not JSON"
    else:
        value = parse_object(line)
        if isinstance(value, str):
            return value
        values = [value]
    records: list[Record] = []
    for value in values:
        found = _records_of(value, clock) if isinstance(value, dict) else "not a JSON object"
        if isinstance(found, str):
            return found
        records += found
    return records


def _records_of(value: dict[str, Any], clock: Callable[[], int]) -> list[Record] | str:
    if "resourceSpans" in value:
        try:
            spans = parse_spans(JSON, orjson.dumps(value))
        except ValueError as error:
            return f"no spans in OTLP/JSON: {str(error)[:200]}"
        return [SpanExport(time_ns=clock(), request=spans.SerializeToString())]
    if not _OTLP.isdisjoint(value):
        return list(reduce(log_records(value), clock()))
    call = call_of_record(value)
    if call is not None:
        return [call]
    if "call_id" not in value:
        return "no record of a form that is known"
    # Who has no numbers of 64 bits, such as Envoy's log, writes them as texts.
    written = {
        name: int(told) for name in _TIMES if _DIGITS.fullmatch(told := str(value.get(name)))
    }
    try:
        call = decode(orjson.dumps(value | written), GatewayCall)
    except ValueError as error:
        return str(error)
    if call.error_type is None and (call.status_code or 0) >= HTTPStatus.BAD_REQUEST:
        call = replace(call, error_type=str(call.status_code))
    if not (0 <= call.start_ns < LATEST_NS and 0 <= call.end_ns < LATEST_NS):
        return "start_ns or end_ns is no time"
    return [call]

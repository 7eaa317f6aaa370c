"""Whole lines of a growing JSON Lines file, from where the last look ended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

# A line longer than this is passed over in pieces, so that memory stays bounded.
LONGEST_LINE = 64 * 1024 * 1024
# One look gives at most about this much, so that a huge file is taken in by parts.
MOST_BYTES = 8 * 1024 * 1024

_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


def read_objects(path: Path, offset: int) -> Iterator[tuple[dict[str, Any] | str, int]]:
    """Yield each line's JSON object with the offset behind it, or why it is not one.

    Lines are those of `read_lines`.
    """
    for line, offset_behind in read_lines(path, offset):
        yield (parse_object(line) if isinstance(line, bytes) else line), offset_behind


def read_lines(path: Path, offset: int) -> Iterator[tuple[bytes | str, int]]:
    """Yield each line that is not blank with the offset behind it, or why it is passed over.

    A last line without its end is left for the next look: the writer may be in the middle of it.
    Raise OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(offset)
        taken = 0
        while taken < MOST_BYTES:
            line = file.readline(LONGEST_LINE)
            length, end = len(line), line
            while len(end) == LONGEST_LINE and not end.endswith(b"\n"):
                end = file.readline(LONGEST_LINE)
                length += len(end)
            if not end.endswith(b"\n"):
                return
            offset += length
            if length > len(line):
                taken += length
                yield f"line longer than {LONGEST_LINE} bytes", offset
            elif not line.isspace():
                # Blank lines do not count: a look that gives nothing would never get past them.
                taken += length
                yield line, offset


def parse_object(data: bytes) -> dict[str, Any] | str:
    """Return the JSON object in *data*, or in words why there is none."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        # An agent that cuts a text in the middle of an emoji writes half of it: \ud83d.
        if not _HALF_CHARACTER.search(data):
            return "not JSON"
        try:
            value = orjson.loads(_without_halves(data))
        except (ValueError, RecursionError):
            return "not JSON"
    return value if isinstance(value, dict) else "not a JSON object"


def parse_head(data: bytes) -> dict[str, Any]:
    """Return the leading text fields of an object that was cut: whom it is about comes first."""
    head = data[:65536].decode("utf-8", "replace")
    fields: dict[str, Any] = {}
    for name, value in re.findall(r'"(\w+)"\s*:\s*("(?:[^"\\]|\\.)*")', head):
        try:
            fields.setdefault(name, orjson.loads(value))
        except orjson.JSONDecodeError:
            continue
    return fields


def _without_halves(data: bytes) -> bytes:
    text = json.dumps(json.loads(data), ensure_ascii=False)
    return text.encode("utf-8", "replace")

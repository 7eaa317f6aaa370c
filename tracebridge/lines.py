"""Whole lines of a growing JSON Lines file, from where the last look ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

# A line longer than this is passed over in pieces, so that memory stays bounded.
LONGEST_LINE = 64 * 1024 * 1024
# One look gives at most about this much, so that a huge file is taken in by parts.
MOST_BYTES = 8 * 1024 * 1024


def read_objects(path: Path, offset: int) -> Iterator[tuple[dict[str, Any] | str, int]]:
    """Yield each line's JSON object with the offset behind it, or why it is not one.

    A last line without its end is left for the next look: the writer may be in the middle of it.
    Raise OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(offset)
        taken = 0
        while taken < MOST_BYTES:
            line = file.readline(LONGEST_LINE)
            whole = line.endswith(b"\n")
            if not whole and len(line) < LONGEST_LINE:
                return
            taken += len(line)
            offset += len(line)
            if not whole:
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(LONGEST_LINE)
                    offset += len(rest)
                yield f"line longer than {LONGEST_LINE} bytes", offset
            elif line.strip():
                yield parse_object(line), offset


def parse_object(data: bytes) -> dict[str, Any] | str:
    """Return the JSON object in *data*, or in words why there is none."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return "not JSON"
    return value if isinstance(value, dict) else "not a JSON object"

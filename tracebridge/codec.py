"""Records to JSON bytes and back, for spool and store.

Encoding is deterministic, so equal records have equal bytes; decoding refuses what does not fit.
"""

from __future__ import annotations

from typing import TypeVar, get_args

import msgspec

from tracebridge.model import Part

Record = TypeVar("Record")

PARTS: dict[str, type[Part]] = {part.__name__: part for part in get_args(Part)}


def encode(record: object) -> bytes:
    """Return *record* as JSON; fields are in the order of their definition."""
    return _ENCODER.encode(record)


def decode(data: bytes, record_type: type[Record]) -> Record:
    """Return the record that *data* holds, or raise ValueError saying which field does not fit."""
    try:
        return msgspec.json.decode(data, type=record_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def part_kind(part: Part) -> str:
    return type(part).__name__


_ENCODER = msgspec.json.Encoder(order="deterministic")

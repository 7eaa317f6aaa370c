"""Fields of a vendor's JSON, whatever it really holds. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def nanoseconds_of(record: dict[str, Any], name: str) -> int | None:
    """Return a duration given in milliseconds, in nanoseconds."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return None
    return int(value * 1_000_000)


def moment_of(stamp: Any) -> int | None:
    """Return an ISO 8601 time with its zone, in nanoseconds since 1970; None for one before that."""
    if not isinstance(stamp, str):
        return None
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    time_ns = (moment - EPOCH) // timedelta(microseconds=1) * 1000
    # Beyond, no counter of nanoseconds reaches.
    return time_ns if 0 <= time_ns < 2**63 else None


def count_of(record: dict[str, Any], name: str) -> int | None:
    value = record.get(name)
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return value if usable else None


def text_of(record: dict[str, Any], name: str) -> str | None:
    value = record.get(name)
    return value if isinstance(value, str) else None


def dict_of(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def dicts_in(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def texts_in(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def as_json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()

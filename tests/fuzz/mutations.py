"""Bytes that almost make sense: recorded ones with something changed. Strategies of Hypothesis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

HUGE = 10**400
# What stands in JSON where nobody expects it.
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    -(2**63) - 1,
    HUGE,
    1e308,
    -0.0,
    "",
    "\0",
    "\ud800",
    "x" * 5000,
    "9999-99-99T99:99:99Z",
    "0001-01-01T00:00:00Z",
    "../../../etc/passwd",
    [],
    {},
    [[[[[[[[]]]]]]]],
    {"type": {"type": []}},
    [None, 1, "a", {}],
)
JUNK = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"\n",
    b"\r\n",
    b'"',
    b"{",
    b"]" * 50,
    b"[" * 5000,
    b"data: ",
    b"\x1b",
)


@st.composite
def changed_json(draw: Any, seed: Any) -> Any:
    """Return *seed* with some of its values replaced, dropped or doubled."""
    value = json.loads(json.dumps(seed))
    for _ in range(draw(st.integers(1, 4))):
        value = _changed(draw, value, 0)
    return value


def _changed(draw: Any, value: Any, depth: int) -> Any:
    deeper = isinstance(value, dict | list) and value and depth < 12
    if not deeper or draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(ODD))
    if isinstance(value, list):
        index = draw(st.integers(0, len(value) - 1))
        what = draw(st.sampled_from(("change", "change", "drop", "double")))
        if what == "drop":
            return value[:index] + value[index + 1 :]
        if what == "double":
            return [*value, *value[index:]]
        return [*value[:index], _changed(draw, value[index], depth + 1), *value[index + 1 :]]
    name = draw(st.sampled_from(sorted(value)))
    if draw(st.integers(0, 4)) == 0:
        return {key: each for key, each in value.items() if key != name}
    return {**value, name: _changed(draw, value[name], depth + 1)}


@st.composite
def changed_bytes(draw: Any, seed: bytes) -> bytes:
    """Return *seed* cut, with bytes put in, taken out, flipped or repeated."""
    data = seed
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        how = draw(st.sampled_from(("cut", "junk", "drop", "flip", "repeat", "noise")))
        if how == "cut":
            data = data[:start]
        elif how == "junk":
            data = data[:start] + draw(st.sampled_from(JUNK)) + data[start:]
        elif how == "drop":
            data = data[:start] + data[end:]
        elif how == "flip":
            data = data[:start] + bytes(byte ^ 0x20 for byte in data[start:end]) + data[end:]
        elif how == "repeat":
            data = data[:end] + data[start:end] * 3 + data[end:]
        else:
            data = data[:start] + draw(st.binary(max_size=40)) + data[end:]
    return data


def changed_lines(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return JSON Lines made of recorded lines, some of them changed one way or the other."""

    def one(line: bytes) -> st.SearchStrategy[bytes]:
        as_json = changed_json(json.loads(line)).map(to_bytes)
        return st.one_of(st.just(line), as_json, changed_bytes(line))

    line = st.sampled_from(seeds).flatmap(one)
    return st.lists(line, min_size=1, max_size=6).map(lambda lines: b"\n".join(lines) + b"\n")


def to_bytes(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "replace")

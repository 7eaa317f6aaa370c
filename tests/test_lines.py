"""Transcripts are read while they grow, and some are damaged."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracebridge import lines
from tracebridge.lines import parse_object, read_objects


def read(path, offset=0):
    return list(read_objects(path, offset))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "transcript.jsonl"


def test_objects_come_with_the_offset_behind_them(path):
    """Reading on from any of them gives the rest."""
    path.write_bytes(b'{"a":1}\n{"b":2}\r\n\n  \n{"c":3}\n')
    found = read(path)
    assert [value for value, _ in found] == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert found[0][1] == 8
    assert found[-1][1] == path.stat().st_size
    assert read(path, found[0][1]) == found[1:]


def test_a_line_without_its_end_waits(path):
    """The writer may be in the middle of it."""
    path.write_bytes(b'{"a":1}\n{"b":')
    assert read(path) == [({"a": 1}, 8)]
    path.write_bytes(b'{"a":1}\n{"b":2}\n')
    assert read(path, 8) == [({"b": 2}, 16)]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"nonsense", "not JSON"),
        (b'{"a":1', "not JSON"),
        (b"\0\0\0", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"a":"\xff"}', "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a":"\\ud83d', "not JSON"),
    ],
)
def test_what_is_no_object_is_said_and_passed(path, line, what):
    """The lines around it are read."""
    path.write_bytes(b'{"a":1}\n' + line + b'\n{"b":2}\n')
    assert [value for value, _ in read(path)] == [{"a": 1}, what, {"b": 2}]


def test_half_a_character_does_not_cost_the_line():
    """Agents cut texts in the middle of an emoji; the rest is worth having."""
    assert parse_object(b'{"a":"x\\ud83d","b":"\\ud83d\\ude00"}') == {"a": "x?", "b": "😀"}


def test_a_line_too_long_is_passed_over_in_little_memory(path, monkeypatch):
    """Whatever it holds at the place where it was cut."""
    monkeypatch.setattr(lines, "LONGEST_LINE", 1000)
    monkeypatch.setattr(lines, "MOST_BYTES", 10_000_000)
    with path.open("wb") as file:
        file.write(b'{"a":1}\n' + b"x" * 1000 + b'{"fake":1}' + b" " * 3_000_000 + b'\n{"b":2}\n')
    tracemalloc.start()
    found = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [value for value, _ in found] == [{"a": 1}, "line longer than 1000 bytes", {"b": 2}]
    assert peak < 1_000_000


def test_a_line_too_long_waits_for_its_end_too(path, monkeypatch):
    """What follows the cut is never taken for a line of its own."""
    monkeypatch.setattr(lines, "LONGEST_LINE", 10)
    path.write_bytes(b"x" * 25)
    assert read(path) == []
    path.write_bytes(b"x" * 25 + b'{"fake":1}\n{"b":2}\n')
    assert [value for value, _ in read(path)] == ["line longer than 10 bytes", {"b": 2}]


def test_one_look_takes_about_as_much_as_it_may(path, monkeypatch):
    """The next one goes on; blank lines do not stop it."""
    monkeypatch.setattr(lines, "MOST_BYTES", 20)
    path.write_bytes(b"\n" * 100 + b'{"a":1}\n' * 10)
    first = read(path)
    assert len(first) == 3
    assert len(read(path, first[-1][1])) == 3


def test_a_missing_file_is_an_error_of_the_system(path):
    """The caller knows what a missing transcript means."""
    with pytest.raises(FileNotFoundError):
        read(path)


LINE = st.one_of(
    st.dictionaries(st.text(max_size=3), st.text(max_size=10), max_size=2).map(
        lambda value: json.dumps(value).encode()
    ),
    st.sampled_from([b"", b" ", b"\0", b"junk", b"[]", b"x" * 40, b'{"n":' + b" " * 40 + b"1}"]),
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(LINE, st.sampled_from([b"\n", b"\r\n"]))),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_a_growing_file_gives_what_the_whole_gives(tmp_path_factory, file_lines, cuts):
    """Wherever the looks fall between."""
    data = b"".join(line + end for line, end in file_lines)
    path = tmp_path_factory.mktemp("lines") / "t.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "LONGEST_LINE", 30)
        path.write_bytes(data)
        whole = read(path)
        grown, offset = [], 0
        for cut in [*sorted(cuts), len(data)]:
            path.write_bytes(data[:cut])
            for value, offset in read_objects(path, offset):  # noqa: B020  # as a reader does it
                grown.append((value, offset))
    assert grown == whole

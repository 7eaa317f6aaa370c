"""What is known of other processes, asked of real ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beside import started

from tracebridge.processes import is_open_for_writing

# Opens a file and says so, then waits until nobody holds its stdin any more.
HOLD = "import sys; file = open(sys.argv[1], sys.argv[2]); print(flush=True); sys.stdin.read()"


@contextmanager
def held(path, mode: str) -> Iterator[None]:
    command = [sys.executable, "-c", HOLD, str(path), mode]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        yield


def test_a_file_is_open_as_long_as_its_writer_lives(tmp_path):
    """However it ends: the system closes what a killed process had open."""
    path = tmp_path / "file"
    path.write_text("x")
    assert is_open_for_writing(path) is False
    with held(path, "a"):
        assert is_open_for_writing(path) is True
    assert is_open_for_writing(path) is False


def test_a_reader_is_no_writer(tmp_path):
    """A pager or another watcher that has the file open does not count, nor does one that asks."""
    path = tmp_path / "file"
    path.write_text("x")
    with held(path, "r"):
        assert is_open_for_writing(path) is False


def test_to_ask_leaves_nothing_behind(tmp_path):
    """Who opens the file afterwards gets it at once."""
    path = tmp_path / "file"
    path.write_text("x")
    assert is_open_for_writing(path) is False
    with path.open("a") as file:
        file.write("y")
    assert path.read_text() == "xy"


def test_what_cannot_be_asked_is_unknown(tmp_path):
    """No file, a folder, a device: nobody can say."""
    assert is_open_for_writing(tmp_path / "missing") is None
    assert is_open_for_writing(tmp_path) is None
    assert is_open_for_writing(Path("/dev/null")) is None

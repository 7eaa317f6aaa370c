"""What is known of other processes, asked of real ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tracebridge.processes import is_open_for_writing

# Opens a file and says so, then waits until nobody holds its stdin any more.
HOLD = "import sys; file = open(sys.argv[1], sys.argv[2]); print(flush=True); sys.stdin.read()"


def holder(path, mode: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_a_file_is_open_as_long_as_its_writer_lives(tmp_path):
    """However it ends: the system closes what a killed process had open."""
    path = tmp_path / "file"
    path.write_text("x")
    assert is_open_for_writing(path) is False
    writer = holder(path, "a")
    try:
        assert is_open_for_writing(path) is True
    finally:
        end(writer)
    assert is_open_for_writing(path) is False


def test_a_reader_is_no_writer(tmp_path):
    """A pager or another watcher that has the file open does not count, nor does one that asks."""
    path = tmp_path / "file"
    path.write_text("x")
    reader = holder(path, "r")
    try:
        assert is_open_for_writing(path) is False
    finally:
        end(reader)


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

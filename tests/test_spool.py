"""What hooks and gateways wrote, however it looks when we come to read it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tracebridge.model import CallIdentity, GatewayCall, HookEvent
from tracebridge.spool import Spool, SpoolFileError

CALL = GatewayCall(
    call_id="1",
    gateway="tracebridge",
    method="POST",
    path="/v1/messages",
    start_ns=1,
    end_ns=2,
    identity=CallIdentity(agent="claude-code", session_id="séance"),
)
HOOK = (
    b"format=1\0kind=hook\0agent=claude-code\0time_ns=123\0pid=7\0payload_bytes=9\0"
    b'env.AI_AGENT=a=b\0env.RESPAN_METADATA={"n": 1}\0\0'
)


@pytest.fixture
def spool(home):
    spool = Spool(home)
    spool.create()
    return spool


def put(spool: Spool, name: str, data: bytes) -> Path:
    path = spool.new / f"{name}.event"
    path.write_bytes(data)
    return path


def test_a_call_comes_out_as_it_went_in(home):
    """The first one makes the directories."""
    Spool(home).write_call(CALL)
    (file,) = Spool(home).read()
    assert file.content == CALL


def test_calls_that_went_in_together_come_out_one_by_one(home):
    """They lie in one file, a line each."""
    calls = [replace(CALL, call_id=f"two\nlines {number}") for number in range(3)]
    spool = Spool(home)
    spool.write_calls(calls)
    assert [file.content for file in spool.read()] == calls
    assert spool.depth() == 1
    assert len(spool.read(limit=2)) == 3


def test_a_file_that_was_torn_keeps_the_calls_before_that(home):
    """The rest is said once, however much of it there is."""
    spool = Spool(home)
    spool.write_calls([CALL, CALL, CALL])
    (path,) = spool.waiting()
    whole = path.read_bytes()
    start = whole.index(b"\0\0") + 2
    line = whole[start:].partition(b"\n")[0]
    for end in range(start, len(whole)):
        lines_before = (end - start) // (len(line) + 1)
        for torn in (whole[:end], whole[:end].ljust(len(whole), b"\0"), whole[:end] + b"{\n{\n{"):
            path.write_bytes(torn)
            *good, bad = [file.content for file in spool.read()]
            assert good in ([CALL] * lines_before, [CALL] * (lines_before + 1))
            assert isinstance(bad, SpoolFileError)


def test_what_an_agent_told_otherwise_comes_out_as_it_went_in(home):
    """What came over the network lies in the spool as a hook's event does."""
    told = HookEvent(
        agent="gemini-cli", time_ns=5, pid=0, env={}, payload=b'{"a":1}\0', payload_bytes=8
    )
    Spool(home).write_hook(told)
    (file,) = Spool(home).read()
    assert file.content == told


def test_a_hook_event_is_read_as_the_hook_wrote_it(spool):
    """The payload may hold anything, NULs too; a value may hold an equals sign."""
    put(spool, "1", HOOK + b'{"a"\0\0\n')
    (file,) = spool.read()
    assert file.content == HookEvent(
        agent="claude-code",
        time_ns=123,
        pid=7,
        env={"AI_AGENT": "a=b", "RESPAN_METADATA": '{"n": 1}'},
        payload=b'{"a"\0\0\n',
        payload_bytes=9,
    )


def test_what_a_hook_did_not_know_is_filled_in(spool):
    """The time is that of the file; numbers that are none count as missing."""
    head = b"format=1\0kind=hook\0agent=x\0time_ns=%b\0pid=-1\0\0{}"
    for number, text in enumerate((b"", b"12e3", b"9" * 19, b"9" * 400, "१२".encode())):
        os.utime(put(spool, str(number), head % text), ns=(5_000_000_000, 5_000_000_000))
    for file in spool.read():
        assert isinstance(file.content, HookEvent)
        assert (file.content.time_ns, file.content.pid) == (5_000_000_000, 0)
        assert file.content.payload_bytes == 2


GOOD_CALL = b"format=1\0kind=call\0time_ns=1\0\0"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "cut or not ours"),
        (b"garbage", "cut or not ours"),
        (bytes(range(1, 256)), "cut or not ours"),
        (HOOK[:40], "cut or not ours"),
        (b"noequals\0\0", "noequals"),
        (b"kind=hook\0\0", "update tracebridge"),
        (b"format=2\0kind=hook\0\0", "update tracebridge"),
        (b"format=1\0\0", "update tracebridge"),
        (b"format=1\0kind=novel\0\0", "update tracebridge"),
        (GOOD_CALL, "gateway call"),
        (GOOD_CALL + b'{"call_id":1}', "call_id"),
        (GOOD_CALL + b"{" * 10_000, "gateway call"),
        (
            GOOD_CALL + b'{"call_id":"1","gateway":"g","method":"","path":"","start_ns":1,'
            b'"end_ns":99999999999999999999}',
            "end_ns",
        ),
    ],
)
def test_what_cannot_be_understood_is_said_with_its_place(spool, data, complaint):
    """And does not hide what is behind it."""
    path = put(spool, "0", data)
    spool.write_call(CALL)
    bad, good = spool.read()
    assert isinstance(bad.content, SpoolFileError)
    assert str(path) in str(bad.content)
    assert complaint in str(bad.content)
    assert good.content == CALL


def test_only_files_are_read(spool, tmp_path):
    """No link is followed, no pipe waited for, and a directory is no event."""
    secret = tmp_path / "secret"
    secret.write_bytes(HOOK + b"secret")
    (spool.new / "1.event").symlink_to(secret)
    (spool.new / "2.event").symlink_to(tmp_path / "nowhere")
    (spool.new / "3.event").mkdir()
    os.mkfifo(spool.new / "4.event")
    files = spool.read()
    assert [type(file.content) for file in files] == [SpoolFileError] * 4
    for file in files:
        spool.set_aside(file)
    assert spool.depth() == 0
    assert secret.exists()


def test_a_huge_event_is_read_whole(spool):
    """Sixteen megabytes are no reason to lose anything."""
    put(spool, "1", HOOK + b"x" * 16_000_000)
    (file,) = spool.read()
    assert len(file.content.payload) == 16_000_000


def test_nobody_else_can_read_the_spool(home):
    """Prompts and code are in it."""
    spool = Spool(home)
    spool.write_call(CALL)
    (path,) = spool.new.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    for directory in ("new", "tmp", "bad"):
        assert (home / "spool" / directory).stat().st_mode & 0o777 == 0o700


def test_the_oldest_comes_first(spool):
    """Names begin with the time; other names are not ours."""
    for name in ("0300-1-0", "0100-9-0", "0200-5-0"):
        put(spool, name, HOOK)
    (spool.new / "0000.tmp").write_bytes(HOOK)
    assert [file.path.name[:4] for file in spool.read()] == ["0100", "0200", "0300"]
    assert [file.path.name[:4] for file in spool.read(limit=2)] == ["0100", "0200"]
    assert spool.depth() == 3


def test_a_file_set_aside_is_kept(spool):
    """Byte for byte, out of the way."""
    put(spool, "1", b"garbage")
    (file,) = spool.read()
    place = spool.set_aside(file)
    assert place.read_bytes() == b"garbage"
    assert spool.read() == []


def test_two_watchers_may_take_the_same_file(spool):
    """Whoever comes second finds nothing wrong with that."""
    put(spool, "1", b"garbage")
    (file,) = spool.read()
    spool.remove(file)
    spool.remove(file)
    spool.set_aside(file)
    assert spool._read_file(file.path) == []


def test_no_spool_is_an_empty_spool(home):
    """Reading makes nothing."""
    assert Spool(home).read() == []
    assert Spool(home).depth() == 0
    assert not home.exists()


def test_a_disk_that_takes_nothing_leaves_nothing_half_written(spool):
    """Whoever recorded the call is told, and no piece is left in tmp."""
    spool.new.rmdir()
    spool.new.write_bytes(b"")
    with pytest.raises(OSError, match="directory"):
        spool.write_call(CALL)
    assert list((spool.new.parent / "tmp").iterdir()) == []

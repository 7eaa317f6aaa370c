# ruff: noqa: ARG001 - fixtures are asked for by name
"""A damaged store: set aside, and a new one made of what can still be read in it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from claude_files import Claude

from tracebridge.salvage import salvage
from tracebridge.settings import read_settings
from tracebridge.store import FILE, DamagedStoreError, Store
from tracebridge.testing.receiver import Answer, Receiver
from tracebridge.views.selection import Selection
from tracebridge.views.stats import summed
from tracebridge.watch import watch_once

OLD_STORE = Path(__file__).with_name("faults") / "store_version_1.sql"


@pytest.fixture
def receiver(monkeypatch):
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


def told_turns(home, tmp_path, number):
    for index in range(number):
        one = Claude(home, tmp_path, session=f"{index:04d}-s", turn=f"turn-{index}")
        one.simple_turn(began=10 * index)
    return watch_once(read_settings())


def damage(home, first, last):
    data = bytearray((home / FILE).read_bytes())
    data[int(len(data) * first) : int(len(data) * last)] = b"\xa5" * (
        int(len(data) * last) - int(len(data) * first)
    )
    (home / FILE).write_bytes(data)


def test_what_can_be_read_is_kept(home, tmp_path, receiver):
    """Turns on pages that are whole are in the new store; the damaged file is still there."""
    assert told_turns(home, tmp_path, 60)
    with Store(home) as store:
        before = {row.trace_id for row in store.turns()}
    damage(home, 0.4, 0.5)
    saved = salvage(home)
    assert saved.set_aside.exists()
    assert saved.rows > 0
    with Store(home) as store:
        after = {row.trace_id for row in store.turns()}
        assert after <= before
        assert len(after) > 30
        assert any(saved.set_aside.name in note for note in store.notes())


def test_what_was_delivered_is_known_afterwards(home, tmp_path, receiver):
    """An undamaged outbox says what waits, so nothing is sent a second time."""
    assert told_turns(home, tmp_path, 3)
    before = len(receiver.spans)
    salvage(home)
    assert watch_once(read_settings())
    assert len(receiver.spans) == before


def test_what_turns_come_to_is_reckoned_anew(home, tmp_path, receiver):
    """`stats` says of the new store what it said of the one that was damaged."""
    assert told_turns(home, tmp_path, 3)
    said = []
    for mend in (lambda: None, lambda: salvage(home)):
        mend()
        with Store(home) as store:
            said.append(summed(store, Selection(), "model", 0))
    assert said[0] == said[1]
    assert said[0][1].turns == 3


def test_a_changed_byte_in_the_outbox_is_not_sent(home, tmp_path, receiver):
    """Encoded spans have a checksum: the span is told anew instead."""
    receiver.rule = lambda _: Answer(status=503)
    assert not told_turns(home, tmp_path, 1)
    with Store(home) as store:
        less = "CAST(substr(data, 1, length(data) - 1) || x'a5' AS BLOB)"
        store._db.execute(f"UPDATE outbox SET data = {less}")
        with pytest.raises(DamagedStoreError, match="has changed"):
            store.due("otlp", 10**19, 10)
    receiver.rule = lambda _: Answer()
    assert watch_once(read_settings())
    assert len(receiver.spans) == 2


def test_what_waited_in_an_older_store_is_told_anew(home, receiver):
    """Its outbox had other rows; no span is lost, though its bytes may be those of today."""
    home.mkdir(mode=0o700)
    with closing(sqlite3.connect(home / FILE)) as database:
        database.executescript(OLD_STORE.read_text())
        waiting = set(database.execute("SELECT trace_id, span_id FROM outbox"))
    salvage(home)
    assert watch_once(read_settings())
    assert waiting <= {(span.trace_id, span.span_id) for span in receiver.spans}


def test_sessions_of_an_unreadable_store_are_found(home, tmp_path, receiver):
    """Where no page can be read, the text in the file still names sessions and transcripts."""
    assert told_turns(home, tmp_path, 2)
    damage(home, 0, 0.01)
    saved = salvage(home)
    assert {session for _, session in saved.sessions} == {"0000-s", "0001-s"}
    assert {path.name for _, path in saved.transcripts} == {"0000-s.jsonl", "0001-s.jsonl"}


@pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"SQLite format 3\0", b"\xff" * 50_000])
def test_any_bytes_can_be_salvaged(home, content):
    """Whatever stands in the file: a new store comes of it, and it is kept."""
    home.mkdir()
    (home / FILE).write_bytes(content)
    saved = salvage(home)
    assert saved.set_aside.read_bytes() == content
    with Store(home) as store:
        assert store.turns() == []

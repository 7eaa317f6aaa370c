"""The store keeps what it was given, through crashes and beside other processes."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest

from tracebridge import ids
from tracebridge.agents import Cursor
from tracebridge.encode import encode_span
from tracebridge.model import (
    CallIdentity,
    Evidence,
    GatewayCall,
    Link,
    Prompt,
    Sighting,
    Source,
    Span,
    SpanKind,
    Tags,
    ToolCall,
    Turn,
    TurnState,
)
from tracebridge.store import FILE, MIGRATIONS, DamagedStoreError, Store, StoreError

RESOURCE = (("service.name", "claude-code"),)


@pytest.fixture
def store(home):
    with Store(home, clock=lambda: 1000) as store:
        yield store


def sighting(key="toolu_1", session="s", turn="t"):
    part = ToolCall(key=key, name="Bash", input='{"command":"ls"}')
    return Sighting(
        agent="claude-code",
        session_id=session,
        source=Source.HOOK,
        time_ns=1,
        turn_key=turn,
        part=part,
    )


def make_turn(key="t", start_ns=10, end_ns=20):
    return Turn(
        agent="claude-code",
        session_id="s",
        turn_key=key,
        trace_id=ids.trace_id("claude-code", "s", key),
        state=TurnState.OPEN if end_ns is None else TurnState.FINISHED,
        start_ns=start_ns,
        end_ns=end_ns,
        prompts=(Prompt(key="p", text="x" * 1000),),
        tags=Tags(customer_id="acme"),
    )


def spans_of(turn, *tools):
    root = ids.root_span_id(turn.trace_id)
    span = Span(
        trace_id=turn.trace_id,
        span_id=root,
        parent_span_id=None,
        name="invoke_agent claude-code",
        kind=SpanKind.INTERNAL,
        start_ns=turn.start_ns,
        end_ns=turn.end_ns,
    )
    tool_ids = {name: ids.span_id(turn.trace_id, "tool", name) for name in tools}
    return [
        *(replace(span, span_id=i, parent_span_id=root, name=n) for n, i in tool_ids.items()),
        span,
    ]


def tell(store, turn, spans, sinks=("a",)):
    with store.transaction():
        store.put_turn(turn, spans)
        encoded = [(span.span_id, encode_span(span)) for span in spans]
        return store.tell(turn.trace_id, encoded, RESOURCE, sinks)


def call(call_id="c", session="s"):
    return GatewayCall(
        call_id=call_id,
        gateway="g",
        method="POST",
        path="/",
        start_ns=1,
        end_ns=2,
        identity=None if session is None else CallIdentity(agent="a", session_id=session),
    )


def test_an_empty_file_becomes_a_store(home):
    """So does none; nobody else can read it."""
    home.mkdir()
    (home / FILE).touch(mode=0o600)
    with Store(home) as store:
        assert store.turns() == []
    with sqlite3.connect(home / FILE) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    db.close()
    assert (home / FILE).stat().st_mode & 0o777 == 0o600


def test_a_store_of_an_older_version_is_brought_up_to_date(home, monkeypatch):
    """Each step once, and what is in it stays."""
    with Store(home) as store, store.transaction():
        store.add_sightings([sighting()])
    newer = (*MIGRATIONS, "CREATE TABLE later (x); INSERT INTO later VALUES (1);")
    monkeypatch.setattr("tracebridge.store.tables.MIGRATIONS", newer)
    for _ in range(2):
        with Store(home) as store:
            assert store.sightings("claude-code", "s") == [sighting()]
            assert store._all("SELECT x FROM later") == [(1,)]


def test_a_migration_that_fails_changes_nothing(home, monkeypatch):
    """The version before can still be used."""
    Store(home).close()
    broken = (*MIGRATIONS, "CREATE TABLE later (x); CREATE TABLE later (x);")
    with monkeypatch.context() as patch:
        patch.setattr("tracebridge.store.tables.MIGRATIONS", broken)
        with pytest.raises(StoreError, match="already exists"):
            Store(home)
    with Store(home) as store:
        assert store._all("SELECT name FROM sqlite_master WHERE name = 'later'") == []


def test_a_store_of_a_newer_version_is_left_alone(home):
    """With the file and the remedy."""
    Store(home).close()
    with sqlite3.connect(home / FILE) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match=r"store\.sqlite3.*newer tracebridge.*99.*update"):
        Store(home)


@pytest.mark.parametrize("damage", [b"this is no database " * 100, b"SQLite format 3\0" * 300])
def test_a_file_that_is_no_store_is_named_with_the_remedy(home, damage):
    """And left as it is."""
    home.mkdir()
    (home / FILE).write_bytes(damage)
    with pytest.raises(StoreError, match=r"store\.sqlite3: .*move it away"):
        Store(home)
    assert (home / FILE).read_bytes() == damage


def test_damage_found_later_is_named_too(home):
    """A page in the middle of the file."""
    with Store(home) as store, store.transaction():
        store.add_sightings([sighting(str(n)) for n in range(500)])
    data = bytearray((home / FILE).read_bytes())
    data[len(data) // 4 :] = b"\xa5" * (len(data) - len(data) // 4)
    (home / FILE).write_bytes(data)
    with pytest.raises(StoreError, match=r"store\.sqlite3: .*move it away"), Store(home) as store:
        store.sightings("claude-code", "s")


def test_a_home_that_cannot_be_made_is_named(home):
    """A file stands in its place."""
    home.write_bytes(b"")
    with pytest.raises(StoreError, match="make it writable"):
        Store(home)


def test_what_was_seen_is_kept_once(store):
    """The same sighting again is no news."""
    with store.transaction():
        assert store.add_sightings([sighting(), sighting("toolu_2")]) == [
            sighting(),
            sighting("toolu_2"),
        ]
        assert store.add_sightings([sighting("toolu_2"), sighting("toolu_3")]) == [
            sighting("toolu_3")
        ]
    assert store.sightings("claude-code", "s") == [
        sighting(),
        sighting("toolu_2"),
        sighting("toolu_3"),
    ]
    assert store.sightings("claude-code", "other") == []


def test_a_call_that_names_nobody_is_its_turns(store):
    """A call without a session comes back with the session whose turn claims it."""
    stranger = call("stranger", None)
    turn = Turn(
        agent="a",
        session_id="s",
        turn_key="t",
        trace_id="f" * 32,
        state=TurnState.OPEN,
        start_ns=1,
    )
    with store.transaction():
        store.add_call(stranger, 1)
        store.put_turn(turn, spans_of(turn))
    assert store.calls("a", "s") == []
    with store.transaction():
        store.set_link("stranger", Link(trace_id="f" * 32, evidence=Evidence.SESSION_WINDOW))
    assert store.calls("a", "s") == [stranger]
    assert store.calls("a", "other") == []


def test_a_call_is_kept_once_and_waits_for_its_turn(store):
    """Until it is linked, or goes out alone."""
    assert store.add_call(call(), taken_ns=5)
    assert not store.add_call(call(), taken_ns=6)
    assert store.add_call(call("stranger", None), taken_ns=7)
    assert store.calls("a", "s") == [call()]
    assert [taken_ns for _, taken_ns in store.calls_without_turn()] == [5, 7]
    assert store.open_sessions() == [("a", "s")]
    store.set_link("c", Link(trace_id="f" * 32, evidence=Evidence.TURN_ID))
    store.set_reason("stranger", "nobody knows it", "e" * 32)
    assert store.calls_without_turn() == []
    assert store.open_sessions() == [("a", "s")]
    store.settle("a", "s")
    assert store.open_sessions() == []
    assert store.link_counts() == {"turn_id": 1, "orphan": 1}
    assert store.orphan_reasons() == {"nobody knows it": 1}


def test_cursors_and_notes_are_kept(store, tmp_path):
    """A transcript is read on from where it was left."""
    path = tmp_path / "t.jsonl"
    assert store.cursor(path) == Cursor()
    cursor = Cursor(offset=7, inode=8, memory={"turn": ["x"]})
    store.set_cursor(path, cursor)
    assert store.cursor(path) == cursor
    store.add_notes({"odd": 2})
    store.add_notes({"odd": 1, "even": 1})
    assert store.notes() == {"even": 1, "odd": 3}


def test_a_transaction_that_fails_leaves_nothing(store):
    """And the next one works."""

    def fail(statement):
        with store.transaction():
            store.add_sightings([sighting()])
            store._db.execute(statement)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail("SELECT 1")
    with pytest.raises(StoreError):
        fail("nonsense")
    assert store.sightings("claude-code", "s") == []
    with store.transaction():
        store.add_sightings([sighting()])
    assert store.sightings("claude-code", "s") == [sighting()]


def test_a_turn_changes_until_it_is_told(store):
    """Spans come and go; an equal state is no change."""
    turn = make_turn(end_ns=None)
    with store.transaction():
        assert store.put_turn(turn, spans_of(turn, "x", "y"))
        revision = store.revision()
        assert not store.put_turn(turn, spans_of(turn, "x", "y"))
        assert store.revision() == revision
        assert store.put_turn(turn, spans_of(turn, "y", "z"))
    *tools, root = [span.name for span in store.spans(turn.trace_id)]
    assert (sorted(tools), root) == (["y", "z"], "invoke_agent claude-code")
    (row,) = store.turns()
    assert (row.state, row.end_ns, row.told, row.customer_id) == ("open", None, False, "acme")
    assert len(row.prompt) == 500
    assert store.open_sessions() == [("claude-code", "s")]


def test_told_spans_never_change(store):
    """Late facts are new spans; a changed copy of a told one is not taken."""
    turn = make_turn()
    assert tell(store, turn, spans_of(turn, "x")) == 2
    changed = [replace(span, name="changed") for span in spans_of(turn, "x", "late")]
    assert tell(store, turn, changed) == 1
    assert tell(store, turn, changed) == 0
    assert sorted(span.name for span in store.spans(turn.trace_id)) == [
        "changed",
        "invoke_agent claude-code",
        "x",
    ]
    assert len(store.due("a", 0, 100)) == 3
    assert store.is_told(turn.trace_id)


def test_each_sink_has_an_outbox_of_its_own(store):
    """What one acknowledges the others still wait for; the root comes last."""
    turn = make_turn()
    spans = spans_of(turn, "x", "y")
    tell(store, turn, spans, sinks=("a", "b"))
    due = store.due("a", 0, 100)
    assert [span.span_id for span in due] == [span.span_id for span in spans]
    assert [span.data for span in due] == [encode_span(span) for span in spans]
    assert {span.resource for span in due} == {RESOURCE}
    assert store.due("a", 0, 1) == due[:1]
    store.acknowledge("a", [span.span_id for span in due])
    assert store.due("a", 0, 100) == []
    assert store.due("b", 0, 100) == due
    assert store.waiting() == 3


def test_what_a_sink_refuses_is_kept_out_of_the_way(store):
    """With the reason, for `status`."""
    turn = make_turn()
    tell(store, turn, spans_of(turn, "x"))
    first, second = store.due("a", 0, 100)
    store.refuse("a", [first.span_id], "too odd")
    assert store.due("a", 0, 100) == [second]
    (row,) = store.sinks()
    assert (row.waiting, row.refused, row.sent, row.last_error) == (1, 1, 0, "too odd")


def test_what_a_sink_takes_of_a_turn_goes_and_the_rest_waits(store):
    """Some acknowledged, some refused: the others are offered again, in order and as they were."""
    turn = make_turn()
    tell(store, turn, spans_of(turn, *"abcdef"))
    other = make_turn("other")
    tell(store, other, spans_of(other, "x"))
    due = store.due("a", 0, 100)
    store.acknowledge("a", [due[1].span_id, due[3].span_id])
    store.refuse("a", [due[0].span_id, due[7].span_id], "too odd")
    left = [due[2], *due[4:7], due[8]]
    assert store.due("a", 0, 100) == left
    (row,) = store.sinks()
    assert (row.waiting, row.refused, row.sent) == (5, 2, 2)
    assert store.undelivered(turn.trace_id) == {"a": "too odd"}
    store.acknowledge("a", [span.span_id for span in left])
    assert (store.due("a", 0, 100), store.waiting()) == ([], 0)
    store.offer(turn.trace_id, [(due[0].span_id, due[0].data)], RESOURCE, ["a"])
    assert store.waiting() == 0


def test_a_span_waits_once(store):
    """What is offered again while it waits is not put there a second time."""
    turn = make_turn()
    encoded = [(span.span_id, encode_span(span)) for span in spans_of(turn, "x", "y")]
    store.offer(turn.trace_id, encoded[:2], RESOURCE, ["a"])
    store.offer(turn.trace_id, [*encoded, encoded[0]], RESOURCE, ["a", "b"])
    assert [(span.span_id, span.data) for span in store.due("a", 0, 100)] == encoded
    assert [(span.span_id, span.data) for span in store.due("b", 0, 100)] == encoded


def test_spans_of_one_id_in_two_traces_are_two(store):
    """What is acknowledged once is gone once."""
    outbox_of(store, turns=3)
    first, second, third = store.due("s", 0, 100)
    assert first.span_id == second.span_id
    store.acknowledge("s", [first.span_id])
    assert store.due("s", 0, 100) == [second, third]
    store.acknowledge("s", [second.span_id, third.span_id])
    assert store.due("s", 0, 100) == []


def test_what_was_acknowledged_in_vain_is_no_harm(store):
    """Spans that wait no more, or never did."""
    turn = make_turn()
    tell(store, turn, spans_of(turn, "x"))
    due = store.due("a", 0, 100)
    store.acknowledge("a", ["f" * 16, due[0].span_id, due[0].span_id])
    assert store.due("a", 0, 100) == due[1:]


def test_a_turn_of_any_size_is_delivered_in_order(store):
    """Many spans, large ones and empty ones, a few at a time."""
    turn = make_turn()
    sizes = random.Random(1).choices((0, 1, 3000, 700_000), (1, 5, 50, 1), k=1000)
    offered = [(f"{n:016x}", random.Random(n).randbytes(size)) for n, size in enumerate(sizes)]
    store.offer(turn.trace_id, offered, RESOURCE, ["a"])
    arrived = []
    while due := store.due("a", 0, 300):
        assert len(due) <= 300
        took = due[: 1 + len(due) // 2]
        arrived += [(span.span_id, span.data) for span in took]
        store.acknowledge("a", [span.span_id for span in took])
    assert arrived == offered


def test_spans_that_say_the_same_take_little_room(store):
    """They wait compressed, and come out as they were."""
    turn = make_turn()
    spans = spans_of(turn, *map(str, range(50)))
    told = [replace(span, attributes={"text": "the same in each of them " * 20}) for span in spans]
    tell(store, turn, told)
    (stored,) = store._all("SELECT length(data) FROM outbox")
    assert stored[0] < sum(len(encode_span(span)) for span in told) / 5
    assert [span.data for span in store.due("a", 0, 100)] == [encode_span(span) for span in told]


def test_what_was_delivered_is_not_in_the_file_any_more(home):
    """Nor what a sink had no room for: its pages are free, and empty."""
    with Store(home) as store:
        outbox_of(store, turns=4, size=10_000)
        due = store.due("s", 0, 100)
        store.acknowledge("s", [due[0].span_id, due[1].span_id])
        store.bound_outbox("s", 10_000)
    content = (home / FILE).read_bytes()
    assert [span.data[:50] in content for span in due] == [False] * 4


@pytest.mark.parametrize(
    "change",
    [
        "data = zeroblob(length(data))",
        "data = substr(data, 1, length(data) - 1)",
        "checksum = checksum + 1",
        "checksum = NULL, data = substr(data, 1, 9)",
        "lengths = '[]'",
        "lengths = '[['",
        "lengths = 'null'",
        "lengths = '[[1]]'",
        "lengths = '[[\"a\", 1]]'",
        "lengths = zeroblob(0)",
        "resource = '{'",
    ],
)
def test_damage_in_the_outbox_is_found(store, change):
    """Whatever has changed, nothing else than what was told is given to a sink."""
    turn = make_turn()
    tell(store, turn, spans_of(turn, *"abcdefgh"))
    store._db.execute(f"UPDATE outbox SET {change}")
    with pytest.raises(DamagedStoreError):
        store.due("a", 0, 100)


def test_what_waits_can_be_put_differently(store):
    """What is not said any more is dropped."""
    turn = make_turn()
    spans = spans_of(turn, "x", "y")
    tell(store, turn, spans, sinks=("a", "b"))
    before = store.due("b", 0, 100)
    assert store.replace_waiting("a", turn.trace_id, {spans[2].span_id: b"less"}) == 2
    (left,) = store.due("a", 0, 100)
    assert (left.span_id, left.data) == (spans[2].span_id, b"less")
    assert store.replace_waiting("a", turn.trace_id, {}) == 1
    assert store.due("a", 0, 100) == []
    assert store.due("b", 0, 100) == before


# As versions 1 to 7 put a span into the outbox.
OFFER_AS_BEFORE = """
    INSERT INTO outbox (sink, span_id, trace_id, resource, data, refused, checksum) VALUES
    (?, ?, ?, '[["service.name","claude-code"]]', ?, ?, ?)
"""


def test_spans_that_an_older_version_left_waiting_are_delivered(home, monkeypatch):
    """In their order, byte for byte; what was refused stays refused."""
    spans = [span for key in "tu" for span in spans_of(make_turn(key), "x", "y")]
    with monkeypatch.context() as patch:
        patch.setattr("tracebridge.store.tables.MIGRATIONS", MIGRATIONS[:7])
        with Store(home) as old, old.transaction():
            for number, span in enumerate(spans):
                data = encode_span(span)
                for sink, refused in (("a", None), ("b", "odd" if number == 1 else None)):
                    # The first version kept no checksums.
                    checksum = crc32(data) if number else None
                    row = (sink, span.span_id, span.trace_id, data, refused, checksum)
                    old._db.execute(OFFER_AS_BEFORE, row)
    with Store(home) as store:
        due = {sink: store.due(sink, 0, 100) for sink in "ab"}
        assert [(s.trace_id, s.span_id, s.data, s.resource) for s in due["a"]] == [
            (s.trace_id, s.span_id, encode_span(s), RESOURCE) for s in spans
        ]
        assert due["b"] == [due["a"][0], *due["a"][2:]]
        assert [(row.waiting, row.refused) for row in store.sinks()] == [(6, 0), (5, 1)]
        turn = make_turn("u")
        late = spans_of(turn, "x", "late")
        encoded = [(span.span_id, encode_span(span)) for span in late]
        store.offer(turn.trace_id, encoded, RESOURCE, ["a"])
        assert store.waiting() == 12
        store.acknowledge("a", [span.span_id for span in due["a"]])
        assert [span.data for span in store.due("a", 0, 100)] == [encode_span(late[1])]


def test_sums_of_an_older_version_hold_unless_the_turn_changed_since(home, monkeypatch):
    """Up to a revision all were summed up; what came behind it is summed up anew."""
    same, changed = make_turn("same"), make_turn("changed")
    with monkeypatch.context() as patch:
        patch.setattr("tracebridge.store.tables.MIGRATIONS", MIGRATIONS[:8])
        with Store(home) as store:
            for turn in (same, changed):
                tell(store, turn, spans_of(turn))
                store.put_sums(turn.trace_id, [{"kind": "turn", "name": "x", "has_errors": False}])
            store._db.execute("UPDATE counters SET value = 2 WHERE name = 'summed'")
    with Store(home) as store:
        assert store.not_summed_up() == [changed.trace_id]
        assert list(store.sums("project", ["orphans"])) == ["x"]


def test_a_postponed_sink_is_left_alone_until_its_time(store):
    """Or until somebody is in a hurry."""
    turn = make_turn()
    tell(store, turn, spans_of(turn))
    store.postpone("a", 50, "down")
    assert store.due("a", 49, 100) == []
    assert len(store.due("a", 50, 100)) == 1
    store.hurry("a")
    assert len(store.due("a", 0, 100)) == 1
    (row,) = store.sinks()
    assert (row.last_error, row.last_error_ns, row.last_success_ns) == ("down", 1000, None)


def test_only_what_is_told_and_delivered_is_forgotten(store):
    """Old turns that a sink still waits for stay, and so do young and open ones."""
    delivered, waiting, young, running = (
        make_turn("delivered"),
        make_turn("waiting"),
        make_turn("young", end_ns=10_000),
        make_turn("running", end_ns=None),
    )
    for turn in (delivered, waiting, young):
        tell(store, turn, spans_of(turn))
    with store.transaction():
        store.put_turn(running, spans_of(running))
        store.add_sightings([sighting("d", turn="delivered"), sighting("w", turn="waiting")])
    store.acknowledge("a", [ids.root_span_id(turn.trace_id) for turn in (delivered, young)])
    assert store.forget_before(5000) == 1
    assert {row.turn_key for row in store.turns()} == {"waiting", "young", "running"}
    assert store.spans(delivered.trace_id) == []
    assert store.sightings("claude-code", "s") == [sighting("w", turn="waiting")]


def test_a_forgotten_turn_is_not_told_again(store):
    """Even by a watcher that still has it in mind."""
    turn = make_turn()
    tell(store, turn, spans_of(turn))
    store.acknowledge("a", [ids.root_span_id(turn.trace_id)])
    store.forget_before(5000)
    assert tell(store, turn, spans_of(turn, "late")) == 0
    assert store.waiting() == 0
    assert store.turns() == []


def test_orphans_are_forgotten_too(store):
    """Once their span is delivered."""
    for number, name in enumerate(("delivered", "waiting")):
        lone = spans_of(make_turn(name))[-1]
        store.add_call(call(name, None), taken_ns=number)
        with store.transaction():
            store.set_reason(name, "nobody's", lone.trace_id)
            store.put_lone_span(lone)
            store.tell(lone.trace_id, [(lone.span_id, encode_span(lone))], RESOURCE, ["a"])
    store.acknowledge("a", [ids.root_span_id(make_turn("delivered").trace_id)])
    store.forget_before(5000)
    assert store.link_counts() == {"orphan": 1}
    assert store.spans(make_turn("delivered").trace_id) == []
    assert len(store.spans(make_turn("waiting").trace_id)) == 1


def test_turns_are_found_by_the_beginning_of_their_id(store):
    """And by what changed since."""
    for key in ("1", "2", "3"):
        turn = make_turn(key, start_ns=int(key))
        tell(store, turn, spans_of(turn))
    assert [row.turn_key for row in store.turns()] == ["1", "2", "3"]
    assert [row.turn_key for row in store.turns(limit=2)] == ["2", "3"]
    wanted = make_turn("2").trace_id
    assert [row.trace_id for row in store.turns(trace_prefix=wanted[:10])] == [wanted]
    assert store.turns(since_revision=store.revision()) == []


WRITER = """
import sys
from pathlib import Path
from tracebridge.model import Sighting, Source, ToolCall
from tracebridge.store import Store
with Store(Path(sys.argv[1])) as store:
    for n in range(50):
        part = ToolCall(key=f"{sys.argv[2]}-{n % 40}")
        sighting = Sighting(agent="a", session_id="s", source=Source.HOOK, time_ns=n, part=part)
        with store.transaction():
            store.add_sightings([sighting])
            store.add_notes({"written": 1})
"""


def test_several_processes_write_at_once(home):
    """From the very first moment, when the store is made."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(home), name]) for name in "abcd"]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    with Store(home) as store:
        assert len(store.sightings("a", "s")) == 200
        assert store.notes() == {"written": 200}


def test_several_threads_write_at_once(home):
    """Each with a store of its own."""

    def write():
        with Store(home) as store:
            for _ in range(20):
                with store.transaction():
                    store.add_notes({"written": 1})

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with Store(home) as store:
        assert store.notes() == {"written": 80}


CRASHER = """
import os, signal, sys
from pathlib import Path
from tracebridge.store import Store
store = Store(Path(sys.argv[1]))
with store.transaction():
    store.add_notes({"kept": 1})
with store.transaction():
    store.add_notes({"lost": 1})
    store._db.execute("INSERT INTO sinks (name) VALUES ('lost')")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_in_a_transaction_leaves_all_or_nothing(home):
    """What was committed before is there."""
    code = subprocess.run([sys.executable, "-c", CRASHER, str(home)], timeout=60, check=False)
    assert code.returncode == -signal.SIGKILL
    with Store(home) as store:
        assert store.notes() == {"kept": 1}
        assert store.sinks() == []


def keep(store, *keys, broken_by=None):
    with store.transaction():
        store.add_sightings(map(sighting, keys))
        if broken_by is not None:
            raise broken_by


def keys_in(store):
    return [each.part.key for each in store.sightings("claude-code", "s")]


def test_gathered_transactions_come_to_the_disk_together(home, monkeypatch):
    """In the end, but for those that failed."""
    monkeypatch.setattr("tracebridge.store.tables.GATHERED_S", 3600)
    with Store(home) as store, Store(home) as other:
        with store.gathering():
            keep(store, "a")
            with pytest.raises(RuntimeError):
                keep(store, "b", broken_by=RuntimeError())
            keep(store, "c")
            assert keys_in(other) == []
        assert keys_in(other) == ["a", "c"]


def test_what_was_gathered_is_kept_when_the_work_is_broken_off(home):
    """Interrupted in a transaction, those before it are there."""

    def work(store):
        with store.gathering():
            keep(store, "a")
            keep(store, "b", broken_by=KeyboardInterrupt())

    with Store(home) as store, Store(home) as other:
        with pytest.raises(KeyboardInterrupt):
            work(store)
        assert keys_in(other) == ["a"]


def test_gathered_transactions_do_not_wait_for_long(home, monkeypatch):
    """However much is gathered, it goes to the disk every so often."""
    monkeypatch.setattr("tracebridge.store.tables.GATHERED_S", 0)
    with Store(home) as store, Store(home) as other, store.gathering():
        keep(store, "a")
        assert keys_in(other) == ["a"]


def test_what_gathering_needs_beside_the_store_stays_in_memory(home):
    """SQLite opens no file outside of our folder, however much a step changes."""
    with Store(home) as store, store.gathering():
        keep(store, *(f"first {number}" for number in range(2000)))
        with store.transaction():
            store.add_sightings(sighting(f"second {number}") for number in range(2000))
            opened = [
                str(link.readlink())
                for link in Path("/proc/self/fd").iterdir()
                if link.is_symlink()
            ]
    assert [path for path in opened if path.startswith(str(home))]
    assert not [path for path in opened if "etilqs" in path]


def outbox_of(store, turns=10, size=1000):
    """Put so many turns of one span each into the outbox of a sink."""
    for number in range(turns):
        trace = f"{number:032x}"
        span = a_span(trace)
        with store.transaction():
            store.put_lone_span(span)
            # What is all different takes as much room as it has bytes.
            data = random.Random(number).randbytes(size)
            store.tell(trace, [(span.span_id, data)], (), ["s"])


def a_span(trace):
    from tracebridge.model import Span, SpanKind

    return Span(
        trace_id=trace,
        span_id="a" * 16,
        parent_span_id=None,
        name="n",
        kind=SpanKind.INTERNAL,
        start_ns=1,
        end_ns=2,
    )


def test_an_outbox_that_is_full_lets_go_of_its_oldest_turns(store):
    """Down to nine tenths, counted in the notes, and kept in the store to be shown and exported."""
    outbox_of(store)
    assert store.bound_outbox("s", 10_000) == 0
    assert store.bound_outbox("s", 5_000) == 6
    left = [span.trace_id for span in store.due("s", 10**19, 100)]
    assert left == [f"{number:032x}" for number in range(6, 10)]
    assert store.notes() == {"outbox of s full, turn not sent to it": 6}
    assert len(store.spans(f"{0:032x}")) == 1


def test_one_process_delivers_to_a_sink(home):
    """Another one is told so, or waits; other sinks have nothing to do with it."""
    with Store(home) as one, Store(home) as two:
        with one.delivering("s", wait=False) as first, two.delivering("s", wait=False) as second:
            assert (first, second) == (True, False)
            with two.delivering("t", wait=False) as other:
                assert other
        with two.delivering("s", wait=True) as alone:
            assert alone


def test_a_postponement_of_a_wrong_clock_does_not_hold(store):
    """A time that no sink was ever asked to wait for was written by a clock since corrected."""
    outbox_of(store, turns=1)
    now_ns = 10**18
    store.postpone("s", now_ns + 3600 * 10**9, "busy")
    assert store.due("s", now_ns, 10) == []
    store.postpone("s", now_ns + 365 * 86_400 * 10**9, "busy")
    assert len(store.due("s", now_ns, 10)) == 1

"""Turns as they grow, for programs and for people."""

from __future__ import annotations

import io
import random
import threading
import time
from dataclasses import replace

import orjson
import pytest
from rich.cells import cell_len
from rich.console import Console

from tracebridge import ids
from tracebridge.encode import encode_span
from tracebridge.model import Prompt, Span, SpanKind, Turn, TurnState
from tracebridge.store import Store
from tracebridge.tail import LiveEvents, follow_json, follow_terminal, printable, render_turn

LIMIT_S = 30


def make(key="t", *, tools=("a", "b"), running=(), end_ns=100):
    """Return a turn with its spans."""
    trace = ids.trace_id("claude-code", "s", key)
    turn = Turn(
        agent="claude-code",
        session_id="s",
        turn_key=key,
        trace_id=trace,
        state=TurnState.OPEN if end_ns is None else TurnState.FINISHED,
        start_ns=1,
        end_ns=end_ns,
        prompts=(Prompt(key="p", text="hello"),),
    )
    root = Span(
        trace_id=trace,
        span_id=ids.root_span_id(trace),
        parent_span_id=None,
        name="invoke_agent claude-code",
        kind=SpanKind.INTERNAL,
        start_ns=1,
        end_ns=end_ns,
    )
    children = [
        replace(
            root,
            span_id=ids.span_id(trace, "tool", name),
            parent_span_id=root.span_id,
            name=f"execute_tool {name}",
            start_ns=10 + number,
            end_ns=None if name in running else 50 + number,
        )
        for number, name in enumerate(tools)
    ]
    return turn, [*children, root]


def put(store, turn, spans, *, told=False):
    with store.transaction():
        store.put_turn(turn, spans)
        if told:
            encoded = [(span.span_id, encode_span(span)) for span in spans]
            store.tell(turn.trace_id, encoded, (), [])


LOOKS = [
    ({"tools": (), "end_ns": None}, False),
    ({"tools": ("a",), "running": ("a",), "end_ns": None}, False),
    ({"tools": ("a", "b"), "running": ("b",), "end_ns": None}, False),
    ({"tools": ("a", "b")}, False),
    ({"tools": ("a", "b")}, True),
    ({"tools": ("a", "b", "late")}, True),
]


@pytest.mark.parametrize("seed", range(8))
def test_each_event_comes_once(home, seed):
    """Whatever looks were missed, came twice or saw less than those before."""
    chooser = random.Random(seed)
    looks = [*chooser.choices(LOOKS, k=8), LOOKS[-1]]
    live = LiveEvents()
    events = []
    with Store(home) as store:
        put(store, *make(), told=True)
        (row,) = store.turns()
    for state, told in looks:
        _, spans = make(**state)
        chooser.shuffle(spans)
        events += live.events(replace(row, told=told), spans)
    names = [(event["event"], event["span_id"]) for event in events]
    assert len(set(names)) == len(names)
    kinds = [name for name, _ in names]
    assert kinds.count("turn_opened") == kinds.count("turn_finished") == 1
    assert kinds.count("span_started") == kinds.count("span_finished") == 3
    assert kinds[0] == "turn_opened"


def test_a_turn_whose_root_comes_late_is_opened_then():
    """Its first spans may be there before."""
    turn, spans = make()
    row = type("Row", (), {"trace_id": turn.trace_id, "told": False})
    live = LiveEvents()
    assert [event["event"] for event in live.events(row, spans[:1])] == [
        "span_started",
        "span_finished",
    ]
    assert [event["event"] for event in live.events(row, spans)] == [
        "turn_opened",
        "span_started",
        "span_finished",
    ]


class Following:
    """Run a follower beside the test until the block ends."""

    def __init__(self, follow, home, target):
        self.stop = threading.Event()
        self._thread = threading.Thread(target=follow, args=(home, self.stop, target))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self._thread.join(LIMIT_S)


def wait_for(condition):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.01)


def test_json_lines_tell_of_a_turn_as_it_grows(home):
    """With the shape that scripts rely on; what was over before is not told."""
    lines = []

    def events():
        return [orjson.loads(line) for line in lines]

    wanted = ids.trace_id("claude-code", "s", "t")

    def kinds():
        return [event["event"] for event in events() if event["trace_id"] == wanted]

    with Store(home) as store:
        put(store, *make("before"), told=True)
        with Following(follow_json, home, lines.append):
            # Until the follower has looked once, anything may still count as before.
            for number in range(1000):
                put(store, *make(f"probe {number}", tools=(), end_ns=None))
                if lines:
                    break
                time.sleep(0.02)
            del lines[:]
            put(store, *make(tools=("a",), running=("a",), end_ns=None))
            wait_for(lambda: kinds() == ["turn_opened", "span_started"])
            put(store, *make(tools=("a",)), told=True)
            wait_for(lambda: "turn_finished" in kinds())
    found = [event for event in events() if event["trace_id"] == wanted]
    assert [event["event"] for event in found] == [
        "turn_opened",
        "span_started",
        "span_finished",
        "turn_finished",
    ]
    assert ids.trace_id("claude-code", "s", "before") not in {e["trace_id"] for e in events()}
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert found[1] == {
        "event": "span_started",
        "time_ns": 10,
        "trace_id": wanted,
        "span_id": ids.span_id(wanted, "tool", "a"),
        "parent_span_id": ids.root_span_id(wanted),
        "name": "execute_tool a",
        "attributes": {},
    }


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("terminal", [True, False])
def test_what_people_see_is_never_wider_than_their_terminal(home, width, terminal):
    """Long names and wide letters are cut; where it is no terminal nothing steers one."""
    names = ("x" * 300, "日本語" * 60, "colour \x1b[31mred\x07", "two\nlines", "emoji 😀" * 20)
    out = io.StringIO()
    console = Console(file=out, width=width, height=40, force_terminal=terminal, highlight=False)
    with Store(home) as store:
        put(store, *make(tools=names, running=names[:1], end_ns=None))
        with Following(follow_terminal, home, console):
            wait_for(lambda: not terminal or "execute_tool" in out.getvalue())
            for number in range(1000):
                put(store, *make(f"more {number}", tools=names), told=True)
                if out.getvalue().count("lines") > 1:
                    break
                time.sleep(0.02)
    text = out.getvalue()
    assert "execute_tool" in text
    assert "\x1b[31mred" not in text
    assert "\x07" not in text
    if not terminal:
        assert "\x1b" not in text
        assert max(cell_len(line) for line in text.split("\n")) <= width
    for line in render_turn(make(tools=names)[1], width).plain.split("\n"):
        assert cell_len(line) <= width


def test_a_terminal_waits_with_a_word(home):
    """An empty screen would look broken."""
    out = io.StringIO()
    console = Console(file=out, width=80, height=24, force_terminal=True)
    Store(home).close()
    with Following(follow_terminal, home, console):
        wait_for(lambda: "waiting for a turn" in out.getvalue())


def test_what_steers_a_terminal_is_not_printed():
    """Letters of all languages are."""
    assert printable("a\x1b[2J\tb\nc\x9b é日本😀") == "a\ufffd[2J b c\ufffd é日本😀"

"""Turns as they grow, for programs and for people."""

from __future__ import annotations

import io
import random
import re
import threading
import time
from dataclasses import replace

import orjson
import pyte
import pytest
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console
from rich.text import Text

from tracebridge import ids
from tracebridge.encode import encode_span
from tracebridge.model import Prompt, Span, SpanKind, Status, Turn, TurnState
from tracebridge.store import Store
from tracebridge.views.screen import Screen
from tracebridge.views.selection import Selection
from tracebridge.views.tail import (
    LiveEvents,
    follow_json,
    follow_terminal,
    open_turns,
    show_once,
    write_once,
)
from tracebridge.views.waterfall import COLOURS, SPINNER, folded_turn, turn_lines

LIMIT_S = 180


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


class FakeTerminal:
    """A terminal as programs see it, with what it shows."""

    def __init__(self, columns, rows):
        self.screen = pyte.HistoryScreen(columns, rows, history=1000)
        self._stream = pyte.Stream(self.screen)
        self.everything = ""
        self._lock = threading.Lock()
        self.console = Console(
            file=self, width=columns, height=rows, force_terminal=True, highlight=False
        )

    def write(self, text):
        with self._lock:
            self.everything += text
            # A terminal's driver makes a new line begin at its left.
            self._stream.feed(text.replace("\n", "\r\n"))

    def flush(self):
        pass

    def isatty(self):
        return True

    def resize(self, columns):
        """Wrap what is too wide, as terminals do."""
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        self.screen = pyte.HistoryScreen(columns, self.screen.lines, history=1000)
        self._stream = pyte.Stream(self.screen)
        self._stream.feed("".join(line + "\r\n" for line in lines))
        self.console.width = columns

    @property
    def written(self):
        return len(self.everything)

    @property
    def text(self):
        with self._lock:
            return "\n".join(line.rstrip() for line in self.screen.display)


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


NAMES = ("x" * 300, "日本語" * 60, "colour \x1b[31mred\x07", "two\nlines", "emoji 😀" * 20)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("bars", [True, False])
def test_no_line_is_wider_than_the_terminal(width, bars):
    """Long names and wide letters are cut; what would steer the terminal is gone."""
    _, spans = make(tools=NAMES, running=NAMES[:1], end_ns=None)
    for line in [*turn_lines(spans, width, 10**9, bars=bars), folded_turn(spans[-1], width, 0)]:
        assert cell_len(line.plain) <= width
        assert line.plain.isprintable()


@pytest.mark.parametrize("forced", [{}, {"FORCE_COLOR": "1"}])
def test_a_log_gets_plain_lines(home, forced, monkeypatch):
    """Where stdout is no terminal: one line for what ends, none of them coloured or too wide."""
    out = io.StringIO()
    for name, value in forced.items():
        monkeypatch.setenv(name, value)
    console = Console(file=out, width=80, highlight=False)
    with Store(home) as store, Following(follow_terminal, home, console):
        for number in range(1000):
            put(store, *make(f"more {number}", tools=NAMES), told=True)
            if "■" in out.getvalue():
                break
            time.sleep(0.02)
    text = out.getvalue()
    assert "▶ invoke_agent claude-code" in text
    assert "execute_tool colour" in text
    if not forced:
        assert "\x1b" not in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "\x1b" not in plain
    assert max(cell_len(line) for line in plain.split("\n")) <= 80


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_an_open_turn_grows_on_the_screen_and_folds_to_a_line(home, size):
    """What a real terminal shows: the tree while it runs, then one line, and nothing left over."""
    terminal = FakeTerminal(*size)
    with Store(home) as store, Following(follow_terminal, home, terminal.console):
        wait_for(lambda: "waiting for a turn" in terminal.text)
        put(store, *make(tools=("a",), running=("a",), end_ns=None))
        wait_for(lambda: "execute_tool a" in terminal.text)
        # It turns from look to look.
        shown = terminal.text
        assert any(frame in shown for frame in SPINNER)
        put(store, *make(tools=("a", "b"), running=("b",), end_ns=None))
        wait_for(lambda: "execute_tool b" in terminal.text)
        put(store, *make("other", tools=("c",), running=("c",), end_ns=None))
        wait_for(lambda: "execute_tool c" in terminal.text)
        now = time.time_ns()
        put(store, *make(tools=("a", "b"), end_ns=now), told=True)
        wait_for(lambda: "■ invoke_agent" in terminal.text)
        wait_for(lambda: "execute_tool b" not in terminal.text)
        assert "execute_tool c" in terminal.text
        put(store, *make("other", tools=("c",), end_ns=now), told=True)
        wait_for(lambda: terminal.text.count("■ invoke_agent") == 2)
    lines = [line for line in terminal.text.split("\n") if line]
    assert len(lines) == 2
    assert not terminal.screen.cursor.hidden


def test_many_open_turns_stay_within_the_screen(home):
    """What scrolls away could never be redrawn: each turn keeps its head, and what runs."""
    turns = {}
    for number in range(6):
        names = [f"tool {number}-{tool}" for tool in range(40)]
        _, spans = make(f"t{number}", tools=names, running=names[:1], end_ns=None)
        turns[str(number)] = spans
    for height in (3, 5, 10, 23, 49, 1000):
        lines = [line.plain for line in open_turns(turns, 80, height, 0)]
        assert len(lines) <= height
        if height >= 18:
            for number in range(6):
                assert any(f"tool {number}-0 " in line for line in lines), lines
            assert sum("⋮" in line for line in lines) == (6 if height < 1000 else 0)
    terminal = FakeTerminal(80, 24)
    with Store(home) as store:
        for number in range(6):
            names = [f"tool {number}-{tool}" for tool in range(40)]
            put(store, *make(f"t{number}", tools=names, running=names[:1], end_ns=None))
        with Following(follow_terminal, home, terminal.console):
            wait_for(lambda: "tool 5-0 " in terminal.text)
            assert "tool 0-0 " in terminal.text
            assert terminal.screen.history.top.__len__() == 0


def test_a_narrower_terminal_is_drawn_anew():
    """Lines that the terminal wrapped do not stay behind."""
    terminal = FakeTerminal(120, 24)
    screen = Screen(terminal.console)
    screen.show([Text("a" * 100), Text("b" * 100)])
    terminal.resize(60)
    screen.show([Text("c" * 50)])
    assert [line for line in terminal.text.split("\n") if line] == ["c" * 50]
    screen.close()
    assert not terminal.text.strip()


def test_only_what_changed_is_written():
    """No change writes nothing at all; one changed line writes one line."""
    terminal = FakeTerminal(80, 24)
    screen = Screen(terminal.console)
    screen.show([Text("first line"), Text("second line"), Text("third line")])
    written = terminal.written
    screen.show([Text("first line"), Text("second line"), Text("third line")])
    assert terminal.written == written
    screen.show([Text("first line"), Text("SECOND"), Text("third line")])
    frame = terminal.everything[written:]
    assert "SECOND" in frame
    assert "first" not in frame
    assert "third" not in frame
    # One frame, marked as such, so that no half of it is ever seen.
    assert frame.startswith("\x1b[?2026h")
    assert frame.endswith("\x1b[?2026l")
    assert [line for line in terminal.text.split("\n") if line] == [
        "first line",
        "SECOND",
        "third line",
    ]


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_none_is_wanted(environment, monkeypatch):
    """NO_COLOR and terminals that know none are respected."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=80).print(turn_lines(make()[1], 80, 0)[0])
    assert "[38;5" not in out.getvalue()


def test_colours_can_be_read_on_dark_and_on_light():
    """Each has a contrast of at least 3.8 to 1 against black and against white."""
    for name in COLOURS:
        colour = Color.parse(name).get_truecolor()
        parts = [part / 255 for part in colour]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        assert (luminance + 0.05) / 0.05 >= 3.8, name
        assert 1.05 / (luminance + 0.05) >= 3.8, name


def selected(home, **which):
    """Return what a selection lets through, as the prompts' turn keys, by way of `tail --once`."""
    lines = []
    write_once(home, lines.append, Selection(**which))
    events = [orjson.loads(line) for line in lines]
    names = {ids.trace_id(a, s, k): k for a, s, k in KNOWN}
    return sorted({names[event["trace_id"]] for event in events})


KNOWN = [("claude-code", "s1", "fine"), ("claude-code", "s2", "bad"), ("codex-cli", "s3", "open")]


def test_filters_choose_turns(home):
    """By agent, session, project, and by whether anything failed."""
    with Store(home) as store:
        for agent, session, key in KNOWN:
            trace = ids.trace_id(agent, session, key)
            end_ns = None if key == "open" else 100
            turn, spans = make(key, tools=("a",), running=("a",) if end_ns is None else ())
            own = {"tracebridge.cwd": "/home/user/" + ("shop" if key == "bad" else "lab")}
            spans = [
                replace(
                    span,
                    trace_id=trace,
                    span_id=ids.root_span_id(trace)
                    if span.parent_span_id is None
                    else ids.span_id(trace, "tool", "a"),
                    parent_span_id=None if span.parent_span_id is None else ids.root_span_id(trace),
                    end_ns=end_ns,
                    attributes=own if span.parent_span_id is None else {},
                    status=Status.ERROR
                    if key == "bad" and span.parent_span_id is not None
                    else Status.UNSET,
                )
                for span in spans
            ]
            known = replace(turn, trace_id=trace, agent=agent, session_id=session)
            put(store, known, spans, told=end_ns is not None)
    assert selected(home) == ["bad", "fine", "open"]
    assert selected(home, agent="claude-code") == ["bad", "fine"]
    assert selected(home, session="s3") == ["open"]
    assert selected(home, errors=True) == ["bad"]
    assert selected(home, project="shop") == selected(home, project="/home/user/shop") == ["bad"]
    assert selected(home, project="other") == []
    out = io.StringIO()
    show_once(home, Console(file=out, width=80), Selection(agent="codex-cli"))
    assert "execute_tool a" in out.getvalue()
    out = io.StringIO()
    show_once(home, Console(file=out, width=80), Selection(project="other"))
    assert "no turns yet" in out.getvalue()


def test_a_terminal_waits_with_a_word(home):
    """An empty screen would look broken."""
    out = io.StringIO()
    console = Console(file=out, width=80, height=24, force_terminal=True)
    Store(home).close()
    out.isatty = lambda: True
    with Following(follow_terminal, home, console):
        wait_for(lambda: "waiting for a turn" in out.getvalue())


def test_once_shows_all_that_is_open_and_the_latest_of_the_rest(home):
    """However long an open turn has been open."""
    with Store(home) as store:
        put(store, *make("old", tools=("a",), running=("a",), end_ns=None))
        for number in range(30):
            turn, spans = make(f"t{number}", end_ns=10**9 + number)
            put(store, replace(turn, start_ns=10**9 + number), spans, told=True)
    lines = []
    write_once(home, lines.append)
    events = [orjson.loads(line) for line in lines]
    opened = [event["trace_id"] for event in events if event["event"] == "turn_opened"]
    keys = [*(f"t{number}" for number in range(20, 30)), "old"]
    assert opened == [ids.trace_id("claude-code", "s", key) for key in keys]
    out = io.StringIO()
    show_once(home, Console(file=out, width=80))
    assert out.getvalue().count("■") == 10
    assert "execute_tool a" in out.getvalue()

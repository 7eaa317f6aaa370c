"""Turns as they grow, from the store to a terminal, to a log or to JSON lines."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text
from watchdog.events import FileSystemEvent, FileSystemEventHandler

from tracebridge import semconv
from tracebridge.file_events import observing
from tracebridge.ids import root_span_id
from tracebridge.model import Span
from tracebridge.store import CHANGED, Store, TurnRow
from tracebridge.tree import label, printable
from tracebridge.views.screen import Screen
from tracebridge.views.selection import Selection
from tracebridge.views.waterfall import GREY, folded_turn, turn_lines

# A lost file system event costs no more than this.
RESCAN_S = 1.0
# How often running times move on, and how fast frames may follow each other.
FRAME_S = 0.2
SHORTEST_FRAME_S = 0.04
MOST_TURNS = 1000
# From this width on there is room for when each span ran.
WIDE = 130
# How many finished turns `--once` shows beside the open ones.
RECENT = 10

EVERYTHING = Selection()


class Follower:
    """Look at the store for turns that changed since the last look."""

    def __init__(self, store: Store, *, from_start: bool = False) -> None:
        self._store = store
        self._revision = 0 if from_start else store.revision()

    def changes(self) -> list[tuple[TurnRow, list[Span]]]:
        rows = self._store.turns(since_revision=self._revision, limit=MOST_TURNS)
        self._revision = max([self._revision, *(row.revision for row in rows)])
        return [(row, self._store.spans(row.trace_id)) for row in rows]


class LiveEvents:
    """Turn states of spans into events: what began and what ended since the last look."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, bool]] = {}
        self._finished: set[str] = set()

    def events(self, row: TurnRow, spans: Sequence[Span]) -> Iterator[dict[str, Any]]:
        """Yield the events of one look, in the order of time. Each comes once."""
        for name, span, time_ns in self.changes(row, spans):
            yield {
                "event": name,
                "time_ns": time_ns,
                "trace_id": span.trace_id,
                "span_id": span.span_id,
                "parent_span_id": span.parent_span_id,
                "name": span.name,
                "attributes": span.attributes,
            }

    def changes(self, row: TurnRow, spans: Sequence[Span]) -> Iterator[tuple[str, Span, int]]:
        known = self._seen.setdefault(row.trace_id, {})
        root = next((span for span in spans if span.parent_span_id is None), None)
        if root is not None and root.span_id not in known:
            known[root.span_id] = False
            yield "turn_opened", root, root.start_ns
        for span in sorted(spans, key=lambda span: (span.start_ns, span.span_id)):
            if span is root:
                continue
            if span.span_id not in known:
                known[span.span_id] = False
                yield "span_started", span, span.start_ns
            if span.end_ns is not None and not known[span.span_id]:
                known[span.span_id] = True
                yield "span_finished", span, span.end_ns
        over = row.told and root is not None and root.end_ns is not None
        if over and row.trace_id not in self._finished and root is not None:
            self._finished.add(row.trace_id)
            yield "turn_finished", root, root.end_ns or root.start_ns


def follow_json(
    home: Path,
    stop: threading.Event,
    write: Callable[[bytes], object],
    selection: Selection = EVERYTHING,
) -> None:
    """Write one JSON object a line for each thing that begins or ends, until *stop*."""
    live = LiveEvents()
    with Store(home) as store:
        follower = Follower(store)
        for _ in _looks(home, stop, lambda: RESCAN_S):
            for row, spans in follower.changes():
                if selection.takes(row, spans):
                    for event in live.events(row, spans):
                        write(orjson.dumps(event) + b"\n")


def follow_terminal(
    home: Path, stop: threading.Event, console: Console, selection: Selection = EVERYTHING
) -> None:
    """Show open turns as growing trees; a finished one folds to a line. In a log, line by line."""
    with Store(home) as store:
        # FORCE_COLOR makes rich call a log a terminal, and not every terminal can move its cursor.
        if console.is_terminal and console.file.isatty() and not console.is_dumb_terminal:
            _follow_on_screen(home, store, stop, console, selection)
        else:
            _follow_in_log(home, store, stop, console, selection)


def show_once(home: Path, console: Console, selection: Selection = EVERYTHING) -> None:
    """Print what is open, below the latest that is finished."""
    now_ns = time.time_ns()
    texts: list[Text] = []
    with Store(home) as store:
        for row, spans in _present(store, selection):
            if not row.told:
                texts += turn_lines(spans, console.width, now_ns, bars=console.width >= WIDE)
            elif (root := _root(spans)) is not None:
                texts.append(folded_turn(root, console.width, now_ns))
    for text in texts or [Text("no turns yet; `tracebridge run -- claude …` makes one")]:
        console.print(text, soft_wrap=True)


def write_once(
    home: Path, write: Callable[[bytes], object], selection: Selection = EVERYTHING
) -> None:
    """Write the events of the latest that is finished, and of what is open."""
    live = LiveEvents()
    with Store(home) as store:
        for row, spans in _present(store, selection):
            for event in live.events(row, spans):
                write(orjson.dumps(event) + b"\n")


def _follow_on_screen(
    home: Path, store: Store, stop: threading.Event, console: Console, selection: Selection
) -> None:
    follower = Follower(store)
    turns = {row.trace_id: spans for row, spans in _open_turns(store, selection)}
    screen = Screen(console)
    try:
        for _ in _looks(home, stop, lambda: FRAME_S if turns else RESCAN_S):
            finished: list[Text] = []
            for row, spans in follower.changes():
                known = turns.pop(row.trace_id, None)
                if not selection.takes(row, spans):
                    continue
                if not row.told:
                    turns[row.trace_id] = spans
                elif (root := _root(spans)) is not None and (known or _is_new(root)):
                    finished.append(folded_turn(root, screen.width, time.time_ns()))
            screen.show(open_turns(turns, screen.width, screen.height, time.time_ns()), finished)
            # Many changes at once are one frame.
            stop.wait(SHORTEST_FRAME_S)
    finally:
        screen.close()


def _follow_in_log(
    home: Path, store: Store, stop: threading.Event, console: Console, selection: Selection
) -> None:
    follower, live = Follower(store), LiveEvents()
    for _ in _looks(home, stop, lambda: RESCAN_S):
        for row, spans in follower.changes():
            if not selection.takes(row, spans):
                continue
            for name, span, time_ns in live.changes(row, spans):
                if name != "span_started":
                    line = _log_line(name, span, spans, time_ns, console.width)
                    console.print(line, soft_wrap=True)


def _log_line(name: str, span: Span, spans: Sequence[Span], time_ns: int, width: int) -> Text:
    stamp = time.strftime("%H:%M:%S", time.localtime(time_ns / 1e9))
    text = Text(f"{stamp}  {span.trace_id[:8]}  ", GREY)
    room = max(width - text.cell_len, 20)
    if name == "span_finished":
        depth = _depth(span, spans)
        text.append("  " * depth)
        (line,) = turn_lines([span], room - 2 * depth, time_ns)
    elif name == "turn_opened":
        said = " ".join(str(span.attributes.get(semconv.OI_INPUT, ""))[:500].split())
        line = Text(printable(f"▶ {label(span)}  {said}"), "bold")
    else:
        line = folded_turn(span, room, time_ns)
    text.append_text(line)
    text.truncate(width, overflow="ellipsis")
    text.rstrip()
    return text


def _depth(span: Span, spans: Sequence[Span]) -> int:
    parents = {span.span_id: span.parent_span_id for span in spans}
    depth, parent = 0, span.parent_span_id
    while parent is not None and depth < 20:
        depth, parent = depth + 1, parents.get(parent)
    return depth


def open_turns(
    turns: Mapping[str, Sequence[Span]], width: int, height: int, now_ns: int
) -> list[Text]:
    """Return all open turns in no more than *height* lines, what runs now before what is done."""
    if not turns:
        return [Text("waiting for a turn … (Ctrl-C ends)", GREY)]
    shown = list(turns.values())
    hidden = 0
    if len(shown) > height:
        hidden = len(shown) - (height - 1)
        shown = shown[hidden:]
    lines: list[Text] = []
    if hidden:
        lines.append(Text(f"⋮ {hidden} more turns are open", GREY))
    for number, spans in enumerate(shown):
        # What a small turn leaves over is for those after it.
        room = (height - len(lines)) // (len(shown) - number)
        lines += turn_lines(spans, width, now_ns, bars=width >= WIDE, room=room)
    return lines


def _present(store: Store, selection: Selection) -> list[tuple[TurnRow, Sequence[Span]]]:
    """Return the latest finished turns, then all that are open."""
    finished = ((row, spans) for row, spans in selection.turns(store) if row.told and _root(spans))
    return [*reversed(list(islice(finished, RECENT))), *_open_turns(store, selection)]


def _open_turns(store: Store, selection: Selection) -> list[tuple[TurnRow, Sequence[Span]]]:
    rows = [row for row in store.turns(limit=MOST_TURNS) if not row.told]
    return [
        (row, spans) for row in rows if selection.takes(row, spans := store.spans(row.trace_id))
    ]


def _root(spans: Sequence[Span]) -> Span | None:
    return next((span for span in spans if span.span_id == root_span_id(span.trace_id)), None)


def _is_new(root: Span) -> bool:
    """Say whether a turn ended just now: one that is imported, or told more of, did not."""
    return root.end_ns is not None and time.time_ns() - root.end_ns < 600_000_000_000


def _looks(home: Path, stop: threading.Event, pause_s: Callable[[], float]) -> Iterator[None]:
    """Yield whenever the store may have changed, and after each pause."""
    wake = threading.Event()
    with observing() as observer:
        observer.schedule(_StoreEvents(wake), str(home))
        while not stop.is_set():
            wake.clear()
            yield
            wake.wait(pause_s())


class _StoreEvents(FileSystemEventHandler):
    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        if Path(str(event.src_path)).name == CHANGED:
            self._wake.set()


def write_out(data: bytes) -> None:
    """Write to stdout at once: whoever reads a pipe wants it now."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

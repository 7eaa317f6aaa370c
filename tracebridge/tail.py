"""Turns as they grow, from the store to a terminal or to JSON lines."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from tracebridge import semconv
from tracebridge.model import Span, Status
from tracebridge.store import CHANGED, Store, TurnRow
from tracebridge.tree import Line, duration, tree

# A lost file system event costs no more than this.
RESCAN_S = 1.0
# How often running times move on.
FRAME_S = 0.25
MOST_TURNS = 1000
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


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
        known = self._seen.setdefault(row.trace_id, {})
        root = next((span for span in spans if span.parent_span_id is None), None)
        if root is not None and root.span_id not in known:
            known[root.span_id] = False
            yield _event("turn_opened", root, root.start_ns)
        for span in sorted(spans, key=lambda span: (span.start_ns, span.span_id)):
            if span is root:
                continue
            if span.span_id not in known:
                known[span.span_id] = False
                yield _event("span_started", span, span.start_ns)
            if span.end_ns is not None and not known[span.span_id]:
                known[span.span_id] = True
                yield _event("span_finished", span, span.end_ns)
        over = row.told and root is not None and root.end_ns is not None
        if over and row.trace_id not in self._finished and root is not None:
            self._finished.add(row.trace_id)
            yield _event("turn_finished", root, root.end_ns or root.start_ns)


def _event(name: str, span: Span, time_ns: int) -> dict[str, Any]:
    return {
        "event": name,
        "time_ns": time_ns,
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "name": span.name,
        "attributes": span.attributes,
    }


def follow_json(home: Path, stop: threading.Event, write: Callable[[bytes], object]) -> None:
    """Write one JSON object a line for each thing that begins or ends, until *stop*."""
    live = LiveEvents()
    with Store(home) as store:
        follower = Follower(store)
        for _ in _looks(home, stop, RESCAN_S):
            for row, spans in follower.changes():
                for event in live.events(row, spans):
                    write(orjson.dumps(event) + b"\n")


def follow_terminal(home: Path, stop: threading.Event, console: Console) -> None:
    """Show open turns as growing trees; a finished one stays as it was at the end."""
    turns: dict[str, tuple[TurnRow, list[Span]]] = {}
    with Store(home) as store:
        follower = Follower(store)
        for row in store.turns(limit=50):
            if not row.told:
                turns[row.trace_id] = (row, store.spans(row.trace_id))
        if not console.is_terminal:
            for _ in _looks(home, stop, RESCAN_S):
                for row, spans in follower.changes():
                    if row.told:
                        console.print(render_turn(spans, console.width))
            return
        with Live(console=console, auto_refresh=False, transient=True) as live:
            for _ in _looks(home, stop, FRAME_S):
                for row, spans in follower.changes():
                    turns[row.trace_id] = (row, spans)
                for trace_id in [key for key, (row, _) in turns.items() if row.told]:
                    _, spans = turns.pop(trace_id)
                    live.console.print(render_turn(spans, console.width))
                live.update(_open_turns(turns, console), refresh=True)


def _open_turns(turns: Mapping[str, tuple[TurnRow, list[Span]]], console: Console) -> Group:
    if not turns:
        return Group(Text("waiting for a turn … (Ctrl-C ends)", style="dim"))
    rendered = [render_turn(spans, console.width) for _, spans in turns.values()]
    # What does not fit would scroll away and tear the picture: the end is what moves.
    lines = [line for text in rendered for line in text.split("\n")]
    return Group(*lines[-max(console.height - 2, 5) :])


def render_turn(spans: Sequence[Span], width: int, now_ns: int | None = None) -> Text:
    """Return one turn as a tree of lines no wider than *width*."""
    now_ns = time.time_ns() if now_ns is None else now_ns
    lines = tree(spans)
    name_width = min(max((len(line.branch + line.span.name) for line in lines), default=0), 46)
    text = Text()
    for number, line in enumerate(lines):
        if number:
            text.append("\n")
        rendered = _line(line, name_width, now_ns)
        rendered.truncate(width, overflow="ellipsis")
        text.append_text(rendered)
    return text


def _line(line: Line, name_width: int, now_ns: int) -> Text:
    span = line.span
    text = Text(line.branch, style="dim", no_wrap=True)
    room = max(name_width - len(line.branch), 12)
    name = printable(span.name)
    name = name if len(name) <= room else name[: room - 1] + "…"
    text.append(name.ljust(room), style=_style(span))
    elapsed = duration(span, now_ns)
    if span.end_ns is None:
        frame = SPINNER[now_ns // 100_000_000 % len(SPINNER)]
        text.append(f" {frame} {elapsed:>9}", style="cyan")
    else:
        text.append(f"   {elapsed:>9}")
    for fact in line.facts:
        text.append("  ")
        text.append(printable(fact), style="bold red" if fact.startswith("ERROR") else "dim")
    if span.parent_span_id is None:
        text.append(f"  {span.trace_id[:8]}", style="dim")
        said = " ".join(str(span.attributes.get(semconv.OI_INPUT, "")).split())
        text.append(f"  {printable(said)}", style="italic")
    return text


def printable(text: str) -> str:
    """Return *text* on one line and without what would steer a terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)


def _style(span: Span) -> str:
    if span.status is Status.ERROR:
        return "red"
    kind = span.attributes.get(semconv.SPAN_TYPE)
    styles = {"turn": "bold", "llm": "blue", "thinking": "magenta", "permission": "yellow"}
    return styles.get(str(kind), "green" if kind == "edit" else "")


def _looks(home: Path, stop: threading.Event, pause_s: float) -> Iterator[None]:
    """Yield whenever the store may have changed, and after each pause."""
    wake = threading.Event()
    observer = Observer()
    observer.schedule(_StoreEvents(wake), str(home))
    observer.start()
    try:
        while not stop.is_set():
            wake.clear()
            yield
            wake.wait(pause_s)
    finally:
        observer.stop()
        observer.join()


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

"""A turn as lines for a terminal: its tree, when each span ran, and what is worth saying. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from tracebridge import semconv
from tracebridge.model import Span, Status
from tracebridge.tree import Fact, Line, Tone, duration, printable, tree

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
# Of the 256 colours those that can be read on white as well as on black: at least 3.8 to 1 on both.
COLOURS = tuple(f"color({number})" for number in (160, 130, 28, 30, 31, 97, 243))
RED, ORANGE, GREEN, CYAN, BLUE, PURPLE, GREY = COLOURS
STYLES = {
    "turn": "bold",
    "llm": BLUE,
    "thinking": PURPLE,
    "permission": f"bold {ORANGE}",
    "edit": GREEN,
    "subagent": "bold",
}
TONES = {
    Tone.PLAIN: "",
    Tone.QUIET: GREY,
    Tone.ERROR: f"bold {RED}",
    Tone.WAIT: f"bold {ORANGE}",
    Tone.INFERRED: ORANGE,
}
DURATION_WIDTH = 11


def render_turn(spans: Sequence[Span], width: int, now_ns: int = 0, *, bars: bool = False) -> Text:
    """Return one turn as a tree of lines no wider than *width*."""
    return Text("\n").join(turn_lines(spans, width, now_ns, bars=bars))


def turn_lines(
    spans: Sequence[Span],
    width: int,
    now_ns: int,
    *,
    bars: bool = False,
    room: int | None = None,
) -> list[Text]:
    """Return one turn line by line; *bars* also draws when each span ran.

    *room* is how many lines there may be: the first, what runs, and the latest of the rest.
    """
    lines = tree(spans, fold_attempts=True)
    longest = max((cell_len(line.branch + line.label) for line in lines), default=0)
    name_width = min(longest, max(width * 2 // 5, 24), 46)
    bar_width = min(max(width // 5, 12), 60) if bars and width >= 60 else 0
    begin_ns = min((span.start_ns for span in spans), default=0)
    end_ns = max((span.end_ns or max(now_ns, span.start_ns) for span in spans), default=0)
    chosen, hidden = _chosen(lines, room)
    texts = []
    for line in chosen:
        text = Text(no_wrap=True)
        text.append(line.branch, GREY)
        text.append(fit(printable(line.label), max(name_width - cell_len(line.branch), 8)))
        text.stylize(_style(line.span), len(line.branch))
        text.append(" ")
        text.append_text(_time(line.span, now_ns))
        if bar_width:
            drawn = bar(line.span, begin_ns, end_ns, bar_width, now_ns)
            whole = line.span.parent_span_id is None
            text.append(f"  {drawn}", GREY if whole else _style(line.span).removeprefix("bold "))
        _append_facts(text, _all_facts(line), width)
        text.truncate(width, overflow="ellipsis")
        texts.append(text)
    if hidden:
        texts.insert(1, Text(f"⋮  {hidden} more", GREY))
    return texts


def _chosen(lines: Sequence[Line], room: int | None) -> tuple[Sequence[Line], int]:
    """Return the lines that there is room for, and how many are hidden behind a line that says so."""
    if room is None or len(lines) <= room:
        return lines, 0
    if room <= 2:
        return lines[:room], 0
    running = [at for at, line in enumerate(lines) if at and line.span.end_ns is None]
    latest = [at for at, line in enumerate(lines) if at and line.span.end_ns is not None]
    kept = sorted([*running[::-1], *latest[::-1]][: room - 2])
    return [lines[0], *(lines[at] for at in kept)], len(lines) - 1 - len(kept)


def folded_turn(root: Span, width: int, now_ns: int) -> Text:
    """Return a turn as one line: how it went, how long it took, what it used, what was asked."""
    (line,) = tree([root])
    outcome = root.attributes.get(semconv.TURN_OUTCOME)
    failed = root.status is Status.ERROR
    sign = "✗" if failed else "✓" if outcome == "completed" else "■"
    text = Text(no_wrap=True)
    text.append(sign + " ", f"bold {RED if failed else GREEN if sign == '✓' else ORANGE}")
    text.append(fit(printable(line.label), min(max(width // 4, 20), 36)), "bold")
    text.append(f"{duration(root, now_ns):>{DURATION_WIDTH - 1}}")
    _append_facts(text, _all_facts(line), width)
    text.truncate(width, overflow="ellipsis")
    return text


def bar(span: Span, begin_ns: int, end_ns: int, width: int, now_ns: int) -> str:
    """Return *width* cells of time, filled by half cells while the span ran; never quite empty."""
    halves = 2 * width
    scale = halves / max(end_ns - begin_ns, 1)
    first = min(int((span.start_ns - begin_ns) * scale), halves - 1)
    stop_ns = max(now_ns, span.start_ns) if span.end_ns is None else span.end_ns
    last = min(max(round((stop_ns - begin_ns) * scale), first + 1), halves)
    filled = [first <= half < last for half in range(halves)]
    cells = {(True, True): "█", (True, False): "▌", (False, True): "▐", (False, False): " "}
    return "".join(cells[filled[at], filled[at + 1]] for at in range(0, halves, 2))


def fit(text: str, width: int) -> str:
    """Return *text* in exactly *width* cells; what is cut ends in an ellipsis."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(set_cell_size(text, width - 1).rstrip() + "…", width)


def _time(span: Span, now_ns: int) -> Text:
    took = duration(span, now_ns)
    if span.end_ns is not None:
        return Text(f"{took:>{DURATION_WIDTH}}")
    frame = SPINNER[now_ns // 100_000_000 % len(SPINNER)]
    waits = span.attributes.get(semconv.SPAN_TYPE) == "permission"
    return Text(f"{frame} {took:>{DURATION_WIDTH - 2}}", f"bold {ORANGE}" if waits else CYAN)


def _all_facts(line: Line) -> list[Fact]:
    span, facts = line.span, list(line.facts)
    if line.attempts > 1:
        facts = [fact for fact in facts if fact.tone is Tone.ERROR]
    if span.parent_span_id is not None:
        return facts
    if span.attributes.get(semconv.SPAN_TYPE) == "turn":
        done = [
            f"{number} {name if number == 1 else name + 's'}"
            for name, attribute in (
                ("call", semconv.TURN_CALLS),
                ("tool", semconv.TURN_TOOL_CALLS),
            )
            if isinstance(number := span.attributes.get(attribute), int) and number
        ]
        facts += [Fact(text) for text in done]
    identity = Fact(span.trace_id[:8], span.trace_id[:8])
    facts.append(identity)
    said = " ".join(str(span.attributes.get(semconv.OI_INPUT, ""))[:500].split())
    return [*facts, Fact(said, said, may_be_cut=True)] if said else facts


def _append_facts(text: Text, facts: Sequence[Fact], width: int) -> None:
    """Append what fits: first in short, then long where there is room; the first facts first."""
    room = width - text.cell_len
    chosen: list[str] = []
    for fact in facts:
        words = printable(fact.short)
        if fact.may_be_cut and 10 < room < cell_len(words) + 2:
            words = fit(words, room - 2)
        if not words or cell_len(words) + 2 > room:
            words = ""
        room -= cell_len(words) + 2 * bool(words)
        chosen.append(words)
    for number, fact in enumerate(facts):
        more = cell_len(fact.text) + 2 - cell_len(chosen[number]) - 2 * bool(chosen[number])
        if not fact.may_be_cut and 0 < more <= room:
            chosen[number] = printable(fact.text)
            room -= more
    for words, fact in zip(chosen, facts, strict=True):
        if words:
            text.append("  ")
            text.append(words, TONES[fact.tone])
    text.rstrip()


def _style(span: Span) -> str:
    kind = str(span.attributes.get(semconv.SPAN_TYPE))
    if span.status is Status.ERROR:
        return f"bold {RED}" if kind == "turn" else RED
    return STYLES.get(kind, "")

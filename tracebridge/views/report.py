"""Turns as one HTML page that needs nothing else: no network, no server, no script to be read. Pure.

Whatever a turn holds becomes text: `_tag` escapes all that is not `_Markup`, and the page's policy
allows its own style and script by their digests and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources

import orjson

from tracebridge import semconv
from tracebridge.model import AttributeValue, Span, Status
from tracebridge.store import TurnRow
from tracebridge.time_spent import time_spent
from tracebridge.totals import Totals, totals_of
from tracebridge.tree import (
    Line,
    Tone,
    count,
    dollars,
    duration,
    elapsed,
    folder,
    span_ns,
    tree,
)
from tracebridge.views.stats import percent, share

Turns = Sequence[tuple[TurnRow, Sequence[Span]]]

# Of one text; what a page holds must still open.
LONGEST_TEXT = 50_000
# So many bars a chart has at most.
MOST_BARS = 60
DEEPEST = 6
# What bars are drawn in, and where they end.
SCALE = 1000
FILLS = {
    "llm": "model",
    "tool": "tools",
    "permission": "you",
    "thinking": "thinking",
    "edit": "edit",
}
SPENT = (("model", "the model"), ("tools", "tools"), ("human", "you"), ("agent", "the agent"))
# Shown in words of their own, or the same in another vocabulary.
UNLISTED = (
    "openinference.",
    "llm.",
    "respan.",
    "traceloop.",
    "input.",
    "output.",
    "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.result",
    "session.",
    "metadata",
    "agent.",
    "tool.",
    semconv.EDIT_DIFF,
)


class _Markup(str):
    """HTML that is ours."""

    __slots__ = ()


_Child = str | None | Iterable["_Child"]


def report(turns: Turns, now_ns: int, *, left_out: bool = False) -> str:
    """Return the page. *left_out* says that there were more turns than these."""
    style, script = _own("report.css"), _own("report.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src {_digest(style)}",
            f"script-src {_digest(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    title = _title(turns)
    head = _tag(
        "head",
        _tag("meta", charset="utf-8"),
        _tag("meta", http_equiv="Content-Security-Policy", content=policy),
        _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _tag("meta", name="referrer", content="no-referrer"),
        _tag("title", title),
        _Markup(f"<style>{style}</style>"),
    )
    body = _tag(
        "body",
        _tag("a", "Skip to the turns", href="#turns", class_="skip"),
        _header(title, turns, left_out=left_out),
        _tag("main", *_main(turns, now_ns)),
        _tag("footer", f"Made by tracebridge, {_moment(now_ns)}. Cost is by list prices."),
        _Markup(f"<script>{script}</script>"),
    )
    return "<!doctype html>\n" + _tag("html", head, body, lang="en")


def _main(turns: Turns, now_ns: int) -> Iterator[_Markup]:
    totals = Totals()
    for _, spans in turns:
        totals.add(totals_of(spans, now_ns))
    yield _section("In all", _cards(totals, turns, now_ns))
    yield _section("Where the time went", *_where_time_went(totals))
    articles = (_turn(row, spans, now_ns) for row, spans in turns)
    heading = "Turn" if len(turns) == 1 else "Turns"
    waterfalls = _tag("section", _tag("h2", heading, id="turns", tabindex="-1"), *articles)
    chart = _usage_over_time(turns)
    usage = _section("Tokens and cost over time", *chart) if chart is not None else _Markup()
    # Of a single turn its waterfall is what is asked for; of many, what they come to.
    yield from (waterfalls, usage) if len(turns) == 1 else (usage, waterfalls)


def _header(title: str, turns: Turns, *, left_out: bool) -> _Markup:
    agents = ", ".join(sorted({row.agent for row, _ in turns}))
    sessions = len({(row.agent, row.session_id) for row, _ in turns})
    first, last = turns[0][0].start_ns, turns[-1][0].start_ns
    period = _moment(first) if first == last else f"{_moment(first)} to {_moment(last)}"
    said = f"{agents} · {_number(sessions, 'session')} · {period}"
    return _tag(
        "header",
        _tag(
            "div",
            _tag("h1", title),
            _tag("p", said, class_="quiet"),
            _tag("p", "Earlier turns are left out.", class_="quiet") if left_out else None,
        ),
        _tag(
            "div",
            _tag("button", "Open all", type="button", id="open"),
            _tag("button", "Close all", type="button", id="close"),
            _tag("button", "Light / dark", type="button", id="theme"),
            class_="tools",
        ),
        class_="page",
    )


def _title(turns: Turns) -> str:
    if len(turns) == 1:
        return _short(turns[0][0].prompt or "A turn without a prompt", 120)
    places = {folder(span) for _, spans in turns for span in spans if span.parent_span_id is None}
    named = ", ".join(sorted(places - {""}))
    return f"{_number(len(turns), 'turn')}{' in ' + _short(named, 80) if named else ''}"


def _cards(totals: Totals, turns: Turns, now_ns: int) -> _Markup:
    took = sum((row.end_ns or now_ns) - row.start_ns for row, _ in turns)
    unpriced = totals.unpriced_calls
    cost = "unknown" if totals.cost_usd is None else dollars(totals.cost_usd)
    linked = totals.linked_exactly + totals.linked_by_inference
    cards = [
        (
            "Turns",
            str(totals.turns),
            f"{totals.failed_turns} failed" if totals.failed_turns else "",
        ),
        ("Time", elapsed(took), ""),
        ("Cost", cost, f"{_number(unpriced, 'call')} without a price" if unpriced else ""),
        (
            "Tokens",
            f"{count(totals.input_tokens)} in",
            f"{count(totals.output_tokens)} out"
            + (f", {percent(totals.cache_hit_rate)} cached" if totals.cache_hit_rate else ""),
        ),
        (
            "Model calls",
            str(totals.calls),
            ", ".join(
                text
                for number, text in (
                    (totals.failed_calls, f"{totals.failed_calls} failed"),
                    (totals.retries, f"{totals.retries} retried"),
                )
                if number
            ),
        ),
        (
            "Tool calls",
            str(totals.tool_calls),
            f"{totals.failed_tool_calls} failed" if totals.failed_tool_calls else "",
        ),
        ("Lines", f"+{totals.lines_added} −{totals.lines_removed}", ""),  # noqa: RUF001  # a minus
        (
            "Gateway calls",
            f"{linked} of {totals.calls}",
            f"{totals.linked_by_inference} inferred" if totals.linked_by_inference else "",
        ),
    ]
    return _tag(
        "dl",
        *(
            _tag("div", _tag("dt", name), _tag("dd", value, _tag("small", note) if note else None))
            for name, value, note in cards
        ),
        class_="cards",
    )


def _where_time_went(totals: Totals) -> Iterator[_Markup]:
    spent = [
        (name, words, getattr(totals, f"{name}_ns"), {"human": "you"}.get(name, name))
        for name, words in SPENT
    ]
    whole = sum(ns for _, _, ns, _ in spent)
    if not whole:
        yield _tag("p", "No time is known.")
        return
    rects, at = [], 0.0
    for _, words, ns, fill in spent:
        wide = SCALE * ns / whole
        rects.append(_rect(at, wide, fill, title=f"{words}: {elapsed(ns)}"))
        at += wide
    said = ", ".join(f"{words} {elapsed(ns)} ({share(ns, whole)})" for _, words, ns, _ in spent)
    yield _svg(rects, class_="stack", role="img", aria_label=said)
    yield _tag(
        "ul",
        *(
            _tag(
                "li",
                _svg([_rect(0, SCALE, fill)], aria_hidden="true"),
                f"{words} {elapsed(ns)}, {share(ns, whole)}",
            )
            for _, words, ns, fill in spent
            if ns
        ),
        class_="legend",
    )
    yield _tag(
        "p",
        "Each moment counts once: the model before tools, tools before your approval, and what is "
        "left is the agent's own.",
        class_="quiet",
    )


def _usage_over_time(turns: Turns) -> list[_Markup] | None:
    """Return a chart of tokens and running cost, and the same as a table."""
    calls = [
        (span.end_ns or span.start_ns, totals_of([span], 0))
        for _, spans in turns
        for span in sorted(spans, key=lambda span: span.end_ns or span.start_ns)
        if span.attributes.get(semconv.SPAN_TYPE) == "llm"
        and semconv.INPUT_TOKENS in span.attributes
    ]
    if len(calls) < 2:
        return None
    size = -(-len(calls) // MOST_BARS)
    bars = []
    for at in range(0, len(calls), size):
        group = Totals()
        for _, totals in calls[at : at + size]:
            group.add(totals)
        bars.append((calls[at][0], group))
    width, height, left, top = 960, 200, 72, 16
    plot_width, plot_height = width - 2 * left, height - 56
    most = max(group.input_tokens + group.output_tokens for _, group in bars) or 1
    whole_cost = sum(group.cost_usd or 0 for _, group in bars)
    step = plot_width / len(bars)
    drawn, line, running, rows = [], [], 0.0, []
    for number, (moment_ns, group) in enumerate(bars):
        x, base = left + number * step, float(top + plot_height)
        fresh = max(group.input_tokens - group.cache_read_tokens, 0)
        parts = (
            (group.cache_read_tokens, "cached"),
            (fresh, "model"),
            (group.output_tokens, "out"),
        )
        for tokens, fill in parts:
            tall = plot_height * tokens / most
            base -= tall
            drawn.append(_rect(x + step * 0.12, step * 0.76, fill, y=base, height=tall))
        running += group.cost_usd or 0
        line.append(
            f"{x + step / 2:.1f},{top + plot_height * (1 - running / (whole_cost or 1)):.1f}"
        )
        cells = (_clock(moment_ns), str(group.calls), str(group.cache_read_tokens), str(fresh))
        rows.append(
            (*cells, str(group.output_tokens), dollars(running) if whole_cost else "unknown")
        )
    cost_line = _tag("polyline", points=" ".join(line), class_="cost") if whole_cost else None
    grid = _tag(
        "path",
        d=f"M{left} {top}H{width - left}M{left} {top + plot_height}H{width - left}",
        class_="grid",
    )
    labels = [
        _tag("text", f"{count(most)} tok", x=str(left - 6), y=str(top + 4), text_anchor="end"),
        _tag("text", "0", x=str(left - 6), y=str(top + plot_height + 4), text_anchor="end"),
        _tag("text", _clock(bars[0][0]), x=str(left), y=str(height - 22)),
        _tag(
            "text", _clock(bars[-1][0]), x=str(width - left), y=str(height - 22), text_anchor="end"
        ),
        _tag("text", dollars(whole_cost), x=str(width - left + 6), y=str(top + 4))
        if whole_cost
        else None,
    ]
    what = "Each bar is one call" if size == 1 else f"Each bar is {size} calls"
    legend = (
        ("cached", "in, from the cache"),
        ("model", "in, fresh"),
        ("out", "out"),
        ("you", "cost so far"),
    )
    keys = [
        _tag("li", _svg([_rect(0, SCALE, fill)], aria_hidden="true"), words)
        for fill, words in legend
        if fill != "you" or whole_cost
    ]
    titles = ("until", "calls", "in, cached", "in, fresh", "out", "cost so far")
    return [
        _tag(
            "svg",
            _tag("title", f"{what}, in their order; the table below has the same figures."),
            grid,
            *drawn,
            cost_line,
            *labels,
            viewBox=f"0 0 {width} {height}",
            class_="chart",
            role="img",
        ),
        _tag("ul", *keys, class_="legend"),
        _tag(
            "details",
            _tag("summary", f"{what}; as a table"),
            _tag(
                "table",
                _tag("thead", _tag("tr", *(_tag("th", title, scope="col") for title in titles))),
                _tag("tbody", *(_tag("tr", *(_tag("td", c) for c in row)) for row in rows)),
            ),
        ),
    ]


def _turn(row: TurnRow, spans: Sequence[Span], now_ns: int) -> _Markup:
    root = next((span for span in spans if span.parent_span_id is None), None)
    outcome = row.outcome or row.state
    totals = totals_of(spans, now_ns)
    spent = time_spent(spans, now_ns)
    end_ns = row.end_ns if row.end_ns is not None else now_ns
    said = [
        row.agent,
        folder(root) if root is not None else "",
        _moment(row.start_ns),
        elapsed(max(end_ns - row.start_ns, 0)),
        f"{count(totals.input_tokens)} → {count(totals.output_tokens)} tokens"
        if totals.calls
        else "",
        dollars(totals.cost_usd) if totals.cost_usd is not None else "",
        f"waited {elapsed(spent.human_ns)} for you" if spent.human_ns else "",
        f"for {row.customer_id}" if row.customer_id else "",
        f"session {row.session_id}",
        f"trace {row.trace_id}",
    ]
    attributes = root.attributes if root is not None else {}
    texts = [
        _block(title, attributes.get(name))
        for title, name in (("Prompt", semconv.OI_INPUT), ("Answer", semconv.OI_OUTPUT))
    ]
    talk = [text for text in texts if text is not None]
    name = f"turn-{row.trace_id}"
    return _tag(
        "article",
        _tag(
            "header",
            _tag("h3", _short(row.prompt or "(no prompt is known)", 160), id=name),
            _tag(
                "p",
                _tag("span", outcome, class_=f"badge {outcome}"),
                " ",
                " · ".join(text for text in said if text),
                class_="quiet",
            ),
        ),
        _tag(
            "details",
            _tag("summary", "Prompt and answer"),
            _tag("div", *talk, class_="more"),
            class_="said",
        )
        if talk
        else None,
        _waterfall(spans, now_ns),
        aria_labelledby=name,
    )


def _waterfall(spans: Sequence[Span], now_ns: int) -> _Markup:
    begin_ns = min((span.start_ns for span in spans), default=0)
    whole_ns = max((span.start_ns + span_ns(span, now_ns) for span in spans), default=0) - begin_ns
    ticks = [_tag("span", elapsed(whole_ns * quarter // 4)) for quarter in range(5)]
    axis = _tag(
        "div",
        _tag("span"),
        _tag("span", *ticks, class_="ticks"),
        _tag("span", "took", class_="took"),
        _tag("span", "", class_="facts"),
        class_="axis",
        aria_hidden="true",
    )
    # From the last line to the first, each takes the lists of those below it.
    lines = tree(spans)
    depths = [len(line.branch) // 3 for line in lines]
    below: dict[int, list[_Markup]] = {}
    for line, depth in zip(reversed(lines), reversed(depths), strict=True):
        children = below.pop(depth + 1, [])
        item = _tag(
            "li",
            _row(line, depth, begin_ns, max(whole_ns, 1), now_ns),
            _tag("ol", *reversed(children)) if children else None,
        )
        below.setdefault(depth, []).append(item)
    return _Markup(axis + _tag("ol", *reversed(below.get(0, [])), class_="fall"))


def _row(line: Line, depth: int, begin_ns: int, whole_ns: int, now_ns: int) -> _Markup:
    span = line.span
    kind = str(span.attributes.get(semconv.SPAN_TYPE, "other"))
    failed = span.status is Status.ERROR
    took = duration(span, now_ns)
    facts: list[_Markup | str] = []
    for fact in line.facts:
        facts.append(" · " if facts else "")
        tone = fact.tone.value
        facts.append(
            _tag("span", fact.text, class_=tone) if fact.tone is not Tone.QUIET else fact.text
        )
    return _tag(
        "details",
        _tag(
            "summary",
            _tag("span", line.label, class_="label", title=span.name),
            _svg(
                _bars(span, kind, begin_ns, whole_ns, now_ns),
                class_="bar",
                role="img",
                aria_label=f"from {elapsed(span.start_ns - begin_ns)}, for {took}",
            ),
            _tag("span", took if span.end_ns is not None else f"{took} …", class_="took"),
            _tag("span", *facts, class_="facts"),
        ),
        _tag("div", *_more(span, kind), class_="more"),
        class_=f"d{min(depth, DEEPEST)} {kind}{' failed' if failed else ''}",
    )


def _bars(span: Span, kind: str, begin_ns: int, whole_ns: int, now_ns: int) -> list[_Markup]:
    at = SCALE * (span.start_ns - begin_ns) / whole_ns
    wide = max(SCALE * span_ns(span, now_ns) / whole_ns, 2.0)
    at = min(at, SCALE - wide)
    fill = "error" if span.status is Status.ERROR else FILLS.get(kind, "agent")
    first_s = span.attributes.get(semconv.TIME_TO_FIRST_CHUNK)
    rects = [_rect(at, wide, fill)]
    if fill == "model" and isinstance(first_s, int | float) and span_ns(span, now_ns):
        waited = min(max(first_s * 1e9 / span_ns(span, now_ns), 0.0), 1.0)
        # Until the first token the model only thinks, or queues.
        rects = [_rect(at, wide, fill), _rect(at, wide * waited, "model-wait")]
    return rects


def _more(span: Span, kind: str) -> Iterator[_Markup]:
    """Yield what a line holds when it is opened."""
    attributes = span.attributes
    if span.status_message:
        yield _tag("p", span.status_message, class_="error")
    blocks: tuple[tuple[str, str], ...] = (("Said", semconv.OI_OUTPUT),)
    if kind == "tool":
        blocks = (("Input", semconv.TOOL_ARGUMENTS), ("Output", semconv.TOOL_RESULT))
    elif kind == "turn":
        blocks = ()
    for title, name in blocks:
        block = _block(
            title, attributes.get(name), class_="thought" if kind == "thinking" else None
        )
        if block is not None:
            yield block
    if isinstance(diff := attributes.get(semconv.EDIT_DIFF), str):
        yield _tag("h4", "Diff")
        yield _diff(diff)
    for event in span.events:
        text = event.attributes.get(semconv.PROMPT_TEXT)
        block = _block(f"Said at {_clock(event.time_ns)}", text)
        if block is not None:
            yield block
    listed = [(name, value) for name, value in attributes.items() if not name.startswith(UNLISTED)]
    yield _tag("h4", "Attributes")
    yield _tag(
        "dl",
        _tag("dt", "began"),
        _tag("dd", f"{_moment(span.start_ns)}.{span.start_ns // 1_000_000 % 1000:03d}"),
        *(
            part
            for name, value in listed
            for part in (_tag("dt", name), _tag("dd", _short(_value(value), 2000)))
        ),
        _tag("dt", "span id"),
        _tag("dd", span.span_id),
    )


def _block(title: str, text: AttributeValue | None, class_: str | None = None) -> _Markup | None:
    if not isinstance(text, str) or not text:
        return None
    # What scrolls must be reached by keyboard too.
    pre = _tag("pre", _cut(text), class_=class_, tabindex="0")
    return _Markup(_tag("h4", title) + pre)


def _arguments(text: str) -> str:
    """Return what a tool was given for people to read, where it is a JSON object."""
    try:
        given = orjson.loads(text)
    except ValueError:
        return text
    if not isinstance(given, dict):
        return text
    lines = []
    for name, value in given.items():
        said = value if isinstance(value, str) else orjson.dumps(value).decode()
        lines.append(f"{name}:\n{said}" if "\n" in said else f"{name}: {said}")
    return "\n".join(lines)


def _diff(diff: str) -> _Markup:
    kinds = {"+": "added", "-": "removed", "@": "hunk"}
    lines = [
        _tag("span", line, class_=None if line.startswith(("+++", "---")) else kinds.get(line[:1]))
        for line in _cut(diff).split("\n")
    ]
    return _tag("pre", *lines, class_="diff", tabindex="0")


def _section(title: str, *children: _Child) -> _Markup:
    name = re.sub(r"[^a-z]+", "-", title.lower())
    return _tag("section", _tag("h2", title, id=name), *children, aria_labelledby=name)


def _svg(children: Sequence[_Markup], **attributes: str) -> _Markup:
    box = f"0 0 {SCALE} 10"
    return _tag("svg", *children, viewBox=box, preserveAspectRatio="none", **attributes)


def _rect(
    x: float, width: float, fill: str, *, y: float = 0, height: float = 10, title: str = ""
) -> _Markup:
    return _tag(
        "rect",
        _tag("title", title) if title else None,
        x=f"{x:.2f}",
        y=f"{y:.2f}",
        width=f"{max(width, 0):.2f}",
        height=f"{max(height, 0):.2f}",
        class_=f"fill-{fill}",
    )


VOID = {"meta"}


def _tag(name: str, /, *children: _Child, **attributes: str | None) -> _Markup:
    """Return an element. Children that are not our own markup become text."""
    written = "".join(
        f' {_attribute(key)}="{html.escape(_clean(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return _Markup(f"<{name}{written}>")
    return _Markup(f"<{name}{written}>{''.join(map(_inner, children))}</{name}>")


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _inner(child: _Child) -> str:
    if child is None:
        return ""
    if isinstance(child, _Markup):
        return child
    if isinstance(child, str):
        return html.escape(_clean(child))
    return "".join(map(_inner, child))


def _clean(text: str) -> str:
    """Return *text* without what no page may hold, and with what would reorder it made visible."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Cn"} else _named(c)
        for c in text
    )


def _named(character: str) -> str:
    # Joiners make emoji and some scripts; the others can make code look like other code.
    if character in "\u200c\u200d\u00ad\ufeff":
        return character
    unwritable = unicodedata.category(character) == "Cs" or character == "\x00"
    return "\ufffd" if unwritable else f"⟦U+{ord(character):04X}⟧"


def _value(value: AttributeValue) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _cut(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}… [cut: {len(text)} characters]"


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _number(number: int, name: str) -> str:
    return f"{number} {name if number == 1 else name + 's'}"


def _moment(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns / 1e9))


def _clock(time_ns: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time_ns / 1e9))


def _own(name: str) -> str:
    return (resources.files("tracebridge.views") / name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

"""What turns come to, one by one or summed: tokens, cost, lines, failures, and where time went.

What is not known is None, in sums as in rates: a call without a price makes no cost of zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from rich.cells import cell_len

from tracebridge import semconv
from tracebridge.model import Span, Status
from tracebridge.store import Store, TurnRow
from tracebridge.time_spent import time_spent
from tracebridge.tree import count, dollars, elapsed, folder, printable
from tracebridge.views.selection import Selection
from tracebridge.views.waterfall import fit

GROUPS = ("day", "project", "customer", "model", "tool", "agent", "session")
# What is summed up in one transaction.
TURNS_PER_STEP = 1000
SORTS = ("began", "took", "cost", "tokens", "calls", "tools", "lines")


@dataclass(slots=True, kw_only=True)
class Totals:
    """What a turn, or many, come to."""

    turns: int = 0
    failed_turns: int = 0
    calls: int = 0
    failed_calls: int = 0
    retries: int = 0
    tool_calls: int = 0
    failed_tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cost_usd: float | None = None
    unpriced_calls: int = 0
    lines_added: int = 0
    lines_removed: int = 0
    model_ns: int = 0
    tools_ns: int = 0
    human_ns: int = 0
    agent_ns: int = 0
    linked_exactly: int = 0
    linked_by_inference: int = 0
    told_by_transcript_alone: int = 0
    # Only where a group can have some: by agent, and in all.
    orphans: int = 0

    def add(self, other: Totals) -> None:
        for field in fields(other):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if theirs is not None:
                setattr(self, field.name, (mine or 0) + theirs)

    @property
    def cache_hit_rate(self) -> float | None:
        """Return which part of what the models were given came from their caches."""
        return _rate(self.cache_read_tokens, self.input_tokens)

    @property
    def link_rate(self) -> float | None:
        """Return which part of the gateway's calls found their turn."""
        linked = self.linked_exactly + self.linked_by_inference
        return _rate(linked, linked + self.orphans)

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "cache_hit_rate": self.cache_hit_rate,
            "failed_turns_rate": _rate(self.failed_turns, self.turns),
            "failed_calls_rate": _rate(self.failed_calls, self.calls),
            "failed_tool_calls_rate": _rate(self.failed_tool_calls, self.tool_calls),
            "retry_rate": _rate(self.retries, self.calls),
            "link_rate": self.link_rate,
        }


def totals_of(spans: Sequence[Span], now_ns: int) -> Totals:
    """Return what one turn comes to."""
    totals = Totals()
    for span in spans:
        kind = span.attributes.get(semconv.SPAN_TYPE)
        if kind == "turn":
            totals.turns = 1
            totals.failed_turns = int(span.status is Status.ERROR)
        elif kind == "llm":
            totals.add(_call_totals(span))
        elif kind == "tool":
            totals.tool_calls += 1
            totals.failed_tool_calls += int(span.status is Status.ERROR)
        elif kind == "edit":
            totals.lines_added += _number(span, semconv.EDIT_LINES_ADDED)
            totals.lines_removed += _number(span, semconv.EDIT_LINES_REMOVED)
    spent = time_spent(spans, now_ns)
    totals.add(Totals(**asdict(spent)))
    return totals


def summed(
    store: Store, selection: Selection, by: str, now_ns: int
) -> tuple[dict[str, Totals], Totals]:
    """Return what the selected turns come to by *by*, one of GROUPS, and in all."""
    _sum_up(store, now_ns)
    columns = [field.name for field in fields(Totals)]
    groups, everything = (
        {
            name: Totals(**totals)
            for name, totals in store.sums(
                each,
                columns,
                agent=selection.agent,
                session_prefix=selection.session or "",
                project=selection.project,
                errors=selection.errors,
                since_ns=selection.since_ns,
                until_ns=selection.until_ns,
            ).items()
        }
        for each in (by, "")
    )
    return groups, everything.get("", Totals())


def _sum_up(store: Store, now_ns: int) -> None:
    """Have the store remember what its turns come to, as far as it does not know."""
    revision = store.revision()
    waiting = store.not_summed_up()
    for first in range(0, len(waiting), TURNS_PER_STEP):
        # In steps: a watcher may be waiting.
        with store.transaction():
            for trace_id in waiting[first : first + TURNS_PER_STEP]:
                store.put_sums(trace_id, _sums(store.spans(trace_id), now_ns))
    if waiting:
        with store.transaction():
            store.summed_up_to(revision)


def _sums(spans: Sequence[Span], now_ns: int) -> Iterator[dict[str, Any]]:
    root = next((span for span in spans if span.parent_span_id is None), None)
    parts = {
        "turn": {folder(root) if root is not None else "": totals_of(spans, now_ns)},
        "model": _by_span(spans, "llm", semconv.OI_MODEL, _call_totals),
        "tool": _by_span(spans, "tool", semconv.TOOL_NAME, partial(_tool_totals, spans=spans)),
    }
    same = {
        "cwd": root.attributes.get(semconv.CWD) if root is not None else None,
        "has_errors": any(span.status is Status.ERROR for span in spans),
    }
    for kind, groups in parts.items():
        for name, totals in groups.items():
            yield {"kind": kind, "name": name, **same, **asdict(totals)}


def stats_lines(groups: Mapping[str, Totals], everything: Totals, by: str, width: int) -> list[str]:
    """Return the sums as a table no wider than *width*; columns that do not fit are left out."""
    columns: list[tuple[str, Callable[[Totals], str]]] = [
        ("turns", lambda t: str(t.turns or "")),
        ("calls", lambda t: str(t.calls or "")),
        ("in", lambda t: count(t.input_tokens) if t.calls else ""),
        ("out", lambda t: count(t.output_tokens) if t.calls else ""),
        ("cost", _cost_text),
        ("cached", lambda t: percent(t.cache_hit_rate)),
        ("lines", lambda t: _lines_text(t.lines_added, t.lines_removed)),
        ("linked", lambda t: percent(t.link_rate)),
        ("model time", lambda t: elapsed(t.model_ns) if t.model_ns else ""),
        ("tool time", lambda t: elapsed(t.tools_ns) if t.tools_ns else ""),
        ("your time", lambda t: elapsed(t.human_ns) if t.human_ns else ""),
        ("failed", lambda t: percent(_rate(t.failed_turns, t.turns))),
        ("calls failed", lambda t: percent(_rate(t.failed_calls, t.calls))),
        ("retries", lambda t: percent(_rate(t.retries, t.calls))),
        ("tool calls", lambda t: str(t.tool_calls or "")),
        ("tools failed", lambda t: percent(_rate(t.failed_tool_calls, t.tool_calls))),
        ("orphans", lambda t: str(t.orphans or "")),
    ]
    if by == "tool":
        columns = [columns[at] for at in (14, 15, 6, 9, 10, 0)]
    order = sorted(groups, key=lambda name: name if by == "day" else (-groups[name].turns, name))
    rows = [(name, groups[name]) for name in order]
    if len(rows) != 1:
        rows.append(("all", everything))
    cells = [[printable(name), *(text(totals) for _, text in columns)] for name, totals in rows]
    return table([by, *(title for title, _ in columns)], cells, width)


def add_orphans(
    groups: dict[str, Totals],
    everything: Totals,
    by: str,
    orphans: Mapping[str, int],
    agent: str | None,
) -> None:
    """Count the calls that no turn claims, where a group can have some: by agent, and in all."""
    for name, number in orphans.items():
        if agent not in (None, name):
            continue
        everything.orphans += number
        if by == "agent":
            groups.setdefault(name or "(unknown)", Totals()).orphans += number


def time_spent_line(spans: Sequence[Span], now_ns: int) -> str:
    """Return where a turn's time went, the most first."""
    spent = asdict(time_spent(spans, now_ns))
    names = {"model_ns": "model", "tools_ns": "tools", "human_ns": "you", "agent_ns": "agent"}
    whole = sum(spent.values())
    parts = sorted(((ns, names[field]) for field, ns in spent.items() if ns), reverse=True)
    told = (f"{name} {elapsed(ns)} ({share(ns, whole)})" for ns, name in parts)
    return "time went to: " + ", ".join(told) if parts else ""


def turn_cells(row: TurnRow, spans: Sequence[Span], now_ns: int) -> list[str]:
    """Return a turn as the cells of `turns`; TURN_TITLES says what they are."""
    totals = totals_of(spans, now_ns)
    root = next((span for span in spans if span.parent_span_id is None), None)
    took = (row.end_ns if row.end_ns is not None else now_ns) - row.start_ns
    return [
        row.trace_id[:8],
        _moment(row.start_ns, now_ns),
        elapsed(max(took, 0)),
        row.agent,
        row.outcome or row.state,
        " ".join(printable(row.prompt or "").split())[:200],
        _cost_text(totals),
        f"{count(totals.input_tokens)} → {count(totals.output_tokens)}" if totals.calls else "",
        _lines_text(totals.lines_added, totals.lines_removed),
        str(totals.calls or ""),
        str(totals.tool_calls or ""),
        percent(totals.cache_hit_rate),
        printable(folder(root)) if root is not None else "",
        row.customer_id or "",
    ]


TURN_TITLES = (
    *("turn", "began", "took", "agent", "outcome", "prompt", "cost", "tokens", "lines"),
    *("calls", "tools", "cached", "project", "customer"),
)


def sort_key(by: str, now_ns: int) -> Callable[[tuple[TurnRow, Sequence[Span]]], float]:
    """Return by what to sort turns, the largest last; *by* is one of SORTS."""

    def key(turn: tuple[TurnRow, Sequence[Span]]) -> float:
        row, spans = turn
        totals = totals_of(spans, now_ns)
        return {
            "began": row.start_ns,
            "took": (row.end_ns or now_ns) - row.start_ns,
            "cost": totals.cost_usd or 0,
            "tokens": totals.input_tokens + totals.output_tokens,
            "calls": totals.calls,
            "tools": totals.tool_calls,
            "lines": totals.lines_added + totals.lines_removed,
        }[by]

    return key


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, last: str = ""
) -> list[str]:
    """Return rows under titles in aligned columns; those that do not fit are left out.

    Numbers stand to the right. The column called *last* moves to the end and takes what is left.
    """
    widths = [
        max(cell_len(title), *(cell_len(row[at]) for row in rows), 0)
        for at, title in enumerate(titles)
    ]
    widths[0] = min(widths[0], max(width // 3, 12))
    empty = [bool(rows) and all(not row[at] for row in rows) for at in range(len(titles))]
    chosen: list[int] = []
    room = width - (max(width // 5, 14) if last else 0)
    for at, title in enumerate(titles):
        if title != last and not empty[at] and widths[at] + 2 * bool(chosen) <= room:
            room -= widths[at] + 2 * bool(chosen)
            chosen.append(at)
    lines = []
    for row in [titles, *rows]:
        cells = [
            fit(row[at], widths[at])
            if at == 0 or not _is_number_column(rows, at)
            else " " * (widths[at] - cell_len(row[at])) + row[at]
            for at in chosen
        ]
        if last:
            rest = width - sum(widths[at] + 2 for at in chosen)
            cells.append(fit(row[titles.index(last)], max(rest, 0)))
        lines.append("  ".join(cells).rstrip())
    return lines


def percent(rate: float | None) -> str:
    if rate is None:
        return ""
    # 99.96 % of all calls linked must not read as all of them.
    return f"{rate:.0%}" if rate in (0, 1) else f"{min(max(rate, 0.001), 0.999):.1%}"


def share(part: int, whole: int) -> str:
    """Return a part of a whole as percents; little is not nothing."""
    return "<1%" if 0 < part < whole / 200 else f"{part / whole:.0%}"


def _is_number_column(rows: Sequence[Sequence[str]], at: int) -> bool:
    return all(row[at][:1].isdigit() or row[at][:1] in "$+-<≥" for row in rows) and not any(
        row[at].count("-") == 2 for row in rows
    )


def _call_totals(span: Span) -> Totals:
    totals = Totals(calls=1, failed_calls=int(span.status is Status.ERROR))
    totals.retries = int(_number(span, semconv.LLM_ATTEMPT) > 1)
    totals.input_tokens = _number(span, semconv.INPUT_TOKENS)
    totals.output_tokens = _number(span, semconv.OUTPUT_TOKENS)
    totals.cache_read_tokens = _number(span, semconv.CACHE_READ_TOKENS)
    cost = span.attributes.get(semconv.OI_COST_TOTAL)
    if isinstance(cost, int | float):
        totals.cost_usd = float(cost)
    elif semconv.INPUT_TOKENS in span.attributes:
        totals.unpriced_calls = 1
    if span.attributes.get(semconv.LLM_SOURCE) == "transcript":
        totals.told_by_transcript_alone = 1
    elif span.attributes.get(semconv.LINK_CONFIDENCE) == "inferred":
        totals.linked_by_inference = 1
    elif semconv.LINK_EVIDENCE in span.attributes:
        totals.linked_exactly = 1
    return totals


def _tool_totals(span: Span, spans: Sequence[Span]) -> Totals:
    totals = Totals(tool_calls=1, failed_tool_calls=int(span.status is Status.ERROR))
    waited = 0
    for child in spans:
        if child.parent_span_id == span.span_id:
            kind = child.attributes.get(semconv.SPAN_TYPE)
            if kind == "permission" and child.end_ns is not None:
                waited += child.end_ns - child.start_ns
            elif kind == "edit":
                totals.lines_added += _number(child, semconv.EDIT_LINES_ADDED)
                totals.lines_removed += _number(child, semconv.EDIT_LINES_REMOVED)
    totals.human_ns = waited
    if span.end_ns is not None:
        totals.tools_ns = max(span.end_ns - span.start_ns - waited, 0)
    return totals


def _by_span(
    spans: Sequence[Span], kind: str, name: str, totals_of_span: Callable[[Span], Totals]
) -> dict[str, Totals]:
    groups: dict[str, Totals] = {}
    for span in spans:
        if span.attributes.get(semconv.SPAN_TYPE) == kind:
            group = groups.setdefault(str(span.attributes.get(name, "unknown")), Totals(turns=1))
            group.add(totals_of_span(span))
            if kind == "llm" and span.end_ns is not None:
                group.model_ns += span.end_ns - span.start_ns
    return groups


def _number(span: Span, name: str) -> int:
    value = span.attributes.get(name)
    return value if isinstance(value, int) else 0


def _rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _cost_text(totals: Totals) -> str:
    if totals.cost_usd is None:
        return ""
    return ("≥ " if totals.unpriced_calls else "") + dollars(totals.cost_usd)


def _moment(time_ns: int, now_ns: int) -> str:
    """Return a moment to the second, with its year if it is another one than now."""
    then, now = time.localtime(time_ns / 1e9), time.localtime(now_ns / 1e9)
    return time.strftime("%m-%d %H:%M:%S" if then[0] == now[0] else "%Y-%m-%d %H:%M:%S", then)


def _lines_text(added: int, removed: int) -> str:
    return f"+{added} -{removed}" if added or removed else ""

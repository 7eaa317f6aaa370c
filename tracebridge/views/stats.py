"""What turns come to, one by one or summed, as tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from rich.cells import cell_len

from tracebridge.model import Span
from tracebridge.store import Store, TurnRow
from tracebridge.time_spent import time_spent
from tracebridge.totals import TOTALS, Totals, rate, sums_of, totals_of
from tracebridge.tree import count, dollars, elapsed, folder, printable
from tracebridge.views.selection import Selection
from tracebridge.views.waterfall import fit

GROUPS = ("day", "project", "customer", "model", "tool", "agent", "session")
# What is summed up in one transaction.
TURNS_PER_STEP = 1000
SORTS = ("began", "took", "cost", "tokens", "calls", "tools", "lines")


def summed(
    store: Store, selection: Selection, by: str, now_ns: int
) -> tuple[dict[str, Totals], Totals]:
    """Return what the selected turns come to by *by*, one of GROUPS, and in all."""
    _sum_up(store, now_ns)
    groups, everything = (
        {
            name: Totals(**totals)
            for name, totals in store.sums(
                each,
                TOTALS,
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
                store.put_sums(trace_id, sums_of(store.spans(trace_id), now_ns))
    if store.summed_up_to() < revision:
        with store.transaction():
            store.note_summed_up(revision)


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
        ("failed", lambda t: percent(rate(t.failed_turns, t.turns))),
        ("calls failed", lambda t: percent(rate(t.failed_calls, t.calls))),
        ("retries", lambda t: percent(rate(t.retries, t.calls))),
        ("tool calls", lambda t: str(t.tool_calls or "")),
        ("tools failed", lambda t: percent(rate(t.failed_tool_calls, t.tool_calls))),
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

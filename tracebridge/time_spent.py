"""Where the time of a turn went: to the model, to tools, to its human, to the agent itself. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tracebridge import semconv
from tracebridge.model import Span


@dataclass(slots=True, kw_only=True)
class TimeSpent:
    """A turn's time, each moment of it once: the parts sum up to the whole."""

    # At least one call at the model was under way.
    model_ns: int = 0
    # No call was, but a tool worked.
    tools_ns: int = 0
    # Neither was, and somebody was asked for permission.
    human_ns: int = 0
    # What is left is the agent's own.
    agent_ns: int = 0


def time_spent(spans: Sequence[Span], now_ns: int) -> TimeSpent:
    """Return where the time of a turn went; of an open one, up to *now_ns*."""
    root = next((span for span in spans if span.parent_span_id is None), None)
    if root is None:
        return TimeSpent()
    begin_ns, end_ns = _interval(root, now_ns)
    by_id = {span.span_id: span for span in spans}
    # Moments at which something begins (+1) or ends (-1).
    steps: list[tuple[int, str, int]] = []
    for span in spans:
        first_ns, last_ns = _interval(span, now_ns)
        kind = span.attributes.get(semconv.SPAN_TYPE)
        work = {"llm": "model", "tool": "tools", "permission": "human"}.get(str(kind))
        if work is not None:
            steps += _steps(first_ns, last_ns, work, 1)
        parent = by_id.get(span.parent_span_id or "")
        inside_tool = parent is not None and parent.attributes.get(semconv.SPAN_TYPE) == "tool"
        if parent is not None and inside_tool and kind in {"permission", "subagent"}:
            # The tool itself does nothing meanwhile.
            outer = _interval(parent, now_ns)
            steps += _steps(max(first_ns, outer[0]), min(last_ns, outer[1]), "tools", -1)
    spent = TimeSpent()
    active = {"model": 0, "tools": 0, "human": 0}
    at_ns = begin_ns
    for moment_ns, work, step in [*sorted(steps), (end_ns, "agent", 0)]:
        upto_ns = min(max(moment_ns, begin_ns), end_ns)
        who = next((name for name, number in active.items() if number > 0), "agent")
        field = f"{who}_ns"
        setattr(spent, field, getattr(spent, field) + upto_ns - at_ns)
        at_ns = upto_ns
        if work in active:
            active[work] += step
    return spent


def _interval(span: Span, now_ns: int) -> tuple[int, int]:
    end_ns = now_ns if span.end_ns is None else span.end_ns
    return span.start_ns, max(end_ns, span.start_ns)


def _steps(first_ns: int, last_ns: int, work: str, step: int) -> Iterator[tuple[int, str, int]]:
    if last_ns > first_ns:
        yield first_ns, work, step
        yield last_ns, work, -step

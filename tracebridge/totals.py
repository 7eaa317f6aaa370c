"""Spans in, what they come to out: tokens, cost, lines, failures, and where time went. Pure.

What is not known is None, in sums as in rates: a call without a price makes no cost of zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from tracebridge import semconv
from tracebridge.model import Span, Status
from tracebridge.time_spent import time_spent
from tracebridge.tree import folder


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
        for name in TOTALS:
            mine, theirs = getattr(self, name), getattr(other, name)
            if theirs is not None:
                setattr(self, name, (mine or 0) + theirs)

    @property
    def cache_hit_rate(self) -> float | None:
        """Return which part of what the models were given came from their caches."""
        return rate(self.cache_read_tokens, self.input_tokens)

    @property
    def link_rate(self) -> float | None:
        """Return which part of the gateway's calls found their turn."""
        linked = self.linked_exactly + self.linked_by_inference
        return rate(linked, linked + self.orphans)

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "cache_hit_rate": self.cache_hit_rate,
            "failed_turns_rate": rate(self.failed_turns, self.turns),
            "failed_calls_rate": rate(self.failed_calls, self.calls),
            "failed_tool_calls_rate": rate(self.failed_tool_calls, self.tool_calls),
            "retry_rate": rate(self.retries, self.calls),
            "link_rate": self.link_rate,
        }


TOTALS = tuple(field.name for field in fields(Totals))


def totals_of(spans: Sequence[Span], now_ns: int) -> Totals:
    """Return what one turn comes to; of an open one, up to *now_ns*."""
    totals = Totals()
    for span in spans:
        kind = span.attributes.get(semconv.SPAN_TYPE)
        if kind == "turn":
            totals.turns = 1
            totals.failed_turns = int(span.status is Status.ERROR)
        elif kind == "llm":
            _count_call(totals, span)
        elif kind == "tool":
            _count_tool_call(totals, span)
        elif kind == "edit":
            _count_edit(totals, span)
    spent = time_spent(spans, now_ns)
    totals.model_ns += spent.model_ns
    totals.tools_ns += spent.tools_ns
    totals.human_ns += spent.human_ns
    totals.agent_ns += spent.agent_ns
    return totals


def sums_of(spans: Sequence[Span], now_ns: int) -> Iterator[dict[str, Any]]:
    """Yield what the store keeps of a turn: the whole of it, and each of its models and tools."""
    root = next((span for span in spans if span.parent_span_id is None), None)
    cwd = root.attributes.get(semconv.CWD) if root is not None else None
    has_errors = any(span.status is Status.ERROR for span in spans)
    parts: Mapping[str, Mapping[str, Totals]] = {
        "turn": {folder(root) if root is not None else "": totals_of(spans, now_ns)},
        "model": _by_model(spans),
        "tool": _by_tool(spans),
    }
    for kind, groups in parts.items():
        for name, totals in groups.items():
            known = {each: getattr(totals, each) for each in TOTALS}
            yield {"kind": kind, "name": name, "cwd": cwd, "has_errors": has_errors, **known}


def rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _by_model(spans: Sequence[Span]) -> Mapping[str, Totals]:
    models: defaultdict[str, Totals] = defaultdict(partial(Totals, turns=1))
    for span in spans:
        if span.attributes.get(semconv.SPAN_TYPE) == "llm":
            totals = models[str(span.attributes.get(semconv.OI_MODEL, "unknown"))]
            _count_call(totals, span)
            if span.end_ns is not None:
                totals.model_ns += span.end_ns - span.start_ns
    return models


def _by_tool(spans: Sequence[Span]) -> Mapping[str, Totals]:
    tools: defaultdict[str, Totals] = defaultdict(partial(Totals, turns=1))
    children = defaultdict(list)
    for span in spans:
        children[span.parent_span_id].append(span)
    for span in spans:
        if span.attributes.get(semconv.SPAN_TYPE) != "tool":
            continue
        totals = tools[str(span.attributes.get(semconv.TOOL_NAME, "unknown"))]
        _count_tool_call(totals, span)
        waited_ns = 0
        for child in children[span.span_id]:
            kind = child.attributes.get(semconv.SPAN_TYPE)
            if kind == "permission" and child.end_ns is not None:
                waited_ns += child.end_ns - child.start_ns
            elif kind == "edit":
                _count_edit(totals, child)
        totals.human_ns += waited_ns
        if span.end_ns is not None:
            totals.tools_ns += max(span.end_ns - span.start_ns - waited_ns, 0)
    return tools


def _count_call(totals: Totals, span: Span) -> None:
    attributes = span.attributes
    totals.calls += 1
    totals.failed_calls += span.status is Status.ERROR
    totals.retries += _number(span, semconv.LLM_ATTEMPT) > 1
    totals.input_tokens += _number(span, semconv.INPUT_TOKENS)
    totals.output_tokens += _number(span, semconv.OUTPUT_TOKENS)
    totals.cache_read_tokens += _number(span, semconv.CACHE_READ_TOKENS)
    cost = attributes.get(semconv.OI_COST_TOTAL)
    if isinstance(cost, int | float):
        totals.cost_usd = (totals.cost_usd or 0) + float(cost)
    elif semconv.INPUT_TOKENS in attributes:
        totals.unpriced_calls += 1
    if attributes.get(semconv.LLM_SOURCE) == "transcript":
        totals.told_by_transcript_alone += 1
    elif attributes.get(semconv.LINK_CONFIDENCE) == "inferred":
        totals.linked_by_inference += 1
    elif semconv.LINK_EVIDENCE in attributes:
        totals.linked_exactly += 1


def _count_tool_call(totals: Totals, span: Span) -> None:
    totals.tool_calls += 1
    totals.failed_tool_calls += span.status is Status.ERROR


def _count_edit(totals: Totals, span: Span) -> None:
    totals.lines_added += _number(span, semconv.EDIT_LINES_ADDED)
    totals.lines_removed += _number(span, semconv.EDIT_LINES_REMOVED)


def _number(span: Span, name: str) -> int:
    value = span.attributes.get(name)
    return value if isinstance(value, int) else 0

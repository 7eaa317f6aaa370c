"""Spans as a tree of text lines: what `show`, `tail`, `demo` and the golden tests print. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from pathlib import PurePath
from typing import Any

import orjson

from tracebridge import semconv
from tracebridge.model import AttributeValue, Span, Status

# So many failed attempts in a row are one line.
MANY_ATTEMPTS = 3


class Tone(StrEnum):
    """How a fact is meant; who prints it chooses the colour."""

    PLAIN = "plain"
    QUIET = "quiet"
    ERROR = "error"
    WAIT = "wait"
    INFERRED = "inferred"


@dataclass(frozen=True, slots=True)
class Fact:
    """What a line says of its span; *short* is for narrow places, empty where it may be left out."""

    text: str
    short: str = ""
    tone: Tone = Tone.QUIET
    # Somebody's words: better their beginning than nothing.
    may_be_cut: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One span in its place, or several attempts that failed alike, from first to last."""

    span: Span
    # "├─ " and the like.
    branch: str
    attempts: int = 1
    # Where the turn worked: paths below need not say so.
    cwd: str = ""

    @property
    def facts(self) -> tuple[Fact, ...]:
        """Return what is worth saying of it, the most important first."""
        return facts(self.span, self.cwd)

    @property
    def label(self) -> str:
        times = f" x{self.attempts}" if self.attempts > 1 else ""
        return label(self.span) + times


def tree(spans: Sequence[Span], *, fold_attempts: bool = False) -> list[Line]:
    """Return the spans depth first, siblings by start; those whose parent is missing come last.

    *fold_attempts* makes one line of many failed attempts in a row.
    """
    known = {span.span_id for span in spans}
    children: dict[str | None, list[Span]] = defaultdict(list)
    for span in spans:
        parent = span.parent_span_id if span.parent_span_id in known else None
        children[parent].append(span)
    counts: dict[str, int] = {}
    for parent, siblings in children.items():
        siblings.sort(key=lambda span: (span.start_ns, span.end_ns or 0, span.name, span.span_id))
        if fold_attempts:
            children[parent] = list(_folded(siblings, children, counts))
    cwd = next((cwd for span in spans if (cwd := _text(span.attributes, semconv.CWD))), "")
    return list(_lines(children, counts, cwd))


def _folded(
    siblings: Sequence[Span], children: Mapping[str | None, Sequence[Span]], counts: dict[str, int]
) -> Iterator[Span]:
    for alike, group in groupby(siblings, _failure):
        attempts = list(group)
        if alike is None or len(attempts) < MANY_ATTEMPTS:
            yield from attempts
            continue
        # A cut stream may have told its thoughts.
        if any(attempt.span_id in children for attempt in attempts):
            yield from attempts
            continue
        counts[attempts[0].span_id] = len(attempts)
        yield replace(attempts[0], end_ns=attempts[-1].end_ns)


def _failure(span: Span) -> tuple[Any, ...] | None:
    """Return what makes failed attempts alike; None for all else."""
    if span.status is not Status.ERROR or span.attributes.get(semconv.SPAN_TYPE) != "llm":
        return None
    return (span.name, span.attributes.get(semconv.ERROR_TYPE))


def _lines(
    children: Mapping[str | None, Sequence[Span]],
    counts: Mapping[str, int],
    cwd: str,
    parent: str | None = None,
    indent: str = "",
) -> Iterator[Line]:
    siblings = children.get(parent, ())
    for span in siblings:
        attempts = counts.get(span.span_id, 1)
        last = span is siblings[-1]
        branch = "" if parent is None else indent + ("└─ " if last else "├─ ")
        below = "" if parent is None else indent + ("   " if last else "│  ")
        yield Line(span, branch, attempts, cwd)
        yield from _lines(children, counts, cwd, span.span_id, below)


def label(span: Span) -> str:
    """Return what people call the span; its name in the trace is longer."""
    kind = span.attributes.get(semconv.SPAN_TYPE)
    _, _, rest = span.name.partition(" ")
    if kind == "turn":
        place = folder(span)
        name = _text(span.attributes, semconv.AGENT_NAME) or rest or span.name
        if not span.name.startswith("invoke_agent "):
            name = f"{name}: {span.name}"
        return f"{name} · {place}" if place else name
    words = {"tool": "", "edit": "edit ", "permission": "wait ", "subagent": "agent "}
    return words[kind] + rest if isinstance(kind, str) and kind in words and rest else span.name


def folder(span: Span) -> str:
    """Return the project that a turn worked on, by its id or its folder's name."""
    project = _text(span.attributes, semconv.PROJECT_ID)
    return project or PurePath(_text(span.attributes, semconv.CWD)).name


def facts(span: Span, cwd: str = "") -> tuple[Fact, ...]:
    """Return what one line says of *span* behind its name and times; paths below *cwd* are cut."""
    attributes = span.attributes
    found = [
        _outcome(span),
        _decision(attributes),
        _lines_changed(attributes),
        _tokens(attributes),
        _cost(attributes),
        _evidence(attributes),
        _cached(attributes),
        _first_token(attributes),
        _attempt(attributes),
        _said(span, cwd),
    ]
    return tuple(fact for fact in found if fact is not None)


def duration(span: Span, now_ns: int) -> str:
    """Return how long the span took, or has taken so far."""
    return elapsed(span_ns(span, now_ns))


def span_ns(span: Span, now_ns: int) -> int:
    """Return how long the span took, or has taken so far, and never less than nothing."""
    return max((now_ns if span.end_ns is None else span.end_ns) - span.start_ns, 0)


def elapsed(time_ns: int) -> str:
    seconds = time_ns / 1e9
    # Where rounding would give 1000 ms or 60.0 s, the next unit is due.
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def dollars(amount: float) -> str:
    """Return an amount with the digits that tell something: cents, or less where there are none."""
    if amount == 0 or amount >= 1:
        return f"${amount:,.2f}"
    return (
        f"${amount:.3f}" if amount >= 0.01 else f"${amount:.4f}" if amount >= 0.0001 else "<$0.0001"
    )


def count(number: int) -> str:
    """Return a token count short enough for a column."""
    if number < 10_000:
        return str(number)
    return f"{number / 1000:.1f}k" if number < 999_950 else f"{number / 1_000_000:.1f}M"


def printable(text: str) -> str:
    """Return *text* on one line and without what would steer a terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)


def telling_argument(arguments: str) -> str:
    """Return what a tool was told to do: the first text among its arguments, whoever the vendor."""
    try:
        given = orjson.loads(arguments)
    except ValueError:
        return arguments
    values = given.values() if isinstance(given, dict) else [given]
    for value in values:
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
            return " ".join(value)
    return ""


def _outcome(span: Span) -> Fact | None:
    if span.status is Status.ERROR:
        text = f"ERROR {span.attributes.get(semconv.ERROR_TYPE) or ''}".strip()
        return Fact(text, text, Tone.ERROR)
    outcome = _text(span.attributes, semconv.TURN_OUTCOME)
    return Fact(outcome, outcome, Tone.WAIT) if outcome not in {"", "completed"} else None


def _decision(attributes: Mapping[str, AttributeValue]) -> Fact | None:
    decision = _text(attributes, semconv.PERMISSION_DECISION)
    if decision:
        return Fact(decision, decision, Tone.WAIT)
    asking = attributes.get(semconv.SPAN_TYPE) == "permission"
    return Fact("waiting for you", "waiting for you", Tone.WAIT) if asking else None


def _tokens(attributes: Mapping[str, AttributeValue]) -> Fact | None:
    given, made, _ = _counts(attributes)
    if given is None or made is None:
        return None
    text = f"{count(given)} → {count(made)} tok"
    return Fact(text, text, Tone.PLAIN)


def _cached(attributes: Mapping[str, AttributeValue]) -> Fact | None:
    given, _, cached = _counts(attributes)
    return Fact(f"{100 * cached // given}% cached") if given and cached else None


def _counts(attributes: Mapping[str, AttributeValue]) -> tuple[int | None, ...]:
    """Return tokens in, out and from the cache, of a call or of the whole turn."""
    total = semconv.TURN_INPUT_TOKENS in attributes
    names = (
        (semconv.TURN_INPUT_TOKENS, semconv.TURN_OUTPUT_TOKENS, semconv.TURN_CACHE_READ_TOKENS)
        if total
        else (semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS, semconv.CACHE_READ_TOKENS)
    )
    values = (attributes.get(name) for name in names)
    return tuple(value if isinstance(value, int) else None for value in values)


def _cost(attributes: Mapping[str, AttributeValue]) -> Fact | None:
    cost = attributes.get(semconv.TURN_COST, attributes.get(semconv.OI_COST_TOTAL))
    if not isinstance(cost, int | float):
        return None
    # Calls without a price make the sum a lower bound.
    at_least = "≥ " if attributes.get(semconv.TURN_UNPRICED_CALLS) else ""
    text = at_least + dollars(cost)
    return Fact(text, text, Tone.PLAIN)


def _first_token(attributes: Mapping[str, AttributeValue]) -> Fact | None:
    seconds = attributes.get(semconv.TIME_TO_FIRST_CHUNK)
    if not isinstance(seconds, int | float):
        return None
    return Fact(f"ttft {elapsed(round(seconds * 1e9))}")


def _lines_changed(attributes: Mapping[str, AttributeValue]) -> Fact | None:
    added = attributes.get(semconv.EDIT_LINES_ADDED, attributes.get(semconv.TURN_LINES_ADDED))
    removed = attributes.get(semconv.EDIT_LINES_REMOVED, attributes.get(semconv.TURN_LINES_REMOVED))
    if added is None or removed is None:
        return None
    return Fact(f"+{added} -{removed}", f"+{added} -{removed}", Tone.PLAIN)


def _attempt(attributes: Mapping[str, AttributeValue]) -> Fact | None:
    attempt = attributes.get(semconv.LLM_ATTEMPT)
    if not isinstance(attempt, int) or attempt < 2:
        return None
    return Fact(f"attempt {attempt}", f"#{attempt}", Tone.WAIT)


def _evidence(attributes: Mapping[str, AttributeValue]) -> Fact | None:
    """Return by what a call is linked: ⇄ exactly, ≈ inferred, or told by the agent alone."""
    evidence = _text(attributes, semconv.LINK_EVIDENCE)
    if not evidence:
        return None
    if attributes.get(semconv.LINK_CONFIDENCE) == "inferred":
        return Fact(f"≈ {evidence} (inferred)", "≈", Tone.INFERRED)
    if _text(attributes, semconv.LLM_SOURCE) == "transcript":
        return Fact("transcript")
    return Fact(f"⇄ {evidence}", "⇄")


def _said(span: Span, cwd: str) -> Fact | None:
    if span.attributes.get(semconv.SPAN_TYPE) == "tool":
        text = telling_argument(_text(span.attributes, semconv.TOOL_ARGUMENTS))
    elif span.attributes.get(semconv.SPAN_TYPE) == "subagent":
        text = _text(span.attributes, semconv.SUBAGENT_DESCRIPTION)
    else:
        return None
    text = " ".join(text[:500].split()).replace(f"{cwd}/" if cwd else "\0", "")
    return Fact(text, text, may_be_cut=True) if text else None


def _text(attributes: Mapping[str, AttributeValue], name: str) -> str:
    value = attributes.get(name)
    return value if isinstance(value, str) else ""

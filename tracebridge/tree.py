"""Spans as a tree of text lines: what `show`, `tail`, `demo` and the golden tests print. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tracebridge import semconv
from tracebridge.model import AttributeValue, Span, Status


@dataclass(frozen=True, slots=True)
class Line:
    """One span in its place."""

    span: Span
    # "├─ " and the like.
    branch: str
    # What is worth saying of it, in the order of the columns.
    facts: tuple[str, ...]


def tree(spans: Sequence[Span]) -> list[Line]:
    """Return the spans depth first, siblings by start; those whose parent is missing come last."""
    known = {span.span_id for span in spans}
    children: dict[str | None, list[Span]] = defaultdict(list)
    for span in spans:
        parent = span.parent_span_id if span.parent_span_id in known else None
        children[parent].append(span)
    for siblings in children.values():
        siblings.sort(key=lambda span: (span.start_ns, span.end_ns or 0, span.name, span.span_id))
    return list(_lines(children, None, ""))


def _lines(
    children: Mapping[str | None, Sequence[Span]], parent: str | None, indent: str
) -> Iterator[Line]:
    siblings = children.get(parent, ())
    for span in siblings:
        if parent is None:
            yield Line(span, "", facts(span))
            yield from _lines(children, span.span_id, "")
        else:
            last = span is siblings[-1]
            yield Line(span, indent + ("└─ " if last else "├─ "), facts(span))
            yield from _lines(children, span.span_id, indent + ("   " if last else "│  "))


def facts(span: Span) -> tuple[str, ...]:
    """Return what one line says of *span* behind its name and times."""
    attributes = span.attributes
    found = [
        _outcome(span),
        _tokens(attributes),
        _first_token(attributes),
        _lines_changed(attributes),
        _text(attributes, semconv.PERMISSION_DECISION),
        _attempt(attributes),
        _evidence(attributes),
    ]
    return tuple(fact for fact in found if fact)


def duration(span: Span, now_ns: int) -> str:
    """Return how long the span took, or has taken so far."""
    elapsed_ns = (span.end_ns if span.end_ns is not None else max(now_ns, span.start_ns)) - (
        span.start_ns
    )
    seconds = elapsed_ns / 1e9
    # Where rounding would give 1000 ms or 60.0 s, the next unit is due.
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _outcome(span: Span) -> str:
    error_type = span.attributes.get(semconv.ERROR_TYPE)
    if span.status is Status.ERROR:
        return f"ERROR {error_type or ''}".strip()
    outcome = _text(span.attributes, semconv.TURN_OUTCOME)
    return outcome if outcome not in {"", "completed"} else ""


def _tokens(attributes: Mapping[str, AttributeValue]) -> str:
    """Return tokens as in → out, with what came from the cache."""
    total = semconv.TURN_INPUT_TOKENS in attributes
    names = (
        (semconv.TURN_INPUT_TOKENS, semconv.TURN_OUTPUT_TOKENS, semconv.TURN_CACHE_READ_TOKENS)
        if total
        else (semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS, semconv.CACHE_READ_TOKENS)
    )
    given, made, cached = (attributes.get(name) for name in names)
    if not isinstance(given, int) or not isinstance(made, int):
        return ""
    from_cache = f" ({count(cached)} cached)" if isinstance(cached, int) and cached else ""
    return f"{count(given)}{from_cache} → {count(made)} tok"


def _first_token(attributes: Mapping[str, AttributeValue]) -> str:
    seconds = attributes.get(semconv.TIME_TO_FIRST_CHUNK)
    if not isinstance(seconds, float):
        return ""
    return f"ttft {seconds * 1000:.0f} ms" if seconds < 1 else f"ttft {seconds:.1f} s"


def _lines_changed(attributes: Mapping[str, AttributeValue]) -> str:
    added = attributes.get(semconv.EDIT_LINES_ADDED)
    removed = attributes.get(semconv.EDIT_LINES_REMOVED)
    return f"+{added} -{removed}" if added is not None and removed is not None else ""


def _attempt(attributes: Mapping[str, AttributeValue]) -> str:
    attempt = attributes.get(semconv.LLM_ATTEMPT)
    return f"attempt {attempt}" if isinstance(attempt, int) and attempt > 1 else ""


def _evidence(attributes: Mapping[str, AttributeValue]) -> str:
    evidence = _text(attributes, semconv.LINK_EVIDENCE)
    if not evidence:
        return ""
    source = _text(attributes, semconv.LLM_SOURCE)
    inferred = " (inferred)" if attributes.get(semconv.LINK_CONFIDENCE) == "inferred" else ""
    return f"{source}: {evidence}{inferred}"


def count(number: int) -> str:
    """Return a token count short enough for a column."""
    if number < 10_000:
        return str(number)
    return f"{number / 1000:.1f}k" if number < 999_950 else f"{number / 1_000_000:.1f}M"


def _text(attributes: Mapping[str, AttributeValue], name: str) -> str:
    value = attributes.get(name)
    return value if isinstance(value, str) else ""

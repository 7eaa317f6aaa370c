"""Spans as the tree that people read."""

from __future__ import annotations

import pytest

from tracebridge import semconv
from tracebridge.model import Span, SpanKind, Status
from tracebridge.tail import render_turn
from tracebridge.tree import count, duration, tree

MS = 1_000_000
TRACE = "d7c487cd7106e0dd92e7bece2e8dd15f"


def span(span_id, parent, name, start_ms, end_ms, *, status=Status.UNSET, **attributes):
    return Span(
        trace_id=TRACE,
        span_id=span_id,
        parent_span_id=parent,
        name=name,
        kind=SpanKind.INTERNAL,
        start_ns=start_ms * MS,
        end_ns=None if end_ms is None else end_ms * MS,
        status=status,
        attributes={getattr(semconv, key): value for key, value in attributes.items()},
    )


LINKED = {"LLM_SOURCE": "gateway+transcript", "LINK_EVIDENCE": "turn_id"}
TURN = [
    span(
        "root",
        None,
        "invoke_agent claude-code",
        0,
        83_000,
        TURN_OUTCOME="interrupted",
        TURN_INPUT_TOKENS=1_234_567,
        TURN_OUTPUT_TOKENS=890,
        TURN_CACHE_READ_TOKENS=12_345,
    ),
    span(
        "c1",
        "root",
        "chat claude-opus-5",
        10,
        20,
        status=Status.ERROR,
        ERROR_TYPE="429",
        **LINKED,
    ),
    span(
        "c2",
        "root",
        "chat claude-opus-5",
        30,
        2530,
        INPUT_TOKENS=100,
        OUTPUT_TOKENS=20,
        TIME_TO_FIRST_CHUNK=0.25,
        LLM_ATTEMPT=2,
        LINK_CONFIDENCE="exact",
        **LINKED,
    ),
    span("th", "c2", "thinking", 100, 400),
    span("t1", "root", "execute_tool Edit", 2600, 2700),
    span("w1", "t1", "permission_wait Edit", 2610, 2650, PERMISSION_DECISION="allow"),
    span("e1", "t1", "file_edit src/app.py", 2690, 2700, EDIT_LINES_ADDED=3, EDIT_LINES_REMOVED=0),
    span("t2", "root", "execute_tool Agent", 3000, 9000),
    span("s1", "t2", "invoke_agent general-purpose", 3010, 8990),
    span(
        "c3",
        "s1",
        "chat claude-haiku-5",
        3020,
        4020,
        LINK_EVIDENCE="session_window",
        LINK_CONFIDENCE="inferred",
        LLM_SOURCE="gateway",
    ),
    span("co", "root", "compaction", 10_000, 70_000),
    span("t3", "root", "execute_tool Bash", 80_000, None),
    span("lost", "nobody", "execute_tool Read", 5, 6, status=Status.ERROR),
]

GOLDEN = """
invoke_agent claude-code               1 min 23 s  interrupted  1.2M (12.3k cached) → 890 tok
├─ chat claude-opus-5                       10 ms  ERROR 429  gateway+transcript: turn_id
├─ chat claude-opus-5                       2.5 s  100 → 20 tok  ttft 250 ms  attempt 2  gateway+transcript: turn_id
│  └─ thinking                             300 ms
├─ execute_tool Edit                       100 ms
│  ├─ permission_wait Edit                  40 ms  allow
│  └─ file_edit src/app.py                  10 ms  +3 -0
├─ execute_tool Agent                       6.0 s
│  └─ invoke_agent general-purpose          6.0 s
│     └─ chat claude-haiku-5                1.0 s  gateway: session_window (inferred)
├─ compaction                          1 min 00 s
└─ execute_tool Bash                        3.0 s
execute_tool Read                            1 ms  ERROR
"""


def test_the_tree_of_a_turn():
    """Children under their parent by time, with what is worth saying of each."""
    lines = [
        f"{line.branch + line.span.name:<37}{duration(line.span, 83_000 * MS):>12}"
        + "".join(f"  {fact}" for fact in line.facts)
        for line in tree(list(reversed(TURN)))
    ]
    assert lines == GOLDEN.strip().split("\n")


def test_the_order_of_arrival_does_not_matter():
    """Spans of the same time are told apart by name and id."""
    same = [span(str(n), "root", f"tool {n % 2}", 5, 6) for n in range(6)]
    spans = [*TURN, *same]
    expected = [line.span.span_id for line in tree(spans)]
    assert [line.span.span_id for line in tree(spans[::-1])] == expected
    assert len(expected) == len(spans)


def test_no_spans_are_no_lines():
    """Neither here nor on the screen."""
    assert tree([]) == []
    assert render_turn([], 80).plain == ""


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "text"),
    [
        (0, 0, "0 ms"),
        (0, 999, "999 ms"),
        (0, 1000, "1.0 s"),
        (0, 59_940, "59.9 s"),
        (0, 59_960, "1 min 00 s"),
        (0, 3_599_000, "59 min 59 s"),
        (0, 3_600_000, "1 h 00 min"),
        (0, 360_000_000, "100 h 00 min"),
        (1000, None, "4.0 s"),
        (9000, None, "0 ms"),
    ],
)
def test_durations_are_short_to_read(start_ms, end_ms, text):
    """What runs counts up to now, and never below nothing."""
    assert duration(span("x", None, "x", start_ms, end_ms), 5000 * MS) == text


def test_rounding_never_gives_a_thousand_milliseconds():
    """The next unit begins there."""
    almost = Span(
        trace_id=TRACE,
        span_id="x",
        parent_span_id=None,
        name="x",
        kind=SpanKind.INTERNAL,
        start_ns=0,
        end_ns=999_700_000,
    )
    assert duration(almost, 0) == "1.0 s"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9999, "9999"), (10_000, "10.0k"), (999_949, "999.9k"), (999_950, "1.0M")],
)
def test_counts_are_short_to_read(number, text):
    """Ten thousand tokens need no more than five letters."""
    assert count(number) == text

"""Spans as the tree that people read."""

from __future__ import annotations

import pytest

from tracebridge import semconv
from tracebridge.model import Span, SpanKind, Status
from tracebridge.tree import count, dollars, duration, printable, telling_argument, tree
from tracebridge.views.waterfall import render_turn

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


LINKED = {"SPAN_TYPE": "llm", "LLM_SOURCE": "gateway+transcript", "LINK_EVIDENCE": "turn_id"}
TURN = [
    span(
        "root",
        None,
        "invoke_agent claude-code",
        0,
        83_000,
        SPAN_TYPE="turn",
        AGENT_NAME="claude-code",
        CWD="/home/user/shop",
        TURN_OUTCOME="interrupted",
        TURN_INPUT_TOKENS=1_234_567,
        TURN_OUTPUT_TOKENS=890,
        TURN_CACHE_READ_TOKENS=12_345,
        TURN_COST=1.5,
        TURN_UNPRICED_CALLS=1,
    ),
    span(
        "c1", "root", "chat claude-opus-5", 10, 20, status=Status.ERROR, ERROR_TYPE="429", **LINKED
    ),
    span(
        "c2",
        "root",
        "chat claude-opus-5",
        30,
        2530,
        INPUT_TOKENS=100,
        OUTPUT_TOKENS=20,
        CACHE_READ_TOKENS=86,
        OI_COST_TOTAL=0.0123,
        TIME_TO_FIRST_CHUNK=0.25,
        LLM_ATTEMPT=2,
        LINK_CONFIDENCE="exact",
        **LINKED,
    ),
    span("th", "c2", "thinking", 100, 400, SPAN_TYPE="thinking"),
    span("t1", "root", "execute_tool Edit", 2600, 2700, SPAN_TYPE="tool"),
    span(
        "w1",
        "t1",
        "permission_wait Edit",
        2610,
        2650,
        SPAN_TYPE="permission",
        PERMISSION_DECISION="allow",
    ),
    span(
        "e1",
        "t1",
        "file_edit src/app.py",
        2690,
        2700,
        SPAN_TYPE="edit",
        EDIT_LINES_ADDED=3,
        EDIT_LINES_REMOVED=0,
    ),
    span("t2", "root", "execute_tool Agent", 3000, 9000, SPAN_TYPE="tool"),
    span("s1", "t2", "invoke_agent general-purpose", 3010, 8990, SPAN_TYPE="subagent"),
    span(
        "c3",
        "s1",
        "chat claude-haiku-5",
        3020,
        4020,
        SPAN_TYPE="llm",
        LINK_EVIDENCE="session_window",
        LINK_CONFIDENCE="inferred",
        LLM_SOURCE="gateway",
    ),
    span("co", "root", "compaction", 10_000, 70_000, SPAN_TYPE="compaction"),
    span(
        "t3",
        "root",
        "execute_tool Bash",
        80_000,
        None,
        SPAN_TYPE="tool",
        TOOL_ARGUMENTS='{"command": "make\\n  test", "timeout": 5}',
    ),
    span("w2", "t3", "permission_wait Bash", 80_000, None, SPAN_TYPE="permission"),
    span("lost", "nobody", "execute_tool Read", 5, 6, status=Status.ERROR, SPAN_TYPE="tool"),
]

GOLDEN = """
claude-code · shop                     1 min 23 s  interrupted  1.2M → 890 tok  ≥ $1.50  0% cached
├─ chat claude-opus-5                       10 ms  ERROR 429  ⇄ turn_id
├─ chat claude-opus-5                       2.5 s  100 → 20 tok  $0.012  ⇄ turn_id  86% cached  ttft 250 ms  attempt 2
│  └─ thinking                             300 ms
├─ Edit                                    100 ms
│  ├─ wait Edit                             40 ms  allow
│  └─ edit src/app.py                       10 ms  +3 -0
├─ Agent                                    6.0 s
│  └─ agent general-purpose                 6.0 s
│     └─ chat claude-haiku-5                1.0 s  ≈ session_window (inferred)
├─ compaction                          1 min 00 s
└─ Bash                                     3.0 s  make test
   └─ wait Bash                             3.0 s  waiting for you
Read                                         1 ms  ERROR
"""


def test_the_tree_of_a_turn():
    """Children under their parent by time, with what is worth saying of each."""
    lines = [
        f"{line.branch + line.label:<37}{duration(line.span, 83_000 * MS):>12}"
        + "".join(f"  {fact.text}" for fact in line.facts)
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


def test_attempts_that_failed_alike_are_one_line():
    """From the first to the last; two of them, other errors, and what has thoughts stand alone."""
    error = {"status": Status.ERROR, **LINKED}
    attempts = [
        *(span(f"a{n}", "root", "chat m", n, n + 1, ERROR_TYPE="429", **error) for n in range(30)),
        span("b", "root", "chat m", 40, 50, ERROR_TYPE="500", **error),
        *(
            span(f"c{n}", "root", "chat m", 60 + n, 61 + n, ERROR_TYPE="429", **error)
            for n in (0, 1)
        ),
        *(
            span(f"d{n}", "root", "chat m", 70 + n, 71 + n, ERROR_TYPE="cut", **error)
            for n in range(4)
        ),
        span("thought", "d1", "thinking", 71, 72, SPAN_TYPE="thinking"),
    ]
    lines = tree([TURN[0], *attempts], fold_attempts=True)
    assert [line.label for line in lines[1:]] == [
        "chat m x30",
        *["chat m"] * 5,
        "thinking",
        *["chat m"] * 2,
    ]
    assert (lines[1].span.start_ns, lines[1].span.end_ns) == (0, 30 * MS)
    assert len(tree([TURN[0], *attempts])) == len(attempts) + 1


def test_many_attempts_take_one_line_of_the_screen():
    """With how often, how long in all, and why."""
    error = {"status": Status.ERROR, "ERROR_TYPE": "429", **LINKED}
    attempts = [span(f"a{n}", "root", "chat m", 100 * n, 100 * n + 9, **error) for n in range(30)]
    _, line = render_turn([TURN[0], *attempts], 80).plain.split("\n")
    assert line.split() == ["└─", "chat", "m", "x30", "2.9", "s", "ERROR", "429"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"timeout": 3, "command": "ls -l", "why": "to see"}', "ls -l"),
        ('{"command": ["bash", "-lc", "make"]}', "bash -lc make"),
        ('{"n": 1, "empty": "", "words": []}', ""),
        ('"just words"', "just words"),
        ("[1, 2]", ""),
        ("{not JSON", "{not JSON"),
        ("", ""),
    ],
)
def test_a_tool_says_what_it_was_told(arguments, text):
    """The first text among its arguments, whatever the vendor calls it."""
    assert telling_argument(arguments) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "$0.00"),
        (0.00001, "<$0.0001"),
        (0.0012, "$0.0012"),
        (0.123, "$0.123"),
        (1234.5, "$1,234.50"),
    ],
)
def test_amounts_have_the_digits_that_tell_something(amount, text):
    """A turn for a tenth of a cent did not cost nothing."""
    assert dollars(amount) == text


def test_what_steers_a_terminal_is_not_printed():
    """Letters of all languages are."""
    assert printable("a\x1b[2J\tb\nc\x9b é日本😀") == "a\ufffd[2J b c\ufffd é日本😀"

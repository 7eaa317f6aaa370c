"""What turns come to: every call and every moment counted once, and what is unknown left out."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import fields, replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_turns import moved, put, recorded_turns
from rich.cells import cell_len
from test_tree import MS, span

from tracebridge import semconv
from tracebridge.model import Status
from tracebridge.store import Store
from tracebridge.time_spent import TimeSpent, time_spent
from tracebridge.totals import Totals, totals_of
from tracebridge.views.selection import Selection, parse_time
from tracebridge.views.stats import (
    GROUPS,
    SORTS,
    TURN_TITLES,
    percent,
    sort_key,
    stats_lines,
    summed,
    table,
    time_spent_line,
    turn_cells,
)

HOUR_NS = 3_600_000_000_000
NOW_NS = 2**61
BEHAVIOURS = (
    "claude-code/tools",
    "claude-code/subagents",
    "claude-code/permission_allowed",
    "claude-code/retry_429_529",
    "claude-code/error_400",
    "codex-cli/tools",
    "gemini-cli/tools",
    "opencode/tools",
)


def turn(*children, end_ms=100):
    return [span("root", None, "invoke_agent a", 0, end_ms, SPAN_TYPE="turn"), *children]


def spent(*children, end_ms=100, now_ms=0):
    """Return model, tools, human and agent milliseconds."""
    found = time_spent(turn(*children, end_ms=end_ms), now_ms * MS)
    return tuple(getattr(found, field.name) // MS for field in fields(TimeSpent))


def llm(name, start_ms, end_ms, parent="root"):
    return span(name, parent, "chat m", start_ms, end_ms, SPAN_TYPE="llm")


def tool(name, start_ms, end_ms, parent="root"):
    return span(name, parent, "execute_tool t", start_ms, end_ms, SPAN_TYPE="tool")


def wait(name, start_ms, end_ms, parent):
    return span(name, parent, "permission_wait t", start_ms, end_ms, SPAN_TYPE="permission")


def agent(name, start_ms, end_ms, parent):
    return span(name, parent, "invoke_agent h", start_ms, end_ms, SPAN_TYPE="subagent")


@pytest.mark.parametrize(
    ("children", "expected"),
    [
        ([], (0, 0, 0, 100)),
        ([llm("a", 10, 30), tool("b", 40, 60)], (20, 20, 0, 60)),
        # Two at once are no more time than one.
        (
            [llm("a", 10, 30), llm("b", 20, 40), tool("c", 50, 60), tool("d", 50, 60)],
            (30, 10, 0, 60),
        ),
        # The model is at work while a tool runs.
        ([tool("a", 10, 50), llm("b", 20, 30)], (10, 30, 0, 60)),
        # The tool does nothing while somebody is asked.
        ([tool("a", 10, 60), wait("w", 15, 45, "a")], (0, 20, 30, 50)),
        # Unless another one works.
        ([tool("a", 10, 60), wait("w", 15, 45, "a"), tool("b", 20, 30)], (0, 30, 20, 50)),
        # A tool that is a subagent is its calls and tools.
        (
            [
                tool("a", 10, 90),
                agent("s", 12, 88, "a"),
                llm("b", 20, 40, "s"),
                tool("c", 50, 60, "s"),
            ],
            (20, 14, 0, 66),
        ),
        # A subagent that outlives its tool and its turn.
        ([tool("a", 10, 20), agent("s", 10, 500, "a"), llm("b", 90, 400, "s")], (10, 0, 0, 90)),
        ([tool("a", -50, 500)], (0, 100, 0, 0)),
    ],
)
def test_each_moment_counts_once(children, expected):
    """The model before tools, tools before the human, and the rest is the agent's."""
    assert spent(*children) == expected


def test_an_open_turn_counts_up_to_now():
    """What still runs is at work until now."""
    assert spent(llm("a", 10, 30), tool("b", 40, None), end_ms=None, now_ms=70) == (20, 30, 0, 20)


intervals = st.lists(st.tuples(st.integers(-20, 120), st.integers(0, 60)), max_size=6)


@given(intervals, intervals, intervals)
def test_the_parts_of_a_turn_sum_up_to_the_whole(calls, tools, waits):
    """However its spans overlap, and wherever they lie."""
    children = [llm(f"l{n}", at, at + took) for n, (at, took) in enumerate(calls)]
    children += [tool(f"t{n}", at, at + took) for n, (at, took) in enumerate(tools)]
    children += [wait(f"w{n}", at, at + took, f"t{n}") for n, (at, took) in enumerate(waits)]
    random.shuffle(children)
    parts = spent(*children)
    assert sum(parts) == 100
    assert min(parts) >= 0


def test_no_root_no_time():
    """Spans whose turn is not known yet have no time to share out."""
    assert time_spent([llm("a", 0, 10)], 0) == TimeSpent()
    assert time_spent_line([], 0) == ""


def test_what_one_turn_comes_to():
    """Attempts, failures, lines and cost of all that happened in it."""
    (found,) = recorded_turns("claude-code/tools")
    totals = totals_of(found[1], NOW_NS)
    assert (totals.turns, totals.calls, totals.tool_calls, totals.failed_tool_calls) == (1, 5, 4, 1)
    assert (totals.lines_added, totals.lines_removed) == (4, 1)
    root = found[1][-1].attributes
    assert totals.input_tokens == root[semconv.TURN_INPUT_TOKENS]
    assert totals.output_tokens == root[semconv.TURN_OUTPUT_TOKENS]
    assert totals.cost_usd == pytest.approx(root[semconv.TURN_COST])
    assert totals.told_by_transcript_alone == 5
    assert totals.link_rate is None


@pytest.fixture
def store(home):
    with Store(home) as store:
        for found, spans in recorded_turns(*BEHAVIOURS):
            put(store, found, spans)
        yield store


@pytest.mark.parametrize("by", GROUPS)
def test_groups_sum_up_to_all(store, by):
    """Nothing is counted twice or lost, whatever turns are grouped by."""
    groups, everything = summed(store, Selection(), by, NOW_NS)
    assert everything.turns == len(list(store.find_turns()))
    fine = {
        "model": ("calls", "input_tokens", "output_tokens", "cost_usd", "failed_calls", "retries"),
        "tool": ("tool_calls", "failed_tool_calls", "lines_added", "lines_removed"),
    }
    for name in fine.get(by, [field.name for field in fields(Totals)]):
        parts = [getattr(totals, name) for totals in groups.values()]
        assert sum(part or 0 for part in parts) == pytest.approx(getattr(everything, name))
    for width in (40, 80, 120, 200):
        lines = stats_lines(groups, everything, by, width)
        assert max(map(cell_len, lines)) <= width
        assert lines[0].startswith(by)


def test_unknown_is_not_nothing():
    """No cost is no cost of zero, and a rate of nothing is no rate."""
    call = span("c", "root", "chat m", 0, 1, SPAN_TYPE="llm", INPUT_TOKENS=5, OUTPUT_TOKENS=5)
    totals = totals_of(turn(call), 0)
    assert (totals.cost_usd, totals.unpriced_calls) == (None, 1)
    assert totals.as_dict()["retry_rate"] == 0
    assert Totals().as_dict()["retry_rate"] is None
    priced = replace(call, attributes={**call.attributes, semconv.OI_COST_TOTAL: 0.5})
    both = Totals()
    both.add(totals)
    both.add(totals_of(turn(priced), 0))
    assert (both.cost_usd, both.unpriced_calls) == (0.5, 1)
    assert "≥ $0.500" in stats_lines({"x": both}, both, "agent", 200)[1]


def test_link_rate_is_of_what_a_gateway_saw():
    """Exact and inferred links, against those and the orphans; the transcript's calls are apart."""
    sources = [("gateway", "exact"), ("gateway+transcript", "exact"), ("gateway", "inferred")]
    calls = [
        span(
            str(at), "root", "chat m", 0, 1, SPAN_TYPE="llm",
            LLM_SOURCE=source, LINK_EVIDENCE="e", LINK_CONFIDENCE=confidence,
        )
        for at, (source, confidence) in enumerate([*sources, ("transcript", "exact")])
    ]  # fmt: skip
    totals = totals_of(turn(*calls), 0)
    totals.orphans = 1
    assert totals.link_rate == 0.75
    assert (totals.linked_exactly, totals.linked_by_inference) == (2, 1)
    assert totals.told_by_transcript_alone == 1


@pytest.mark.parametrize(
    ("rate", "text"), [(None, ""), (0, "0%"), (1, "100%"), (0.99996, "99.9%"), (0.0001, "0.1%")]
)
def test_almost_all_is_not_all(rate, text):
    """One orphan among ten thousand calls is seen."""
    assert percent(rate) == text


def test_a_table_keeps_to_its_width():
    """Columns that do not fit are left out, not squeezed; the last takes what is left."""
    rows = [["a", "1", "日本語" * 20], ["b", "1000", "text"]]
    for width in range(20, 100):
        lines = table(["name", "count", "prompt"], rows, width, last="prompt")
        assert max(map(cell_len, lines)) <= width
    assert table(["name", "count", "prompt"], rows, 40)[2] == "b      1000"
    assert table(["name"], [], 40) == ["name"]


def test_turns_sort_by_what_is_asked(store):
    """The largest last, where the eye is."""
    found = list(Selection().turns(store))
    for by in SORTS:
        keys = [sort_key(by, NOW_NS)(each) for each in sorted(found, key=sort_key(by, NOW_NS))]
        assert keys == sorted(keys)
    cells = [turn_cells(row, spans, NOW_NS) for row, spans in found]
    assert {len(row) for row in cells} == {len(TURN_TITLES)}


def test_a_time_can_be_said_in_several_ways():
    """How long ago, a day, a moment."""
    now_ns = 1_800_000_000 * 10**9
    assert parse_time("2h", now_ns) == now_ns - 2 * HOUR_NS
    assert parse_time("7d", now_ns) == now_ns - 7 * 24 * HOUR_NS
    assert parse_time("2026-11-01T12:00:00+00:00") == 1_793_534_400 * 10**9
    assert parse_time("9999w", now_ns) == 0
    for wrong in ("", "yesterday", "-2h", "2026-13-01", "1" * 400 + "d", "\x00"):
        with pytest.raises(ValueError, match="2h, 7d"):
            parse_time(wrong)


def run(home, *words, columns=80):
    env = {"TRACEBRIDGE_HOME": str(home), "COLUMNS": str(columns), "PATH": ""}
    command = [sys.executable, "-m", "tracebridge", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("store")
def test_the_commands_agree(home):
    """`turns`, `stats` and `show` read the same store and say the same, to people and programs."""
    document = orjson.loads(run(home, "stats", "--by", "agent", "--json").stdout)
    rows = [orjson.loads(line) for line in run(home, "turns", "--json").stdout.splitlines()]
    assert document["all"]["turns"] == len(rows) == 9
    for name in ("calls", "input_tokens", "lines_added", "failed_tool_calls", "model_ns"):
        assert document["all"][name] == sum(row["totals"][name] for row in rows)
    assert set(document["groups"]) == {"claude-code", "codex-cli", "gemini-cli", "opencode"}
    shown = run(home, "turns", "--agent", "codex", "--sort", "cost", columns=200).stdout
    (line,) = shown.splitlines()[1:]
    assert "write the greeting" in line
    assert "+5 -2" in line
    waterfall = run(home, "show", line[:8]).stdout
    assert "█" in waterfall
    assert "time went to: " in waterfall
    assert max(map(cell_len, waterfall.splitlines()[1:])) <= 80
    assert "\x1b" not in waterfall


@pytest.mark.parametrize(
    "words",
    [
        ["stats", "--by", "colour"],
        ["turns", "--sort", "colour"],
        ["stats", "--since", "yesterday"],
        ["tail", "--agent", "nobody"],
        ["report", "--agent", "nobody"],
    ],
)
def test_wrong_words_are_answered_with_right_ones(home, words):
    """Exit code 2, and what may be said instead."""
    result = run(home, *words)
    assert result.returncode == 2
    assert "choose from" in result.stderr or "write 30m" in result.stderr


def test_periods_choose_turns(home):
    """From --since on and before --until."""
    with Store(home) as store:
        for at, (found, spans) in enumerate(recorded_turns("claude-code/three_sessions")):
            later = moved(spans, at * HOUR_NS)
            put(store, replace(found, start_ns=found.start_ns + at * HOUR_NS), later)
        starts = sorted(row.start_ns for row in store.find_turns())
        for since in range(4):
            for until in range(since, 4):
                edges = [*starts, starts[-1] + 1]
                chosen = Selection(since_ns=edges[since], until_ns=edges[until]).turns(store)
                assert len(list(chosen)) == until - since


def test_failures_are_counted(store):
    """Failed turns, failed calls and retries of the recorded sessions."""
    _, everything = summed(store, Selection(), "day", NOW_NS)
    failed = [row for row, _ in Selection().turns(store) if row.outcome == "failed"]
    assert everything.failed_turns == len(failed) > 0
    calls = [
        each
        for _, spans in Selection(errors=True).turns(store)
        for each in spans
        if each.attributes[semconv.SPAN_TYPE] == "llm" and each.status is Status.ERROR
    ]
    assert everything.failed_calls == len(calls) > 0
    assert 0 < everything.retries <= everything.calls

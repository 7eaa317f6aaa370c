"""What things cost, counted and not timed: a guard against slow regressions that cannot flicker."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from claude_files import Claude, at, said, used
from recorded_turns import put, recorded_turns
from recordings import FOLDER, lay_out

from tracebridge.agents import agents
from tracebridge.delivery import deliver
from tracebridge.encode import encode_span
from tracebridge.settings import read_settings
from tracebridge.sinks.memory import MemorySink
from tracebridge.spans import render
from tracebridge.store import TURNS_PER_PAGE, Store
from tracebridge.totals import Totals, totals_of
from tracebridge.views.selection import Selection
from tracebridge.views.stats import summed
from tracebridge.watcher import Watcher

HOOKS = Path(__file__).resolve().parents[1] / "hooks"
COUNT_EVENTS = """
import collections, json, posix, sys
counts = collections.Counter()
sys.addaudithook(lambda name, arguments: counts.update([name]))
sys.path.insert(0, sys.argv.pop(1))
sys.argv[1:1] = ["claude-code"]
import tracebridge_hook_main
counts.clear()
def finish(code):
    posix.write(2, json.dumps(counts).encode())
    raise SystemExit
posix._exit = finish
tracebridge_hook_main.run()
"""

LOADED = """
import json, sys
before = set(sys.modules)
from tracebridge.cli import main
try:
    main()
finally:
    loaded = {name for name in sys.modules if name not in before}
    own = [name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names]
    print(json.dumps(own), file=sys.stderr)
    print(json.dumps(sorted(loaded)))
"""


def watched(watcher: Watcher) -> Counter[str]:
    """Count the statements of a watcher's database by their first word."""
    counts: Counter[str] = Counter()

    def count(statement: str) -> None:
        counts[statement.split(maxsplit=1)[0]] += 1

    watcher.store._db._connection.set_trace_callback(count)
    return counts


@contextmanager
def listened(store: Store) -> Iterator[list[str]]:
    """Yield what is asked of a store's database meanwhile."""
    statements: list[str] = []
    store._db._connection.set_trace_callback(statements.append)
    yield statements
    store._db._connection.set_trace_callback(None)


def scanned(store: Store, statements: list[str]) -> set[str]:
    """Return the tables of which these statements read every row."""
    steps = [
        step
        for statement in statements
        for (*_, step) in store._db.rows(f"EXPLAIN QUERY PLAN {statement}")
    ]
    return {step.split()[1] for step in steps if step.startswith("SCAN")}


def test_help_loads_the_command_line_and_click_alone():
    """No SQLite, no OpenTelemetry, no agent's module: whoever asks for help waits for none of them."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "--help"], capture_output=True, check=True, text=True
    )
    loaded = set(json.loads(done.stderr))
    ours = {name for name in loaded if name.partition(".")[0] == "tracebridge"}
    assert ours == {"tracebridge", "tracebridge.cli"}
    assert {name.partition(".")[0] for name in loaded - ours} == {"click"}
    assert "sqlite3" not in json.loads(done.stdout.splitlines()[-1])


def test_help_on_a_command_loads_no_other_group_of_commands():
    """Nor what the command itself is going to need."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "turns", "--help"],
        capture_output=True,
        check=True,
        text=True,
    )
    ours = {name for name in json.loads(done.stderr) if name.startswith("tracebridge.")}
    groups = "tracebridge.commands"
    assert ours == {"tracebridge.cli", groups, f"{groups}._shared", f"{groups}.looking"}


def test_the_latest_turns_are_found_without_reading_the_others(home):
    """One statement for a page of turns and one for the spans of each that is shown."""
    with Store(home) as store:
        for number in range(30):
            for turn, spans in recorded_turns("claude-code/simple"):
                other = replace(turn, turn_key=f"t{number}", trace_id=f"{number:032x}")
                put(store, other, [replace(span, trace_id=other.trace_id) for span in spans])
        with listened(store) as statements:
            assert len(list(Selection().turns(store, 5))) == 5
        assert len(statements) <= 1 + 5
        assert scanned(store, statements) == set()


def test_turns_that_began_at_once_are_all_found_once(home):
    """Also where a page ends in the middle of them, the latest first."""
    with Store(home) as store:
        ((turn, _),) = recorded_turns("claude-code/simple")
        for number in range(2 * TURNS_PER_PAGE + 10):
            start_ns = turn.start_ns + number // TURNS_PER_PAGE
            other = replace(turn, trace_id=f"{number:032x}", start_ns=start_ns)
            put(store, other, render(other))
        found = list(store.find_turns())
    assert len({row.trace_id for row in found}) == len(found) == 2 * TURNS_PER_PAGE + 10
    assert found == sorted(found, key=lambda row: (-row.start_ns, row.trace_id))


def test_what_turns_come_to_is_reckoned_once(home):
    """Spans are read for the sums of turns that are new, and for no others."""
    with Store(home) as store:
        for turn, spans in recorded_turns("claude-code/simple", "codex-cli/tools"):
            put(store, turn, spans)
        with listened(store) as first:
            _, before = summed(store, Selection(), "day", 0)
        with listened(store) as second:
            _, after = summed(store, Selection(), "project", 0)
        for turn, spans in recorded_turns("opencode/simple"):
            put(store, turn, spans)
        with listened(store) as third:
            summed(store, Selection(), "model", 0)
    reads = [
        sum("FROM spans" in statement for statement in each) for each in (first, second, third)
    ]
    assert reads == [2, 0, 1]
    assert before == after
    assert len(second) <= 5


def test_what_a_watcher_tells_is_summed_up_already(home, tmp_path):
    """`stats` reads no span of it, and what it says is what the spans say, told at once or not."""
    claude = Claude(home, tmp_path)
    watcher = Watcher(read_settings())
    claude.simple_turn()
    watcher.step(settle_now=True)
    late = Claude(home, tmp_path, turn="later")
    late.transcript = claude.transcript
    late.hook(60, "UserPromptSubmit", prompt="hello")
    watcher.step()
    watcher.step(settle_now=True, close_open=True)
    found = [watcher.store.spans(row.trace_id) for row in watcher.store.turns()]
    truth = Totals()
    for spans in found:
        truth.add(totals_of(spans, 0))
    with listened(watcher.store) as statements:
        _, everything = summed(watcher.store, Selection(), "day", 0)
    watcher.close()
    assert not [s for s in statements if "FROM spans" in s]
    assert everything == truth
    assert (truth.turns, truth.calls) == (2, 1)


def test_a_turn_of_which_more_is_known_is_summed_up_anew(home):
    """And one that is forgotten counts no more."""
    with Store(home) as store:
        ((turn, spans),) = recorded_turns("claude-code/tools")
        put(store, turn, spans[2:], told=False)
        _, some = summed(store, Selection(), "day", 0)
        put(store, turn, spans)
        _, all_ = summed(store, Selection(), "day", 0)
        store.forget_session(turn.session_id)
        groups, none = summed(store, Selection(), "day", 0)
    assert some.calls + some.tool_calls < all_.calls + all_.tool_calls
    assert (groups, none.turns) == ({}, 0)


def test_a_hook_opens_four_files_and_starts_nothing_where_a_watcher_lives(home):
    """The spool's folder, the file in it, the watcher's lock, and its own home."""
    home.mkdir()
    for _ in range(2):
        # The first one makes the folders.
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", COUNT_EVENTS, str(HOOKS), str(home)],
            input=b'{"session_id": "s"}',
            capture_output=True,
            check=True,
            env={"TRACEBRIDGE_NO_WATCH": "1"},
        )
    counts = json.loads(done.stderr)
    assert counts.pop("open") <= 4
    assert counts.pop("os.rename") == 1
    assert sum(counts.values()) <= 6, counts


def test_a_turn_costs_few_statements_and_commits(home, tmp_path):
    """Each look is three transactions: hook events, transcript, and what comes of them."""
    claude = Claude(home, tmp_path)
    watcher = Watcher(read_settings())
    counts = watched(watcher)
    for number in range(10):
        tool = {
            "tool_name": "Read",
            "tool_input": {"file_path": f"/project/{number}"},
            "tool_use_id": f"toolu_{number}",
        }
        if number == 0:
            claude.hook(0, "UserPromptSubmit", prompt="read them all")
            claude.prompt_line(0, "read them all")
        claude.hook(number + 0.1, "PreToolUse", **tool)
        claude.hook(number + 0.2, "PostToolUse", **tool, tool_response={"text": "x"})
        claude.answer_line(
            number + 0.1,
            f"msg_{number}",
            used(f"toolu_{number}", "Read", file_path=f"/project/{number}"),
            began=number,
            stop="tool_use",
        )
        watcher.step()
    claude.hook(11, "Stop", last_assistant_message="done")
    claude.answer_line(11, "msg_end", said("done"), began=10.5)
    watcher.step()
    watcher.step(settle_now=True)
    spans = len(watcher.store.spans(watcher.store.turns()[0].trace_id))
    watcher.close()
    assert spans == 22
    assert counts["COMMIT"] <= 3 * 12
    # Each look writes only what changed of a turn that grows to 22 spans.
    assert sum(counts.values()) <= 19 * spans, counts


@pytest.mark.usefixtures("home")
def test_an_import_reads_nothing_back(tmp_path):
    """A past session is told of what was just read: nine statements a turn, and its sums."""
    lay_out(FOLDER / "claude-code" / "tools", tmp_path / "user")
    claude = agents()["claude-code"]
    (past,) = claude.past_sessions(tmp_path / "user")
    watcher = Watcher(read_settings())
    with listened(watcher.store) as statements, watcher.importing():
        watcher.import_session(claude, past)
    (turn,) = watcher.store.turns()
    spans = watcher.store.spans(turn.trace_id)
    watcher.close()
    assert turn.told
    kept = [
        place for place, s in enumerate(statements) if s.startswith("INSERT OR IGNORE INTO sig")
    ]
    assert not [s for s in statements[kept[0] :] if s.startswith("SELECT body FROM sightings")]
    own = [s for s in statements if turn.trace_id in s and "turn_sums" not in s]
    assert len(own) <= 9 + len(spans)


def test_a_turn_waits_for_a_sink_and_leaves_it_as_one(home):
    """However many spans it has, it is one row of the outbox, a third of what it says or less."""
    ((turn, spans),) = recorded_turns("claude-code/tools")
    encoded = [(span.span_id, encode_span(span)) for span in spans]
    with Store(home) as store:
        put(store, turn, spans, told=False)
        with listened(store) as telling, store.transaction():
            store.tell(turn.trace_id, encoded, (), ["s"])
        ((rows, stored),) = store._all("SELECT count(*), sum(length(data)) FROM outbox")
        with listened(store) as delivering:
            assert deliver(store, "s", MemorySink()).acknowledged == len(spans)
    assert (rows, len(telling) <= 8, len(delivering) <= 9) == (1, True, True)
    assert stored <= sum(len(data) for _, data in encoded) / 3


def test_a_look_that_finds_nothing_writes_nothing(home, tmp_path):
    """An idle watcher with an open turn reads its spool and the transcript's state, and that is all."""
    claude = Claude(home, tmp_path)
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    watcher = Watcher(read_settings())
    watcher.step()
    watcher.step()
    counts = watched(watcher)
    for _ in range(10):
        watcher.step()
    watcher.close()
    assert counts.keys() <= {"SELECT"}
    assert counts["SELECT"] <= 5 * 10


def test_a_span_is_about_as_long_as_what_it_says():
    """Names, ids and tags around the content of a recorded turn stay below 3 kB a span."""
    ((_, spans),) = recorded_turns("claude-code/tools")
    sizes = [len(encode_span(span)) for span in spans]
    content = sum(
        len(value.encode())
        for span in spans
        for value in span.attributes.values()
        if isinstance(value, str)
    )
    assert (sum(sizes) - content) / len(spans) < 3000


def test_an_hour_of_sessions_leaves_nothing_behind_in_memory(home, tmp_path):
    """Once all of a session is told and it rests, the watcher holds neither it nor its cursor."""
    now_ns = at(0)
    watcher = Watcher(read_settings(), clock=lambda: now_ns)
    held = []
    for minute in range(60):
        claude = Claude(home, tmp_path, session=f"{minute:02d}-session", turn=f"turn-{minute}")
        claude.simple_turn(began=60 * minute)
        for second in (4, 10, 30):
            now_ns = at(60 * minute + second)
            watcher.step()
        held.append((len(watcher._sessions), len(watcher._cursors)))
    assert len(watcher.store.turns()) == 60
    assert all(row.told for row in watcher.store.turns())
    watcher.close()
    assert max(held) <= (2, 2)

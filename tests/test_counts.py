"""What things cost, counted and not timed: a guard against slow regressions that cannot flicker."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from claude_files import Claude, said, used
from recorded_turns import recorded_turns

from tracebridge.encode import encode_span
from tracebridge.settings import read_settings
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


def watched(watcher: Watcher) -> Counter[str]:
    """Count the statements of a watcher's database by their first word."""
    counts: Counter[str] = Counter()

    def count(statement: str) -> None:
        counts[statement.split(maxsplit=1)[0]] += 1

    watcher.store._db._connection.set_trace_callback(count)
    return counts


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
    assert sum(counts.values()) <= 20 * spans, counts


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

"""A Codex that was killed tells nobody: that its rollout is not open any more tells the watcher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tracebridge.agents import agents
from tracebridge.settings import read_settings
from tracebridge.store import Store
from tracebridge.watcher import SETTLE_NS, Watcher

SECOND = 1_000_000_000
THREAD = "01a1fce8-d168-7540-b445-ce328ffcc139"
BEGUN = [
    {"type": "session_meta", "payload": {"id": THREAD, "session_id": THREAD, "cwd": "/p"}},
    {"type": "event_msg", "payload": {"type": "task_started", "turn_id": "t"}},
    {
        "type": "event_msg",
        "payload": {
            "type": "item_completed",
            "thread_id": THREAD,
            "turn_id": "t",
            "item": {"type": "UserMessage", "id": "u", "content": [{"text": "wait"}]},
        },
    },
]
# Writes the lines and stays, as Codex does, until it is killed.
WRITER = """
import sys
file = open(sys.argv[1], "a")
file.write(sys.argv[2])
file.flush()
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def codex(tmp_path):
    folder = tmp_path / "sessions" / "2026" / "11" / "21"
    folder.mkdir(parents=True)
    rollout = folder / f"rollout-2026-11-21T07-01-18-{THREAD}.jsonl"
    lines = "".join(
        json.dumps({"timestamp": "2026-11-21T07:01:18Z", **line}) + "\n" for line in BEGUN
    )
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(rollout), lines],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    yield process, rollout
    process.kill()
    process.communicate()


def outcomes(home: Path) -> list[tuple[str | None, bool]]:
    with Store(home) as store:
        return [(turn.outcome, turn.told) for turn in store.turns()]


def test_a_killed_agents_turn_is_abandoned_at_once(codex, home):
    """As long as the process lives the turn is open, however quiet; then it is over in seconds."""
    process, rollout = codex
    now_ns = 1_795_244_500 * SECOND
    watcher = Watcher(read_settings(), lambda: now_ns)
    watcher.import_transcript(agents()["codex-cli"], rollout)
    watcher.step()
    now_ns += 3600 * SECOND
    watcher.step()
    assert outcomes(home) == [(None, False)]
    process.kill()
    process.wait()
    now_ns += SECOND
    watcher.step()
    assert outcomes(home) == [("abandoned", False)]
    now_ns += SETTLE_NS
    watcher.step()
    assert outcomes(home) == [("abandoned", True)]
    watcher.close()

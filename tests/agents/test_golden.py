"""Recordings of real agents give the trees that stand beside them.

A folder `tests/agents/<slug>/<behaviour>/` holds hooks.jsonl, transcripts/ and three expected
trees: from both sources, from hooks alone and from the transcript alone. `--update-golden` writes
them anew; read the difference before you commit it.
"""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from tracebridge.agents import Cursor, agents
from tracebridge.agents.claude_code.wiring import HOT_EVENTS
from tracebridge.model import HookEvent, Sighting, TurnState
from tracebridge.semconv import (
    CODE_FILE_PATH,
    EDIT_LINES_ADDED,
    EDIT_LINES_REMOVED,
    END_UNKNOWN,
    ERROR_TYPE,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    PERMISSION_DECISION,
    REASONING_TOKENS,
    START_UNKNOWN,
    TOOL_EXIT_CODE,
    TURN_ORIGIN,
)
from tracebridge.spans import render
from tracebridge.tree import tree
from tracebridge.turns import TurnAssembler

HERE = Path(__file__).parent
FOLDERS = sorted(path.parent for path in HERE.glob("*/*/hooks.jsonl"))
CLAUDE_CODE = [folder for folder in FOLDERS if folder.parent.name == "claude-code"]
SHOWN = {
    ERROR_TYPE: "error",
    INPUT_TOKENS: "in",
    OUTPUT_TOKENS: "out",
    REASONING_TOKENS: "reasoning",
    TOOL_EXIT_CODE: "exit",
    CODE_FILE_PATH: "path",
    EDIT_LINES_ADDED: "added",
    EDIT_LINES_REMOVED: "removed",
    PERMISSION_DECISION: "decision",
    TURN_ORIGIN: "origin",
    START_UNKNOWN: "start_unknown",
    END_UNKNOWN: "end_unknown",
}
SOURCES = {"both": (True, True), "hooks": (True, False), "transcript": (False, True)}


def read_sightings(
    folder: Path, *, hooks: bool, transcript: bool, but: Collection[str] = ()
) -> list[Sighting]:
    """Return what sources told; *but* names hook events that nobody asked for."""
    agent = agents()[folder.parent.name]
    sightings: list[Sighting] = []
    if hooks:
        for line in (folder / "hooks.jsonl").read_bytes().splitlines():
            event = orjson.loads(line)
            if event["payload"].get("hook_event_name") in but:
                continue
            payload = orjson.dumps(event["payload"])
            hook_event = HookEvent(
                agent=agent.SLUG,
                time_ns=event["time_ns"],
                pid=1,
                env={},
                payload=payload,
                payload_bytes=len(payload),
            )
            sightings += agent.parse_hook(hook_event).sightings
    if transcript:
        with tempfile.TemporaryDirectory() as scratch:
            paths = sorted((folder / "transcripts").rglob("*.jsonl"))
            for dump in sorted((folder / "transcripts").rglob("*.sql")):
                paths += agent.transcripts(_restored(dump, Path(scratch)))
            for path in paths:
                cursor = Cursor()
                while True:
                    reading = agent.read_transcript(path, cursor)
                    sightings += reading.sightings
                    if reading.cursor == cursor:
                        break
                    cursor = reading.cursor
    return sightings


def _restored(dump: Path, folder: Path) -> Path:
    """Return the database that a dump was made of."""
    path = folder / f"{dump.stem}.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(dump.read_text())
    return path


def trees(slug: str, sightings: list[Sighting]) -> str:
    """Return all turns as text, with times relative to their turn."""
    by_session: dict[str, list[Sighting]] = {}
    for sighting in sightings:
        by_session.setdefault(sighting.session_id, []).append(sighting)
    turns = []
    for session_id, group in by_session.items():
        assembler = TurnAssembler(slug, session_id)
        assembler.add(group)
        turns += assembler.turns()
    lines = []
    for turn in sorted(turns, key=lambda turn: (turn.start_ns, turn.trace_id)):
        lines.append(f"turn {turn.outcome or TurnState.OPEN}")
        lines += [f"  said: {_short(prompt.text)}" for prompt in turn.prompts]
        if turn.answer:
            lines.append(f"  answered: {_short(turn.answer)}")
        for line in tree(render(turn)):
            span = line.span
            begin = (span.start_ns - turn.start_ns) / 1e9
            end = "open" if span.end_ns is None else f"{(span.end_ns - turn.start_ns) / 1e9:.3f}"
            facts = [
                f"{word}={span.attributes[name]}"
                for name, word in SHOWN.items()
                if name in span.attributes
            ]
            branch = f"  {line.branch}{span.name}"
            lines.append(f"{branch:<50} {begin:.3f} .. {end}  {' '.join(facts)}".rstrip())
        lines.append("")
    return "\n".join(lines)


def _short(text: str | None) -> str:
    return " ".join((text or "").split())[:60]


@pytest.mark.parametrize("sources", SOURCES)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}-{f.name}")
def test_recording(folder: Path, sources: str, request):
    """What a recorded session leaves behind gives the expected tree, in any order, told twice."""
    hooks, transcript = SOURCES[sources]
    sightings = read_sightings(folder, hooks=hooks, transcript=transcript)
    found = trees(folder.parent.name, sightings)
    expected = folder / f"expected_{sources}.txt"
    if request.config.getoption("--update-golden"):
        expected.write_text(found)
    assert found == expected.read_text()
    shuffled = [*sightings, *sightings]
    random.Random(folder.name).shuffle(shuffled)
    assert trees(folder.parent.name, shuffled) == found


# Where the agent kept no transcript: it was told not to, or was killed before it wrote one.
UNKEPT = {"no_persistence", "sigkill_tool"}


@pytest.mark.parametrize("folder", CLAUDE_CODE, ids=lambda f: f.name)
def test_without_hooks_at_tool_calls(folder: Path):
    """A light integration gives the same spans, with wider times, wherever there is a transcript."""
    seen = read_sightings(folder, hooks=True, transcript=True, but=HOT_EVENTS)
    found = _without_times(trees(folder.parent.name, seen))
    expected = _without_times((folder / "expected_both.txt").read_text())
    if folder.name in UNKEPT:
        expected = [line for line in expected if not ({"execute_tool", "file_edit"} & {*line})]
    assert found == expected


def _without_times(text: str) -> list[list[str]]:
    """Return the words of each line that hooks at tool calls cannot change."""
    return [
        [
            word
            for word in line.split()
            if not (word[0].isdigit() or {*word} <= {*"│├└─."} or word == "end_unknown=True")
        ]
        for line in text.splitlines()
    ]


def test_there_are_recordings():
    """The folders are found: an empty run would prove nothing."""
    assert len(FOLDERS) >= 20

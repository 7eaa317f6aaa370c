"""Recordings of real agents, laid out as the agents leave them: below a user's home, and as hooks."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "agents"
# Where each agent keeps its transcripts, below the home.
PLACES = {
    "claude-code": ".claude/projects",
    "codex-cli": ".codex/sessions",
    "gemini-cli": ".gemini",
    "opencode": ".local/share/opencode",
}
# The homes of those recorded.
HOMES = (b"/home/user/home/", b"/home/user/")


def recordings() -> list[Path]:
    return sorted(path.parent for path in FOLDER.glob("*/*/hooks.jsonl"))


def lay_out(recording: Path, home: Path) -> None:
    """Put the transcripts of a recording where its agent keeps them below *home*."""
    place = home / PLACES[recording.parent.name]
    dumps = sorted((recording / "transcripts").rglob("*.sql"))
    if not dumps:
        if (recording / "transcripts").exists():
            shutil.copytree(recording / "transcripts", place, dirs_exist_ok=True)
        return
    place.mkdir(parents=True)
    for dump in dumps:
        with closing(sqlite3.connect(place / f"{dump.stem}.db")) as database:
            database.executescript(dump.read_text())


def spool_hooks(recording: Path, home: Path, spool: Path, tags: dict[str, str]) -> None:
    """Put the hook events of a recording into the spool, as if *home* were their user's."""
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    variables = "".join(f"env.{name}={value}\0" for name, value in tags.items())
    lines = (recording / "hooks.jsonl").read_bytes().splitlines()
    for number, line in enumerate(lines):
        event = json.loads(line)
        payload = json.dumps(event["payload"]).encode()
        for path in [path for path in HOMES if path in payload]:
            for place in PLACES.values():
                old = path + place.encode()
                payload = payload.replace(old, str(home / place).encode())
        head = f"format=1\0kind=hook\0agent={recording.parent.name}\0time_ns={event['time_ns']}\0"
        name = f"{event['time_ns']:020d}-{recording.name}-{number}.event"
        (spool / name).write_bytes(f"{head}pid=1\0{variables}\0".encode() + payload)

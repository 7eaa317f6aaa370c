"""The sessions that Claude Code remembers: one file each, in a folder for each project."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tracebridge.agents import PastSession
from tracebridge.fields import text_of
from tracebridge.lines import read_objects

# The first line that names the folder stands behind a few that describe the session.
FIRST_LINES = 50


def past_sessions(home: Path) -> Iterator[PastSession]:
    config = os.environ.get("CLAUDE_CONFIG_DIR")
    root = Path(config) if config else home / ".claude"
    for path in sorted((root / "projects").glob("*/*.jsonl")):
        try:
            changed_ns = path.stat().st_mtime_ns
        except OSError:
            # Deleted since it was listed.
            continue
        project = _project(path)
        yield PastSession(path=path, session_id=path.stem, project=project, changed_ns=changed_ns)


def _project(path: Path) -> str | None:
    lines = (line for line, _ in islice(read_objects(path, 0), FIRST_LINES))
    folders = (text_of(line, "cwd") for line in lines if isinstance(line, dict))
    try:
        return next(filter(None, folders), None)
    except OSError:
        # Who takes it in will be told.
        return None

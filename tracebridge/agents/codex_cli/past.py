"""The sessions that Codex remembers: rollout files in folders by day, without those of subagents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tracebridge.agents import PastSession
from tracebridge.agents.codex_cli.rollout import LONGEST_FIRST_LINE
from tracebridge.fields import dict_of, text_of
from tracebridge.lines import parse_object


def past_sessions(home: Path) -> Iterator[PastSession]:
    config = os.environ.get("CODEX_HOME")
    root = Path(config) if config else home / ".codex"
    for path in sorted((root / "sessions").glob("*/*/*/rollout-*.jsonl")):
        changed_ns = 0
        try:
            changed_ns = path.stat().st_mtime_ns
            with path.open("rb") as file:
                line = parse_object(file.readline(LONGEST_FIRST_LINE))
        except FileNotFoundError:
            # Deleted since it was listed.
            continue
        except OSError:
            # Who takes it in will be told.
            line = {"payload": {"id": path.stem}}
        meta = dict_of(line.get("payload")) if isinstance(line, dict) else {}
        thread_id = text_of(meta, "id")
        session_id = text_of(meta, "session_id") or thread_id
        if session_id is not None and thread_id == session_id:
            project = text_of(meta, "cwd")
            yield PastSession(
                path=path, session_id=session_id, project=project, changed_ns=changed_ns
            )

"""The sessions that OpenCode remembers: rows of its database, without those of subagents."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tracebridge.agents import PastSession
from tracebridge.agents.opencode.database import SESSION_ID

SESSIONS = """
    SELECT id, directory, time_updated FROM session WHERE parent_id IS NULL
    ORDER BY time_created, id
"""


def past_sessions(home: Path) -> Iterator[PastSession]:
    data = os.environ.get("XDG_DATA_HOME") or home / ".local" / "share"
    path = Path(data) / "opencode" / (os.environ.get("OPENCODE_DB") or "opencode.db")
    if not path.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(SESSIONS).fetchall()
    except sqlite3.Error as error:
        raise OSError(0, f"{error}; the sessions of OpenCode 1.18 look different", str(path)) from (
            error
        )
    for session_id, folder, updated in rows:
        if isinstance(session_id, str) and SESSION_ID.fullmatch(session_id):
            yield PastSession(
                path=path / session_id,
                session_id=session_id,
                project=folder if isinstance(folder, str) else None,
                changed_ns=updated * 1_000_000 if isinstance(updated, int) else 0,
            )

"""The sessions that Gemini CLI remembers: chat files in a folder for each project."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tracebridge.agents import PastSession
from tracebridge.agents.gemini_cli.prompts import session_files
from tracebridge.fields import text_of
from tracebridge.lines import parse_object, read_objects


def past_sessions(home: Path) -> Iterator[PastSession]:
    told: set[Path] = set()
    for path in sorted((home / ".gemini" / "tmp").glob("*/chats/session-*.json*")):
        if path in told:
            continue
        # A session that was resumed goes on in another file.
        files = session_files(path)
        told.update(files)
        changed_ns = 0
        try:
            changed_ns = max(file.stat().st_mtime_ns for file in files)
            session_id = _session_id(path)
        except FileNotFoundError:
            # Deleted since it was listed.
            continue
        except OSError:
            # Who takes it in will be told.
            session_id = path.stem
        if session_id is not None:
            project = path.parent.parent.name
            yield PastSession(
                path=path, session_id=session_id, project=project, changed_ns=changed_ns
            )


def _session_id(path: Path) -> str | None:
    if path.suffix == ".json":
        # As older versions wrote them: one document.
        document = parse_object(path.read_bytes())
        return None if isinstance(document, str) else text_of(document, "sessionId")
    lines = (line for line, _ in islice(read_objects(path, 0), 1))
    return next((text_of(line, "sessionId") for line in lines if isinstance(line, dict)), None)

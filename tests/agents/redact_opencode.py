"""Turn a recording of a real OpenCode session into a golden folder.

    python tests/agents/redact_opencode.py HOOKS_JSONL DATABASE FOLDER

Of the database only what the adapter reads is kept; paths become neutral.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

COLUMNS = {
    "session": "id, parent_id, directory, version, agent, time_created, time_updated",
    "message": "id, session_id, time_created, time_updated, data",
    "part": "id, message_id, session_id, time_created, time_updated, data",
}


def main(hooks: Path, database: Path, folder: Path) -> None:
    home = str(database).split("/home/.local/")[0]
    (folder / "transcripts").mkdir(parents=True, exist_ok=True)

    def neutral(text: str) -> str:
        # Titles of tools are paths without their first slash.
        return text.replace(home, "/home/user").replace(home[1:], "home/user")

    (folder / "hooks.jsonl").write_text(neutral(hooks.read_text()))
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(":memory:")) as kept:
        for table, columns in COLUMNS.items():
            kept.execute(f"CREATE TABLE {table} ({columns})")
            rows = source.execute(f"SELECT {columns} FROM {table} ORDER BY id").fetchall()
            marks = ",".join("?" * len(columns.split(",")))
            kept.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        dump = "".join(f"{line}\n" for line in kept.iterdump())
    (folder / "transcripts" / "opencode.sql").write_text(neutral(dump))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

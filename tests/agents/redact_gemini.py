"""Turn a recording of a real Gemini CLI session into a golden folder.

    python tests/agents/redact_gemini.py RECORDING FOLDER

Kept are the fields that the adapter reads, and a few that it must pass over; the context that the
vendor puts before a session goes, and so does what names the machine.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

BULKY = {"originalContent", "newContent"}


def main(recording: Path, folder: Path) -> None:
    scratch = _scratch(recording)

    def neutral(text: str) -> str:
        return re.sub(r"Process Group PGID: \d+", "Process Group PGID: 1", text).replace(
            scratch, "/home/user"
        )

    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "hooks.jsonl", _objects(recording / "hooks.jsonl"), neutral)
    for file in sorted((recording / "transcripts").rglob("*.jsonl")):
        place = folder / "transcripts" / file.relative_to(recording / "transcripts")
        _write(place, _objects(file), neutral)


def _scratch(recording: Path) -> str:
    first = _objects(recording / "hooks.jsonl")[0]["payload"]["transcript_path"]
    return str(first).split("/home/.gemini/")[0]


def _without_bulk(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_bulk(item) for name, item in value.items() if name not in BULKY}
    if isinstance(value, list):
        return [_without_bulk(item) for item in value]
    if isinstance(value, str) and value.startswith("<session_context>"):
        return "<session_context>[the vendor's words]"
    return value


def _objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _write(path: Path, records: list[dict[str, Any]], neutral) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [neutral(json.dumps(_without_bulk(record))) + "\n" for record in records]
    path.write_text("".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

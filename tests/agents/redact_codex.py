"""Turn a recording of a real Codex CLI session into a golden folder.

    python tests/agents/redact_codex.py RECORDING FOLDER

Kept are the fields that the adapter reads. Prompts of the vendor, encrypted reasoning, settings of
the machine and everything else that says more than the shape of the format go.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

HOOK_FIELDS = {
    "agent_id",
    "agent_transcript_path",
    "agent_type",
    "cwd",
    "hook_event_name",
    "last_assistant_message",
    "model",
    "permission_mode",
    "prompt",
    "reason",
    "session_id",
    "source",
    "stop_hook_active",
    "tool_input",
    "tool_name",
    "tool_response",
    "tool_use_id",
    "transcript_path",
    "trigger",
    "turn_id",
}
PAYLOAD_FIELDS = {
    "session_meta": {
        "cli_version",
        "cwd",
        "forked_from_id",
        "git",
        "id",
        "parent_thread_id",
        "session_id",
        "source",
        "thread_source",
    },
    "turn_context": {"cwd", "model", "root_turn_id", "turn_id"},
    "token_usage_record": {
        "response_id",
        "root_turn_id",
        "session_id",
        "thread_id",
        "turn_id",
        "turn_token_usage",
        "usage",
    },
    "response_item": {
        "arguments",
        "author",
        "call_id",
        "input",
        "internal_chat_message_metadata_passthrough",
        "name",
        "namespace",
        "output",
        "type",
    },
    "compacted": {"compaction_response_id"},
    "inter_agent_communication_metadata": {"trigger_turn"},
}
# Their content is the vendor's or a copy of what an item tells.
SILENT_ITEMS = {"message", "reasoning"}


def main(recording: Path, folder: Path) -> None:
    workdir = _workdir(recording)
    folder.mkdir(parents=True, exist_ok=True)

    def neutral(text: str) -> str:
        text = text.replace(f"{workdir}/home", "/home/user")
        text = text.replace(workdir, "/home/user")
        return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", text)

    hooks = [
        {
            "time_ns": event["time_ns"],
            "payload": {k: v for k, v in event["payload"].items() if k in HOOK_FIELDS},
        }
        for event in _objects(recording / "hooks.jsonl")
    ]
    _write(folder / "hooks.jsonl", hooks, neutral)
    for file in sorted((recording / "transcripts").rglob("*.jsonl")):
        place = folder / "transcripts" / file.relative_to(recording / "transcripts")
        _write(place, [kept for line in _objects(file) if (kept := _line(line))], neutral)


def _workdir(recording: Path) -> str:
    first = next(iter(_objects(recording / "hooks.jsonl")))["payload"]["transcript_path"]
    return str(first).split("/home/.codex/")[0]


def _line(line: dict[str, Any]) -> dict[str, Any] | None:
    kind, payload = line["type"], line["payload"]
    if kind == "event_msg":
        if payload["type"] == "token_count":
            return None
        if payload["type"] == "thread_settings_applied":
            payload = {k: v for k, v in payload.items() if k in {"type", "thread_id"}}
    elif kind not in PAYLOAD_FIELDS or payload.get("type") in SILENT_ITEMS:
        return None
    else:
        payload = {k: v for k, v in payload.items() if k in PAYLOAD_FIELDS[kind]}
    return {"timestamp": line["timestamp"], "type": kind, "payload": payload}


def _objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _write(path: Path, records: list[dict[str, Any]], neutral) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(neutral(json.dumps(record)) + "\n" for record in records))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

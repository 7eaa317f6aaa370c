"""Turn a recording of a real Claude Code session into a golden folder.

    python tests/agents/redact.py RECORDING FOLDER

Kept are the fields that the adapter reads, and a few that it must pass over. Prompts of the vendor,
file contents, environment and everything else that says more than the shape of the format go.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

HOOK_FIELDS = {
    "agent_id",
    "agent_type",
    "background_tasks",
    "cwd",
    "duration_ms",
    "error",
    "hook_event_name",
    "is_interrupt",
    "last_assistant_message",
    "permission_mode",
    "prompt",
    "prompt_id",
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
}
LINE_FIELDS = {
    "agentId",
    "apiBlockIndex",
    "apiError",
    "apiErrorStatus",
    "compactMetadata",
    "cwd",
    "error",
    "gitBranch",
    "id",
    "isAbortedMidStream",
    "isApiErrorMessage",
    "isCompactSummary",
    "isMeta",
    "isSidechain",
    "message",
    "parentUuid",
    "permissionDecision",
    "promptId",
    "promptSource",
    "requestId",
    "requestRef",
    "requestedModel",
    "retryAttempt",
    "sessionId",
    "subtype",
    "thinkingDurationMs",
    "timestamp",
    "toolDenialBeforeRun",
    "toolDenialKind",
    "toolUseResult",
    "turnOrigin",
    "type",
    "uuid",
    "version",
}
LINES = {"user", "assistant", "system", "api-request", "queue-operation", "attachment"}


def main(recording: Path, folder: Path) -> None:
    home = _home(recording)
    folder.mkdir(parents=True, exist_ok=True)

    def neutral(text: str) -> str:
        slug = re.sub(r"[^0-9A-Za-z]", "-", home)
        text = text.replace(home, "/home/user").replace(slug, "-home-user")
        return re.sub(r"/tmp/claude-\d+", "/tmp/claude", text)

    hooks = [
        {"time_ns": event["time_ns"], "payload": _only(event["payload"], HOOK_FIELDS)}
        for event in _objects(recording / "hooks.jsonl")
        if event["payload"]["hook_event_name"] != "PostToolBatch"
    ]
    _write(folder / "hooks.jsonl", hooks, neutral)
    for file in sorted((recording / "transcripts").rglob("*")):
        place = folder / "transcripts" / neutral(str(file.relative_to(recording / "transcripts")))
        if file.name.endswith(".meta.json"):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(neutral(file.read_text()))
        elif file.suffix == ".jsonl":
            _write(place, [line for each in _objects(file) if (line := _line(each))], neutral)


def _home(recording: Path) -> str:
    first = next(iter(_objects(recording / "hooks.jsonl")))["payload"]["transcript_path"]
    return str(first).split("/home/.claude/")[0]


def _line(line: dict[str, Any]) -> dict[str, Any] | None:
    if line["type"] not in LINES:
        return None
    if line["type"] == "attachment":
        if line["attachment"].get("type") != "queued_command":
            return None
        return _only(line, LINE_FIELDS) | {"attachment": line["attachment"]}
    kept = _only(line, LINE_FIELDS)
    if line["type"] == "api-request":
        kept["params"] = {"model": line["params"]["model"]}
    if line.get("isMeta") or line.get("isCompactSummary"):
        kept["message"] = {"role": "user", "content": "[the vendor's words]"}
    for block in kept.get("message", {}).get("content", []):
        for inner in block.get("content", []) if isinstance(block, dict) else []:
            if isinstance(inner, dict) and str(inner.get("text")).startswith("Async agent"):
                inner["text"] = "[the vendor's words]"
    if isinstance(kept.get("toolUseResult"), dict):
        kept["toolUseResult"].pop("originalFile", None)
    return kept


def _only(record: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name in names}


def _objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _write(path: Path, records: list[dict[str, Any]], neutral) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(neutral(json.dumps(record)) + "\n" for record in records))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

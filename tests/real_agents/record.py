"""Record what the real Claude Code leaves behind in each scenario, for reading and for fixtures.

    python tests/real_agents/record.py FOLDER [SCENARIO ...]

Per scenario: hooks.jsonl, the transcripts, truth.json (what the model saw), played.json.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scenarios import SCENARIOS, Stage

from tracebridge.testing.scripted_model import ScriptedModel

EVENTS = (
    "SessionStart",
    "UserPromptSubmit",
    "PreToolUse",
    "PostToolUse",
    "PostToolUseFailure",
    "PostToolBatch",
    "PermissionRequest",
    "PermissionDenied",
    "Notification",
    "SubagentStart",
    "SubagentStop",
    "PreCompact",
    "PostCompact",
    "Stop",
    "StopFailure",
    "SessionEnd",
)

HOOK = """#!/bin/sh
now=$(date +%s%N)
cat > "$1/.$now-$$" && mv "$1/.$now-$$" "$1/$now-$$"
"""


def recording_hooks(folder: Path) -> dict[str, Any]:
    """Return hook settings that put each payload into a file of its own, named by its time."""
    events = folder / "events"
    events.mkdir(parents=True)
    script = folder / "record.sh"
    script.write_text(HOOK)
    script.chmod(0o755)
    hook = {"type": "command", "command": f"{script} {events}", "timeout": 5}
    return {event: [{"hooks": [hook]}] for event in EVENTS}


def record(name: str, folder: Path) -> str:
    """Play one scenario and return a line about it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch, ScriptedModel() as model:
        workdir = Path(scratch)
        hooks = recording_hooks(workdir / "recorder")
        complaint = ""
        try:
            played = SCENARIOS[name](Stage(workdir, model, model.url, hooks))
            (folder / "played.json").write_text(json.dumps(asdict(played), indent=1))
        except (TimeoutError, ValueError, KeyError) as error:
            complaint = f" FAILED: {error}"
        lines = []
        for event in sorted((workdir / "recorder" / "events").iterdir()):
            payload = json.loads(event.read_bytes())
            lines.append({"time_ns": int(event.name.partition("-")[0]), "payload": payload})
        (folder / "hooks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        transcripts = workdir / "home" / ".claude" / "projects"
        if transcripts.exists():
            shutil.copytree(transcripts, folder / "transcripts")
        truth = model.ground_truth()
        for attempt in truth:
            for bulky in ("system", "tools"):
                if attempt["body"] and bulky in attempt["body"]:
                    attempt["body"][bulky] = f"{len(attempt['body'][bulky])} left out"
        (folder / "truth.json").write_text(json.dumps(truth, indent=1))
    count = f"{len(lines)} hook events, {len(truth)} requests"
    return f"- {name}: {count}, {[line['payload']['hook_event_name'] for line in lines]}{complaint}"


def main() -> None:
    target, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names or SCENARIOS:
        line = record(name, target / name)
        sys.stdout.write(line + "\n")
        index = target / "INDEX.md"
        known = index.read_text().splitlines() if index.exists() else []
        kept = [other for other in known if not other.startswith(f"- {name}:")]
        index.write_text("\n".join([*kept, line, ""]))


if __name__ == "__main__":
    main()

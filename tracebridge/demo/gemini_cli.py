"""Gemini CLI: a file, a change, a retried call and a failing command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tracebridge.testing.scripted_gemini import ScriptedGemini
from tracebridge.testing.scripted_model import HttpError, Reply, Text, Thinking, ToolUse

MODEL = ScriptedGemini
FAMILY = "gemini"
PROMPT = "Make greet.py say hello to the world, and run it."
HAS_STAND_IN = False
ENV = {"GEMINI_API_KEY": "demo-not-a-key"}


def script(project: Path) -> dict[str, Sequence[Reply]]:
    file = str(project / "greet.py")
    change = {
        "file_path": file,
        "instruction": "greet the world",
        "old_string": 'print("hello")',
        "new_string": 'name = "world"\nprint(f"hello {name}")',
    }
    return {
        PROMPT[:20]: [
            Reply(
                (
                    Thinking("**Plan** A file, then a run."),
                    Text("I will write the file first."),
                    ToolUse("write_file", {"file_path": file, "content": 'print("hello")\n'}),
                )
            ),
            Reply((ToolUse("replace", change),), failures=(HttpError(429),)),
            Reply((_shell("python3 greet.py"), _shell("exit 3"))),
            Reply((Text("Done: greet.py says hello to the world."),)),
        ],
    }


def prepare(home: Path, project: Path) -> None:
    del project
    settings = {
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"enableAutoUpdate": False},
    }
    (home / ".gemini").mkdir()
    (home / ".gemini" / "settings.json").write_text(json.dumps(settings), "utf-8")


def command(program: str) -> list[str]:
    return [program, "-m", "gemini-2.5-pro", "--skip-trust", "-y", "-p", PROMPT]


def _shell(line: str) -> ToolUse:
    return ToolUse("run_shell_command", {"command": line, "description": "a scripted command"})

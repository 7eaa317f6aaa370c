"""OpenCode: a file, a change, a retried call, a failing command and a subagent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tracebridge.testing.scripted_model import (
    HttpError,
    Reply,
    ScriptedModel,
    Text,
    Thinking,
    ToolUse,
)

MODEL = ScriptedModel
FAMILY = "anthropic"
PROMPT = "Make greet.py say hello to the world, run it, and have a helper review it."
REVIEW = "Review greet.py in one sentence."
HAS_STAND_IN = False
ENV = {
    "ANTHROPIC_API_KEY": "sk-demo-not-a-key",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
}


def script(project: Path) -> dict[str, Sequence[Reply]]:
    file = str(project / "greet.py")
    change = {
        "filePath": file,
        "oldString": 'print("hello")',
        "newString": 'name = "world"\nprint(f"hello {name}")',
    }
    helper = {"description": "review", "prompt": REVIEW, "subagent_type": "general"}
    return {
        PROMPT[:20]: [
            Reply(
                (
                    Thinking("A file, a run and a review. First the file."),
                    Text("I will write the file first."),
                    ToolUse("write", {"filePath": file, "content": 'print("hello")\n'}),
                )
            ),
            Reply((ToolUse("edit", change),), failures=(HttpError(429),)),
            Reply((_bash("python3 greet.py"), _bash("exit 3"))),
            Reply((ToolUse("task", helper),)),
            Reply((Text("Done: greet.py says hello to the world."),)),
        ],
        REVIEW: [
            Reply((Thinking("Short file."), ToolUse("read", {"filePath": file}))),
            Reply((Text("It is short and does what it says."),)),
        ],
    }


def prepare(home: Path, project: Path) -> None:
    del project
    folder = home / ".config" / "opencode"
    folder.mkdir(parents=True)
    settings = {"autoupdate": False, "share": "disabled", "permission": {"*": "allow"}}
    (folder / "opencode.json").write_text(json.dumps(settings), "utf-8")


def command(program: str) -> list[str]:
    # One argument with spaces in it would reach the model in quotation marks.
    return [program, "run", "-m", "anthropic/claude-haiku-4-5", *PROMPT.split()]


def _bash(line: str) -> ToolUse:
    return ToolUse("bash", {"command": line, "description": "a scripted command"})

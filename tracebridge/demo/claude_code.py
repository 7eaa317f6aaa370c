"""Claude Code: a file, a retried call, a failing command and a subagent."""

from __future__ import annotations

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
HAS_STAND_IN = True
ENV = {
    "ANTHROPIC_API_KEY": "sk-demo-not-a-key",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    # Claude Code refuses to skip permissions for root outside a sandbox.
    "IS_SANDBOX": "1",
}


def script(project: Path) -> dict[str, Sequence[Reply]]:
    file = str(project / "greet.py")
    return {
        PROMPT[:20]: [
            Reply(
                (
                    Thinking("A file, a run and a review. First the file."),
                    Text("I will write the file first."),
                    ToolUse("Write", {"file_path": file, "content": 'print("hello")\n'}),
                )
            ),
            Reply(
                (
                    ToolUse(
                        "Edit",
                        {
                            "file_path": file,
                            "old_string": 'print("hello")',
                            "new_string": 'name = "world"\nprint(f"hello {name}")',
                        },
                    ),
                ),
                failures=(HttpError(429),),
            ),
            Reply(
                (
                    ToolUse("Bash", {"command": "python3 greet.py", "description": "run it"}),
                    ToolUse("Bash", {"command": "exit 3", "description": "a failing command"}),
                )
            ),
            Reply(
                (
                    ToolUse(
                        "Agent",
                        {
                            "description": "review",
                            "prompt": REVIEW,
                            "subagent_type": "general-purpose",
                            "run_in_background": False,
                        },
                    ),
                )
            ),
            Reply((Text("Done: greet.py says hello to the world."),)),
        ],
        REVIEW: [
            Reply((Thinking("Short file."), ToolUse("Read", {"file_path": file}))),
            Reply((Text("It is short and does what it says."),)),
        ],
    }


def prepare(home: Path, project: Path) -> None:
    del home, project  # It finds all that it needs in its environment.


def command(program: str) -> list[str]:
    return [program, "-p", PROMPT, "--dangerously-skip-permissions"]

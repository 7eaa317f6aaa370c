"""Codex CLI: two patches, a retried call, a failing command and a subagent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tracebridge.testing.scripted_model import HttpError, Reply, Text, Thinking, ToolUse
from tracebridge.testing.scripted_responses import ScriptedResponses

MODEL = ScriptedResponses
FAMILY = "openai"
PROMPT = "Make greet.py say hello to the world, run it, and have a helper review it."
REVIEW = "Review greet.py in one sentence."
HAS_STAND_IN = False
ENV = {"DEMO_API_KEY": "sk-demo-not-a-key"}
CONFIG = """
model = "openai/gpt-5.5"
model_provider = "demo"
model_reasoning_summary = "auto"

[model_providers.demo]
name = "Demo"
base_url = "http://127.0.0.1:9"
wire_api = "responses"
env_key = "DEMO_API_KEY"

[features]
multi_agent_v2 = true

[projects.{project}]
trust_level = "trusted"
"""
ADD = """*** Begin Patch
*** Add File: greet.py
+print("hello")
*** End Patch
"""
UPDATE = """*** Begin Patch
*** Update File: greet.py
@@
-print("hello")
+name = "world"
+print(f"hello {name}")
*** End Patch
"""


def script(project: Path) -> dict[str, Sequence[Reply]]:
    del project  # It is where the agent works.
    helper = {"message": REVIEW, "task_name": "review"}
    return {
        PROMPT[:20]: [
            Reply((Thinking("A file, a run and a review. First the file."), _patch(ADD))),
            Reply((_patch(UPDATE),), failures=(HttpError(500),)),
            Reply((_shell("python3 greet.py"), _shell("exit 3"))),
            Reply((ToolUse("collaboration.spawn_agent", helper),)),
            Reply((ToolUse("collaboration.wait_agent", {"timeout_ms": 30000}),)),
            Reply((Text("Done: greet.py says hello to the world."),)),
        ],
        REVIEW: [
            Reply((Thinking("Short file."), _shell("cat greet.py"))),
            Reply((Text("It is short and does what it says."),)),
        ],
    }


def prepare(home: Path, project: Path) -> None:
    (home / ".codex").mkdir()
    config = CONFIG.format(project=json.dumps(str(project)))
    (home / ".codex" / "config.toml").write_text(config, "utf-8")


def command(program: str) -> list[str]:
    # The scripted commands are harmless, and containers let nobody make a sandbox inside them.
    alone = "--dangerously-bypass-approvals-and-sandbox"
    return [program, "exec", "--skip-git-repo-check", alone, PROMPT]


def _patch(text: str) -> ToolUse:
    return ToolUse("apply_patch", {"patch": text})


def _shell(line: str) -> ToolUse:
    return ToolUse("exec_command", {"cmd": line})

"""Record what the real OpenCode leaves behind in each scenario, as golden folders.

    python tests/real_agents/record_opencode.py [SCENARIO ...]

The plugin's events come from a spool that nobody reads, the rest from OpenCode's database.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "agents"))

from opencode import MODEL
from opencode_scenarios import SCENARIOS, Stage, patch
from redact_opencode import main as redact

from tracebridge.agents import opencode
from tracebridge.integrate import hook_commands
from tracebridge.model import HookEvent
from tracebridge.spool import Spool
from tracebridge.testing.scripted_model import ScriptedModel
from tracebridge.testing.scripted_responses import ScriptedResponses

OPENAI_MODEL = "openai/gpt-5.5"
GOLDEN = Path(__file__).resolve().parents[1] / "agents" / "opencode"


def record(name: str, folder: Path) -> None:
    shape, llm = (ScriptedModel, MODEL) if name in SCENARIOS else (ScriptedResponses, OPENAI_MODEL)
    with tempfile.TemporaryDirectory() as scratch, shape() as model:
        home, workdir = Path(scratch, "state"), Path(scratch, "play")
        stage = Stage(
            workdir=workdir,
            model=model,
            base_url=f"{model.url}/v1",
            settings=opencode.wire({}, hook_commands(opencode, home)),
            env={"TRACEBRIDGE_NO_WATCH": "1", "TRACEBRIDGE_HOME": str(home)},
            llm=llm,
        )
        SCENARIOS.get(name, patch)(stage)
        events = [file.content for file in Spool(home).read()]
        lines = [
            {"time_ns": event.time_ns, "payload": json.loads(event.payload)}
            for event in events
            if isinstance(event, HookEvent) and event.payload
        ]
        hooks = Path(scratch, "hooks.jsonl")
        hooks.write_text("".join(json.dumps(line) + "\n" for line in lines))
        redact(hooks, stage.opencode().database, folder)


if __name__ == "__main__":
    for each in sys.argv[1:] or SCENARIOS:
        record(each, GOLDEN / each)

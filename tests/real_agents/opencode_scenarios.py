"""What a user does with OpenCode, and what the scripted model says meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opencode import Finished, OpenCode
from terminal import wait_until

from tracebridge.testing.scripted_model import (
    Cut,
    Hold,
    HttpError,
    Reply,
    ScriptedModel,
    Text,
    Thinking,
    ToolUse,
)


@dataclass
class Stage:
    """Where a scenario plays: *base_url* is a gateway in front of the model, or the model."""

    workdir: Path
    model: ScriptedModel
    base_url: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    launcher: Sequence[str] = ()

    def opencode(self) -> OpenCode:
        return OpenCode(
            workdir=self.workdir,
            base_url=self.base_url,
            settings=self.settings,
            env=self.env,
            launcher=self.launcher,
        )

    @property
    def project(self) -> Path:
        return self.workdir / "project"


@dataclass(frozen=True)
class Played:
    exit_codes: tuple[int, ...]
    session_ids: tuple[str, ...]


def simple(stage: Stage) -> Played:
    stage.model.script({"say hello": [Reply([Thinking("A greeting."), Text("Hello there.")])]})
    return _run(stage, "say hello")


def tools(stage: Stage) -> Played:
    path = str(stage.project / "greet.py")
    written = {"filePath": path, "content": 'def greet():\n    return "hi"\n'}
    changed = {
        "filePath": path,
        "oldString": '    return "hi"\n',
        "newString": '    name = "world"\n    return f"hi {name}"\n',
    }
    stage.model.script(
        {
            "write the greeting": [
                Reply(
                    [
                        Thinking("A file, then a change."),
                        Text("I write the file."),
                        ToolUse("write", written),
                    ]
                ),
                Reply([ToolUse("edit", changed)]),
                Reply([_bash("echo broken >&2; exit 3")]),
                Reply([Thinking("Look at it."), ToolUse("read", {"filePath": path})]),
                Reply([ToolUse("edit", {**changed, "oldString": "not in the file"})]),
                Reply([Text("The greeting is written.")]),
            ]
        }
    )
    return _run(stage, "write the greeting")


def parallel_tools(stage: Stage) -> Played:
    new = {"filePath": str(stage.project / "new.txt"), "content": "x"}
    stage.model.script(
        {
            "do three things": [
                Reply(
                    [Text("At once."), _bash("exit 4"), ToolUse("write", new), _bash("echo three")]
                ),
                Reply([Text("Three things done.")]),
            ]
        }
    )
    return _run(stage, "do three things")


def subagents(stage: Stage) -> Played:
    stage.model.script(
        {
            "send two agents": [
                Reply([_task("quick look", "look quickly"), _task("long look", "look for long")]),
                Reply([Text("Both are back.")]),
            ],
            "look quickly": [Reply([_bash("echo quick")]), Reply([Text("Quickly seen.")])],
            "look for long": [
                Reply([_bash("echo long")]),
                Reply([Thinking("Enough."), Text("Seen for long.")]),
            ],
        }
    )
    return _run(stage, "send two agents")


def retry_429(stage: Stage) -> Played:
    reply = Reply([Text("Second time lucky.")], failures=[HttpError(429)])
    stage.model.script({"try hard": [Reply([_bash("echo first")]), reply]})
    return _run(stage, "try hard")


def error_400(stage: Stage) -> Played:
    never = Reply([Text("Never said.")], failures=[HttpError(400)] * 50)
    stage.model.script({"ask wrongly": [never]})
    return _run(stage, "ask wrongly")


def stream_cut(stage: Stage) -> Played:
    """End the stream early twice: OpenCode takes what came for an answer, and asks again."""
    cut = Cut(5, clean=True)
    reply = Reply([Text("Whole in the end, after two early ends.")], failures=[cut])
    stage.model.script({"tell a tale": [reply, reply, reply]})
    return _run(stage, "tell a tale")


def sigint_stream(stage: Stage) -> Played:
    hold = Hold("never opened", after_events=5)
    tale = Reply([Text("Once upon a time there was a tale.")], hold=hold)
    stage.model.script({"tell a tale": [tale]})
    opencode = stage.opencode()
    running = opencode.start("tell a tale")
    stage.model.wait_until_held("never opened")
    opencode.wait_for_part('"type":"text","text":""')
    running.send(signal.SIGINT)
    return _played(opencode, running.finish())


def sigkill_tool(stage: Stage) -> Played:
    started = stage.project / "started"
    command = "touch started; exec sleep 60"
    stage.model.script({"run for long": [Reply([Text("I run it."), _bash(command)])]})
    opencode = stage.opencode()
    running = opencode.start("run for long")
    wait_until(started.exists, complaint="the tool did not start")
    running.send(signal.SIGKILL)
    return _played(opencode, running.finish())


def continue_(stage: Stage) -> Played:
    stage.model.script(
        {
            "say hello": [Reply([_bash("echo hello")]), Reply([Text("Hello there.")])],
            "say it again": [Reply([_bash("echo again")]), Reply([Text("Hello again.")])],
        }
    )
    opencode = stage.opencode()
    first = opencode.run("say hello")
    return _played(opencode, first, opencode.run("say it again", "--continue"))


SCENARIOS: dict[str, Callable[[Stage], Played]] = {
    scenario.__name__.rstrip("_"): scenario
    for scenario in (
        simple,
        tools,
        parallel_tools,
        subagents,
        retry_429,
        error_400,
        stream_cut,
        sigint_stream,
        sigkill_tool,
        continue_,
    )
}


def _bash(command: str) -> ToolUse:
    return ToolUse("bash", {"command": command, "description": "a scripted command"})


def _task(description: str, prompt: str) -> ToolUse:
    return ToolUse(
        "task", {"description": description, "prompt": prompt, "subagent_type": "general"}
    )


def _run(stage: Stage, prompt: str) -> Played:
    opencode = stage.opencode()
    return _played(opencode, opencode.run(prompt))


def _played(opencode: OpenCode, *runs: Finished) -> Played:
    return Played(tuple(run.exit_code for run in runs), opencode.session_ids())

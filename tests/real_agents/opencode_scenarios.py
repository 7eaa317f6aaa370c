"""What a user does with OpenCode, and what the scripted model says meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opencode import MODEL, Finished, OpenCode
from terminal import PATIENCE_S, Terminal, wait_until

from tracebridge.testing.scripted_model import (
    Attempt,
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
    llm: str = MODEL

    def opencode(self, **settings: Any) -> OpenCode:
        return OpenCode(
            workdir=self.workdir,
            base_url=self.base_url,
            settings={**self.settings, **settings},
            env=self.env,
            launcher=self.launcher,
            model=self.llm,
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


def patch(stage: Stage) -> Played:
    stage.project.mkdir(parents=True)
    (stage.project / "old.py").write_text("one\ntwo\n")
    (stage.project / "gone.py").write_text("gone\n")
    text = """*** Begin Patch
*** Add File: new.py
+first
+second
*** Update File: old.py
@@
 one
-two
+three
*** Delete File: gone.py
*** End Patch"""
    stage.model.script(
        {
            "patch the files": [
                Reply([ToolUse("apply_patch", {"patchText": text})]),
                Reply([Text("Patched.")]),
            ]
        }
    )
    return _run(stage, "patch the files")


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


def nohup(stage: Stage) -> Played:
    """Send a signal that is ignored: the turn goes on, whoever listens for signals."""
    hold = Hold("the terminal is gone", after_events=5)
    stage.model.script({"tell a tale": [Reply([Text("Told to its end.")], hold=hold)]})
    opencode = stage.opencode()
    running = opencode.start("tell a tale", ignored=[signal.SIGHUP])
    stage.model.wait_until_held("the terminal is gone")
    running.send(signal.SIGHUP)
    stage.model.gate("the terminal is gone").set()
    return _played(opencode, running.finish())


def sigterm_tool(stage: Stage) -> Played:
    return _killed_in_a_tool(stage, signal.SIGTERM)


def sigkill_tool(stage: Stage) -> Played:
    return _killed_in_a_tool(stage, signal.SIGKILL)


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


def fork(stage: Stage) -> Played:
    """Go on in a copy of a session."""
    stage.model.script(
        {
            "say hello": [Reply([_bash("echo hello")]), Reply([Text("Hello there.")])],
            "say it again": [Reply([_bash("echo again")]), Reply([Text("Hello again.")])],
        }
    )
    opencode = stage.opencode()
    first = opencode.run("say hello")
    return _played(opencode, first, opencode.run("say it again", "--continue", "--fork"))


def stream_cut_forever(stage: Stage) -> Played:
    """End every stream early: OpenCode asks again until somebody stops it."""
    tale = Reply([Text("Never told to its end.")], failures=[Cut(5, clean=True)] * 1000)
    stage.model.script({"tell a tale": [tale] * 1000})
    opencode = stage.opencode()
    running = opencode.start("tell a tale")
    opencode.wait_for_messages('"finish":"unknown"', 15)
    running.send(signal.SIGINT)
    return _played(opencode, running.finish())


def too_long(stage: Stage) -> Played:
    """Refuse a request for its length: OpenCode sums up the session and goes on by itself."""
    refusal = HttpError(400, "prompt is too long: 300000 tokens > 200000 maximum")
    stage.model.script(
        {
            "read much": [
                Reply([_bash("echo much")]),
                Reply([Text("Never said.")], failures=[refusal] * 9),
            ],
            "The previous request exceeded": [Reply([Text("Read, and summed up.")])],
        }
    )
    return _run(stage, "read much")


def compact(stage: Stage) -> Played:
    _script_two_turns(stage)
    opencode = stage.opencode()
    with opencode.interactive() as terminal:
        terminal.say("say hello")
        terminal.wait_for_text("Hello there.")
        opencode.wait_for_messages('"finish":"stop"', 1)
        terminal.say("/compact")
        opencode.wait_for_messages('"finish":"stop"', 2)
        terminal.say("say it again")
        terminal.wait_for_text("Hello again.")
        opencode.wait_for_messages('"finish":"stop"', 3)
        return _leave(opencode, terminal)


def escape_stream(stage: Stage) -> Played:
    hold = Hold("never opened", after_events=5)
    tale = Reply([Text("Once upon a time there was a tale.")], hold=hold)
    _script_two_turns(stage)
    stage.model.script({"tell a tale": [tale]})
    opencode = stage.opencode()
    with opencode.interactive() as terminal:
        terminal.say("tell a tale")
        stage.model.wait_until_held("never opened")
        terminal.wait_for_text("Once upon")
        terminal.press("escape")
        terminal.wait_for_text("again to interrupt")
        terminal.press("escape")
        opencode.wait_for_messages("MessageAbortedError")
        terminal.say("say hello")
        terminal.wait_for_text("Hello there.")
        opencode.wait_for_messages('"finish":"stop"')
        return _leave(opencode, terminal)


def permission_allowed(stage: Stage) -> Played:
    opencode = stage.opencode(permission={"bash": "ask"})
    with _asked_for_permission(stage, opencode) as terminal:
        terminal.answer("enter", "Permission required")
        opencode.wait_for_messages('"finish":"stop"')
        return _leave(opencode, terminal)


def permission_denied(stage: Stage) -> Played:
    opencode = stage.opencode(permission={"bash": "ask"})
    with _asked_for_permission(stage, opencode) as terminal:
        terminal.answer("escape", "Permission required")
        opencode.wait_for_part("The user rejected permission")
        opencode.wait_for_messages('"completed"')
        return _leave(opencode, terminal)


def queued_prompt(stage: Stage) -> Played:
    """Say something while the agent works: it takes it up with its next call."""
    hold = Hold("the second is said")
    # Longer than a turn has to be quiet to be taken for over.
    stage.model.script(
        {
            "run for long": [Reply([_bash("sleep 3")], hold=hold), Reply([Text("Ran.")])],
            "say hello": [Reply([Text("Hello there.")])],
        }
    )
    opencode = stage.opencode()
    with opencode.interactive() as terminal:
        terminal.say("run for long")
        stage.model.wait_until_held("the second is said")
        terminal.say("say hello")
        opencode.wait_for_part("say hello")
        stage.model.gate("the second is said").set()
        terminal.wait_for_text("Hello there.")
        opencode.wait_for_messages('"finish":"stop"')
        return _leave(opencode, terminal)


def two_sessions(stage: Stage) -> Played:
    """Two at once in one folder, each held until both have asked."""
    for word in ("red", "green"):
        stage.model.script(
            {
                f"work on {word}": [
                    Reply([_bash(f"echo {word}")], hold=Hold("both")),
                    Reply([Text(f"{word} done.")]),
                ]
            }
        )
    opencode = stage.opencode()
    running = []
    for word in ("red", "green"):
        # One behind the other: two that find no database both begin to make it.
        running.append(opencode.start(f"work on {word}"))
        stage.model.wait_for_request(_asks(f"work on {word}"), PATIENCE_S)
    stage.model.gate("both").set()
    return _played(opencode, *(each.finish() for each in running))


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
        sigterm_tool,
        nohup,
        sigkill_tool,
        continue_,
        fork,
        stream_cut_forever,
        too_long,
        compact,
        escape_stream,
        permission_allowed,
        permission_denied,
        queued_prompt,
        two_sessions,
    )
}


def _asks(prompt: str) -> Callable[[Attempt], bool]:
    return lambda attempt: attempt.prompt == prompt and attempt.request_class == "main"


def _killed_in_a_tool(stage: Stage, signal_number: signal.Signals) -> Played:
    started = stage.project / "started"
    command = "touch started; exec sleep 60"
    stage.model.script({"run for long": [Reply([Text("I run it."), _bash(command)])]})
    opencode = stage.opencode()
    running = opencode.start("run for long")
    wait_until(started.exists, complaint="the tool did not start")
    running.send(signal_number)
    return _played(opencode, running.finish())


def _script_two_turns(stage: Stage) -> None:
    stage.model.script(
        {
            "say hello": [Reply([Text("Hello there.")])],
            "say it again": [Reply([Text("Hello again.")])],
        }
    )


@contextmanager
def _asked_for_permission(stage: Stage, opencode: OpenCode) -> Iterator[Terminal]:
    stage.model.script({"run it": [Reply([_bash("echo asked")]), Reply([Text("It ran.")])]})
    with opencode.interactive() as terminal:
        terminal.say("run it")
        terminal.wait_for_text("Permission required")
        yield terminal


def _leave(opencode: OpenCode, terminal: Terminal) -> Played:
    """End it as a user does who closes the window."""
    terminal.process.send_signal(signal.SIGHUP)
    return Played((terminal.wait(),), opencode.session_ids())


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

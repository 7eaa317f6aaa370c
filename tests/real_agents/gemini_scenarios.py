"""What a user does with Gemini CLI, and what the scripted model says meanwhile."""

from __future__ import annotations

import re
import signal
import subprocess
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gemini import Finished, GeminiCli, say, wait_until_idle
from terminal import Terminal

from tracebridge.testing.scripted_gemini import ScriptedGemini
from tracebridge.testing.scripted_model import (
    Cut,
    Hold,
    HttpError,
    Reply,
    Text,
    Thinking,
    ToolUse,
)


@dataclass
class Stage:
    """Where a scenario plays: *base_url* is a gateway in front of the model, or the model."""

    workdir: Path
    model: ScriptedGemini
    base_url: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    launcher: Sequence[str] = ()

    def gemini(self, *, max_attempts: int = 3) -> GeminiCli:
        return GeminiCli(
            workdir=self.workdir,
            base_url=self.base_url,
            settings=self.settings,
            env=self.env,
            launcher=self.launcher,
            max_attempts=max_attempts,
        )

    @property
    def project(self) -> Path:
        return self.workdir / "project"


@dataclass(frozen=True)
class Played:
    exit_codes: tuple[int, ...]
    session_ids: tuple[str, ...]


Scenario = Callable[[Stage], Played]


def simple(stage: Stage) -> Played:
    stage.model.script({"say hello": [Reply([Thinking("A greeting."), Text("Hello there.")])]})
    return _played(stage.gemini().run("say hello"))


def tools(stage: Stage) -> Played:
    path = str(stage.project / "greet.py")
    stage.model.script(
        {
            "write the greeting": [
                Reply(
                    [
                        Thinking("**Plan** First the file."),
                        Text("I write it."),
                        ToolUse("write_file", {"file_path": path, "content": "a = 1\nprint(a)\n"}),
                    ]
                ),
                Reply(
                    [
                        ToolUse(
                            "replace",
                            {
                                "file_path": path,
                                "instruction": "two",
                                "old_string": "a = 1",
                                "new_string": "a = 2\nb = 3",
                            },
                        )
                    ]
                ),
                Reply([Thinking("Now fail."), _shell("echo bad >&2; exit 3")]),
                Reply(
                    [
                        ToolUse(
                            "replace",
                            {
                                "file_path": str(stage.project / "nope.py"),
                                "instruction": "none",
                                "old_string": "x",
                                "new_string": "y",
                            },
                        )
                    ]
                ),
                Reply([Thinking("Done."), Text("The greeting is written.")]),
            ]
        }
    )
    return _played(stage.gemini().run("write the greeting"))


def parallel_tools(stage: Stage) -> Played:
    stage.model.script(
        {
            "do three things": [
                Reply(
                    [
                        Thinking("All at once."),
                        Text("Three at once."),
                        ToolUse("read_file", {"file_path": str(stage.project / "notes.txt")}),
                        _shell("echo twice"),
                        _shell("echo twice"),
                        _shell("exit 4"),
                    ]
                ),
                Reply([Text("Three things done.")]),
            ]
        }
    )
    gemini = stage.gemini()
    (stage.project / "notes.txt").write_text("one\ntwo\n")
    return _played(gemini.run("do three things"))


def retry_429_500(stage: Stage) -> Played:
    reply = Reply([Text("Third time lucky.")], failures=[HttpError(429), HttpError(500)])
    stage.model.script({"try hard": [Reply([_shell("echo first")]), reply]})
    return _played(stage.gemini().run("try hard"))


def error_400(stage: Stage) -> Played:
    return _always_failing(stage, 400)


def error_401(stage: Stage) -> Played:
    return _always_failing(stage, 401)


def error_429(stage: Stage) -> Played:
    return _always_failing(stage, 429)


def error_500(stage: Stage) -> Played:
    return _always_failing(stage, 500)


def stream_cut(stage: Stage) -> Played:
    reply = Reply([Text("Half of it is said.")], failures=[Cut(after_events=1, clean=True)] * 12)
    stage.model.script({"cut it": [reply]})
    return _played(stage.gemini().run("cut it"))


def stream_cut_once(stage: Stage) -> Played:
    reply = Reply([Text("All of it is said.")], failures=[Cut(after_events=1, clean=True)])
    stage.model.script({"cut it once": [reply]})
    return _played(stage.gemini().run("cut it once"))


def sigint_stream(stage: Stage) -> Played:
    return _signalled_in_a_stream(stage, signal.SIGINT)


def sigkill_stream(stage: Stage) -> Played:
    return _signalled_in_a_stream(stage, signal.SIGKILL)


def resume(stage: Stage) -> Played:
    stage.model.script(
        {
            "remember blue": [Reply([_shell("echo blue")]), Reply([Text("Blue it is.")])],
            "which colour": [Reply([_shell("echo asked")]), Reply([Text("It was blue.")])],
        }
    )
    gemini = stage.gemini()
    first = gemini.run("remember blue")
    second = gemini.run("which colour", "--resume", "latest", session_id=first.session_id)
    return _played(first, second)


def resume_after_failure(stage: Stage) -> Played:
    stage.model.script(
        {
            "remember blue": [Reply([Text("Blue it is.")])],
            "fail now": [Reply([Text("Never said.")], failures=[HttpError(400)] * 12)],
            "which colour": [Reply([_shell("echo asked")]), Reply([Text("It was blue.")])],
        }
    )
    gemini = stage.gemini()
    first = gemini.run("remember blue")
    second = gemini.run("fail now", "--resume", "latest", session_id=first.session_id)
    third = gemini.run("which colour", "--resume", "latest", session_id=first.session_id)
    return _played(first, second, third)


def subagent(stage: Stage) -> Played:
    stage.model.script(
        {
            "have it counted": [
                Reply([Thinking("Somebody else shall."), _delegate("count the files")]),
                Reply([Text("There are three.")]),
            ],
            "count the files": [
                Reply([Thinking("I count."), _shell("echo three")]),
                Reply([ToolUse("complete_task", {"result": {"response": "three files"}})]),
            ],
        }
    )
    return _played(stage.gemini().run("have it counted"))


def interactive(stage: Stage) -> Played:
    """Three prompts in a terminal, the last one broken off by Escape."""
    stage.model.script(
        {
            "say hello": [Reply([Thinking("A greeting."), Text("Hello there.")])],
            "list it": [Reply([_shell("echo listed")]), Reply([Text("All is listed.")])],
            "tell a story": [
                Reply([Text("A long story begins.")], hold=Hold("never", after_events=1))
            ],
        }
    )
    session_id = str(uuid.uuid4())
    with stage.gemini().terminal(session_id) as terminal:
        say(terminal, "say hello")
        terminal.wait_for_text("Hello there")
        say(terminal, "list it")
        terminal.wait_for_text("All is listed")
        say(terminal, "tell a story")
        stage.model.wait_until_held("never")
        terminal.answer("escape", "esc to cancel")
        exit_code = _leave(terminal)
    stage.model.gate("never").set()
    return Played((exit_code,), (session_id,))


def two_sessions(stage: Stage) -> Played:
    """Two at once in one folder."""
    for word in ("red", "green"):
        stage.model.script(
            {
                f"work on {word}": [
                    Reply([_shell(f"echo {word}")], hold=Hold("both")),
                    Reply([Text(f"{word} done.")]),
                ]
            }
        )
    gemini = stage.gemini()
    running = [gemini.start(f"work on {word}") for word in ("red", "green")]
    stage.model.wait_for_request(lambda attempt: attempt.prompt == "work on red")
    stage.model.wait_for_request(lambda attempt: attempt.prompt == "work on green")
    stage.model.gate("both").set()
    return _played(*(each.finish() for each in running))


def sigterm_stream(stage: Stage) -> Played:
    return _signalled_in_a_stream(stage, signal.SIGTERM)


def fork(stage: Stage) -> Played:
    """Go on in a copy of a session."""
    stage.model.script(
        {
            "remember blue": [Reply([_shell("echo blue")]), Reply([Text("Blue it is.")])],
            "which colour": [Reply([_shell("echo asked")]), Reply([Text("It was blue.")])],
        }
    )
    gemini = stage.gemini()
    first = gemini.run("remember blue")
    (chat,) = gemini.chats()
    second = gemini.run("which colour", "--session-file", str(chat), session_id="its own choice")
    (forked,) = gemini.session_ids() - {first.session_id}
    return Played((first.exit_code, second.exit_code), (first.session_id, forked))


def auto_compact(stage: Stage) -> Played:
    """Say something in a session that has grown too long."""
    _script_two_turns(stage)
    first = stage.gemini().run("say hello")
    small = replace(stage, settings={**stage.settings, "model": {"compressionThreshold": 0.0001}})
    second = small.gemini().run("say it again", "--resume", "latest", session_id=first.session_id)
    return _played(first, second)


def compact(stage: Stage) -> Played:
    _script_two_turns(stage)
    session_id = str(uuid.uuid4())
    with stage.gemini().terminal(session_id) as terminal:
        say(terminal, "say hello")
        terminal.wait_for_text("Hello there")
        say(terminal, "/compress")
        terminal.wait_for_text("Chat history compressed")
        say(terminal, "say it again")
        terminal.wait_for_text("Hello again")
        return Played((_leave_idle(terminal),), (session_id,))


def queued_prompt(stage: Stage) -> Played:
    """Say two things while an answer streams: together they are the next prompt."""
    stage.model.script(
        {
            "tell a tale": [Reply([Text("A short tale.")], hold=Hold("typed", after_events=1))],
            "say hello": [Reply([_shell("echo hello")]), Reply([Text("Hello there.")])],
        }
    )
    session_id = str(uuid.uuid4())
    with stage.gemini().terminal(session_id) as terminal:
        say(terminal, "tell a tale")
        stage.model.wait_until_held("typed")
        for line in ("say hello", "and be brief"):
            _queue(terminal, line)
        stage.model.gate("typed").set()
        terminal.wait_for_text("Hello there")
        return Played((_leave_idle(terminal),), (session_id,))


def permission(stage: Stage) -> Played:
    """Be asked before each tool, allow two, refuse the third, and say something else."""
    path = str(stage.project / "made.py")
    stage.model.script(
        {
            "say hello": [Reply([_shell("touch hello")]), Reply([Text("Hello there.")])],
            "make a file": [
                Reply([ToolUse("write_file", {"file_path": path, "content": "a = 1\n"})]),
                Reply([_shell("touch never")]),
            ],
            "say it again": [Reply([Text("Hello again.")])],
        }
    )
    session_id = str(uuid.uuid4())
    with stage.gemini().terminal(session_id, approving=False) as terminal:
        say(terminal, "say hello")
        _answer(terminal, "touch hello", "enter")
        terminal.wait_for_text("Hello there")
        say(terminal, "make a file")
        _answer(terminal, "made.py", "enter")
        _answer(terminal, "touch never", "escape")
        terminal.wait_for_text("Request cancelled")
        say(terminal, "say it again")
        terminal.wait_for_text("Hello again")
        return Played((_leave_idle(terminal),), (session_id,))


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        simple,
        tools,
        parallel_tools,
        retry_429_500,
        error_400,
        error_401,
        error_429,
        error_500,
        stream_cut,
        stream_cut_once,
        sigint_stream,
        sigkill_stream,
        resume,
        resume_after_failure,
        interactive,
        subagent,
        two_sessions,
        sigterm_stream,
        fork,
        auto_compact,
        compact,
        queued_prompt,
        permission,
    )
}


def _signalled_in_a_stream(stage: Stage, signal_number: signal.Signals) -> Played:
    reply = Reply([Text("A long story begins.")], hold=Hold("never", after_events=1))
    stage.model.script({"tell a story": [reply]})
    running = stage.gemini().start("tell a story")
    stage.model.wait_until_held("never")
    running.send(signal_number)
    finished = running.finish()
    stage.model.gate("never").set()
    return _played(finished)


def _script_two_turns(stage: Stage) -> None:
    stage.model.script(
        {
            "say hello": [Reply([_shell("echo hello")]), Reply([Text("Hello there.")])],
            "say it again": [Reply([_shell("echo again")]), Reply([Text("Hello again.")])],
        }
    )


def _answer(terminal: Terminal, question: str, key: str) -> None:
    terminal.wait_for_text(re.escape(question))
    terminal.wait_for_text("Allow once")
    terminal.answer(key, "Allow once")


def _queue(terminal: Terminal, line: str) -> None:
    """Type a line while Gemini CLI works, and press return until it is taken."""
    terminal.send(line)
    terminal.wait_for_text(rf"\* +{line}")
    for attempt in range(20):
        terminal.press("enter")
        try:
            terminal.wait_until_it_stays(
                r"\* +Type your message", without=rf"\* +{line}", timeout=5.0
            )
        except TimeoutError:
            if attempt == 19:
                raise
        else:
            return


def _leave_idle(terminal: Terminal) -> int:
    # While hooks run behind the answer, Ctrl-C would break off the turn.
    wait_until_idle(terminal)
    return _leave(terminal)


def _leave(terminal: Terminal) -> int:
    """Press Ctrl-C twice, and again where one was not heard or Gemini CLI had given up waiting."""
    for _ in range(6):
        terminal.press("ctrl-c")
        with suppress(TimeoutError):
            terminal.wait_for_text(r"Press Ctrl\+C again", 5.0)
        terminal.press("ctrl-c")
        with suppress(subprocess.TimeoutExpired):
            return terminal.wait(30)
    raise TimeoutError(f"Gemini CLI does not end; it shows:\n{terminal.text}")


def _delegate(task: str) -> ToolUse:
    return ToolUse("invoke_agent", {"agent_name": "generalist", "prompt": task})


def _shell(command: str) -> ToolUse:
    return ToolUse("run_shell_command", {"command": command})


def _always_failing(stage: Stage, status: int) -> Played:
    reply = Reply([Text("Never said.")], failures=[HttpError(status)] * 12)
    stage.model.script({"ask in vain": [reply]})
    return _played(stage.gemini(max_attempts=2).run("ask in vain"))


def _played(*finished: Finished) -> Played:
    return Played(
        tuple(each.exit_code for each in finished),
        tuple(dict.fromkeys(each.session_id for each in finished)),
    )

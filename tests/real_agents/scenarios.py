"""What a user does with Claude Code, and what the scripted model says meanwhile.

Each scenario sets its script, drives the real agent, and returns when all that it started is over.
Whoever plays one chooses where the agent sends its calls and which hooks it has.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claude import ClaudeCode, Finished
from terminal import Terminal, wait_until

from tracebridge.testing.scripted_model import (
    TASK_NOTIFICATION,
    Cut,
    Hold,
    HttpError,
    Reply,
    ScriptedModel,
    StreamError,
    Text,
    Thinking,
    ToolUse,
)

HINT_HEADERS = {"CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1"}
PERMISSION_QUESTION = "Do you want to proceed"
# In the stream a reply's first text is under way once these many events are sent.
MID_TEXT = 5
PARTIAL_OUTPUT = ("--output-format", "stream-json", "--verbose", "--include-partial-messages")


@dataclass
class Stage:
    """Where a scenario plays: *base_url* is a gateway in front of the model, or the model."""

    workdir: Path
    model: ScriptedModel
    base_url: str
    hooks: Mapping[str, Any] = field(default_factory=dict)
    settings_env: Mapping[str, str] = field(default_factory=lambda: dict(HINT_HEADERS))
    env: Mapping[str, str] = field(default_factory=dict)
    launcher: Sequence[str] = ()

    def claude(self, *, hint_headers: bool = True) -> ClaudeCode:
        settings_env = dict(self.settings_env)
        if not hint_headers:
            for name in HINT_HEADERS:
                settings_env.pop(name, None)
        return ClaudeCode(
            workdir=self.workdir,
            base_url=self.base_url,
            hooks=self.hooks,
            settings_env=settings_env,
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


Scenario = Callable[[Stage], Played]


def simple(stage: Stage) -> Played:
    stage.model.script({"say hello": [Reply([Thinking("A greeting."), Text("Hello there.")])]})
    return _played(stage.claude().run("say hello"))


def tools(stage: Stage) -> Played:
    _script_tools(stage)
    return _played(stage.claude().run("write the greeting"))


def hint_headers_off(stage: Stage) -> Played:
    _script_tools(stage)
    return _played(stage.claude(hint_headers=False).run("write the greeting"))


def no_persistence(stage: Stage) -> Played:
    _script_tools(stage)
    return _played(stage.claude().run("write the greeting", "--no-session-persistence"))


def parallel_tools(stage: Stage) -> Played:
    stage.model.script(
        {
            "do three things": [
                Reply(
                    [
                        Thinking("All at once."),
                        Text("Three at once."),
                        ToolUse("Read", {"file_path": str(stage.project / "notes.txt")}),
                        _bash("exit 4"),
                        ToolUse(
                            "Write", {"file_path": str(stage.project / "new.txt"), "content": "x"}
                        ),
                        _bash("echo three"),
                    ]
                ),
                Reply([Text("Three things done.")]),
            ]
        }
    )
    claude = stage.claude()
    (stage.project / "notes.txt").write_text("one\ntwo\n")
    return _played(claude.run("do three things"))


def subagents(stage: Stage) -> Played:
    """Two at once: one ends in its turn, the other in the next, whose hooks it then borrows."""
    model = stage.model
    model.script(
        {
            "send two agents": [
                Reply([_agent("quick look", "look quickly"), _agent("long look", "look for long")]),
                Reply([_bash("echo meanwhile")], hold=Hold("quick is back")),
                Reply([Text("One is back, the other still looks.")]),
            ],
            "look quickly": [Reply([_bash("echo quick")]), Reply([Text("Quickly seen.")])],
            "look for long": [
                Reply([_bash("echo long")]),
                Reply([_bash("echo longer")], hold=Hold("next turn runs")),
                Reply([Thinking("Enough."), Text("Seen for long.")]),
            ],
            "and now": [
                Reply([_bash("echo now")], hold=Hold("long is back")),
                Reply([Text("Now both are back.")]),
            ],
            TASK_NOTIFICATION: [Reply([Text("Noted.")])],
        }
    )
    claude = stage.claude()
    with claude.interactive("--dangerously-skip-permissions") as terminal:
        terminal.say("send two agents")
        _wait_for_subagent(claude, "Quickly seen.")
        _wait_for_notices(claude, 1)
        model.gate("quick is back").set()
        _wait_for_turns(claude, 1)
        terminal.say("and now")
        model.wait_until_held("long is back")
        model.wait_until_held("next turn runs")
        model.gate("next turn runs").set()
        _wait_for_subagent(claude, "Seen for long.")
        _wait_for_notices(claude, 2)
        model.gate("long is back").set()
        _wait_for_turns(claude, 2)
        return _leave(claude, terminal)


def task_notification(stage: Stage) -> Played:
    """Let a subagent end when no turn runs: its notice is a turn that nobody typed."""
    model = stage.model
    model.script(
        {
            "send an agent": [
                Reply([_agent("slow look", "look slowly")]),
                Reply([Text("It is on its way.")]),
            ],
            "look slowly": [Reply([Text("Slowly seen.")], hold=Hold("turn is over"))],
            TASK_NOTIFICATION: [Reply([Text("The agent is back.")])],
        }
    )
    claude = stage.claude()
    with claude.interactive("--dangerously-skip-permissions") as terminal:
        terminal.say("send an agent")
        _wait_for_turns(claude, 1)
        model.gate("turn is over").set()
        _wait_for_turns(claude, 2)
        return _leave(claude, terminal)


def retry_429_529(stage: Stage) -> Played:
    reply = Reply([Text("Third time lucky.")], failures=[HttpError(429), HttpError(529)])
    stage.model.script({"try hard": [Reply([_bash("echo first")]), reply]})
    return _played(stage.claude().run("try hard"))


def error_400(stage: Stage) -> Played:
    stage.model.script({"ask wrongly": [Reply([Text("Never said.")], failures=_always(400))]})
    return _played(stage.claude().run("ask wrongly"))


def print_environment(stage: Stage) -> Played:
    """Let a tool print every secret that the agent's environment holds."""
    url = "https://somebody:p4ssw0rd-in-a-url@git.example/x.git"
    stage.model.script(
        {
            "what is set": [
                Reply([_bash(f"env; git clone {url} x || true")]),
                Reply([Text("A good deal is set.")]),
            ]
        }
    )
    return _played(stage.claude().run("what is set"))


def error_401(stage: Stage) -> Played:
    stage.model.script({"ask unknown": [Reply([Text("Never said.")], failures=_always(401))]})
    claude = stage.claude()
    claude.env = {**claude.env, "CLAUDE_CODE_MAX_RETRIES": "1"}
    return _played(claude.run("ask unknown"))


def stream_cut(stage: Stage) -> Played:
    """Lose the connection twice: after text that the agent has shown, then at once."""
    cut = Cut(MID_TEXT)
    reply = Reply(
        [Text("Whole in the end, after two cuts.")],
        failures=[cut, cut],
        hold=Hold("text is seen", MID_TEXT),
    )
    stage.model.script({"tell a tale": [reply]})
    running = stage.claude().start("tell a tale", *PARTIAL_OUTPUT)
    running.wait_for_output("text_delta")
    stage.model.gate("text is seen").set()
    return _played(running.finish())


def stream_truncated(stage: Stage) -> Played:
    """End the stream early, but as cleanly as a whole one would."""
    cut = Cut(5, clean=True)
    reply = Reply([Text("Whole in the end, after two early ends.")], failures=[cut, cut])
    stage.model.script({"tell a tale": [reply]})
    return _played(stage.claude().run("tell a tale"))


def stream_error(stage: Stage) -> Played:
    reply = Reply([Text("Whole in the end, after an error.")], failures=[StreamError(4)])
    stage.model.script({"tell a tale": [reply]})
    return _played(stage.claude().run("tell a tale"))


def sigint_stream(stage: Stage) -> Played:
    return _signal_in_stream(stage, signal.SIGINT)


def sigterm_stream(stage: Stage) -> Played:
    return _signal_in_stream(stage, signal.SIGTERM)


def sigint_tool(stage: Stage) -> Played:
    return _signal_in_tool(stage, signal.SIGINT)


def sigkill_tool(stage: Stage) -> Played:
    return _signal_in_tool(stage, signal.SIGKILL)


def resume(stage: Stage) -> Played:
    return _two_runs(stage, lambda session_id: ("--resume", session_id))


def continue_(stage: Stage) -> Played:
    return _two_runs(stage, lambda _: ("--continue",))


def fork(stage: Stage) -> Played:
    return _two_runs(stage, lambda session_id: ("--resume", session_id, "--fork-session"))


def compact(stage: Stage) -> Played:
    _script_two_runs(stage)
    claude = stage.claude()
    with claude.interactive() as terminal:
        terminal.say("say hello")
        _wait_for_turns(claude, 1)
        terminal.say("/compact")
        _wait_for_transcripts(claude, '"compact_boundary"')
        terminal.wait_for_text("Compacted")
        terminal.say("say it again")
        _wait_for_turns(claude, 2)
        return _leave(claude, terminal)


def clear(stage: Stage) -> Played:
    _script_two_runs(stage)
    claude = stage.claude()
    with claude.interactive() as terminal:
        terminal.say("say hello")
        _wait_for_turns(claude, 1)
        terminal.say("/clear")
        wait_until(
            lambda: len(_session_ids(claude)) == 2, complaint="/clear did not begin a new session"
        )
        terminal.wait_until_gone("Hello there.")
        terminal.say("say it again")
        _wait_for_turns(claude, 2)
        return _leave(claude, terminal)


def permission_allowed(stage: Stage) -> Played:
    claude = stage.claude()
    with _asked_for_permission(stage, claude) as terminal:
        terminal.answer("enter", PERMISSION_QUESTION)
        _wait_for_turns(claude, 1)
        return _leave(claude, terminal)


def permission_denied(stage: Stage) -> Played:
    claude = stage.claude()
    with _asked_for_permission(stage, claude) as terminal:
        number = terminal.wait_for_text(r"(\d)\. No").group(1)
        terminal.answer(number, PERMISSION_QUESTION)
        _wait_for_transcripts(claude, "[Request interrupted by user for tool use]")
        return _leave(claude, terminal)


def escape_permission(stage: Stage) -> Played:
    claude = stage.claude()
    with _asked_for_permission(stage, claude) as terminal:
        terminal.answer("escape", PERMISSION_QUESTION)
        _wait_for_transcripts(claude, "[Request interrupted by user for tool use]")
        return _leave(claude, terminal)


def escape_stream(stage: Stage) -> Played:
    hold = Hold("never opened", after_events=MID_TEXT)
    stage.model.script(
        {
            "tell a tale": [Reply([Text("Once upon a time there was a tale.")], hold=hold)],
            "say hello": [Reply([Text("Hello there.")])],
        }
    )
    claude = stage.claude()
    with claude.interactive() as terminal:
        terminal.say("tell a tale")
        stage.model.wait_until_held("never opened")
        terminal.wait_for_text("esc to interrupt")
        terminal.press("escape")
        _wait_for_transcripts(claude, "[Request interrupted by user]")
        terminal.wait_for_text("Interrupted")
        _empty_the_input(terminal, "tell a tale")
        terminal.say("say hello")
        _wait_for_turns(claude, 1)
        return _leave(claude, terminal)


def queued_prompt(stage: Stage) -> Played:
    """Typed while the last reply of a turn streams: it becomes a turn of its own."""
    stage.model.script(
        {
            "tell a tale": [Reply([Text("A short tale.")], hold=Hold("typed", MID_TEXT))],
            "say hello": [Reply([Text("Hello there.")])],
        }
    )
    claude = stage.claude()
    with claude.interactive() as terminal:
        terminal.say("tell a tale")
        stage.model.wait_until_held("typed")
        terminal.say("say hello")
        _wait_for_transcripts(claude, '"enqueue"')
        stage.model.gate("typed").set()
        _wait_for_turns(claude, 2)
        return _leave(claude, terminal)


def absorbed_prompt(stage: Stage) -> Played:
    """Typed before a tool runs: the turn that runs takes it in."""
    stage.model.script(
        {
            "run a tool": [
                Reply([_bash("echo tool")], hold=Hold("typed", after_events=2)),
                Reply([Text("Tool and wish are done.")]),
            ]
        }
    )
    claude = stage.claude()
    with claude.interactive("--dangerously-skip-permissions") as terminal:
        terminal.say("run a tool")
        stage.model.wait_until_held("typed")
        terminal.say("be brief please")
        _wait_for_transcripts(claude, '"enqueue"')
        stage.model.gate("typed").set()
        _wait_for_turns(claude, 1)
        return _leave(claude, terminal)


def three_sessions(stage: Stage) -> Played:
    """Three at once in one folder, each held until all have asked."""
    numbers = ("one", "two", "three")
    stage.model.script(
        {
            f"session {number}": [
                Reply([_bash(f"echo {number}")], hold=Hold(f"{number} may go on")),
                Reply([Text(f"This is {number}.")]),
            ]
            for number in numbers
        }
    )
    claude = stage.claude()
    running = [claude.start(f"session {number}") for number in numbers]
    for number in numbers:
        stage.model.wait_until_held(f"{number} may go on")
    for number in numbers:
        stage.model.gate(f"{number} may go on").set()
    return _played(*(session.finish() for session in running))


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__.rstrip("_"): scenario
    for scenario in (
        simple,
        tools,
        parallel_tools,
        subagents,
        retry_429_529,
        error_400,
        stream_cut,
        sigint_stream,
        sigint_tool,
        resume,
        continue_,
        fork,
        compact,
        clear,
        permission_allowed,
        permission_denied,
        escape_stream,
        escape_permission,
        queued_prompt,
        absorbed_prompt,
        no_persistence,
        hint_headers_off,
        task_notification,
        three_sessions,
        stream_error,
        stream_truncated,
        error_401,
        print_environment,
        sigterm_stream,
        sigkill_tool,
    )
}


def _bash(command: str) -> ToolUse:
    return ToolUse("Bash", {"command": command, "description": "a scripted command"})


def _agent(description: str, prompt: str) -> ToolUse:
    return ToolUse(
        "Agent",
        {"description": description, "prompt": prompt, "subagent_type": "general-purpose"},
    )


def _always(status: int) -> list[HttpError]:
    return [HttpError(status)] * 50


def _script_tools(stage: Stage) -> None:
    path = str(stage.project / "greet.py")
    stage.model.script(
        {
            "write the greeting": [
                Reply(
                    [
                        Thinking("A file, then a change."),
                        Text("I write the file."),
                        ToolUse(
                            "Write",
                            {"file_path": path, "content": 'def greet():\n    return "hi"\n'},
                        ),
                    ]
                ),
                Reply(
                    [
                        ToolUse(
                            "Edit",
                            {
                                "file_path": path,
                                "old_string": '    return "hi"\n',
                                "new_string": '    name = "world"\n    return f"hi {name}"\n',
                            },
                        )
                    ]
                ),
                Reply([_bash("echo broken >&2; exit 3")]),
                Reply([Thinking("Look at it."), ToolUse("Read", {"file_path": path})]),
                Reply([Text("The greeting is written.")]),
            ]
        }
    )


def _script_two_runs(stage: Stage) -> None:
    stage.model.script(
        {
            "say hello": [Reply([_bash("echo hello")]), Reply([Text("Hello there.")])],
            "say it again": [Reply([_bash("echo again")]), Reply([Text("Hello again.")])],
        }
    )


def _two_runs(stage: Stage, options: Callable[[str], tuple[str, ...]]) -> Played:
    _script_two_runs(stage)
    claude = stage.claude()
    first = claude.run("say hello")
    second = claude.run("say it again", *options(first.session_id), "--output-format", "json")
    session_id = json.loads(second.stdout)["session_id"]
    return Played((first.exit_code, second.exit_code), (first.session_id, session_id))


def _signal_in_stream(stage: Stage, signal_number: signal.Signals) -> Played:
    hold = Hold("never opened", after_events=MID_TEXT)
    stage.model.script(
        {"tell a tale": [Reply([Text("Once upon a time there was a tale.")], hold=hold)]}
    )
    running = stage.claude().start(
        "tell a tale",
        *PARTIAL_OUTPUT,
    )
    stage.model.wait_until_held("never opened")
    running.wait_for_output("text_delta")
    running.send(signal_number)
    return _played(running.finish())


def _signal_in_tool(stage: Stage, signal_number: signal.Signals) -> Played:
    started = stage.project / "started"
    command = "touch started; exec sleep 60"
    stage.model.script({"run for long": [Reply([Text("I run it."), _bash(command)])]})
    running = stage.claude().start("run for long")
    wait_until(started.exists, complaint="the tool did not start")
    running.send(signal_number)
    return _played(running.finish())


def _asked_for_permission(stage: Stage, claude: ClaudeCode) -> Terminal:
    stage.model.script(
        {
            "make a file": [
                Reply([Text("May I?"), _bash("touch made.txt")]),
                Reply([Text("The file is made.")]),
            ]
        }
    )
    terminal = claude.interactive()
    try:
        terminal.say("make a file")
        terminal.wait_for_text(PERMISSION_QUESTION)
    except BaseException:
        terminal.close()
        raise
    return terminal


def _empty_the_input(terminal: Terminal, line: str) -> None:
    """Remove a prompt that an early Escape has put back into the input line."""
    if terminal.text.rstrip().splitlines() and line in terminal.text.split("────")[-2]:
        terminal.send("\x15")


def _session_ids(claude: ClaudeCode) -> list[str]:
    found = sorted(claude.transcripts.glob("*/*.jsonl"), key=lambda path: path.stat().st_ctime_ns)
    return [path.stem for path in found]


def _count(claude: ClaudeCode, text: str, pattern: str = "*/*.jsonl") -> int:
    return sum(path.read_text().count(text) for path in claude.transcripts.glob(pattern))


def _wait_for_transcripts(claude: ClaudeCode, text: str) -> None:
    wait_until(lambda: _count(claude, text) > 0, complaint=f"no transcript has {text!r}")


def _wait_for_turns(claude: ClaudeCode, count: int) -> None:
    """Wait until that many interactive turns have ended by themselves."""
    wait_until(
        lambda: _count(claude, '"subtype":"turn_duration"') >= count,
        complaint=f"{count} turns did not end",
    )


def _wait_for_subagent(claude: ClaudeCode, last_words: str) -> None:
    wait_until(
        lambda: _count(claude, last_words, "*/*/subagents/*.jsonl") > 0,
        complaint=f"no subagent said {last_words!r}",
    )


def _wait_for_notices(claude: ClaudeCode, count: int) -> None:
    """Wait until that many subagents' ends are queued: what comes later has a turn of its own."""
    enqueued = '"operation":"enqueue"'

    def queued() -> int:
        paths = claude.transcripts.glob("*/*.jsonl")
        lines = (line for path in paths for line in path.read_text().splitlines())
        return sum(enqueued in line and TASK_NOTIFICATION in line for line in lines)

    wait_until(lambda: queued() >= count, complaint=f"{count} subagents were not said to be back")


def _leave(claude: ClaudeCode, terminal: Terminal) -> Played:
    terminal.say("/exit")
    return Played((terminal.wait(),), tuple(_session_ids(claude)))


def _played(*sessions: Finished) -> Played:
    return Played(
        tuple(session.exit_code for session in sessions),
        tuple(session.session_id for session in sessions),
    )

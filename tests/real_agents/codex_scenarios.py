"""What a user does with Codex CLI, and what the scripted model says meanwhile.

Each scenario sets its script, drives the real agent, and returns when all that it started is over.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codex import ENDED, CodexCli, Finished
from terminal import wait_until

from tracebridge.testing.scripted_model import (
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

ADD = """*** Begin Patch
*** Add File: greet.py
+print("hello")
+print("world")
*** Add File: notes.txt
+one
*** End Patch
"""
UPDATE = """*** Begin Patch
*** Update File: greet.py
@@
-print("hello")
+print("HELLO")
+print("there")
 print("world")
*** Delete File: notes.txt
*** End Patch
"""
WRONG = """*** Begin Patch
*** Update File: greet.py
@@
-this line is not there
+nor this one
*** End Patch
"""
MCP_SERVER = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    if asked["method"] == "initialize":
        given = {"protocolVersion": asked["params"]["protocolVersion"], "capabilities": {"tools": {}}}
        given["serverInfo"] = {"name": "weather", "version": "1"}
    elif asked["method"] == "tools/list":
        schema = {"type": "object", "properties": {"city": {"type": "string"}}}
        given = {"tools": [{"name": "forecast", "description": "Weather", "inputSchema": schema}]}
    elif asked["method"] == "tools/call":
        known = asked["params"]["arguments"]["city"] == "Rome"
        said = "sunny" if known else "no such city"
        given = {"content": [{"type": "text", "text": said}], "isError": not known}
    else:
        given = {}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": given}), flush=True)
"""
# In the stream a reply's first text is under way once these many events are sent.
MID_TEXT = 5


@dataclass
class Stage:
    """Where a scenario plays: *base_url* is a gateway in front of the model, or the model."""

    workdir: Path
    model: ScriptedModel
    base_url: str
    hooks: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    launcher: Sequence[str] = ()
    trusted: bool = True

    def codex(self, *settings: str, **more: Any) -> CodexCli:
        given = {"trusted": self.trusted, **more}
        return CodexCli(
            workdir=self.workdir,
            base_url=self.base_url,
            hooks=self.hooks,
            env=self.env,
            launcher=self.launcher,
            settings=settings,
            **given,
        )


@dataclass(frozen=True)
class Played:
    exit_codes: tuple[int, ...]
    session_ids: tuple[str, ...]


Scenario = Callable[[Stage], Played]


def simple(stage: Stage) -> Played:
    stage.model.script({"say hello": [Reply([Thinking("A greeting."), Text("Hello there.")])]})
    return _played(stage.codex().run("say hello"))


def tools(stage: Stage) -> Played:
    """Patch two files, patch them again, fail at a patch and at a command."""
    stage.model.script(
        {
            "write the greeting": [
                Reply([Thinking("A file first."), _patch(ADD)]),
                Reply([Thinking("Louder."), _patch(UPDATE)]),
                Reply([_patch(WRONG)]),
                Reply([_shell("cat greet.py; exit 3")]),
                Reply([_shell("cat greet.py")]),
                Reply([Text("The greeting is written.")]),
            ]
        }
    )
    return _played(stage.codex().run("write the greeting"))


def parallel_tools(stage: Stage) -> Played:
    stage.model.script(
        {
            "do three things": [
                Reply([Thinking("At once."), _shell("echo one"), _shell("exit 4"), _shell("ls")]),
                Reply([Text("Three things done.")]),
            ]
        }
    )
    return _played(stage.codex().run("do three things"))


def subagent(stage: Stage) -> Played:
    stage.model.script(
        {
            "send an agent": [
                Reply(
                    [
                        ToolUse(
                            "collaboration.spawn_agent",
                            {"message": "look around", "task_name": "small_look"},
                        )
                    ]
                ),
                Reply([ToolUse("collaboration.wait_agent", {"timeout_ms": 30000})]),
                Reply([Text("The agent is back.")]),
            ],
            "look around": [
                Reply([Thinking("Looking."), _shell("echo looked")]),
                Reply([Text("Nothing to see.")]),
            ],
        }
    )
    return _played(stage.codex().run("send an agent"))


def error_401(stage: Stage) -> Played:
    return _failing(stage, HttpError(401))


def error_429(stage: Stage) -> Played:
    return _failing(stage, HttpError(429))


def error_500(stage: Stage) -> Played:
    return _failing(stage, HttpError(500))


def retry_500(stage: Stage) -> Played:
    reply = Reply([Text("Third time lucky.")], failures=[HttpError(500), HttpError(500)])
    stage.model.script({"try hard": [Reply([_shell("echo first")]), reply]})
    return _played(stage.codex(retries=3).run("try hard"))


def stream_cut(stage: Stage) -> Played:
    reply = Reply(
        [Thinking("A tale."), Text("Whole in the end, after two cuts.")],
        failures=[Cut(MID_TEXT), Cut(MID_TEXT, clean=True)],
    )
    stage.model.script({"tell a tale": [reply]})
    return _played(stage.codex(retries=3).run("tell a tale"))


def response_failed(stage: Stage) -> Played:
    return _failing(stage, StreamError(4))


def sigint_stream(stage: Stage) -> Played:
    return _signal_in_stream(stage, signal.SIGINT)


def sigterm_stream(stage: Stage) -> Played:
    return _signal_in_stream(stage, signal.SIGTERM)


def sigint_tool(stage: Stage) -> Played:
    return _signal_in_tool(stage, signal.SIGINT)


def sigkill_tool(stage: Stage) -> Played:
    return _signal_in_tool(stage, signal.SIGKILL)


def resume(stage: Stage) -> Played:
    stage.model.script(
        {
            "say hello": [Reply([_shell("echo hello")]), Reply([Text("Hello there.")])],
            "say it again": [Reply([Text("Hello again.")])],
        }
    )
    codex = stage.codex()
    first = codex.run("say hello")
    return _played(first, codex.run("say it again", resume=first.session_id))


def two_sessions(stage: Stage) -> Played:
    """Two at once in one folder, each held until the other is under way."""
    stage.model.script(
        {
            name: [
                Reply([_shell(f"echo {name}")], hold=Hold(name)),
                Reply([Text(f"The {name} is done.")]),
            ]
            for name in ("left work", "right work")
        }
    )
    codex = stage.codex()
    runs = [codex.start(name) for name in ("left work", "right work")]
    for name in ("left work", "right work"):
        stage.model.wait_until_held(name)
    for name in ("left work", "right work"):
        stage.model.gate(name).set()
    return _played(*(run.finish() for run in runs))


def compact(stage: Stage) -> Played:
    """Compact between two turns, in a terminal, which also asks for titles."""
    stage.model.script(
        {
            "say hello": [Reply([Text("Hello there.")])],
            "say it again": [Reply([Text("Hello again.")])],
        }
    )
    codex = stage.codex()
    with codex.interactive() as terminal:
        terminal.say("say hello")
        codex.wait_for_transcript(ENDED)
        terminal.say("/compact")
        codex.wait_for_transcript(ENDED, 2)
        terminal.say("say it again")
        codex.wait_for_transcript(ENDED, 3)
        terminal.say("/quit")
        return Played((terminal.wait(),), codex.session_ids())


def auto_compact(stage: Stage) -> Played:
    """Grow beyond the limit in the middle of a turn."""
    stage.model.script(
        {
            "read it all": [Reply([_shell("echo one")])],
            # So Codex begins what it tells the model of the summary.
            "Another language model started": [Reply([Text("All is read.")])],
        }
    )
    codex = stage.codex("model_auto_compact_token_limit=1200")
    return _played(codex.run("read it all"))


def fork(stage: Stage) -> Played:
    """Go on from another session in a copy of it."""
    stage.model.script(
        {
            "say hello": [Reply([_shell("echo hello")]), Reply([Text("Hello there.")])],
            "say it again": [Reply([_shell("echo again")]), Reply([Text("Hello again.")])],
        }
    )
    codex = stage.codex()
    first = codex.run("say hello")
    with codex.interactive("fork", first.session_id) as terminal:
        terminal.say("say it again")
        codex.wait_for_transcript(ENDED, 2)
        terminal.say("/quit")
        return Played((terminal.wait(),), codex.session_ids())


def mcp_tool(stage: Stage) -> Played:
    """Call a tool of an MCP server, and one that fails."""
    stage.model.script(
        {
            "ask the server": [
                Reply([ToolUse("mcp__weather.forecast", {"city": "Rome"})]),
                Reply([ToolUse("mcp__weather.forecast", {"city": "Atlantis"})]),
                Reply([Text("Sunny in Rome.")]),
            ]
        }
    )
    server = f'command={json.dumps(sys.executable)}, args=["-c", {json.dumps(MCP_SERVER)}]'
    return _played(stage.codex(f"mcp_servers.weather={{{server}}}").run("ask the server"))


def long_command(stage: Stage) -> Played:
    """Leave a command running that goes on beyond the answer."""
    stage.model.script(
        {
            "build it": [
                Reply([ToolUse("exec_command", {"cmd": "sleep 30", "yield_time_ms": 250})]),
                Reply([Text("The build goes on.")]),
            ]
        }
    )
    return _played(stage.codex().run("build it"))


def many_attempts(stage: Stage) -> Played:
    """Fail as often as Codex tries: so often for each of its own retries of the whole call."""
    stage.model.script(
        {"ask in vain": [Reply([Text("Never said.")], failures=[HttpError(500)] * 40)]}
    )
    codex = stage.codex("model_providers.scripted.request_max_retries=2", retries=2)
    return _played(codex.run("ask in vain"))


def websocket(stage: Stage) -> Played:
    stage.model.script(
        {"say hello": [Reply([_shell("echo hello")]), Reply([Text("Hello there.")])]}
    )
    return _played(
        stage.codex("model_providers.scripted.supports_websockets=true").run("say hello")
    )


def steering(stage: Stage) -> Played:
    """Say something while the turn runs."""
    mark, said = stage.workdir / "begun", stage.workdir / "said"
    command = f"touch {mark}; timeout 180 sh -c 'until test -e {said}; do sleep 0.1; done'"
    stage.model.script(
        {
            "wait a while": [
                Reply([ToolUse("exec_command", {"cmd": command, "yield_time_ms": 30_000})])
            ],
            "and be polite": [Reply([Text("Hello, please.")])],
        }
    )
    codex = stage.codex()
    with codex.interactive() as terminal:
        terminal.say("wait a while")
        _wait_for_file(mark)
        terminal.say("and be polite")
        terminal.wait_for_text("Messages to be submitted after next tool call")
        said.touch()
        codex.wait_for_transcript(ENDED)
        terminal.say("/quit")
        return Played((terminal.wait(),), codex.session_ids())


def permission(stage: Stage) -> Played:
    """Be asked before a command, and allow it."""
    stage.model.script(
        {
            "make a file": [
                Reply([_escalated("touch made")]),
                Reply([_escalated("touch never")]),
                Reply([Text("Made.")]),
            ]
        }
    )
    codex = stage.codex('approval_policy="on-request"', allowed=False)
    with codex.interactive() as terminal:
        terminal.say("make a file")
        terminal.wait_for_text("touch made")
        terminal.wait_for_text("Would you like to run")
        terminal.answer("y", "Yes, proceed")
        terminal.wait_for_text(r"\$ touch never")
        terminal.answer("escape", "Yes, proceed")
        codex.wait_for_transcript('"type":"turn_aborted"')
        terminal.say("/quit")
        return Played((terminal.wait(),), codex.session_ids())


def shared_server(stage: Stage) -> Played:
    """Work in a terminal that leaves it, and the hooks, to a server which goes on after it."""
    stage.model.script(
        {"say hello": [Reply([_shell("echo hello")]), Reply([Text("Hello there.")])]}
    )
    codex = stage.codex(trusted=False)
    codex.approve_hooks()
    with codex.shared_server(), codex.interactive(alone=False) as terminal:
        terminal.say("say hello")
        codex.wait_for_transcript(ENDED)
        terminal.say("/quit")
        return Played((terminal.wait(),), codex.session_ids())


def review(stage: Stage) -> Played:
    """Have what is not committed yet reviewed: a thread of its own does it."""
    stage.model.script(
        {"Review the current": [Reply([_shell("echo looked")]), Reply([Text("Nothing to say.")])]}
    )
    codex = stage.codex()
    subprocess.run(["git", "init", "--quiet"], cwd=codex.project, check=True)
    return _played(codex.start("--uncommitted", command="review").finish())


def unreachable(stage: Stage) -> Played:
    """Find nobody at the provider's address, and wait for the network until interrupted."""
    codex = stage.codex('model_providers.scripted.base_url="http://127.0.0.1:9/api"')
    running = codex.start("say hello")
    wait_until(
        lambda: "waiting for network" in running.stdout.read_text(),
        complaint="Codex does not say that it waits for the network",
    )
    running.send(signal.SIGINT)
    return _played(running.finish())


def escape_stream(stage: Stage) -> Played:
    hold = Hold("never opened", after_events=MID_TEXT)
    stage.model.script(
        {
            "tell a tale": [Reply([Text("Once upon a time there was a tale.")], hold=hold)],
            "say hello": [Reply([Text("Hello there.")])],
        }
    )
    codex = stage.codex()
    with codex.interactive() as terminal:
        terminal.say("tell a tale")
        stage.model.wait_until_held("never opened")
        # That it works is shown only until it has something to say.
        terminal.wait_for_text("Once upon a")
        terminal.press("escape")
        codex.wait_for_transcript('"type":"turn_aborted"')
        terminal.say("say hello")
        codex.wait_for_transcript(ENDED)
        terminal.say("/quit")
        return Played((terminal.wait(),), codex.session_ids())


def _shell(command: str) -> ToolUse:
    return ToolUse("exec_command", {"cmd": command})


def _escalated(command: str) -> ToolUse:
    asked = {"sandbox_permissions": "require_escalated", "justification": "Shall it be made?"}
    return ToolUse("exec_command", {"cmd": command, **asked})


def _patch(patch: str) -> ToolUse:
    return ToolUse("apply_patch", {"patch": patch})


def _failing(stage: Stage, failure: HttpError | StreamError) -> Played:
    reply = Reply([Text("Never said.")], failures=[failure] * 20)
    stage.model.script({"ask in vain": [reply]})
    return _played(stage.codex().run("ask in vain"))


def _signal_in_stream(stage: Stage, number: signal.Signals) -> Played:
    hold = Hold("never opened", after_events=MID_TEXT)
    stage.model.script({"tell a tale": [Reply([Text("Once upon a time.")], hold=hold)]})
    running = stage.codex().start("tell a tale")
    stage.model.wait_until_held("never opened")
    running.send(number)
    return _played(running.finish())


def _signal_in_tool(stage: Stage, number: signal.Signals) -> Played:
    mark = stage.workdir / "begun"
    stage.model.script({"wait a while": [Reply([_shell(f"touch {mark}; exec sleep 60")])]})
    codex = stage.codex()
    running = codex.start("wait a while")
    _wait_for_file(mark)
    running.send(number)
    return _played(running.finish())


def _wait_for_file(path: Path) -> None:
    wait_until(path.exists, complaint=f"{path} was not made")


def _played(*runs: Finished) -> Played:
    sessions = dict.fromkeys(run.session_id for run in runs)
    return Played(tuple(run.exit_code for run in runs), tuple(sessions))


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        simple,
        tools,
        parallel_tools,
        subagent,
        error_401,
        error_429,
        error_500,
        retry_500,
        stream_cut,
        response_failed,
        sigint_stream,
        sigterm_stream,
        sigint_tool,
        sigkill_tool,
        resume,
        two_sessions,
        compact,
        escape_stream,
        auto_compact,
        fork,
        mcp_tool,
        long_command,
        many_attempts,
        websocket,
        steering,
        permission,
        shared_server,
        review,
        unreachable,
    )
}

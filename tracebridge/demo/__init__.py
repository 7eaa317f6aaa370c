"""The whole thing once, for real but for the model: scripted model, gateway, agent, hooks, watcher.

It runs in a throw-away home and touches nothing of the user's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson
from rich.console import Console

from tracebridge import semconv
from tracebridge.agents import Agent, Launch, agent
from tracebridge.export import document
from tracebridge.integrate import hook_commands
from tracebridge.model import Span
from tracebridge.run import started_gateway
from tracebridge.store import Store, TurnRow
from tracebridge.tail import render_turn
from tracebridge.testing.scripted_model import (
    HttpError,
    Reply,
    ScriptedModel,
    Text,
    Thinking,
    ToolUse,
)

PROMPT = "Make greet.py say hello to the world, run it, and have a helper review it."
REVIEW = "Review greet.py in one sentence."
LIMIT_S = 120.0


class DemoError(Exception):
    """The demo could not be shown; the text says at which joint it broke."""


def demo(agent_name: str, *, as_json: bool) -> None:
    """Run one turn and print its tree, or its spans as OTLP/JSON."""
    which = agent(agent_name)
    if which is None:
        raise DemoError(f"{agent_name}: unknown agent")
    if which.SLUG != "claude-code":
        raise DemoError(f"{which.SLUG}: the demo has no script for it yet; run it without --agent")
    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    with tempfile.TemporaryDirectory(prefix="tracebridge-demo-") as folder:
        place = Path(folder)
        row, spans, program = _run(which, place, console)
        if as_json:
            sys.stdout.write(orjson.dumps(document([(row, spans)])).decode() + "\n")
        else:
            _print(console, spans, program)


def _run(which: Agent, place: Path, console: Console) -> tuple[TurnRow, list[Span], Path | None]:
    home, project, state = (place / name for name in ("home", "project", "state"))
    for folder in (home, project, state):
        folder.mkdir(mode=0o700)
    program = find_program(which)
    name = f"{program.name} ({program})" if program is not None else "a built-in stand-in agent"
    console.print(f"agent    {name}")
    console.print("model    scripted: it says what this demo tells it; no account, no network")
    env = _clean_env(home, state)
    with ScriptedModel(_script(project)) as model:
        upstream = [f"anthropic={model.url}"]
        with _watcher(env), started_gateway(upstream, env) as url:
            if url is None:
                raise DemoError("the gateway did not start; its message stands above")
            console.print(f"gateway  {url}, forwarding every byte to {model.url}")
            launch = Launch(commands=hook_commands(which, state), gateway_url=url, env=env)
            if program is not None:
                command = [str(program), "-p", PROMPT, "--dangerously-skip-permissions"]
            else:
                command = [which.PROGRAM, "-p", PROMPT]
            arguments, agent_env = which.launch(command, launch)
            if program is None:
                arguments = [
                    sys.executable,
                    "-m",
                    "tracebridge.testing.stand_in_agent",
                    *arguments[1:],
                ]
            _run_agent(arguments, agent_env, project)
            row = _wait_for_turn(state)
        with Store(state) as store:
            return row, store.spans(row.trace_id), program


def find_program(which: Agent) -> Path | None:
    """Return the agent's own program, from PATH or the checkout's folder of agents."""
    found = shutil.which(which.PROGRAM)
    if found is not None:
        return Path(found)
    fetched = Path(__file__).resolve().parent.parent / ".agents" / "bin" / which.PROGRAM
    return fetched if fetched.exists() else None


def _script(project: Path) -> dict[str, Sequence[Reply]]:
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
                    ToolUse(
                        "Bash", {"command": f"{sys.executable} {file}", "description": "run it"}
                    ),
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


def _clean_env(home: Path, state: Path) -> dict[str, str]:
    """Return an environment without anything of the user's but where programs are found."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
        "SHELL": "/bin/sh",
        "TRACEBRIDGE_HOME": str(state),
        "TRACEBRIDGE_NO_WATCH": "1",
        "RESPAN_CUSTOMER_ID": "demo-customer",
        "RESPAN_METADATA": '{"team": "demo"}',
        "ANTHROPIC_API_KEY": "sk-demo-not-a-key",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        # Claude Code refuses to skip permissions for root outside a sandbox.
        "IS_SANDBOX": "1",
    }


@contextmanager
def _watcher(env: Mapping[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tracebridge", "watch"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=env,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_S)


def _run_agent(arguments: Sequence[str], env: Mapping[str, str], project: Path) -> None:
    try:
        result = subprocess.run(
            arguments,
            env=env,
            cwd=project,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DemoError(f"the agent did not do its turn: {error}") from error
    if result.returncode:
        said = (result.stderr or result.stdout).strip()[-500:]
        raise DemoError(f"the agent ended with exit code {result.returncode}: {said}")


def _wait_for_turn(state: Path) -> TurnRow:
    deadline = time.monotonic() + LIMIT_S
    with Store(state) as store:
        while time.monotonic() < deadline:
            row = next((row for row in store.turns() if row.told), None)
            if row is not None:
                return row
            time.sleep(0.02)
    raise DemoError("the turn was not finished; hooks or watcher do not work on this machine")


def _print(console: Console, spans: Sequence[Span], program: Path | None) -> None:
    chats = [span for span in spans if span.attributes.get(semconv.SPAN_TYPE) == "llm"]
    exact = [span for span in chats if span.attributes.get(semconv.LINK_CONFIDENCE) == "exact"]
    console.print()
    console.print(render_turn(spans, max(console.width, 132)))
    console.print()
    console.print(f"{len(exact)} of {len(chats)} gateway calls linked exactly, {len(spans)} spans.")
    console.print("The model was scripted; agent, gateway, hooks and watcher were real.")
    if program is None:
        console.print("With Claude Code on PATH, `tracebridge demo` runs the real agent.")
    console.print()
    console.print("Next:")
    console.print("  tracebridge run -- claude …         trace one command, nothing is edited")
    console.print("  tracebridge integrate claude-code   trace every turn from now on")
    console.print("  tracebridge tail                    watch turns as they happen")
    console.print("  OTEL_EXPORTER_OTLP_ENDPOINT=…       send them to what you already have")

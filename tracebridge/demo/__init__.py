"""The whole thing once, for real but for the model: scripted model, gateway, agent, hooks, watcher.

It runs in a throw-away home and touches nothing of the user's. What an agent is asked, and what the
model says to it, stands in a module per agent, found by looking into this package.
"""

from __future__ import annotations

import importlib
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
from typing import Protocol, cast

import orjson
from rich.console import Console

from tracebridge import semconv
from tracebridge.agents import Agent, Launch, agent
from tracebridge.export import document
from tracebridge.integrate import hook_commands
from tracebridge.model import Span
from tracebridge.run import started_gateway
from tracebridge.store import Store, TurnRow
from tracebridge.testing.scripted_model import Reply, ScriptedModel
from tracebridge.views.waterfall import render_turn

LIMIT_S = 120.0


class Play(Protocol):
    """What the demo of one agent needs to know."""

    # Who plays the model, and the family of its API at our gateway.
    MODEL: type[ScriptedModel]
    FAMILY: str
    PROMPT: str
    # What the agent wants in its environment.
    ENV: Mapping[str, str]
    # Whether our stand-in can do the turn where the agent is not installed.
    HAS_STAND_IN: bool

    def script(self, project: Path) -> dict[str, Sequence[Reply]]:
        """Return what the model says, by the beginning of what it is asked."""
        ...

    def prepare(self, home: Path, project: Path) -> None:
        """Write what the agent wants to find in a new home."""
        ...

    def command(self, program: str) -> list[str]:
        """Return the command that does the turn."""
        ...


class DemoError(Exception):
    """The demo could not be shown; the text says at which joint it broke."""


def demo(agent_name: str, *, as_json: bool) -> None:
    """Run one turn and print its tree, or its spans as OTLP/JSON."""
    which = agent(agent_name)
    if which is None:
        raise DemoError(f"{agent_name}: unknown agent")
    program = find_program(which)
    play = _play_of(which)
    if program is None and not play.HAS_STAND_IN:
        raise DemoError(
            f"{which.PROGRAM}: not found on PATH; install it, or leave out --agent: for Claude Code"
            " there is a stand-in"
        )
    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    with tempfile.TemporaryDirectory(prefix="tracebridge-demo-") as folder:
        place = Path(folder)
        row, spans = _run(which, play, program, place, console)
        if as_json:
            sys.stdout.write(orjson.dumps(document([(row, spans)])).decode() + "\n")
        else:
            _print(console, which, spans, program)


def _play_of(which: Agent) -> Play:
    return cast("Play", importlib.import_module(f"{__name__}.{which.SLUG.replace('-', '_')}"))


def _run(
    which: Agent, play: Play, program: Path | None, place: Path, console: Console
) -> tuple[TurnRow, list[Span]]:
    home, project, state = (place / name for name in ("home", "project", "state"))
    for folder in (home, project, state):
        folder.mkdir(mode=0o700)
    play.prepare(home, project)
    name = f"{program.name} ({program})" if program is not None else "a built-in stand-in agent"
    console.print(f"agent    {name}")
    console.print("model    scripted: it says what this demo tells it; no account, no network")
    env = {**_clean_env(home, state), **play.ENV}
    with play.MODEL(play.script(project)) as model:
        upstream = [f"{play.FAMILY}={model.url}"]
        with _watcher(env), started_gateway(upstream, env, launcher_pid=os.getpid()) as url:
            if url is None:
                raise DemoError("the gateway did not start; its message stands above")
            console.print(f"gateway  {url}, forwarding every byte to {model.url}")
            launch = Launch(commands=hook_commands(which, state), gateway_url=url, env=env)
            command = play.command(str(program or which.PROGRAM))
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
            return row, store.spans(row.trace_id)


def find_program(which: Agent) -> Path | None:
    """Return the agent's own program, from PATH or the checkout's folder of agents."""
    found = shutil.which(which.PROGRAM)
    if found is not None:
        return Path(found)
    fetched = Path(__file__).resolve().parents[2] / ".agents" / "bin" / which.PROGRAM
    return fetched if fetched.exists() else None


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


def _print(console: Console, which: Agent, spans: Sequence[Span], program: Path | None) -> None:
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
    for command, does in (
        (f"tracebridge run -- {which.PROGRAM} …", "trace one command, nothing is edited"),
        (f"tracebridge integrate {which.SLUG}", "trace every turn from now on"),
        ("tracebridge tail", "watch turns as they happen"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT=…", "send them to what you already have"),
    ):
        console.print(f"  {command:<36}{does}")

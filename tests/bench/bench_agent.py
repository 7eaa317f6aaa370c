"""A real Claude Code turn of forty tool calls, with all our hooks, with the light registration, with none.

    python tests/bench/bench_agent.py [--rounds 10] [--tools 40] [--thinks 0 0.3] [--json FILE]

Offline, against the scripted model, which answers at once, where nothing hides what a hook costs, and
after 300 ms, which few real ones undercut. The ways take turns, in another order each round. A watcher
lives, as after the first turn of a day. Beside them what the agent itself takes to run hooks that only
read, and hooks at tool calls that the agent does not wait for (`"async": true`). CPU is that of the
agent and its hooks; where nothing is idle, wall time tells of the machine as much.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner import Reach, tell

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "real_agents")]

from claude import ClaudeCode  # noqa: E402  # needs the path above

from tracebridge.agents import agent  # noqa: E402
from tracebridge.agents.claude_code import wiring  # noqa: E402
from tracebridge.edits import changed  # noqa: E402
from tracebridge.integrate import hook_commands  # noqa: E402
from tracebridge.store import Store  # noqa: E402
from tracebridge.testing.scripted_model import (  # noqa: E402
    Handler,
    Reply,
    ScriptedModel,
    Text,
    ToolUse,
    handler_of,
)

PROMPT = "read it all"
NONE, INSTALLED, LIGHT = "no hooks", "all hooks", "--light"
# What the agent itself takes to run any hook.
EMPTY = "hooks that only read"
ASYNC = "all hooks, async"
AT_MOST = {INSTALLED: 1.05, LIGHT: 1.02}
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Taken:
    wall_s: float
    cpu_s: float
    # Of all cores meanwhile.
    idle: float


@dataclass
class Way:
    name: str
    claude: ClaudeCode
    home: Path
    watcher: subprocess.Popen[bytes] | None = None
    taken: list[Taken] = field(default_factory=list)

    def turn(self) -> Taken:
        """Return what it took from start to exit."""
        cpu_s, began, idle_s = _cpu_of_children(), time.perf_counter(), _idle()
        finished = self.claude.run(PROMPT)
        wall_s = time.perf_counter() - began
        idle = (_idle() - idle_s) / (wall_s * (os.cpu_count() or 1))
        taken = Taken(wall_s, _cpu_of_children() - cpu_s, idle)
        if finished.exit_code:
            raise SystemExit(f"claude ended with {finished.exit_code}: {finished.stderr[-500:]}")
        self.wait_until_taken_in()
        return taken

    def wait_until_taken_in(self) -> None:
        # So that no other way finds this one's watcher at work.
        give_up = time.monotonic() + PATIENCE_S
        waiting = self.home / "spool" / "new"
        while self.watcher and any(waiting.iterdir()) and time.monotonic() < give_up:
            time.sleep(0.05)


def _cpu_of_children() -> float:
    # Those that ended and were waited for: the agent and its hooks, and no watcher.
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _idle() -> float:
    words = Path("/proc/stat").read_text().split(maxsplit=6)
    return (int(words[4]) + int(words[5])) / os.sysconf("SC_CLK_TCK")


class Thinking(Handler):
    """Say nothing before *thinks_s* have passed."""

    thinks_s = 0.0

    def _stream(self, *answer: Any) -> None:
        time.sleep(self.thinks_s)
        super()._stream(*answer)


class ThinkingModel(ScriptedModel):
    @staticmethod
    def _handler(play: Any) -> type[Handler]:
        return handler_of(play, Thinking)


def settings_for(name: str, home: Path) -> dict[str, Any]:
    commands = hook_commands(agent("claude-code"), home)
    if name == EMPTY:
        commands = dict.fromkeys(commands, "cat >/dev/null")
    wired = changed({}, wiring.wire_changes({}, commands, light=name == LIGHT))
    if name == NONE:
        wired["hooks"] = {}
    if name == ASYNC:
        for event in wiring.HOT_EVENTS:
            wired["hooks"][event][0]["hooks"][0]["async"] = True
    return wired


def ways(folder: Path, url: str) -> list[Way]:
    found = []
    for name in (NONE, EMPTY, INSTALLED, LIGHT, ASYNC):
        home = folder / name.replace(" ", "-") / "tracebridge"
        wired = settings_for(name, home)
        claude = ClaudeCode(
            workdir=home.parent, base_url=url, hooks=wired["hooks"], settings_env=wired["env"]
        )
        way = Way(name, claude, home)
        if name not in (NONE, EMPTY):
            env = {
                "PATH": os.environ["PATH"],
                "HOME": str(claude.home),
                "TRACEBRIDGE_HOME": str(home),
            }
            way.watcher = subprocess.Popen([sys.executable, "-m", "tracebridge", "watch"], env=env)
        found.append(way)
    return found


def script(model: ScriptedModel, folder: Path, tools: int) -> None:
    """Have the model ask for a file again and again."""
    path = str(folder / "file.txt")
    (folder / "file.txt").write_text("some lines\n" * 20)
    replies = [Reply([ToolUse("Read", {"file_path": path})]) for _ in range(tools)]
    model.script({PROMPT: [*replies, Reply([Text("That was all.")])]})


def measured(thinks_s: float, rounds: int, tools: int) -> list[Way]:
    """Return the ways with what each round took; end the program if a trace lacks a tool call."""
    draw = random.Random(1)
    Thinking.thinks_s = thinks_s
    with tempfile.TemporaryDirectory() as name, ThinkingModel() as model:
        folder = Path(name)
        script(model, folder, tools)
        found = ways(folder, model.url)
        try:
            for number in range(rounds + 1):
                for way in draw.sample(found, len(found)):
                    taken = way.turn()
                    # The first is for caches.
                    if number:
                        way.taken.append(taken)
        finally:
            for way in found:
                if way.watcher is not None:
                    way.watcher.terminate()
                    way.watcher.wait(PATIENCE_S)
        for way in found:
            if way.watcher is None:
                continue
            finish = [sys.executable, "-m", "tracebridge", "watch", "--once"]
            subprocess.run(
                finish, env={**os.environ, "TRACEBRIDGE_HOME": str(way.home)}, check=True
            )
            with Store(way.home) as store:
                told = [store.spans(row.trace_id) for row in store.turns()]
            count = sum(span.name.startswith("execute_tool") for spans in told for span in spans)
            if count != tools * (rounds + 1):
                raise SystemExit(f"{way.name}: {count} tool calls told")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tools", type=int, default=40)
    parser.add_argument("--thinks", type=float, nargs="+", default=[0.0, 0.3], metavar="SECONDS")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    reaches: list[Reach] = []
    details = {}
    for thinks_s in options.thinks:
        found = measured(thinks_s, options.rounds, options.tools)
        when = f"after {thinks_s * 1000:.0f} ms" if thinks_s else "at once"
        details[when] = {way.name: way.taken for way in found}
        sys.stdout.write(f"the model answers {when}\n")
        reaches += reached(found, when, options.tools)
    tell(reaches, details, options.json)


def reached(found: Sequence[Way], when: str, tools: int) -> list[Reach]:
    (bare,) = (way.taken for way in found if way.name == NONE)
    reaches = []
    for way in found:
        pairs = list(zip(way.taken, bare, strict=True))
        wall = statistics.median(own.wall_s / none.wall_s for own, none in pairs)
        cpu = statistics.median(own.cpu_s / none.cpu_s for own, none in pairs)
        more_s = statistics.median(own.wall_s - none.wall_s for own, none in pairs)
        sys.stdout.write(
            f"{way.name:22} wall {statistics.median(own.wall_s for own in way.taken):6.2f} s"
            f" {wall:6.3f}x   {more_s * 1000 / tools:6.1f} ms more a tool call"
            f"   CPU {statistics.median(own.cpu_s for own in way.taken):5.2f} s {cpu:6.3f}x"
            f"   idle {statistics.median(own.idle for own in way.taken):4.0%}\n"
        )
        if way.name in AT_MOST:
            what = f"Claude Code, {tools} tool calls {when}, {way.name} / no hooks"
            reaches += [
                Reach(what, wall, at_most=AT_MOST[way.name]),
                Reach(f"{what}, CPU", cpu),
            ]
    return reaches


if __name__ == "__main__":
    main()

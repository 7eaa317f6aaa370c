"""A real Claude Code turn of forty tool calls, with all our hooks, with the light registration, with none.

    python tests/bench/bench_agent.py [--minutes 5] [--tools 40] [--thinks 0 0.3] [--json FILE]

Offline, against the scripted model, which answers at once, where nothing hides what a hook costs, and
after 300 ms, which few real ones undercut. The ways take turns, in another order each round; ratios
are those of one round, with the interval in which their median lies 19 times of 20. A watcher lives,
as after the first turn of a day. Beside them, every other round, what the agent itself takes to run
any hooks: those that only read, those by HTTP (`"type": "http"`) to a server that answers at once,
and ours where the agent does not wait for those at tool calls (`"async": true`). CPU is that of the
agent and its hooks; where nothing is idle, wall time tells of the machine as much.
"""

from __future__ import annotations

import argparse
import asyncio
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
from typing import Any, cast

from runner import Reach, interval, tell

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

WARM_UP, PROMPT = "be ready", "read it all"
NONE, INSTALLED, LIGHT = "no hooks", "all hooks", "--light"
# What the agent itself takes to run any hook.
EMPTY, HTTP = "hooks that only read", "light, and http at tools"
ASYNC = "all hooks, async"
AT_MOST = {INSTALLED: 1.05, LIGHT: 1.02}
# The finest question needs the most rounds, the others run in every other one.
EACH_ROUND = (NONE, LIGHT)
ROUNDS = 3
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
    # By number of the round.
    taken: dict[int, Taken] = field(default_factory=dict)

    def turn(self, prompt: str) -> Taken:
        """Return what it took from start to exit."""
        cpu_s, began, idle_s = _cpu_of_children(), time.perf_counter(), _idle()
        finished = self.claude.run(prompt)
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


class Answering(asyncio.Protocol):
    """Answer each request at once, with nothing: the agent writes down what it is answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._heard = b""

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, _, body = self._heard.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r")[0]
        if length and len(body) >= int(length):
            self._heard = b""
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


async def answer_hooks() -> None:
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hooks\n")
    sys.stdout.flush()
    await server.serve_forever()


def settings_for(name: str, home: Path, hooks_url: str) -> dict[str, Any]:
    commands = hook_commands(agent("claude-code"), home)
    if name == EMPTY:
        commands = dict.fromkeys(commands, "cat >/dev/null")
    wired = changed({}, wiring.wire_changes({}, commands, light=name in (LIGHT, HTTP)))
    if name == NONE:
        wired["hooks"] = {}
    for event in wiring.HOT_EVENTS:
        if name == HTTP:
            entry = {"type": "http", "url": hooks_url, "timeout": wiring.TIMEOUT_S}
            wired["hooks"][event] = [{"hooks": [entry]}]
        elif name == ASYNC:
            wired["hooks"][event][0]["hooks"][0]["async"] = True
    return wired


def ways(folder: Path, url: str, names: Sequence[str], hooks_url: str) -> list[Way]:
    found = []
    for name in names:
        home = folder / name.replace(" ", "-") / "tracebridge"
        wired = settings_for(name, home, hooks_url)
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
    model.script(
        {
            PROMPT: [*replies, Reply([Text("That was all.")])],
            WARM_UP: [Reply([Text("Ready.")])],
        }
    )


def measured(thinks_s: float, seconds: float, tools: int) -> list[Way]:
    """Return the ways with what each round took; end the program if a trace lacks a tool call."""
    draw = random.Random(1)
    Thinking.thinks_s = thinks_s
    names = [NONE, INSTALLED, LIGHT] if thinks_s else [NONE, EMPTY, HTTP, INSTALLED, ASYNC, LIGHT]
    with (
        tempfile.TemporaryDirectory() as name,
        ThinkingModel() as model,
        subprocess.Popen(
            [sys.executable, __file__, "--answer-hooks"], stdout=subprocess.PIPE, text=True
        ) as answering,
    ):
        folder = Path(name)
        script(model, folder, tools)
        assert answering.stdout is not None
        found = ways(folder, model.url, names, answering.stdout.readline().strip())
        try:
            for way in found:
                way.turn(WARM_UP)
            until = time.monotonic() + seconds
            number = 0
            while number < ROUNDS or time.monotonic() < until:
                those = [way for way in found if number % 2 == 0 or way.name in EACH_ROUND]
                for way in draw.sample(those, len(those)):
                    way.taken[number] = way.turn(PROMPT)
                number += 1
        finally:
            answering.terminate()
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
            if count != tools * len(way.taken):
                raise SystemExit(f"{way.name}: {count} tool calls told")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--tools", type=int, default=40)
    parser.add_argument("--thinks", type=float, nargs="+", default=[0.0, 0.3], metavar="SECONDS")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--answer-hooks", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer_hooks:
        asyncio.run(answer_hooks())
    reaches: list[Reach] = []
    details = {}
    for thinks_s in options.thinks:
        # A slow model makes for few rounds, and for little that differs between them.
        share = (2 if thinks_s else 1) / sum(2 if each else 1 for each in options.thinks)
        found = measured(thinks_s, options.minutes * 60 * share, options.tools)
        when = f"after {thinks_s * 1000:.0f} ms" if thinks_s else "at once"
        details[when] = {way.name: way.taken for way in found}
        sys.stdout.write(f"the model answers {when}\n")
        reaches += reached(found, when, options.tools)
    tell(reaches, details, options.json)


def reached(found: Sequence[Way], when: str, tools: int) -> list[Reach]:
    (bare,) = (way.taken for way in found if way.name == NONE)
    reaches = []
    for way in found:
        pairs = [(own, bare[number]) for number, own in way.taken.items()]
        walls = [own.wall_s / none.wall_s for own, none in pairs]
        cpus = [own.cpu_s / none.cpu_s for own, none in pairs]
        wall, cpu = statistics.median(walls), statistics.median(cpus)
        more_s = statistics.median(own.wall_s - none.wall_s for own, none in pairs)
        low, high = interval(walls)
        sys.stdout.write(
            f"{way.name:24} {len(pairs):3} turns   wall"
            f" {statistics.median(own.wall_s for own, _ in pairs):6.2f} s {wall:6.3f}x"
            f" [{low:.3f}, {high:.3f}] {more_s * 1000 / tools:6.1f} ms more a tool call"
            f"   CPU {statistics.median(own.cpu_s for own, _ in pairs):5.2f} s {cpu:6.3f}x"
            f"   idle {statistics.median(own.idle for own, _ in pairs):4.0%}\n"
        )
        if way.name in AT_MOST:
            what = f"Claude Code, {tools} tool calls {when}, {way.name} / no hooks"
            reaches += [
                Reach(what, wall, at_most=AT_MOST[way.name], between=(low, high)),
                Reach(f"{what}, CPU", cpu, between=interval(cpus)),
            ]
    return reaches


if __name__ == "__main__":
    main()

"""A real Claude Code turn of forty tool calls, with all our hooks installed against none.

    python tests/bench/bench_agent.py [--rounds 10] [--tools 40] [--json FILE]

Offline, against the scripted model, which answers at once: nothing hides what a hook costs. The ways
take turns, in another order each round. A watcher lives, as after the first turn of a day. What
`integrate` writes has the sh hook where events come often and the Python hook elsewhere; beside it,
what it would be with the Python hook everywhere, and what the agent itself takes to run hooks that only
read.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from runner import Reach, tell

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "real_agents")]

from claude import ClaudeCode  # noqa: E402  # needs the path above

from tracebridge.agents import agent  # noqa: E402
from tracebridge.agents.claude_code import wiring  # noqa: E402
from tracebridge.integrate import hook_commands  # noqa: E402
from tracebridge.store import Store  # noqa: E402
from tracebridge.testing.scripted_model import Reply, ScriptedModel, Text, ToolUse  # noqa: E402

PROMPT = "read it all"
NONE, INSTALLED, PYTHON = "no hooks", "as installed", "the Python hook everywhere"
# What the agent itself takes to run any hook.
EMPTY = "hooks that only read"
PATIENCE_S = 120.0


@dataclass
class Way:
    name: str
    claude: ClaudeCode
    home: Path
    watcher: subprocess.Popen[bytes] | None = None

    def turn(self) -> float:
        """Return the seconds from start to exit."""
        began = time.perf_counter()
        finished = self.claude.run(PROMPT)
        took = time.perf_counter() - began
        if finished.exit_code:
            raise SystemExit(f"claude ended with {finished.exit_code}: {finished.stderr[-500:]}")
        self.wait_until_taken_in()
        return took

    def wait_until_taken_in(self) -> None:
        # So that no other way finds this one's watcher at work.
        give_up = time.monotonic() + PATIENCE_S
        waiting = self.home / "spool" / "new"
        while self.watcher and any(waiting.iterdir()) and time.monotonic() < give_up:
            time.sleep(0.05)


def ways(folder: Path, url: str) -> list[Way]:
    found = []
    for name in (NONE, EMPTY, INSTALLED, PYTHON):
        home = folder / name.replace(" ", "-") / "tracebridge"
        commands = hook_commands(agent("claude-code"), home)
        if name == PYTHON:
            commands["hot"] = commands["hook"]
        if name == EMPTY:
            commands = dict.fromkeys(commands, "cat >/dev/null")
        wired = wiring.wire({}, commands)
        claude = ClaudeCode(
            workdir=home.parent,
            base_url=url,
            hooks=wired["hooks"] if name != NONE else {},
            settings_env=wired["env"],
        )
        (claude.project / "file.txt").write_text("some lines\n" * 20)
        way = Way(name, claude, home)
        if name in (INSTALLED, PYTHON):
            env = {
                "PATH": os.environ["PATH"],
                "HOME": str(claude.home),
                "TRACEBRIDGE_HOME": str(home),
            }
            way.watcher = subprocess.Popen([sys.executable, "-m", "tracebridge", "watch"], env=env)
        found.append(way)
    return found


def script(model: ScriptedModel, folder: Path, tools: int) -> None:
    """Have the model ask for a file again and again; each way has one of its own."""
    path = str(folder / "file.txt")
    (folder / "file.txt").write_text("some lines\n" * 20)
    replies = [Reply([ToolUse("Read", {"file_path": path})]) for _ in range(tools)]
    model.script({PROMPT: [*replies, Reply([Text("That was all.")])]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tools", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    draw = random.Random(1)
    with tempfile.TemporaryDirectory() as name, ScriptedModel() as model:
        folder = Path(name)
        script(model, folder, options.tools)
        found = ways(folder, model.url)
        times: dict[str, list[float]] = {way.name: [] for way in found}
        try:
            for number in range(options.rounds + 1):
                for way in draw.sample(found, len(found)):
                    took = way.turn()
                    # The first is for caches.
                    if number:
                        times[way.name].append(took)
        finally:
            for way in found:
                if way.watcher is not None:
                    way.watcher.terminate()
                    way.watcher.wait(PATIENCE_S)
        for way in found:
            if way.watcher is None:
                continue
            with Store(way.home) as store:
                told = [store.spans(row.trace_id) for row in store.turns()]
            tools = sum(span.name.startswith("execute_tool") for spans in told for span in spans)
            if tools != options.tools * (options.rounds + 1):
                raise SystemExit(f"{way.name}: {tools} tool calls told")
    reaches = []
    for way in found:
        values = times[way.name]
        ratios = [own / bare for own, bare in zip(values, times[NONE], strict=True)]
        more_ms = [own - bare for own, bare in zip(values, times[NONE], strict=True)]
        sys.stdout.write(
            f"{way.name:28} median {statistics.median(values):6.2f} s   min {min(values):6.2f} s"
            f"   paired {statistics.median(ratios):6.3f}x"
            f"   {statistics.median(more_ms) * 1000 / options.tools:6.1f} ms more a tool call\n"
        )
        if way.watcher is not None:
            what = f"Claude Code, {options.tools} tool calls, {way.name}"
            reaches += [
                Reach(
                    f"{what} / no hooks",
                    statistics.median(ratios),
                    at_most=1.02 if way.name == INSTALLED else 1.05,
                ),
                Reach(
                    f"{what} / hooks that only read",
                    statistics.median(
                        own / empty for own, empty in zip(values, times[EMPTY], strict=True)
                    ),
                ),
            ]
    tell(reaches, times, options.json)


if __name__ == "__main__":
    main()

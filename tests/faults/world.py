"""What the fault tests share: inputs recorded from real processes, and the comparison at the end.

A stand-in agent with real hooks and a real gateway leaves a spool; sessions that also have a
transcript stand beside it. Each fault starts from a copy, so what an undisturbed run makes of it
is known to the byte.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claude_files import Claude, at, said, used

from tracebridge.agents import Launch, agent
from tracebridge.demo.claude_code import script as demo_script
from tracebridge.integrate import hook_commands
from tracebridge.model import CallIdentity, GatewayCall, Usage
from tracebridge.run import started_gateway
from tracebridge.testing.receiver import ReceivedSpan, Receiver
from tracebridge.testing.scripted_model import ScriptedModel

STEPPER = Path(__file__).with_name("stepper.py")
PROMPT = "Make greet.py say hello to the world, run it, and have a helper review it."
LIMIT_S = 300.0

SpanId = tuple[str, str]


@dataclass(frozen=True)
class Ended:
    """How an ordered process ended, which steps it passed and what it said."""

    code: int
    steps: list[str]
    # On stderr.
    said: str


class Stepper:
    """Processes that die at a chosen step; *launcher* may put them into a place of their own."""

    def __init__(self, *launcher: str) -> None:
        self._process = subprocess.Popen(
            [*launcher, sys.executable, str(STEPPER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def order(self, action: str, env: Mapping[str, str], **details: Any) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"action": action, "env": dict(env), **details}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the stepper is gone: {self._process.wait()}"
        return Ended(**json.loads(answer))

    def close(self) -> None:
        self._process.communicate(timeout=LIMIT_S)


@dataclass(kw_only=True)
class Figures:
    """What one kind of fault did."""

    name: str
    faults: int = 0
    expected: int = 0
    lost: int = 0
    # Span ids that an undisturbed run does not have.
    duplicated: int = 0
    differing: int = 0
    # The backend had them, but its answer was never seen; the same bytes once more.
    sent_again: int = 0
    remark: str = ""

    @property
    def is_clean(self) -> bool:
        return self.faults > 0 and not (self.lost or self.duplicated or self.differing)

    def add(
        self,
        expected: Mapping[SpanId, bytes],
        arrived: list[ReceivedSpan],
        *,
        faults: int = 1,
        may_resend: bool = False,
    ) -> None:
        copies = Counter((span.trace_id, span.span_id) for span in arrived)
        again = sum(copies.values()) - len(copies)
        differing = {
            (span.trace_id, span.span_id)
            for span in arrived
            if expected.get((span.trace_id, span.span_id), b"") != content_of(span)
        }
        self.faults += faults
        self.expected += len(expected)
        self.lost += len(expected.keys() - copies.keys())
        self.duplicated += len(copies.keys() - expected.keys())
        self.differing += len(differing & expected.keys())
        if may_resend:
            self.sent_again += again
        else:
            self.duplicated += again


def content_of(span: ReceivedSpan) -> bytes:
    resource = json.dumps(dict(span.resource), sort_keys=True).encode()
    return span.message.SerializeToString(deterministic=True) + resource


def contents(receiver: Receiver) -> dict[SpanId, bytes]:
    return {(span.trace_id, span.span_id): content_of(span) for span in receiver.spans}


@dataclass
class World:
    """Inputs, and homes made from them."""

    folder: Path
    template: Path
    stepper: Stepper
    expected: dict[SpanId, bytes] = field(default_factory=dict)
    _homes: int = 0

    def new_home(self, *, filled: bool = True) -> Path:
        self._homes += 1
        home = self.folder / f"home-{self._homes}"
        if filled:
            shutil.copytree(self.template, home)
        else:
            home.mkdir(mode=0o700)
        return home

    def drop(self, home: Path) -> None:
        shutil.rmtree(home)

    def env(self, home: Path, endpoint: str = "", **more: str) -> dict[str, str]:
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.folder / "user"),
            "TRACEBRIDGE_HOME": str(home),
            "TRACEBRIDGE_NO_WATCH": "1",
            **more,
        }
        if endpoint:
            env["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
        return env

    def watch_once(self, home: Path, receiver: Receiver, **details: Any) -> Ended:
        return self.stepper.order("watch_once", self.env(home, receiver.endpoint), **details)

    def undisturbed(self, home: Path) -> dict[SpanId, bytes]:
        """Return what a run without faults delivers from *home*."""
        with Receiver() as receiver:
            ended = self.watch_once(home, receiver)
            assert ended.code == 0, ended
            assert len(receiver.spans) == len(contents(receiver))
            return contents(receiver)

    def close(self) -> None:
        self.stepper.close()


@contextmanager
def made_world(folder: Path) -> Iterator[World]:
    """Record the inputs below *folder* and give the world made of them."""
    (folder / "user").mkdir(parents=True)
    template = folder / "template"
    template.mkdir(mode=0o700)
    tell_sessions(template, folder / "user" / ".claude")
    stepper = Stepper()
    try:
        world = World(folder, template, stepper)
        # Whole transcripts and, in the spool, the hooks of real processes.
        agent_run(world, template)
        home = world.new_home()
        world.expected = world.undisturbed(home)
        world.drop(home)
        yield world
    finally:
        stepper.close()


def tell_sessions(home: Path, folder: Path) -> None:
    """Put sessions that are also told by a transcript into *home*."""
    for number in range(3):
        claude = Claude(home, folder, session=f"{number}-session", turn=f"turn-{number}")
        claude.hook(0, "UserPromptSubmit", prompt="edit it")
        claude.prompt_line(0, "edit it")
        given = {"file_path": "/project/a.py", "content": "1\n2\n"}
        thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
        first, second = f"msg_{number}_1", f"msg_{number}_2"
        tool_id = f"toolu_{number}"
        write = used(tool_id, "Write", **given)
        claude.answer_line(2, first, thought, write, began=1, stop="tool_use")
        tool = {"tool_name": "Write", "tool_input": given, "tool_use_id": tool_id}
        claude.hook(2.1, "PreToolUse", **tool)
        response = {"type": "create", "filePath": "/project/a.py", "structuredPatch": []}
        claude.hook(2.3, "PostToolUse", **tool, tool_response=response, duration_ms=100)
        result = {"type": "tool_result", "tool_use_id": tool_id, "content": "written"}
        claude.line(
            "user",
            2.3,
            promptId=claude.turn,
            message={"role": "user", "content": [result]},
            toolUseResult=response,
        )
        claude.answer_line(4, second, said("done"), began=3)
        claude.hook(4.1, "Stop", last_assistant_message="done", background_tasks=[])
        if number == 2:
            # One session that no gateway saw.
            continue
        for index, response_id in enumerate((first, second)):
            claude.spool.write_call(
                GatewayCall(
                    call_id=f"call-{number}-{index}",
                    gateway="tracebridge",
                    method="POST",
                    path="/v1/messages",
                    start_ns=at(1 + 2 * index),
                    end_ns=at(2 + 2 * index),
                    identity=CallIdentity(
                        agent="claude-code", session_id=claude.session, turn_key=claude.turn
                    ),
                    response_id=response_id,
                    usage=Usage(input_tokens=115, output_tokens=20),
                )
            )


def agent_run(world: World, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Let the stand-in agent do a turn with real hooks and gateway."""
    which = agent("claude-code")
    assert which is not None
    world._homes += 1
    project = world.folder / f"project-{world._homes}"
    project.mkdir()
    given = world.env(home, ANTHROPIC_API_KEY="sk-not-a-key", **env)
    with (
        ScriptedModel(demo_script(project)) as model,
        started_gateway([f"anthropic={model.url}"], given) as url,
    ):
        assert url is not None
        launch = Launch(commands=hook_commands(which, home), gateway_url=url, env=given)
        command, agent_env = which.launch([which.PROGRAM, "-p", PROMPT], launch)
        return subprocess.run(
            [sys.executable, "-m", "tracebridge.testing.stand_in_agent", *command[1:]],
            env=agent_env,
            cwd=project,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

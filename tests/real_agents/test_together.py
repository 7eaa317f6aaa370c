"""Agents of different kinds, at work at once in one folder through one gateway."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from judge import (
    CLAUDE_CODE,
    TAGS,
    Kind,
    Trial,
    judge_calls,
    judge_spans,
    judge_tags,
    judge_tools,
    running_watcher,
    wired_for,
)
from scenarios import Played
from test_codex_cli import CODEX_CLI
from test_gemini_cli import GEMINI_CLI
from test_opencode import OPENCODE

from tracebridge import semconv
from tracebridge.run import started_gateway
from tracebridge.settings import read_settings
from tracebridge.testing.receiver import ReceivedSpan, Receiver
from tracebridge.testing.scripted_model import Hold, Reply, ScriptedModel, Text, ToolUse
from tracebridge.watch import watch_once

pytestmark = pytest.mark.real_agent


@dataclass(frozen=True)
class Player:
    kind: Kind
    # Starts the agent on a stage, with a prompt.
    start: Any
    shell: str
    argument: str
    evidence: str

    @property
    def prompt(self) -> str:
        return f"together with {self.kind.slug}"

    def script(self) -> list[Reply]:
        command = {self.argument: f"echo {self.kind.slug}", "description": "a scripted command"}
        if self.kind.slug == "codex-cli":
            del command["description"]
        return [
            Reply([ToolUse(self.shell, command)], hold=Hold(self.kind.slug)),
            Reply([ToolUse(self.shell, command)]),
            Reply([Text("Done.")]),
        ]


PLAYERS = [
    Player(CLAUDE_CODE, lambda s, p: s.claude().start(p), "Bash", "command", "turn_id"),
    Player(CODEX_CLI, lambda s, p: s.codex().start(p), "exec_command", "cmd", "turn_id"),
    Player(
        GEMINI_CLI,
        lambda s, p: s.gemini().start(p),
        "run_shell_command",
        "command",
        "tool_call_id",
    ),
    Player(OPENCODE, lambda s, p: s.opencode().start(p), "bash", "command", "traceparent"),
]


@dataclass(frozen=True)
class Part:
    """What a backend got of one agent."""

    spans: list[ReceivedSpan]
    requests: list[Any]


def test_four_agents_at_once_do_not_mix(tmp_path: Path, monkeypatch):
    """Each call is in the turn of its own agent; two of them even share a model."""
    home = tmp_path / "state"
    play = tmp_path / "play"
    families = {player.kind.family: player.kind.model for player in PLAYERS}
    with Receiver() as receiver:
        monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("HOME", str(play / "home"))
        env = {**os.environ, "TRACEBRIDGE_HOME": str(home)}
        models: dict[str, ScriptedModel] = {
            family: model(
                {p.prompt: p.script() for p in PLAYERS if p.kind.family == family},
                # Vendors give no id twice.
                id_prefix=family,
            )
            for family, model in families.items()
        }
        try:
            upstream = [f"{family}={model.url}" for family, model in models.items()]
            with running_watcher(env), started_gateway(upstream, env) as url:
                assert url is not None
                runs = []
                for player in PLAYERS:
                    stage = player.kind.stage(
                        wired_for(player.kind, home),
                        workdir=play,
                        model=models[player.kind.family],
                        base_url=f"{url}{player.kind.path}",
                        env={**TAGS, "TRACEBRIDGE_NO_WATCH": "1", "TRACEBRIDGE_HOME": str(home)},
                        launcher=(),
                    )
                    runs.append(player.start(stage, player.prompt))
                for player in PLAYERS:
                    # Until each of them waits for its model, none gets an answer.
                    models[player.kind.family].wait_until_held(player.kind.slug)
                for player in PLAYERS:
                    models[player.kind.family].gate(player.kind.slug).set()
                finished = [run.finish() for run in runs]
        finally:
            for model in models.values():
                model.close()
        assert [each.exit_code for each in finished] == [0, 0, 0, 0]
        assert watch_once(read_settings())
        turns = [s for s in receiver.spans if s.attributes[semconv.SPAN_TYPE] == "turn"]
        agents = Counter(turn.attributes[semconv.AGENT_NAME] for turn in turns)
        assert agents == {player.kind.slug: 1 for player in PLAYERS}
        for player in PLAYERS:
            (root,) = [t for t in turns if t.attributes[semconv.AGENT_NAME] == player.kind.slug]
            session = root.attributes[semconv.CONVERSATION_ID]
            calls = [
                call
                for call in models[player.kind.family].calls()
                if call.prompt == player.prompt or call.session_id == session
            ]
            own = Part([s for s in receiver.spans if s.trace_id == root.trace_id], [])
            judge(Trial(Played((0,), (session,)), home, play, calls, own, player.kind), player)


def judge(trial: Trial, player: Player) -> None:
    assert trial.outcomes == ["completed"]
    judge_calls(trial, evidence={player.evidence})
    judge_tools(trial)
    judge_spans(trial)
    judge_tags(trial)
    assert len(trial.of_type("tool")) == 2

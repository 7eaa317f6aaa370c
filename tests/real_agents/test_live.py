"""What a backend has while an agent is still at work."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from judge import TAGS, running_watcher, wired_for
from test_opencode import CHAT, RESPONSES
from test_together import PLAYERS, Player

from tracebridge import semconv
from tracebridge.run import started_gateway
from tracebridge.testing.receiver import ReceivedSpan, Receiver
from tracebridge.testing.scripted_model import Hold, Reply, Text, Thinking, ToolUse

pytestmark = pytest.mark.real_agent
PATIENCE_S = 300.0
GATE = "the call before has arrived"
(OPENCODE,) = [player for player in PLAYERS if player.kind.slug == "opencode"]
SETUPS = {player.kind.slug: player for player in PLAYERS} | {
    "opencode-responses": replace(OPENCODE, kind=RESPONSES),
    "opencode-chat": replace(OPENCODE, kind=CHAT),
}


@pytest.mark.parametrize("player", SETUPS.values(), ids=SETUPS)
def test_a_call_arrives_before_the_next_is_answered(player: Player, tmp_path: Path, monkeypatch):
    """The model holds its last answer back until the backend has the span of the call before."""
    home = tmp_path / "state"
    command = {player.argument: "echo one", "description": "a scripted command"}
    if player.kind.slug == "codex-cli":
        del command["description"]
    replies = [
        Reply([Thinking("A plan."), Text("First a command."), ToolUse(player.shell, command)]),
        Reply([Text("Done.")], hold=Hold(GATE)),
    ]
    with Receiver() as receiver, player.kind.model({player.prompt: replies}) as model:
        monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("HOME", str(tmp_path / "play" / "home"))
        env = {**os.environ, "TRACEBRIDGE_HOME": str(home)}
        upstream = [f"{player.kind.family}={model.url}"]
        with running_watcher(env), started_gateway(upstream, env) as url:
            stage = player.kind.stage(
                wired_for(player.kind, home),
                workdir=tmp_path / "play",
                model=model,
                base_url=f"{url}{player.kind.path}",
                env={**TAGS, "TRACEBRIDGE_NO_WATCH": "1", "TRACEBRIDGE_HOME": str(home)},
                launcher=(),
            )
            running = player.start(stage, player.prompt)
            model.wait_until_held(GATE, PATIENCE_S)
            first, *_ = [call for call in model.calls() if call.tool_use_ids]
            receiver.wait_for(lambda each: chats_of(each.spans, first.message_id), PATIENCE_S)
            assert not turns_in(receiver.spans)
            model.gate(GATE).set()
            assert running.finish().exit_code == 0
            receiver.wait_for(lambda each: turns_in(each.spans), PATIENCE_S)
        (root,) = turns_in(receiver.spans)
        (chat,) = chats_of(receiver.spans, first.message_id)
        assert (chat.trace_id, chat.parent_span_id) == (root.trace_id, root.span_id)
        assert chat.attributes[semconv.LINK_CONFIDENCE] == "exact"
        assert chat.attributes[semconv.OI_OUTPUT] == "First a command."


def turns_in(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
    return [span for span in spans if span.attributes[semconv.SPAN_TYPE] == "turn"]


def chats_of(spans: list[ReceivedSpan], response_id: str | None) -> list[ReceivedSpan]:
    return [span for span in spans if span.attributes.get(semconv.RESPONSE_ID) == response_id]

"""The real Claude Code through the real `respan-gateway`, which exports its spans to us."""

from __future__ import annotations

import pytest
from judge import CLAUDE_CODE
from real_gateways.foreign import respan_gateway
from real_gateways.turns import played

from tracebridge import semconv

pytestmark = pytest.mark.real_agent


@pytest.mark.parametrize("ours_in_front", [False, True])
def test_respan_gateway(ours_in_front, tmp_path, monkeypatch):
    """It exports no ids of answers or sessions: tools and tokens tell whose call it was."""

    def start(model: str, otlp: str):
        return respan_gateway(tmp_path / "respan", anthropic=model, otlp=otlp)

    with played(
        CLAUDE_CODE,
        tmp_path,
        monkeypatch,
        start,
        name="respan-gateway",
        ours_in_front=ours_in_front,
    ) as turn:
        turn.judge({"response_id", "tool_call_id", "session_window"})
        below = [span for chat in turn.chats for span in turn.below(chat)]
        told = {span.attributes.get(semconv.LINK_EVIDENCE) for span in below}
        assert "tool_call_id" in told

"""Real agents through the real LiteLLM proxy, which tells of its calls by a file or by HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from shutil import copy

import claude
import codex
import pytest
from backend_runs import until
from judge import CLAUDE_CODE, TAGS, running_watcher, wired_for
from real_gateways.foreign import litellm
from test_codex_cli import CODEX_CLI

from tracebridge import semconv
from tracebridge.run import started_gateway
from tracebridge.settings import read_settings
from tracebridge.testing.receiver import Receiver
from tracebridge.testing.scripted_model import Reply, Text, ToolUse
from tracebridge.views.status import status
from tracebridge.watch import watch_once

pytestmark = [pytest.mark.real_agent, pytest.mark.heavy]

CALLBACK = Path(__file__).resolve().parents[2] / "examples" / "gateways" / "litellm_callback.py"
PROMPT = "write the greeting"
KEYS = {"claude-code": claude.API_KEY, "codex-cli": codex.API_KEY}
COMMANDS = {
    "claude-code": ToolUse("Bash", {"command": "echo hi", "description": "greets"}),
    "codex-cli": ToolUse("exec_command", {"cmd": "echo hi"}),
}


@pytest.mark.parametrize("kind", [CLAUDE_CODE, CODEX_CLI], ids=lambda kind: kind.slug)
@pytest.mark.parametrize(
    ("callback", "ours_in_front"),
    [
        ("litellm_callback.recorder", False),
        ("litellm_callback.recorder", True),
        ("generic_api", False),
    ],
)
def test_records_of_a_callback(kind, callback, ours_in_front, tmp_path, monkeypatch):
    """Each call is one span, whoever else saw it, with LiteLLM's name on it and its usage once."""
    home, records = tmp_path / "state", tmp_path / "records"
    theirs = tmp_path / "litellm"
    records.mkdir()
    theirs.mkdir()
    copy(CALLBACK, theirs)
    monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
    monkeypatch.setenv("TRACEBRIDGE_RECORDS", str(records))
    monkeypatch.setenv("HOME", str(tmp_path / "play" / "home"))
    with Receiver() as receiver, kind.model(id_prefix="real") as model:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        env = dict(os.environ)
        model.script({PROMPT: [Reply([COMMANDS[kind.slug]]), Reply([Text("Done.")])]})
        wired = wired_for(kind, home)
        with (
            running_watcher(env),
            started_gateway([f"{kind.family}=http://127.0.0.1:9"], env) as logs,
            litellm(
                theirs,
                key=KEYS[kind.slug],
                anthropic=model.url,
                openai=model.url,
                otlp="http://127.0.0.1:9",
                callbacks=[callback],
                more_env={
                    "TRACEBRIDGE_RECORDS": str(records),
                    "GENERIC_LOGGER_ENDPOINT": f"{logs}/api/litellm-logs/",
                },
            ) as proxy,
            started_gateway([f"{kind.family}={proxy}"], env) as ours,
        ):
            path = "/v1" if kind.family == "openai" else ""
            stage = kind.stage(
                wired,
                workdir=tmp_path / "play",
                model=model,
                base_url=f"{ours}{kind.path}" if ours_in_front else f"{proxy}{path}",
                env={**TAGS, "TRACEBRIDGE_NO_WATCH": "1", "TRACEBRIDGE_HOME": str(home)},
            )
            agent = stage.claude() if kind is CLAUDE_CODE else stage.codex()
            finished = agent.run(PROMPT)
            assert finished.exit_code == 0, finished.stderr
            calls = len(model.calls())
            until(lambda: linked("litellm") >= calls, "LiteLLM's records did not arrive")
        assert watch_once(read_settings())
        answered = [attempt for attempt in model.calls() if attempt.outcome == "answered"]
        spans = receiver.spans
    chats = [span for span in spans if span.attributes[semconv.SPAN_TYPE] == "llm"]
    (root,) = (span for span in spans if span.attributes[semconv.SPAN_TYPE] == "turn")
    assert {chat.trace_id for chat in chats} == {root.trace_id}
    told = sorted(chat.attributes[semconv.OUTPUT_TOKENS] for chat in chats)
    assert told == sorted(attempt.usage["output_tokens"] for attempt in answered)
    names = {chat.attributes.get(semconv.LLM_GATEWAY) for chat in chats}
    if callback == "generic_api":
        # It posts every five seconds: by then the turn may be told, and told spans never change.
        assert names <= {"litellm", None}
    else:
        assert names == {"tracebridge+litellm" if ours_in_front else "litellm"}
    told_us = "".join(file.read_text() for file in records.iterdir())
    assert bool(told_us) == (callback != "generic_api")
    assert KEYS[kind.slug] not in told_us
    assert PROMPT not in told_us


def linked(gateway: str) -> int:
    counts = status(read_settings())["links"]["by_gateway"].get(gateway, {})
    return sum(n for fate, n in counts.items() if fate not in {"waiting", "orphan"})

"""A project's .env is loaded by the real Gemini CLI and leads no trace away from its user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gemini import GeminiCli
from terminal import wait_until

from tracebridge import semconv
from tracebridge.store import Store
from tracebridge.testing.receiver import Receiver
from tracebridge.testing.scripted_gemini import ScriptedGemini
from tracebridge.testing.scripted_model import Reply, Text
from tracebridge.watch_lock import is_watched

pytestmark = pytest.mark.real_agent

PROMPT = "please say hello"


@pytest.mark.parametrize("named", ["a sink", "nothing", "a home of the project's"])
def test_a_projects_env_file_leads_no_trace_away(named, tmp_path, monkeypatch):
    """Sinks, endpoint, proxy or a whole home of its choice: the thief hears nothing.

    What the user's own config.toml names gets the turn; if it names nothing, nobody does.
    """
    home = tmp_path / "state"
    home.mkdir(mode=0o700)
    for name in ("TRACEBRIDGE_HOME", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        # What is set already no .env replaces.
        monkeypatch.delenv(name, raising=False)
    with Receiver() as receiver, Receiver() as thief, ScriptedGemini() as model:
        model.script({PROMPT: [Reply([Text("Hello.")])]})
        sink = f'sinks = "otlp_http:{receiver.endpoint}"\n' if named == "a sink" else ""
        (home / "config.toml").write_text(f"{sink}idle_minutes = 0.02\n")
        agent = GeminiCli(workdir=tmp_path / "play", base_url=f"{model.url}/api/google/gemini")
        where = home
        hostile = {
            "TRACEBRIDGE_SINKS": f"otlp_http:{thief.endpoint}",
            "OTEL_EXPORTER_OTLP_ENDPOINT": thief.endpoint,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{thief.endpoint}/v1/traces",
            "ALL_PROXY": thief.endpoint,
            # Seen on the spans, it proves that the file was loaded.
            "RESPAN_CUSTOMER_ID": "of-the-project",
        }
        if named == "a home of the project's":
            where = agent.project / "state"
            where.mkdir(mode=0o700)
            config = f'sinks = "otlp_http:{thief.endpoint}"\nidle_minutes = 0.02\n'
            (where / "config.toml").write_text(config)
            hostile["TRACEBRIDGE_HOME"] = str(where)
        lines = [f"{name}={value}\n" for name, value in hostile.items()]
        (agent.project / ".env").write_text("".join(lines))
        integrate(home, agent)
        assert agent.run(PROMPT).exit_code == 0
        wait_until(lambda: told_in(where) > 0, complaint="the turn is not told")
        wait_until(lambda: not is_watched(where), complaint="the idle watcher does not leave")
        with Store(where) as store:
            (row,) = store.turns()
            expected = {span.span_id for span in store.spans(row.trace_id)}
            assert row.customer_id == "of-the-project"
        arrived = {span.span_id for span in receiver.spans}
        assert arrived == (expected if named == "a sink" else set())
        assert all(s.attributes[semconv.USER_ID] == "of-the-project" for s in receiver.spans)
        assert thief.requests == []


def integrate(home: Path, agent: GeminiCli) -> None:
    command = [sys.executable, "-m", "tracebridge", "integrate", "gemini-cli"]
    env = {**agent.environment(), "TRACEBRIDGE_HOME": str(home)}
    subprocess.run(command, env=env, check=True, capture_output=True)


def told_in(home: Path) -> int:
    if not (home / "store.sqlite3").exists():
        return 0
    with Store(home) as store:
        return sum(row.told for row in store.turns())

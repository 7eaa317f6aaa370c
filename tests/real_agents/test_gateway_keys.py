"""Each real agent with a client's key of ours: it is let in, and the model sees another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from judge import CLAUDE_CODE, Kind, running_watcher, wired_for
from test_codex_cli import CODEX_CLI
from test_gemini_cli import GEMINI_CLI
from test_opencode import OPENCODE

from tracebridge import semconv
from tracebridge.gateways.client_keys import FILE, digest_of
from tracebridge.settings import read_settings
from tracebridge.testing.receiver import Receiver
from tracebridge.testing.scripted_model import Reply, Text
from tracebridge.watch import watch_once

pytestmark = pytest.mark.real_agent

REAL = "sk-the-upstreams-own-0123456789"
STARTS = {
    CLAUDE_CODE.slug: (CLAUDE_CODE, lambda s, p: s.claude().start(p)),
    CODEX_CLI.slug: (CODEX_CLI, lambda s, p: s.codex().start(p)),
    GEMINI_CLI.slug: (GEMINI_CLI, lambda s, p: s.gemini().start(p)),
    OPENCODE.slug: (OPENCODE, lambda s, p: s.opencode().start(p)),
}


@contextmanager
def keyed_gateway(kind: Kind, home: Path, upstream: str, env: dict[str, str]) -> Iterator[str]:
    home.mkdir(mode=0o700, parents=True)
    # The key that the agent's stage brings is the client's.
    digest = digest_of(kind.api_key).hex()
    (home / FILE).write_text(f'[keys."{kind.slug}@example.com"]\nsha256 = "{digest}"\n')
    words = ["--listen", "127.0.0.1:0", "--upstream", f"{kind.family}={upstream}"]
    words += ["--upstream-key", "ENV:REAL_KEY"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tracebridge", "gateway", *words],
        env={**env, "REAL_KEY": REAL},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.parametrize("slug", STARTS)
def test_a_clients_key_is_let_in_and_goes_no_further(slug, tmp_path, monkeypatch):
    """Wherever the agent puts it; the turn and all in it are its owner's."""
    kind, start = STARTS[slug]
    home, play = tmp_path / "state", tmp_path / "play"
    model: Any = kind.model({"hello": [Reply([Text("Done.")])]})
    with Receiver() as receiver:
        monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        env = {**os.environ, "TRACEBRIDGE_HOME": str(home)}
        try:
            with keyed_gateway(kind, home, model.url, env) as url, running_watcher(env):
                stage = kind.stage(
                    wired_for(kind, home),
                    workdir=play,
                    model=model,
                    base_url=f"{url}{kind.path}",
                    env={"TRACEBRIDGE_NO_WATCH": "1", "TRACEBRIDGE_HOME": str(home)},
                    launcher=(),
                )
                done = start(stage, "hello").finish()
        finally:
            model.close()
        assert done.exit_code == 0
        assert watch_once(read_settings())
        calls = model.calls()
        assert calls
        for call in calls:
            heard = repr((call.headers, call.path))
            assert REAL in heard
            assert kind.api_key not in heard
        (root,) = [s for s in receiver.spans if s.attributes[semconv.SPAN_TYPE] == "turn"]
        turn = [s for s in receiver.spans if s.trace_id == root.trace_id]
        assert any(span.attributes[semconv.SPAN_TYPE] == "llm" for span in turn)
        assert {span.attributes.get("user.id") for span in turn} == {f"{slug}@example.com"}
    written = [path for path in home.rglob("*") if path.is_file()]
    assert not any(kind.api_key.encode() in path.read_bytes() for path in written)
    assert not any(REAL.encode() in path.read_bytes() for path in written)

"""Where the user's shell sends spans is taken over into config.toml, and said where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracebridge.destinations import ignored, keep
from tracebridge.settings import Settings, SettingsError, read_settings, without_destinations
from tracebridge.sinks import configured_sinks
from tracebridge.views.status import status, status_text

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://backend.example:4318"}
KEYS = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20k"}
PROXY = {"https_proxy": "http://127.0.0.1:3128", "SSL_CERT_FILE": "/etc/ours.pem"}
LANGFUSE = {
    "TRACEBRIDGE_SINKS": "langfuse",
    "LANGFUSE_PUBLIC_KEY": "pk",
    "LANGFUSE_SECRET_KEY": "ENV:VAULTED",
    "VAULTED": "sk",
}


def shell(home: Path, **env: str) -> Settings:
    return read_settings({"TRACEBRIDGE_HOME": str(home), **env})


def of_a_hook(home: Path, **env: str) -> Settings:
    return read_settings({"TRACEBRIDGE_HOME": str(home), **env}, file_first=True)


@pytest.mark.parametrize("env", [ENDPOINT, ENDPOINT | KEYS | PROXY, LANGFUSE])
def test_what_is_kept_counts_for_a_watcher_that_a_hook_starts(home, env):
    """The endpoint, its headers, a backend's keys, the way there; the file is the user's alone."""
    assert configured_sinks(of_a_hook(home, **env).env) == []
    assert keep(shell(home, **env), over=False) == sorted(env)
    hooked = of_a_hook(home).env
    assert {name: hooked[name] for name in env} == env
    (sink,) = configured_sinks(hooked)
    assert sink.name == configured_sinks(env)[0].name
    assert (home / "config.toml").stat().st_mode & 0o777 == 0o600
    assert ignored(shell(home, **env)) == []
    assert keep(shell(home, **env), over=True) == []


@pytest.mark.parametrize(
    "env",
    [
        {},
        # Without a sink nothing is sent, by whatever way.
        PROXY,
        KEYS,
        {"RESPAN_CUSTOMER_ID": "acme", "RESPAN_API_KEY": "k", **PROXY},
        {"TRACEBRIDGE_CONTENT": "full"},
        {"TRACEBRIDGE_SINKS": ""},
    ],
)
def test_what_names_no_sink_is_not_kept(home, env):
    """Nor is a file made."""
    assert keep(shell(home, **env), over=True) == []
    assert not home.exists()


def test_the_way_to_a_backend_on_this_machine_is_none(home):
    """No proxy and no certificate stands between."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", **PROXY}
    assert ignored(shell(home, **env)) == ["OTEL_EXPORTER_OTLP_ENDPOINT"]


def test_tags_are_no_destination(home):
    """They are each turn's own."""
    env = {"TRACEBRIDGE_SINKS": "respan", "RESPAN_API_KEY": "k", "RESPAN_CUSTOMER_ID": "acme"}
    assert keep(shell(home, **env), over=False) == ["RESPAN_API_KEY", "TRACEBRIDGE_SINKS"]


WRITTEN = """# mine
content = "metadata"  # a shared backend

[env]
OTEL_EXPORTER_OTLP_ENDPOINT = "http://127.0.0.1:1"
"""


def test_what_the_file_says_stays_unless_asked_for(home):
    """But for the way there, of which it said nothing; comments stay in any case."""
    home.mkdir()
    file = home / "config.toml"
    file.write_text(WRITTEN)
    file.chmod(0o644)
    ours = shell(home, **ENDPOINT, **PROXY)
    assert keep(ours, over=False) == sorted(PROXY)
    assert file.read_text().startswith(WRITTEN)
    assert file.stat().st_mode & 0o777 == 0o600
    assert keep(ours, over=True, dry_run=True) == list(ENDPOINT)
    assert file.read_text().startswith(WRITTEN)
    assert keep(ours, over=True) == list(ENDPOINT)
    assert file.read_text().startswith(WRITTEN.replace("127.0.0.1:1", "backend.example:4318"))
    named = shell(home, TRACEBRIDGE_SINKS="json_file:/x")
    assert keep(named, over=True) == ["TRACEBRIDGE_SINKS"]
    assert [sink.name for sink in configured_sinks(of_a_hook(home).env)] == ["json_file:/x"]


def test_a_file_that_cannot_be_edited_is_left(home):
    """A folder in its place, here."""
    ours = shell(home, **ENDPOINT)
    (home / "config.toml").mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"config\.toml"):
        keep(ours, over=True)


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tracebridge", *words],
        env={**without_destinations(os.environ), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_integrate_takes_the_shells_sinks_over(home):
    """It says so, with names and no values; a dry run says what it would do."""
    env = {**ENDPOINT, **KEYS}
    planned = run("integrate", "codex", "--dry-run", **env)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in planned.stdout
    assert "would be written" in planned.stdout
    assert not (home / "config.toml").exists()
    done = run("integrate", "codex", **env)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if str(home / "config.toml") in line]
    assert "OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS of this shell written" in line
    assert "Bearer" not in done.stdout
    assert configured_sinks(of_a_hook(home).env)[0].name == "otlp"
    assert "config.toml" not in run("integrate", "codex", **env).stdout


def test_removing_writes_no_sink(home):
    """Whatever the shell says."""
    assert run("integrate", "codex", "--remove", **ENDPOINT).returncode == 0
    assert not (home / "config.toml").exists()


def test_status_says_what_is_ignored_and_how_to_keep_it(home):
    """For people and for programs; the command it names makes it lasting."""
    state = status(shell(home, **ENDPOINT))
    assert state["ignored_by_hooks"] == list(ENDPOINT)
    assert "to write it there: tracebridge sink --keep" in status_text(state)
    kept = run("sink", "--keep", **ENDPOINT)
    assert (kept.returncode, kept.stderr) == (0, "")
    state = status(shell(home, **ENDPOINT))
    assert state["ignored_by_hooks"] == []
    assert "ignored" not in status_text(state)
    assert "the same as this shell" in run("sink", "--keep", **ENDPOINT).stdout


def test_a_sink_may_be_kept_by_name(home):
    """As it may be tried by name."""
    assert run("sink", "--keep", "json_file:/tmp/spans.jsonl").returncode == 0
    assert (home / "config.toml").read_text() == 'sinks = "json_file:/tmp/spans.jsonl"\n'

"""Doors that stay shut: for other users of the machine, for a project's files, for web pages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from claude_files import Claude

from tracebridge.model import GatewayCall
from tracebridge.settings import read_settings
from tracebridge.sinks import configured_sinks
from tracebridge.spool import Spool, why_not_ours
from tracebridge.store import Store, StoreError

HOOK = Path(__file__).resolve().parent.parent / "hooks" / "tracebridge_hook.py"
CALL = GatewayCall(
    call_id="c", gateway="g", method="POST", path="/v1/messages", start_ns=1, end_ns=2
)


def run_hook(home: Path, **options) -> None:
    env = {"TRACEBRIDGE_HOME": str(home), "TRACEBRIDGE_NO_WATCH": "1", **options.pop("env", {})}
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(HOOK), "claude-code"],
        input=b'{"session_id": "s", "hook_event_name": "Stop"}',
        env=env,
        capture_output=True,
        check=False,
        **options,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_spool_that_everybody_may_write_to_gets_no_event(home):
    """In a shared folder somebody may have made it before us, to read what we write."""
    Spool(home).create()
    (home / "spool").chmod(0o777)
    run_hook(home)
    assert Spool(home).depth() == 0
    (home / "spool").chmod(0o700)
    run_hook(home)
    assert Spool(home).depth() == 1


def test_a_home_that_everybody_may_write_to_is_refused(home):
    """By the store and by the gateway's recording, with the remedy."""
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(StoreError, match="everybody may write to it; run: chmod o-w"):
        Store(home)
    with pytest.raises(PermissionError, match="everybody may write"):
        Spool(home).write_call(CALL)
    assert list(home.iterdir()) == []
    home.chmod(0o755)
    Store(home).close()
    Spool(home).write_call(CALL)


def test_a_home_of_another_user_is_refused(home, monkeypatch):
    """Unless we are root, who works in other users' homes, or the home is root's."""
    home.mkdir()
    owner = home.stat().st_uid
    assert why_not_ours(home) is None
    if owner == 0:
        os.chown(home, 4711, -1)
        owner = 4711
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert "belongs to another user" in (why_not_ours(home) or "")
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert why_not_ours(home) is None


def test_what_lies_in_the_project_is_not_run(home, tmp_path):
    """Modules of that name in the working directory, and PYTHON* variables, are passed over."""
    for name in ("time", "select", "fcntl", "sitecustomize", "tracebridge_hook_main", "encodings"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    hostile = {"PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "time.py")}
    run_hook(home, cwd=tmp_path, env=hostile)
    assert Spool(home).depth() == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "written",
    [
        'sinks = "otlp_http:http://127.0.0.1:1"\n',
        '[env]\nOTEL_EXPORTER_OTLP_ENDPOINT = "http://127.0.0.1:1"\n',
    ],
)
@pytest.mark.parametrize(
    "hostile",
    [
        {"TRACEBRIDGE_SINKS": "otlp_http:http://evil.example"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://evil.example"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://evil.example"},
    ],
)
def test_a_project_cannot_lead_traces_away(home, written, hostile):
    """An agent's environment may hold a project's .env: it does not beat the user's own file."""
    home.mkdir()
    (home / "config.toml").write_text(written)
    env = {"TRACEBRIDGE_HOME": str(home), **hostile}
    (sink,) = configured_sinks(read_settings(env, file_first=True).env)
    assert sink.target.startswith("http://127.0.0.1:1")
    # A command that the user types obeys what the user exports.
    (sink,) = configured_sinks(read_settings(env).env)
    assert "evil" in sink.target or "TRACEBRIDGE_SINKS" not in hostile


def test_a_watcher_started_by_a_hook_obeys_the_users_file(home, tmp_path):
    """With the real hook and the real watcher: the spans go where the file says."""
    spans = tmp_path / "spans.jsonl"
    stolen = tmp_path / "stolen.jsonl"
    home.mkdir()
    (home / "config.toml").write_text(f'sinks = "json_file:{spans}"\nidle_minutes = 0.001\n')
    Claude(home, tmp_path).simple_turn()
    hostile = {
        "TRACEBRIDGE_NO_WATCH": "",
        "TRACEBRIDGE_SINKS": f"json_file:{stolen}",
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
    }
    run_hook(home, env=hostile)
    wait_for(spans)
    assert not stolen.exists()


def wait_for(path: Path) -> None:
    import time

    limit = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < limit, f"{path} did not come"
        time.sleep(0.02)


def test_files_and_folders_are_for_their_owner_alone(home, tmp_path):
    """Whatever the umask."""
    before = os.umask(0)
    try:
        Claude(home, tmp_path).simple_turn()
        with Store(home) as store, store.taking_in(), store.delivering("s", wait=True):
            pass
        Spool(home).write_call(CALL)
        run_hook(home)
    finally:
        os.umask(before)
    # What the test itself has put there is not ours.
    ours = [path for path in home.rglob("*") if "2e23f0a0" not in path.name]
    assert len(ours) > 6
    for path in ours:
        assert path.stat().st_mode & 0o077 == 0, path

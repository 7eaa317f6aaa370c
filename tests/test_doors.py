"""Doors that stay shut: for other users of the machine, for a project's files, for web pages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from claude_files import Claude

from tracebridge.model import GatewayCall
from tracebridge.settings import read_settings
from tracebridge.sinks import configured_sinks
from tracebridge.spool import Spool, why_not_ours
from tracebridge.store import Store, StoreError
from tracebridge.testing.receiver import Receiver
from tracebridge.watch_lock import is_watched

HOOK = Path(__file__).resolve().parent.parent / "hooks" / "tracebridge_hook.py"
CALL = GatewayCall(
    call_id="c", gateway="g", method="POST", path="/v1/messages", start_ns=1, end_ns=2
)


def run_hook(home: Path, *words: str, **options) -> None:
    env = {"TRACEBRIDGE_HOME": str(home), "TRACEBRIDGE_NO_WATCH": "1", **options.pop("env", {})}
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(HOOK), "claude-code", *words],
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


HOSTILE = [
    {"TRACEBRIDGE_SINKS": "otlp_http:http://evil.example"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://evil.example"},
    {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://evil.example"},
]


@pytest.mark.parametrize(
    "written",
    [
        'sinks = "otlp_http:http://127.0.0.1:1"\n',
        '[env]\nOTEL_EXPORTER_OTLP_ENDPOINT = "http://127.0.0.1:1"\n',
    ],
)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_project_cannot_lead_traces_away(home, written, hostile):
    """An agent's environment may hold a project's .env: the user's own file alone says where to."""
    home.mkdir()
    (home / "config.toml").write_text(written)
    env = {"TRACEBRIDGE_HOME": str(home), **hostile}
    (sink,) = configured_sinks(read_settings(env, file_first=True).env)
    assert sink.target.startswith("http://127.0.0.1:1")
    # A command that the user types obeys what the user exports.
    (sink,) = configured_sinks(read_settings(env).env)
    assert "evil" in sink.target or "TRACEBRIDGE_SINKS" not in hostile


@pytest.mark.parametrize("hostile", HOSTILE)
def test_where_the_user_names_nobody_nobody_is_sent_anything(home, hostile):
    """No file, or one that speaks of other things."""
    env = {"TRACEBRIDGE_HOME": str(home), **hostile}
    for written in (None, "retention_days = 5\n[env]\nOTEL_SERVICE_NAME = 'mine'\n"):
        if written is not None:
            home.mkdir()
            (home / "config.toml").write_text(written)
        assert configured_sinks(read_settings(env, file_first=True).env) == []
        assert len(configured_sinks(read_settings(env).env)) == 1


def hook_with_watcher(home: Path, tmp_path: Path, *words: str, **env: str) -> None:
    Claude(home, tmp_path).simple_turn()
    given = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TRACEBRIDGE_NO_WATCH": "", **env}
    run_hook(home, *words, env=given)


def test_a_watcher_started_by_a_hook_obeys_the_users_file(home, tmp_path):
    """With the real hook and the real watcher: the spans go where the file says, past no proxy."""
    with Receiver() as receiver, Receiver() as thief:
        home.mkdir()
        sinks = f'sinks = "otlp_http:{receiver.endpoint}"\nidle_minutes = 0.001\n'
        (home / "config.toml").write_text(sinks)
        hostile = {
            "TRACEBRIDGE_SINKS": f"otlp_http:{thief.endpoint}",
            "HTTP_PROXY": thief.endpoint,
            "all_proxy": thief.endpoint,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-evil=1",
        }
        hook_with_watcher(home, tmp_path, **hostile)
        receiver.wait_for(lambda each: len(each.spans) >= 2)
        wait_until(lambda: not is_watched(home))
        assert thief.requests == []
        assert all("x-evil" not in request.headers for request in receiver.requests)


def test_the_way_that_the_users_file_names_is_taken(home, tmp_path):
    """A proxy below [env] is one for what sends, too."""
    with Receiver() as proxy:
        home.mkdir()
        (home / "config.toml").write_text(
            'sinks = "otlp_http:http://backend.example"\nidle_minutes = 0.001\n'
            f'[env]\nhttp_proxy = "{proxy.endpoint}"\n'
        )
        hook_with_watcher(home, tmp_path, HTTP_PROXY="http://127.0.0.1:9")
        proxy.wait_for(lambda each: len(each.spans) >= 2)
        wait_until(lambda: not is_watched(home))


def test_a_home_that_the_environment_chose_sends_nothing(home, tmp_path):
    """It may be a project's, with a config.toml in it; what is told stays there, and the log says why."""
    elsewhere = tmp_path / "installed"
    elsewhere.mkdir(mode=0o700)
    with Receiver() as thief:
        home.mkdir()
        sinks = f'sinks = "otlp_http:{thief.endpoint}"\nidle_minutes = 0.001\n'
        (home / "config.toml").write_text(sinks)
        hook_with_watcher(home, tmp_path, str(elsewhere))
        wait_until(lambda: (home / "store.sqlite3").exists() and not is_watched(home))
        assert thief.requests == []
    with Store(home) as store:
        assert [row.told for row in store.turns()] == [True]
    assert "nothing is sent; run `tracebridge integrate`" in (home / "watch.log").read_text()
    assert list(elsewhere.iterdir()) == []


def test_the_home_that_the_hooks_were_installed_for_may_be_named_again(home, tmp_path):
    """Also by another name of the same folder."""
    with Receiver() as receiver:
        home.mkdir()
        sinks = f'sinks = "otlp_http:{receiver.endpoint}"\nidle_minutes = 0.001\n'
        (home / "config.toml").write_text(sinks)
        link = tmp_path / "link"
        link.symlink_to(home)
        hook_with_watcher(home, tmp_path, str(link))
        receiver.wait_for(lambda each: len(each.spans) >= 2)
        wait_until(lambda: not is_watched(home))


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
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

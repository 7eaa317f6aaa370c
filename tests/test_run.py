"""One command is traced, and nothing else can tell."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from beside import started
from terminal import Terminal, wait_until

from tracebridge.settings import read_settings
from tracebridge.store import Store
from tracebridge.testing.scripted_model import Hold, Reply, ScriptedModel, Text, ToolUse
from tracebridge.views.status import status

PROMPT = "Say hello."


@pytest.fixture
def claude(tmp_path):
    """Make a program of that name that does one turn as Claude Code does it."""
    path = tmp_path / "bin" / "claude"
    path.parent.mkdir()
    path.write_text(
        "#!/bin/sh\n"
        '[ -z "$CLAUDE_EXIT" ] || exit "$CLAUDE_EXIT"\n'
        f'exec {sys.executable} -m tracebridge.testing.stand_in_agent "$@"\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def watched(home, monkeypatch):
    """Run a watcher of our own, so that none outlives the test."""
    monkeypatch.setenv("TRACEBRIDGE_NO_WATCH", "1")
    with started([sys.executable, "-m", "tracebridge", "watch"]) as process:
        # Before that it does not know yet how to end well.
        wait_until((home / "watch.lock").exists)
        yield home
        process.terminate()
        assert process.wait(180) == 0


@pytest.fixture
def model():
    script = {PROMPT: [Reply((ToolUse("Bash", {"command": "echo hi"}),)), Reply((Text("Hello."),))]}
    with ScriptedModel(script) as model:
        yield model


def command(claude, model, *arguments):
    upstream = ["--upstream", f"anthropic={model.url}"]
    return [sys.executable, "-m", "tracebridge", "run", *upstream, "--", str(claude), *arguments]


def run(claude, model, *arguments):
    return subprocess.run(
        command(claude, model, *arguments),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def processes_with(text):
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_a_command_is_traced_and_speaks_for_itself(watched, claude, model):
    """Its answer is all there is on stdout; every model call is linked exactly."""
    result = run(claude, model, "-p", PROMPT)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "Hello.\n"
    with Store(watched) as store:
        (row,) = store.turns()
        names = sorted(span.name for span in store.spans(row.trace_id))
    assert f"turn completed: trace {row.trace_id}" in result.stderr
    assert names == [
        "chat claude-scripted-1",
        "chat claude-scripted-1",
        "execute_tool Bash",
        "invoke_agent claude-code",
    ]
    state = status(read_settings(dict(os.environ)))
    assert state["links"]["by_evidence"]["turn_id"] == len(model.calls()) == 2
    assert list(Path.home().iterdir()) == []


def test_nothing_is_left_running(watched, claude, model, monkeypatch):
    """But the watcher, which is the test's own."""
    monkeypatch.setenv("MARK_OF_THIS_TEST", str(watched))
    run(claude, model, "-p", PROMPT)
    assert processes_with(f"MARK_OF_THIS_TEST={watched}") == []


@pytest.mark.usefixtures("watched")
def test_the_exit_code_is_the_commands_own(claude, model, monkeypatch):
    """Whatever it is."""
    monkeypatch.setenv("CLAUDE_EXIT", "7")
    script = (
        "import sys; from tracebridge import run; run.QUIET_S = 0;"
        "from tracebridge.cli import main; main(sys.argv[1:])"
    )
    words = command(claude, model, "-p", PROMPT)
    result = subprocess.run(
        [sys.executable, "-c", script, *words[3:]], capture_output=True, text=True, check=False
    )
    assert result.returncode == 7
    assert "no turn was seen" in result.stderr


@pytest.mark.usefixtures("watched")
def test_a_program_that_is_missing_is_named(model, tmp_path):
    """With the question that helps."""
    result = run(tmp_path / "nowhere" / "claude", model, "-p", PROMPT)
    assert result.returncode == 1
    assert "is it installed?" in result.stderr


@pytest.mark.usefixtures("watched")
def test_a_signal_reaches_the_command(claude, model):
    """Its end is told as a shell tells it, and nothing stays behind."""
    model.script({PROMPT: [Reply((Text("late"),), hold=Hold("gate"))]})
    words = command(claude, model, "-p", PROMPT)
    with started(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        model.wait_until_held("gate")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=180)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """Start a shell that has a terminal, as its user has."""
    monkeypatch.setenv("PS1", "ready> ")
    monkeypatch.setenv("TERM", "xterm")
    words = ["bash", "--norc", "--noprofile", "-i"]
    with Terminal(words, cwd=tmp_path, env=os.environ) as terminal:
        terminal.wait_for_text("ready>")
        yield terminal


@pytest.mark.usefixtures("watched")
def test_a_command_can_be_suspended_and_goes_on(claude, model, shell):
    """Ctrl-Z gives the shell its terminal back; `fg` and the turn ends as if nothing had been."""
    model.script({PROMPT: [Reply((Text("Hello at last."),), hold=Hold("gate"))]})
    shell.send(f"{shlex.join(command(claude, model, '-p', PROMPT))}\r")
    model.wait_until_held("gate")
    shell.send("\x1a")
    shell.wait_for_text("Stopped")
    shell.send("echo the shell says $((6*7))\r")
    shell.wait_for_text("the shell says 42")
    model.gate("gate").set()
    shell.send("fg\r")
    shell.wait_for_text("Hello at last.")
    shell.wait_for_text("turn completed")


@pytest.mark.usefixtures("watched")
def test_ctrl_c_is_the_commands(claude, model, shell):
    """It ends as it ends by itself, and its turn is told."""
    model.script({PROMPT: [Reply((Text("late"),), hold=Hold("gate"))]})
    shell.send(f"{shlex.join(command(claude, model, '-p', PROMPT))}; echo code=$?\r")
    model.wait_until_held("gate")
    shell.press("ctrl-c")
    shell.wait_for_text("code=130")


@pytest.mark.usefixtures("watched")
def test_an_agent_that_suspends_itself_does_not_keep_the_terminal(claude, model, shell):
    """Full-screen programs do, without a word to their group."""
    claude.write_text("#!/bin/sh\nkill -STOP $$\necho went on\n")
    shell.send(f"{shlex.join(command(claude, model, '--version'))}; echo code=$?\r")
    shell.wait_for_text("Stopped")
    shell.send("fg\r")
    shell.wait_for_text("went on")


@pytest.mark.usefixtures("watched")
def test_our_own_standing_gateway_is_passed_by(claude, home, monkeypatch):
    """Through both each call would be recorded twice."""
    with ScriptedModel({PROMPT: [Reply((Text("Hello."),))]}) as model:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", f"{model.url}")
        words = [sys.executable, "-m", "tracebridge"]
        options = ["integrate", "claude", "--gateway", "local"]
        subprocess.run([*words, *options], check=True, stdout=subprocess.DEVNULL)
        monkeypatch.delenv("ANTHROPIC_BASE_URL")
        result = subprocess.run(
            [*words, "run", "--", str(claude), "-p", PROMPT],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert len(model.calls()) == 1
    with Store(home) as store:
        assert len(store.turns()) == 1


@pytest.mark.usefixtures("watched")
def test_the_users_own_settings_count_too(claude, model, tmp_path):
    """A file or JSON given with --settings; theirs and our hooks run."""
    seen = tmp_path / "seen"
    theirs = {
        "env": {"FOO": "bar"},
        "hooks": {"Stop": [{"hooks": [{"type": "command", "command": f"echo $FOO > {seen}"}]}]},
    }
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(theirs))
    for given in (str(path), json.dumps(theirs)):
        seen.unlink(missing_ok=True)
        result = run(claude, model, "--settings", given, "-p", PROMPT)
        assert result.returncode == 0, result.stderr
        assert seen.read_text() == "bar\n"
        assert "turn completed" in result.stderr
    assert json.loads(path.read_text()) == theirs


@pytest.mark.parametrize("given", ["/nowhere/settings.json", "{broken", "[]"])
@pytest.mark.usefixtures("watched")
def test_settings_that_cannot_be_read_are_named(claude, model, given):
    """Before the command is started."""
    result = run(claude, model, "--settings", given, "-p", PROMPT)
    assert result.returncode == 1
    assert given.strip("[]") in result.stderr
    assert "Traceback" not in result.stderr
    assert model.attempts == []


def test_a_gateway_goes_with_whoever_started_it():
    """If `run` is killed, the gateway that it started ends by itself."""
    script = (
        "import os, sys\n"
        "from tracebridge.run import started_gateway\n"
        "with started_gateway(['anthropic'], os.environ) as url:\n"
        "    print(url, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with starter:
        url = starter.stdout.readline().strip()
        port = int(url.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port)).close()
        starter.kill()
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    pytest.fail("the gateway still listens")

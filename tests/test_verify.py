"""`verify` names the first broken joint; the whole way is walked in real_agents/test_verify.py."""

from __future__ import annotations

import json
import os
import select
import time

import pytest
from setups import ANTHROPIC_KEY, Gateway, World

SECRET = "sk-proj-secret0123456789abcdefghijk"


@pytest.fixture(scope="module")
def gateway():
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.fixture
def world(tmp_path, gateway):
    return World(tmp_path, gateway.url)


def become(world: World, script: str) -> None:
    """Let `claude` be this script, but for its version."""
    path = world.bin / "claude"
    version = 'if [ "$1" = --version ]; then echo 2.1.329; exit; fi'
    path.write_text(f"#!/bin/sh\n{version}\n{script}\n")
    path.chmod(0o755)


def verify(world: World, *words: str):
    result = world.tracebridge("verify", "claude", "--json", *words)
    assert result.stderr == ""
    return result.returncode, json.loads(result.stdout)


def test_a_program_that_is_not_there(world):
    """The rule is about that, and nothing after it is looked at."""
    (world.bin / "claude").unlink()
    code, verdict = verify(world)
    assert (code, verdict["broken"]) == (1, "program")
    assert verdict["rule"] == "agent-program-missing"
    assert len(verdict["joints"]) == 1


def test_a_turn_that_fails(world):
    """Its exit code and last words, without the key in them."""
    become(world, f"echo 'starting'; echo 'bad key {SECRET}' >&2; exit 7")
    code, verdict = verify(world)
    assert (code, verdict["broken"], verdict["verified"]) == (1, "turn", False)
    said = verdict["joints"][-1]["said"]
    assert "exit code 7" in said
    assert "bad key" in said
    assert SECRET not in said


def test_a_turn_that_does_not_end(world):
    """It is ended, and all that it started with it."""
    held = world.state / "held"
    os.mkfifo(held)
    reading = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    become(world, f"sleep 300 > '{held}' & wait")
    code, verdict = verify(world, "--timeout", "1")
    assert (code, verdict["broken"]) == (1, "turn")
    assert "did not end" in verdict["joints"][-1]["said"]
    # Also where the program was ended before it got that far, there was somebody who could write.
    os.close(os.open(held, os.O_WRONLY))
    # As long as anybody could write into it, reading has to wait.
    deadline = time.monotonic() + 180
    while select.select([reading], [], [], 0.1)[0] == []:
        assert time.monotonic() < deadline
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_hooks_that_do_not_fire(world):
    """Where nothing is wrong with what was read, the rule still says what it is about."""
    become(world, "true")
    result = world.tracebridge("verify", "claude")
    assert result.returncode == 1
    assert "BROKEN  hooks" in result.stdout
    assert "hooks-missing" in result.stdout
    world.edit(".claude/settings.json", {"disableAllHooks": True})
    _, verdict = verify(world)
    assert (verdict["broken"], verdict["rule"]) == ("hooks", "claude-hooks-disabled")


def test_no_watcher_takes_in_what_hooks_tell(world):
    """Hooks fire into the spool, and there it stays."""
    world.env["TRACEBRIDGE_NO_WATCH"] = "1"
    payload = {"session_id": "s", "prompt_id": "p", "hook_event_name": "Stop"}
    become(world, f"echo '{json.dumps(payload)}' | {world.commands('claude-code')['hook']}")
    code, verdict = verify(world)
    assert (code, verdict["broken"]) == (1, "watcher")
    assert verdict["joints"][2]["said"] == "1 hook events"
    assert verdict["rule"] == "watcher-dead"


def test_waiting_in_vain(world):
    """Nothing is started; after the time that was given it says so."""
    become(world, f"touch '{world.state}/started'")
    code, verdict = verify(world, "--wait", "--timeout", "0.5")
    assert (code, verdict["broken"]) == (1, "hooks")
    assert not (world.state / "started").exists()


def test_settings_that_cannot_be_used(world):
    """Are named, with the remedy."""
    (world.state / "config.toml").write_text('content = "all"')
    result = world.tracebridge("verify", "claude")
    assert result.returncode == 1
    assert "use metadata, redacted or full" in result.stderr


def test_the_program_gets_what_stands_behind_the_dashes(world):
    """And the environment as it is."""
    become(world, f'printf "%s\\n" "$ANTHROPIC_API_KEY" "$@" > "{world.state}/words"')
    verify(world, "--", "--model", "claude-haiku-4-5")
    words = (world.state / "words").read_text().splitlines()
    assert words[0] == ANTHROPIC_KEY
    assert words[1] == "-p"
    assert words[-2:] == ["--model", "claude-haiku-4-5"]

"""Hooks go into an agent's settings and out again, and nothing else moves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracebridge.agents import agent
from tracebridge.agents.claude_code.wiring import EVENTS, HINT_HEADERS, HOT_EVENTS

CLAUDE = agent("claude-code")

THEIRS = {
    "$schema": "https://json.schemastore.org/claude-code-settings.json",
    "model": "opus",
    "permissions": {"allow": ["Bash(git:*)"], "deny": []},
    "unknown": {"deep": [1, 2.5, None, True, "é"]},
    "env": {"FOO": "1"},
    "hooks": {
        "Stop": [{"hooks": [{"type": "command", "command": "say done"}]}],
        "PreToolUse": [
            {
                "matcher": "Bash",
                "hooks": [
                    {"type": "command", "command": "/opt/tracebridge/notify"},
                    {"type": "command", "command": "python3 hook.py"},
                    {"type": "command", "command": "python3 lint.py /x/tracebridge_hook.py"},
                    {"type": "command", "command": "unbalanced 'quote"},
                    {"type": "prompt", "prompt": "tracebridge?"},
                ],
            }
        ],
        "Elicitation": [{"hooks": [{"type": "command", "command": "x"}]}],
    },
}


@pytest.fixture
def settings_file():
    path = Path.home() / ".claude" / "settings.json"
    path.parent.mkdir()
    return path


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "tracebridge", "integrate", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=180,
        check=False,
    )


def integrate(*arguments, cwd=None):
    result = run("claude-code", *arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def read(path):
    return json.loads(path.read_bytes().decode("utf-8-sig"))


def ours_in(settings):
    return [
        (event, hook["command"])
        for event, groups in settings.get("hooks", {}).items()
        for group in groups
        for hook in group["hooks"]
        if str(Path("hooks") / "tracebridge_hook.") in hook.get("command", "")
    ]


def test_hooks_are_added_beside_what_is_there(settings_file):
    """For each event once; unknown keys and others' hooks stay as they are."""
    settings_file.write_text(json.dumps(THEIRS))
    integrate()
    wired = read(settings_file)
    assert sorted(event for event, _ in ours_in(wired)) == sorted(EVENTS)
    assert wired["env"] == {"FOO": "1", HINT_HEADERS: "1"}
    assert wired["hooks"]["Stop"][0] == THEIRS["hooks"]["Stop"][0]
    assert wired["hooks"]["PreToolUse"][0] == THEIRS["hooks"]["PreToolUse"][0]
    assert {k: v for k, v in wired.items() if k not in {"hooks", "env"}} == {
        k: v for k, v in THEIRS.items() if k not in {"hooks", "env"}
    }
    assert CLAUDE.unwire(wired) == THEIRS


def test_a_light_integration_has_no_hooks_at_tool_calls(settings_file):
    """It is remembered, --full brings them back, and --remove leaves the very bytes of before."""
    settings_file.write_text(before := json.dumps(THEIRS, indent=3))
    integrate()
    assert "nothing to change" not in integrate("--light")
    assert "nothing to change" in integrate()
    light = read(settings_file)
    assert sorted({event for event, _ in ours_in(light)}) == sorted({*EVENTS} - {*HOT_EVENTS})
    assert light["hooks"]["PreToolUse"] == THEIRS["hooks"]["PreToolUse"]
    integrate("--full")
    assert sorted({event for event, _ in ours_in(read(settings_file))}) == sorted(EVENTS)
    integrate("--light")
    integrate("--remove")
    assert settings_file.read_text() == before


def test_the_doctor_misses_nothing_in_a_light_integration(settings_file):
    """It finds with --light what it finds without."""
    command = [sys.executable, "-m", "tracebridge", "doctor", "claude-code", "--json"]
    found = []
    for choice in ("--full", "--light"):
        integrate(choice)
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode in {0, 3}, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert settings_file.exists()


def test_a_second_time_changes_nothing(settings_file):
    """And says so."""
    settings_file.write_text(json.dumps(THEIRS))
    integrate()
    once = settings_file.read_bytes()
    assert "nothing to change" in integrate()
    assert settings_file.read_bytes() == once
    integrate("--remove")
    assert "nothing to change" in integrate("--remove")


@pytest.mark.parametrize(
    "before",
    [
        None,
        b"",
        b"\n",
        b"{}",
        b'{"hooks": {}}',
        b'{"hooks": {"Stop": []}, "env": {}}',
        json.dumps(THEIRS).encode(),
        json.dumps(THEIRS, indent=7, ensure_ascii=False).encode() + b"\n\n",
        json.dumps(THEIRS, indent="\t").encode().replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + json.dumps(THEIRS, indent=4).encode(),
        json.dumps({"env": {HINT_HEADERS: "0"}}).encode(),
        json.dumps({"env": {HINT_HEADERS: "1"}}).encode(),
    ],
)
def test_remove_puts_back_the_very_bytes(settings_file, before):
    """If nobody else changed the file: line ends, indentation, BOM, or no file at all."""
    if before is not None:
        settings_file.write_bytes(before)
    integrate()
    assert len(ours_in(read(settings_file))) == len(EVENTS)
    integrate("--remove")
    after = settings_file.read_bytes() if settings_file.exists() else None
    assert after == before


@pytest.mark.parametrize("value", ["0", "1", None])
def test_remove_takes_only_what_is_ours_if_the_file_was_edited(settings_file, value):
    """What the user wrote in between stays, and so does what stood where ours stood."""
    theirs = {**THEIRS, "env": {"FOO": "1", **({HINT_HEADERS: value} if value else {})}}
    settings_file.write_text(json.dumps(theirs))
    integrate()
    edited = read(settings_file)
    edited["model"] = "sonnet"
    edited["hooks"]["Stop"].append({"hooks": [{"type": "command", "command": "later"}]})
    settings_file.write_text(json.dumps(edited))
    integrate("--remove")
    expected = json.loads(json.dumps({**theirs, "model": "sonnet"}))
    expected["hooks"]["Stop"].append({"hooks": [{"type": "command", "command": "later"}]})
    assert read(settings_file) == expected


def test_hooks_that_the_user_removed_do_not_come_back(settings_file):
    """Neither do others' hooks that were there before us and are gone now."""
    settings_file.write_text(json.dumps(THEIRS))
    integrate()
    edited = read(settings_file)
    del edited["hooks"]["Stop"][0]
    del edited["env"]["FOO"]
    settings_file.write_text(json.dumps(edited))
    integrate("--remove")
    after = read(settings_file)
    assert "Stop" not in after["hooks"]
    assert "env" not in after


def test_an_edit_and_an_update_in_between_do_not_keep_us_in(settings_file):
    """What is put back never holds hooks of an earlier version of ours."""
    settings_file.write_text(json.dumps({"model": "opus", "env": {HINT_HEADERS: "0"}}))
    integrate()
    old = settings_file.read_text().replace(sys.executable, "/old/python")
    settings_file.write_text(old.replace("opus", "sonnet"))
    integrate()
    assert len(ours_in(read(settings_file))) == len(EVENTS)
    assert "/old/python" not in settings_file.read_text()
    integrate("--remove")
    assert read(settings_file) == {"model": "sonnet", "env": {HINT_HEADERS: "0"}}


def test_remove_works_without_any_record(settings_file, home):
    """Somebody deleted our home."""
    settings_file.write_text(json.dumps(THEIRS))
    integrate()
    for path in (home / "backups").iterdir():
        path.unlink()
    (home / "integrations.json").write_bytes(b"garbage")
    integrate("--remove")
    assert read(settings_file) == THEIRS


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b'{\n  // my settings\n  "a": 1\n}', "line 2: not JSON, which knows no comments"),
        (b'{"a": 1,}', "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"hooks": []}', '"hooks"'),
        (b'{"hooks": {"Stop": "x"}}', '"hooks.Stop" is not a list'),
        (b'{"env": 5}', '"env"'),
        (b"{}\n\xff\xfe", "line 2: not UTF-8"),
    ],
)
def test_a_file_that_is_not_understood_is_left_alone(settings_file, data, complaint):
    """The message names it and what is wrong."""
    settings_file.write_bytes(data)
    result = run("claude-code")
    assert result.returncode == 1
    assert str(settings_file) in result.stderr
    assert complaint in result.stderr
    assert settings_file.read_bytes() == data


def test_a_dry_run_shows_the_change_and_makes_none(settings_file, home):
    """Not even our own home."""
    settings_file.write_text(json.dumps(THEIRS, indent=2))
    before = settings_file.read_bytes()
    shown = integrate("--dry-run")
    assert f"+++ {settings_file}" in shown
    assert "tracebridge_hook" in shown
    assert settings_file.read_bytes() == before
    assert list(settings_file.parent.iterdir()) == [settings_file]
    assert not home.exists()


def test_little_changes_but_what_must(settings_file):
    """The file keeps its indentation and line ends."""
    text = json.dumps(THEIRS, indent=4, ensure_ascii=False).replace("\n", "\r\n")
    settings_file.write_bytes(text.encode())
    integrate()
    data = settings_file.read_bytes().decode()
    assert '\r\n    "model": "opus",\r\n' in data
    assert '"é"' in data
    assert "\n" not in data.replace("\r\n", "")


def test_mode_and_link_stay(settings_file, tmp_path):
    """Many people keep such files elsewhere and link them."""
    real = tmp_path / "dotfiles.json"
    real.write_text("{}")
    real.chmod(0o640)
    settings_file.symlink_to(real)
    integrate()
    assert settings_file.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert len(ours_in(read(real))) == len(EVENTS)
    integrate("--remove")
    assert settings_file.is_symlink()
    assert real.read_text() == "{}"


def test_a_file_that_cannot_be_written_is_named_and_untouched():
    """Its folder is a file."""
    (Path.home() / ".claude").write_bytes(b"")
    result = run("claude-code")
    assert result.returncode == 1
    assert "settings.json" in result.stderr
    assert "Traceback" not in result.stderr
    assert (Path.home() / ".claude").read_bytes() == b""


def test_without_room_for_the_backup_nothing_is_changed(settings_file, home):
    """What cannot be undone is not done."""
    settings_file.write_text("{}")
    home.write_bytes(b"")
    result = run("claude-code")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert settings_file.read_text() == "{}"


def test_several_at_once_leave_us_there_once(settings_file):
    """And the file whole."""
    settings_file.write_text(json.dumps(THEIRS))
    command = [sys.executable, "-m", "tracebridge", "integrate", "claude-code"]
    quiet = subprocess.DEVNULL
    racers = [subprocess.Popen(command, stdout=quiet, stderr=quiet) for _ in range(4)]
    assert {racer.wait(180) for racer in racers} <= {0, 1}
    assert len(ours_in(read(settings_file))) == len(EVENTS)
    integrate("--remove")
    assert settings_file.read_text() == json.dumps(THEIRS)


def test_the_local_scope_is_the_project_here(tmp_path):
    """Its file is the one that is never committed; the user's own is not made."""
    project = tmp_path / "project"
    project.mkdir()
    integrate("--local", cwd=project)
    path = project / ".claude" / "settings.local.json"
    assert len(ours_in(read(path))) == len(EVENTS)
    assert not (Path.home() / ".claude").exists()
    integrate("--local", "--remove", cwd=project)
    assert not path.exists()


def test_a_wired_hook_is_a_command_that_works(settings_file, home):
    """With every path absolute, it writes to our spool and says nothing."""
    integrate()
    command = read(settings_file)["hooks"]["Stop"][0]["hooks"][0]["command"]
    env = {"PATH": os.defpath, "HOME": str(Path.home()), "TRACEBRIDGE_NO_WATCH": "1"}
    result = subprocess.run(
        ["/bin/sh", "-c", command], input=b"{}", env=env, cwd="/", capture_output=True, check=True
    )
    assert (result.stdout, result.stderr) == (b"", b"")
    assert len(list((home / "spool" / "new").iterdir())) == 1

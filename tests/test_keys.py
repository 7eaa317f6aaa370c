"""Keys are found by reference, and never told by accident."""

from __future__ import annotations

import subprocess

import pytest

from tracebridge.keys import KeyReferenceError, check, parse_reference, resolve, shell_command

KEY = "sk-fake-0123456789"


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "a key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    return path


def test_a_variable_a_file_and_a_command(key_file):
    """Each leads to the key; white space around it is none of it."""
    assert resolve("ENV:K", {"K": f" {KEY}\n"}) == KEY
    assert resolve("K", {"K": KEY}) == KEY
    assert resolve(f"FILE:{key_file}", {}) == KEY
    assert resolve(f"CMD:cat '{key_file}'", {"PATH": "/bin:/usr/bin"}) == KEY
    assert resolve('CMD:printf %s "$K"', {"K": KEY}) == KEY


def test_a_home_is_written_as_people_write_it(monkeypatch, key_file):
    """With a tilde."""
    monkeypatch.setenv("HOME", str(key_file.parent))
    assert resolve(f"FILE:~/{key_file.name}", {}) == KEY


@pytest.mark.parametrize("reference", ["ENV:K", "FILE:@", "CMD:cat '@'"])
def test_programs_that_run_a_command_get_one_that_prints_the_key(reference, key_file):
    """A shell runs it."""
    command = shell_command(reference.replace("@", str(key_file)))
    env = {"PATH": "/bin:/usr/bin", "K": KEY}
    done = subprocess.run(command, shell=True, env=env, capture_output=True, check=True)
    assert done.stdout.decode().strip() == KEY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o622])
def test_a_file_that_others_can_read_or_write_gives_no_key(key_file, mode):
    """With the command that mends it."""
    key_file.chmod(mode)
    with pytest.raises(KeyReferenceError, match=r"chmod 600 '.*a key'"):
        check(f"FILE:{key_file}", {})


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("ENV:MISSING", "not set"),
        ("ENV:EMPTY", "not set"),
        ("ENV:SPACED", "not a key"),
        ("FILE:/nowhere/key", "No such file"),
        ("FILE:/", "Is a directory|others can read"),
        ("CMD:exit 3", "exit code 3"),
        ("CMD:echo no such secret >&2; exit 1", "no such secret"),
        ("CMD:true", "must print"),
        ("CMD:printf 'a\\nb'", "not a key"),
    ],
)
def test_what_leads_to_no_key_says_why(reference, complaint):
    """Reference and reason."""
    with pytest.raises(KeyReferenceError, match=complaint):
        resolve(reference, {"EMPTY": " ", "SPACED": "a b", "PATH": "/bin:/usr/bin"})


@pytest.mark.parametrize("data", [b"", b"\n", b"x" * 100_000, b"a\nb\n", b"\xff\xfe"])
def test_a_file_without_a_key_is_named(key_file, data):
    """Empty, endless, several lines, or binary."""
    key_file.write_bytes(data)
    with pytest.raises(KeyReferenceError, match="a key"):
        resolve(f"FILE:{key_file}", {})


@pytest.mark.parametrize("text", [KEY, f"ENV:{KEY}", "FILE:", "CMD: ", "VAULT:x", "", "a b"])
def test_what_is_no_reference_is_not_repeated(text):
    """It may be the key itself."""
    with pytest.raises(KeyReferenceError) as refused:
        parse_reference(text)
    assert KEY not in str(refused.value)

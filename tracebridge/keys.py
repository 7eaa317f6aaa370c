"""Keys by reference: where one is found is written down, the key itself is not.

`ENV:NAME` is a variable, `FILE:path` a file that nobody else can read, `CMD:words` what a shell
command prints, that of a vault's client for example. A reference is resolved when the key is used.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

KINDS = ("ENV", "FILE", "CMD")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST = 64 * 1024
# A vault's client may ask its server; nobody wants to wait longer.
_COMMAND_S = 30.0


class KeyReferenceError(ValueError):
    """A reference that leads to no key; the text says why and what to do, and never the key."""


def parse_reference(text: str) -> tuple[str, str]:
    """Return kind and rest of a reference; a bare name is a variable's."""
    kind, colon, rest = text.partition(":")
    if not colon and _NAME.fullmatch(text):
        return "ENV", text
    if kind == "ENV" and not _NAME.fullmatch(rest):
        # What stands there may be the key itself.
        raise KeyReferenceError("ENV: is followed by what is no variable's name; write ENV:NAME")
    if kind not in KINDS or not rest.strip():
        raise KeyReferenceError(
            "a key is given by reference: ENV:NAME, FILE:/path or CMD:command, never the key itself"
        )
    return kind, rest.strip()


def resolve(reference: str, env: Mapping[str, str]) -> str:
    """Return the key that *reference* leads to. Raise KeyReferenceError where there is none."""
    kind, rest = parse_reference(reference)
    if kind == "ENV":
        key = env.get(rest, "")
        if not key.strip():
            raise KeyReferenceError(f"ENV:{rest}: the variable is not set; export {rest}=...")
    elif kind == "FILE":
        key = _from_file(Path(rest).expanduser())
    else:
        key = _from_command(rest, env)
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise KeyReferenceError(f"{kind}:{rest}: what is found there is not a key of one line")
    return key


def shell_command(reference: str) -> str:
    """Return the shell command that prints the key, for programs that run one themselves."""
    kind, rest = parse_reference(reference)
    if kind == "ENV":
        return f"printenv {rest}"
    if kind == "FILE":
        return f"cat {shlex.quote(str(Path(rest).expanduser().absolute()))}"
    return rest


def check(reference: str, env: Mapping[str, str]) -> None:
    """Raise KeyReferenceError where a file is not there or can be read by others.

    A variable may be set later, and a command is not run for nothing.
    """
    if parse_reference(reference)[0] == "FILE":
        resolve(reference, env)


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & 0o077:
                raise KeyReferenceError(
                    f"FILE:{path}: others can read it; run `chmod 600 {shlex.quote(str(path))}`"
                )
            data = file.read(_LONGEST + 1)
    except OSError as error:
        raise KeyReferenceError(
            f"FILE:{path}: {error.strerror}; write the key there, readable by you alone"
        ) from error
    if not data.strip() or len(data) > _LONGEST:
        raise KeyReferenceError(f"FILE:{path}: there is no key in it; write one line with the key")
    return data.decode("utf-8", "replace")


def _from_command(command: str, env: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise KeyReferenceError(f"CMD:{command}: no answer in {_COMMAND_S:.0f} s") from None
    if done.returncode or not done.stdout.strip():
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise KeyReferenceError(
            f"CMD:{command}: exit code {done.returncode}{': ' + said[-1] if said else ''}; "
            "it must print the key"
        )
    return done.stdout[: _LONGEST + 1].decode("utf-8", "replace")

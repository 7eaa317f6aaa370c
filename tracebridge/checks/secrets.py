"""Whether a key stands where others will read it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tracebridge.checks import Finding, Machine, machine_rule
from tracebridge.config_files import ConfigFile, parse_json, read_dotenv, read_json, read_toml
from tracebridge.edits import KeyPath
from tracebridge.routing import Source, mask
from tracebridge.scrub import scrub_text

# Where agents, and the guides that people follow, want keys and base URLs in a project.
PATHS = (
    ".env",
    ".envrc",
    ".env.local",
    ".gemini/.env",
    ".gemini/settings.json",
    ".gemini/respan.json",
    ".claude/settings.json",
    ".claude/settings.local.json",
    ".claude/respan.json",
    ".codex/config.toml",
    ".codex/respan.json",
    ".opencode/opencode.json",
    ".opencode/opencode.jsonc",
    ".opencode/plugins/otel.json",
    ".vscode/settings.json",
    ".mcp.json",
    ".respan.json",
    "opencode.json",
    "opencode.jsonc",
)
# Of each file, no more than the last commits that touched it.
MOST_COMMITS = 50
# These are nobody's but their owner's.
OWN = (".env", ".env.local", ".envrc", "settings.local.json")


@machine_rule("key-in-tracked-file", joint="safety")
def tracked(machine: Machine) -> Iterator[Finding]:
    """A key stands in a file that git tracks.

    Everybody who has the repository has the key; so will everybody who ever gets it.
    """
    project = machine.place.project
    for name in _git(machine, "ls-files", "-z", "--", *PATHS).split("\0"):
        for source, key in _keys_in(_read(project / name)) if name else ():
            own = name.endswith(OWN)
            yield Finding(
                problem=f"{name} is tracked by git and holds the key {mask(key)}",
                at=(source,),
                remedy="keep the file out of git and revoke the key"
                if own
                else "put the key into a variable of your own, refer to that, and revoke the key",
                command=f"git rm --cached {shlex.quote(name)} && {_ignore(name)}" if own else None,
            )


@machine_rule("key-in-project-file", joint="safety")
def untracked(machine: Machine) -> Iterator[Finding]:
    """A key stands in a project's file that git would take in with the next `git add`.

    It is not ignored. One commit, and the key is everybody's.
    """
    project = machine.place.project
    listed = _git(machine, "ls-files", "-z", "--others", "--exclude-standard", "--", *PATHS)
    for name in listed.split("\0"):
        for source, key in _keys_in(_read(project / name)) if name else ():
            yield Finding(
                problem=f"{name} holds the key {mask(key)}, and git does not ignore it",
                at=(source,),
                remedy="have git ignore it",
                command=_ignore(name),
            )


@machine_rule("key-in-git-history", joint="safety")
def in_history(machine: Machine) -> Iterator[Finding]:
    """A key stood in a settings file of this repository, and its history keeps it.

    Taking it out of the file does not take it out of the history.
    """
    log = _git(
        machine,
        "log",
        "--all",
        f"-n{MOST_COMMITS}",
        "--format=%H",
        "--name-only",
        "--relative",
        "-z",
        "--",
        *PATHS,
    )
    commit, seen = "", set()
    for word in re.split(r"[\0\n]+", log):
        if re.fullmatch(r"[0-9a-f]{40,64}", word):
            commit = word
            continue
        if not word or not commit or word.startswith(("/", "-")):
            continue
        text = _git(machine, "show", f"{commit}:./{word}")
        for _, key in _keys_in(_parsed(machine.place.project / word, text)):
            if (word, key) in seen or _stands_in(machine.place.project / word, key):
                continue
            seen.add((word, key))
            yield Finding(
                problem=f"{word} held the key {mask(key)} in commit {commit[:12]}",
                at=(f"{commit[:12]}:{word}",),
                remedy="revoke the key; `git filter-repo` can write the history anew without it",
            )


@machine_rule("vscode-fiction", joint="turn")
def vscode(machine: Machine) -> Iterator[Finding]:
    """`.vscode/settings.json` has `aiCoding` settings, which nothing reads.

    A guide that is passed around invented them. Requests go where they would go without.
    """
    file = read_json(
        machine.place.project / ".vscode" / "settings.json", comments=True, trailing_commas=True
    )
    for name in file.values:
        if name == "aiCoding" or name.startswith("aiCoding."):
            yield Finding(
                problem=f"{name} is a setting that nothing reads",
                at=(Source(file, (name,)),),
                remedy="take it out, and set the base URL where the agent reads it",
                command="tracebridge integrate AGENT --gateway URL",
            )


def _git(machine: Machine, *words: str) -> str:
    """Return what git says about the project, "" where there is no repository or no git."""
    command = ("git", "-C", str(machine.place.project), "--no-optional-locks", *words)
    return machine.run(*command) or ""


def _read(path: Path) -> ConfigFile:
    if path.suffix == ".toml":
        return read_toml(path)
    if path.name.startswith(".env"):
        return read_dotenv(path)
    return read_json(path, comments=True, trailing_commas=True)


def _parsed(path: Path, text: str) -> ConfigFile:
    """Return an old version of a file; of its lines nobody asks."""
    if path.suffix in {".json", ".jsonc"}:
        return parse_json(path, text)
    values = dict(re.findall(r"(?m)^\s*(?:export\s+)?([\w.-]+)\s*=\s*[\"']?([^\"'\s#]*)", text))
    return ConfigFile(path, exists=True, text=text, values=values)


def _keys_in(file: ConfigFile) -> Iterator[tuple[Source, str]]:
    for keys, text in _texts(file.values, ()):
        name = next((key for key in reversed(keys) if isinstance(key, str)), "value")
        if _is_secret(name, text):
            yield Source(file, keys), text


def _texts(value: Any, keys: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield keys, value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _texts(each, (*keys, str(name)))
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _texts(each, (*keys, place))


def _is_secret(name: str, text: str) -> bool:
    """Say whether a value is a key, and not the name of a place where one is kept."""
    if len(text) < 8 or text.startswith(("ENV:", "FILE:", "CMD:", "VAULT:")):
        return False
    said = f'{name} = "{text}"'
    return scrub_text(said) != said


def _stands_in(path: Path, key: str) -> bool:
    return key in _read(path).text


def _ignore(name: str) -> str:
    return f"echo {shlex.quote(f'/{name}')} >> .gitignore"

"""What has to stand in Gemini CLI's settings so that it tells us of its turns.

Hooks of all scopes add up; those of the system's settings file, too, whose place one process can
be told by environment.
"""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from tracebridge.agents import Launch
from tracebridge.agents.gemini_cli.payload import SLUG
from tracebridge.agents.gemini_cli.requests import SESSION_HEADER, TURN_HEADER
from tracebridge.fields import as_json, dict_of, text_of
from tracebridge.lines import parse_object

# Not BeforeModel and AfterModel: they fire per attempt and chunk, with the whole history.
HOT_EVENTS = ("BeforeTool", "AfterTool")
EVENTS = ("SessionStart", "BeforeAgent", *HOT_EVENTS, "AfterAgent", "SessionEnd")
TIMEOUT_MS = 5000
# The shell that runs a hook is the agent's child: only so do we learn whose death ends the turn.
AGENT_PID = "TRACEBRIDGE_AGENT_PID=$PPID "

SYSTEM_SETTINGS = "GEMINI_CLI_SYSTEM_SETTINGS_PATH"
SYSTEM_SETTINGS_DEFAULT = "/etc/gemini-cli/settings.json"
CUSTOM_HEADERS = "GEMINI_CLI_CUSTOM_HEADERS"
# With these the session is another one than a new one.
RESUMES = frozenset({"-r", "--resume", "--session-file"})


def settings_path(scope: str, home: Path, project: Path) -> Path:
    """Return the settings file of a scope, "global" or "local" (the project's)."""
    return (project if scope == "local" else home) / ".gemini" / "settings.json"


def wire(settings: Mapping[str, Any], commands: Mapping[str, str]) -> dict[str, Any]:
    """Return *settings* with our hooks, and everything else as it was.

    Raise ValueError where something stands that hooks cannot be added to.
    """
    wired = unwire(settings)
    hooks = wired.get("hooks", {})
    if not isinstance(hooks, dict):
        raise ValueError('"hooks" is not an object')
    if dict_of(wired.get("hooksConfig")).get("enabled") is False:
        raise ValueError('"hooksConfig.enabled" is false, so no hook would run')
    hooks = dict(hooks)
    for event in EVENTS:
        groups = hooks.get(event, [])
        if not isinstance(groups, list):
            raise ValueError(f'"hooks.{event}" is not a list')
        command = AGENT_PID + commands["hot" if event in HOT_EVENTS else "hook"]
        entry = {
            "name": "tracebridge",
            "type": "command",
            "command": command,
            "timeout": TIMEOUT_MS,
        }
        hooks[event] = [*groups, {"matcher": "*", "hooks": [entry]}]
    return {**wired, "hooks": hooks}


def unwire(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return *settings* without what `wire` adds, and everything else as it was."""
    hooks = settings.get("hooks")
    if not isinstance(hooks, dict):
        return dict(settings)
    rest: dict[str, Any] = {}
    for event, groups in hooks.items():
        if not isinstance(groups, list):
            rest[event] = groups
            continue
        kept = [left for group in groups if (left := _without_ours(group)) is not None]
        if kept or not groups:
            rest[event] = kept
    if rest or not hooks:
        return {**settings, "hooks": rest}
    return {name: value for name, value in settings.items() if name != "hooks"}


def launch(command: Sequence[str], launch: Launch) -> tuple[list[str], dict[str, str]]:
    env = dict(launch.env)
    given = list(command)
    session_id = _value_of("--session-id", given)
    if session_id is None and not any(word.partition("=")[0] in RESUMES for word in given):
        session_id = str(uuid.uuid4())
        given[1:1] = ["--session-id", session_id]
    if session_id is not None:
        headers = [f"{SESSION_HEADER}: {SLUG}/{session_id}"]
        if {"-p", "--prompt"} & {word.partition("=")[0] for word in given}:
            # One prompt and out: all that this process asks belongs to the session's first turn.
            headers.append(f"{TURN_HEADER}: 1")
        env[CUSTOM_HEADERS] = ", ".join(filter(None, [env.get(CUSTOM_HEADERS), *headers]))
    if launch.gateway_url is not None:
        env["GOOGLE_GEMINI_BASE_URL"] = f"{launch.gateway_url}/api/google/gemini"
        env["GOOGLE_VERTEX_BASE_URL"] = f"{launch.gateway_url}/api/google/vertexai"
    env[SYSTEM_SETTINGS] = str(_write_settings(launch))
    return given, env


def upstream(env: Mapping[str, str], home: Path, project: Path) -> str:
    del home, project  # Base URLs stand in the environment alone.
    if env.get("GOOGLE_GENAI_USE_VERTEXAI", "").lower() in {"1", "true"}:
        base = env.get("GOOGLE_VERTEX_BASE_URL") or "https://aiplatform.googleapis.com"
        return f"vertex={base}"
    gemini = env.get("GOOGLE_GEMINI_BASE_URL")
    return f"gemini={gemini}" if gemini else "google"


def _write_settings(launch: Launch) -> Path:
    """Write the system's settings with our hooks to a file of ours, and return its place."""
    theirs = Path(launch.env.get(SYSTEM_SETTINGS) or SYSTEM_SETTINGS_DEFAULT)
    settings: dict[str, Any] = {}
    if theirs.exists():
        read = parse_object(theirs.read_bytes())
        if isinstance(read, str):
            raise ValueError(f"{theirs}: {read}; correct it or run without tracebridge")
        settings = read
    home = Path(launch.env["TRACEBRIDGE_HOME"])
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours = home / "gemini-system-settings.json"
    text = as_json(wire(settings, launch.commands)) or "{}"
    fresh = ours.with_name(f".{ours.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.replace(ours)
    return ours


def _value_of(option: str, words: Sequence[str]) -> str | None:
    for place, word in enumerate(words):
        if word == option and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _without_ours(group: Any) -> Any:
    """Return *group* without our hooks, or None where nothing else was in it."""
    hooks = dict_of(group).get("hooks")
    if not isinstance(hooks, list):
        return group
    kept = [hook for hook in hooks if not is_ours(hook)]
    if kept == hooks:
        return group
    return {**group, "hooks": kept} if kept else None


def is_ours(hook: Any) -> bool:
    """Say whether a hook entry runs our hook: by its program's file, not by a word in it."""
    command = (text_of(dict_of(hook), "command") or "").removeprefix(AGENT_PID)
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    # Behind the interpreter and its options; somebody else's command may name our file, too.
    program = next((word for word in words[1:] if not word.startswith("-")), "")
    return PurePath(program).name in {"tracebridge_hook.py", "tracebridge_hook.sh"}

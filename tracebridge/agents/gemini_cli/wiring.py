"""What has to stand in Gemini CLI's settings so that it tells us of its turns.

Hooks of all scopes add up; those of the system's settings file, too, whose place one process can
be told by environment.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tracebridge.agents import Launch
from tracebridge.agents._hooks import hook_changes, unhook_changes
from tracebridge.agents.gemini_cli.payload import SLUG
from tracebridge.agents.gemini_cli.requests import SESSION_HEADER, TURN_HEADER
from tracebridge.agents.gemini_cli.telemetry import telemetry_env
from tracebridge.edits import Change, changed
from tracebridge.edits.env_lines import EnvLines
from tracebridge.fields import as_json, dict_of
from tracebridge.lines import parse_object

# Not BeforeModel and AfterModel: they fire per attempt and chunk, with the whole history.
HOT_EVENTS = ("BeforeTool", "AfterTool")
EVENTS = (
    "SessionStart",
    "BeforeAgent",
    *HOT_EVENTS,
    "Notification",
    "PreCompress",
    "AfterAgent",
    "SessionEnd",
)
# Before each call of the model it fires, too, as `auto`.
MATCHERS = {"PreCompress": "manual"}
TIMEOUT_MS = 5000
# The shell that runs a hook is the agent's child: only so do we learn whose death ends the turn.
AGENT_PID = "TRACEBRIDGE_AGENT_PID=$PPID "

SYSTEM_SETTINGS = "GEMINI_CLI_SYSTEM_SETTINGS_PATH"
SYSTEM_SETTINGS_DEFAULT = "/etc/gemini-cli/settings.json"
CUSTOM_HEADERS = "GEMINI_CLI_CUSTOM_HEADERS"
# With these the session is another one than a new one.
RESUMES = frozenset({"-r", "--resume", "--session-file"})


def wire(settings: Mapping[str, Any], commands: Mapping[str, str]) -> dict[str, Any]:
    """Return *settings* with our hooks, and everything else as it was.

    Raise ValueError where something stands that hooks cannot be added to.
    """
    return changed(settings, wire_changes(settings, commands))


def unwire(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return *settings* without what `wire` adds, and everything else as it was."""
    return changed(settings, unhook_changes(settings))


def wire_changes(settings: Mapping[str, Any], commands: Mapping[str, str]) -> Iterator[Change]:
    if dict_of(settings.get("hooksConfig")).get("enabled") is False:
        raise ValueError('"hooksConfig.enabled" is false, so no hook would run')
    groups = {}
    for event in EVENTS:
        entry = {
            "name": "tracebridge",
            "type": "command",
            "command": AGENT_PID + commands["hot" if event in HOT_EVENTS else "hook"],
            "timeout": TIMEOUT_MS,
        }
        groups[event] = {"matcher": MATCHERS.get(event, "*"), "hooks": [entry]}
    yield from hook_changes(settings, groups)


def launch(command: Sequence[str], launch: Launch) -> tuple[list[str], dict[str, str]]:
    env = dict(launch.env)
    given = list(command)
    session_id = _value_of("--session-id", given)
    if session_id is None and not any(word.partition("=")[0] in RESUMES for word in given):
        session_id = str(uuid.uuid4())
        given[1:1] = ["--session-id", session_id]
    is_one_turn = bool({"-p", "--prompt"} & {word.partition("=")[0] for word in given})
    if session_id is not None:
        headers = [f"{SESSION_HEADER}: {SLUG}/{session_id}"]
        if is_one_turn:
            # One prompt and out: all that this process asks belongs to the session's first turn.
            headers.append(f"{TURN_HEADER}: 1")
        env[CUSTOM_HEADERS] = ", ".join(filter(None, [env.get(CUSTOM_HEADERS), *headers]))
    if launch.gateway_url is not None:
        env["GOOGLE_GEMINI_BASE_URL"] = f"{launch.gateway_url}/api/google/gemini"
        env["GOOGLE_VERTEX_BASE_URL"] = f"{launch.gateway_url}/api/google/vertexai"
        if session_id is None or not is_one_turn:
            # Headers tell the session at best; and its SDK has a line to say on stderr.
            env |= telemetry_env(launch.gateway_url, env, Path.cwd())
    settings = _write_settings(launch)
    # Elsewhere it would be passed over with a warning; then gateway and chat file tell alone.
    if _is_trusted(settings):
        env[SYSTEM_SETTINGS] = str(settings)
    return given, env


def upstream(env: Mapping[str, str], home: Path, project: Path) -> str:
    env = {**_nearest_env_file(home, project), **env}
    if env.get("GOOGLE_GENAI_USE_VERTEXAI", "").lower() in {"1", "true"}:
        base = env.get("GOOGLE_VERTEX_BASE_URL") or "https://aiplatform.googleapis.com"
        return f"vertex={base}"
    gemini = env.get("GOOGLE_GEMINI_BASE_URL")
    return f"gemini={gemini}" if gemini else "google"


def _nearest_env_file(home: Path, project: Path) -> dict[str, str]:
    """Return the variables of the one `.env` file that Gemini CLI reads."""
    for folder in (project, *project.parents, home):
        for path in (folder / ".gemini" / ".env", folder / ".env"):
            with suppress(OSError, ValueError):
                return EnvLines().parse(path.read_text("utf-8-sig"))
    return {}


def _is_trusted(settings: Path) -> bool:
    """Say whether Gemini CLI takes a file for the system's: only root can have written it."""
    for path in {settings, settings.resolve()}:
        for place in (path, *path.parents):
            facts = place.stat()
            if facts.st_uid != 0 or facts.st_mode & 0o022:
                return False
    return True


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

"""What has to stand in Claude Code's settings so that it tells us of its turns. Pure.

Hooks of different scopes add up; `env` of settings files beats the shell's environment.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from tracebridge.agents import Launch
from tracebridge.fields import as_json, dict_of, dicts_in, text_of
from tracebridge.lines import parse_object

# Each tool call fires two or three of these: they may get the cheaper sh hook.
HOT_EVENTS = ("PreToolUse", "PostToolUse", "PostToolUseFailure")
EVENTS = (
    "SessionStart",
    "UserPromptSubmit",
    *HOT_EVENTS,
    "PermissionRequest",
    "PermissionDenied",
    "SubagentStart",
    "SubagentStop",
    "PreCompact",
    "PostCompact",
    "Stop",
    "StopFailure",
    "SessionEnd",
)
# Requests then carry the prompt id, the turn's own id: every call is linked exactly.
HINT_HEADERS = "CLAUDE_CODE_GATEWAY_HINT_HEADERS"
# Seconds. A hook takes milliseconds; this only bounds what a broken machine can cost.
TIMEOUT_S = 5


def settings_path(scope: str, home: Path, project: Path) -> Path:
    """Return the settings file of a scope: "global" or "local" (never committed)."""
    if scope == "local":
        return project / ".claude" / "settings.local.json"
    return home / ".claude" / "settings.json"


def wire(settings: Mapping[str, Any], commands: Mapping[str, str]) -> dict[str, Any]:
    """Return *settings* with our hooks and the hint headers, and everything else as it was.

    *commands* gives the hook command by its kind: "hook" and "hot". Raise ValueError where
    something stands that hooks cannot be added to.
    """
    wired = unwire(settings)
    hooks, env = wired.get("hooks", {}), wired.get("env", {})
    if not isinstance(hooks, dict) or not isinstance(env, dict):
        raise ValueError('"hooks" or "env" is not an object')
    hooks = dict(hooks)
    for event in EVENTS:
        groups = hooks.get(event, [])
        if not isinstance(groups, list):
            raise ValueError(f'"hooks.{event}" is not a list')
        command = commands["hot" if event in HOT_EVENTS else "hook"]
        entry = {"type": "command", "command": command, "timeout": TIMEOUT_S}
        hooks[event] = [*groups, {"hooks": [entry]}]
    return {**wired, "hooks": hooks, "env": {**env, HINT_HEADERS: "1"}}


def unwire(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return *settings* without what `wire` adds, and everything else as it was."""
    if not _is_wired(settings):
        return dict(settings)
    rest = dict(settings)
    hooks = {
        event: [kept for group in groups if (kept := _without_ours(group)) is not None]
        if _is_ours_in(groups)
        else groups
        for event, groups in settings["hooks"].items()
    }
    rest["hooks"] = {
        event: groups
        for event, groups in hooks.items()
        if groups or not _is_ours_in(settings["hooks"][event])
    }
    env = rest.get("env")
    if isinstance(env, dict):
        rest["env"] = {name: value for name, value in env.items() if name != HINT_HEADERS}
    return {
        name: value
        for name, value in rest.items()
        # What is empty now was there for us alone.
        if value or name not in {"hooks", "env"} or value == settings[name]
    }


def launch(command: Sequence[str], launch: Launch) -> tuple[list[str], dict[str, str]]:
    # A settings argument beats every settings file, and these beat the environment.
    settings = wire({}, launch.commands)
    if launch.gateway_url is not None:
        settings["env"]["ANTHROPIC_BASE_URL"] = f"{launch.gateway_url}/api/anthropic"
    given = list(command)
    if "--settings" in given[:-1]:
        place = given.index("--settings") + 1
        settings = _over(_read_argument(given[place]), settings)
        given[place] = _as_argument(settings)
    else:
        given[1:1] = ["--settings", _as_argument(settings)]
    return given, dict(launch.env)


def upstream(env: Mapping[str, str], home: Path, project: Path) -> str:
    base = env.get("ANTHROPIC_BASE_URL")
    for path in (
        home / ".claude" / "settings.json",
        project / ".claude" / "settings.json",
        project / ".claude" / "settings.local.json",
    ):
        try:
            written = parse_object(path.read_bytes())
        except OSError:
            continue
        if isinstance(written, dict):
            base = text_of(dict_of(written.get("env")), "ANTHROPIC_BASE_URL") or base
    return f"anthropic={base}" if base else "anthropic"


def _read_argument(argument: str) -> dict[str, Any]:
    """Return the settings that a user's own --settings names: a file, or JSON."""
    text = argument.encode("utf-8", "surrogateescape")
    if not argument.lstrip().startswith("{"):
        text = Path(argument).read_bytes()
    settings = parse_object(text)
    if isinstance(settings, str):
        raise ValueError(f"--settings {argument}: {settings}")
    return settings


def _over(settings: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    hooks = dict(dict_of(settings.get("hooks")))
    for event, groups in ours["hooks"].items():
        hooks[event] = [*dicts_in(hooks.get(event)), *groups]
    return {**settings, "hooks": hooks, "env": {**dict_of(settings.get("env")), **ours["env"]}}


def _as_argument(settings: dict[str, Any]) -> str:
    return as_json(settings) or "{}"


def _is_wired(settings: Mapping[str, Any]) -> bool:
    return any(_is_ours_in(groups) for groups in dict_of(settings.get("hooks")).values())


def _is_ours_in(groups: Any) -> bool:
    return any(is_ours(hook) for group in dicts_in(groups) for hook in dicts_in(group.get("hooks")))


def _without_ours(group: Any) -> Any:
    """Return *group* without our hooks, or None where nothing else was in it."""
    if not isinstance(group, dict) or not isinstance(group.get("hooks"), list):
        return group
    kept = [hook for hook in group["hooks"] if not is_ours(hook)]
    if kept == group["hooks"]:
        return group
    return {**group, "hooks": kept} if kept else None


def is_ours(hook: Any) -> bool:
    """Say whether a hook entry runs our hook: by its program's file, not by a word in it."""
    command = text_of(dict_of(hook), "command") or ""
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    # Behind the interpreter and its options; somebody else's command may name our file, too.
    program = next((word for word in words[1:] if not word.startswith("-")), "")
    return PurePath(program).name in {"tracebridge_hook.py", "tracebridge_hook.sh"}

"""What has to stand in Codex's settings so that it tells us of its turns.

Hooks stand in `hooks.json`, which Codex reads beside config.toml, and run once the user has
approved them in /hooks.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from tracebridge.agents import Launch
from tracebridge.fields import dict_of, dicts_in, text_of

# Each tool call fires both: they may get the cheaper sh hook.
HOT_EVENTS = ("PreToolUse", "PostToolUse")
# Not the two about model requests: each call would wait for them twice, and tell nothing new.
EVENTS = (
    "SessionStart",
    "UserPromptSubmit",
    *HOT_EVENTS,
    "SubagentStart",
    "SubagentStop",
    "PreCompact",
    "PostCompact",
    "Stop",
    "Interrupt",
    "SessionEnd",
)
# Seconds; of more than these Codex warns its user at the events that end something.
TIMEOUT_S = 3
_OWN_PROVIDER = "openai"


def settings_path(scope: str, home: Path, project: Path) -> Path:
    """Return the hooks file of a scope: "global" or "local"."""
    return (project if scope == "local" else home) / ".codex" / "hooks.json"


def wire(settings: Mapping[str, Any], commands: Mapping[str, str]) -> dict[str, Any]:
    """Return *settings* with our hooks, and everything else as it was.

    *commands* gives the hook command by its kind: "hook" and "hot". Raise ValueError where
    something stands that hooks cannot be added to.
    """
    wired = unwire(settings)
    hooks = wired.get("hooks", {})
    if not isinstance(hooks, dict):
        raise ValueError('"hooks" is not an object')
    hooks = dict(hooks)
    for event in EVENTS:
        groups = hooks.get(event, [])
        if not isinstance(groups, list):
            raise ValueError(f'"hooks.{event}" is not a list')
        command = commands["hot" if event in HOT_EVENTS else "hook"]
        entry = {"type": "command", "command": command, "timeout": TIMEOUT_S}
        # Behind the others: approval goes by place, and theirs must not move.
        hooks[event] = [*groups, {"hooks": [entry]}]
    return {**wired, "hooks": hooks}


def unwire(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return *settings* without what `wire` adds, and everything else as it was."""
    rest = dict(settings)
    if not isinstance(settings.get("hooks"), dict):
        return rest
    hooks = {}
    for event, groups in settings["hooks"].items():
        if not _is_ours_in(groups):
            hooks[event] = groups
        elif kept := [left for group in groups if (left := _without_ours(group)) is not None]:
            hooks[event] = kept
    rest["hooks"] = hooks
    if not hooks and settings["hooks"]:
        # What is empty now was there for us alone.
        del rest["hooks"]
    return rest


def launch(command: Sequence[str], launch: Launch) -> tuple[list[str], dict[str, str]]:
    # Hooks would need the user's approval; the rollout and the gateway tell all but the tags.
    given = list(command)
    if launch.gateway_url is not None:
        name, _ = _provider(_read_config(launch.env, Path.home()), given)
        base_url = json.dumps(f"{launch.gateway_url}/api")
        # Codex splits the key at each dot, and takes quotes for a part of the name.
        key = f"model_providers.{name}.base_url" if name != _OWN_PROVIDER else "openai_base_url"
        given[1:1] = ["-c", f"{key}={base_url}"]
    return given, dict(launch.env)


def upstream(env: Mapping[str, str], home: Path, project: Path) -> str:
    del project  # Where requests go is the user's to say, not a project's.
    _, base = _provider(_read_config(env, home), [])
    return f"openai={base}" if base else "openai"


def _read_config(env: Mapping[str, str], home: Path) -> dict[str, Any]:
    place = Path(env["CODEX_HOME"]) if env.get("CODEX_HOME") else home / ".codex"
    try:
        return tomllib.loads((place / "config.toml").read_text("utf-8"))
    except (OSError, ValueError):
        # What Codex cannot read it says itself.
        return {}


def _provider(config: dict[str, Any], command: Sequence[str]) -> tuple[str, str | None]:
    """Return name and base URL of the model provider in use."""
    name = text_of(config, "model_provider") or _OWN_PROVIDER
    for word in command:
        if word.startswith("model_provider="):
            name = word.partition("=")[2].strip("\"'")
    provider = dict_of(dict_of(config.get("model_providers")).get(name))
    base = text_of(provider, "base_url")
    if base is None and name == _OWN_PROVIDER:
        base = text_of(config, "openai_base_url")
    return name, base


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

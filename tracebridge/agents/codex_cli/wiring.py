"""What has to stand in Codex's settings so that it tells us of its turns.

Hooks stand in `hooks.json`, which Codex reads beside config.toml, and run once the user has
approved them in /hooks.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracebridge.agents import Launch
from tracebridge.agents._hooks import hook_changes, unhook_changes
from tracebridge.edits import Change, changed
from tracebridge.fields import dict_of, text_of

# Each tool call fires both: they may get the cheaper sh hook.
HOT_EVENTS = ("PreToolUse", "PostToolUse")
# Not the two about model requests: each call would wait for them twice, and tell nothing new.
EVENTS = (
    "SessionStart",
    "UserPromptSubmit",
    *HOT_EVENTS,
    "PermissionRequest",
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


def wire(settings: Mapping[str, Any], commands: Mapping[str, str]) -> dict[str, Any]:
    """Return *settings* with our hooks, and everything else as it was.

    *commands* gives the hook command by its kind: "hook" and "hot". Raise ValueError where
    something stands that hooks cannot be added to.
    """
    return changed(settings, wire_changes(settings, commands))


def unwire(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return *settings* without what `wire` adds, and everything else as it was."""
    return changed(settings, unhook_changes(settings))


def wire_changes(settings: Mapping[str, Any], commands: Mapping[str, str]) -> Iterator[Change]:
    groups = {}
    for event in EVENTS:
        command = commands["hot" if event in HOT_EVENTS else "hook"]
        entry = {"type": "command", "command": command, "timeout": TIMEOUT_S}
        # Approval goes by place, so those of others must not move.
        groups[event] = {"hooks": [entry]}
    yield from hook_changes(settings, groups)


def launch(command: Sequence[str], launch: Launch) -> tuple[list[str], dict[str, str]]:
    # Hooks would need the user's approval; the rollout and the gateway tell all but the tags.
    given = list(command)
    if launch.gateway_url is not None:
        name, _ = _provider(_read_config(launch.env, _home_in(launch.env)), given)
        base_url = json.dumps(f"{launch.gateway_url}/api")
        # Codex splits the key at each dot, and takes quotes for a part of the name.
        key = f"model_providers.{name}.base_url" if name != _OWN_PROVIDER else "openai_base_url"
        given[1:1] = ["-c", f"{key}={base_url}"]
    return given, dict(launch.env)


def upstream(env: Mapping[str, str], home: Path, project: Path) -> str:
    del project  # Where requests go is the user's to say, not a project's.
    _, base = _provider(_read_config(env, home), [])
    return f"openai={base}" if base else "openai"


def _home_in(env: Mapping[str, str]) -> Path:
    """Return the home of the process that is to be launched."""
    return Path(env.get("HOME") or Path.home())


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

"""What has to stand in Claude Code's settings so that it tells us of its turns. Pure.

Hooks of different scopes add up; `env` of settings files beats the shell's environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracebridge.agents import Launch
from tracebridge.agents._hooks import hook_changes, is_hooked, unhook_changes
from tracebridge.edits import BOM, Change, Delete, Put, changed
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
# The agent waits for each hook. Without those at tool calls a turn runs two, however long it is, and
# its tools are told by the transcript.
LIGHT_EVENTS = tuple(event for event in EVENTS if event not in HOT_EVENTS)
# Requests then carry the prompt id, the turn's own id: every call is linked exactly.
HINT_HEADERS = "CLAUDE_CODE_GATEWAY_HINT_HEADERS"
# Seconds. A hook takes milliseconds; this only bounds what a broken machine can cost.
TIMEOUT_S = 5


def wire(settings: Mapping[str, Any], commands: Mapping[str, str]) -> dict[str, Any]:
    """Return *settings* with our hooks and the hint headers, and everything else as it was.

    *commands* gives the hook command by its kind: "hook" and "hot". Raise ValueError where
    something stands that hooks cannot be added to.
    """
    return changed(settings, wire_changes(settings, commands))


def unwire(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return *settings* without what `wire` adds, and everything else as it was."""
    return changed(settings, unwire_changes(settings))


def wire_changes(
    settings: Mapping[str, Any], commands: Mapping[str, str], *, light: bool = False
) -> Iterator[Change]:
    groups = {}
    for event in LIGHT_EVENTS if light else EVENTS:
        command = commands["hot" if event in HOT_EVENTS else "hook"]
        entry = {"type": "command", "command": command, "timeout": TIMEOUT_S}
        groups[event] = {"hooks": [entry]}
    yield from hook_changes(settings, groups)
    yield Put(("env", HINT_HEADERS), "1")


def unwire_changes(settings: Mapping[str, Any]) -> Iterator[Change]:
    if not is_hooked(settings):
        return
    yield from unhook_changes(settings)
    env = dict_of(settings.get("env"))
    if HINT_HEADERS in env:
        # What is empty then was there for us alone.
        yield Delete(("env", HINT_HEADERS) if len(env) > 1 else ("env",))


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
    given = env.get("CLAUDE_CONFIG_DIR")
    for path in (
        (Path(given) if given else home / ".claude") / "settings.json",
        project / ".claude" / "settings.json",
        project / ".claude" / "settings.local.json",
    ):
        try:
            written = parse_object(path.read_bytes().removeprefix(BOM.encode()))
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

"""What `integrate` writes for OpenCode: its plugin, where requests go, and what spares it a wait.

Of several configurations in one folder all count. With a plugin OpenCode installs a package beside
the configuration at each start, unless a lock file says that it is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tracebridge.agents import Edit, Wish
from tracebridge.agents.opencode.wiring import (
    DEPENDENCY,
    PLUGIN,
    is_ours,
    unwire_changes,
    wire_changes,
)
from tracebridge.edits import Change, Put
from tracebridge.edits.json_text import JsonText
from tracebridge.keys import parse_reference

CONFIGURATION = JsonText(comments=True, trailing_commas=True)
LOCK = {"lockfileVersion": 3, "packages": {"": {"dependencies": {DEPENDENCY: "*"}}}}
# What its own client appends to a base URL has no version for Anthropic, unlike Claude Code's.
_VERSION = {"anthropic": "/v1", "openai": ""}


def settings_folder(wish: Wish) -> Path:
    if wish.scope == "local":
        return wish.project / ".opencode"
    given = wish.env.get("XDG_CONFIG_HOME")
    return (Path(given) if given else wish.home / ".config") / "opencode"


def edits(wish: Wish) -> Iterable[Edit]:
    if wish.traceparent:
        raise ValueError("--traceparent is Claude Code's; our plugin sends one for OpenCode anyway")
    path = _configuration(wish)

    def wire(settings: Mapping[str, Any]) -> Iterator[Change]:
        yield from wire_changes(settings, wish.commands)
        if wish.model is not None:
            yield Put(("model",), wish.model)
        for provider, version in _VERSION.items():
            if provider in wish.routes:
                yield from _provider(provider, wish.routes[provider] + version, wish)

    yield Edit(path=path, form=CONFIGURATION, wire=wire, unwire=unwire_changes)
    if path.parent != wish.project:
        yield from _seed(path.parent)


def _provider(name: str, base_url: str, wish: Wish) -> Iterator[Change]:
    options = ("provider", name, "options")
    yield Put((*options, "baseURL"), base_url)
    # A key in the configuration costs Anthropic's provider its beta headers, so none without need.
    if wish.key not in {None, f"ENV:{name.upper()}_API_KEY"}:
        kind, rest = parse_reference(wish.key or "")
        if kind == "CMD":
            raise ValueError("OpenCode runs no command for a key; use ENV:NAME or FILE:path")
        written = f"{{env:{rest}}}" if kind == "ENV" else f"{{file:{Path(rest).expanduser()}}}"
        yield Put((*options, "apiKey"), written)
    for header, value in wish.headers.items():
        yield Put((*options, "headers", header), value)


def _seed(folder: Path) -> Iterator[Edit]:
    """Yield what spares OpenCode an installation that takes more than a minute without a network.

    A folder with packages of its user's is left as it is.
    """
    path = folder / "package-lock.json"
    there = any((folder / name).exists() for name in ("node_modules", "package.json", "bun.lock"))
    theirs = there and _read(path) != LOCK

    def wire(settings: Mapping[str, Any]) -> Iterator[Change]:
        if not theirs and settings in ({}, LOCK):
            yield from (Put((name,), value) for name, value in LOCK.items())

    if not theirs:
        yield Edit(path=folder / "node_modules", form=None)
    yield Edit(path=path, form=JsonText(), wire=wire, whole=True)


def remarks(wish: Wish) -> Iterator[str]:
    for folder in (settings_folder(wish) / "plugin", settings_folder(wish) / "plugins"):
        if (folder / PLUGIN).exists():
            yield f"{folder / PLUGIN} is loaded too: each event is told twice; delete it"
    elsewhere = "local" if wish.scope == "global" else "global"
    for path in _candidates(elsewhere, wish):
        if _is_wired(path):
            yield f"our plugin stands in {path} too: each event is told twice here; remove one"


def _configuration(wish: Wish) -> Path:
    """Return the file that has our plugin, else the one that is there and wins, else a new one."""
    candidates = _candidates(wish.scope, wish)
    there = [path for path in candidates if path.exists()]
    wired = [path for path in there if _is_wired(path)]
    fresh = wish.project if wish.scope == "local" else settings_folder(wish)
    return next(iter([*wired, *there]), fresh / "opencode.json")


def _candidates(scope: str, wish: Wish) -> list[Path]:
    if scope == "local":
        folders = [wish.project, wish.project / ".opencode"]
        names: tuple[str, ...] = ("opencode.jsonc", "opencode.json")
    else:
        given = wish.env.get("XDG_CONFIG_HOME")
        folders = [(Path(given) if given else wish.home / ".config") / "opencode"]
        names = ("opencode.jsonc", "opencode.json", "config.json")
    return [folder / name for folder in folders for name in names]


def _is_wired(path: Path) -> bool:
    plugins = _read(path).get("plugin")
    return isinstance(plugins, list) and any(map(is_ours, plugins))


def _read(path: Path) -> dict[str, Any]:
    try:
        return CONFIGURATION.parse(path.read_text("utf-8-sig"))
    except (OSError, ValueError):
        return {}

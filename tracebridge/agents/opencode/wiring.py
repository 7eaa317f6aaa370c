"""What has to stand in OpenCode's configuration so that it tells us of its turns.

A plugin may be named with options; lists of plugins of several configurations add up.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

from tracebridge.agents import Launch
from tracebridge.fields import as_json, dict_of, text_of
from tracebridge.lines import parse_object

PLUGIN = "opencode.js"
# OpenCode installs this beside each configuration; with any plugin it waits for that at each start.
DEPENDENCY = "@opencode-ai/plugin"
# By provider: what our gateway calls its family, and the base URL below it.
PROVIDERS = {"anthropic": "/api/anthropic/v1", "openai": "/api"}


def settings_path(scope: str, home: Path, project: Path) -> Path:
    if scope == "local":
        return project / ".opencode" / "opencode.json"
    return home / ".config" / "opencode" / "opencode.json"


def wire(settings: Mapping[str, Any], commands: Mapping[str, str]) -> dict[str, Any]:
    wired = unwire(settings)
    plugins = wired.get("plugin", [])
    if not isinstance(plugins, list):
        raise ValueError('"plugin" is not a list')
    hook = shlex.split(commands["hook"])
    # The plugin lies beside the hook; the last word is where everything of ours is kept.
    script = next(word for word in hook if word.endswith(".py"))
    plugin = Path(script).with_name(PLUGIN).as_uri()
    return {**wired, "plugin": [*plugins, [plugin, {"home": hook[-1], "hook": hook}]]}


def unwire(settings: Mapping[str, Any]) -> dict[str, Any]:
    plugins = settings.get("plugin")
    if not isinstance(plugins, list) or not any(map(is_ours, plugins)):
        return dict(settings)
    kept = [plugin for plugin in plugins if not is_ours(plugin)]
    rest = {name: value for name, value in settings.items() if name != "plugin"}
    # What is empty now was there for us alone.
    return {**rest, "plugin": kept} if kept else rest


def is_ours(plugin: Any) -> bool:
    """Say whether an entry names our plugin: by its file, and by an option that only ours has."""
    if not isinstance(plugin, list) or len(plugin) != 2 or not isinstance(plugin[0], str):
        return False
    name = PurePath(unquote(urlsplit(plugin[0]).path)).name
    return name == PLUGIN and isinstance(plugin[1], dict) and "hook" in plugin[1]


def launch(command: Sequence[str], launch: Launch) -> tuple[list[str], dict[str, str]]:
    env = dict(launch.env)
    settings = wire(_settings_in(env), launch.commands)
    if launch.gateway_url is not None:
        provider = _provider(_configured(env, Path.home(), Path.cwd()), env)
        providers = dict(dict_of(settings.get("provider")))
        given = dict_of(providers.get(provider))
        options = dict_of(given.get("options"))
        base = {"baseURL": f"{launch.gateway_url}{PROVIDERS[provider]}"}
        providers[provider] = {**given, "options": {**options, **base}}
        settings["provider"] = providers
    prepare(env)
    return list(command), {**env, "OPENCODE_CONFIG_CONTENT": as_json(settings) or "{}"}


def upstream(env: Mapping[str, str], home: Path, project: Path) -> str:
    configured = _configured(env, home, project)
    provider = _provider(configured, env)
    options = dict_of(dict_of(dict_of(configured.get("provider")).get(provider)).get("options"))
    base = text_of(options, "baseURL") or env.get(f"{provider.upper()}_BASE_URL")
    if not base:
        return provider
    base = base.rstrip("/")
    return f"{provider}={base.removesuffix('/v1') if provider == 'anthropic' else base}"


def prepare(env: Mapping[str, str]) -> None:
    """Spare OpenCode its wait of more than a minute where no package registry can be reached.

    It looks for the lock file alone. Nothing that is there is changed: a folder with packages of
    its user's is left as it is.
    """
    root = env.get("XDG_CONFIG_HOME") or Path(env.get("HOME") or Path.home()) / ".config"
    folder = Path(root) / "opencode"
    if any((folder / name).exists() for name in ("node_modules", "package.json", "bun.lock")):
        return
    with suppress(OSError):
        (folder / "node_modules").mkdir(parents=True)
        lock = {"lockfileVersion": 3, "packages": {"": {"dependencies": {DEPENDENCY: "*"}}}}
        with (folder / "package-lock.json").open("x") as file:
            json.dump(lock, file)


def _configured(env: Mapping[str, str], home: Path, project: Path) -> dict[str, Any]:
    """Return what we need to know of all configurations; of two that say the same, the last wins."""
    found: dict[str, Any] = {"provider": {}}
    custom = env.get("OPENCODE_CONFIG")
    for path in (
        settings_path("global", home, project),
        *([Path(custom)] if custom else []),
        project / "opencode.json",
        settings_path("local", home, project),
    ):
        try:
            written = parse_object(path.read_bytes())
        except OSError:
            continue
        if isinstance(written, dict):
            _lay_over(found, written)
    _lay_over(found, _settings_in(env))
    return found


def _lay_over(found: dict[str, Any], written: Mapping[str, Any]) -> None:
    found["model"] = text_of(dict(written), "model") or found.get("model")
    for provider, given in dict_of(written.get("provider")).items():
        if "baseURL" in dict_of(dict_of(given).get("options")):
            found["provider"][provider] = given


def _provider(configured: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """Return the provider whose calls are to pass our gateway: the one that is used."""
    named = (text_of(dict(configured), "model") or "").partition("/")[0]
    if named in PROVIDERS:
        return named
    keys = [provider for provider in PROVIDERS if env.get(f"{provider.upper()}_API_KEY")]
    return keys[0] if keys else "anthropic"


def _settings_in(env: Mapping[str, str]) -> dict[str, Any]:
    content = env.get("OPENCODE_CONFIG_CONTENT")
    if not content:
        return {}
    settings = parse_object(content.encode("utf-8", "surrogateescape"))
    if isinstance(settings, str):
        raise ValueError(f"OPENCODE_CONFIG_CONTENT: {settings}")
    return settings

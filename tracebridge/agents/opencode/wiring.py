"""What has to stand in OpenCode's configuration so that it tells us of its turns.

A plugin may be named with options; lists of plugins of several configurations add up.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

from tracebridge.agents import Launch
from tracebridge.edits import Append, Change, Delete, Put, changed
from tracebridge.edits.json_text import JsonText
from tracebridge.fields import as_json, dict_of, text_of
from tracebridge.lines import parse_object

PLUGIN = "opencode.js"
# OpenCode installs this beside each configuration; with any plugin it waits for that at each start.
DEPENDENCY = "@opencode-ai/plugin"
# By provider: what our gateway calls its family, and the base URL below it.
PROVIDERS = {"anthropic": "/api/anthropic/v1", "openai": "/api"}


def wire(settings: Mapping[str, Any], commands: Mapping[str, str]) -> dict[str, Any]:
    """Return *settings* with our plugin. Raise ValueError where it cannot be added."""
    return changed(settings, wire_changes(settings, commands))


def unwire(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return *settings* without our plugin."""
    return changed(settings, unwire_changes(settings))


def wire_changes(settings: Mapping[str, Any], commands: Mapping[str, str]) -> Iterator[Change]:
    plugins = settings.get("plugin", [])
    if not isinstance(plugins, list):
        raise ValueError('"plugin" is not a list')
    hook = shlex.split(commands["hook"])
    # The plugin lies beside the hook; the last word is where everything of ours is kept.
    script = next(word for word in hook if word.endswith(".py"))
    entry = [Path(script).with_name(PLUGIN).as_uri(), {"home": hook[-1], "hook": hook}]
    places = [place for place, each in enumerate(plugins) if is_ours(each)]
    if not places:
        yield Append(("plugin",), entry)
        return
    yield Put(("plugin", places[0]), entry)
    for place in reversed(places[1:]):
        yield Delete(("plugin", place))


def unwire_changes(settings: Mapping[str, Any]) -> Iterator[Change]:
    plugins = settings.get("plugin")
    if not isinstance(plugins, list) or not any(map(is_ours, plugins)):
        return
    if all(map(is_ours, plugins)):
        # What is empty then was there for us alone.
        yield Delete(("plugin",))
        return
    for place in reversed(range(len(plugins))):
        if is_ours(plugins[place]):
            yield Delete(("plugin", place))


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
        configured = _configured(env, _home_in(env), Path.cwd())
        provider = _provider(configured, env)
        providers = dict(dict_of(settings.get("provider")))
        given = dict_of(providers.get(provider))
        options = dict_of(given.get("options"))
        base = {"baseURL": f"{launch.gateway_url}{PROVIDERS[_family(configured, provider)]}"}
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
    base, family = base.rstrip("/"), _family(configured, provider)
    return f"{family}={base.removesuffix('/v1') if family == 'anthropic' else base}"


def prepare(env: Mapping[str, str]) -> None:
    """Spare OpenCode its wait of more than a minute where no package registry can be reached.

    It looks for the lock file alone. Nothing that is there is changed: a folder with packages of
    its user's is left as it is.
    """
    root = env.get("XDG_CONFIG_HOME") or _home_in(env) / ".config"
    folder = Path(root) / "opencode"
    if any((folder / name).exists() for name in ("node_modules", "package.json", "bun.lock")):
        return
    with suppress(OSError):
        (folder / "node_modules").mkdir(parents=True)
        lock = {"lockfileVersion": 3, "packages": {"": {"dependencies": {DEPENDENCY: "*"}}}}
        with (folder / "package-lock.json").open("x") as file:
            json.dump(lock, file)


def _home_in(env: Mapping[str, str]) -> Path:
    """Return the home of the process that is to be launched."""
    return Path(env.get("HOME") or Path.home())


def _configured(env: Mapping[str, str], home: Path, project: Path) -> dict[str, Any]:
    """Return what we need to know of all configurations; of two that say the same, the last wins."""
    found: dict[str, Any] = {"provider": {}}
    custom, given = env.get("OPENCODE_CONFIG"), env.get("XDG_CONFIG_HOME")
    user = (Path(given) if given else home / ".config") / "opencode"
    names = ("opencode.json", "opencode.jsonc")
    for path in (
        *(user / name for name in ("config.json", *names)),
        *([Path(custom)] if custom else []),
        *(folder / name for folder in (project, project / ".opencode") for name in names),
    ):
        with suppress(OSError, ValueError):
            text = path.read_text("utf-8-sig")
            _lay_over(found, JsonText(comments=True, trailing_commas=True).parse(text))
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
    if named in PROVIDERS or named in configured["provider"]:
        return named
    known = [*configured["provider"], *(p for p in PROVIDERS if p not in configured["provider"])]
    keys = [
        provider
        for provider in known
        if "apiKey" in dict_of(dict_of(configured["provider"].get(provider)).get("options"))
        or env.get(f"{provider.upper()}_API_KEY")
    ]
    return next(iter([*keys, *configured["provider"]]), "anthropic")


def _family(configured: Mapping[str, Any], provider: str) -> str:
    """Return what our gateway calls the API that a provider speaks, be it known by name or not."""
    if provider in PROVIDERS:
        return provider
    package = text_of(configured["provider"][provider], "npm") or ""
    return "anthropic" if package.endswith("anthropic") else "openai"


def _settings_in(env: Mapping[str, str]) -> dict[str, Any]:
    content = env.get("OPENCODE_CONFIG_CONTENT")
    if not content:
        return {}
    settings = parse_object(content.encode("utf-8", "surrogateescape"))
    if isinstance(settings, str):
        raise ValueError(f"OPENCODE_CONFIG_CONTENT: {settings}")
    return settings

"""Where OpenCode sends its requests: its configurations, laid over each other, beat variables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tracebridge.agents.opencode.wiring import PROVIDERS, is_ours
from tracebridge.config_files import ConfigFile, Place, parse_json, read_json
from tracebridge.fields import as_json, dict_of, texts_in
from tracebridge.routing import (
    Answer,
    ByHand,
    InstalledHook,
    Reference,
    Routing,
    Said,
    SetUp,
    answer,
    in_env,
    strongest_first,
)

PROMPT = "Reply with the one word ready"
CONTENT = "OPENCODE_CONFIG_CONTENT"
NAMES = ("opencode.json", "opencode.jsonc")
DEFAULT_URLS = {"anthropic": "https://api.anthropic.com/v1", "openai": "https://api.openai.com/v1"}
PLUGIN_EVENT = "plugin"


def user_folder(place: Place) -> Path:
    given = place.env.get("XDG_CONFIG_HOME")
    return (Path(given) if given else place.home / ".config") / "opencode"


def read_setup(place: Place) -> SetUp:
    """Return the configurations, the weakest first."""
    paths = [user_folder(place) / name for name in ("config.json", *NAMES)]
    if given := place.env.get("OPENCODE_CONFIG"):
        paths.append(Path(given))
    if not place.env.get("OPENCODE_DISABLE_PROJECT_CONFIG"):
        paths += [place.project / name for name in NAMES]
        paths += [place.project / ".opencode" / name for name in NAMES]
    files = {str(path): read_json(path, comments=True, trailing_commas=True) for path in paths}
    if content := place.env.get(CONTENT):
        # No file, but it says the same things in the same manner.
        path = Path(f"${CONTENT}")
        files[CONTENT] = parse_json(path, content)
    return SetUp(place, files)


def scopes(setup: SetUp) -> list[ConfigFile]:
    return list(setup.files.values())


def providers(setup: SetUp) -> list[str]:
    """Return the providers that any configuration names, and those that every OpenCode knows."""
    named = [name for file in scopes(setup) for name in file.table("provider")]
    return list(dict.fromkeys([*named, *PROVIDERS]))


def option(setup: SetUp, provider: str, name: str, *, secret: bool = False) -> Answer:
    said = strongest_first(scopes(setup), "provider", provider, "options", name)
    return Answer(name, said, secret)


def base_url(setup: SetUp, provider: str) -> Answer:
    configured = option(setup, provider, "baseURL").said
    env = in_env(setup.env, f"{provider.upper()}_BASE_URL") if provider in PROVIDERS else None
    return Answer("base URL", (*configured, *answer("", env).said))


def provider_in_use(setup: SetUp) -> str:
    """Return the provider of the model, else the one that there is a key or a base URL for."""
    named = model(setup).value.partition("/")[0]
    if named and "/" in model(setup).value:
        return named
    for provider in providers(setup):
        if setup.env.get(f"{provider.upper()}_API_KEY") or base_url(setup, provider).value:
            return provider
    return "anthropic"


def model(setup: SetUp) -> Answer:
    return Answer("model", strongest_first(scopes(setup), "model"))


def routing(setup: SetUp) -> Routing:
    provider = provider_in_use(setup)
    base = base_url(setup, provider)
    return Routing(
        family=provider if provider in PROVIDERS else "openai",
        base_url=base,
        models_url=f"{base.value.rstrip('/')}/models",
        default_url=DEFAULT_URLS.get(provider, ""),
        model=model(setup),
        keys=(_key(setup, provider),),
        headers=tuple(_headers(setup, provider)),
        timeout_ms=option(setup, provider, "timeout"),
    )


def hooks(setup: SetUp) -> list[InstalledHook]:
    return [hook for file in scopes(setup) for hook in _plugins_in(file)]


def expected_events() -> tuple[str, ...]:
    return (PLUGIN_EVENT,)


def one_turn(options: Sequence[str]) -> list[str]:
    # One argument with spaces in it would reach the model in quotation marks.
    return ["run", *options, *PROMPT.split()]


def by_hand(routes: Mapping[str, str], key_variable: str | None) -> ByHand:
    # What its own client appends to a base URL has no version for Anthropic, unlike Claude Code's.
    versions = {"anthropic": "/v1", "openai": ""}
    options = {
        provider: {"baseURL": routes[provider] + version}
        for provider, version in versions.items()
        if provider in routes
    }
    if not options:
        return ByHand({})
    # Not by ANTHROPIC_BASE_URL: Claude Code reads the same, and wants it without /v1.
    content = {"provider": {name: {"options": each} for name, each in options.items()}}
    env: dict[str, str | Reference] = {CONTENT: as_json(content) or ""}
    if key_variable is not None:
        env |= {f"{name.upper()}_API_KEY": Reference(key_variable) for name in options}
    return ByHand(env)


def _key(setup: SetUp, provider: str) -> Answer:
    configured = [_resolved(setup, said) for said in option(setup, provider, "apiKey").said]
    name = f"{provider.upper()}_API_KEY"
    return answer(name, *configured, in_env(setup.env, name), secret=True)


def _resolved(setup: SetUp, said: Said) -> Said | None:
    """Return what stands behind a reference to a variable; of one to a file, only where it is."""
    if found := re.fullmatch(r"\{env:(\w+)\}", said.value):
        return in_env(setup.env, found[1])
    return said


def _headers(setup: SetUp, provider: str) -> Iterator[Answer]:
    keys = ("provider", provider, "options", "headers")
    names = dict.fromkeys(name for file in scopes(setup) for name in file.table(*keys))
    for name in names:
        yield Answer(name, strongest_first(scopes(setup), *keys, name), secret=True)


def _plugins_in(file: ConfigFile) -> Iterator[InstalledHook]:
    plugins = file.at("plugin")
    for place, plugin in enumerate(plugins if isinstance(plugins, list) else ()):
        if is_ours(plugin):
            words = tuple(texts_in(dict_of(plugin[1]).get("hook")))
            keys = ("plugin", place)
            yield InstalledHook(file, keys, PLUGIN_EVENT, words, {"plugin": plugin[0]})

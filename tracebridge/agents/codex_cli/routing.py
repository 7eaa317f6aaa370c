"""Where Codex sends its requests: its config.toml alone says so; keys come from variables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracebridge.agents._installed import installed_hooks
from tracebridge.agents.codex_cli.wiring import EVENTS
from tracebridge.config_files import Place, read_json, read_toml
from tracebridge.fields import dict_of, text_of
from tracebridge.routing import (
    Answer,
    ByHand,
    InstalledHook,
    Routing,
    SetUp,
    answer,
    in_env,
    in_file,
)

PROMPT = "Reply with the one word ready"
OWN_PROVIDER = "openai"
OWN_URL = "https://api.openai.com/v1"


def config_folder(place: Place) -> Path:
    given = place.env.get("CODEX_HOME")
    return Path(given) if given else place.home / ".codex"


def read_setup(place: Place) -> SetUp:
    folder, project = config_folder(place), place.project / ".codex"
    files = {
        "config": read_toml(folder / "config.toml"),
        "hooks": read_json(folder / "hooks.json"),
    }
    if project != folder:
        files["project hooks"] = read_json(project / "hooks.json")
    return SetUp(place, files)


def provider_name(setup: SetUp) -> str:
    return _chosen(setup, "model_provider").value or OWN_PROVIDER


def routing(setup: SetUp) -> Routing:
    config, name = setup.files["config"], provider_name(setup)
    provider = ("model_providers", name)
    base = answer("base URL", in_file(config, *provider, "base_url"))
    keys: list[Answer] = []
    if named := text_of(dict(config.table(*provider)), "env_key"):
        keys.append(answer(named, in_env(setup.env, named), secret=True))
    bearer = in_file(config, *provider, "experimental_bearer_token")
    keys.append(answer("experimental_bearer_token", bearer, secret=True))
    keys.append(answer("auth.command", in_file(config, *provider, "auth", "command"), secret=True))
    if name == OWN_PROVIDER:
        base = Answer(
            "base URL", (*base.said, *answer("", in_file(config, "openai_base_url")).said)
        )
        keys.append(answer("OPENAI_API_KEY", in_env(setup.env, "OPENAI_API_KEY"), secret=True))
    return Routing(
        family="openai",
        base_url=base,
        models_url=f"{base.value.rstrip('/')}/models",
        default_url=OWN_URL if name == OWN_PROVIDER else "",
        model=_chosen(setup, "model"),
        keys=tuple(keys),
        headers=tuple(_headers(setup, provider)),
    )


def hooks(setup: SetUp) -> list[InstalledHook]:
    files = [file for name, file in setup.files.items() if name.endswith("hooks")]
    return installed_hooks(files)


def expected_events() -> tuple[str, ...]:
    return EVENTS


def one_turn(options: Sequence[str]) -> list[str]:
    return ["exec", "--skip-git-repo-check", *options, PROMPT]


def by_hand(routes: Mapping[str, str], key_variable: str | None) -> ByHand:
    if "openai" not in routes:
        return ByHand({})
    url = routes["openai"]
    if key_variable is None:
        return ByHand({}, ("-c", f"openai_base_url={json.dumps(url)}"))
    provider = (
        f'{{name="gateway", base_url={json.dumps(url)}, wire_api="responses",'
        f" env_key={json.dumps(key_variable)}}}"
    )
    # It reads the variable itself.
    return ByHand(
        {}, ("-c", f"model_providers.gateway={provider}", "-c", 'model_provider="gateway"')
    )


def trust(setup: SetUp, hook: InstalledHook) -> str:
    """Return whether Codex runs a hook: "trusted", "untrusted", or "modified" since it was."""
    event, group, number = hook.keys[1], hook.keys[2], hook.keys[4]
    # Codex may name the file by the path that a link leads to.
    paths = dict.fromkeys([hook.file.path, hook.file.path.resolve()])
    keys = [f"{path}:{_snake(str(event))}:{group}:{number}" for path in paths]
    hashes = (setup.files["config"].at("hooks", "state", key, "trusted_hash") for key in keys)
    known = next((each for each in hashes if each is not None), None)
    if known is None:
        return "untrusted"
    matcher = dict_of(hook.file.at("hooks", str(event))[int(group)]).get("matcher")
    return "trusted" if known == hook_hash(str(event), matcher, hook.entry) else "modified"


def hook_hash(event: str, matcher: object, entry: Mapping[str, Any]) -> str:
    """Return what Codex 0.169 writes down when its user approves a hook."""
    handler = {"async": False, **entry}
    identity: dict[str, Any] = {"event_name": _snake(event), "hooks": [handler]}
    if matcher is not None:
        identity["matcher"] = matcher
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(canonical.encode('utf-8', 'replace')).hexdigest()}"


def _chosen(setup: SetUp, key: str) -> Answer:
    """Return what is said about *key*: by the profile in use, else at the top of the file."""
    config = setup.files["config"]
    profile = text_of(dict(config.values), "profile")
    in_profile = in_file(config, "profiles", profile, key) if profile else None
    return answer(key, in_profile, in_file(config, key))


def _headers(setup: SetUp, provider: tuple[str, str]) -> Iterator[Answer]:
    config = setup.files["config"]
    for name in config.table(*provider, "http_headers"):
        yield answer(name, in_file(config, *provider, "http_headers", name), secret=True)
    for name, variable in config.table(*provider, "env_http_headers").items():
        if isinstance(variable, str):
            yield answer(name, in_env(setup.env, variable), secret=True)


def _snake(event: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in event).lstrip("_")

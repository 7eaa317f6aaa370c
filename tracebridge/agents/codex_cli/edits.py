"""What `integrate` writes for Codex: hooks, `notify`, a model provider, and trust if asked for.

Codex takes providers and `notify` from the user's config.toml alone, never from a project's.
`notify` is one command: ours calls the one that was there with what Codex told. Unlike hooks it
needs no approval, so Codex's turns are told even where nobody approved the hooks.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from tracebridge.agents import Edit, Wish
from tracebridge.agents._hooks import is_hooked, unhook_changes
from tracebridge.agents.codex_cli.trust import hook_hashes
from tracebridge.agents.codex_cli.wiring import wire_changes
from tracebridge.edits import Change, Delete, Put, changed
from tracebridge.edits.json_text import JsonText
from tracebridge.edits.toml_text import TomlText
from tracebridge.fields import texts_in
from tracebridge.keys import parse_reference, shell_command

PROVIDER = "respan"
_OWN_PROVIDER = "openai"
NOTIFY = "tracebridge_notify.sh"
# Before the command that was there: the shell, our script, and its own four arguments.
_OURS_BEFORE_THEIRS = 6


def settings_folder(wish: Wish) -> Path:
    return wish.project / ".codex" if wish.scope == "local" else _user_folder(wish)


def edits(wish: Wish) -> Iterable[Edit]:
    if wish.scope == "local" and (wish.routes or wish.headers or wish.model):
        raise ValueError(
            "Codex takes providers from the user's config.toml alone, not from a project's; "
            "use --global for the gateway"
        )
    if wish.traceparent:
        raise ValueError("--traceparent is Claude Code's; Codex names the turn in each request")
    hooks = settings_folder(wish) / "hooks.json"

    def wire_hooks(settings: Mapping[str, Any]) -> Iterator[Change]:
        yield from wire_changes(settings, wish.commands)

    def wire_config(settings: Mapping[str, Any]) -> Iterator[Change]:
        if wish.scope == "global":
            yield from _notify(settings, wish.commands["hook"])
            yield from _routing(settings, wish)
        if wish.trust_hooks:
            for key, trusted in _trust(hooks, wish).items():
                yield Put(("hooks", "state", key, "trusted_hash"), trusted)

    def unwire_config(settings: Mapping[str, Any]) -> Iterator[Change]:
        notify = settings.get("notify")
        if is_our_notify(notify):
            theirs = texts_in(notify)[_OURS_BEFORE_THEIRS:]
            yield Put(("notify",), theirs) if theirs else Delete(("notify",))

    yield Edit(path=hooks, form=JsonText(), wire=wire_hooks, unwire=unhook_changes)
    yield Edit(
        path=_user_folder(wish) / "config.toml",
        form=TomlText(),
        wire=wire_config,
        unwire=unwire_config if wish.scope == "global" else lambda _: (),
    )


def remarks(wish: Wish) -> Iterator[str]:
    if not wish.trust_hooks:
        yield (
            "Codex runs hooks once you approve them: start `codex`, type /hooks and trust those of "
            "tracebridge; until then turns are told by `notify` and the rollout, without your tags"
        )
    if wish.scope == "local" and _has_our_hooks(_user_folder(wish) / "hooks.json"):
        yield (
            f"hooks stand in {_user_folder(wish) / 'hooks.json'} too: each event is told twice in "
            "this project; take these out with --remove --local"
        )


def is_our_notify(notify: Any) -> bool:
    words = texts_in(notify)
    return len(words) >= _OURS_BEFORE_THEIRS and PurePath(words[1]).name == NOTIFY


def _notify(settings: Mapping[str, Any], hook_command: str) -> Iterator[Change]:
    theirs = settings.get("notify", [])
    if not isinstance(theirs, list) or theirs != texts_in(theirs):
        raise ValueError('"notify" is not a list of words')
    if is_our_notify(theirs):
        theirs = theirs[_OURS_BEFORE_THEIRS:]
    python, *_, hook, agent, home = shlex.split(hook_command)
    script = str(Path(hook).with_name(NOTIFY))
    yield Put(("notify",), ["/bin/sh", script, python, hook, agent, home, *theirs])


def _routing(settings: Mapping[str, Any], wish: Wish) -> Iterator[Change]:
    if "openai" in wish.routes:
        base_url = wish.routes["openai"]
        used = settings.get("model_provider") or _OWN_PROVIDER
        if wish.key is None and used != _OWN_PROVIDER:
            # The user's own provider, with its key.
            provider = ("model_providers", str(used))
            yield Put((*provider, "base_url"), base_url)
            for name, value in wish.headers.items():
                yield Put((*provider, "http_headers", name), value)
        elif wish.key is None and not wish.headers:
            # Whatever Codex is logged in with.
            yield Put(("openai_base_url",), base_url)
        else:
            yield Put(("model_provider",), PROVIDER)
            yield Put(("model_providers", PROVIDER), _our_provider(base_url, wish))
    if wish.model is not None:
        yield Put(("model",), wish.model)


def _our_provider(base_url: str, wish: Wish) -> dict[str, Any]:
    headers = {"http_headers": dict(wish.headers)} if wish.headers else {}
    return {
        "name": "Respan",
        "base_url": base_url,
        "wire_api": "responses",
        **_credentials(wish.key or "ENV:OPENAI_API_KEY"),
        **headers,
    }


def _credentials(reference: str) -> dict[str, Any]:
    kind, rest = parse_reference(reference)
    if kind == "ENV":
        return {"env_key": rest}
    # What the command prints is sent as a bearer token.
    return {"auth": {"command": "/bin/sh", "args": ["-c", shell_command(reference)]}}


def _trust(hooks: Path, wish: Wish) -> Mapping[str, str]:
    """Return by Codex's key what approves our hooks as they will stand in *hooks*."""
    written = JsonText().parse(hooks.read_text("utf-8-sig")) if hooks.exists() else {}
    wired = changed(written, wire_changes(written, wish.commands))
    return hook_hashes(wired, hooks, wish.env)


def _has_our_hooks(path: Path) -> bool:
    try:
        return is_hooked(JsonText().parse(path.read_text("utf-8-sig")))
    except (OSError, ValueError):
        return False


def _user_folder(wish: Wish) -> Path:
    given = wish.env.get("CODEX_HOME")
    return Path(given) if given else wish.home / ".codex"

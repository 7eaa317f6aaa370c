"""Traps of OpenCode's configuration, each seen with 1.18.33."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from urllib.parse import urlsplit

from tracebridge.agents.opencode.routing import (
    base_url,
    model,
    option,
    provider_in_use,
    providers,
    user_folder,
)
from tracebridge.agents.opencode.wiring import prepare
from tracebridge.checks import AgentLook, Change, Finding, Fix, rule
from tracebridge.route import shown
from tracebridge.routing import Source
from tracebridge.sinks import without_secrets


@rule("opencode-anthropic-without-v1", joint="turn")
def anthropic_without_v1(look: AgentLook) -> Iterator[Finding]:
    """The base URL of OpenCode's Anthropic does not end in /v1.

    OpenCode adds /messages alone, where Claude Code adds /v1/messages: the one's base URL does not
    do for the other.
    """
    base = base_url(look.setup, "anthropic")
    if not base.won or not base.value or base.value.rstrip("/").endswith("/v1"):
        return
    better = base.value.rstrip("/") + "/v1"
    source = base.won.source
    used = provider_in_use(look.setup) == "anthropic"
    # The variable may be Claude Code's; where another provider is in use, nobody is misled.
    if source.file is None and not used:
        return
    path = urlsplit(base.value).path.rstrip("/")
    yield Finding(
        problem=f"{shown(base)} makes requests to {path}/messages",
        at=(source,),
        remedy="end it in /v1"
        if source.file
        else "set provider.anthropic.options.baseURL in opencode.json, which beats the variable",
        command=None if source.file else "tracebridge integrate opencode --gateway URL",
        fix=Fix((Change(source.file, source.keys, better),))
        if source.file is not None and source.file.format is not None
        else None,
    )


@rule("opencode-key-in-config", joint="turn")
def key_in_config(look: AgentLook) -> Iterator[Finding]:
    """The configuration has an `apiKey` for Anthropic.

    Requests then lose the `anthropic-beta` header, and with it interleaved thinking. With the key
    in ANTHROPIC_API_KEY and only the base URL in the configuration they keep it.
    """
    key = option(look.setup, "anthropic", "apiKey", secret=True)
    if key.won is not None and provider_in_use(look.setup) == "anthropic":
        source = key.won.source
        yield Finding(
            problem="apiKey stands in the configuration",
            at=(source,),
            remedy="export it as ANTHROPIC_API_KEY and take it out",
            fix=Fix((Change(source.file, source.keys, None),), safe=False)
            if source.file is not None and source.file.format is not None
            else None,
        )


@rule("opencode-model-prefix", joint="turn")
def model_prefix(look: AgentLook) -> Iterator[Finding]:
    """The model's name has no provider in front.

    OpenCode wants `provider/model` and ends with an error that does not say so.
    """
    won = model(look.setup).won
    if won is not None and won.value and "/" not in won.value:
        source = won.source
        better = f"{provider_in_use(look.setup)}/{won.value}"
        yield Finding(
            problem=f"{won.value} names no provider",
            at=(source,),
            remedy=f"write {better}, if that is the provider",
            fix=Fix((Change(source.file, source.keys, better),), safe=False)
            if source.file is not None and source.file.format is not None
            else None,
        )


@rule("opencode-model-past-gateway", joint="gateway")
def model_past_gateway(look: AgentLook) -> Iterator[Finding]:
    """The model's provider is another one than those with a base URL.

    Its requests go to the vendor, past the gateway that the others go through.
    """
    used, won = provider_in_use(look.setup), model(look.setup).won
    routed = [name for name in providers(look.setup) if base_url(look.setup, name).value]
    from_files = [n for n in routed if (w := base_url(look.setup, n).won) and w.source.file]
    if won is not None and "/" in won.value and from_files and used not in routed:
        yield Finding(
            problem=f"{won.value} goes to {used} itself; only {', '.join(from_files)} has a base URL",
            at=(won.source,),
            remedy=f"give {used} a base URL, too, or choose a model of {from_files[0]}",
        )


@rule("opencode-plugins-off", joint="hooks")
def plugins_off(look: AgentLook) -> Iterator[Finding]:
    """OPENCODE_PURE is set: OpenCode loads no plugin.

    Neither ours nor anybody else's. Turns are then read from its database when a gateway saw them.
    """
    if look.setup.env.get("OPENCODE_PURE") not in {None, "", "0", "false"} and look.hooks:
        yield Finding(
            problem="no plugin is loaded",
            at=(Source(variable="OPENCODE_PURE"),),
            remedy="unset it",
            command="unset OPENCODE_PURE",
        )


@rule("opencode-slow-start", joint="turn")
def slow_start(look: AgentLook) -> Iterator[Finding]:
    """OpenCode would look for a package at each start.

    With any plugin it installs a package of its own beside the configuration, and where no registry
    can be reached each start takes 70 seconds longer, for ever. What spares it that is missing.
    """
    folder = user_folder(look.place)
    own = [hook for hook in look.hooks if hook.file.path.parent == folder]
    if own and not (folder / "package-lock.json").exists():
        bare = not any((folder / name).exists() for name in ("node_modules", "package.json"))
        yield Finding(
            problem=f"{look.place.shown(folder)} has no package-lock.json",
            at=(folder,),
            remedy="have it made" if bare else "let npm make it, once",
            command=None if bare else f"npm install --prefix {shlex.quote(str(folder))}",
            fix=Fix(run=lambda: prepare(look.setup.env)) if bare else None,
            note=True,
        )


@rule("opencode-own-spans", joint="sink")
def own_spans(look: AgentLook) -> Iterator[Finding]:
    """OTEL_EXPORTER_OTLP_ENDPOINT is exported by the shell, and OpenCode takes it for its own.

    It then sends hundreds of spans of its inner life for each turn to the same backend, in traces
    of their own. What stands in our config.toml, below [env], only we read.
    """
    name = "OTEL_EXPORTER_OTLP_ENDPOINT"
    if look.hooks and look.setup.env.get(name):
        yield Finding(
            problem=f"OpenCode exports to {without_secrets(look.setup.env[name])}, too",
            at=(Source(variable=name),),
            remedy="write it into our config.toml, below [env], and unset it",
            command=f"unset {name}",
            note=True,
        )

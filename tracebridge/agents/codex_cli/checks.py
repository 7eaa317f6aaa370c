"""Traps of Codex's settings, each seen with 0.169.0."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tracebridge.agents.codex_cli.routing import OWN_PROVIDER, provider_name, trust
from tracebridge.checks import AgentLook, Change, Finding, Fix, rule
from tracebridge.fields import text_of
from tracebridge.routing import Source, mask
from tracebridge.scrub import scrub_text

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@rule("codex-env-key-is-a-key", joint="turn")
def env_key_is_a_key(look: AgentLook) -> Iterator[Finding]:
    """`env_key` holds a key, where the name of a variable belongs.

    Codex looks for a variable of that name, finds none, and says so with the key in the message.
    """
    config = look.setup.files["config"]
    for name in config.table("model_providers"):
        keys = ("model_providers", name, "env_key")
        value = config.at(*keys)
        if not isinstance(value, str) or _is_name(value):
            continue
        variable = re.sub(r"\W+", "_", name).upper() + "_API_KEY"
        yield Finding(
            problem=f"env_key of {name} is {mask(value)}, not the name of a variable",
            at=(Source(config, keys),),
            remedy=f"name a variable, {variable} say, and export the key under it",
            fix=Fix((Change(config, keys, variable),), safe=False),
        )


@rule("codex-env-key-unset", joint="turn")
def env_key_unset(look: AgentLook) -> Iterator[Finding]:
    """The variable that `env_key` names is not set here.

    Codex does not start a turn without it.
    """
    config, name = look.setup.files["config"], provider_name(look.setup)
    keys = ("model_providers", name, "env_key")
    value = text_of(dict(config.table("model_providers", name)), "env_key")
    if value and _is_name(value) and not look.setup.env.get(value):
        yield Finding(
            problem=f"${value} is not set",
            at=(Source(config, keys),),
            remedy="export it, where your shell starts",
            command=f"export {value}=…",
        )


@rule("codex-wire-api-chat", joint="turn")
def wire_api_chat(look: AgentLook) -> Iterator[Finding]:
    """`wire_api` is "chat", which Codex does not speak any more.

    Older guides still have it. Codex refuses to start.
    """
    config = look.setup.files["config"]
    for name in config.table("model_providers"):
        keys = ("model_providers", name, "wire_api")
        if config.at(*keys) == "chat":
            yield Finding(
                problem=f'{name} has wire_api = "chat"',
                at=(Source(config, keys),),
                remedy='let it be "responses"',
                fix=Fix((Change(config, keys, "responses"),)),
            )


@rule("codex-provider-missing", joint="turn")
def provider_missing(look: AgentLook) -> Iterator[Finding]:
    """`model_provider` names a provider that is not in the file.

    Codex does not start.
    """
    config, name = look.setup.files["config"], provider_name(look.setup)
    own = {OWN_PROVIDER, "ollama", "lmstudio", "oss", "amazon-bedrock"}
    if name not in own and name not in config.table("model_providers") and config.problem is None:
        yield Finding(
            problem=f"there is no [model_providers.{name}]",
            at=(Source(config, ("model_provider",)),),
            remedy="write it, or name another provider",
            command="tracebridge integrate codex-cli --gateway URL",
        )


@rule("codex-hooks-untrusted", joint="hooks")
def hooks_untrusted(look: AgentLook) -> Iterator[Finding]:
    """Our hooks are installed, and nobody has approved them in Codex.

    Codex passes over them without a word. A turn still comes out right, once it is known of: from
    the rollout file, when a gateway saw its calls.
    """
    waiting = [hook for hook in look.hooks if trust(look.setup, hook) == "untrusted"]
    if waiting:
        yield Finding(
            problem=f"{len(waiting)} of {len(look.hooks)} hooks are not approved:"
            f" {', '.join(hook.event for hook in waiting)}",
            at=(waiting[0].source,),
            remedy="start codex, type /hooks, look at them and approve them",
            command="codex",
        )


@rule("codex-hooks-edited", joint="hooks")
def hooks_edited(look: AgentLook) -> Iterator[Finding]:
    """A hook of ours is another one than was approved.

    An approval is for one very command; after any change, ours included, Codex passes over the hook
    without a word until it is approved again.
    """
    edited = [hook for hook in look.hooks if trust(look.setup, hook) == "modified"]
    if edited:
        yield Finding(
            problem=f"changed since they were approved: {', '.join(hook.event for hook in edited)}",
            at=(edited[0].source,),
            remedy="start codex, type /hooks, look at them and approve them",
            command="codex",
        )


@rule("codex-hooks-off", joint="hooks")
def hooks_off(look: AgentLook) -> Iterator[Finding]:
    """Hooks are switched off in Codex's features.

    No hook runs, and Codex does not say so.
    """
    config = look.setup.files["config"]
    if config.at("features", "hooks") is False and (look.hooks or look.asked):
        yield Finding(
            problem="features.hooks is false",
            at=(Source(config, ("features", "hooks")),),
            remedy="take it out",
            fix=Fix((Change(config, ("features", "hooks"), None),), safe=False),
        )


@rule("codex-no-reasoning-summary", joint="link")
def no_reasoning_summary(look: AgentLook) -> Iterator[Finding]:
    """Codex does not ask this provider for summaries of what the model thinks.

    Of a provider that is not OpenAI itself it asks for none unless told to, and thinking spans are
    empty.
    """
    config = look.setup.files["config"]
    if (
        provider_name(look.setup) != OWN_PROVIDER
        and config.at("model_reasoning_summary") is None
        and look.hooks
    ):
        yield Finding(
            problem="model_reasoning_summary is not set",
            at=(Source(config),),
            remedy='write model_reasoning_summary = "auto"',
            fix=Fix((Change(config, ("model_reasoning_summary",), "auto"),), safe=False),
            note=True,
        )


@rule("codex-tags-in-shell", joint="link")
def tags_in_shell(look: AgentLook) -> Iterator[Finding]:
    """Tags are exported by the shell, and Codex in a terminal does not see them.

    Its hooks run in a server that all terminals share and that outlives them; it has the
    environment of whoever started it first. `codex exec` is not concerned.
    """
    prefixes = ("RESPAN_", "TRACEBRIDGE_")
    words = ("CUSTOMER_ID", "METADATA", "WORKFLOW_NAME", "SPAN_NAME", "PROJECT_ID")
    given = [f"{p}{w}" for p in prefixes for w in words if look.setup.env.get(f"{p}{w}")]
    file = look.place.project / ".codex" / "respan.json"
    if given and look.hooks and not file.exists():
        yield Finding(
            problem=f"{', '.join(given)} may not reach the hooks",
            at=tuple(Source(variable=name) for name in given),
            remedy=f"write them into {look.place.shown(file)}, too",
            note=True,
        )


def _is_name(value: str) -> bool:
    looks_like_a_key = scrub_text(f'"{value}"') != f'"{value}"' or value.startswith(("sk_", "sk-"))
    return bool(_VARIABLE.fullmatch(value)) and not looks_like_a_key

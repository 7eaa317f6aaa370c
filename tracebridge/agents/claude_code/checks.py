"""Traps of Claude Code's settings, each seen with 2.1.329."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import orjson

from tracebridge.agents.claude_code.routing import (
    API_KEY,
    BASE_URL,
    HEADERS,
    TOKEN,
    plugin,
    scopes,
    variable,
)
from tracebridge.agents.claude_code.wiring import HINT_HEADERS, HOT_EVENTS
from tracebridge.checks import AgentLook, Change, Finding, Fix, rule
from tracebridge.config_files import ConfigFile
from tracebridge.edits import KeyPath
from tracebridge.fields import texts_in
from tracebridge.route import shown
from tracebridge.routing import Answer, Said, Source, in_file
from tracebridge.sinks import SinkSettingsError, configured_sinks

NOWHERE = "http://127.0.0.1:9/v1/traces"
# Claude Code remembers an approved key by its end.
KEY_END = 20
TELEMETRY, TRACES = "CLAUDE_CODE_ENABLE_TELEMETRY", "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA"
EXPORTER, PROPAGATE = "OTEL_TRACES_EXPORTER", "CLAUDE_CODE_PROPAGATE_TRACEPARENT"


@rule("claude-two-credentials", joint="turn")
def two_credentials(look: AgentLook) -> Iterator[Finding]:
    """ANTHROPIC_API_KEY and ANTHROPIC_AUTH_TOKEN are both set.

    Each request carries both, as `x-api-key` and as `Authorization`, and the gateway takes
    whichever it looks at first. An empty value is not sent.
    """
    key, token = _variable(look, API_KEY), _variable(look, TOKEN)
    if key.won and token.won and key.value and token.value:
        yield Finding(
            problem="both credentials are sent with each request",
            at=(key.won.source, token.won.source),
            remedy=f'let {TOKEN} be "" in the settings, so that only the key is sent',
            command=f"unset {TOKEN}" if token.won.source.variable else None,
            fix=_put(_settings_of(look, token.won, key.won), ("env", TOKEN), "", safe=False),
        )


@rule("claude-token-in-shell", joint="turn")
def token_in_shell(look: AgentLook) -> Iterator[Finding]:
    """The shell exports a token, and settings send requests to a gateway.

    The gateway gets a token that is not for it. The settings' `env` can silence it with "".
    """
    token, base = _variable(look, TOKEN), _variable(look, BASE_URL)
    if token.won and token.value and token.won.source.variable and base.won and base.value:
        yield Finding(
            problem=f"{TOKEN} of the shell goes to {shown(base)}",
            at=(token.won.source, base.won.source),
            remedy=f'unset it, or let it be "" where {BASE_URL} is set',
            command=f"unset {TOKEN}" if base.won.source.file is None else None,
            # With nothing else to send it would be the only credential there is.
            fix=_put(base.won.source.file, ("env", TOKEN), "", safe=False),
        )


@rule("claude-helper-and-key", joint="turn")
def helper_and_key(look: AgentLook) -> Iterator[Finding]:
    """`apiKeyHelper` is set beside a key or a token.

    What the helper prints goes into one header and the variable into the other: two credentials.
    """
    helper = look.routing.keys[2]
    others = [key for key in look.routing.keys[:2] if key.value]
    if helper.won and helper.value and others and others[0].won:
        yield Finding(
            problem=f"apiKeyHelper and {others[0].name} are both used",
            at=(helper.won.source, others[0].won.source),
            remedy="keep one of the two",
            fix=_drop(helper.won, safe=False),
        )


@rule("claude-key-not-approved", joint="turn")
def key_not_approved(look: AgentLook) -> Iterator[Finding]:
    """Claude Code was not allowed to use this API key.

    Started in a terminal it asks once about a key of one's own and remembers the answer. A key that
    was refused is passed over without a word; `claude -p` uses it all the same.
    """
    key, state = _variable(look, API_KEY), look.setup.files["state"]
    if key.won is None or len(key.value) < KEY_END:
        return
    end = key.value[-KEY_END:]
    answers = state.table("customApiKeyResponses")
    approved, rejected = (texts_in(answers.get(name)) for name in ("approved", "rejected"))
    if end in approved or (end not in rejected and not state.exists):
        return
    allowed = Change(state, ("customApiKeyResponses", "approved"), [*approved, end])
    others = [each for each in rejected if each != end]
    freed = Change(state, ("customApiKeyResponses", "rejected"), others)
    refused = end in rejected
    yield Finding(
        problem="the key was refused when Claude Code asked"
        if refused
        else "Claude Code will ask about the key at its next start in a terminal",
        at=(key.won.source, Source(state, ("customApiKeyResponses",))),
        remedy="allow it: in Claude Code by /config, “Use custom API key”",
        fix=Fix((allowed, freed), safe=False) if state.format is not None else None,
        note=not refused,
    )


@rule("claude-base-url-v1", joint="turn")
def base_url_v1(look: AgentLook) -> Iterator[Finding]:
    """The base URL ends in /v1, and Claude Code adds /v1/messages to it.

    Requests go to /v1/v1/messages, which no gateway knows. The base URL stands without it.
    """
    base = look.routing.base_url
    if base.won and base.value.rstrip("/").endswith("/v1"):
        better = base.value.rstrip("/").removesuffix("/v1")
        yield Finding(
            problem=f"{shown(base)} makes requests to /v1/v1/messages",
            at=(base.won.source,),
            remedy="leave /v1 away",
            command=_export(base.won, BASE_URL, better),
            fix=_put(base.won.source.file, base.won.source.keys, better),
        )


@rule("claude-base-url-slashes", joint="turn")
def base_url_slashes(look: AgentLook) -> Iterator[Finding]:
    """The base URL ends in more than one slash.

    One is harmless; of two, one stays in the path (//v1/messages), and many gateways answer 404.
    """
    base = look.routing.base_url
    if base.won and base.value.endswith("//") and not base.value.rstrip("/").endswith("/v1"):
        better = base.value.rstrip("/")
        yield Finding(
            problem=f"{shown(base)} makes requests to //v1/messages",
            at=(base.won.source,),
            remedy="leave the slashes away",
            command=_export(base.won, BASE_URL, better),
            fix=_put(base.won.source.file, base.won.source.keys, better),
        )


@rule("claude-timeout-name", joint="turn")
def timeout_name(look: AgentLook) -> Iterator[Finding]:
    """ANTHROPIC_TIMEOUT_MS is set, which Claude Code does not know.

    A guide that is passed around invented it. The real name is API_TIMEOUT_MS.
    """
    invented = _variable(look, "ANTHROPIC_TIMEOUT_MS")
    if invented.won is not None:
        file, keys = invented.won.source.file, invented.won.source.keys
        fix = None
        if file is not None:
            renamed = Change(file, ("env", "API_TIMEOUT_MS"), invented.value)
            known = in_file(file, "env", "API_TIMEOUT_MS") is not None
            fix = Fix((*(() if known else (renamed,)), Change(file, keys, None)))
        yield Finding(
            problem="ANTHROPIC_TIMEOUT_MS is not read by anything",
            at=(invented.won.source,),
            remedy="name it API_TIMEOUT_MS",
            command=None
            if file
            else f"export API_TIMEOUT_MS={shlex.quote(invented.value)}; unset ANTHROPIC_TIMEOUT_MS",
            fix=fix,
        )


@rule("claude-routing-fiction", joint="turn")
def routing_fiction(look: AgentLook) -> Iterator[Finding]:
    """The settings have a `routing` section, which Claude Code does not know.

    A guide that is passed around invented it. Requests go where they would go without it.
    """
    for file in scopes(look.setup):
        if "routing" in file.values:
            yield Finding(
                problem="`routing` is not read by anything",
                at=(Source(file, ("routing",)),),
                remedy=f"take it out, and set {BASE_URL} in `env`",
                fix=Fix((Change(file, ("routing",), None),), safe=False),
            )


@rule("claude-hooks-disabled", joint="hooks")
def hooks_disabled(look: AgentLook) -> Iterator[Finding]:
    """`disableAllHooks` is true, so that no hook runs.

    Neither ours nor anybody else's; Claude Code does not say so.
    """
    for file in scopes(look.setup):
        if file.at("disableAllHooks") is True and (look.hooks or look.asked):
            managed = file is look.setup.files.get("managed")
            yield Finding(
                problem="all hooks are switched off",
                at=(Source(file, ("disableAllHooks",)),),
                remedy="ask your administrator" if managed else "take it out",
                fix=None
                if managed
                else Fix((Change(file, ("disableAllHooks",), None),), safe=False),
            )


@rule("claude-managed-hooks-only", joint="hooks")
def managed_hooks_only(look: AgentLook) -> Iterator[Finding]:
    """Managed settings allow managed hooks only.

    Hooks of users and projects are passed over. The gateway still sees all calls.
    """
    managed = look.setup.files["managed"]
    if managed.at("allowManagedHooksOnly") is True and (look.hooks or look.asked):
        yield Finding(
            problem="hooks of users are not run",
            at=(Source(managed, ("allowManagedHooksOnly",)),),
            remedy="have the administrator put our hooks into the managed settings",
            command="tracebridge integrate claude-code --dry-run",
        )


@rule("claude-tool-hooks-missing", joint="hooks")
def tool_hooks_missing(look: AgentLook) -> Iterator[Finding]:
    """Hooks at tool calls are gone, and nobody asked for a light integration.

    Somebody took them out. Tools are told by the transcript then, later and without their approvals'
    times, and not at all where there is none.
    """
    there = {hook.event for hook in look.hooks}
    absent = [event for event in HOT_EVENTS if event not in there]
    # Settings may come from another machine: there nobody remembers what was asked for.
    looks_light = len(absent) == len(HOT_EVENTS)
    if there and absent and not look.machine.light.get(look.slug, looks_light):
        yield Finding(
            problem=f"no hook of ours for {', '.join(absent)}",
            at=(Source(look.hooks[0].file, ("hooks",)),),
            remedy="install them again, or leave all three out with --light",
            command=f"tracebridge integrate {look.slug} --full",
        )


@rule("claude-hint-headers-off", joint="link")
def hint_headers_off(look: AgentLook) -> Iterator[Finding]:
    """Requests do not carry the id of their turn.

    With CLAUDE_CODE_GATEWAY_HINT_HEADERS=1 they do, and each is linked exactly, failed attempts
    included. Without, links wait for the transcript.
    """
    hints = _variable(look, HINT_HEADERS)
    # A plugin of ours brings hooks, but cannot set a variable.
    hooked = look.hooks or plugin(look.setup) is not None
    if hooked and look.routing.is_custom and hints.value not in {"1", "true"}:
        file = hints.won.source.file if hints.won else look.setup.files["user"]
        yield Finding(
            problem=f"{HINT_HEADERS} is {hints.value or 'not set'}",
            at=(hints.won.source if hints.won else Source(file, ("env",)),),
            remedy="switch it on",
            fix=_put(file, ("env", HINT_HEADERS), "1"),
            command=None if file else f"export {HINT_HEADERS}=1",
        )


@rule("claude-headers-replaced", joint="turn")
def headers_replaced(look: AgentLook) -> Iterator[Finding]:
    """ANTHROPIC_CUSTOM_HEADERS is set in two places.

    It is one variable: the stronger place replaces the whole list, and the other's headers are
    not sent.
    """
    headers = _variable(look, HEADERS)
    won = headers.won
    lost = [said for said in headers.overruled if not _lines(said.value) <= _lines(headers.value)]
    if won is not None and lost:
        merged = "\n".join(
            dict.fromkeys("\n".join([*(s.value for s in lost), won.value]).split("\n"))
        )
        yield Finding(
            problem=f"only those of {won.source.shown(look.place)} are sent",
            at=(won.source, *(said.source for said in lost)),
            remedy="put all headers there, one a line",
            fix=_put(won.source.file, won.source.keys, merged, safe=False),
        )


@rule("claude-header-without-colon", joint="turn")
def header_without_colon(look: AgentLook) -> Iterator[Finding]:
    """A line of ANTHROPIC_CUSTOM_HEADERS has no colon.

    Such a line is dropped without a word.
    """
    headers = _variable(look, HEADERS)
    bad = [line for line in headers.value.splitlines() if line.strip() and ":" not in line]
    if headers.won is not None and bad:
        yield Finding(
            problem=f"line {headers.value.splitlines().index(bad[0]) + 1} of it has no colon",
            at=(headers.won.source,),
            remedy="write each as `Name: value`, on a line of its own",
        )


@rule("claude-telemetry-in-project", joint="link")
def telemetry_in_project(look: AgentLook) -> Iterator[Finding]:
    """Telemetry is switched on in a project's settings, where it has no effect.

    Claude Code reads those variables from the user's settings and the shell alone.
    """
    names = (TELEMETRY, TRACES, EXPORTER, PROPAGATE)
    file = look.setup.files.get("project")
    there = [name for name in names if file is not None and name in file.table("env")]
    if file is not None and there:
        yield Finding(
            problem=f"{', '.join(there)} do nothing here",
            at=tuple(Source(file, ("env", name)) for name in there),
            remedy="put them into the user's settings",
            fix=Fix(
                (
                    *(_moved(look, file, name) for name in there),
                    *(Change(file, ("env", name), None) for name in there),
                ),
                safe=False,
            ),
        )


@rule("claude-traceparent-incomplete", joint="link")
def traceparent_incomplete(look: AgentLook) -> Iterator[Finding]:
    """Claude Code is to send a traceparent, but only some of the four variables are set.

    It needs all four, and an exporter that exports: without, no request carries one.
    """
    wanted = {TELEMETRY: "1", TRACES: "1", EXPORTER: "otlp", PROPAGATE: "1"}
    if _variable(look, PROPAGATE).value not in {"1", "true"}:
        return
    absent = [n for n in wanted if _variable(look, n).value in {"", "0", "none", "false"}]
    won = _variable(look, PROPAGATE).won
    if absent and won is not None:
        file = won.source.file
        yield Finding(
            problem=f"{', '.join(absent)} is missing",
            at=(won.source,),
            remedy=f"set {', '.join(f'{name}={wanted[name]}' for name in absent)}",
            command="export " + " ".join(f"{n}={wanted[n]}" for n in absent)
            if file is None
            else None,
            fix=Fix(tuple(Change(file, ("env", n), wanted[n]) for n in absent), safe=False)
            if file is not None and file.format is not None
            else None,
        )


@rule("claude-telemetry-console", joint="turn")
def telemetry_console(look: AgentLook) -> Iterator[Finding]:
    """OTEL_TRACES_EXPORTER is `console`: spans are printed among the answers.

    What `claude -p` prints is not the answer alone any more.
    """
    exporter = _variable(look, EXPORTER)
    if "console" in exporter.value and exporter.won and _variable(look, TELEMETRY).value:
        yield Finding(
            problem="spans are printed on standard output",
            at=(exporter.won.source,),
            remedy="use otlp, or take it out",
            command=_export(exporter.won, EXPORTER, "otlp"),
            fix=_put(exporter.won.source.file, exporter.won.source.keys, "otlp", safe=False),
        )


@rule("claude-own-spans", joint="sink")
def own_spans(look: AgentLook) -> Iterator[Finding]:
    """Claude Code exports spans of its own to the backend that gets ours.

    Each turn is there twice, in two traces, and its tokens are counted twice. For a traceparent it
    is enough that it exports anywhere, to a closed port too.
    """
    if not all(_variable(look, n).value in {"1", "true"} for n in (TELEMETRY, TRACES)):
        return
    exporter = _variable(look, EXPORTER)
    endpoint = _variable(look, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not endpoint.value:
        endpoint = _variable(look, "OTEL_EXPORTER_OTLP_ENDPOINT")
    if "otlp" not in exporter.value or endpoint.won is None or not endpoint.value:
        return
    try:
        sinks = configured_sinks(look.machine.settings.env)
    except SinkSettingsError:
        return
    if urlsplit(endpoint.value).netloc in {urlsplit(sink.target).netloc for sink in sinks}:
        yield Finding(
            problem=f"both send to {shown(endpoint)}",
            at=(endpoint.won.source,),
            remedy="have Claude Code's own spans go elsewhere, or nowhere",
            command=_export(endpoint.won, endpoint.name, NOWHERE),
            fix=_put(endpoint.won.source.file, endpoint.won.source.keys, NOWHERE, safe=False),
        )


@rule("claude-extra-body-metadata", joint="link")
def extra_body_metadata(look: AgentLook) -> Iterator[Finding]:
    """CLAUDE_CODE_EXTRA_BODY has `metadata`, which replaces Claude Code's own.

    The session's id is lost from the request's body. CLAUDE_CODE_EXTRA_METADATA adds instead.
    """
    extra = _variable(look, "CLAUDE_CODE_EXTRA_BODY")
    try:
        body: Any = orjson.loads(extra.value or "{}")
    except orjson.JSONDecodeError:
        return
    if extra.won is not None and isinstance(body, dict) and "metadata" in body:
        yield Finding(
            problem="requests do not name their session in the body any more",
            at=(extra.won.source,),
            remedy="say the same in CLAUDE_CODE_EXTRA_METADATA",
            fix=_extra_metadata(extra.won, body),
        )


def _variable(look: AgentLook, name: str) -> Answer:
    return variable(look.setup, name)


def _lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.strip()}


def _settings_of(look: AgentLook, *said: Said) -> ConfigFile | None:
    """Return the settings file that one of several things is said in, else the user's."""
    files = [each.source.file for each in said if each.source.file is not None]
    return files[0] if files else look.setup.files["user"]


def _put(file: ConfigFile | None, keys: KeyPath, value: str, *, safe: bool = True) -> Fix | None:
    if file is None or file.format is None:
        return None
    return Fix((Change(file, keys, value),), safe=safe)


def _drop(said: Said, *, safe: bool) -> Fix | None:
    file = said.source.file
    return None if file is None else Fix((Change(file, said.source.keys, None),), safe=safe)


def _export(said: Said, name: str, value: str) -> str | None:
    """Return the command that says something else, where the shell said it."""
    return f"export {name}={shlex.quote(value)}" if said.source.file is None else None


def _moved(look: AgentLook, file: ConfigFile, name: str) -> Change:
    return Change(look.setup.files["user"], ("env", name), str(file.at("env", name)))


def _extra_metadata(won: Said, body: dict[str, Any]) -> Fix | None:
    file = won.source.file
    if file is None or file.format is None:
        return None
    rest = {name: value for name, value in body.items() if name != "metadata"}
    metadata = orjson.dumps(body["metadata"]).decode()
    changes = [Change(file, ("env", "CLAUDE_CODE_EXTRA_METADATA"), metadata)]
    changes.append(Change(file, won.source.keys, orjson.dumps(rest).decode() if rest else None))
    return Fix(tuple(changes), safe=False)

"""Traps of Gemini CLI's settings, each seen with 0.61.0."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from tracebridge.agents.gemini_cli.routing import (
    BASE_URL,
    GEMINI_KEY,
    GOOGLE_KEY,
    USE_VERTEX,
    VERTEX_BASE_URL,
    auth_type,
    scopes,
    uses_vertex,
    variable,
)
from tracebridge.checks import AgentLook, Change, Finding, Fix, rule
from tracebridge.route import shown
from tracebridge.routing import Said, Source, in_file, is_loopback, mask

OURS = (BASE_URL, VERTEX_BASE_URL, GEMINI_KEY, GOOGLE_KEY, USE_VERTEX)
# What people write into settings.json, where nothing reads it.
INVENTED = ("baseUrl", "apiKey", "GOOGLE_GEMINI_BASE_URL", "GEMINI_API_KEY", "geminiBaseUrl")
WITH_GOOGLE = ("oauth-personal", "cloud-shell", "compute-default-credentials")


@rule("gemini-hooks-disabled", joint="hooks")
def hooks_disabled(look: AgentLook) -> Iterator[Finding]:
    """`hooksConfig.enabled` is false, so that no hook runs.

    Gemini CLI does not say so.
    """
    for file in scopes(look.setup):
        if file.at("hooksConfig", "enabled") is False and (look.hooks or look.asked):
            yield Finding(
                problem="all hooks are switched off",
                at=(Source(file, ("hooksConfig", "enabled")),),
                remedy="take it out",
                fix=Fix((Change(file, ("hooksConfig", "enabled"), None),), safe=False),
            )


@rule("gemini-key-not-the-gateways", joint="turn")
def key_not_the_gateways(look: AgentLook) -> Iterator[Finding]:
    """Requests go to a gateway with a key that is not the gateway's.

    Respan's keys begin with `sk`; one that begins with `AIza` is Google's own, and a gateway other
    than one on this machine has no use for it.
    """
    base, key = look.routing.base_url, look.routing.key
    if not base.value or key is None or key.won is None or is_loopback(base.value):
        return
    respan = "respan.ai" in base.value and not key.value.startswith(("sk_", "sk-"))
    if respan or key.value.startswith("AIza"):
        yield Finding(
            problem=f"{key.name} is {mask(key.value)}, and requests go to {shown(base)}",
            at=(key.won.source, base.won.source if base.won else ""),
            remedy="use the key that the gateway gave you",
            command=f'export {key.name}="$RESPAN_API_KEY"' if respan else None,
        )


@rule("gemini-vertex-no-key", joint="turn")
def vertex_no_key(look: AgentLook) -> Iterator[Finding]:
    """Vertex is chosen, with neither a key nor a project and a place.

    Gemini CLI ends with exit code 41 before it asks anything.
    """
    project = [variable(look.setup, f"GOOGLE_CLOUD_{name}") for name in ("PROJECT", "LOCATION")]
    key = variable(look.setup, GOOGLE_KEY)
    if uses_vertex(look.setup) and not key.value and not all(each.value for each in project):
        said = auth_type(look.setup).won or variable(look.setup, USE_VERTEX).won
        yield Finding(
            problem=f"{GOOGLE_KEY} is not set",
            at=(said.source if said else Source(variable=GOOGLE_KEY),),
            remedy="set it to the gateway's key",
            command=f'export {GOOGLE_KEY}="$RESPAN_API_KEY"',
        )


@rule("gemini-vertex-past-gateway", joint="gateway")
def vertex_past_gateway(look: AgentLook) -> Iterator[Finding]:
    """Vertex is chosen, and only the other base URL is set.

    GOOGLE_GEMINI_BASE_URL is not for Vertex: requests go to Google, past the gateway.
    """
    base = variable(look.setup, BASE_URL)
    vertex = variable(look.setup, VERTEX_BASE_URL)
    if uses_vertex(look.setup) and base.won and base.value and not vertex.value:
        root, _, _ = base.value.partition("/api/google")
        better = f"{root.rstrip('/')}/api/google/vertexai"
        file = base.won.source.file
        yield Finding(
            problem=f"{VERTEX_BASE_URL} is not set",
            at=(base.won.source,),
            remedy=f"set it to {better}",
            command=f"export {VERTEX_BASE_URL}={shlex.quote(better)}" if file is None else None,
            fix=Fix((Change(file, (VERTEX_BASE_URL,), better),)) if file is not None else None,
        )


@rule("gemini-vertex-without-provider", joint="gateway")
def vertex_without_provider(look: AgentLook) -> Iterator[Finding]:
    """The gateway refuses every Vertex call.

    It has no Vertex provider: its owner has to give it the credentials of a Google Cloud project.
    """
    calls = [call for call in look.calls if "/vertexai" in call.path]
    refused = [call for call in calls if call.status_code in {400, 401, 403, 404}]
    if refused and len(refused) == len(calls):
        said = refused[-1].error_message or ""
        yield Finding(
            problem=f"{len(refused)} of {len(calls)} Vertex calls of the last day were answered"
            f" {refused[-1].status_code}: {said[:200]}",
            remedy="add a Vertex provider at the gateway, or do without Vertex",
            command=f"unset {USE_VERTEX}",
        )


@rule("gemini-auth-type", joint="gateway")
def auth_type_differs(look: AgentLook) -> Iterator[Finding]:
    """The way to log in that the settings chose is not the one that the variables are for.

    `security.auth.selectedType` decides: with a Google login the gateway's base URL is not used at
    all, and GOOGLE_GENAI_USE_VERTEXAI does nothing if the settings say gemini-api-key.
    """
    selected = auth_type(look.setup)
    wants_vertex = variable(look.setup, USE_VERTEX).value.lower() in {"1", "true"}
    base = variable(look.setup, VERTEX_BASE_URL if wants_vertex else BASE_URL)
    wanted = "vertex-ai" if wants_vertex else "gemini-api-key"
    if selected.won is None or selected.value in {wanted, "gateway"}:
        return
    if not base.value and not wants_vertex:
        return
    if selected.value not in {*WITH_GOOGLE, "gemini-api-key", "vertex-ai"}:
        return
    if not wants_vertex and selected.value == "vertex-ai":
        # Chosen by the settings alone, which is enough.
        return
    file, keys = selected.won.source.file, selected.won.source.keys
    yield Finding(
        problem=f"selectedType is {selected.value}, and"
        f" {USE_VERTEX if wants_vertex else BASE_URL} is set",
        at=(selected.won.source, base.won.source if base.won else ""),
        remedy=f"choose {wanted}",
        fix=Fix((Change(file, keys, wanted),), safe=False) if file is not None else None,
    )


@rule("gemini-settings-fiction", joint="gateway")
def settings_fiction(look: AgentLook) -> Iterator[Finding]:
    """`settings.json` has a base URL or a key, which Gemini CLI does not read there.

    Both come from variables, or from a .env file, and from nowhere else.
    """
    for file in scopes(look.setup):
        for name in INVENTED:
            if isinstance(file.at(name), str):
                yield Finding(
                    problem=f"{name} is not read from settings.json",
                    at=(Source(file, (name,)),),
                    remedy="set it as a variable or in ~/.gemini/.env, and take it out here",
                    fix=Fix((Change(file, (name,), None),), safe=False),
                )


@rule("gemini-env-hidden", joint="gateway")
def env_hidden(look: AgentLook) -> Iterator[Finding]:
    """A .env file of the project hides the one in ~/.gemini.

    Gemini CLI reads the first .env file that it finds and no other. What only the home's file says
    (a base URL, a key) is not set in this project.
    """
    used, home = look.setup.files.get("env"), look.setup.files["user env"]
    if used is None or used.path == home.path:
        return
    lost = [
        name
        for name in OURS
        if in_file(home, name) and not in_file(used, name) and name not in look.setup.env
    ]
    if lost:
        source = Source(home, (lost[0],))
        yield Finding(
            problem=f"{', '.join(lost)} of {look.place.shown(home.path)} are not read here",
            at=(Source(used), source),
            remedy=f"export them in the shell, or have them in {look.place.shown(used.path)}, too;"
            " a key only if git ignores that file",
        )


@rule("gemini-base-url-version", joint="turn")
def base_url_version(look: AgentLook) -> Iterator[Finding]:
    """The base URL ends in an API version, and Gemini CLI adds one.

    Requests go to /v1beta/v1beta/models, which no gateway knows.
    """
    base = look.routing.base_url
    stripped = base.value.rstrip("/")
    if base.won and stripped.endswith(("/v1beta", "/v1", "/v1beta1")):
        better, _, version = stripped.rpartition("/")
        yield Finding(
            problem=f"{shown(base)} makes requests to /{version}/{version}/models"
            if version != "v1"
            else f"{shown(base)} makes requests to /v1/v1beta/models",
            at=(base.won.source,),
            remedy=f"leave /{version} away",
            command=f"export {base.name}={shlex.quote(better)}"
            if base.won.source.file is None
            else None,
            fix=_put(base.won, better),
        )


def _put(won: Said, value: str) -> Fix | None:
    file = won.source.file
    return None if file is None else Fix((Change(file, won.source.keys, value),))

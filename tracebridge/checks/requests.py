"""Whether an agent's requests can get where they are to go."""

from __future__ import annotations

import contextlib
import difflib
import re
import shlex
import socket
from collections import Counter
from collections.abc import Iterator
from shutil import which
from typing import Any
from urllib.parse import urlsplit

import requests

from tracebridge.checks import AgentLook, Change, Finding, Fix, rule
from tracebridge.fields import dicts_in
from tracebridge.route import shown
from tracebridge.routing import Said, Source, is_loopback

# How long a gateway may take to accept a connection, or to list its models.
PATIENCE_S = 3.0
# Fewer calls than this say nothing about the slowest of them.
FEWEST_CALLS = 20


@rule("settings-file-broken", joint="turn")
def broken_file(look: AgentLook) -> Iterator[Finding]:
    """A settings file cannot be read or understood.

    The agent then ignores all of it, hooks and routing included, or does not start.
    """
    for file in {file.path: file for file in look.setup.files.values()}.values():
        if file.problem is not None:
            yield Finding(
                problem=f"{look.place.shown(file.path)}: {file.problem}",
                at=(Source(file),),
                remedy="correct it; a copy from before our last change may be below"
                f" {look.place.shown(look.machine.settings.home / 'backups')}",
            )


@rule("agent-program-missing", joint="program")
def program_missing(look: AgentLook) -> Iterator[Finding]:
    """The agent's program is not on PATH, though hooks of ours are installed for it.

    It may be called by a path of its own; if not, nothing will ever come from it.
    """
    path = look.place.env.get("PATH", "")
    if (look.asked or look.hooks) and which(look.agent.PROGRAM, path=path) is None:
        yield Finding(
            problem=f"there is no {look.agent.PROGRAM} on PATH",
            at=(Source(variable="PATH"),),
            remedy=f"install {look.slug}, or add its folder to PATH",
        )


@rule("agent-version", joint="hooks")
def version(look: AgentLook) -> Iterator[Finding]:
    """The agent's version is another one than our tests drive.

    Formats drift. With an older one some links may be missing or inferred; a newer one is probably
    well, and what it says in a new way is ignored and counted in `tracebridge status`.
    """
    program = which(look.agent.PROGRAM, path=look.place.env.get("PATH", ""))
    said = look.machine.run(program, "--version") if program is not None else None
    found = re.search(r"\d+(?:\.\d+)+", said or "")
    if found is None:
        return
    here, tested = _numbers(found[0]), _numbers(look.agent.TESTED_VERSION)
    if here < tested:
        yield Finding(
            problem=f"{look.agent.PROGRAM} {found[0]} is older than the tested"
            f" {look.agent.TESTED_VERSION}",
            at=(str(program),),
            remedy=f"update {look.slug}",
        )
    elif here > tested:
        yield Finding(
            problem=f"{look.agent.PROGRAM} {found[0]} is newer than the tested"
            f" {look.agent.TESTED_VERSION}",
            at=(str(program),),
            remedy="update tracebridge, too",
            command="pip install --upgrade tracebridge",
            note=True,
        )


@rule("agent-not-routed", joint="gateway")
def not_routed(look: AgentLook) -> Iterator[Finding]:
    """The agent's requests go to the model's vendor, past any gateway.

    Asked only where the agent is named. Its turns are complete without a gateway, from what the
    agent writes down; failed attempts, times to the first token and bytes are not.
    """
    if look.asked and not look.routing.is_custom:
        yield Finding(
            problem=f"requests go to {look.routing.default_url or 'nowhere that is known'}",
            remedy="route it through a gateway",
            command=f"tracebridge integrate {look.slug} --gateway local",
            note=True,
        )


@rule("gateway-silent", joint="gateway")
def gateway_silent(look: AgentLook) -> Iterator[Finding]:
    """The agent's requests go to a gateway that has told us of none of them.

    Asked only where the agent is named. It may be another one than `tracebridge gateway`, and then
    it has to be told to report; or the agent has not been used for a day.
    """
    base = look.routing.base_url
    if look.asked and base.won is not None and base.value and not look.calls:
        yield Finding(
            problem=f"no call of the last day came through {shown(base)}",
            at=(base.won.source,),
            remedy="have a gateway of ours in the way, in front of that one",
            command="tracebridge gateway --upstream "
            + shlex.quote(f"{look.routing.family}={shown(base)}"),
            note=True,
        )


@rule("gateway-not-running", joint="turn")
def gateway_not_running(look: AgentLook) -> Iterator[Finding]:
    """The agent's base URL is on this machine, and nothing listens there.

    Agents try a refused port again for minutes, and then fail: Claude Code three minutes, Gemini
    CLI as long, Codex without end.
    """
    base = look.routing.base_url
    if base.won is None or not base.value or not is_loopback(base.value):
        return
    host, port = _address(base.value)
    if not _listens(host, port):
        yield Finding(
            problem=f"nothing listens at {host}:{port}",
            at=(base.won.source,),
            remedy="start the gateway, or take the base URL out",
            command=f"tracebridge gateway --listen {shlex.quote(f'{host}:{port}')}",
        )


@rule("http-not-loopback", joint="turn")
def plain_http(look: AgentLook) -> Iterator[Finding]:
    """The base URL is http:// and leaves this machine.

    The key, every prompt and every file that the agent reads go over the network in clear.
    """
    base = look.routing.base_url
    if base.won is not None and base.value.startswith("http://") and not is_loopback(base.value):
        yield Finding(
            problem=f"{shown(base)} is not encrypted",
            at=(base.won.source,),
            remedy="use https://, or a gateway on this machine that does",
            fix=_set(base.won, "https://" + base.value.removeprefix("http://"), safe=False),
        )


@rule("conflicting-scopes", joint="turn")
def conflicting_scopes(look: AgentLook) -> Iterator[Finding]:
    """Two places say different things about where requests go, or with which key.

    One of them wins, and it is seldom the one that was changed last.
    """
    routing = look.routing
    for answer in (routing.base_url, *routing.keys, routing.model, routing.timeout_ms):
        losers = [said for said in answer.overruled if said.value]
        # An empty value is the way to silence one from elsewhere.
        if answer.won is None or not answer.value or not losers:
            continue
        yield Finding(
            problem=f"{answer.name}: {answer.won.source.shown(look.place)} wins with"
            f" {shown(answer)}; {_list(look, losers)} does not count",
            at=(answer.won.source, *(said.source for said in losers)),
            remedy="take out the one that is not meant, or make them the same",
            command=_unset(losers),
            note=True,
        )


@rule("model-without-prefix", joint="turn")
def model_prefix(look: AgentLook) -> Iterator[Finding]:
    """The gateway knows the model by a name with a provider in front.

    Respan's and most other gateways want `openai/gpt-5.5` and answer `gpt-5.5` with an error. Where
    the gateway lists its models, its list decides.
    """
    name = _model_name(look)
    won = look.routing.model.won
    if won is None or not name or "/" in name:
        return
    listed = [each for each in _listed(look) if each.endswith(f"/{name}")]
    respan = _is_respan(look.routing.url) and look.routing.family == "openai"
    if name in _listed(look) or not (listed or respan) or look.slug == "opencode":
        return
    better = listed[0] if listed else f"openai/{name}"
    yield Finding(
        problem=f"the gateway knows {name} as {better}",
        at=(won.source,),
        remedy=f"name the model {better}",
        fix=_set(won, better, safe=bool(listed)),
    )


@rule("model-unknown", joint="turn")
def model_unknown(look: AgentLook) -> Iterator[Finding]:
    """The gateway's list of models does not have the one that the agent asks for.

    Asked only where the gateway answers, with a short patience.
    """
    name, won = _model_name(look), look.routing.model.won
    listed = _listed(look)
    if won is None or not name or not listed or name in listed:
        return
    if any(each.endswith(f"/{name}") for each in listed):
        return
    near = difflib.get_close_matches(name, listed, n=3, cutoff=0.5)
    yield Finding(
        problem=f"the gateway does not list {name}",
        at=(won.source,),
        remedy=f"choose one that it lists: {', '.join(near or listed[:3])}",
    )


@rule("timeout-below-p95", joint="turn")
def timeout(look: AgentLook) -> Iterator[Finding]:
    """The agent gives a request less time than one in twenty of its calls takes.

    Each of those is broken off, sent again, and paid for twice.
    """
    limit = look.routing.timeout_ms
    took = sorted(call.end_ns - call.start_ns for call in look.calls if call.error_type is None)
    if limit.won is None or not limit.value.isdigit() or len(took) < FEWEST_CALLS:
        return
    p95_ms = took[int(len(took) * 0.95)] / 1e6
    if int(limit.value) < p95_ms:
        wanted = int(p95_ms * 4) // 1000 * 1000 + 1000
        yield Finding(
            problem=f"{limit.name} is {limit.value}, and 5 % of the last day's {len(took)} calls"
            f" took more than {p95_ms:.0f} ms",
            at=(limit.won.source,),
            remedy=f"give them more time, {wanted} say",
            fix=_set(limit.won, str(wanted), safe=False),
        )


@rule("gateway-429", joint="turn")
def rate_limited(look: AgentLook) -> Iterator[Finding]:
    """The gateway or the model refused calls of the last day with 429.

    The agent waits and tries again; the turn takes as much longer, or fails.
    """
    refused = [call for call in look.calls if call.status_code == 429]
    if refused:
        where = Counter(call.server_address or call.gateway for call in refused).most_common(1)
        yield Finding(
            problem=f"{len(refused)} of the last day's {len(look.calls)} calls were answered 429,"
            f" most of them by {where[0][0]}",
            remedy="run fewer agents at once, or ask for a higher limit there",
            note=True,
        )


def _set(said: Said, value: str, *, safe: bool) -> Fix | None:
    """Return what changes a value in its file; a variable of the shell is not ours to change."""
    if said.source.file is None or said.source.file.format is None:
        return None
    return Fix((Change(said.source.file, said.source.keys, value),), safe=safe)


def _unset(losers: list[Said]) -> str | None:
    names = [said.source.variable for said in losers if said.source.variable]
    return f"unset {' '.join(names)}" if names and len(names) == len(losers) else None


def _list(look: AgentLook, said: list[Said]) -> str:
    return ", ".join(each.source.shown(look.place) for each in said)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.hostname or "", port or (443 if parts.scheme == "https" else 80)


def _listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), PATIENCE_S):
        return True
    return False


def _is_respan(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "respan.ai" or host.endswith(".respan.ai")


def _model_name(look: AgentLook) -> str:
    """Return the model as the gateway is asked for it; "" for names that only the agent knows."""
    name = re.sub(r"\[.*\]$", "", look.routing.model.value)
    if look.slug == "opencode":
        # What stands in front is the provider's name in OpenCode's own configuration.
        return name.partition("/")[2]
    return name if "-" in name else ""


def _listed(look: AgentLook) -> list[str]:
    """Return the models that the gateway lists, none if it does not say."""
    routing, memory = look.routing, look.machine.printed
    insecure = routing.base_url.value.startswith("http://") and not is_loopback(routing.url)
    if not routing.is_custom or not routing.models_url or insecure:
        return []
    asked = ("GET", routing.models_url, look.slug)
    if asked not in memory:
        memory[asked] = "\n".join(_fetch_models(look))
    return (memory[asked] or "").split("\n") if memory[asked] else []


def _fetch_models(look: AgentLook) -> list[str]:
    routing = look.routing
    # Of one that is kept elsewhere we know only how to fetch it, and that is the agent's to do.
    kept = {"apiKeyHelper", "auth.command"}
    key = next((key.value for key in routing.keys if key.value and key.name not in kept), "")
    headers = {"Authorization": f"Bearer {key}", "x-api-key": key, "x-goog-api-key": key}
    with requests.Session() as session:
        # No proxy stands between us and this machine; the key is the agent's, not a .netrc's.
        session.trust_env = not is_loopback(routing.url)
        try:
            response = session.get(
                routing.models_url,
                headers=headers if key.isascii() and key.isprintable() and key[:1] != "{" else None,
                timeout=PATIENCE_S,
                auth=lambda request: request,
                allow_redirects=False,
            )
            body: Any = response.json() if response.ok else {}
        except (requests.RequestException, ValueError):
            return []
    if not isinstance(body, dict):
        return []
    entries = dicts_in(body.get("data")) or dicts_in(body.get("models"))
    names = (entry.get("id") or entry.get("name") for entry in entries)
    return [str(name).removeprefix("models/") for name in names if isinstance(name, str)]

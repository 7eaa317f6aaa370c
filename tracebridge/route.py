"""Where each agent's model requests go, and what to type to have one go through a gateway."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracebridge.agents import Agent
from tracebridge.config_files import Place
from tracebridge.routing import (
    Answer,
    ByHand,
    Reference,
    Routing,
    Said,
    mask,
    routing_module,
)
from tracebridge.sinks import without_secrets
from tracebridge.tree import printable


def routes(agents: Sequence[Agent], place: Place) -> dict[str, Routing]:
    """Return the routing of each agent by slug."""
    found = {}
    for agent in agents:
        module = routing_module(agent)
        found[agent.SLUG] = module.routing(module.read_setup(place))
    return found


def shown(answer: Answer, said: Said | None = None) -> str:
    """Return what may be shown of an answer, or of one of those that were given."""
    value = said.value if said is not None else answer.value
    if not value:
        return "(cleared)" if answer.said else "(none)"
    return mask(value) if answer.secret else printable(without_secrets(value))


def routes_json(found: Mapping[str, Routing]) -> dict[str, Any]:
    """Return the routing of each agent, by slug. The shape is a contract for scripts."""
    return {
        slug: {
            "family": routing.family,
            "base_url": _as_json(routing.base_url, routing.default_url),
            "model": _as_json(routing.model),
            "keys": [_as_json(key) for key in routing.keys if key.said],
            "headers": [_as_json(header) for header in routing.headers],
            "timeout_ms": _as_json(routing.timeout_ms),
        }
        for slug, routing in found.items()
    }


def print_routes(found: Mapping[str, Routing], place: Place, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("agent", "", "value", "from"):
        table.add_column(column, overflow="fold")
    for slug, routing in found.items():
        for number, (what, value, source) in enumerate(_rows(routing, place)):
            # As text: what stands in a file may look like markup.
            table.add_row(slug if number == 0 else "", what, Text(value), Text(printable(source)))
    console.print(table)


def env_lines(by_hand: ByHand, program: str, shell: str) -> list[str]:
    """Return the lines that set an agent up by hand in a shell."""
    set_variable, refer, define = _SHELLS[shell]
    lines = [
        set_variable(name, refer(value.variable) if isinstance(value, Reference) else None, value)
        for name, value in by_hand.env.items()
    ]
    if by_hand.arguments:
        lines.append(define(program, by_hand.arguments))
    return lines


def _rows(routing: Routing, place: Place) -> list[tuple[str, str, str]]:
    rows = [
        _row("base URL", routing.base_url, place, routing.default_url),
        *(_row("key", key, place) for key in routing.keys if key.said),
        _row("model", routing.model, place, "(the agent's own choice)"),
        *(_row("header", header, place) for header in routing.headers),
    ]
    if not any(key.said for key in routing.keys):
        rows.insert(1, ("key", "(none set; a login of the agent's own, if anything)", ""))
    if routing.timeout_ms.said:
        rows.append(_row("timeout ms", routing.timeout_ms, place))
    answers = [routing.base_url, *routing.keys, routing.model, routing.timeout_ms]
    for answer in answers:
        rows += [
            ("overruled", shown(answer, said), said.source.shown(place))
            for said in answer.overruled
        ]
    return rows


def _row(what: str, answer: Answer, place: Place, otherwise: str = "") -> tuple[str, str, str]:
    if answer.won is None:
        return what, otherwise, "default" if otherwise else ""
    value = f"{answer.name}: {shown(answer)}" if answer.secret else shown(answer)
    return what, value, answer.won.source.shown(place)


def _as_json(answer: Answer, otherwise: str | None = None) -> dict[str, Any]:
    if answer.won is None:
        return {"name": answer.name, "value": otherwise, "source": {"default": True}}
    return {
        "name": answer.name,
        "value": shown(answer) if answer.value else "",
        "source": answer.won.source.as_json(),
        "overruled": [
            {"value": shown(answer, said), "source": said.source.as_json()}
            for said in answer.overruled
        ],
    }


def _posix(name: str, reference: str | None, value: str | Reference) -> str:
    return f"export {name}={reference or shlex.quote(str(value))}"


def _fish(name: str, reference: str | None, value: str | Reference) -> str:
    return f"set -gx {name} {reference or _fish_quoted(str(value))}"


def _powershell(name: str, reference: str | None, value: str | Reference) -> str:
    return f"$env:{name} = {reference or _powershell_quoted(str(value))}"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _powershell_quoted(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"


def _posix_function(program: str, words: Sequence[str]) -> str:
    return f'{program}() {{ command {program} {shlex.join(words)} "$@"; }}'


def _fish_function(program: str, words: Sequence[str]) -> str:
    return f"function {program}; command {program} {' '.join(map(_fish_quoted, words))} $argv; end"


def _powershell_function(program: str, words: Sequence[str]) -> str:
    # Windows PowerShell loses quotation marks inside arguments unless they are escaped.
    given = " ".join(_powershell_quoted(word.replace('"', '\\"')) for word in words)
    return f"function {program} {{ & (Get-Command {program} -CommandType Application)[0] {given} @args }}"


_Shell = tuple[
    Callable[[str, str | None, "str | Reference"], str],
    Callable[[str], str],
    Callable[[str, Sequence[str]], str],
]
_SHELLS: dict[str, _Shell] = {
    "bash": (_posix, '"${}"'.format, _posix_function),
    "fish": (_fish, '"${}"'.format, _fish_function),
    "powershell": (_powershell, "$env:{}".format, _powershell_function),
}
SHELLS = tuple(_SHELLS)

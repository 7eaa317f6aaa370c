"""What the user wants of requests that pass, from `[[gateway.requests]]` tables of config.toml.

    [[gateway.requests]]
    agent = "claude-code"                   # which requests; all of these must fit
    fallback_models = ["claude-haiku-4-5"]  # what is added to them
    aliases = { fast = "claude-haiku-4-5" }

Of several tables that fit, what a later one says wins.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from tracebridge.agents import agent, agents
from tracebridge.gateways.upstream import FAMILIES
from tracebridge.keys import KINDS, KeyReferenceError, resolve


class RequestSettingsError(ValueError):
    """A table that cannot be used; the text names file, place and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is added to a request."""

    # As Respan's gateway knows them.
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)
    # The provider that Respan's gateway shall ask.
    route_provider: str | None = None
    # Models by the names that stand for them.
    aliases: Mapping[str, str] = field(default_factory=dict)
    # What must not be seen anywhere.
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    def __or__(self, later: Wanted) -> Wanted:
        return Wanted(
            params={**self.params, **later.params},
            route_provider=later.route_provider or self.route_provider,
            aliases={**self.aliases, **later.aliases},
            secrets=self.secrets | later.secrets,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSettings:
    """One table: which requests it is for, None for any, and what they get."""

    agent: str | None = None
    family: str | None = None
    # What the path begins with.
    path: str | None = None
    # Name of the client's key.
    client: str | None = None
    # The folder of a launched command, or one above it.
    project: Path | None = None
    wanted: Wanted = Wanted()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """What is known of who sends a request, and where to."""

    agent: str | None
    family: str | None
    path: str
    client: str | None
    # Known of launched commands alone.
    project: Path | None


def wanted_for(settings: Iterable[RequestSettings], sender: Sender) -> Wanted:
    return reduce(Wanted.__or__, (s.wanted for s in settings if _fits(s, sender)), Wanted())


def _fits(settings: RequestSettings, sender: Sender) -> bool:
    return (
        settings.agent in {None, sender.agent}
        and settings.family in {None, sender.family}
        and settings.client in {None, sender.client}
        and (settings.path is None or sender.path.startswith(settings.path))
        and (
            settings.project is None
            or (sender.project is not None and sender.project.is_relative_to(settings.project))
        )
    )


def read_request_settings(file: Path, env: Mapping[str, str]) -> tuple[RequestSettings, ...]:
    """Return what *file* says, keys looked up. Raise RequestSettingsError."""
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise RequestSettingsError(f"{file}: {error.strerror}; make it readable") from error
    except (ValueError, RecursionError) as error:
        raise RequestSettingsError(f"{file}: {error}; correct it or remove it") from error
    gateway = document.get("gateway", {})
    tables = gateway.get("requests", []) if isinstance(gateway, dict) else None
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RequestSettingsError(f"{file}: gateway.requests: write tables [[gateway.requests]]")
    if unknown := gateway.keys() - {"requests"}:
        raise RequestSettingsError(f"{file}: gateway.{min(unknown)}: no such setting")
    return tuple(
        parse_table(table, f"{file}: gateway.requests[{number}]", env)
        for number, table in enumerate(tables, 1)
    )


def parse_table(table: Mapping[str, Any], where: str, env: Mapping[str, str]) -> RequestSettings:
    """Return what one table says, keys looked up. Raise RequestSettingsError beginning *where*."""
    return _Table(where, env).settings(table)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _has_json_form(value: object) -> bool:
    # TOML has dates, and numbers that are infinite or none.
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


_Check = tuple[Callable[[object], bool], str]
_TEXT: _Check = (_is_text, '"..."')
_TEXTS: _Check = (_is_texts, '["...", "..."]')
_TABLE: _Check = (_is_table, "{ ... }")
_PARAMS: Mapping[str, _Check] = {
    "fallback_models": _TEXTS,
    "load_balance_group": _TABLE,
    "retry_params": _TABLE,
    "cache_enabled": (_is_switch, "true or false"),
    "cache_ttl": (_is_number, "seconds as a whole number"),
    "cache_options": _TABLE,
    "models": _TEXTS,
    "exclude_models": _TEXTS,
    "exclude_providers": _TEXTS,
    "customer_credentials": _TABLE,
}
_OTHERS: Mapping[str, _Check] = {
    "agent": _TEXT,
    "family": _TEXT,
    "path": _TEXT,
    "client": _TEXT,
    "project": _TEXT,
    "route_provider": (lambda value: _is_text(value) and str(value).isascii(), '"vertex_ai"'),
    "aliases": (
        lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
        '{ fast = "claude-haiku-4-5" }',
    ),
}
# Below these names nothing stands in clear.
_SECRET = frozenset({"credentials", "customer_credentials"})


@dataclass(frozen=True, slots=True)
class _Table:
    where: str
    env: Mapping[str, str] = field(repr=False)

    def settings(self, table: Mapping[str, Any]) -> RequestSettings:
        checks = {**_OTHERS, **_PARAMS}
        for name, value in table.items():
            if name not in checks:
                raise self._error(name, f"no such setting; there are {', '.join(checks)}")
            is_right, form = checks[name]
            if not is_right(value):
                raise self._error(name, f"write {name} = {form}")
        secrets: set[str] = set()
        params = {
            name: self._looked_up(name, table[name], secrets, is_secret=name in _SECRET)
            for name in _PARAMS
            if name in table
        }
        return RequestSettings(
            agent=self._agent(table.get("agent")),
            family=self._family(table.get("family")),
            path=table.get("path"),
            client=table.get("client"),
            project=Path(table["project"]).expanduser() if "project" in table else None,
            wanted=Wanted(
                params=params,
                route_provider=table.get("route_provider"),
                aliases=table.get("aliases", {}),
                secrets=frozenset(secrets),
            ),
        )

    def _agent(self, name: str | None) -> str | None:
        found = agent(name) if name is not None else None
        if name is not None and found is None:
            raise self._error("agent", f"there are {', '.join(agents())}")
        return found.SLUG if found is not None else None

    def _family(self, name: str | None) -> str | None:
        if name is not None and name not in FAMILIES:
            raise self._error("family", f"there are {', '.join(FAMILIES)}")
        return name

    def _looked_up(self, name: str, value: Any, secrets: set[str], *, is_secret: bool) -> Any:
        """Return *value* with the keys in the place of what refers to them."""
        if isinstance(value, dict):
            return {
                key: self._looked_up(
                    f"{name}.{key}", each, secrets, is_secret=is_secret or key in _SECRET
                )
                for key, each in value.items()
            }
        if isinstance(value, list):
            return [self._looked_up(name, each, secrets, is_secret=is_secret) for each in value]
        if not is_secret:
            if not _has_json_form(value):
                raise self._error(name, "write a text, a number, true or false")
            return value
        if not isinstance(value, str) or value.partition(":")[0] not in KINDS:
            raise self._error(
                name, "write where the key is found, not the key: ENV:NAME, FILE:/path, CMD:command"
            )
        try:
            key = resolve(value, self.env)
        except KeyReferenceError as error:
            raise self._error(name, str(error)) from error
        secrets.add(key)
        return key

    def _error(self, name: str, remedy: str) -> RequestSettingsError:
        return RequestSettingsError(f"{self.where}.{name}: {remedy}")

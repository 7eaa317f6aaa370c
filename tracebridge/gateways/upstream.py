"""Where a request goes: the user's `--upstream` words in, a table of routes out. Pure.

A base URL serves every path, and the path is kept. A family's URL takes the place of our prefix:
`anthropic=https://api.anthropic.com` makes `/api/anthropic/v1/messages` into `/v1/messages` there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from msgspec import Struct

PRESETS = {
    "respan": "https://api.respan.ai",
    "anthropic": "anthropic=https://api.anthropic.com",
    "openai": "openai=https://api.openai.com/v1",
    "google": "gemini=https://generativelanguage.googleapis.com",
}

# Which family a path belongs to: the first row that fits decides. The prefix may be written with
# doubled slashes, as clients do that join a base URL ending in "/" with a path starting with one.
_FAMILY_OF_PREFIX = tuple(
    (re.compile("/+".join(["", *prefix.split("/")]) + "(?=/|$)"), family)
    for prefix, family in (
        ("api/anthropic", "anthropic"),
        ("api/google/gemini", "gemini"),
        ("api/google/vertexai", "vertex"),
        ("api/google", None),
        ("api", "openai"),
    )
)
# A client whose base URL is our root speaks Anthropic's own layout.
_ROOT_FAMILY = "anthropic"
FAMILIES = ("anthropic", "openai", "gemini", "vertex")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """What a connection is made to."""

    scheme: str
    host: str
    port: int

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Upstream:
    origin: Origin
    # Without a slash at its end, so "" where the URL names no path.
    path: str
    # It takes any prefix, and gets our id of the call as one.
    names_calls: bool = False


class Route(Struct, frozen=True):
    origin: Origin
    # Path and query as the upstream is to get them.
    target: str
    # Whose API the path is, None where that cannot be told.
    family: str | None = None
    # The upstream was given as a base URL, so it has Respan's layout.
    keeps_path: bool = False
    # Our id of the call is to stand in front of it.
    names_calls: bool = False


@dataclass(frozen=True, slots=True)
class Upstreams:
    base: Upstream | None
    families: Mapping[str, Upstream]

    def route(self, target: str) -> Route | None:
        """Return where a request for *target* (path and query) goes, or None if nowhere."""
        path, question_mark, query = target.partition("?")
        family, rest = _split_prefix(path)
        upstream = self.families.get(family) if family else None
        if upstream is not None:
            # The slashes at the joint are ours to set; those further on are the client's.
            path = upstream.path + ("/" + rest.lstrip("/") if rest else "")
        elif self.base is not None:
            upstream = self.base
            path = upstream.path + path
        else:
            return None
        return Route(
            upstream.origin,
            (path or "/") + question_mark + query,
            family,
            upstream is self.base,
            upstream.names_calls,
        )

    def missing(self, target: str) -> str:
        """Return what to tell a client whose *target* has no route."""
        path = target.partition("?")[0]
        family, _ = _split_prefix(path)
        remedy = f"--upstream {family}=URL or --upstream URL" if family else "--upstream URL"
        return (
            f"no upstream serves {path[:200]}: start the gateway with {remedy} "
            f"(it has: {', '.join(sorted(self.families)) or 'none'})"
        )


def parse_upstreams(specs: Iterable[str]) -> Upstreams:
    """Return the routes that *specs* describe, or raise ValueError naming spec and remedy."""
    base: Upstream | None = None
    families: dict[str, Upstream] = {}
    for spec in specs:
        family, equals, url = PRESETS.get(spec, spec).partition("=")
        if not equals or "://" in family:
            if base is not None:
                raise ValueError(f"upstream {spec!r}: there is a base URL already; give one only")
            base = _parse_url(PRESETS.get(spec, spec), spec)
            continue
        if family not in FAMILIES:
            raise ValueError(
                f"upstream {spec!r}: no family {family!r}; there are {', '.join(FAMILIES)}"
            )
        if family in families:
            raise ValueError(f"upstream {spec!r}: {family} is given twice; give it once")
        families[family] = _parse_url(url, spec)
    if base is None and not families:
        raise ValueError(f"no upstream: give a base URL, FAMILY=URL or one of {', '.join(PRESETS)}")
    return Upstreams(base, families)


# Agents use few.
@lru_cache(maxsize=64)
def _split_prefix(path: str) -> tuple[str | None, str]:
    for prefix, family in _FAMILY_OF_PREFIX:
        match = prefix.match(path)
        if match:
            return family, path[match.end() :]
    return _ROOT_FAMILY, path


def _parse_url(url: str, spec: str) -> Upstream:
    where = f"upstream {spec!r}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{where}: {error}; write it as https://host[:port][/path]") from error
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise ValueError(
            f"{where} is no URL and no preset; write https://host[:port][/path], FAMILY=URL "
            f"or one of {', '.join(PRESETS)}"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{where}: keys come from the client, take the user name out of the URL")
    if parts.query or parts.fragment:
        raise ValueError(f"{where}: a base URL has no query and no fragment; take it out")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{where}: write the URL in ASCII without spaces")
    return Upstream(
        Origin(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme]), parts.path.rstrip("/")
    )

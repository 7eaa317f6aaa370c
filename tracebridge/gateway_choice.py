"""Where `--gateway` sends an agent's requests: the user's words in, base URLs by family out. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

RESPAN = "https://api.respan.ai/api"
# Where `tracebridge gateway` listens if it is not told otherwise.
LOCAL = "http://127.0.0.1:4141"
# Below a gateway of Respan's layout; each as the agents' own clients want it.
LAYOUT = {
    "anthropic": "/api/anthropic",
    "openai": "/api",
    "gemini": "/api/google/gemini",
    "vertex": "/api/google/vertexai",
}
RESPAN_KEY = "ENV:RESPAN_API_KEY"


def routes(choice: Sequence[str], respan: str | None = None) -> dict[str, str]:
    """Return base URLs by family for the words of `--gateway`; *respan* is another one's base URL.

    Raise ValueError for words that name no gateway.
    """
    found: dict[str, str] = {}
    for word in choice:
        family, equals, url = word.partition("=")
        if word == "none":
            if len(choice) > 1:
                raise ValueError("--gateway none: it stands alone")
        elif word == "local":
            found |= _below(LOCAL)
        elif word == "respan":
            found |= _below(_checked(respan or RESPAN))
        elif equals and family in LAYOUT:
            base = _checked(url)
            # Claude Code adds the version itself, OpenCode's edits do for it.
            found[family] = base.removesuffix("/v1") if family == "anthropic" else base
        else:
            found |= _below(_checked(word))
    return found


def is_local(choice: Sequence[str]) -> bool:
    return "local" in choice


def remark(found: Mapping[str, str]) -> str | None:
    """Return what is unsafe about these routes, None if nothing is."""
    for url in found.values():
        parts = urlsplit(url)
        if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            return f"{url}: prompts and keys go over the network as they are; use https"
    return None


def _below(base: str) -> dict[str, str]:
    root = base.removesuffix("/api")
    return {family: root + path for family, path in LAYOUT.items()}


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(
            f"--gateway {url}: not a gateway; give a base URL, FAMILY=URL with a family of "
            f"{', '.join(LAYOUT)}, or one of respan, local, none"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError("--gateway: take the password out of the URL; keys go by --api-key-env")
    if parts.query or parts.fragment:
        raise ValueError(f"--gateway {url}: a base URL has no query and no fragment")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

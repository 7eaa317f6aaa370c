"""Which calls no agent made, but a plain script. Pure."""

from __future__ import annotations

import re

from tracebridge.model import LOGGED, GatewayCall

# How the official SDKs, and what scripts without one use, name themselves. Agents have names of
# their own, and so have gateways that put another name in its place.
_CLIENT = re.compile(
    r"(Async)?(Anthropic|OpenAI|AzureOpenAI)/|google-genai-sdk/"
    r"|(curl|Wget|python-requests|python-httpx|Python-urllib)/|Python/\d+\.\d+ aiohttp/"
)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def is_of_script(call: GatewayCall) -> bool:
    """Say whether *call* shows that no agent of ours made it, unless a turn tells otherwise."""
    if call.identity is not None:
        return False
    client = call.request_headers.get("user-agent", "")
    return call.gateway == LOGGED or _CLIENT.match(client) is not None


def outer_context(call: GatewayCall) -> tuple[str, str] | None:
    """Return trace and span that its client made *call* in, None if it named none."""
    match = _TRACEPARENT.fullmatch(call.traceparent or "")
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        return None
    return match[1], match[2]

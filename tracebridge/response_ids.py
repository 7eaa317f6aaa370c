"""Response ids as gateways in between change them. Pure."""

from __future__ import annotations

import base64
import binascii
import re

from tracebridge.model import GatewayCall, ModelCall

# LiteLLM's: base64 of `litellm:custom_llm_provider:…;model_id:…;response_id:…`, or that encrypted.
_WRAPPED = re.compile(r"resp_(?P<inside>[A-Za-z0-9_+/-]{40,4000})={0,2}")
_INSIDE = re.compile(rb"litellm:.*;response_id:(?P<id>[\x21-\x3a\x3c-\x7e]+)", re.DOTALL)
# By what a gateway tells its client, and others behind it, under which id it keeps a call.
_LOG_IDS = ("x-litellm-call-id", "x-respan-log-id", "x-request-id", "cf-aig-log-id", "helicone-id")
# Providers' own are half as long.
_HIDDEN_LENGTH = 120


def provider_id(response_id: str) -> str:
    """Return the id that the provider gave, as far as it shows through what a gateway made of it."""
    match = _WRAPPED.fullmatch(response_id)
    if match is None:
        return response_id
    try:
        inside = base64.b64decode(match["inside"] + "==", altchars=b"-_")
    except (binascii.Error, ValueError):
        return response_id
    found = _INSIDE.match(inside)
    return response_id if found is None else found["id"].decode()


def is_hidden(response_id: str) -> bool:
    """Say whether a gateway hides the provider's id, so that the id equals nobody else's."""
    return (
        len(response_id) > _HIDDEN_LENGTH
        and _WRAPPED.fullmatch(response_id) is not None
        and provider_id(response_id) == response_id
    )


def comparable(call: GatewayCall, response_id: str) -> bool:
    """Say whether the id that an agent tells would be that of *call* if it were the same answer."""
    return call.is_ours or (call.response_id is not None and not is_hidden(response_id))


def is_added(told: ModelCall, call: GatewayCall) -> bool:
    """Say whether the id of an answer was only added to a record that has its tool calls.

    It comes from telemetry, late: it must not change by what a call was known before.
    """
    return told.key != told.response_id and bool(
        set(told.tool_call_ids or ()) & set(call.tool_call_ids)
    )


def gateway_names(call: GatewayCall) -> list[tuple[str, str]]:
    """Return the ids under which gateways in a row know the same call, each with its kind."""
    names = [
        (name, told) for name in _LOG_IDS if (told := call.response_headers.get(name)) is not None
    ]
    if call.response_id is not None:
        names.append(("response_id", provider_id(call.response_id)))
    return names

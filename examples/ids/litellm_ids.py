"""tracebridge's ids of a call, in the answer's headers and in LiteLLM's own records.

Lay this file beside LiteLLM's config.yaml, and let that say:

    litellm_settings:
      callbacks: ["litellm_ids.ids"]
"""

import json
from hashlib import sha256

try:
    from litellm.integrations.custom_logger import CustomLogger
except ImportError:
    # The functions are good for any program.
    CustomLogger = object


def trace_id(agent, session_id, turn_key):
    return sha256(f"tracebridge/1\n{agent}\n{session_id}\n{turn_key}".encode()).hexdigest()[:32]


def span_id(trace_id, kind, key):
    return sha256(f"{trace_id}\n{kind}\n{key}".encode()).hexdigest()[:16]


def trace_of(headers):
    """Return the trace of the turn that a request belongs to, None where it does not say."""
    session, prompt = (headers.get(f"x-claude-code-{name}-id") for name in ("session", "prompt"))
    if session and prompt:
        return trace_id("claude-code", session, prompt)
    try:
        codex = json.loads(headers.get("x-codex-turn-metadata", ""))
        key = codex.get("root_turn_id") or codex["turn_id"]
        return trace_id("codex-cli", codex["session_id"], key)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


class Ids(CustomLogger):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        # Whatever LiteLLM logs of the call has it then, and its spans lie in the turn's trace.
        trace = trace_of(headers_of(data))
        if trace is not None:
            data.setdefault("metadata", {})["tracebridge_trace_id"] = trace
        return data

    async def async_post_call_response_headers_hook(
        self, data, user_api_key_dict, response, request_headers=None, **_
    ):
        trace = trace_of(request_headers or headers_of(data))
        if trace is None:
            return {}
        return {"x-tracebridge-traceparent": f"00-{trace}-{span_id(trace, 'turn', '')}-01"}


def headers_of(data):
    headers = (data.get("proxy_server_request") or {}).get("headers") or {}
    return {name.lower(): value for name, value in headers.items()}


ids = Ids()

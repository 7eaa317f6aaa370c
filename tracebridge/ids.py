r"""The id contract, version 1: any process in any language computes the same ids alone.

trace_id = hex(SHA-256("tracebridge/1\n" + agent + "\n" + session_id + "\n" + turn_key))[:32]
span_id  = hex(SHA-256(trace_id + "\n" + kind + "\n" + key))[:16]
"""

from __future__ import annotations

from hashlib import sha256


def trace_id(agent: str, session_id: str, turn_key: str) -> str:
    """Return the 32 hex digits of the trace of one turn."""
    return _hex(f"tracebridge/1\n{agent}\n{session_id}\n{turn_key}", 32)


def span_id(trace_id: str, kind: str, key: str) -> str:
    """Return the 16 hex digits of one span; the root's *kind* is "turn", its *key* ""."""
    return _hex(f"{trace_id}\n{kind}\n{key}", 16)


def root_span_id(trace_id: str) -> str:
    return span_id(trace_id, "turn", "")


def traceparent(trace_id: str) -> str:
    """Return the W3C header that puts a callee's spans under the turn's root span."""
    return f"00-{trace_id}-{root_span_id(trace_id)}-01"


def _hex(text: str, digits: int) -> str:
    # Lone surrogates reach us from damaged JSON; they must give an id, not an exception.
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]

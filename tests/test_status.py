"""What `status` says, for programs and for people."""

from __future__ import annotations

import orjson
import pytest

from tracebridge import ids
from tracebridge.encode import encode_span
from tracebridge.model import (
    SCRIPT_CALL,
    CallIdentity,
    Evidence,
    GatewayCall,
    Link,
    Span,
    SpanKind,
    Turn,
    TurnState,
)
from tracebridge.settings import read_settings
from tracebridge.spool import Spool
from tracebridge.store import Store
from tracebridge.views.status import status, status_text


def call(call_id, gateway="g"):
    return GatewayCall(
        call_id=call_id,
        gateway=gateway,
        method="POST",
        path="/",
        start_ns=1,
        end_ns=2,
        identity=CallIdentity(agent="claude-code", session_id="s"),
    )


@pytest.fixture
def filled(home):
    with Store(home, clock=lambda: 7) as store, store.transaction():
        for number, evidence in enumerate([*Evidence, Evidence.TURN_ID]):
            store.add_call(call(str(number)), 1)
            store.set_link(str(number), Link(trace_id="f" * 32, evidence=evidence))
        store.add_call(call("orphan"), 1)
        store.set_reason("orphan", "nobody knows it", "e" * 32)
        store.add_call(call("script", "litellm"), 1)
        store.set_reason("script", SCRIPT_CALL, "d" * 32)
        store.add_call(call("waiting"), 1)
        for key, state in (("a", TurnState.OPEN), ("b", TurnState.FINISHED)):
            trace = ids.trace_id("claude-code", "s", key)
            turn = Turn(
                agent="claude-code",
                session_id="s",
                turn_key=key,
                trace_id=trace,
                state=state,
                start_ns=1,
                end_ns=2,
            )
            span = Span(
                trace_id=trace,
                span_id=ids.root_span_id(trace),
                parent_span_id=None,
                name="invoke_agent",
                kind=SpanKind.INTERNAL,
                start_ns=1,
                end_ns=2,
            )
            store.put_turn(turn, [span])
            store.tell(trace, [(span.span_id, encode_span(span))], (), ["otlp", "old"])
        store.add_notes({"hook event Odd ignored": 3})
    with Store(home, clock=lambda: 7) as store:
        store.acknowledge("otlp", [ids.root_span_id(ids.trace_id("claude-code", "s", "a"))])
        store.postpone("otlp", 99, "connection refused")
    Spool(home).write_call(call("spooled"))
    return home


def test_the_state_has_the_shape_that_scripts_rely_on(filled):
    """Every key of the contract, and numbers that fit."""
    env = {
        "TRACEBRIDGE_HOME": str(filled),
        "TRACEBRIDGE_CONTENT": "metadata",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
    }
    state = orjson.loads(orjson.dumps(status(read_settings(env))))
    assert state["links"] == {
        "exact": 6,
        "inferred": 1,
        "orphans": 1,
        "side_calls": 0,
        "scripts": 1,
        "waiting": 1,
        "by_evidence": {
            "traceparent": 1,
            "turn_id": 2,
            "response_id": 1,
            "request_id": 1,
            "tool_call_id": 1,
            "session_window": 1,
        },
        "by_gateway": {
            "g": {
                "traceparent": 1,
                "turn_id": 2,
                "response_id": 1,
                "request_id": 1,
                "tool_call_id": 1,
                "session_window": 1,
                "orphan": 1,
                "waiting": 1,
            },
            "litellm": {"script": 1},
        },
        "orphan_reasons": {"nobody knows it": 1},
    }
    assert state["spool"] == 1
    assert state["outbox"] == 3
    assert state["turns"] == {"open": 1, "finished": 1, "abandoned": 0}
    assert state["notes"] == {"hook event Odd ignored": 3}
    assert state["watcher"] is False
    assert state["sink_problem"] is None
    sinks = {sink["name"]: sink for sink in state["sinks"]}
    assert sinks["otlp"] == {
        "name": "otlp",
        "target": "http://127.0.0.1:4318/v1/traces",
        "configured": True,
        "waiting": 1,
        "refused": 0,
        "sent": 1,
        "last_success_ns": 7,
        "last_error_ns": 7,
        "last_error": "connection refused",
    }
    assert (sinks["old"]["configured"], sinks["old"]["waiting"]) == (False, 2)
    assert state["settings"]["content"] == {"value": "metadata", "origin": "TRACEBRIDGE_CONTENT"}


def test_people_are_told_the_same(filled):
    """With what is wrong, and where each setting comes from."""
    env = {"TRACEBRIDGE_HOME": str(filled), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    text = status_text(status(read_settings(env)))
    for part in (
        "1 open, 1 finished",
        "6 linked exactly, 1 inferred, 1 orphans, 1 waiting",
        "1 orphans: nobody knows it",
        "1 of scripts",
        "litellm: 1 script",
        "last error: connection refused",
        "old → not configured any more",
        "hook event Odd ignored: 3",
        "content = 'redacted' (default)",
    ):
        assert part in text


def test_an_empty_home_has_a_state_too(home):
    """It says what to do to send something."""
    state = status(read_settings({"TRACEBRIDGE_HOME": str(home)}))
    assert state["sinks"] == []
    assert state["links"]["exact"] == state["spool"] == state["outbox"] == 0
    assert "set OTEL_EXPORTER_OTLP_ENDPOINT" in status_text(state)


def test_a_sink_that_cannot_be_used_is_no_reason_to_say_nothing(home):
    """Its problem is part of the state."""
    env = {"TRACEBRIDGE_HOME": str(home), "TRACEBRIDGE_SINKS": "carrier_pigeon"}
    state = status(read_settings(env))
    assert "carrier_pigeon" in state["sink_problem"]
    assert "carrier_pigeon" in status_text(state)

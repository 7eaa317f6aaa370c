"""Calls told and calls seen: one chat each, and which of them are attempts at the same thing."""

from __future__ import annotations

import pytest

from tracebridge.chats import put_together
from tracebridge.model import CallIdentity, Evidence, GatewayCall, Link, ModelCall, Usage

SECOND = 1_000_000_000


def seen(number: int, **known) -> tuple[GatewayCall, Link]:
    begin = {"start_ns": number * SECOND, "end_ns": number * SECOND + SECOND // 2}
    call = GatewayCall(
        call_id=f"call-{number}", gateway="tracebridge", method="POST", path="/", **(begin | known)
    )
    return call, Link(trace_id="t", evidence=Evidence.TURN_ID)


def told(number: int, **known) -> ModelCall:
    begin = {"start_ns": number * SECOND, "end_ns": number * SECOND + SECOND // 2}
    return ModelCall(**({"key": f"told-{number}"} | begin | known))


def attempts(chats) -> list[tuple[int | None, str | None]]:
    return [(chat.attempt, chat.retry_of) for chat in chats]


def test_attempts_are_counted_from_the_first_failure_on():
    """Thirty failures and an answer are one group, each present; what follows is a call of its own."""
    failed = [seen(n, error_type="500") for n in range(30)]
    chats = put_together([], {}, [*failed, seen(30), seen(31)], [])
    assert attempts(chats) == [
        (None, None),
        *((n, "call-0") for n in range(2, 32)),
        (None, None),
    ]


def test_attempts_that_only_the_transcript_tells_are_counted_too():
    """Without a gateway, too, an attempt says which one it is."""
    chats = put_together([told(1, error_type="429"), told(2)], {}, [], [])
    assert attempts(chats) == [(None, None), (2, "told-1")]


def test_side_calls_and_subagents_are_no_attempts_at_the_turns_call():
    """A title that is asked for meanwhile does not break the group, and is none of it."""
    title = CallIdentity(agent="claude-code", session_id="s", request_class="auxiliary")
    calls = [seen(1, error_type="529"), seen(2, identity=title), seen(3)]
    chats = put_together([told(4, key="sub")], {"sub": "agent-1"}, calls, [])
    assert attempts(chats) == [(None, None), (None, None), (2, "call-1"), (None, None)]


@pytest.mark.parametrize(
    ("record", "gateway", "by"),
    [
        ({"key": "msg_1", "response_id": "msg_1"}, {"response_id": "msg_1"}, "response_id"),
        ({"request_id": "req_1"}, {"request_id": "req_1"}, "request_id"),
        (
            {"key": "step-1"},
            {"identity": CallIdentity(agent="opencode", call_key="step-1")},
            "call_key",
        ),
        ({"tool_call_ids": ("t1",)}, {"tool_call_ids": ("t1",)}, "tool_call_id"),
        (
            {"usage": Usage(input_tokens=7, output_tokens=3)},
            {"usage": Usage(input_tokens=7, output_tokens=3)},
            "tokens",
        ),
        ({}, {}, "time"),
        ({"error_type": "network"}, {"error_type": "connect_failed"}, "time"),
        ({}, {"error_type": "stream_cut", "status_code": 200}, "time"),
    ],
)
def test_a_chat_says_by_what_its_two_records_are_one(record, gateway, by):
    """By an id where there is one, else by tokens or time."""
    (chat,) = put_together([told(1, **record)], {}, [seen(1, **gateway)], [])
    assert chat.told is not None
    assert chat.seen is not None
    assert chat.matched_by == by


def test_what_nobody_else_tells_is_matched_by_nothing():
    """A failed call and an answer of the same time are two calls."""
    chats = put_together([told(1)], {}, [seen(1, error_type="500")], [])
    assert [chat.matched_by for chat in chats] == [None, None]

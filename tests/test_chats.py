"""Calls told and calls seen: one chat each, and which of them are attempts at the same thing."""

from __future__ import annotations

import pytest

from tracebridge.chats import put_together
from tracebridge.model import CallIdentity, Evidence, GatewayCall, Link, ModelCall, Usage

SECOND = 1_000_000_000


def seen(number: int, **known) -> tuple[GatewayCall, Link]:
    begin = {"start_ns": number * SECOND, "end_ns": number * SECOND + SECOND // 2}
    whose = {"call_id": f"call-{number}", "gateway": "tracebridge"}
    call = GatewayCall(method="POST", path="/", **(whose | begin | known))
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


def test_the_first_of_calls_without_a_session_is_no_attempt_at_anything():
    """Whose failures before it are is a guess; where the gateway cannot say, time decides."""
    nameless = CallIdentity(agent="gemini-cli")
    failed = seen(1, error_type="429", identity=nameless, attempt=1)
    first = seen(2, identity=nameless, attempt=1)
    assert attempts(put_together([], {}, [failed, first], [])) == [(None, None)] * 2
    unknown = seen(2, identity=nameless)
    assert attempts(put_together([], {}, [failed, unknown], []))[1] == (2, "call-1")


def test_what_goes_wrong_behind_an_answer_leaves_it_one_call():
    """An agent that is broken off while its tools run says so of the answer that asked for them."""
    record = told(1, key="step-1", error_type="interrupted", tool_call_ids=("t1",))
    identity = CallIdentity(agent="opencode", call_key="step-1")
    asked = seen(1, identity=identity, tool_call_ids=("t1",))
    (chat,) = put_together([record], {}, [asked], [])
    assert (chat.matched_by, chat.error_type) == ("call_key", None)
    assert len(put_together([record], {}, [seen(1, identity=identity)], [])) == 2


def test_an_id_that_is_added_to_a_record_changes_nothing():
    """What was known by its tools stays so when telemetry tells the answer's id, late."""
    answer = seen(1, response_id="resp-1", tool_call_ids=("t1",))
    before = told(1, key="line-1", tool_call_ids=("t1",))
    after = told(1, key="line-1", tool_call_ids=("t1",), response_id="resp-1")
    chats = [put_together([record], {}, [answer], []) for record in (before, after)]
    assert [[chat.matched_by for chat in each] for each in chats] == [["tool_call_id"]] * 2
    without = told(1, key="line-1", response_id="resp-1")
    assert put_together([without], {}, [answer], [])[0].matched_by == "response_id"


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


@pytest.mark.parametrize(
    ("gateway", "by"),
    [
        ({"gateway": "envoy"}, "time"),
        # Who read the answer would know of the tool.
        ({"gateway": "litellm", "usage": Usage(input_tokens=7, output_tokens=3)}, None),
        ({}, None),
    ],
)
def test_who_read_no_answer_knows_of_no_tools(gateway, by):
    """A gateway that passes on what it does not understand saw the call that asks for a tool."""
    record = {"response_id": "resp_1", "tool_call_ids": ("t1",)}
    chats = put_together([told(1, **record)], {}, [seen(1, **gateway)], [])
    assert {chat.matched_by for chat in chats} == {by}

"""Calls that ours, another gateway, the agent, or all of them told of: each is one call."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from sessions import Session, sessions, trace_of

from tracebridge.linker import link
from tracebridge.model import GatewayCall, Turn
from tracebridge.turns import TurnAssembler

MINUTE_NS = 60_000_000_000


@st.composite
def seen_elsewhere(draw, call: GatewayCall) -> GatewayCall:
    """Return what another gateway, with a clock of its own, may tell of a call."""
    skew_ns = draw(st.integers(-10, 10)) * MINUTE_NS
    named = draw(st.sampled_from(["caller", "session", "nothing"]))
    identity = call.identity
    session_id = identity.session_id if identity is not None else None
    return replace(
        call,
        call_id=f"otlp:{call.call_id}",
        gateway="litellm",
        start_ns=max(0, call.start_ns + skew_ns),
        end_ns=max(0, call.end_ns + skew_ns),
        identity=identity if named == "caller" else None,
        conversation_id=session_id if named == "session" else None,
        tool_call_ids=call.tool_call_ids if draw(st.booleans()) else (),
    )


def turns_with(session: Session, calls: list[GatewayCall]) -> list[Turn]:
    assembler = TurnAssembler("claude-code", session.session_id)
    assembler.add(session.sightings)
    linked, _ = link(calls, assembler.turns())
    return assembler.turns(linked)


@given(session=sessions(), data=st.data())
def test_however_many_tell_of_a_call_it_is_one(session: Session, data):
    """Any calls seen by ours, by another, or by both: the chats and their tokens stay the same."""
    theirs = [
        data.draw(seen_elsewhere(call))
        for call in session.calls
        if call.response_id is not None and data.draw(st.booleans())
    ]
    ours = [call for call in session.calls if data.draw(st.booleans())]
    told = turns_with(session, [])
    calls = data.draw(st.permutations([*ours, *theirs]))
    for before, after in zip(told, turns_with(session, calls), strict=True):
        assert after.trace_id == before.trace_id
        assert sorted(chat.key for chat in after.chats) == sorted(c.key for c in before.chats)
        for chat in after.chats:
            records = [each for each in (chat.seen, *chat.others) if each is not None]
            keys = {call.response_id or call.request_id for call in records}
            assert keys <= {chat.key}
            if any(call.is_ours for call in records):
                assert chat.seen is not None
                assert chat.seen.is_ours


@given(one=sessions(number=1), two=sessions(number=2), data=st.data())
def test_another_clock_leads_to_no_wrong_turn(one: Session, two: Session, data):
    """What another gateway tells with an id goes to the turn that knows the id, whatever the time."""
    calls = [call for call in (*one.calls, *two.calls) if call.response_id is not None]
    assemblers = []
    for session in (one, two):
        assembler = TurnAssembler("claude-code", session.session_id)
        assembler.add(session.sightings)
        assemblers.append(assembler)
    turns = [turn for assembler in assemblers for turn in assembler.turns()]
    seen = [data.draw(seen_elsewhere(call)) for call in calls]
    linked, orphans = link(seen, turns)
    assert not orphans
    for call, found in linked:
        session = one if call.call_id.removeprefix("otlp:") in one.truth else two
        turn_key, subagent = session.truth[call.call_id.removeprefix("otlp:")]
        assert found.trace_id == trace_of(session, turn_key)
        assert found.subagent_id == subagent
        assert found.evidence.confidence == "exact"

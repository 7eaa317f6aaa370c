"""The linker: which turn made a call, by which evidence, and never a wrong one."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from sessions import AGENT, SECOND, Session, sessions, trace_of

from tracebridge.ids import traceparent
from tracebridge.linker import link
from tracebridge.model import (
    CallIdentity,
    Compaction,
    Evidence,
    GatewayCall,
    ModelCall,
    Outcome,
    Prompt,
    Sighting,
    Source,
    ToolCall,
    TurnEnd,
)
from tracebridge.turns import TurnAssembler


def turns_of(session: Session, sightings=None):
    assembler = TurnAssembler(AGENT, session.session_id)
    assembler.add(session.sightings if sightings is None else sightings)
    return assembler.turns()


@given(one=sessions(number=1), two=sessions(number=2), seed=st.integers())
def test_every_call_finds_its_turn(one: Session, two: Session, seed):
    """Two sessions at once, calls in any order: each call under the turn and subagent it is of."""
    calls = [*one.calls, *two.calls]
    random.Random(seed).shuffle(calls)
    linked, orphans = link(calls, [*turns_of(one), *turns_of(two)])
    assert orphans == []
    for call, found in linked:
        session = one if call.call_id in one.truth else two
        turn_key, subagent = session.truth[call.call_id]
        assert found.trace_id == trace_of(session, turn_key)
        assert found.subagent_id == subagent
        assert found.evidence.confidence == "exact"


@given(one=sessions(number=1), two=sessions(number=2), data=st.data())
def test_never_a_wrong_turn(one: Session, two: Session, data):
    """With any part of the story missing, an exact link is right, and no link crosses sessions."""
    kept = data.draw(st.lists(st.sampled_from(one.sightings + two.sightings), unique_by=id))
    turns = [
        *turns_of(one, [s for s in kept if s.session_id == one.session_id]),
        *turns_of(two, [s for s in kept if s.session_id == two.session_id]),
    ]
    by_trace = {turn.trace_id: turn for turn in turns}
    for call, found in link([*one.calls, *two.calls], turns)[0]:
        session = one if call.call_id in one.truth else two
        assert by_trace[found.trace_id].session_id == session.session_id
        strayed = "another-turn" in str(by_trace[found.trace_id].turn_key)
        if found.evidence is not Evidence.SESSION_WINDOW and not strayed:
            lost = found.evidence is Evidence.TOOL_CALL_ID and "another-turn" in str(kept)
            assert lost or found.trace_id == trace_of(session, session.truth[call.call_id][0])


def call(**known) -> GatewayCall:
    identity = CallIdentity(agent=AGENT, session_id="s", turn_key=known.pop("turn_key", None))
    defaults = {"start_ns": 3 * SECOND, "end_ns": 4 * SECOND, "identity": identity}
    return GatewayCall(call_id="c", gateway="g", method="POST", path="/", **(defaults | known))


def session_with(*spans: tuple[str, int, int | None]) -> list:
    session = Session("s")
    for turn, start, end in spans:
        parts = [Prompt(key=f"p-{turn}", text="hi", start_ns=start)]
        if end is not None:
            parts.append(TurnEnd(key="stop", end_ns=end, outcome=Outcome.COMPLETED))
        session.hooks += [
            Sighting(
                agent=AGENT,
                session_id="s",
                source=Source.HOOK,
                time_ns=start,
                part=part,
                turn_key=turn,
            )
            for part in parts
        ]
    return turns_of(session)


def evidence_of(a_call, turns):
    linked, orphans = link([a_call], turns)
    return linked[0][1].evidence if linked else orphans[0].reason


def test_traceparent_beats_everything():
    """A traceparent that names a turn's trace is the best evidence there is."""
    turns = session_with(("t", SECOND, None))
    assert evidence_of(call(traceparent=traceparent(turns[0].trace_id)), turns) == "traceparent"


def test_foreign_traceparent_is_no_evidence():
    """A traceparent of somebody else's trace says nothing about our turns."""
    turns = session_with(("t", SECOND, None))
    assert evidence_of(call(traceparent=traceparent("f" * 32)), turns) == "session_window"
    assert evidence_of(call(traceparent="garbage"), turns) == "session_window"


def test_a_named_turn_is_never_guessed_away():
    """A call that names a turn nobody knows waits for it, even while another turn is open."""
    turns = session_with(("t", SECOND, None))
    assert evidence_of(call(turn_key="unknown"), turns) == "its turn is not known"


def test_session_and_time_are_an_inference():
    """Without any key the only turn of that time in that session is taken, marked inferred."""
    turns = session_with(("t", SECOND, 5 * SECOND), ("u", 8 * SECOND, None))
    linked, _ = link([call()], turns)
    assert linked[0][1].evidence.confidence == "inferred"
    assert linked[0][1].trace_id == turns[0].trace_id


def test_a_side_call_after_the_answer_is_the_last_turns():
    """A title or classifier call between two turns belongs to the one before."""
    turns = session_with(("t", SECOND, 2 * SECOND), ("u", 60 * SECOND, None))
    linked, _ = link([call(start_ns=30 * SECOND)], turns)
    assert linked[0][1].trace_id == turns[0].trace_id


def test_orphans_say_why():
    """What cannot be linked is not: no session, an unknown one, or before its first turn."""
    turns = session_with(("t", 10 * SECOND, None))
    assert evidence_of(call(identity=None), turns) == "no session in the request"
    stranger = CallIdentity(agent=AGENT, session_id="other")
    assert evidence_of(call(identity=stranger), turns) == "its session is not known"
    assert evidence_of(call(), turns) == "before the first turn of its session"


def test_the_answer_does_not_depend_on_earlier_links():
    """Linking turns that already carry calls gives the same links again."""
    turns = session_with(("t", SECOND, None))
    a_call = call(turn_key="t")
    linked, _ = link([a_call], turns)
    again = [replace(turn) for turn in turns]
    assert link([a_call], again)[0] == linked


def test_a_summary_is_not_tied_to_the_tools_it_recalls():
    """A compaction request repeats tool results of an earlier turn: they are no evidence."""
    session = Session("s")
    session.hooks = [
        Sighting(
            agent=AGENT,
            session_id="s",
            source=Source.HOOK,
            time_ns=at,
            part=part,
            turn_key=turn,
        )
        for at, turn, part in (
            (SECOND, "t", Prompt(key="p", text="hi", start_ns=SECOND)),
            (SECOND, "t", ToolCall(key="tool", start_ns=SECOND, end_ns=2 * SECOND)),
            (2 * SECOND, "t", TurnEnd(key="x", end_ns=2 * SECOND, outcome=Outcome.COMPLETED)),
            (20 * SECOND, "u", Compaction(key="c", start_ns=20 * SECOND)),
        )
    ]
    turns = turns_of(session)
    identity = CallIdentity(agent=AGENT, session_id="s", request_class="compaction")
    summary = call(
        identity=identity, start_ns=21 * SECOND, end_ns=22 * SECOND, tool_result_ids=("tool",)
    )
    ((_, found),) = link([summary], turns)[0]
    assert (found.trace_id, found.evidence) == (turns[1].trace_id, Evidence.SESSION_WINDOW)


def test_the_turn_that_runs_beats_one_about_to_begin():
    """Clocks may differ a little; that does not move a call out of the turn that it lies in."""
    turns = session_with(("t", SECOND, 5 * SECOND), ("u", 5 * SECOND + 300, None))
    linked, _ = link([call(start_ns=5 * SECOND - 300)], turns)
    assert linked[0][1].trace_id == turns[0].trace_id
    linked, _ = link([call(start_ns=SECOND - 300)], turns)
    assert linked[0][1].trace_id == turns[0].trace_id


def told_session():
    """Return the turns of a session whose transcript knows one answer in each of two turns."""
    session = Session("s")
    for turn, at in (("t", SECOND), ("u", 10 * SECOND)):
        parts = (
            Prompt(key=f"p-{turn}", text="hi", start_ns=at),
            ModelCall(key=f"msg-{turn}", response_id=f"msg-{turn}", start_ns=at, end_ns=at + 1),
            ToolCall(key=f"tool-{turn}", start_ns=at + 2, end_ns=at + 3),
        )
        session.transcript += [
            Sighting(
                agent=AGENT,
                session_id="s",
                source=Source.TRANSCRIPT,
                time_ns=at,
                part=part,
                turn_key=turn,
            )
            for part in parts
        ]
    return turns_of(session)


def test_a_named_turn_beats_a_response_id():
    """What a request says of itself is not overruled by what its answer looks like."""
    turns = told_session()
    assert evidence_of(call(response_id="msg-t"), turns) == "response_id"
    assert evidence_of(call(response_id="msg-t", turn_key="x"), turns) == "its turn is not known"


def test_tools_of_two_turns_are_no_evidence():
    """A request that carries results of several turns is not tied to any of them."""
    turns = told_session()
    assert evidence_of(call(tool_result_ids=("tool-u",)), turns) == "tool_call_id"
    both = call(tool_result_ids=("tool-t", "tool-u"))
    assert evidence_of(both, turns) == "session_window"


def test_two_open_turns_are_ambiguous():
    """Where two turns could have made a call, none is chosen."""
    turns = [replace(turn, end_ns=None) for turn in told_session()]
    late = call(start_ns=30 * SECOND, end_ns=31 * SECOND)
    assert evidence_of(late, turns) == "more than one turn of its session was open"

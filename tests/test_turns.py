"""The assembler: any order, any repetition, any gap."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions import AGENT, SECOND, Session, sessions, trace_of

from tracebridge.linker import link
from tracebridge.model import (
    CallIdentity,
    Compaction,
    GatewayCall,
    Outcome,
    PermissionAsk,
    Prompt,
    SessionInfo,
    Sighting,
    Source,
    Status,
    Subagent,
    ToolCall,
    Turn,
    TurnEnd,
    TurnState,
    Usage,
)
from tracebridge.semconv import END_UNKNOWN, INPUT_TOKENS, OUTPUT_TOKENS, SPAN_TYPE
from tracebridge.spans import render
from tracebridge.turns import TurnAssembler


def assembled(session_id, sightings, calls=(), *, gone=False) -> list[Turn]:
    assembler = TurnAssembler(AGENT, session_id)
    assembler.add(sightings)
    linked, _ = link(calls, assembler.turns(gone=gone))
    return assembler.turns(linked, gone=gone)


def spans_of(turns):
    return [render(turn) for turn in turns]


def see(part, time_ns=0, *, source=Source.HOOK, turn="t", subagent=None) -> Sighting:
    return Sighting(
        agent=AGENT,
        session_id="s",
        source=source,
        time_ns=time_ns,
        part=part,
        turn_key=turn,
        subagent_id=subagent,
    )


def prompt(at, turn="t", text="hi"):
    return see(Prompt(key=f"p{turn}", text=text, start_ns=at), at, turn=turn)


@given(session=sessions(), seed=st.integers())
def test_order_and_repetition_do_not_matter(session: Session, seed):
    """Events in any order, some of them twice, give the very same spans."""
    expected = spans_of(assembled(session.session_id, session.sightings, session.calls))
    chance = random.Random(seed)
    sightings = [*session.sightings, *chance.sample(session.sightings, len(session.sightings) // 2)]
    calls = list(session.calls)
    chance.shuffle(sightings)
    chance.shuffle(calls)
    assert spans_of(assembled(session.session_id, sightings, calls)) == expected


@given(session=sessions(), seed=st.integers())
def test_pieces_do_not_matter(session: Session, seed):
    """Sightings that come in pieces, with looks in between, end in the same turns."""
    chance = random.Random(seed)
    sightings = list(session.sightings)
    chance.shuffle(sightings)
    assembler = TurnAssembler(AGENT, session.session_id)
    for sighting in sightings:
        assembler.add([sighting])
        if chance.random() < 0.3:
            assembler.turns()
    linked, _ = link(session.calls, assembler.turns())
    expected = assembled(session.session_id, session.sightings, session.calls)
    assert assembler.turns(linked) == expected


@given(session=sessions(), data=st.data())
def test_gaps_leave_a_poorer_tree_and_no_wrong_one(session: Session, data):
    """What is missing is missing: every span that is there is one of the whole tree's."""
    kept = data.draw(st.lists(st.sampled_from(session.sightings), unique_by=id))
    whole = {
        span.span_id: span.trace_id
        for spans in spans_of(assembled(session.session_id, session.sightings, session.calls))
        for span in spans
    }
    for spans in spans_of(assembled(session.session_id, kept, session.calls)):
        ids = {span.span_id for span in spans}
        for span in spans:
            if span.attributes[SPAN_TYPE] == "llm" or "another-turn" not in str(kept):
                assert whole.get(span.span_id, span.trace_id) == span.trace_id
            assert span.parent_span_id is None or span.parent_span_id in ids | whole.keys()


@given(session=sessions())
def test_each_call_is_one_chat_span(session: Session):
    """Told by gateway, by transcript or by both: one physical call is one chat span."""
    both = assembled(session.session_id, session.sightings, session.calls)
    told = assembled(session.session_id, session.sightings)
    seen = assembled(session.session_id, session.hooks, session.calls)
    number = len(session.calls)
    assert sum(len(turn.chats) for turn in both) == number
    assert sum(len(turn.chats) for turn in told) == number
    if all(call.identity.turn_key for call in session.calls):
        assert sum(len(turn.chats) for turn in seen) == number


@given(session=sessions())
def test_usage_stands_on_chat_spans_only(session: Session):
    """The tokens of all chat spans are the tokens of all calls, and no other span has any."""
    total = 0
    for spans in spans_of(assembled(session.session_id, session.sightings, session.calls)):
        for span in spans:
            if span.attributes[SPAN_TYPE] == "llm":
                total += span.attributes.get(OUTPUT_TOKENS, 0)
            else:
                assert INPUT_TOKENS not in span.attributes
    usages = [call.usage or Usage() for call in session.calls]
    assert total == sum(usage.output_tokens or 0 for usage in usages)


@settings(max_examples=50)
@given(session=sessions())
def test_hooks_alone_and_transcript_alone_give_the_same_turns(session: Session):
    """Each source alone tells of every turn, with the same trace and the same tools."""
    expected = [
        (turn.trace_id, turn.outcome, [tool.key for tool in turn.tools])
        for turn in assembled(session.session_id, session.sightings)
    ]
    for sightings in (session.hooks, session.transcript):
        turns = assembled(session.session_id, sightings)
        if "another-turn" in str(sightings):
            continue
        found = [(t.trace_id, t.outcome, [tool.key for tool in t.tools]) for t in turns]
        assert found == expected


def test_a_turn_is_open_until_something_tells_its_end():
    """Neither a tool nor an answer ends a turn; Stop does."""
    sightings = [prompt(SECOND), see(ToolCall(key="a", start_ns=2 * SECOND), 2 * SECOND)]
    (turn,) = assembled("s", sightings)
    assert (turn.state, turn.end_ns) == (TurnState.OPEN, None)
    stop = TurnEnd(key="stop", end_ns=3 * SECOND, outcome=Outcome.COMPLETED)
    (turn,) = assembled("s", [*sightings, see(stop, 3 * SECOND)])
    assert (turn.state, turn.outcome, turn.end_ns) == (
        TurnState.FINISHED,
        Outcome.COMPLETED,
        3 * SECOND,
    )


def test_work_after_stop_reopens_the_turn():
    """A Stop hook of somebody else can send the agent back to work: then it was no end."""
    stop = see(TurnEnd(key="stop", end_ns=2 * SECOND, outcome=Outcome.COMPLETED), 2 * SECOND)
    more = see(ToolCall(key="a", start_ns=3 * SECOND), 3 * SECOND)
    (turn,) = assembled("s", [prompt(SECOND), stop, more])
    assert turn.state is TurnState.OPEN


def test_a_turn_without_an_end_is_closed_by_the_next_one():
    """Escape tells nobody: when the agent works on the next prompt, the last turn was interrupted."""
    work = see(ToolCall(key="a", start_ns=9 * SECOND), 9 * SECOND, turn="u")
    first, second = assembled("s", [prompt(SECOND), prompt(9 * SECOND, turn="u"), work])
    assert (first.outcome, first.end_ns) == (Outcome.INTERRUPTED, SECOND)
    assert second.state is TurnState.OPEN


def test_a_prompt_that_waits_in_a_queue_ends_no_turn():
    """The agent may be busy with a tool for long, and tell of the prompt already."""
    tool = see(ToolCall(key="a", start_ns=2 * SECOND), 2 * SECOND)
    turns = assembled("s", [prompt(SECOND), tool, prompt(3 * SECOND, turn="u")])
    assert [turn.state for turn in turns] == [TurnState.OPEN, TurnState.OPEN]


def test_the_end_of_the_session_interrupts_what_runs():
    """SIGINT gives a SessionEnd and no Stop: what ran ends with the session, not as an error."""
    ended = see(SessionInfo(key="session", ended_ns=5 * SECOND), 5 * SECOND, turn=None)
    tool = see(ToolCall(key="a", name="Bash", start_ns=2 * SECOND), 2 * SECOND)
    (turn,) = assembled("s", [prompt(SECOND), tool, ended])
    assert (turn.outcome, turn.end_ns) == (Outcome.INTERRUPTED, 5 * SECOND)
    assert render(turn)[-1].status is Status.UNSET


def test_a_resumed_session_is_not_over():
    """What happens after a SessionEnd belongs to a session that lives again."""
    ended = see(SessionInfo(key="session", ended_ns=5 * SECOND), 5 * SECOND, turn=None)
    (turn,) = assembled("s", [ended, prompt(9 * SECOND)])
    assert turn.state is TurnState.OPEN


def test_a_process_that_is_gone_abandons_its_turn():
    """SIGKILL tells nobody anything: the turn is abandoned, not interrupted."""
    (turn,) = assembled("s", [prompt(SECOND)], gone=True)
    assert (turn.state, turn.outcome) == (TurnState.ABANDONED, Outcome.ABANDONED)


def test_local_commands_are_no_turns():
    """A slash command that asked no model leaves no trace."""
    command = Prompt(key="c", text="<command-name>/cost</command-name>", origin="command")
    assert assembled("s", [see(command, SECOND)]) == []
    (turn,) = assembled("s", [see(command, 1), see(Compaction(key="c", start_ns=SECOND), SECOND)])
    assert len(turn.compactions) == 1


def test_a_permission_wait_finds_its_tool():
    """An ask without an id is about the running call with that name and input."""
    sightings = [
        prompt(SECOND),
        see(ToolCall(key="a", name="Bash", input_digest="d", start_ns=2 * SECOND), 2),
        see(ToolCall(key="b", name="Bash", input_digest="e", start_ns=2 * SECOND), 2),
        see(PermissionAsk(key="q", tool_name="Bash", input_digest="d", start_ns=3 * SECOND), 3),
        see(ToolCall(key="a", end_ns=9 * SECOND, duration_ns=SECOND), 9),
    ]
    (turn,) = assembled("s", sightings)
    (wait,) = turn.waits
    assert (wait.tool_key, wait.end_ns, wait.decision) == ("a", 8 * SECOND, "allow")


@pytest.mark.parametrize("answered_ns", [5 * SECOND, None])
def test_a_wait_ends_when_it_was_answered(answered_ns):
    """Where nobody told when, it is as long as its tool, and says that its end is unknown."""
    answer = PermissionAsk(key="q", end_ns=answered_ns, decision="allow", decided_by="user")
    sightings = [
        prompt(SECOND),
        see(ToolCall(key="a", name="Bash", input_digest="d", start_ns=2 * SECOND), 2),
        see(PermissionAsk(key="q", tool_name="Bash", input_digest="d", start_ns=3 * SECOND), 3),
        see(answer, 5),
        see(ToolCall(key="a", end_ns=9 * SECOND), 9),
    ]
    (turn,) = assembled("s", sightings)
    (wait,) = turn.waits
    assert (wait.end_ns, wait.decision, wait.decided_by) == (answered_ns, "allow", "user")
    (span,) = [s for s in render(turn) if s.attributes[SPAN_TYPE] == "permission"]
    assert span.end_ns == (answered_ns or 9 * SECOND)
    assert span.attributes.get(END_UNKNOWN) is (True if answered_ns is None else None)


def test_the_next_request_tells_how_long_a_tool_took():
    """A duration told at a gateway counts where no hook told it, and sets the start of its tool."""
    told = [
        see(ToolCall(key="quick", start_ns=20, end_ns=90), source=Source.TRANSCRIPT),
        see(ToolCall(key="hooked", start_ns=20, end_ns=60, duration_ns=30)),
        see(ToolCall(key="endless", start_ns=20), source=Source.TRANSCRIPT),
        see(ToolCall(key="long", start_ns=20, end_ns=80), source=Source.TRANSCRIPT),
    ]
    took = {"quick": 10, "hooked": 31, "endless": 5, "long": 1000, "strange": 1}
    call = GatewayCall(
        call_id="c",
        gateway="tracebridge",
        method="POST",
        path="/v1/messages",
        start_ns=95,
        end_ns=99,
        identity=CallIdentity(agent=AGENT, session_id="s", turn_key="t", tool_durations_ns=took),
    )
    (turn,) = assembled("s", [prompt(10), *told], [call])
    times = {tool.key: (tool.start_ns, tool.duration_ns) for tool in turn.tools}
    assert times == {
        "quick": (80, 10),
        "hooked": (20, 30),
        "endless": (20, 5),
        # Its end is that of the transcript's line, which is a little off.
        "long": (20, 1000),
    }


def test_a_subagent_stays_with_the_turn_that_started_it():
    """Hooks of a background subagent carry the id of the turn that runs now; that is not its own."""
    sightings = [
        prompt(SECOND, turn="t"),
        see(Subagent(key="agent", type="helper", start_ns=2 * SECOND), 2 * SECOND, turn="t"),
        prompt(5 * SECOND, turn="u"),
        see(ToolCall(key="a", start_ns=6 * SECOND), 6, turn="u", subagent="agent"),
    ]
    first, second = assembled("s", sightings)
    assert [tool.key for tool in first.tools] == ["a"]
    assert first.tool_owners == {"a": "agent"}
    assert second.tools == ()


def test_a_session_has_the_traces_of_the_contract():
    """Trace ids are those that any process computes from agent, session and turn."""
    (turn,) = assembled("s", [prompt(SECOND)])
    assert turn.trace_id == trace_of(Session("s"), "t")


def test_two_calls_may_have_one_response_id():
    """A gateway's cache answers twice with the same response: still two calls, two spans."""
    calls = [
        GatewayCall(
            call_id=f"call-{number}",
            gateway="test",
            method="POST",
            path="/",
            start_ns=(2 + number) * SECOND,
            end_ns=(3 + number) * SECOND,
            identity=CallIdentity(agent=AGENT, session_id="s", turn_key="t"),
            response_id="msg",
        )
        for number in range(2)
    ]
    (turn,) = assembled("s", [prompt(SECOND)], calls)
    ids = [span.span_id for span in render(turn) if span.attributes[SPAN_TYPE] == "llm"]
    assert len(set(ids)) == 2

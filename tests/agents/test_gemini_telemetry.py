"""Calls that Gemini CLI names nowhere but in its telemetry, and calls that nobody names."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tracebridge.agents import gemini_cli, telemetry
from tracebridge.linker import link
from tracebridge.model import (
    CallIdentity,
    Evidence,
    GatewayCall,
    HookEvent,
    ModelCall,
    Outcome,
    Prompt,
    Sighting,
    Source,
    ToolCall,
    TurnEnd,
    Usage,
)
from tracebridge.turns import TurnAssembler

SECOND = 1_000_000_000
# 2026-11-21T05:31:00Z
START = 1_795_239_060 * SECOND
SESSION = "ab9d37ea-0cb2-452a-aefd-bf08809ad8d1"
STAMP = "2026-11-21T05:31:02.000Z"
ANSWER = {
    "name": "gemini_cli.api_response",
    "session.id": SESSION,
    "event.timestamp": STAMP,
    "prompt_id": SESSION,
    "role": "main",
    "model": "m",
    "duration_ms": 500,
    "status_code": 200,
    "input_token_count": 100,
    "output_token_count": 20,
    "thoughts_token_count": 5,
    "cached_content_token_count": 60,
    "tool_token_count": 0,
}
DETAILS = {
    "name": "gen_ai.client.inference.operation.details",
    "session.id": SESSION,
    "event.timestamp": STAMP,
    "gen_ai.response.id": "resp-1",
}
FAILURE = {**ANSWER, "name": "gemini_cli.api_error", "status_code": 429, "error.type": "Error"}
USAGE = Usage(input_tokens=100, output_tokens=25, cache_read_tokens=60, reasoning_tokens=5)


def read(*records: object) -> list[ModelCall]:
    return [sighting.part for sighting in sightings(*records)]


def sightings(*records: object) -> tuple[Sighting, ...]:
    payload = json.dumps({"telemetry": list(records)}).encode()
    event = HookEvent(
        agent="gemini-cli",
        time_ns=START,
        pid=0,
        env={},
        payload=payload,
        payload_bytes=len(payload),
    )
    return gemini_cli.parse_hook(event).sightings


def told(key: str, part, second: float = 0.0, session: str = SESSION) -> Sighting:
    return Sighting(
        agent="gemini-cli",
        session_id=session,
        source=Source.TRANSCRIPT,
        time_ns=START + int(second * SECOND),
        turn_key=key,
        part=part,
    )


def answered(key: str, second: float, usage: Usage | None = USAGE) -> ModelCall:
    return ModelCall(key=key, end_ns=START + int(second * SECOND), usage=usage, output_text=key)


def turn_of(*parts: tuple[float, object], session: str = SESSION, more=()) -> TurnAssembler:
    assembler = TurnAssembler("gemini-cli", session)
    prompt = Prompt(key="p", text="hi", start_ns=START)
    assembler.add([told("1", prompt, session=session)])
    assembler.add([told("1", part, second, session) for second, part in parts])
    assembler.add(more)
    return assembler


def seen(call_id: str, second: float, **known) -> GatewayCall:
    defaults = {
        "identity": CallIdentity(agent="gemini-cli"),
        "usage": USAGE,
        "start_ns": START + int((second - 0.4) * SECOND),
        "end_ns": START + int(second * SECOND),
    }
    return GatewayCall(call_id=call_id, gateway="g", method="POST", path="/", **(defaults | known))


def test_the_modules_words_are_what_the_receiver_keeps():
    """No content is among the attributes that are kept of a log record."""
    slug, wanted = telemetry()["gemini-cli"]
    assert slug == "gemini-cli"
    names = set().union(*wanted.kept.values())
    assert not {name for name in names if "text" in name or "message" in name or "email" in name}


def test_an_answer_with_its_response_id():
    """The record behind a response, with the same time, names it; its start is told by duration."""
    (call,) = read(ANSWER, DETAILS)
    assert (call.response_id, call.error_type, call.usage) == ("resp-1", None, USAGE)
    assert call.end_ns - call.start_ns == SECOND // 2
    # Nothing that the chat file does not say better.
    assert read(ANSWER) == []
    assert read(ANSWER, {**DETAILS, "event.timestamp": "2026-11-21T05:31:09.000Z"}) == []


def test_a_failure():
    """A failed attempt is told with its status; one without a status by its kind."""
    (call,) = read(FAILURE)
    assert (call.error_type, call.status_code, call.usage) == ("429", 429, None)
    (other,) = read({**FAILURE, "status_code": None})
    assert other.error_type == "Error"


def test_whose_a_call_is():
    """A subagent's calls are told as its own, housekeeping as a side call, a typed prompt as main."""
    by_subagent = sightings({**ANSWER, "prompt_id": "agent-7#3", "role": "subagent"}, DETAILS)
    assert [each.subagent_id for each in by_subagent] == ["agent-7"]
    typed = sightings({**ANSWER, "prompt_id": f"{SESSION}########2"}, DETAILS)
    assert [each.subagent_id for each in typed] == [None]
    (router,) = read({**ANSWER, "role": "utility_router"}, DETAILS)
    assert router.purpose == "auxiliary"
    for prompt_id in ("compress-1795280444388", f"{SESSION}########2"):
        (summing_up,) = read(
            {**ANSWER, "role": "utility_compressor", "prompt_id": prompt_id}, DETAILS
        )
        assert summing_up.purpose == "compaction"


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([*ANSWER, *DETAILS, "error.type"]),
            st.none() | st.integers() | st.text() | st.sampled_from([STAMP, ANSWER["name"]]),
        )
        | st.integers()
    )
)
def test_garbage(records):
    """Whatever stands in the place of records, reading them does not fail."""
    for call in read(*records):
        assert call.end_ns is not None


def test_telemetry_and_chat_file_tell_of_one_call():
    """An answer that both tell is one chat, named after the chat file's record, with the id."""
    first, second = answered("g1", 2.0), answered("g2", 2.6, Usage(input_tokens=1, output_tokens=2))
    assembler = turn_of((2.0, first), (2.6, second), more=sightings(ANSWER, DETAILS))
    (turn,) = assembler.turns()
    assert [(chat.key, chat.told.response_id) for chat in turn.chats] == [
        ("g1", "resp-1"),
        ("g2", None),
    ]
    assert turn.chats[0].told.output_text == "g1"


def test_the_same_answer_twice_is_told_twice():
    """Of answers with the same tokens, each is paired with the record that is nearest in time."""
    later = {"event.timestamp": "2026-11-21T05:31:03.000Z"}
    records = (
        ANSWER,
        DETAILS,
        {**ANSWER, **later},
        {**DETAILS, **later, "gen_ai.response.id": "b"},
    )
    assembler = turn_of(
        (3.001, answered("g2", 3.001)), (2.001, answered("g1", 2.001)), more=sightings(*records)
    )
    (turn,) = assembler.turns()
    assert [chat.told.response_id for chat in turn.chats] == ["resp-1", "b"]


def test_the_response_id_is_exact_evidence():
    """A call that names nothing is linked by the response id that telemetry told."""
    assembler = turn_of((2.0, answered("g1", 2.0)), more=sightings(ANSWER, DETAILS))
    call = seen("c", 2.0, response_id="resp-1", usage=None)
    linked, _ = link([call], assembler.turns())
    assert linked[0][1].evidence is Evidence.RESPONSE_ID
    (turn,) = assembler.turns(linked)
    ((chat,),) = [turn.chats]
    assert (chat.told.output_text, chat.seen.call_id) == ("g1", "c")


def test_what_was_linked_by_its_tools_stays_so_when_telemetry_comes():
    """Exact before, a link does not change for an id that comes late: its span may be told."""
    asked = structs.replace(answered("g1", 2.0), tool_call_ids=("t1",))
    tool = ToolCall(key="t1", name="read_file", start_ns=START + 2 * SECOND)
    call = seen("c", 2.0, response_id="resp-1", tool_call_ids=("t1",))
    for more in ((), sightings(ANSWER, DETAILS)):
        assembler = turn_of((2.0, asked), (2.0, tool), more=more)
        linked, _ = link([call], assembler.turns())
        assert [found.evidence for _, found in linked] == [Evidence.TOOL_CALL_ID]
        (turn,) = assembler.turns(linked)
        assert [chat.matched_by for chat in turn.chats] == ["tool_call_id"]


def test_a_nameless_call_is_its_who_tells_of_the_answer():
    """Without any id, an answer belongs to the one turn that tells of its tokens at its time."""
    one = turn_of((2.0, answered("g1", 2.0)))
    other = turn_of((2.0, answered("g9", 2.0, Usage(input_tokens=7, output_tokens=8))), session="o")
    turns = [*one.turns(), *other.turns()]
    linked, _ = link([seen("c", 2.02)], turns)
    assert [(found.trace_id, found.evidence) for _, found in linked] == [
        (turns[0].trace_id, Evidence.SESSION_WINDOW)
    ]
    (turn,) = one.turns(linked)
    assert len(turn.chats) == 1


def test_a_nameless_call_that_two_may_have_made_is_nobodys():
    """Where two turns tell of such an answer, or nobody does, a call is an orphan that says so."""
    one, two = (turn_of((2.0, answered("g", 2.0)), session=name) for name in ("a", "b"))
    turns = [*one.turns(), *two.turns()]
    assert link([seen("c", 2.0)], turns)[1][0].reason == "more than one turn may have made it"
    for strange in (seen("c", 9.0), seen("c", 2.0, usage=None)):
        assert link([strange], turns)[1][0].reason == "no turn tells of it"
    stranger = replace(seen("c", 2.0), identity=CallIdentity(agent="codex-cli"))
    assert link([stranger], turns)[1][0].reason == "no turn tells of it"


def test_a_nameless_failure_is_the_only_open_turns():
    """Nobody tells of a failed attempt: it is the turn's that alone was open then."""
    end = TurnEnd(key="e", end_ns=START + 3 * SECOND, outcome=Outcome.FAILED)
    (turn,) = turn_of((3.0, end)).turns()
    failed = seen("c", 2.0, usage=None, error_type="429")
    assert link([failed], [turn])[0][0][1].trace_id == turn.trace_id
    late = seen("c", 60.0, usage=None, error_type="429")
    assert link([late], [turn])[1][0].reason == "no turn tells of it"


def test_turns_told_by_time_are_those_that_the_chat_file_names():
    """A prompt that a hook told before there was a chat file begins the turn that the file tells."""

    def hooked(second: float, part) -> Sighting:
        sighting = told(f"unnamed:{START + int(second * SECOND)}", part, second)
        return structs.replace(sighting, source=Source.HOOK)

    def prompt(key: str, second: float) -> Prompt:
        return Prompt(key=key, text=key, start_ns=START + int(second * SECOND))

    def ends(second: float) -> TurnEnd:
        time_ns = START + int(second * SECOND)
        return TurnEnd(key="stop", end_ns=time_ns, outcome=Outcome.COMPLETED)

    assembler = TurnAssembler("gemini-cli", SESSION)
    assembler.add([told("1", prompt("one", 0.02), 0.02), told("2", prompt("two", 10.02), 10.02)])
    assembler.add([hooked(10.0, prompt("two", 10.0)), hooked(11.0, ends(11.0))])
    assembler.add([hooked(0.0, prompt("one", 0.0)), hooked(1.0, ends(1.0))])
    assembler.add([hooked(20.0, prompt("three", 20.0)), hooked(21.0, ends(21.0))])
    turns = assembler.turns()
    assert [(turn.turn_key, turn.end_ns) for turn in turns] == [
        ("1", START + SECOND),
        ("2", START + 11 * SECOND),
        ("3", START + 21 * SECOND),
    ]
    assert [len(turn.prompts) for turn in turns] == [1, 1, 1]


def test_an_inferred_link_waits_for_an_exact_one():
    """A turn with an inferred link is not confirmed: telemetry comes a second late."""
    end = TurnEnd(key="answer", end_ns=START + 2 * SECOND, outcome=Outcome.COMPLETED)
    assembler = turn_of((2.0, answered("g1", 2.0)), (2.0, end))
    assert assembler.turns()[0].confirmed
    linked, _ = link([seen("c", 2.0)], assembler.turns())
    assert not assembler.turns(linked)[0].confirmed

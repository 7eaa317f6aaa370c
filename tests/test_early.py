"""Told early: a call goes out while its turn runs, once nothing can change it any more."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from recorded_turns import recorded_sightings
from sessions import AGENT, SECOND, Session, sessions

from tracebridge.codec import encode
from tracebridge.ids import span_id, trace_id
from tracebridge.model import (
    OWN_GATEWAY,
    CallIdentity,
    Chat,
    GatewayCall,
    ModelCall,
    Outcome,
    Prompt,
    SessionInfo,
    Sighting,
    Source,
    Thinking,
    ToolCall,
    Turn,
    TurnEnd,
    Usage,
)
from tracebridge.settings import read_settings
from tracebridge.spool import Spool
from tracebridge.turns import TurnAssembler
from tracebridge.watcher import Watcher

# Agents that keep no ids of their calls.
RECORDED = [
    *(
        f"gemini-cli/{name}"
        for name in ("interactive", "parallel_tools", "subagent", "tools", "two_sessions")
    ),
    *(
        f"opencode/{name}"
        for name in (
            "compact",
            "escape_stream",
            "parallel_tools",
            "patch",
            "permission_denied",
            "queued_prompt",
            "retry_429",
            "stream_cut",
            "subagents",
            "tools",
        )
    ),
]
TRACE = trace_id(AGENT, "s", "t")
CHAT = span_id(TRACE, "llm", "msg")
THINKING = span_id(TRACE, "thinking", "msg:0")


class Home:
    """A watcher in a home of its own, whose clock stands still: no turn is told for being quiet."""

    def __init__(self) -> None:
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.path = Path(tempfile.mkdtemp(prefix="tracebridge-early-", dir=memory))
        self.settings = read_settings({"TRACEBRIDGE_HOME": str(self.path)})
        self.watcher = Watcher(self.settings, clock=lambda: 2_000 * SECOND)

    def take_in(self, *news: Sighting | GatewayCall) -> None:
        sightings = [each for each in news if isinstance(each, Sighting)]
        with self.watcher._alone():
            with self.watcher.store.transaction():
                new = self.watcher.store.add_sightings(sightings)
            self.watcher._spread(new)
        for each in news:
            if isinstance(each, GatewayCall):
                Spool(self.path).write_call(each)
        self.watcher.step()

    def told(self) -> set[str]:
        store = self.watcher.store
        return {
            span.span_id
            for row in store.turns()
            for span in store.spans(row.trace_id)
            if span.span_id not in store.untold(row.trace_id)
        }

    def finished(self) -> dict[str, bytes]:
        """Return all spans once all turns are over."""
        self.watcher.step(settle_now=True)
        store = self.watcher.store
        return {
            span.span_id: encode(span)
            for row in store.turns()
            for span in store.spans(row.trace_id)
        }

    def close(self) -> None:
        self.watcher.close()
        shutil.rmtree(self.path)


def see(part, *, source=Source.TRANSCRIPT, turn: str | None = "t") -> Sighting:
    return Sighting(
        agent=AGENT, session_id="s", source=source, time_ns=SECOND, part=part, turn_key=turn
    )


PROMPT = see(Prompt(key="p", text="hi", start_ns=SECOND), source=Source.HOOK)
VERSION = see(SessionInfo(key="session", agent_version="2"), turn=None)
THOUGHT = see(Thinking(key="msg:0", call_key="msg", start_ns=SECOND, end_ns=2 * SECOND))
FIRST = see(
    ModelCall(
        key="msg", response_id="msg", end_ns=2 * SECOND, stop_reason="tool_use", blocks=("0",)
    )
)
SECOND_BLOCK = see(structs.replace(FIRST.part, output_text="I will", blocks=("1",)))
CALL = GatewayCall(
    call_id="call",
    gateway=OWN_GATEWAY,
    method="POST",
    path="/",
    start_ns=SECOND,
    end_ns=2 * SECOND,
    identity=CallIdentity(agent=AGENT, session_id="s", turn_key="t"),
    response_id="msg",
    stop_reason="tool_use",
    usage=Usage(input_tokens=1, output_tokens=1),
    attempt=1,
    blocks=2,
)


def told_after(*news: Sighting | GatewayCall) -> set[str]:
    home = Home()
    try:
        home.take_in(*news)
        return home.told()
    finally:
        home.close()


def test_a_call_that_both_told_is_told_while_its_turn_runs():
    """With its thinking, as soon as gateway and transcript agree; the turn itself waits."""
    home = Home()
    home.take_in(PROMPT, VERSION, THOUGHT, FIRST, CALL)
    assert home.told() == set()
    home.take_in(SECOND_BLOCK)
    assert home.told() == {CHAT, THINKING}
    assert not home.watcher.store.is_told(TRACE)
    home.close()


def test_what_may_still_change_waits():
    """Without a hook's tags, the agent's version, the gateway's word or a sure link, nothing goes."""
    whole = [PROMPT, VERSION, FIRST, SECOND_BLOCK, CALL]
    assert told_after(*whole) == {CHAT}
    for missing in (PROMPT, VERSION, FIRST, CALL):
        assert told_after(*(each for each in whole if each is not missing)) == set()
    untold = structs.replace(FIRST.part, blocks=None)
    by_hook = structs.replace(FIRST, source=Source.HOOK, part=untold)
    assert told_after(PROMPT, VERSION, by_hook, replace(CALL, blocks=None)) == set()
    for changed in (
        replace(CALL, blocks=3),
        replace(CALL, blocks=None),
        replace(CALL, attempt=2),
        replace(CALL, attempt=None),
        replace(CALL, gateway="litellm"),
        replace(CALL, error_type="stream_cut"),
        replace(CALL, response_id="other"),
        replace(CALL, usage=None),
        replace(CALL, identity=replace(CALL.identity, subagent_id="a")),
        replace(CALL, identity=replace(CALL.identity, request_class="auxiliary")),
    ):
        assert told_after(*whole[:-1], changed) == set(), changed


def test_where_hooks_tell_of_calls_their_word_is_needed():
    """A call that a request names goes once hooks told all its blocks, be its tools done or not."""

    def told_of(block: str, **known) -> Sighting:
        call = ModelCall(key="step", end_ns=2 * SECOND, blocks=(block,), **known)
        return see(call, source=Source.HOOK)

    said, asked = told_of("0", output_text="I will"), told_of("1", tool_call_ids=("t",))
    call = replace(
        CALL,
        identity=replace(CALL.identity, call_key="step"),
        provider="p",
        requested_model="m",
        model="m",
        tool_call_ids=("t",),
    )
    whole = [PROMPT, VERSION, said, asked]
    assert told_after(*whole, call) == {CHAT}
    by_transcript = [structs.replace(each, source=Source.TRANSCRIPT) for each in (said, asked)]
    assert told_after(PROMPT, VERSION, *by_transcript, call) == set()
    for missing in (said, asked):
        assert told_after(*(each for each in whole if each is not missing), call) == set()
    for changed in (
        replace(call, blocks=3),
        replace(call, tool_call_ids=("t", "u")),
        replace(call, model=None),
        replace(call, attempt=2),
        replace(call, identity=CALL.identity),
    ):
        assert told_after(*whole, changed) == set(), changed
    answer = [told_of("0"), told_of("1")]
    last = replace(call, tool_call_ids=())
    assert told_after(PROMPT, VERSION, *answer, last) == set()
    over = see(ModelCall(key="step", stop_reason="stop"), source=Source.HOOK)
    assert told_after(PROMPT, VERSION, *answer, over, last) == {CHAT}


def test_where_nothing_is_named_all_tools_of_an_answer_are_needed():
    """A call that names no session goes once the transcript has the same tool calls."""
    tools = [see(ToolCall(key=key, start_ns=2 * SECOND)) for key in ("t", "u")]
    line = ModelCall(key="line", end_ns=2 * SECOND, tool_call_ids=("t", "u"))
    call = replace(CALL, identity=CallIdentity(agent=AGENT), tool_call_ids=("t", "u"), blocks=None)
    whole = [PROMPT, VERSION, *tools, see(line)]
    assert told_after(*whole, call) == {CHAT}
    short = see(structs.replace(line, tool_call_ids=("t",)))
    assert told_after(*whole[:-1], short, call) == set()
    for changed in (
        # Another request like it came before.
        replace(call, attempt=None),
        replace(call, gateway="litellm"),
        replace(call, usage=None),
        replace(call, stop_reason=None),
    ):
        assert told_after(*whole, changed) == set(), changed


def test_what_was_told_early_is_not_told_again():
    """At the turn's end the rest follows, and the totals count the call."""
    home = Home()
    home.take_in(PROMPT, VERSION, FIRST, SECOND_BLOCK, CALL)
    early = home.watcher.store.spans(TRACE)[0]
    end = TurnEnd(key="stop", end_ns=3 * SECOND, outcome=Outcome.COMPLETED)
    home.take_in(see(end, source=Source.HOOK))
    spans = home.finished()
    assert spans[CHAT] == encode(early)
    assert home.watcher.store.is_told(TRACE)
    assert home.watcher.store.untold(TRACE) == set()
    home.close()


def as_seen_by_ours(session: Session) -> list[GatewayCall]:
    """Return the session's calls as our gateway tells them: it counts attempts."""
    calls = []
    attempt = 0
    for call in session.calls:
        attempt += 1
        answered = call.error_type is None
        calls.append(
            replace(
                call,
                gateway=OWN_GATEWAY,
                attempt=attempt,
                stop_reason="end_turn" if answered else None,
            )
        )
        attempt = 0 if answered else attempt
    return calls


@settings(max_examples=40)
@given(session=sessions(), seed=st.integers())
def test_early_is_as_late(session: Session, seed):
    """However the sources overtake each other, what is told early is what would be told late."""
    info = SessionInfo(key="session", agent_version="2")
    version = structs.replace(VERSION, session_id=session.session_id, part=info)
    # What one source tells comes in its order.
    sources = [list(session.hooks), [version, *session.transcript], as_seen_by_ours(session)]
    undisturbed = Home()
    undisturbed.take_in(*(each for source in sources for each in source))
    expected = undisturbed.finished()
    undisturbed.close()
    chance = random.Random(seed)
    home = Home()
    while any(sources):
        source = chance.choice([each for each in sources if each])
        count = chance.randint(1, 8)
        home.take_in(*source[:count])
        del source[:count]
    assert home.finished() == expected
    home.close()


def turns_of(behaviour: str, sightings: Collection[Sighting]) -> list[Turn]:
    turns = []
    for session_id in dict.fromkeys(sighting.session_id for sighting in sightings):
        assembler = TurnAssembler(behaviour.partition("/")[0], session_id)
        assembler.add([each for each in sightings if each.session_id == session_id])
        turns += assembler.turns()
    return turns


def unread(sightings: Iterable[Sighting]) -> list[Sighting]:
    """Return *sightings* without the place of a transcript, which would fill their gaps."""
    return [
        structs.replace(each, part=structs.replace(each.part, transcript=None))
        if isinstance(each.part, SessionInfo)
        else each
        for each in sightings
    ]


def as_our_gateway_saw(turns: Iterable[Turn]) -> list[GatewayCall]:
    """Return the calls that turns tell of as they passed our gateway, by their ends."""
    calls = []
    for turn in turns:
        failures: Counter[str | None] = Counter()
        for chat in turn.chats:
            failures[chat.subagent_id] += 1
            calls.append(seen_in(turn, chat, failures[chat.subagent_id]))
            if calls[-1].error_type is None:
                del failures[chat.subagent_id]
    return sorted(calls, key=lambda call: call.end_ns)


def seen_in(turn: Turn, chat: Chat, attempt: int) -> GatewayCall:
    told = chat.told
    identity = CallIdentity(agent=turn.agent)
    if turn.agent == "opencode":
        # Our plugin names them in requests.
        identity = replace(
            identity,
            session_id=turn.session_id,
            turn_key=turn.turn_key,
            subagent_id=chat.subagent_id,
            request_class=told.purpose or "main",
            call_key=told.key.partition(":")[0],
        )
    is_broken = told.error_type is not None or told.end_ns is None
    end_ns = told.end_ns or told.start_ns + SECOND
    return GatewayCall(
        call_id=f"call-{told.key}",
        gateway=OWN_GATEWAY,
        method="POST",
        path="/",
        start_ns=told.start_ns or end_ns,
        end_ns=end_ns,
        identity=identity,
        provider=told.provider,
        requested_model=told.model,
        model=None if is_broken else told.model,
        error_type="stream_cut" if is_broken else None,
        response_id=None if is_broken else f"response-{told.key}",
        stop_reason=None if is_broken else "stop",
        usage=None if is_broken else told.usage,
        blocks=len(told.blocks or ()) or None,
        tool_call_ids=told.tool_call_ids or (),
        # Of requests that name no session it knows which are the first.
        attempt=attempt if identity.session_id is not None or attempt == 1 else None,
    )


def as_telemetry_tells(turns: Iterable[Turn]) -> list[Sighting]:
    """Return what names the answers of turns by ids that stand nowhere else."""
    return [
        Sighting(
            agent=turn.agent,
            session_id=turn.session_id,
            source=Source.HOOK,
            time_ns=chat.told.end_ns,
            turn_key=turn.turn_key,
            subagent_id=chat.subagent_id,
            part=ModelCall(
                key=f"telemetry:{chat.told.end_ns}",
                response_id=f"response-{chat.told.key}",
                end_ns=chat.told.end_ns,
                usage=chat.told.usage,
            ),
        )
        for turn in turns
        for chat in turn.chats
        if chat.told.end_ns is not None
    ]


@pytest.mark.parametrize("behaviour", ["gemini-cli/tools", "opencode/tools"])
def test_what_calls_tools_is_told_once_these_are_known(behaviour):
    """Of a turn that goes on, all calls that asked for tools are told, with their thinking."""
    recorded = unread(recorded_sightings(behaviour))
    told = [each for each in recorded if not isinstance(each.part, TurnEnd)]
    turns = turns_of(behaviour, told)
    home = Home()
    home.take_in(*told, *as_our_gateway_saw(turns))
    (turn,) = turns
    asking = [chat.told for chat in turn.chats if chat.told.tool_call_ids]
    assert len(asking) >= 4
    wanted = {span_id(turn.trace_id, "llm", f"response-{call.key}") for call in asking}
    keys = {call.key for call in asking}
    wanted |= {
        span_id(turn.trace_id, "thinking", thinking.key)
        for thinking in turn.thinking
        if thinking.call_key in keys
    }
    assert wanted <= home.told()
    assert not home.watcher.store.is_told(turn.trace_id)
    home.close()


@pytest.mark.parametrize("behaviour", RECORDED)
def test_early_is_as_late_where_agents_keep_no_ids(behaviour):
    """In any order of sources, told twice and with gaps, what goes early is what would go late."""
    hooks = unread(recorded_sightings(behaviour, transcript=False))
    transcript = unread(recorded_sightings(behaviour, hooks=False))
    turns = turns_of(behaviour, [*hooks, *transcript])
    calls = as_our_gateway_saw(turns)
    telemetry = as_telemetry_tells(turns) if behaviour.startswith("gemini-cli") else []
    chance = random.Random(behaviour)
    for gaps, is_late in ((0.0, False), (0.0, True), (0.2, True)):
        sources = [
            [each for each in source if chance.random() >= gaps]
            for source in (hooks, transcript, calls, telemetry)
        ]
        undisturbed = Home()
        undisturbed.take_in(*(each for source in sources for each in source))
        expected = undisturbed.finished()
        undisturbed.close()
        home = Home()
        # Telemetry is sent from time to time.
        behind = sources.pop() if is_late else []
        waiting = [list(source) for source in sources]
        while any(waiting):
            source = chance.choice([each for each in waiting if each])
            count = chance.randint(1, 8)
            home.take_in(*source[:count], *source[:1])
            del source[:count]
        home.take_in(*behind)
        assert home.finished() == expected
        home.close()

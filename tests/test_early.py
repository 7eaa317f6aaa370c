"""Told early: a call goes out while its turn runs, once nothing can change it any more."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from sessions import AGENT, SECOND, Session, sessions

from tracebridge.codec import encode
from tracebridge.ids import span_id, trace_id
from tracebridge.model import (
    OWN_GATEWAY,
    CallIdentity,
    GatewayCall,
    ModelCall,
    Outcome,
    Prompt,
    SessionInfo,
    Sighting,
    Source,
    Thinking,
    TurnEnd,
    Usage,
)
from tracebridge.settings import read_settings
from tracebridge.spool import Spool
from tracebridge.watcher import Watcher

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

"""The watcher under chaos: sessions of four agents at once, told in any order, late, twice, or not.

A state machine of Hypothesis decides what happens next; the store, the assembler and the linker
are the real ones. Whatever it does, no call that is linked by a key comes under a wrong turn, none
under another session, and no told span changes. Where all was told in the end and nothing before
that, the spans are those of a run in which everything came in order, once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec import structs
from sessions import SECOND, Session, sessions

from tracebridge import semconv
from tracebridge.agents import agents
from tracebridge.codec import encode
from tracebridge.ids import trace_id
from tracebridge.model import GatewayCall, Sighting, Span
from tracebridge.settings import read_settings
from tracebridge.watcher import Watcher

TIMES = int(os.environ.get("TRACEBRIDGE_FUZZ", "1"))
MINUTE = 60 * SECOND


class Chaos(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # In memory where there is such a place: each step is a few commits.
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.home = Path(tempfile.mkdtemp(prefix="tracebridge-chaos-", dir=memory))
        self.now_ns = 2_000 * SECOND
        self.watcher = self.new_watcher()
        self.untold: list[Sighting | GatewayCall] = []
        self.told_before: list[Sighting | GatewayCall] = []
        self.dropped = False
        # Response id to the trace it belongs to.
        self.truth: dict[str, str] = {}
        # What was told, by trace and span.
        self.finished: dict[tuple[str, str], bytes] = {}
        self.told_early = False
        self.skewed = False
        # All that the sessions have to tell, in order.
        self.in_order: list[Sighting | GatewayCall] = []

    def new_watcher(self, home: str = "state") -> Watcher:
        settings = read_settings({"TRACEBRIDGE_HOME": str(self.home / home)})
        return Watcher(settings, clock=lambda: self.now_ns)

    @initialize(data=st.data())
    def begin(self, data) -> None:
        for number, slug in enumerate(sorted(agents())):
            if data.draw(st.booleans()):
                session = data.draw(sessions(number=number))
                skew_ns = data.draw(st.sampled_from((0, 0, -10 * MINUTE, 10 * MINUTE, 3 * SECOND)))
                self.skewed |= skew_ns != 0
                self.take_on(session, slug, skew_ns, nameless=data.draw(st.integers(0, 4)))
        self.in_order = list(self.untold)

    def take_on(self, session: Session, slug: str, skew_ns: int, nameless: int) -> None:
        """Make what the session tells that of *slug*, with the gateway's clock off by *skew_ns*.

        So many of its calls say not whose they are: their responses must do.
        """
        self.untold += [structs.replace(sighting, agent=slug) for sighting in session.sightings]
        for call in session.calls:
            turn_key, _ = session.truth[call.call_id]
            if call.response_id is not None:
                self.truth[call.response_id] = trace_id(slug, session.session_id, turn_key)
            named = call.response_id is None or nameless <= 0
            nameless -= not named
            self.untold.append(
                replace(
                    call,
                    identity=replace(call.identity, agent=slug) if named else None,
                    start_ns=call.start_ns + skew_ns,
                    end_ns=call.end_ns + skew_ns,
                )
            )

    def lengths(self, count: int) -> range:
        """Return how many are left before each of *count* is taken away."""
        return range(len(self.untold), len(self.untold) - count, -1)

    def deliver(self, news: list[Sighting | GatewayCall]) -> None:
        give(self.watcher, news)
        self.told_before += news

    @precondition(lambda self: self.untold)
    @rule(data=st.data(), many=st.integers(1, 12))
    def tell_something(self, data, many: int) -> None:
        """Of anything, in any order."""
        count = min(many, len(self.untold))
        news = [self.untold.pop(data.draw(st.integers(0, n - 1))) for n in self.lengths(count)]
        self.deliver(news)

    @precondition(lambda self: self.told_before)
    @rule(data=st.data())
    def tell_again(self, data) -> None:
        self.deliver([data.draw(st.sampled_from(self.told_before))])

    @precondition(lambda self: self.untold)
    @rule(data=st.data())
    def drop_something(self, data) -> None:
        """Lose what a killed hook had, or a record."""
        self.untold.pop(data.draw(st.integers(0, len(self.untold) - 1)))
        self.dropped = True

    @rule(seconds=st.sampled_from((0.1, 1, 5, 700, -3600)))
    def let_time_pass(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)

    @rule()
    def step(self) -> None:
        self.watcher.step()
        self.judge()

    @rule()
    def another_takes_part(self) -> None:
        other = self.new_watcher()
        other.step(settle_now=True)
        other.close()
        self.judge()

    @rule()
    def kill(self) -> None:
        self.watcher.close()
        self.watcher = self.new_watcher()

    def judge(self) -> None:
        """See that what was told is as it was, and that each call is where it belongs."""
        store = self.watcher.store
        # What went out alone is in no turn any more.
        self.told_early |= bool(store.link_counts().get("orphan"))
        for row in store.turns():
            untold = store.untold(row.trace_id)
            for span in store.spans(row.trace_id):
                response = span.attributes.get(semconv.RESPONSE_ID)
                if response is not None and self.is_exact(span):
                    assert self.truth.get(str(response)) == span.trace_id, span
                if response is not None:
                    session_id = span.attributes[semconv.CONVERSATION_ID]
                    assert f"-{session_id}-" in str(response), span
                if span.span_id not in untold:
                    self.told_early |= bool(self.untold)
                    key = (span.trace_id, span.span_id)
                    assert self.finished.setdefault(key, encode(span)) == encode(span), span.name

    def placed(self) -> dict[str, str]:
        """Return in which trace each response is."""
        return {
            str(span.attributes[semconv.RESPONSE_ID]): row.trace_id
            for row in self.watcher.store.turns()
            for span in self.watcher.store.spans(row.trace_id)
            if semconv.RESPONSE_ID in span.attributes
        }

    @staticmethod
    def is_exact(span: Span) -> bool:
        """Say whether a call was linked by a key; one linked by time alone is marked as inferred."""
        return span.attributes.get(semconv.LINK_CONFIDENCE) != "inferred"

    def teardown(self) -> None:
        self.deliver(self.untold)
        self.untold = []
        told_early = self.told_early
        gave_up = bool(self.watcher.store.link_counts().get("orphan"))
        tell_all(self.watcher, self)
        self.judge()
        if not self.dropped and not told_early:
            quiet = self.new_watcher("undisturbed")
            give(quiet, self.in_order)
            tell_all(quiet, self)
            assert spans_of(self.watcher) == spans_of(quiet)
            quiet.close()
            if not self.skewed:
                # Then time tells the truth, too.
                assert self.placed().items() <= self.truth.items()
        if not self.dropped and not gave_up:
            assert self.placed().keys() == self.truth.keys()
        self.watcher.close()
        shutil.rmtree(self.home)


def give(watcher: Watcher, news: list[Sighting | GatewayCall]) -> None:
    with watcher._alone():
        with watcher.store.transaction():
            new = watcher.store.add_sightings(each for each in news if isinstance(each, Sighting))
        watcher._spread(new)
    for each in news:
        if isinstance(each, GatewayCall):
            watcher.spool.write_call(each)


def tell_all(watcher: Watcher, chaos: Chaos) -> None:
    while watcher.step():
        pass
    chaos.now_ns += 2_000 * SECOND
    watcher.step(settle_now=True, close_open=True)


def spans_of(watcher: Watcher) -> dict[tuple[str, str], bytes]:
    """Return what was told."""
    store = watcher.store
    return {
        (span.trace_id, span.span_id): encode(span)
        for row in store.turns()
        for span in store.spans(row.trace_id)
        # A subagent's event under a turn key of its own looks like a turn until its owner is known.
        if row.told
    }


TestChaos = Chaos.TestCase
TestChaos.settings = settings(
    max_examples=12 * TIMES,
    stateful_step_count=25,
    # A failure is told as it was found: to make it smaller would take minutes.
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

"""What the watcher holds in memory of one session: all of it, or of a large one some turns at a time.

A turn that is told leaves a stub behind, so that the others know that it was. When there is news of
it, what it was is read from the store again.

A large session gives the spans that it would give if all of it were held, with one exception: a
call that names no session is looked for among the turns that are held or being read. Which responses
and tools a turn had, its stub does not say; a call that comes so late goes out by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tracebridge.ids import trace_id
from tracebridge.model import (
    UNNAMED,
    Evidence,
    GatewayCall,
    Link,
    Sighting,
    Subagent,
    Turn,
    TurnState,
)
from tracebridge.store import SightingGroup, Store
from tracebridge.turns import TurnAssembler

# A session is large beyond either; then told turns are let go of.
MOST_SIGHTINGS = 5000
MOST_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class Held:
    agent: str
    session_id: str
    changed_ns: int
    assembler: TurnAssembler = field(init=False)
    calls: dict[str, GatewayCall] = field(default_factory=dict)
    # Something came in since it was last put together.
    dirty: bool = True
    untold: bool = True
    # Calls that none of its turns claims.
    has_orphans: bool = False
    gone: bool = False
    looked_ns: int = 0
    # Main transcript, once known; None while there is none.
    transcript: Path | None = None
    # When the next turn that is over will have been quiet for long enough; None: nothing to do.
    due_ns: int | None = None
    # By the monotonic clock.
    rests_until_s: float = 0.0
    # Calls that were told without knowing for sure whose they are, with what they were told as: no
    # turn that names them later may tell them again.
    told_calls: dict[str, tuple[GatewayCall, Link]] = field(default_factory=dict)
    # Spans that were told while their turn was open.
    early: set[str] = field(default_factory=set)
    # Turns as they were when all of them was told, by turn key.
    settled: dict[str, Turn] = field(default_factory=dict)
    # Told turns that are not in the assembler, by turn key.
    stubs: dict[str, Turn] = field(default_factory=dict)
    # What is still to be put together, by turn key, the oldest first.
    pending: dict[str, list[SightingGroup]] = field(default_factory=dict)
    # Turns were read that were not here when it was last asked whose the calls without a session are.
    reread: bool = False
    # Calls that were news of a told turn, with its trace: they are news but once.
    revived: set[tuple[str, str]] = field(default_factory=set)
    # Traces of held turns that may have made calls which may also be those of pending ones.
    unsure: set[str] = field(default_factory=set)
    # Since when more came in than can be held; it waits in the store.
    behind_ns: int | None = None
    # What may be held before that.
    most_bytes: int = 0

    @property
    def is_large(self) -> bool:
        return self.assembler.size > MOST_BYTES or len(self.assembler) > MOST_SIGHTINGS

    def make_room(self) -> None:
        """Let as much more come in as may be held, beside what cannot be let go of."""
        self.most_bytes = self.assembler.size + MOST_BYTES

    @property
    def elsewhere_ns(self) -> int:
        """Return when the last of the turns began that are told and let go of."""
        return max((stub.start_ns for stub in self.stubs.values()), default=0)

    def has_news_of_stubs(self, sightings: Iterable[Sighting]) -> bool:
        if not self.stubs:
            return False
        home = self.assembler.homes()
        return any(home(each.turn_key, _subagent_of(each)) in self.stubs for each in sightings)

    def note_inferred(self, turn: Turn) -> None:
        """Remember which calls of a told turn are there by their time alone."""
        for chat in turn.chats:
            if chat.seen is not None and chat.evidence is Evidence.SESSION_WINDOW:
                found = Link(
                    trace_id=turn.trace_id,
                    evidence=chat.evidence,
                    subagent_id=chat.subagent_id,
                )
                self.told_calls[chat.seen.call_id] = (chat.seen, found)

    def spill(self, now_ns: int) -> None:
        """Let go of all turns: what they are stands in the store."""
        if not self.assembler.needs_all:
            self.assembler.retire()
            self.behind_ns = self.behind_ns or now_ns

    def retire(self, turns: Iterable[Turn]) -> None:
        """Let go of those of the turns of which all is told, and keep their stubs."""
        turns = [turn for turn in turns if self.settled.get(turn.turn_key) is turn]
        if not turns or self.assembler.needs_all:
            return
        gone = {turn.turn_key: _stub(turn) for turn in turns}
        self.stubs |= gone
        self.assembler.retire(gone)
        self.early.clear()
        for turn in turns:
            del self.settled[turn.turn_key]
            for call in (call for chat in turn.chats for call in (chat.seen, *chat.others)):
                if call is not None:
                    self.calls.pop(call.call_id, None)

    def load(self, store: Store) -> None:
        """Read all of a small session; of a large one what concerns all turns, the rest to come."""
        self.assembler = TurnAssembler(self.agent, self.session_id)
        self.settled = {}
        self.told_calls = {
            call.call_id: (call, told_alone(trace))
            for call, trace in store.inferred_calls(self.agent, self.session_id)
        }
        whose = (self.agent, self.session_id)
        if not store.is_large(*whose, MOST_SIGHTINGS, MOST_BYTES) or not self._load_outline(store):
            self.assembler.add(store.sightings(*whose))
            self.calls = {call.call_id: call for call in store.calls(*whose)}
            self.stubs, self.pending = {}, {}
        self.load_more(store)
        self.make_room()
        if self.pending:
            self.behind_ns = self.behind_ns or self.changed_ns

    def _load_outline(self, store: Store) -> bool:
        whose = (self.agent, self.session_id)
        groups = store.outline(*whose)
        if any((group.turn_key or "").startswith(UNNAMED) for group in groups):
            # Turns that are named by counting cannot be told apart without all the others.
            return False
        subagents = store.sightings_of_subagents(*whose)
        self.assembler.add(sighting for _, sighting in subagents)
        home = self.assembler.homes()
        last: dict[str, int] = {}
        self.pending = {}
        for group in groups:
            key = home(group.turn_key, group.subagent_id)
            if key is None:
                self.assembler.add(store.sightings_of(*whose, group))
            else:
                self.pending.setdefault(key, []).append(group)
                last[key] = max(last.get(key, 0), group.last_id)
        for row_id, sighting in subagents:
            key = home(sighting.turn_key, _subagent_of(sighting))
            if key is not None:
                last[key] = max(last.get(key, 0), row_id)
        settled = [
            row
            for row, told_to in store.settled_turns(*whose)
            if last.get(row.turn_key, 0) <= told_to
        ]
        self.stubs = {
            row.turn_key: Turn(
                agent=row.agent,
                session_id=row.session_id,
                turn_key=row.turn_key,
                trace_id=row.trace_id,
                state=TurnState(row.state),
                start_ns=row.start_ns,
                end_ns=row.end_ns,
            )
            for row in settled
        }
        for key in self.stubs:
            self.pending.pop(key, None)
        self.calls = {call.call_id: call for call in store.unsettled_calls(*whose)}
        return True

    def load_more(self, store: Store) -> None:
        """Read on, at least one turn."""
        whose = (self.agent, self.session_id)
        self.reread = True
        while self.pending:
            key = next(iter(self.pending))
            for group in self.pending.pop(key):
                self.assembler.add(store.sightings_of(*whose, group))
            for call in store.calls_of_turn(trace_id(*whose, key)):
                self.calls[call.call_id] = call
            if self.is_large:
                break


def _subagent_of(sighting: Sighting) -> str | None:
    part = sighting.part
    return part.key if isinstance(part, Subagent) else sighting.subagent_id


def told_alone(trace: str) -> Link:
    """Return the link of a call that went out under *trace* without any key to say so."""
    return Link(trace_id=trace, evidence=Evidence.SESSION_WINDOW)


def _stub(turn: Turn) -> Turn:
    return Turn(
        agent=turn.agent,
        session_id=turn.session_id,
        turn_key=turn.turn_key,
        trace_id=turn.trace_id,
        state=turn.state,
        start_ns=turn.start_ns,
        end_ns=turn.end_ns,
    )

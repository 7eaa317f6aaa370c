"""Turns put together and told: what is taken in, by whom it was called, and when it is over.

Whatever the watcher is in the middle of when it dies, the next one does again with the same
result: state advances in transactions, and ids are derived.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from msgspec.structs import replace

from tracebridge.agents import Agent, Cursor, PastSession, agents
from tracebridge.encode import Resource, encode_span
from tracebridge.foreign import ForeignSpans, by_origin, is_foreign, rows_of
from tracebridge.gateways.files import read_folder
from tracebridge.held import Held, told_alone
from tracebridge.ids import trace_id
from tracebridge.intake import Intake, ReadTags, Taken, tags_of_folder
from tracebridge.levels import keep_levels
from tracebridge.linker import Orphan, link
from tracebridge.metrics import Metrics
from tracebridge.model import (
    LOGGED,
    SCRIPT_CALL,
    GatewayCall,
    Link,
    Sighting,
    Source,
    Span,
    Turn,
    TurnState,
)
from tracebridge.processes import is_open_for_writing
from tracebridge.response_ids import gateway_names
from tracebridge.scripts import is_of_script, outer_context
from tracebridge.scrub import scrub_sighting
from tracebridge.settings import Settings
from tracebridge.sinks import lasting_sinks
from tracebridge.spans import Content, final_spans, render, render_orphan, resource_of
from tracebridge.spool import SpoolFileError
from tracebridge.store import Store, StoreError
from tracebridge.tag_files import read_tags
from tracebridge.totals import sums_of

SECOND_NS = 1_000_000_000
# After an end that hook and transcript agree on: a Stop hook of somebody else may send the agent
# back to work, and that shows at once.
CONFIRMED_SETTLE_NS = 300_000_000
# After an end that only one of them told: the transcript is written in batches, late.
SETTLE_NS = 2 * SECOND_NS
# A background subagent that is silent for so long will not end any more.
SUBAGENT_PATIENCE_NS = 600 * SECOND_NS
# A call that no turn claims goes out alone after this.
ORPHAN_PATIENCE_NS = 600 * SECOND_NS
# Between what our gateway saw of a call and what another one tells of it, by its own clock.
OTHER_CLOCK_NS = 60 * SECOND_NS
# An open turn of which nothing was heard for so long is over.
STALE_NS = 24 * 3600 * SECOND_NS
# What is read faster than it can be held is put together once it is quiet, or after this.
BEHIND_PATIENCE_NS = 10 * SECOND_NS
# A session of which all is told is held for so long, should the next turn begin.
IDLE_SESSION_NS = 60 * SECOND_NS
# A session with more sightings than this rests after it was put together, this many times as long.
FEW_SIGHTINGS = 1000
REST = 3

logger = logging.getLogger(__name__)


class Watcher:
    """Take in what waits, step by step."""

    def __init__(self, settings: Settings, clock: Callable[[], int] = time.time_ns) -> None:
        self._settings = settings
        self._clock = clock
        self._intake = Intake(settings, clock)
        self.spool = self._intake.spool
        self.store = Store(settings.home, clock)
        self.sinks, problems = lasting_sinks(settings.env)
        for problem in problems:
            self._note(f"sink not usable: {problem}")
        keep_levels(self.store, self.sinks, settings)
        self._sessions: dict[tuple[str, str], Held] = {}
        self._cursors: dict[Path, Cursor] = {}
        self._read_tags: ReadTags = read_tags
        self._patterns = settings.scrub_patterns
        self._hopeless: set[Path] = set()
        self._foreign = ForeignSpans(self.store)
        # Ids of the calls of other gateways for which a home was looked for among what is told.
        self._asked: set[str] = set()
        # Folders of records and why they cannot be read.
        self._unreadable: dict[Path, int | None] = {}
        self._intakes = -1
        # When the spool was last looked at: what came since then is not known, so none of that
        # time is a time in which nothing came, however long a step takes on a busy machine.
        self._looked_ns = 0

    @property
    def metrics(self) -> Metrics | None:
        return self._intake.metrics

    @metrics.setter
    def metrics(self, metrics: Metrics | None) -> None:
        self._intake.metrics = metrics

    def close(self) -> None:
        self.store.close()

    def step(self, *, settle_now: bool = False, close_open: bool = False) -> bool:
        """Take in what is there and finish what is over; say whether anything was new.

        *settle_now* waits for nothing more to arrive; *close_open* also ends what runs.
        """
        with self._alone():
            return self._step(settle_now=settle_now, close_open=close_open)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only one at work, and know what others have done since."""
        with self.store.taking_in():
            if self.store.intakes() != self._intakes:
                # A turn of which another process took in a part must not be told from the rest.
                self._sessions.clear()
                self._cursors.clear()
                self._intake.remember_untraced(self.store.untraced_sessions())
                for agent, session_id in self.store.open_sessions():
                    self._session(agent, session_id)
            # Stopped in the middle, what was taken in may not be in the sessions yet.
            self._intakes = -1
            yield
            self._intakes = self.store.intakes()

    def _step(self, *, settle_now: bool, close_open: bool) -> bool:
        self._looked_ns = self._clock()
        new = self._take_in_spool() | self._take_in_records()
        new |= self._take_in_fragments(at_once=settle_now or close_open)
        return self._put_all_together(settle_now=settle_now, close_open=close_open) | new

    def _put_all_together(
        self,
        *,
        settle_now: bool = False,
        close_open: bool = False,
        just_read: Collection[Path] = (),
    ) -> bool:
        """Read what the sessions' transcripts tell and finish what is over."""
        new = False
        for session in list(self._sessions.values()):
            if session.untold or session.dirty:
                new |= self._take_in_transcripts(session, just_read)
                new |= self._notice_end(session, close_open=close_open)
        self._find_homes_for_strangers()
        for session in list(self._sessions.values()):
            if session.dirty or session.untold:
                try:
                    self._assemble(session, settle_now=settle_now, close_open=close_open)
                except StoreError:
                    raise
                except Exception:
                    # Whatever is odd about one session, the others go on; what it told is kept.
                    logger.exception("session %s cannot be put together", session.session_id)
                    self._note(
                        f"session {session.session_id} cannot be put together; see watch.log"
                    )
                    session.dirty = session.untold = False
        if not any(s.untold and s.behind_ns is not None for s in self._sessions.values()):
            # What is still to be read may claim them.
            self._give_up_on_orphans(at_once=close_open)
        self._let_go_of_idle_sessions()
        return new

    @property
    def busy(self) -> bool:
        """Say whether a turn is not told yet."""
        return any(session.untold for session in self._sessions.values())

    def import_transcript(self, agent: Agent, path: Path) -> None:
        """Take in a past session from its main transcript. Raise OSError if it cannot be read."""
        with self._alone():
            self._read_transcripts(agent, path)

    def _read_transcripts(self, agent: Agent, path: Path) -> list[Path]:
        files = list(agent.transcripts(path))
        for file in files:
            self._read_transcript(agent, file)
        return files

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Be the only one at work while past sessions are imported, which few commits keep.

        What the spool has stays there: its files may go only after the commit.
        """
        # Hundreds of sessions may have been in one folder.
        self._read_tags = cache(read_tags)  # type: ignore[assignment]  # an agent is a module
        try:
            with self._alone(), self.store.gathering():
                yield
        finally:
            self._read_tags = read_tags

    def import_session(self, agent: Agent, past: PastSession, *, local_only: bool = False) -> None:
        """Take in a past session as of when its transcript was last written to, and tell it.

        Only while `importing`. What is over then is told; what still runs stays open. With
        *local_only* it goes to no sink, also if we are killed. Raise OSError if it cannot be read.
        """
        if local_only:
            with self.store.transaction():
                until_ns = self._traced_since(agent.SLUG, past.session_id)
                self.store.keep_local(agent.SLUG, past.session_id, until_ns)
        others = {id(session) for session in self._sessions.values() if session.dirty}
        files = self._read_transcripts(agent, past.path)
        own = self._sessions.get((agent.SLUG, past.session_id))
        for session in self._sessions.values():
            if session is own or (session.dirty and id(session) not in others):
                session.changed_ns = min(session.changed_ns, past.changed_ns)
                if not session.gone and self._clock() - session.changed_ns > STALE_NS:
                    # Just read to its end: there is nothing to wait for.
                    session.gone = session.dirty = True
        self._looked_ns = self._clock()
        self._put_all_together(just_read=files)
        # Thousands may follow.
        self._sessions = {
            key: session
            for key, session in self._sessions.items()
            if session.untold or session.dirty
        }

    def _traced_since(self, agent: str, session_id: str) -> int:
        """Return when live tracing of a session began: now, if it never did."""
        told = self.store.sightings(agent, session_id)
        hooks = [s.time_ns for s in told if s.source is Source.HOOK and s.time_ns]
        calls = [call.start_ns for call in self.store.calls(agent, session_id)]
        return min([*hooks, *calls], default=self._clock())

    def look_again(
        self, sessions: Iterable[tuple[str, str]], transcripts: Iterable[tuple[str, Path]]
    ) -> None:
        """Take in what the transcripts of these sessions, and these transcripts, tell."""
        known = agents()
        for slug, path in transcripts:
            if slug in known:
                with contextlib.suppress(OSError):
                    self.import_transcript(known[slug], path)
        with self._alone():
            for slug, session_id in sessions:
                if slug in known:
                    self._session(slug, session_id)

    def _take_in_spool(self) -> bool:
        taken = self._intake.read()
        return bool(taken.files) and self._take_in(taken)

    def _take_in_records(self) -> bool:
        """Take in what the files of other gateways tell beyond what was read."""
        new = False
        for folder in self._settings.records:
            is_partial = True
            while is_partial:
                cursor = self.store.cursor(folder)
                try:
                    reading = read_folder(folder, cursor, self._clock)
                except OSError as error:
                    if self._unreadable.get(folder) != error.errno:
                        self._unreadable[folder] = error.errno
                        self._note(f"records not readable: {folder}: {error.strerror}")
                    break
                self._unreadable.pop(folder, None)
                if reading.cursor != cursor:
                    taken = self._intake.understand(reading.records, reading.notes)
                    new |= self._take_in(taken, (folder, reading.cursor))
                is_partial = reading.is_partial
        return new

    def _take_in_fragments(self, *, at_once: bool) -> bool:
        """Take in the calls that foreign spans tell of, once these are known as a whole."""
        ready = self._foreign.ready(self._clock(), at_once=at_once)
        taken = self._intake.understand(ready.calls, {})
        untraced = {call.call_id for call in ready.calls} - {call.call_id for call in taken.calls}
        if untraced:
            with self.store.transaction():
                self._foreign.drop(untraced)
        for agent, session_id in ready.sessions:
            session = self._session(agent, session_id)
            if session.stubs:
                # What it was must be known to tell what is new.
                with self.store.transaction():
                    for stub in session.stubs.values():
                        if stub.trace_id in ready.turns:
                            self.store.unsettle_turn(stub.trace_id)
                session.load(self.store)
            self._touch(session)
        return bool(ready.calls) and self._take_in(taken)

    def _take_in(self, taken: Taken, read_to: tuple[Path, Cursor] | None = None) -> bool:
        """Keep what was taken in and tell the sessions of it; say whether anything was new."""
        self._leave_out_untraced()
        with self.store.transaction():
            new = self.store.add_sightings(taken.sightings)
            new_calls = [call for call in taken.calls if self.store.add_call(call, self._clock())]
            new_spans = self.store.add_foreign_spans(rows_of(taken.fragments), self._clock())
            self.store.add_notes(taken.notes)
            if read_to is not None:
                self.store.set_cursor(*read_to)
        # Only now is it safe to let go of the files; of one that was torn a part was taken in.
        for file in taken.files:
            if isinstance(file.content, SpoolFileError):
                logger.warning("%s; moved to %s", file.content, self.spool.set_aside(file))
        for file in taken.files:
            self.spool.remove(file)
        self._spread(new)
        for call in new_calls:
            identity = call.identity
            if identity is not None and identity.session_id is not None:
                session = self._session(identity.agent, identity.session_id)
                session.calls[call.call_id] = call
                self._touch(session)
        return bool(new or new_calls or new_spans)

    def _leave_out_untraced(self) -> None:
        for agent, session_id in self._intake.newly_untraced():
            if self.store.leave_out(agent, session_id):
                self._sessions.pop((agent, session_id), None)

    def _take_in_transcripts(self, session: Held, just_read: Collection[Path]) -> bool:
        agent = agents()[session.agent]
        if session.transcript is None:
            told = session.assembler.info.transcript
            session.transcript = (
                Path(told) if told else agent.find_transcript(session.session_id, Path.home())
            )
        if session.transcript is None:
            return False
        new = False
        for path in agent.transcripts(session.transcript):
            if path in self._hopeless or path in just_read:
                continue
            try:
                new |= self._read_transcript(agent, path)
            except (FileNotFoundError, NotADirectoryError):
                # Not written yet, or never kept.
                continue
            except OSError as error:
                self._note(f"transcript not readable: {path}: {error.strerror}")
            except StoreError:
                raise
            except Exception:
                # What an adapter cannot follow costs this file, not the other sessions.
                logger.exception("%s cannot be understood", path)
                self._note(f"transcript not understood: {path}; see watch.log")
                self._hopeless.add(path)
        return new

    def _read_transcript(self, agent: Agent, path: Path) -> bool:
        new = False
        while True:
            if path not in self._cursors:
                self._cursors[path] = self.store.cursor(path)
            cursor = self._cursors[path]
            reading = agent.read_transcript(path, cursor)
            traced = self._intake.without_untraced(reading.sightings)
            self._leave_out_untraced()
            if reading.sightings and not traced:
                if reading.cursor == cursor:
                    return new
                # Not into the store: a cursor remembers what was read, too.
                self._cursors[path] = reading.cursor
                continue
            sightings = [scrub_sighting(each, self._patterns) for each in traced]
            notes = Counter(reading.notes)
            if (tags := tags_of_folder(agent, sightings, notes, self._read_tags)) is not None:
                told = Source.TRANSCRIPT
                whose = replace(sightings[-1], turn_key=None, subagent_id=None)
                whose = replace(whose, source=told, time_ns=0, part=tags)
                sightings.append(scrub_sighting(whose, self._patterns))
            if reading.cursor == cursor and not sightings:
                return new
            self._begin_sessions(sightings)
            with self.store.transaction():
                added = self.store.add_sightings(sightings)
                if reading.cursor != cursor:
                    self.store.set_cursor(path, reading.cursor)
                    # The same lines are not counted at each look.
                    self.store.add_notes(notes)
            self._cursors[path] = reading.cursor
            self._spread(added)
            new |= bool(added)
            if reading.cursor == cursor:
                return new

    def _notice_end(self, session: Held, *, close_open: bool) -> bool:
        """Notice that the agent's process is gone without a word."""
        now_ns = self._clock()
        if session.gone or now_ns - session.looked_ns < SECOND_NS:
            gone = False
        else:
            session.looked_ns = now_ns
            gone = _is_gone(session)
        gone = gone or now_ns - session.changed_ns > STALE_NS or close_open
        if gone and not session.gone:
            session.gone = True
            session.dirty = True
            # What it wrote last, between our look at the transcript and this one, is still unread.
            session.changed_ns = now_ns
            return True
        return False

    def _find_homes_for_strangers(self) -> None:
        """Give calls that name no session to the session that knows their response or tools."""
        strangers = [
            call
            for call, _ in self.store.calls_without_turn()
            if call.identity is None or call.identity.session_id is None
        ]
        sessions = {id(s): s for s in self._sessions.values() if s.untold}
        for session in sessions.values():
            session.reread = False
        if not strangers:
            return
        # What another gateway saw comes when its exporter sends, often after all was told.
        others = [s for s in strangers if not s.is_ours and s.gateway != LOGGED]
        late = [call for call in others if call.call_id not in self._asked]
        self._asked = {call.call_id for call in others}
        for whose in self._foreign.sessions_for(late):
            session = self._session(*whose)
            sessions[id(session)] = session
        turns = {
            turn.trace_id: (turn, session)
            for session in sessions.values()
            for turn in session.assembler.turns()
        }
        linked, orphans = link(strangers, [turn for turn, _ in turns.values()])
        homes = [(call, turns[found.trace_id][1]) for call, found in linked]
        for orphan in orphans:
            # Its session is known where ours saw the same call, or where it is named.
            home = next((s for s in sessions.values() if _is_home(orphan.call, s)), None)
            if home is not None:
                homes.append((orphan.call, home))
        for call, session in homes:
            if call.call_id not in session.calls:
                session.calls[call.call_id] = call
                self._touch(session)

    def _let_go_of_idle_sessions(self) -> None:
        """Forget what is told and rests: what it was stands in the store."""
        now_ns = self._clock()
        idle = [
            key
            for key, session in self._sessions.items()
            if not (session.untold or session.dirty)
            and abs(now_ns - session.changed_ns) > IDLE_SESSION_NS
        ]
        for key in idle:
            del self._sessions[key]
        if idle:
            self._cursors.clear()

    def _assemble(self, session: Held, *, settle_now: bool, close_open: bool) -> None:
        now_ns = self._clock()
        if session.changed_ns > now_ns:
            # The clock was set back; the waiting does not begin anew for that.
            if session.due_ns is not None:
                session.due_ns -= session.changed_ns - now_ns
            session.changed_ns = now_ns
        quiet_ns = self._looked_ns - session.changed_ns
        waiting = session.due_ns is None or now_ns < session.due_ns
        if waiting and not session.dirty and not settle_now:
            return
        if time.monotonic() < session.rests_until_s and not settle_now:
            return
        began_s = time.monotonic()
        if session.behind_ns is not None:
            long = now_ns - session.behind_ns >= BEHIND_PATIENCE_NS
            if not (settle_now or quiet_ns >= SETTLE_NS or long):
                session.due_ns = session.changed_ns + SETTLE_NS
                return
            session.load(self.store)
            session.dirty = True
        session.due_ns = None
        while True:
            # What is not told stays held, and is looked at each time.
            untold = self._put_together(session, settle_now=settle_now, close_open=close_open)
            if not session.pending:
                break
            session.load_more(self.store)
        session.behind_ns = None
        session.dirty = False
        session.untold = untold or session.has_orphans
        session.make_room()
        if len(session.assembler) > FEW_SIGHTINGS:
            # A long turn is put together anew for each event: that may not take all of the time.
            took_s = time.monotonic() - began_s
            session.rests_until_s = time.monotonic() + REST * took_s

    def _put_together(self, session: Held, *, settle_now: bool, close_open: bool) -> bool:
        """Tell what is over of what is held; say whether anything is still to be told."""
        untold = False
        now_ns = self._clock()
        quiet_ns = self._looked_ns - session.changed_ns
        linked, orphans = self._linked(session)
        turns = session.assembler.turns(
            linked,
            session.told_calls.values(),
            gone=session.gone,
            elsewhere_ns=session.elsewhere_ns,
        )
        if session.pending:
            # Whether and how the last one ended is not known before the next one is.
            turns = turns[:-1]
        session.has_orphans = bool(orphans)
        news: list[tuple[str, Sequence[Span], set[str]]] = []
        local_ns = self.store.local_until(session.agent, session.session_id)
        with self.store.transaction():
            if session.dirty:
                for call, found in linked:
                    self.store.set_link(call.call_id, found)
                for orphan in orphans:
                    self.store.set_reason(orphan.call.call_id, orphan.reason)
            for turn in turns:
                foreign = self._foreign.spans_of(turn, self._settings.content)
                if not foreign and session.settled.get(turn.turn_key) == turn:
                    continue
                if turn.trace_id in session.unsure:
                    continue
                spans = (*foreign, *render(turn, self._settings.content))
                if session.dirty:
                    self.store.put_turn(turn, spans)
                patience = self._patience_ns(turn, session, close_open=close_open)
                # What is read from behind was over long ago.
                settled = settle_now or bool(session.pending)
                over = turn.state is not TurnState.OPEN and (
                    quiet_ns >= patience or (settled and patience <= SETTLE_NS)
                )
                if over:
                    if self.metrics is not None:
                        news.append((turn.agent, spans, self.store.untold(turn.trace_id)))
                    told = self._tell(
                        turn.trace_id,
                        spans,
                        resource_of(turn.agent, spans, self._settings.resource),
                        partial(self._rendered, turn),
                        is_local=turn.start_ns < local_ns,
                    )
                    self._foreign.told(turn, foreign)
                    self.store.settle_turn(turn.trace_id)
                    if told:
                        # What was told before stays as it was.
                        whole = told == len(spans)
                        kept = spans if whole else self.store.spans(turn.trace_id)
                        self.store.put_sums(turn.trace_id, sums_of(kept, now_ns))
                    session.settled[turn.turn_key] = turn
                    session.note_inferred(turn)
                else:
                    untold = True
                    final = [s for s in _final(turn, spans) if s.span_id not in session.early]
                    if final:
                        if self.metrics is not None:
                            new = self.store.untold(turn.trace_id)
                            news.append((turn.agent, final, new))
                        self._tell(
                            turn.trace_id,
                            final,
                            resource_of(turn.agent, spans, self._settings.resource),
                            partial(self._rendered, turn),
                            is_local=turn.start_ns < local_ns,
                            is_all=False,
                        )
                        session.early.update(span.span_id for span in final)
                    if turn.state is not TurnState.OPEN:
                        due_ns = session.changed_ns + patience
                        session.due_ns = min(session.due_ns or due_ns, due_ns)
            if not untold and not session.pending:
                self.store.settle(session.agent, session.session_id)
        for agent, gone, new in news:
            if self.metrics is not None and new:
                self.metrics.told(agent, gone, new)
        if session.is_large:
            # The last one is still to be asked what ended, and whether anything came behind it.
            session.retire(turns if session.pending else turns[:-1])
        return untold

    def _rendered(self, turn: Turn, content: Content) -> tuple[Span, ...]:
        return (*self._foreign.spans_of(turn, content), *render(turn, content))

    def _tell(
        self,
        trace: str,
        spans: Iterable[Span],
        resource: Resource,
        render_at: Callable[[Content], Sequence[Span]],
        *,
        is_local: bool = False,
        is_all: bool = True,
    ) -> int:
        """Tell spans with the resource that they came with, or else with *resource*.

        Return how many were new.
        """
        sinks = [] if is_local else [sink.name for sink in self.sinks]
        reduced = self._reduced(render_at) if sinks else {}
        new = 0
        for origin, group in by_origin(spans):
            new += self.store.tell(
                trace,
                # What goes nowhere need not be encoded; `send` does that when it is asked for.
                [(span.span_id, encode_span(span) if sinks else b"") for span in group],
                origin or resource,
                sinks,
                reduced,
                is_all=is_all,
            )
        return new

    def _linked(self, session: Held) -> tuple[list[tuple[GatewayCall, Link]], list[Orphan]]:
        """Link the calls of a session to its turns, also to those that are told and let go of."""
        while True:
            if session.reread:
                self._find_homes_for_strangers()
            if not session.calls:
                session.unsure = set()
                return [], []
            turns = session.assembler.turns(gone=session.gone, elsewhere_ns=session.elsewhere_ns)
            stubs = {stub.trace_id for stub in session.stubs.values()}
            calls = [c for c in session.calls.values() if c.call_id not in session.told_calls]
            linked, orphans = link(calls, [*turns, *session.stubs.values()])
            if session.pending:
                # It may have been made by a turn that is still to be read.
                sure = [pair for pair in linked if pair[1].evidence.confidence == "exact"]
                guesses = [pair for pair in linked if pair[1].evidence.confidence != "exact"]
                starts = [call.start_ns for call, _ in guesses]
                starts += [orphan.call.start_ns for orphan in orphans]
                session.unsure = {found.trace_id for _, found in guesses} | {
                    turn.trace_id
                    for turn in turns
                    if any(_overlaps(turn, start_ns) for start_ns in starts)
                }
                linked, orphans = sure, []
            else:
                session.unsure = set()
            late = {(call.call_id, f.trace_id) for call, f in linked if f.trace_id in stubs}
            if late <= session.revived:
                return linked, orphans
            # To tell what is new of a turn, what it was must be known.
            session.revived |= late
            with self.store.transaction():
                for _, trace in late:
                    self.store.unsettle_turn(trace)
            session.load(self.store)

    def _reduced(
        self, render_at: Callable[[Content], Sequence[Span]]
    ) -> dict[str, dict[str, bytes]]:
        """Return, for each sink with a content level of its own, the spans as it may have them."""
        by_level: dict[str, dict[str, bytes]] = {}
        for level in {sink.content for sink in self.sinks} - {"", self._settings.content.value}:
            spans = render_at(Content(level))
            by_level[level] = {span.span_id: encode_span(span) for span in spans}
        return {
            sink.name: by_level[sink.content] for sink in self.sinks if sink.content in by_level
        }

    @staticmethod
    def _patience_ns(turn: Turn, session: Held, *, close_open: bool) -> int:
        """Return how long a turn that is over must have been quiet before it is told."""
        running = any(subagent.end_ns is None for subagent in turn.subagents)
        if running and not session.gone and not close_open:
            ended_ns = session.assembler.info.ended_ns
            if ended_ns is None:
                return SUBAGENT_PATIENCE_NS
        # The gateway's record of the last call may come later than the word of agent and transcript.
        is_seen = not session.calls or all(chat.seen is not None for chat in turn.chats)
        return CONFIRMED_SETTLE_NS if turn.confirmed and is_seen else SETTLE_NS

    def _give_up_on_orphans(self, *, at_once: bool) -> None:
        now_ns = self._clock()
        # What ours saw goes first: others may tell of the same call.
        waiting = sorted(self.store.calls_without_turn(), key=lambda pair: not pair[0].is_ours)
        for call, taken_ns in waiting:
            if is_foreign(call):
                continue
            of_script = is_of_script(call)
            # A turn that is told has claimed what was its.
            hopeless = of_script and not self.busy
            # Taken in the future: the clock was set back.
            if not (at_once or hopeless) and abs(now_ns - taken_ns) < ORPHAN_PATIENCE_NS:
                continue
            if (told := self._told_by_itself(call)) is not None:
                with self.store.transaction():
                    self.store.set_reason(call.call_id, *told)
                continue
            identity = call.identity
            agent = identity.agent if identity is not None else "script" if of_script else "unknown"
            session_id = (identity.session_id if identity is not None else None) or ""
            lone_trace = trace_id(agent, session_id, f"orphan:{call.call_id}")
            parent = None
            reason = "no turn has its session, response or tools"
            if of_script:
                reason = SCRIPT_CALL
                lone_trace, parent = outer_context(call) or (lone_trace, None)
            if session_id:
                session = self._sessions.get((agent, session_id))
                _, orphans = link([call], session.assembler.turns() if session else [])
                reason = orphans[0].reason if orphans else reason
                if session is not None:
                    session.calls.pop(call.call_id, None)
                    session.told_calls[call.call_id] = (call, told_alone(lone_trace))
                    session.dirty = True
            render_at = partial(_rendered_alone, Orphan(call, reason), lone_trace, parent)
            (span,) = render_at(self._settings.content)
            with self.store.transaction():
                self.store.set_reason(call.call_id, reason, lone_trace)
                self.store.put_lone_span(span)
                self.store.tell(
                    lone_trace,
                    [(span.span_id, encode_span(span))],
                    resource_of(agent, [span], self._settings.resource),
                    [sink.name for sink in self.sinks],
                    self._reduced(render_at),
                )
            if self.metrics is not None and not of_script:
                self.metrics.orphan(agent)
        self._let_go_of_fragments(now_ns, at_once=at_once)

    def _told_by_itself(self, call: GatewayCall) -> tuple[str, str] | None:
        """Return why, and in which trace, a call is told alone already that *call* tells of too."""
        if call.is_ours:
            return None
        names = set(gateway_names(call))
        since_ns, until_ns = call.start_ns - OTHER_CLOCK_NS, call.start_ns + OTHER_CLOCK_NS
        for known, reason, trace in self.store.lone_calls(since_ns, until_ns):
            if names & set(gateway_names(known)):
                return reason, trace
        return None

    def _why_lost(self, call: GatewayCall) -> str:
        identity = call.identity
        whose = (identity.agent, identity.session_id or "") if identity is not None else ("", "")
        session = self._sessions.get(whose)
        _, orphans = link([call], session.assembler.turns() if session is not None else [])
        return orphans[0].reason if orphans else "no turn has its session, response or tools"

    def _let_go_of_fragments(self, now_ns: int, *, at_once: bool) -> None:
        """Send on as they came those foreign spans that no turn claims."""
        for lost in self._foreign.hopeless(now_ns, ORPHAN_PATIENCE_NS, at_once=at_once):
            with self.store.transaction():
                for call in lost.unclaimed:
                    told = self._told_by_itself(call) or (self._why_lost(call), lost.trace_id)
                    self.store.set_reason(call.call_id, *told)
                    for session in self._sessions.values():
                        session.calls.pop(call.call_id, None)
                if lost.home is None:
                    spans = self._foreign.alone(lost.trace_id, self._settings.content)
                    for span in spans:
                        self.store.put_lone_span(span)
                    render_at = partial(self._foreign.alone, lost.trace_id)
                    self._tell(lost.trace_id, spans, (), render_at)
                    self._foreign.told_alone(lost.trace_id)
            if lost.home is not None:
                self._touch(self._session(*lost.home))
            for call in lost.unclaimed:
                if self.metrics is not None:
                    self.metrics.orphan(call.identity.agent if call.identity else "unknown")

    def _begin_sessions(self, sightings: Iterable[Sighting]) -> None:
        """Hold the sessions of which nothing is stored: what comes now need not be read back."""
        for who in {(sighting.agent, sighting.session_id) for sighting in sightings}:
            if who not in self._sessions and not self.store.has_sightings(*who):
                self._session(*who)

    def _spread(self, sightings: Iterable[Sighting]) -> None:
        """Give new sightings to their sessions."""
        by_session: dict[tuple[str, str], list[Sighting]] = {}
        for sighting in sightings:
            by_session.setdefault((sighting.agent, sighting.session_id), []).append(sighting)
        for (agent, session_id), group in by_session.items():
            session = self._session(agent, session_id)
            session.assembler.add(group)
            if session.has_news_of_stubs(group):
                # What it was must be known to tell what is new.
                session.load(self.store)
            elif session.assembler.size > session.most_bytes:
                session.spill(self._clock())
            session.gone = False
            self._touch(session)

    def _session(self, agent: str, session_id: str) -> Held:
        key = (agent, session_id)
        if key not in self._sessions:
            held = Held(agent, session_id, self._clock())
            held.load(self.store)
            self._sessions[key] = held
        return self._sessions[key]

    def _touch(self, session: Held) -> None:
        session.changed_ns = self._clock()
        session.dirty = True
        session.untold = True

    def _note(self, text: str) -> None:
        logger.warning("%s", text)
        with self.store.transaction():
            self.store.add_notes({text: 1})


def _final(turn: Turn, spans: Iterable[Span]) -> list[Span]:
    """Return what can be told of an open turn: nothing before its resource is as it will be."""
    known = turn.info.agent_version is not None or not agents()[turn.agent].TELLS_VERSION
    return final_spans(turn, spans) if known else []


def _is_home(call: GatewayCall, session: Held) -> bool:
    if call.conversation_id is not None and call.conversation_id == session.session_id:
        return True
    names = set(gateway_names(call))
    return any(names & set(gateway_names(each)) for each in session.calls.values())


def _rendered_alone(
    orphan: Orphan, trace: str, parent: str | None, content: Content
) -> tuple[Span, ...]:
    return (render_orphan(orphan, trace, content, parent),)


def _is_gone(session: Held) -> bool:
    """Say whether the agent's process is known to have ended."""
    if agents()[session.agent].KEEPS_TRANSCRIPT_OPEN and session.transcript is not None:
        is_open = is_open_for_writing(session.transcript)
        if is_open is not None:
            # What runs a session may outlive what was started: a server behind the terminal.
            return not is_open
    pid = session.assembler.info.pid
    if pid is None and session.transcript is not None and session.transcript.parent.is_file():
        # One file holds the sessions of several processes, and the last of them closes it.
        return is_open_for_writing(session.transcript.parent) is False
    return pid is not None and not _is_alive(pid)


def _overlaps(turn: Turn, time_ns: int) -> bool:
    over = turn.end_ns is not None and time_ns > turn.end_ns + SECOND_NS
    return not over and time_ns >= turn.start_ns - SECOND_NS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

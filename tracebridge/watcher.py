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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tracebridge.agents import Agent, Cursor, PastSession, agents
from tracebridge.encode import encode_span
from tracebridge.ids import trace_id
from tracebridge.intake import Intake, tags_of_folder
from tracebridge.linker import Orphan, link
from tracebridge.metrics import Metrics
from tracebridge.model import GatewayCall, Sighting, Source, Span, Turn, TurnState
from tracebridge.processes import is_open_for_writing
from tracebridge.scrub import scrub_sighting
from tracebridge.settings import Settings
from tracebridge.sinks import lasting_sinks
from tracebridge.spans import Content, render, render_orphan, resource_of
from tracebridge.store import Store, StoreError
from tracebridge.turns import TurnAssembler

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
# An open turn of which nothing was heard for so long is over.
STALE_NS = 24 * 3600 * SECOND_NS
# More sightings of one session than this, and told turns are let go of.
MOST_SIGHTINGS = 5000

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Session:
    agent: str
    session_id: str
    assembler: TurnAssembler
    calls: dict[str, GatewayCall]
    changed_ns: int
    dirty: bool = True
    gone: bool = False
    looked_ns: int = 0
    # Main transcript, once known; None while there is none.
    transcript: Path | None = None
    untold: bool = True
    # When the next turn that is over will have been quiet for long enough; None: nothing to do.
    due_ns: int | None = None
    retired: set[str] = field(default_factory=set)


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
        self._sessions: dict[tuple[str, str], _Session] = {}
        self._cursors: dict[Path, Cursor] = {}
        self._patterns = settings.scrub_patterns
        self._hopeless: set[Path] = set()
        self._intakes = -1

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
                for agent, session_id in self.store.open_sessions():
                    self._session(agent, session_id)
            # Stopped in the middle, what was taken in may not be in the sessions yet.
            self._intakes = -1
            yield
            self._intakes = self.store.intakes()

    def _step(self, *, settle_now: bool, close_open: bool) -> bool:
        new = self._take_in_spool()
        for session in list(self._sessions.values()):
            if session.untold or session.dirty:
                new |= self._take_in_transcripts(session)
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
        self._give_up_on_orphans(at_once=close_open)
        return new

    @property
    def busy(self) -> bool:
        """Say whether a turn is not told yet."""
        return any(session.untold for session in self._sessions.values())

    def import_transcript(self, agent: Agent, path: Path) -> None:
        """Take in a past session from its main transcript. Raise OSError if it cannot be read."""
        with self._alone():
            for file in agent.transcripts(path):
                self._read_transcript(agent, file)

    def import_session(self, agent: Agent, past: PastSession, *, local_only: bool = False) -> None:
        """Take in a past session as of when its transcript was last written to, and tell it.

        What is over then is told; what still runs stays open. With *local_only* it goes to no sink,
        also if we are killed. Raise OSError if it cannot be read.
        """
        if local_only:
            with self._alone():
                until_ns = self._traced_since(agent.SLUG, past.session_id)
                self.store.keep_local(agent.SLUG, past.session_id, until_ns)
        self.import_transcript(agent, past.path)
        own = self._sessions.get((agent.SLUG, past.session_id))
        for session in self._sessions.values():
            if session.dirty or session is own:
                session.changed_ns = min(session.changed_ns, past.changed_ns)
        self.step()
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
        if not taken.files:
            return False
        with self.store.transaction():
            new = self.store.add_sightings(taken.sightings)
            new_calls = [call for call in taken.calls if self.store.add_call(call, self._clock())]
            self.store.add_notes(taken.notes)
        # Only now is it safe to let go of the files.
        for file in taken.files:
            self.spool.remove(file)
        self._spread(new)
        for call in new_calls:
            identity = call.identity
            if identity is not None and identity.session_id is not None:
                session = self._session(identity.agent, identity.session_id)
                session.calls[call.call_id] = call
                self._touch(session)
        return bool(new or new_calls)

    def _take_in_transcripts(self, session: _Session) -> bool:
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
            if path in self._hopeless:
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
            sightings = [scrub_sighting(each, self._patterns) for each in reading.sightings]
            notes = Counter(reading.notes)
            if (tags := tags_of_folder(agent, sightings, notes)) is not None:
                told = Source.TRANSCRIPT
                whose = replace(sightings[-1], turn_key=None, subagent_id=None)
                whose = replace(whose, source=told, time_ns=0, part=tags)
                sightings.append(scrub_sighting(whose, self._patterns))
            if reading.cursor == cursor and not sightings:
                return new
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

    def _notice_end(self, session: _Session, *, close_open: bool) -> bool:
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
        if not strangers:
            return
        sessions = [session for session in self._sessions.values() if session.untold]
        turns = {
            turn.trace_id: (turn, session)
            for session in sessions
            for turn in session.assembler.turns()
        }
        linked, _ = link(strangers, [turn for turn, _ in turns.values()])
        for call, found in linked:
            session = turns[found.trace_id][1]
            if call.call_id not in session.calls:
                session.calls[call.call_id] = call
                self._touch(session)

    def _assemble(self, session: _Session, *, settle_now: bool, close_open: bool) -> None:
        now_ns = self._clock()
        if session.changed_ns > now_ns:
            # The clock was set back; the waiting does not begin anew for that.
            if session.due_ns is not None:
                session.due_ns -= session.changed_ns - now_ns
            session.changed_ns = now_ns
        quiet_ns = now_ns - session.changed_ns
        waiting = session.due_ns is None or now_ns < session.due_ns
        if waiting and not session.dirty and not settle_now:
            return
        session.due_ns = None
        calls = list(session.calls.values())
        linked, orphans = link(calls, session.assembler.turns(gone=session.gone))
        turns = session.assembler.turns(linked, gone=session.gone)
        untold = False
        news: list[tuple[str, tuple[Span, ...], set[str]]] = []
        local_ns = self.store.local_until(session.agent, session.session_id)
        with self.store.transaction():
            if session.dirty:
                for call, found in linked:
                    self.store.set_link(call.call_id, found)
                for orphan in orphans:
                    self.store.set_reason(orphan.call.call_id, orphan.reason)
            for turn in turns:
                if turn.turn_key in session.retired:
                    continue
                spans = render(turn, self._settings.content)
                if session.dirty:
                    self.store.put_turn(turn, spans)
                patience = self._patience_ns(turn, session, close_open=close_open)
                over = turn.state is not TurnState.OPEN and (
                    quiet_ns >= patience or (settle_now and patience <= SETTLE_NS)
                )
                if over:
                    if self.metrics is not None:
                        news.append((turn.agent, spans, self.store.untold(turn.trace_id)))
                    self.store.tell(
                        turn.trace_id,
                        [(span.span_id, encode_span(span)) for span in spans],
                        resource_of(turn.agent, spans, self._settings.resource),
                        [] if turn.start_ns < local_ns else [sink.name for sink in self.sinks],
                        self._reduced(partial(render, turn)),
                    )
                else:
                    untold = True
                    if turn.state is not TurnState.OPEN:
                        due_ns = session.changed_ns + patience
                        session.due_ns = min(session.due_ns or due_ns, due_ns)
            if not untold:
                self.store.settle(session.agent, session.session_id)
        for agent, spans, new in news:
            if self.metrics is not None and new:
                self.metrics.told(agent, spans, new)
        session.dirty = False
        session.untold = untold or bool(orphans)
        if not untold and len(session.assembler) > MOST_SIGHTINGS:
            self._retire(session, turns[:-1])

    def _reduced(
        self, render_at: Callable[[Content], tuple[Span, ...]]
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
    def _patience_ns(turn: Turn, session: _Session, *, close_open: bool) -> int:
        """Return how long a turn that is over must have been quiet before it is told."""
        running = any(subagent.end_ns is None for subagent in turn.subagents)
        if running and not session.gone and not close_open:
            ended_ns = session.assembler.info.ended_ns
            if ended_ns is None:
                return SUBAGENT_PATIENCE_NS
        return CONFIRMED_SETTLE_NS if turn.confirmed else SETTLE_NS

    def _retire(self, session: _Session, turns: Iterable[Turn]) -> None:
        for turn in turns:
            session.assembler.retire(turn.turn_key)
            session.retired.add(turn.turn_key)
            for chat in turn.chats:
                if chat.seen is not None:
                    session.calls.pop(chat.seen.call_id, None)

    def _give_up_on_orphans(self, *, at_once: bool) -> None:
        now_ns = self._clock()
        for call, taken_ns in self.store.calls_without_turn():
            # Taken in the future: the clock was set back.
            if not at_once and abs(now_ns - taken_ns) < ORPHAN_PATIENCE_NS:
                continue
            identity = call.identity
            agent = identity.agent if identity is not None else "unknown"
            session_id = (identity.session_id if identity is not None else None) or ""
            lone_trace = trace_id(agent, session_id, f"orphan:{call.call_id}")
            reason = "no turn has its session, response or tools"
            if session_id:
                session = self._sessions.get((agent, session_id))
                _, orphans = link([call], session.assembler.turns() if session else [])
                reason = orphans[0].reason if orphans else reason
                if session is not None:
                    session.calls.pop(call.call_id, None)
                    session.dirty = True
            span = render_orphan(Orphan(call, reason), lone_trace, self._settings.content)
            with self.store.transaction():
                self.store.set_reason(call.call_id, reason, lone_trace)
                self.store.put_lone_span(span)
                self.store.tell(
                    lone_trace,
                    [(span.span_id, encode_span(span))],
                    resource_of(agent, [span], self._settings.resource),
                    [sink.name for sink in self.sinks],
                    self._reduced(partial(_rendered_alone, Orphan(call, reason), lone_trace)),
                )
            if self.metrics is not None:
                self.metrics.orphan(agent)

    def _spread(self, sightings: Iterable[Sighting]) -> None:
        """Give new sightings to their sessions."""
        by_session: dict[tuple[str, str], list[Sighting]] = {}
        for sighting in sightings:
            by_session.setdefault((sighting.agent, sighting.session_id), []).append(sighting)
        for (agent, session_id), group in by_session.items():
            session = self._session(agent, session_id)
            if session.retired & {sighting.turn_key for sighting in group}:
                # News of a turn long told: what it was must be known to tell what is new.
                del self._sessions[agent, session_id]
                session = self._session(agent, session_id)
            session.assembler.add(group)
            session.gone = False
            self._touch(session)

    def _session(self, agent: str, session_id: str) -> _Session:
        key = (agent, session_id)
        if key not in self._sessions:
            assembler = TurnAssembler(agent, session_id)
            assembler.add(self.store.sightings(agent, session_id))
            calls = {call.call_id: call for call in self.store.calls(agent, session_id)}
            self._sessions[key] = _Session(agent, session_id, assembler, calls, self._clock())
        return self._sessions[key]

    def _touch(self, session: _Session) -> None:
        session.changed_ns = self._clock()
        session.dirty = True
        session.untold = True

    def _note(self, text: str) -> None:
        logger.warning("%s", text)
        with self.store.transaction():
            self.store.add_notes({text: 1})


def _rendered_alone(orphan: Orphan, trace: str, content: Content) -> tuple[Span, ...]:
    return (render_orphan(orphan, trace, content),)


def _is_gone(session: _Session) -> bool:
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


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

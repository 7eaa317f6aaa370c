"""Past sessions of all agents, from what they remember of them: found, counted, taken in."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from tracebridge.agents import Agent, Cursor, PastSession
from tracebridge.model import Sighting, Turn
from tracebridge.sending import Sent, deliver_now
from tracebridge.settings import Settings
from tracebridge.store import Store
from tracebridge.turns import TurnAssembler
from tracebridge.watcher import Watcher

# So that live tracing goes on meanwhile: a watcher that waits looks every ten milliseconds.
ALONE_S = 0.5
PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Found:
    """Sessions that can be taken in, and why others cannot."""

    # The oldest first.
    sessions: list[tuple[Agent, PastSession]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __add__(self, other: Found) -> Found:
        return Found(self.sessions + other.sessions, self.problems + other.problems)


@dataclass(slots=True)
class Count:
    """What there is of one agent, or was taken in."""

    sessions: int = 0
    turns: int = 0
    # Of which nothing was known here before.
    new_turns: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    counts: Mapping[str, Count]
    problems: Sequence[str]
    sent: Sequence[Sent] = ()
    # Sessions that ended longer ago than turns are kept here.
    too_old: int = 0


def find(
    agents: Iterable[Agent],
    home: Path,
    *,
    since_ns: int = 0,
    project: str | None = None,
    untraced: Sequence[Path] = (),
) -> Found:
    """Return what these agents remember below the user's *home*, the oldest first.

    Nothing of folders that are *untraced*.
    """
    found = Found()
    for agent in agents:
        try:
            for past in agent.past_sessions(home):
                asked = past.changed_ns >= since_ns and _is_of(past, project)
                if asked and not _is_below(past, untraced):
                    found.sessions.append((agent, past))
        except OSError as error:
            found.problems.append(f"{agent.SLUG}: {error.filename}: {error.strerror}")
    found.sessions.sort(key=lambda each: (each[1].changed_ns, str(each[1].path)))
    return found


def at_paths(agent: Agent, paths: Iterable[Path]) -> Found:
    """Return the sessions whose main transcripts are given by the user."""
    found = Found()
    for path in paths:
        try:
            # OpenCode's stand in one database, as if it were their folder.
            for main in agent.transcripts(path) if path.is_file() else [path]:
                place = main if main.exists() else main.parent
                changed_ns = place.stat().st_mtime_ns
                session_id = _session_of(agent, main)
                past = PastSession(
                    path=main, session_id=session_id, project=None, changed_ns=changed_ns
                )
                found.sessions.append((agent, past))
                if main == path:
                    # The rest are its subagents'.
                    break
        except OSError as error:
            found.problems.append(f"{path}: {error.strerror}")
    return found


def count(found: Found, store: Store, done: Callable[[], None]) -> Report:
    """Say what taking the sessions in would add, calling *done* after each; nothing is taken in."""
    counts: dict[str, Count] = {}
    problems = list(found.problems)
    for agent, past in found.sessions:
        one = counts.setdefault(agent.SLUG, Count())
        try:
            turns = _turns(agent, past)
        except OSError as error:
            problems.append(f"{past.path}: {error.strerror}")
        else:
            one.sessions += 1
            one.turns += len(turns)
            one.new_turns += sum(not store.is_told(turn.trace_id) for turn in turns)
        done()
    return Report(counts, problems)


def take_in(
    settings: Settings, found: Found, done: Callable[[], None], *, local_only: bool
) -> Report:
    """Take the sessions in, one by one, calling *done* after each, and send what they told.

    Killed at any point, the next import goes on where this one stopped.
    """
    watcher = Watcher(settings)
    problems = list(found.problems)
    try:
        # What was open before is not mistaken for something of these sessions.
        watcher.step()
        counts = {agent.SLUG: Count() for agent, _ in found.sessions}
        before = {slug: _turns_of(watcher.store, slug) for slug in counts}
        waiting = deque(found.sessions)
        while waiting:
            with watcher.importing():
                began_s = time.monotonic()
                while waiting:
                    agent, past = waiting.popleft()
                    try:
                        watcher.import_session(agent, past, local_only=local_only)
                        counts[agent.SLUG].sessions += 1
                    except OSError as error:
                        problems.append(f"{past.path}: {error.strerror}")
                    done()
                    if time.monotonic() - began_s > ALONE_S:
                        break
            time.sleep(PAUSE_S)
        watcher.step(settle_now=True)
        for slug, one in counts.items():
            one.turns = _turns_of(watcher.store, slug)
            one.new_turns = one.turns - before[slug]
        sent = [] if local_only else deliver_now(watcher.store, watcher.sinks)
        oldest_ns = time.time_ns() - int(settings.retention_days * 86_400e9)
        too_old = sum(past.changed_ns < oldest_ns for _, past in found.sessions)
        return Report(counts, problems, sent, too_old)
    finally:
        watcher.close()


def report_lines(report: Report, *, dry_run: bool) -> Iterator[str]:
    """Yield what people are told."""
    verb = "to take in" if dry_run else "taken in"
    for slug, one in report.counts.items():
        sessions = f"{one.sessions} session{'' if one.sessions == 1 else 's'} {verb}"
        yield f"{slug:<12} {sessions}, {one.new_turns} new turns ({one.turns} in all)"
    if report.too_old:
        yield (
            f"{report.too_old} of them ended longer ago than turns are kept here, and go again within "
            "the hour; raise retention_days in config.toml before you import to keep them"
        )
    if not report.counts:
        yield "no past sessions found where the agents keep them"


def _session_of(agent: Agent, path: Path) -> str:
    told = agent.read_transcript(path, Cursor()).sightings
    return next((sighting.session_id for sighting in told), path.stem)


def _is_of(past: PastSession, project: str | None) -> bool:
    if project is None or past.project is None:
        return project is None
    # Gemini CLI's folders have the project's name alone.
    wanted, own = PurePath(project), PurePath(past.project)
    return wanted == own or (wanted.name == own.name and not (wanted.root and own.root))


def _is_below(past: PastSession, folders: Sequence[Path]) -> bool:
    if past.project is None:
        return False
    own = PurePath(past.project)
    if own.root:
        return any(own.is_relative_to(folder) for folder in folders)
    return any(own.name == folder.name for folder in folders)


def _turns_of(store: Store, slug: str) -> int:
    return sum(1 for _ in store.find_turns(agent=slug))


def _turns(agent: Agent, past: PastSession) -> list[Turn]:
    by_session: dict[str, list[Sighting]] = {}
    for path in agent.transcripts(past.path):
        cursor = Cursor()
        while True:
            reading = agent.read_transcript(path, cursor)
            for sighting in reading.sightings:
                by_session.setdefault(sighting.session_id, []).append(sighting)
            if reading.cursor == cursor:
                break
            cursor = reading.cursor
    turns = []
    for session_id, sightings in by_session.items():
        assembler = TurnAssembler(agent.SLUG, session_id)
        assembler.add(sightings)
        turns += assembler.turns()
    return turns

"""What waits in the spool, as sightings and calls of which secrets are taken out."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from msgspec.structs import replace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tracebridge.agents import Agent, agents
from tracebridge.fragments import Fragment, scrub, split
from tracebridge.metrics import Metrics
from tracebridge.model import (
    GatewayCall,
    HookEvent,
    SessionInfo,
    Sighting,
    Source,
    SpanExport,
    Tags,
)
from tracebridge.scrub import scrub_call, scrub_sighting, scrub_text
from tracebridge.settings import Settings
from tracebridge.spool import Spool, SpoolFile, SpoolFileError
from tracebridge.tag_files import read_tags
from tracebridge.tags import over, parse_tags

logger = logging.getLogger(__name__)

ReadTags: TypeAlias = Callable[[Agent, Path, Path], tuple[Tags | None, list[str]]]


@dataclass(frozen=True, slots=True)
class Taken:
    """What spool files told; they may go once it is stored."""

    files: Sequence[SpoolFile]
    sightings: list[Sighting] = field(default_factory=list)
    calls: list[GatewayCall] = field(default_factory=list)
    # Of other gateways' traces.
    fragments: list[Fragment] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


class Intake:
    """Read the spool, leave out what is not to be traced, scrub the rest."""

    def __init__(self, settings: Settings, clock: Callable[[], int] = time.time_ns) -> None:
        self.spool = Spool(settings.home)
        self.metrics: Metrics | None = None
        self._clock = clock
        self._patterns = settings.scrub_patterns
        self._untraced = {place for folder in settings.untraced for place in _names_of(folder)}
        self._untraced_sessions: set[tuple[str, str]] = set()
        self._newly_untraced: set[tuple[str, str]] = set()

    def remember_untraced(self, sessions: Iterable[tuple[str, str]]) -> None:
        """Know that these sessions, of agent and id, are not to be recorded."""
        self._untraced_sessions.update(sessions)

    def newly_untraced(self) -> set[tuple[str, str]]:
        """Return the sessions of which this was found out since the last time."""
        found, self._newly_untraced = self._newly_untraced, set()
        return found

    def read(self) -> Taken:
        """Return what waits; it stays in the spool."""
        taken = Taken(self.spool.read())
        for file in taken.files:
            match file.content:
                case HookEvent() | SpanExport() as told:
                    try:
                        if isinstance(told, HookEvent):
                            taken.sightings.extend(self._sightings_of(told, taken.notes))
                        else:
                            self._add_spans(told, taken)
                    except Exception:
                        # It must not stand in the way of all that come after it.
                        what = "hook event" if isinstance(told, HookEvent) else "exported spans"
                        taken.notes[f"{what} not understood, set aside; see watch.log"] += 1
                        place = self.spool.set_aside(file)
                        logger.exception("%s cannot be understood; moved to %s", file.path, place)
                case GatewayCall() as call:
                    self._add_call(call, taken)
                case str() as note:
                    taken.notes[note] += 1
                case SpoolFileError():
                    taken.notes["spool file set aside"] += 1
        return self._traced(taken)

    def understand(
        self, records: Iterable[GatewayCall | HookEvent | SpanExport], notes: Mapping[str, int]
    ) -> Taken:
        """Return what records from elsewhere tell; *notes* is what was passed over already."""
        taken = Taken((), notes=Counter(notes))
        for record in records:
            if isinstance(record, GatewayCall):
                self._add_call(record, taken)
            elif isinstance(record, SpanExport):
                self._add_spans(record, taken)
            else:
                taken.sightings.extend(self._sightings_of(record, taken.notes))
        return self._traced(taken)

    def _traced(self, taken: Taken) -> Taken:
        """Leave out what came before the event that told where it comes from."""
        gone = self._untraced_sessions
        taken.calls[:] = [call for call in taken.calls if not self._is_of_untraced(call)]
        taken.sightings[:] = [s for s in taken.sightings if (s.agent, s.session_id) not in gone]
        return taken

    def without_untraced(self, sightings: Sequence[Sighting]) -> list[Sighting]:
        """Return what a transcript tells but for that from where nothing is to be recorded.

        A session that begins there is left out; one that comes there is from then on.
        """
        if not self._untraced and not self._untraced_sessions:
            return list(sightings)
        traced: set[tuple[str, str]] = set()
        kept: list[Sighting] = []
        for sighting in sightings:
            who = (sighting.agent, sighting.session_id)
            if self._is_untraced([sighting]):
                if who not in traced:
                    # What stood before the first word of its folder.
                    kept = [each for each in kept if (each.agent, each.session_id) != who]
                continue
            if isinstance(sighting.part, SessionInfo) and sighting.part.cwd is not None:
                traced.add(who)
            kept.append(sighting)
        return kept

    def _add_call(self, call: GatewayCall, taken: Taken) -> None:
        if not call.is_to_a_model:
            taken.notes[f"request to no model's API: {call.method} {_shape_of(call.path)}"] += 1
            return
        taken.calls.append(scrub_call(call, self._patterns))
        taken.sightings.extend(_launcher_of(taken.calls[-1]))

    def _add_spans(self, export: SpanExport, taken: Taken) -> None:
        fragments, notes = split(ExportTraceServiceRequest.FromString(export.request))
        for fragment in fragments:
            scrub(fragment.spans, partial(scrub_text, patterns=self._patterns))
        taken.notes.update(notes)
        taken.fragments.extend(fragments)

    def _sightings_of(self, event: HookEvent, notes: Counter[str]) -> list[Sighting]:
        agent = agents().get(event.agent)
        if agent is None:
            notes[f"hook event of unknown agent {event.agent[:40]!r}"] += 1
            return []
        if self.metrics is not None:
            self.metrics.hook_event(agent.SLUG, event.time_ns, self._clock())
        reading = agent.parse_hook(event)
        notes.update(reading.notes)
        tags, problem = parse_tags(event.env)
        if problem is not None:
            notes[problem] += 1
        sightings = list(reading.sightings)
        tags = over(tags_of_folder(agent, sightings, notes), tags)
        if tags is not None and sightings:
            sightings.append(replace(sightings[-1], source=Source.HOOK, time_ns=0, part=tags))
        if self._is_untraced(sightings):
            notes["hook event of a folder that is not traced"] += 1
            return []
        return [scrub_sighting(sighting, self._patterns) for sighting in sightings]

    def _is_untraced(self, sightings: Sequence[Sighting]) -> bool:
        """Say whether a hook event comes from a session in a folder that is not to be recorded."""
        for sighting in sightings:
            session = (sighting.agent, sighting.session_id)
            cwd = sighting.part.cwd if isinstance(sighting.part, SessionInfo) else None
            if cwd is not None and session not in self._untraced_sessions and self._is_below(cwd):
                self._untraced_sessions.add(session)
                self._newly_untraced.add(session)
            if session in self._untraced_sessions:
                return True
        return False

    def _is_below(self, cwd: str) -> bool:
        names = _names_of(Path(cwd)) if self._untraced else ()
        return any(name.is_relative_to(folder) for name in names for folder in self._untraced)

    def _is_of_untraced(self, call: GatewayCall) -> bool:
        who = call.identity
        return who is not None and (who.agent, who.session_id or "") in self._untraced_sessions


def _names_of(folder: Path) -> tuple[Path, ...]:
    """Return the folder as it is called, and as it is called where no link leads to it."""
    plain = Path(os.path.normpath(folder))
    try:
        return (plain, folder.resolve())
    except (OSError, ValueError, RuntimeError):
        # A name that no file can have, or links in a circle.
        return (plain,)


def _launcher_of(call: GatewayCall) -> list[Sighting]:
    """Return what the command that a gateway was started for tells of its calls' turn."""
    identity = call.identity
    if call.launcher_pid is None or identity is None or identity.session_id is None:
        return []
    sighting = Sighting(
        agent=identity.agent,
        session_id=identity.session_id,
        source=Source.GATEWAY,
        time_ns=call.start_ns,
        part=SessionInfo(key="session", pid=call.launcher_pid),
    )
    tags, _ = parse_tags(call.launcher_env)
    if tags is None:
        return [sighting]
    return [sighting, replace(sighting, time_ns=0, turn_key=identity.turn_key, part=tags)]


def tags_of_folder(
    agent: Agent, sightings: Iterable[Sighting], notes: Counter[str], read: ReadTags = read_tags
) -> Tags | None:
    """Return the tags of the folder that *sightings* tell of."""
    infos = [sighting.part for sighting in sightings if isinstance(sighting.part, SessionInfo)]
    cwd = next((info.cwd for info in infos if info.cwd), None)
    if cwd is None or not Path(cwd).is_absolute():
        return None
    tags, problems = read(agent, Path(cwd), Path.home())
    notes.update(problems)
    return tags


def _shape_of(path: str) -> str:
    """Return a request's path without what may differ each time, or be a secret."""
    words = path.partition("?")[0].split("/")
    return "/".join("*" if re.search(r"\d{3}|.{33}", word) else word for word in words)[:120]

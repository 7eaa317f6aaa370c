"""What waits in the spool, as sightings and calls of which secrets are taken out."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tracebridge.agents import Agent, agents
from tracebridge.metrics import Metrics
from tracebridge.model import GatewayCall, HookEvent, SessionInfo, Sighting, Source, Tags
from tracebridge.scrub import scrub_call, scrub_sighting
from tracebridge.settings import Settings
from tracebridge.spool import Spool, SpoolFile, SpoolFileError
from tracebridge.tag_files import read_tags
from tracebridge.tags import over, parse_tags

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """What spool files told; they may go once it is stored."""

    files: Sequence[SpoolFile]
    sightings: list[Sighting] = field(default_factory=list)
    calls: list[GatewayCall] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


class Intake:
    """Read the spool, leave out what is not to be traced, scrub the rest."""

    def __init__(self, settings: Settings, clock: Callable[[], int] = time.time_ns) -> None:
        self.spool = Spool(settings.home)
        self.metrics: Metrics | None = None
        self._clock = clock
        self._patterns = settings.scrub_patterns
        self._untraced = settings.untraced
        self._untraced_sessions: set[tuple[str, str | None]] = set()

    def read(self) -> Taken:
        """Return what waits; it stays in the spool."""
        taken = Taken(self.spool.read())
        for file in taken.files:
            match file.content:
                case HookEvent() as event:
                    try:
                        taken.sightings.extend(self._sightings_of(event, taken.notes))
                    except Exception:
                        # It must not stand in the way of all that come after it.
                        taken.notes["hook event not understood, set aside; see watch.log"] += 1
                        place = self.spool.set_aside(file)
                        logger.exception("%s cannot be understood; moved to %s", file.path, place)
                case GatewayCall() as call:
                    if not call.is_to_a_model:
                        taken.notes[
                            f"request to no model's API: {call.method} {_shape_of(call.path)}"
                        ] += 1
                        continue
                    taken.calls.append(scrub_call(call, self._patterns))
                    taken.sightings.extend(_launcher_of(taken.calls[-1]))
                case SpoolFileError() as error:
                    taken.notes["spool file set aside"] += 1
                    logger.warning("%s; moved to %s", error, self.spool.set_aside(file))
        taken.calls[:] = [call for call in taken.calls if not self._is_of_untraced(call)]
        return taken

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
            if cwd is not None and any(Path(cwd).is_relative_to(f) for f in self._untraced):
                self._untraced_sessions.add(session)
            if session in self._untraced_sessions:
                return True
        return False

    def _is_of_untraced(self, call: GatewayCall) -> bool:
        who = call.identity
        return who is not None and (who.agent, who.session_id) in self._untraced_sessions


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


def tags_of_folder(agent: Agent, sightings: Iterable[Sighting], notes: Counter[str]) -> Tags | None:
    """Return the tags of the folder that *sightings* tell of."""
    infos = [sighting.part for sighting in sightings if isinstance(sighting.part, SessionInfo)]
    cwd = next((info.cwd for info in infos if info.cwd), None)
    if cwd is None or not Path(cwd).is_absolute():
        return None
    tags, problems = read_tags(agent, Path(cwd), Path.home())
    notes.update(problems)
    return tags


def _shape_of(path: str) -> str:
    """Return a request's path without what may differ each time, or be a secret."""
    words = path.partition("?")[0].split("/")
    return "/".join("*" if re.search(r"\d{3}|.{33}", word) else word for word in words)[:120]

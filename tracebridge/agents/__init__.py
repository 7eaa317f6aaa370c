"""The agents: one module each, found by looking into this package.

Everything vendor-specific about an agent stands in its module and nowhere else; modules never
import each other. A module gets HookEvents and transcript files, and gives Sightings.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

from tracebridge.model import CallIdentity, HookEvent, Sighting


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far a transcript has been read, and what reading on needs to remember."""

    offset: int = 0
    # Changes when the file was replaced; then reading starts anew.
    inode: int = 0
    memory: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one look at a hook event or a transcript gave."""

    sightings: tuple[Sighting, ...] = ()
    cursor: Cursor = Cursor()
    # What was passed over, by reason, for `status`.
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a launched agent needs to know of us."""

    # The hook's shell commands by kind, as for `wire`.
    commands: Mapping[str, str]
    # Base URL of our gateway, without a path; None: the agent talks to its model directly.
    gateway_url: str | None
    env: Mapping[str, str]


class Agent(Protocol):
    """What we expect of an agent's module."""

    SLUG: str
    ALIASES: tuple[str, ...]
    # The command that starts it.
    PROGRAM: str
    # Versions that the tests drive.
    TESTED_VERSION: str

    def parse_hook(self, event: HookEvent) -> Reading:
        """Return what one hook event tells. Never raises: what does not parse is noted."""
        ...

    def transcripts(self, path: Path) -> Iterable[Path]:
        """Return the files that belong to the session whose main transcript is *path*."""
        ...

    def find_transcript(self, session_id: str, home: Path) -> Path | None:
        """Return the main transcript of a session below the user's *home*, if there is one."""
        ...

    def read_transcript(self, path: Path, cursor: Cursor) -> Reading:
        """Return what the file says beyond *cursor*. Raise OSError where it cannot be read."""
        ...

    def identify_call(
        self, headers: Mapping[str, str], body: Mapping[str, Any]
    ) -> CallIdentity | None:
        """Return who made a model request, from lower-case headers and the parsed body, or None."""
        ...

    def settings_path(self, scope: str, home: Path, project: Path) -> Path:
        """Return the agent's settings file of a scope, "global" or "local"."""
        ...

    def wire(self, settings: Mapping[str, Any], commands: Mapping[str, str]) -> dict[str, Any]:
        """Return *settings* with our hooks. Raise ValueError where they cannot be added."""
        ...

    def unwire(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return *settings* without our hooks."""
        ...

    def launch(self, command: Sequence[str], launch: Launch) -> tuple[list[str], dict[str, str]]:
        """Return command and environment that trace one process with nothing edited."""
        ...

    def upstream(self, env: Mapping[str, str], home: Path, project: Path) -> str:
        """Return, as a gateway's upstream, where the agent's model requests go today."""
        ...


@cache
def agents() -> Mapping[str, Agent]:
    """Return every agent by slug."""
    modules = (
        importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
    )
    return {module.SLUG: cast("Agent", module) for module in modules}


def agent(name: str) -> Agent | None:
    """Return the agent with this slug or alias."""
    for each in agents().values():
        if name == each.SLUG or name in each.ALIASES:
            return each
    return None


def identify_call(headers: Mapping[str, str], body: Mapping[str, Any]) -> CallIdentity | None:
    """Return who made a model request: the first agent that recognises its own."""
    for each in agents().values():
        identity = each.identify_call(headers, body)
        if identity is not None:
            return identity
    return None

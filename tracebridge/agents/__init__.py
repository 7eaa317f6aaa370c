"""The agents: one module each, found by looking into this package.

Everything vendor-specific about an agent stands in its module and nowhere else; modules never
import each other. A module gets HookEvents and transcript files, and gives Sightings.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

from tracebridge.edits import Change, Format
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
class PastSession:
    """A session that an agent remembers."""

    # Its main transcript.
    path: Path
    session_id: str
    # The folder in which it worked, by path or name.
    project: str | None
    changed_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a launched agent needs to know of us."""

    # The hook's shell commands by kind, as for `wire`.
    commands: Mapping[str, str]
    # Base URL of our gateway, without a path; None: the agent talks to its model directly.
    gateway_url: str | None
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What is kept of the log records that an agent exports about itself."""

    # Its `service.name`.
    service: str
    # Names of attributes by name of event; all else is let go before anything is written.
    kept: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a user wants to stand in an agent's settings."""

    # "global" or "local": for all of the user's projects, or for one.
    scope: str
    home: Path
    project: Path
    env: Mapping[str, str] = field(repr=False)
    # The hook's shell commands by kind, as for `wire`.
    commands: Mapping[str, str]
    # Base URLs by family, as the agent's own client wants them; none: requests go where they went.
    routes: Mapping[str, str] = field(default_factory=dict)
    # Where the gateway's key is found: a reference of `tracebridge.keys`. None: where it was.
    key: str | None = None
    model: str | None = None
    # To be sent with each request.
    headers: Mapping[str, str] = field(default_factory=dict)
    # Whether the agent shall send a traceparent of its own.
    traceparent: bool = False
    # Whether hooks shall run that nobody approved.
    trust_hooks: bool = False
    # Whether tool calls shall run no hooks.
    light: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What shall stand in one file, and what goes again."""

    path: Path
    # None: a folder.
    form: Format | None
    # From what stands there to what is to be changed. Raise ValueError where that is impossible.
    wire: Callable[[Mapping[str, Any]], Iterable[Change]] = lambda _: ()
    # What is ours by its look, whether anybody remembers writing it or not.
    unwire: Callable[[Mapping[str, Any]], Iterable[Change]] = lambda _: ()
    # Ours as a whole or not at all: once others have written to it, it is theirs.
    whole: bool = False


class Agent(Protocol):
    """What we expect of an agent's module."""

    SLUG: str
    ALIASES: tuple[str, ...]
    # The command that starts it.
    PROGRAM: str
    # Versions that the tests drive.
    TESTED_VERSION: str
    # Whether it keeps a session's main transcript open for as long as it runs: then one that
    # nobody has open is that of a session whose process is gone.
    KEEPS_TRANSCRIPT_OPEN: bool
    # Whether hooks or transcripts tell which version it is.
    TELLS_VERSION: bool

    def parse_hook(self, event: HookEvent) -> Reading:
        """Return what one hook event tells. Never raises: what does not parse is noted."""
        ...

    def transcripts(self, path: Path) -> Iterable[Path]:
        """Return the files that belong to the session whose main transcript is *path*."""
        ...

    def find_transcript(self, session_id: str, home: Path) -> Path | None:
        """Return the main transcript of a session below the user's *home*, if there is one."""
        ...

    def past_sessions(self, home: Path) -> Iterable[PastSession]:
        """Return the sessions that it remembers below the user's *home*, those of subagents not.

        Raise OSError where it remembers them and they cannot be read.
        """
        ...

    def read_transcript(self, path: Path, cursor: Cursor) -> Reading:
        """Return what the file says beyond *cursor*. Raise OSError where it cannot be read."""
        ...

    def identify_call(
        self, headers: Mapping[str, str], body: Mapping[str, Any]
    ) -> CallIdentity | None:
        """Return who made a model request, from lower-case headers and the parsed body, or None."""
        ...

    def wire(self, settings: Mapping[str, Any], commands: Mapping[str, str]) -> dict[str, Any]:
        """Return *settings* with our hooks. Raise ValueError where they cannot be added."""
        ...

    def unwire(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return *settings* without our hooks."""
        ...

    def settings_folder(self, wish: Wish) -> Path:
        """Return the agent's own folder of a scope."""
        ...

    def edits(self, wish: Wish) -> Iterable[Edit]:
        """Return the edits of all files that a wish may concern, in the order to make them.

        Raise ValueError where the agent cannot be set up as wished.
        """
        ...

    def remarks(self, wish: Wish) -> Iterable[str]:
        """Return what the user must know, or do, once all of it is written."""
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
        # Shared by several.
        if not info.name.startswith("_")
    )
    return {module.SLUG: cast("Agent", module) for module in modules}


def agent(name: str) -> Agent | None:
    """Return the agent with this slug or alias."""
    for each in agents().values():
        if name == each.SLUG or name in each.ALIASES:
            return each
    return None


@cache
def telemetry() -> Mapping[str, tuple[str, Telemetry]]:
    """Return slug and telemetry, by service, of each agent whose module has a TELEMETRY."""
    known = {slug: getattr(module, "TELEMETRY", None) for slug, module in agents().items()}
    return {each.service: (slug, each) for slug, each in known.items() if each is not None}


def identify_call(headers: Mapping[str, str], body: Mapping[str, Any]) -> CallIdentity | None:
    """Return who made a model request: the first agent that recognises its own."""
    for each in agents().values():
        identity = each.identify_call(headers, body)
        if identity is not None:
            return identity
    return None

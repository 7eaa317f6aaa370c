"""What can be wrong with a set-up: one rule per known trap, found by looking into the packages.

General rules stand in the modules here, those about one agent in that agent's `checks` module. A
rule is a function that gets what was read and yields findings; its docstring says, in its first
line, what is wrong, and then why that matters. Rules change nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from inspect import cleandoc
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, cast

from tracebridge.agents import Agent, agents
from tracebridge.config_files import ConfigFile, Place
from tracebridge.edits import KeyPath
from tracebridge.model import GatewayCall
from tracebridge.routing import InstalledHook, Routing, RoutingModule, SetUp, Source
from tracebridge.settings import Settings
from tracebridge.store import FILE, Store, StoreError

# How long another program may take to say its version, or git to list its files.
PATIENCE_S = 20.0
DAY_NS = 24 * 3600 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Change:
    """Let *value* stand at *keys* of a file, or nothing where it is None."""

    file: ConfigFile
    keys: KeyPath
    value: Any


@dataclass(frozen=True, slots=True)
class Fix:
    """What `--fix` does. One that is not *safe* is made only if its rule is named."""

    changes: tuple[Change, ...] = ()
    run: Callable[[], object] | None = None
    safe: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, where, and what mends it."""

    # Holds no secret.
    problem: str
    at: tuple[Source | Path | str, ...] = ()
    # What to do, in words, and as a command where one does it.
    remedy: str
    command: str | None = None
    fix: Fix | None = None
    # Worth knowing, but nothing is lost by it.
    note: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything that is not an agent's: our settings, the store, the project."""

    place: Place
    settings: Settings
    now_ns: int
    # Why our settings or our store cannot be used.
    settings_problem: str | None = None
    store_problem: str | None = None
    store: Store | None = None
    # Of agents that were set up from here, whether their tool calls shall run no hooks.
    light: Mapping[str, bool] = field(default_factory=dict)
    # What other programs printed, so that each is started once.
    printed: dict[tuple[str, ...], str | None] = field(default_factory=dict)
    recent: list[GatewayCall] = field(default_factory=list)

    def run(self, *command: str, cwd: Path | None = None) -> str | None:
        """Return what a program prints, None if it does not run or fails."""
        if command not in self.printed:
            self.printed[command] = self._run(command, cwd)
        return self.printed[command]

    def _run(self, command: Sequence[str], cwd: Path | None) -> str | None:
        try:
            done = subprocess.run(
                command,
                cwd=cwd,
                env=dict(self.place.env),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PATIENCE_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.decode("utf-8", "replace")


@dataclass(frozen=True)
class AgentLook:
    """One agent's set-up, as it was read."""

    agent: Agent
    module: RoutingModule
    setup: SetUp
    machine: Machine
    # The user named it, so what is not there at all is worth a word, too.
    asked: bool = False

    @property
    def place(self) -> Place:
        return self.setup.place

    @property
    def slug(self) -> str:
        return self.agent.SLUG

    @cached_property
    def routing(self) -> Routing:
        return self.module.routing(self.setup)

    @cached_property
    def hooks(self) -> Sequence[InstalledHook]:
        return self.module.hooks(self.setup)

    @property
    def calls(self) -> list[GatewayCall]:
        """Return the agent's gateway calls of the last day."""
        return [
            call
            for call in self.machine.recent
            if call.identity is not None and call.identity.agent == self.slug
        ]


AgentRule: TypeAlias = Callable[[AgentLook], Iterable[Finding]]
MachineRule: TypeAlias = Callable[[Machine], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A trap that is known. Its *id* is a contract: people look it up and scripts rely on it."""

    id: str
    # Which joint of a turn's way it breaks: see `verify`.
    joint: str
    summary: str
    reason: str
    of_agent: AgentRule | None = None
    of_machine: MachineRule | None = None


def rule(name: str, joint: str) -> Callable[[AgentRule], Rule]:
    """Make a rule of a function that looks at one agent."""

    def made(look: AgentRule) -> Rule:
        return Rule(name, joint, *_told(look), of_agent=look)

    return made


def machine_rule(name: str, joint: str) -> Callable[[MachineRule], Rule]:
    """Make a rule of a function that looks at what is not an agent's."""

    def made(look: MachineRule) -> Rule:
        return Rule(name, joint, *_told(look), of_machine=look)

    return made


def _told(look: Callable[..., object]) -> tuple[str, str]:
    summary, _, reason = cleandoc(look.__doc__ or "").partition("\n")
    return summary, " ".join(reason.split())


@cache
def rules() -> Mapping[str, tuple[Rule, str | None]]:
    """Return every rule by id, with the slug of the agent that it is about, None: any."""
    found: dict[str, tuple[Rule, str | None]] = {}
    for module, slug in _modules():
        for each in vars(module).values():
            if isinstance(each, Rule):
                found[each.id] = (each, slug)
    return dict(sorted(found.items()))


def _modules() -> Iterator[tuple[ModuleType, str | None]]:
    for info in pkgutil.iter_modules(__path__):
        if not info.name.startswith("_"):
            yield importlib.import_module(f"{__name__}.{info.name}"), None
    for slug, agent in agents().items():
        package = cast("ModuleType", agent).__name__
        yield importlib.import_module(f"{package}.checks"), slug


def open_store(settings: Settings) -> tuple[Store | None, str | None]:
    """Return the store, or why it cannot be used; (None, None) where there is none yet."""
    if not (settings.home / FILE).exists():
        return None, None
    try:
        return Store(settings.home), None
    except StoreError as error:
        return None, str(error)

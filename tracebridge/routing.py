"""Where an agent's model requests go, with which key and model, and which file or variable says so.

Each agent's package has a module `routing`, which reads the agent's files and makes these records
of what it read. It is loaded by name, by those who want to know: gateway and watcher do not.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import ModuleType
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from tracebridge.agents import Agent
from tracebridge.config_files import ConfigFile, Place
from tracebridge.edits import KeyPath


@dataclass(frozen=True, slots=True)
class Source:
    """Where something is said: in a file, at a key; or in a variable."""

    file: ConfigFile | None = None
    keys: KeyPath = ()
    variable: str | None = None

    @property
    def line(self) -> int | None:
        return self.file.line_of(self.keys) if self.file is not None else None

    def shown(self, place: Place) -> str:
        if self.file is None:
            return f"${self.variable}" if self.variable else "default"
        line = f":{self.line}" if self.line else ""
        keys = ".".join(map(str, self.keys))
        return f"{place.shown(self.file.path)}{line} {keys}".strip()

    def as_json(self) -> dict[str, Any]:
        if self.file is None:
            return {"variable": self.variable} if self.variable else {"default": True}
        return {
            "file": str(self.file.path),
            "line": self.line,
            "key": ".".join(map(str, self.keys)),
        }


@dataclass(frozen=True, slots=True)
class Said:
    value: str = field(repr=False)
    source: Source


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said about one thing, the one that wins first."""

    name: str
    said: tuple[Said, ...] = ()
    secret: bool = False

    @property
    def won(self) -> Said | None:
        return self.said[0] if self.said else None

    @property
    def value(self) -> str:
        return self.said[0].value if self.said else ""

    @property
    def overruled(self) -> tuple[Said, ...]:
        """Return what loses and says something else."""
        return tuple(said for said in self.said[1:] if said.value != self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Where an agent's requests go, as it stands."""

    # The family of our gateway's routes: anthropic, openai, gemini or vertex.
    family: str
    base_url: Answer
    # Where they go if nobody says anything.
    default_url: str
    model: Answer
    keys: tuple[Answer, ...] = ()
    headers: tuple[Answer, ...] = ()
    timeout_ms: Answer = Answer("timeout")
    # Where the gateway lists its models, "" if that is not known.
    models_url: str = ""

    @property
    def url(self) -> str:
        return self.base_url.value or self.default_url

    @property
    def is_custom(self) -> bool:
        return bool(self.base_url.value)

    @property
    def key(self) -> Answer | None:
        """Return the key that is sent: the first that is there."""
        return next((key for key in self.keys if key.value), None)


@dataclass(frozen=True, slots=True)
class InstalledHook:
    """One hook of ours in an agent's settings."""

    file: ConfigFile
    keys: KeyPath
    event: str
    # Interpreter, options, script, slug and home.
    words: tuple[str, ...]
    entry: Mapping[str, Any]

    @property
    def source(self) -> Source:
        return Source(self.file, self.keys)

    @property
    def script(self) -> str:
        return next((word for word in self.words[1:] if not word.startswith("-")), "")


@dataclass(frozen=True, slots=True)
class SetUp:
    """What an agent reads before it starts: its files, the weakest first."""

    place: Place
    files: Mapping[str, ConfigFile]

    @property
    def env(self) -> Mapping[str, str]:
        return self.place.env


@dataclass(frozen=True, slots=True)
class Reference:
    """A value that stands in another variable, so that no key is written anywhere."""

    variable: str


@dataclass(frozen=True, slots=True)
class ByHand:
    """What routes one agent from a shell: variables, and words behind the program's name."""

    env: Mapping[str, str | Reference]
    arguments: tuple[str, ...] = ()


class RoutingModule(Protocol):
    """What we expect of an agent's `routing` module."""

    # What to say so that the turn shows what can be linked.
    PROMPT: str

    def read_setup(self, place: Place) -> SetUp:
        """Read the agent's files. Never raises."""
        ...

    def routing(self, setup: SetUp) -> Routing:
        """Return where its requests go. Pure, like all that follow."""
        ...

    def hooks(self, setup: SetUp) -> Sequence[InstalledHook]:
        """Return the hooks of ours that are installed."""
        ...

    def expected_events(self) -> tuple[str, ...]:
        """Return the events that have a hook of ours where everything is installed."""
        ...

    def one_turn(self, options: Sequence[str]) -> list[str]:
        """Return the words behind the program that make it do one turn with PROMPT, and end."""
        ...

    def by_hand(self, routes: Mapping[str, str], key_variable: str | None) -> ByHand:
        """Return what sends its requests to base URLs, given by family, with nothing edited."""
        ...


def routing_module(agent: Agent) -> RoutingModule:
    package = cast("ModuleType", agent).__name__
    return cast("RoutingModule", importlib.import_module(f"{package}.routing"))


def answer(name: str, *said: Said | None, secret: bool = False) -> Answer:
    return Answer(name, tuple(each for each in said if each is not None), secret)


def in_env(env: Mapping[str, str], name: str) -> Said | None:
    return Said(env[name], Source(variable=name)) if name in env else None


def in_file(file: ConfigFile | None, *keys: str) -> Said | None:
    """Return what a file says at *keys*; numbers and truth values count as their text."""
    value = file.at(*keys) if file is not None else None
    if file is None or value is None or isinstance(value, Mapping | list):
        return None
    return Said(value if isinstance(value, str) else str(value), Source(file, keys))


def strongest_first(files: Sequence[ConfigFile | None], *keys: str) -> tuple[Said, ...]:
    """Return what files say at *keys*; *files* come the weakest first."""
    said = (in_file(file, *keys) for file in reversed(files))
    return tuple(each for each in said if each is not None)


def mask(secret: str) -> str:
    """Return what may be shown of a key: enough to tell two kinds apart, too little to use it."""
    return f"{secret[:3]}… ({len(secret)} characters)" if len(secret) >= 12 else "…"


def is_loopback(url: str) -> bool:
    """Say whether a URL leads to this machine and nowhere else."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""The sinks: one module each, found by looking into this package.

What flows in: encoded spans from the outbox. What flows out: a receipt for each of them. Nothing
is sent anywhere until the user names a sink, in TRACEBRIDGE_SINKS or by the standard
OTEL_EXPORTER_OTLP_ENDPOINT. Modules never import each other; what several share stands in modules
whose names start with an underscore, which are no sinks.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, cast
from urllib.parse import urlsplit

from tracebridge.encode import Resource

# What may stand behind a sink, as in otlp_http#metadata.
CONTENT_LEVELS = ("metadata", "redacted", "full")
# Why a sink refuses what its own disk has spoilt.
DAMAGED = "the stored span is damaged and cannot be read"


class SinkSettingsError(ValueError):
    """A setting of a sink that cannot be used; the message names it and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxSpan:
    """One finished span on its way out; *data* is an encoded OTLP Span."""

    span_id: str
    trace_id: str
    resource: Resource
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of the spans given to a sink; those it does not name are to be sent again."""

    acknowledged: tuple[str, ...] = ()
    # Why, by span id. Sending these again would be in vain.
    refused: Mapping[str, str] = field(default_factory=dict)
    # What stopped us, with the remedy. Without one, what is left may be sent again at once.
    error: str | None = None
    # How long the backend wants to be left alone.
    retry_after_s: float | None = None


class Sink(Protocol):
    """What we expect of a sink.

    It takes spans in the order in which they finished and says what became of each. It never
    raises for what the world does to it: a backend that is down, slow or wrong is an error in
    the receipt. It may be given the same spans again, with the same bytes.
    """

    def send(self, spans: Sequence[OutboxSpan]) -> Receipt:
        """Hand *spans* over and return once it is known what became of them."""
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadySink:
    """A sink whose settings are in order, and how to open it."""

    # Stable from run to run: the outbox keeps what was acknowledged under it.
    name: str
    # Where the spans go, for people to read; holds no secret.
    target: str
    open: Callable[[], Sink] = field(repr=False)
    # How much of what was said it may have; "" means as much as the store keeps.
    content: str = ""


class SinkModule(Protocol):
    """What we expect of a sink's module."""

    def prepare(self, name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
        """Read the settings, touching nothing. Raise SinkSettingsError where they do not fit.

        *argument* is what stands after the colon in TRACEBRIDGE_SINKS, or "".
        """
        ...


def kinds() -> list[str]:
    """Return the names that may stand in TRACEBRIDGE_SINKS."""
    return [info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")]


def prepare(kind: str, env: Mapping[str, str], *, name: str = "", argument: str = "") -> ReadySink:
    """Return the sink of this *kind*, ready to be opened."""
    if kind not in kinds():
        raise SinkSettingsError(
            f"TRACEBRIDGE_SINKS: there is no sink {kind!r}; choose from {', '.join(kinds())}"
        )
    module = cast("SinkModule", importlib.import_module(f"{__name__}.{kind}"))
    return module.prepare(name or kind, argument, env)


def configured_sinks(env: Mapping[str, str]) -> list[ReadySink]:
    """Return the sinks that the environment asks for, none if it asks for none."""
    return [_prepared(entry, env) for entry in _entries(env)]


def lasting_sinks(env: Mapping[str, str]) -> tuple[list[ReadySink], list[str]]:
    """Return the sinks that the environment asks for, and what is wrong with some.

    One whose settings cannot be used takes nothing for now: what is told waits for it.
    """
    sinks, problems = [], []
    for entry in _entries(env):
        try:
            sinks.append(_prepared(entry, env))
        except SinkSettingsError as error:
            problems.append(str(error))
            kind, name, _, content = _parts(entry)
            if kind in kinds():
                waits = partial(_Unusable, str(error))
                sinks.append(ReadySink(name=name, target="", open=waits, content=content))
    return sinks, problems


class _Unusable:
    def __init__(self, problem: str) -> None:
        self._problem = problem

    def send(self, spans: Sequence[OutboxSpan]) -> Receipt:
        del spans  # They wait.
        return Receipt(error=self._problem, retry_after_s=60.0)

    def close(self) -> None:
        """Nothing is open."""


def _entries(env: Mapping[str, str]) -> list[str]:
    entries = [entry.strip() for entry in env.get("TRACEBRIDGE_SINKS", "").split(",")]
    entries = list(dict.fromkeys(entry for entry in entries if entry))
    if not entries and (
        env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    ):
        entries = ["otlp"]
    # A backend that is named twice is one backend: it gets the less.
    least: dict[str, str] = {}
    for entry in sorted(entries, key=_level):
        least.setdefault(_parts(entry)[1], entry)
    return [entry for entry in entries if entry in least.values()]


def _level(entry: str) -> int:
    content = _parts(entry)[3]
    return CONTENT_LEVELS.index(content) if content else len(CONTENT_LEVELS)


def _parts(entry: str) -> tuple[str, str, str, str]:
    """Return kind, name, argument and content level of one entry of the setting."""
    place, hash_sign, content = entry.rpartition("#")
    if not hash_sign or content not in CONTENT_LEVELS:
        place, content = entry, ""
    kind, _, argument = place.partition(":")
    name = f"{kind}:{without_secrets(argument)}" if argument else kind
    return kind, name, argument, content


def _prepared(entry: str, env: Mapping[str, str]) -> ReadySink:
    kind, name, argument, content = _parts(entry)
    return replace(prepare(kind, env, name=name, argument=argument), content=content)


def by_resource(spans: Sequence[OutboxSpan]) -> dict[Resource, list[bytes]]:
    """Return the encoded spans by resource, in their order."""
    groups: dict[Resource, list[bytes]] = {}
    for span in spans:
        groups.setdefault(span.resource, []).append(span.data)
    return groups


def without_secrets(address: str) -> str:
    """Return a URL without user, password, query and fragment, where keys like to hide."""
    if "://" not in address:
        return address
    try:
        parts = urlsplit(address)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        return "(not a URL)"

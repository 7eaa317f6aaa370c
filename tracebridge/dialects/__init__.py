"""The model APIs: one module each, found by looking into this package.

Bytes of a request and of its response flow in, facts flow out. Everything specific to one API
stands in its module and nowhere else; modules never import each other.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, cast

import msgspec

from tracebridge.model import Usage

# A line of a stream longer than this is passed over; nothing we look for is in it.
EVENT_LIMIT = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """What a request's body says."""

    requested_model: str | None = None
    streaming: bool = False
    tool_result_ids: tuple[str, ...] = ()
    # Equal for two attempts at the same request.
    digest: bytes | None = None
    # The body without its bulk, for the agent's module to find out who is calling.
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFacts:
    """What a response's body says, as far as it came."""

    response_id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    usage: Usage | None = None
    tool_call_ids: tuple[str, ...] = ()
    # How many content blocks it had, where the API counts them.
    blocks: int | None = None
    first_token_ns: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    # Whether the API's own end was seen.
    ended: bool = False
    # Whether all of it was understood.
    understood: bool = True


class ResponseParser(Protocol):
    """What we expect of a parser of one response."""

    def feed(self, data: bytes, time_ns: int) -> None:
        """Take the next bytes, whatever they are, and when they came. Never raises."""
        ...

    def facts(self) -> ResponseFacts:
        """Return what was said, once all bytes are in. Never raises."""
        ...


class Dialect(Protocol):
    """What we expect of a model API's module."""

    # As `gen_ai.provider.name` has it.
    PROVIDER: str

    def name_call(self, method: str, path: str) -> str | None:
        """Return the name of this kind of call ("anthropic.messages"), None if it is not ours."""
        ...

    def parse_request(self, name: str, body: bytes) -> RequestFacts:
        """Return what *body* says, or raise ValueError if it cannot be understood."""
        ...

    def response_parser(self, name: str, content_type: str) -> ResponseParser: ...


@cache
def dialects() -> tuple[Dialect, ...]:
    """Return every dialect."""
    return tuple(
        cast("Dialect", importlib.import_module(f"{__name__}.{info.name}"))
        for info in pkgutil.iter_modules(__path__)
    )


def find_dialect(method: str, path: str) -> tuple[Dialect, str] | None:
    """Return the dialect that a request speaks and the name of the call, or None."""
    for each in dialects():
        name = each.name_call(method, path)
        if name is not None:
            return each, name
    return None


def model_in_path(dialect: Dialect, path: str) -> str | None:
    """Return the model that a request asks for where its API names it in the path."""
    named = getattr(dialect, "model_in_path", None)
    model: str | None = named(path) if named is not None else None
    return model


def parse_error_message(body: bytes) -> str | None:
    """Return what an error response says to people, in whichever shape a vendor puts it."""
    try:
        document = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        # A proxy's HTML page is still better than nothing.
        return body[:2000].decode("utf-8", "replace").strip() or None
    if isinstance(document, list) and document:
        document = document[0]
    for _ in range(3):
        if not isinstance(document, dict):
            break
        document = next(
            (document[key] for key in ("error", "message", "detail") if document.get(key)), None
        )
    return document if isinstance(document, str) else None


class EventStream:
    """Cut server-sent events out of bytes that come in pieces, in time linear in their number."""

    def __init__(self) -> None:
        # A line not yet whole.
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._event = b""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._at_start = True
        # Something was longer than EVENT_LIMIT and is missing.
        self.overflowed = False

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Return name and data of each event that *data* completes."""
        first, *others = data.split(b"\n")
        self._keep(first)
        for rest in others:
            line = b"".join(self._pieces)
            self._pieces.clear()
            self._pieces_bytes = 0
            self._keep(rest)
            yield from self._take_line(line.removesuffix(b"\r"))

    def _keep(self, piece: bytes) -> None:
        if self._pieces_bytes + len(piece) > EVENT_LIMIT:
            self.overflowed = True
            self._pieces.clear()
            self._pieces_bytes = EVENT_LIMIT
        elif piece:
            self._pieces.append(piece)
            self._pieces_bytes += len(piece)

    def _take_line(self, line: bytes) -> Iterator[tuple[bytes, bytes]]:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            if self._data:
                yield self._event, b"\n".join(self._data)
            self._event, self._data, self._data_bytes = b"", [], 0
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data_bytes += len(value)
            if self._data_bytes > EVENT_LIMIT:
                self.overflowed = True
            else:
                self._data.append(value)
        elif name == b"event":
            self._event = value

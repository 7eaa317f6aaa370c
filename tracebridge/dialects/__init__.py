"""The model APIs: one module each, found by looking into this package.

Bytes of a request and of its response flow in, facts flow out. Everything specific to one API
stands in its module and nowhere else; modules never import each other.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, TypeAlias, cast

import msgspec

from tracebridge.model import Usage

# A line of a stream longer than this is passed over; nothing we look for is in it.
EVENT_LIMIT = 8 * 1024 * 1024
# Who is calling does not stand in anything as large as the conversation or the tools.
_SMALL = 64 * 1024
# So many items at its end, and how long the whole is, tell one state of a conversation from another.
_DIGESTED = 8
# Of lists and objects it is only found out where what is in them begins and ends.
_Value: TypeAlias = list[msgspec.Raw] | dict[str, msgspec.Raw] | str | int | float | bool | None
_FIELDS = msgspec.json.Decoder(dict[str, _Value])


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's body says."""

    requested_model: str | None = None
    streaming: bool = False
    tool_result_ids: tuple[str, ...] = ()
    # Equal for two attempts at the same request, as this process sees them.
    digest: int | None = None
    # The body without its bulk, for the agent's module to find out who is calling.
    body: Mapping[str, Any] = {}


class ResponseFacts(msgspec.Struct, frozen=True, kw_only=True):
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


class RequestBody(msgspec.Struct, frozen=True):
    """A request's JSON object, looked at in one pass: most of it is a history that was told."""

    # All but the conversation and what is as large.
    small: dict[str, Any]
    # What the conversation consists of; empty where it is no list.
    items: Sequence[msgspec.Raw]
    # Of the conversation, None where there is none.
    digest: int | None


def parse_body(body: bytes, conversation: str) -> RequestBody:
    """Return what *body* holds. Raise ValueError, or RecursionError, if it is no JSON object."""
    fields = _FIELDS.decode(body)
    items: Sequence[msgspec.Raw] = ()
    digest = None
    if conversation in fields:
        value = fields.pop(conversation)
        items = value if isinstance(value, list) else ()
        end = b",".join(items[-_DIGESTED:]) if items else msgspec.json.encode(value)
        digest = hash((len(items), sum(map(len, items)), end))
    small = {key: _decoded(value) for key, value in fields.items() if _size(value) <= _SMALL}
    return RequestBody(small, items, digest)


def _size(value: _Value) -> int:
    if isinstance(value, dict):
        return sum(map(len, value.values()))
    if isinstance(value, list):
        return sum(map(len, value))
    return len(value) if isinstance(value, str) else 0


def _decoded(value: _Value) -> Any:
    if isinstance(value, dict):
        return {key: msgspec.json.decode(each) for key, each in value.items()}
    if isinstance(value, list):
        return [msgspec.json.decode(each) for each in value]
    return value


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
        first, *lines = data.split(b"\n")
        self._keep(first)
        if not lines:
            return
        lines.insert(0, b"".join(self._pieces))
        self._pieces.clear()
        self._pieces_bytes = 0
        self._keep(lines.pop())
        if self._at_start:
            self._at_start = False
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        for line in lines:
            name, colon, value = line.removesuffix(b"\r").partition(b":")
            if name == b"data":
                self._take_data(value.removeprefix(b" "))
            elif name == b"event":
                self._event = value.removeprefix(b" ")
            elif not name and not colon:
                if self._data:
                    yield self._event, b"\n".join(self._data)
                self._event, self._data, self._data_bytes = b"", [], 0

    def _keep(self, piece: bytes) -> None:
        if self._pieces_bytes + len(piece) > EVENT_LIMIT:
            self.overflowed = True
            self._pieces.clear()
            self._pieces_bytes = EVENT_LIMIT
        elif piece:
            self._pieces.append(piece)
            self._pieces_bytes += len(piece)

    def _take_data(self, value: bytes) -> None:
        self._data_bytes += len(value)
        if self._data_bytes > EVENT_LIMIT:
            self.overflowed = True
        else:
            self._data.append(value)

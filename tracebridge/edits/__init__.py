"""Edits of other people's settings files: small changes to a text of which all else stays. Pure.

An agent says in changes what shall stand in a file; a format knows how to write it there without
touching another byte of the file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

# Names of tables and places in lists, from the outermost on.
KeyPath: TypeAlias = tuple[str | int, ...]

BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class Put:
    """Let *value* stand at *path*, whatever stood there."""

    path: KeyPath
    value: Any


@dataclass(frozen=True, slots=True)
class Append:
    """Let *item* be the last one of the list at *path*."""

    path: KeyPath
    item: Any


@dataclass(frozen=True, slots=True)
class Include:
    """Let *piece* be one of the pieces of the text at *path*, the last one if it is new."""

    path: KeyPath
    piece: str
    separator: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Let nothing stand at *path*."""

    path: KeyPath


Change: TypeAlias = Put | Append | Include | Delete


class Format(Protocol):
    """What we expect of a file format. All raise ValueError for a text that is not of the format."""

    def parse(self, text: str) -> dict[str, Any]:
        """Return what *text* says."""
        ...

    def put(self, text: str, path: KeyPath, value: Any) -> str:
        """Return *text* with *value* at *path*."""
        ...

    def append(self, text: str, path: KeyPath, item: Any) -> str:
        """Return *text* with one more item in the list at *path*."""
        ...

    def delete(self, text: str, path: KeyPath) -> str:
        """Return *text* without what stands at *path*, which is there."""
        ...


def value_at(settings: Any, path: KeyPath) -> Any:
    """Return what stands at *path*, None if nothing does."""
    for key in path:
        if isinstance(key, int):
            if not isinstance(settings, list) or not 0 <= key < len(settings):
                return None
            settings = settings[key]
        elif isinstance(settings, Mapping):
            settings = settings.get(key)
        else:
            return None
    return settings


def changed(settings: Mapping[str, Any], changes: Iterable[Change]) -> dict[str, Any]:
    """Return *settings* as they are after *changes*. Raise ValueError where one is impossible."""
    result = copy.deepcopy(dict(settings))
    for change in changes:
        step = _step(result, change)
        if isinstance(step, Put):
            _put(result, step)
        elif isinstance(step, Append):
            _holder(result, (*step.path, 0)).append(copy.deepcopy(step.item))
        elif isinstance(step, Delete):
            del _holder(result, step.path)[step.path[-1]]
    return result


def edited(text: str, form: Format, changes: Sequence[Change]) -> str:
    """Return *text* after *changes*, everything else as it was, byte for byte.

    Raise ValueError where one is impossible, and where the text cannot be edited so that it says
    what it should.
    """
    body = text.removeprefix(BOM)
    wanted = form.parse(body)
    for change in changes:
        step = _step(wanted, change)
        wanted = changed(wanted, [change])
        if isinstance(step, Put):
            body = form.put(body, step.path, step.value)
        elif isinstance(step, Append):
            body = form.append(body, step.path, step.item)
        elif isinstance(step, Delete):
            body = form.delete(body, step.path)
    if _solid(form.parse(body)) != _solid(wanted):
        raise ValueError("its way of writing is not understood")
    return text[: len(text) - len(text.removeprefix(BOM))] + body


def _solid(value: Any) -> Any:
    """Return *value* without empty tables: in TOML a table may be there by what is in it alone."""
    if not isinstance(value, dict):
        return value
    inner = {name: _solid(each) for name, each in value.items()}
    return {name: each for name, each in inner.items() if each != {}}


def pieces(text: str, separator: str) -> list[str]:
    """Return the pieces of a text that holds several."""
    return [piece.strip() for piece in text.split(separator) if piece.strip()]


def _step(settings: Mapping[str, Any], change: Change) -> Put | Append | Delete | None:
    """Return what is to be done for *change*, None where it is done."""
    now = value_at(settings, change.path)
    match change:
        case Put():
            # True is 1 to Python, and to nobody else.
            same = now == change.value and type(now) is type(change.value)
            return None if same else change
        case Include():
            if now is not None and not isinstance(now, str):
                raise ValueError(f"{named(change.path)} is not a text")
            if change.piece in pieces(now or "", change.separator):
                return None
            kept = [now] if now and now.strip() else []
            return Put(change.path, change.separator.join([*kept, change.piece]))
        case Append():
            if now is not None and not isinstance(now, list):
                raise ValueError(f"{named(change.path)} is not a list")
            return change if now is not None else Put(change.path, [change.item])
        case Delete():
            return change if now is not None else None


def named(path: KeyPath) -> str:
    """Return *path* as a user would write it."""
    return '"' + ".".join(map(str, path)) + '"'


def _put(result: dict[str, Any], step: Put) -> None:
    holder = _holder(result, step.path)
    holder[step.path[-1]] = copy.deepcopy(step.value)


def _holder(result: dict[str, Any], path: KeyPath) -> Any:
    """Return the table or list that *path* leads into, made where there is none."""
    holder: Any = result
    for place, (key, following) in enumerate(pairwise(path)):
        if isinstance(holder, dict) and key not in holder:
            holder[key] = [] if isinstance(following, int) else {}
        holder = holder[key]
        if not isinstance(holder, list if isinstance(following, int) else dict):
            kind = "a list" if isinstance(following, int) else "an object"
            raise ValueError(f"{named(path[: place + 1])} is not {kind}")
    return holder

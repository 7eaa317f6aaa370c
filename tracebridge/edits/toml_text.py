"""TOML, edited in place, comments and order kept."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from tracebridge.edits import KeyPath


class TomlText:
    """A format of `edits.Format`."""

    def parse(self, text: str) -> dict[str, Any]:
        try:
            return tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ValueError(f"not TOML: {error}") from error

    def put(self, text: str, path: KeyPath, value: Any) -> str:
        def change(document: Any) -> None:
            holder = document
            for key in path[:-1]:
                if key not in holder:
                    # A table that only leads to another one needs no line of its own.
                    holder[key] = tomlkit.table(is_super_table=True)
                holder = holder[key]
            holder[path[-1]] = _table(value) if isinstance(value, dict) else value

        return _edited(text, change)

    def append(self, text: str, path: KeyPath, item: Any) -> str:
        return _edited(text, lambda document: _at(document, path).append(item))

    def delete(self, text: str, path: KeyPath) -> str:
        # A table that only led to what went before went with it.
        return _edited(text, lambda document: _at(document, path[:-1]).pop(path[-1], None))


def _at(document: Any, path: KeyPath) -> Any:
    for key in path:
        document = document.get(key, {}) if isinstance(key, str) else document[key]
    return document


def _table(values: dict[str, Any]) -> tomlkit.items.Table:
    table = tomlkit.table()
    for name, value in values.items():
        if isinstance(value, dict):
            inline = tomlkit.inline_table()
            inline.update(value)
            table[name] = inline
        else:
            table[name] = value
    # So that the header of what follows does not stick to it.
    table.add(tomlkit.nl())
    return table


def _edited(text: str, change: Callable[[Any], object]) -> str:
    windows = "\r\n" in text and "\n" not in text.replace("\r\n", "")
    plain = text.replace("\r\n", "\n") if windows else text
    try:
        document = tomlkit.parse(plain)
        if tomlkit.dumps(document) != plain:
            raise ValueError("its way of writing is not understood")
        change(document)
        fresh = tomlkit.dumps(document)
        if fresh.endswith("\n\n") and not plain.endswith("\n\n"):
            fresh = fresh.rstrip("\n") + "\n"
    except (TOMLKitError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"cannot be edited: {error}") from error
    return fresh.replace("\n", "\r\n") if windows else fresh

"""Files of NAME=value lines, edited in place. Of a name that stands twice the last one counts."""

from __future__ import annotations

import re
from typing import Any

from tracebridge.edits import KeyPath, named

# As dotenv reads them: quotes of three kinds, which may go over lines, or the rest of the line.
_LINE = re.compile(
    r"""^[ \t]*(?:export[ \t]+)?(?P<name>[\w.-]+)[ \t]*=[ \t]*"""
    r"""(?P<value>'(?:\\'|[^'])*'|"(?:\\"|[^"])*"|`(?:\\`|[^`])*`|(?:[^#\s](?:[^#\r\n]*[^#\s])?)?)"""
    r"""(?P<rest>[ \t]*(?:\#[^\r\n]*)?)(?P<end>\r?\n|\Z)""",
    re.MULTILINE,
)
_PLAIN = re.compile(r"[\w./:,@%+=?&~\-][\w./:,@%+=?&~\- ]*")


class EnvLines:
    """A format of `edits.Format`."""

    def parse(self, text: str) -> dict[str, Any]:
        if "\0" in text:
            raise ValueError("not a file of NAME=value lines")
        return {line["name"]: _unquoted(line["value"].strip()) for line in _LINE.finditer(text)}

    def put(self, text: str, path: KeyPath, value: Any) -> str:
        (name,) = path
        newline = "\r\n" if "\r\n" in text else "\n"
        line = _found(text, str(name))
        if line is not None:
            return text[: line.start("value")] + _quoted(str(value)) + text[line.end("value") :]
        joint = newline if text and not text.endswith("\n") else ""
        return f"{text}{joint}{name}={_quoted(str(value))}{newline}"

    def append(self, text: str, path: KeyPath, item: Any) -> str:
        raise ValueError(f"{named(path)} cannot be a list ({item!r}) here: {len(text)} characters")

    def delete(self, text: str, path: KeyPath) -> str:
        line = _found(text, str(path[0]))
        while line is not None:
            text = text[: line.start()] + text[line.end() :]
            line = _found(text, str(path[0]))
        return text


def _found(text: str, name: str) -> re.Match[str] | None:
    found = [line for line in _LINE.finditer(text) if line["name"] == name]
    return found[-1] if found else None


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] not in "'\"`" or value[-1] != value[0]:
        return value
    inside = value[1:-1]
    return inside.replace("\\n", "\n").replace("\\r", "\r") if value[0] == '"' else inside


def _quoted(value: str) -> str:
    """Return *value* so that it is read as it is. Raise ValueError where that is impossible."""
    if _PLAIN.fullmatch(value) and value == value.strip():
        return value
    quote = next((q for q in "'\"`" if q not in value and (q != '"' or "\\" not in value)), None)
    if quote is None:
        raise ValueError("a value holds every kind of quotation marks")
    return f"{quote}{value}{quote}"

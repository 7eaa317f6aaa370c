"""JSON, with comments or without, edited in place.

Comments and commas that strict JSON does not know are blanked out, character by character, so that
what is left can be read strictly and every place is still where it was.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from tracebridge.edits import KeyPath, named

_STRING = r'"(?:[^"\\]|\\.)*"'
_COMMENT = re.compile(rf"{_STRING}|//[^\r\n]*|/\*.*?\*/", re.DOTALL)
_LAST_COMMA = re.compile(rf"{_STRING}|,(?=\s*[}}\]])", re.DOTALL)
_TOKEN = re.compile(rf"[ \t\r\n]*({_STRING}|[{{}}\[\]:,]|[^\s{{}}\[\]:,\"]+)", re.DOTALL)
_SPACE = " \t"


@dataclass(slots=True)
class _Node:
    """Where a value stands, and those in it: with the place of their name, if they have one."""

    start: int
    end: int = 0
    named: dict[str, tuple[int, _Node]] = field(default_factory=dict)
    items: list[tuple[int, _Node]] = field(default_factory=list)
    is_list: bool = False


@dataclass(frozen=True, slots=True)
class JsonText:
    """A format of `edits.Format`."""

    comments: bool = False
    trailing_commas: bool = False

    def parse(self, text: str) -> dict[str, Any]:
        if not text.strip():
            return {}
        try:
            settings = json.loads(self._strict(text), parse_constant=_refused)
        except json.JSONDecodeError as error:
            about = "" if self.comments else ", which knows no comments either"
            raise ValueError(f"line {error.lineno}: not JSON{about}: {error.msg}") from error
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(settings, dict):
            raise ValueError("not a JSON object")
        return settings

    def put(self, text: str, path: KeyPath, value: Any) -> str:
        text = text if text.strip() else "{}\n"
        node = self._root(text)
        for place, key in enumerate(path):
            found = _entry(node, key)
            if found is None:
                for name in reversed(path[place + 1 :]):
                    value = {name: value}
                return self._insert(text, node, value, str(key))
            node = found[1]
        style = _Style.of(text)
        fresh = style.written(value, _indent_of(text, node.start), wide=_is_wide(text, node, value))
        return text[: node.start] + fresh + text[node.end :]

    def append(self, text: str, path: KeyPath, item: Any) -> str:
        node = self._root(text)
        for key in path:
            found = _entry(node, key)
            if found is None:
                raise ValueError(f"{named(path)} is not there")
            node = found[1]
        return self._insert(text, node, item)

    def delete(self, text: str, path: KeyPath) -> str:
        holder, node = None, self._root(text)
        for key in path:
            found = _entry(node, key)
            if found is None:
                raise ValueError(f"{named(path)} is not there")
            holder, (start, node) = node, found
        if holder is None:
            raise ValueError("the whole file cannot be deleted")
        place = next(p for p, (_, each) in enumerate(holder.items) if each is node)
        plain = self._without_comments(text)
        if len(holder.items) == 1:
            inside = text[holder.start + 1 : holder.end - 1]
            rest = inside[: start - holder.start - 1] + inside[node.end - holder.start - 1 :]
            if not rest.replace(",", "").strip():
                return text[: holder.start + 1] + text[holder.end - 1 :]
        comma = _comma_behind(plain, node.end)
        if comma is not None:
            # With the line, if it has one of its own.
            begin = _begin_of_line(text, start)
            end = comma + 1
            blank = re.compile(r"[ \t]*(?:\r?\n|$)").match(text, end)
            if begin is not None and blank:
                return text[:begin] + text[blank.end() :]
            end += len(text[end:]) - len(text[end:].lstrip(_SPACE))
            return text[:start] + text[node.end : comma] + text[end:]
        begin = start - len(text[:start]) + len(text[:start].rstrip(_SPACE))
        line = _begin_of_line(text, start)
        if line is not None:
            begin = line - 2 if text[:line].endswith("\r\n") else line - 1
        if place == 0:
            return text[:begin] + text[node.end :]
        before = holder.items[place - 1][1].end
        comma = _comma_behind(plain, before)
        if comma is None or comma >= begin:
            return text[:before] + text[node.end :]
        return text[:comma] + text[comma + 1 : begin] + text[node.end :]

    def line_of(self, text: str, path: KeyPath) -> int | None:
        """Return the line of what stands at *path*, or of what is nearest above it."""
        if not text.strip():
            return None
        start, node = None, self._root(text)
        for key in path:
            found = _entry(node, key)
            if found is None:
                break
            start, node = found
        return None if start is None else text.count("\n", 0, start) + 1

    def _insert(self, text: str, holder: _Node, value: Any, name: str | None = None) -> str:
        """Return *text* with one more entry at the end of an object or list."""
        if holder.is_list is not (name is None):
            raise ValueError("an object stands where a list should, or a list where an object")
        style = _Style.of(text)
        label = "" if name is None else _quoted(name) + style.colon
        close = holder.end - 1
        if not holder.items:
            inside = text[holder.start + 1 : close]
            outer = _indent_of(text, holder.start)
            inner = outer + style.unit
            entry = label + style.written(value, inner, wide=True)
            kept = inside.rstrip() if inside.strip() else ""
            fresh = f"{kept}{style.newline}{inner}{entry}{style.newline}{outer}"
            return text[: holder.start + 1] + fresh + text[close:]
        last = holder.items[-1][1]
        if "\n" not in text[holder.start : holder.end]:
            entry = style.comma + label + style.written(value, "", wide=False)
            return text[: last.end] + entry + text[last.end :]
        begin = _begin_of_line(text, holder.items[-1][0])
        if begin is None:
            inner = _indent_of(text, holder.start) + style.unit
        else:
            inner = text[begin : holder.items[-1][0]]
        entry = label + style.written(value, inner, wide=True)
        # A comment behind the last entry is about that one.
        plain = self._without_comments(text)
        comma = _comma_behind(plain, last.end)
        behind = _end_of_remarks(text, plain, last.end if comma is None else comma + 1, close)
        if comma is None:
            return (
                f"{text[: last.end]},{text[last.end : behind]}"
                f"{style.newline}{inner}{entry}{text[behind:]}"
            )
        return f"{text[:behind]}{style.newline}{inner}{entry},{text[behind:]}"

    def _strict(self, text: str) -> str:
        text = self._without_comments(text)
        if self.trailing_commas:
            text = _LAST_COMMA.sub(lambda m: " " if m[0] == "," else m[0], text)
        return text

    def _without_comments(self, text: str) -> str:
        return _COMMENT.sub(_blanked, text) if self.comments else text

    def _root(self, text: str) -> _Node:
        # Only what the strict reader takes is looked into.
        self.parse(text)
        plain = self._strict(text)
        try:
            return _node(plain, _TOKEN.match(plain))[0]
        except RecursionError:
            raise ValueError("nested too deeply to be edited") from None


@dataclass(frozen=True, slots=True)
class _Style:
    """How a file is written."""

    unit: str
    newline: str
    comma: str
    colon: str

    @classmethod
    def of(cls, text: str) -> _Style:
        indent = re.search(r"\n([ \t]+)[^\s/*]", text)
        tight = re.search(r'":\S', text) is not None and re.search(r'":\s', text) is None
        return cls(
            unit=indent[1] if indent else "  ",
            newline="\r\n" if "\r\n" in text else "\n",
            comma="," if tight else ", ",
            colon=":" if tight else ": ",
        )

    def written(self, value: Any, indent: str, *, wide: bool) -> str:
        if not wide:
            return json.dumps(value, ensure_ascii=False, separators=(self.comma, self.colon))
        text = json.dumps(value, ensure_ascii=False, indent=self.unit)
        return text.replace("\n", self.newline + indent)


def _node(text: str, token: re.Match[str] | None) -> tuple[_Node, int]:
    """Return the value that begins with *token*, and where it ends."""
    if token is None:
        raise ValueError("not JSON")
    node = _Node(token.start(1), token.end(1))
    if token[1] not in {"{", "["}:
        return node, node.end
    node.is_list = token[1] == "["
    at = token.end()
    while True:
        token = _next(text, at)
        if token[1] in {"}", "]"}:
            node.end = token.end(1)
            return node, node.end
        if token[1] == ",":
            token = _next(text, token.end())
        start = token.start(1)
        name = None
        if not node.is_list:
            name = json.loads(token[1])
            token = _next(text, _next(text, token.end()).end())
        child, at = _node(text, token)
        node.items.append((start, child))
        if name is not None:
            # Of a name that stands twice the last one counts.
            node.named[name] = (start, child)


def _next(text: str, at: int) -> re.Match[str]:
    token = _TOKEN.match(text, at)
    if token is None:
        raise ValueError("not JSON")
    return token


def _entry(node: _Node, key: str | int) -> tuple[int, _Node] | None:
    if isinstance(key, int):
        return node.items[key] if node.is_list and key < len(node.items) else None
    return node.named.get(key)


def _refused(constant: str) -> float:
    raise ValueError(f"not JSON: {constant}")


def _blanked(match: re.Match[str]) -> str:
    return match[0] if match[0][0] == '"' else re.sub(r"[^\r\n]", " ", match[0])


def _comma_behind(plain: str, at: int) -> int | None:
    """Return where the comma behind an entry stands, if there is one."""
    match = re.compile(r"\s*,").match(plain, at)
    return match.end() - 1 if match else None


def _end_of_remarks(text: str, plain: str, at: int, close: int) -> int:
    """Return where the comments end that begin behind an entry, on its line."""
    end = at
    while end < close and text[end] not in "\r\n" and plain[end].isspace():
        end += 1
    return at + len(text[at:end].rstrip())


def _begin_of_line(text: str, at: int) -> int | None:
    """Return where the line of *at* begins, None if something stands before it."""
    begin = text.rfind("\n", 0, at) + 1
    return begin if begin and not text[begin:at].strip(_SPACE) else None


def _indent_of(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(_SPACE))]


def _is_wide(text: str, node: _Node, value: Any) -> bool:
    """Say whether a value that takes a node's place goes over several lines."""
    return "\n" in text[node.start : node.end] or (
        isinstance(value, dict | list) and bool(value) and "\n" in text.strip()
    )


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)

"""Another model in the place of the one that a request names: that name changes, and nothing else.

An alias stands in the body, as the top-level `model` of a JSON object, or in the path, where Google
has it. A body that may name one is held back until its model is known, in most requests within the
first bytes; what comes behind that is passed on as it arrives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from msgspec.structs import replace

from tracebridge.gateways.framing import RequestHead

# A model that stands further behind is not looked for: so much may lie here for each connection.
HELD_LIMIT = 8 * 1024 * 1024
# Nor behind so many brackets and strings: meanwhile nothing else goes on.
SIGNS_LIMIT = 100_000

_IN_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_IN_OBJECT = re.compile(rb'["{}\[\],:]')
_NESTED = re.compile(rb'["{}\[\]]')
_BLANK = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Renamed:
    alias: str
    # What the upstream is asked for.
    model: str


def rename_in_target(
    target: str, named: str, aliases: Mapping[str, str]
) -> tuple[str, Renamed | None]:
    """Return *target* with the model that it names, percent-encoded as *named*, put in."""
    alias = unquote(named)
    model = aliases.get(alias)
    path, mark, query = target.partition("?")
    before, found, behind = path.rpartition(f"/{named}:")
    if model is None or not found:
        return target, None
    path = f"{before}/{quote(model, safe='')}:{behind}"
    return path + mark + query, Renamed(alias, model)


class HeldRequest:
    """A request of which nothing goes on until it is known which model it names."""

    def __init__(
        self, head: RequestHead, aliases: Mapping[str, str], encode: Callable[[RequestHead], bytes]
    ) -> None:
        self._head = head
        self._aliases = aliases
        self._encode = encode
        self._raw = bytearray()
        self._search = ModelSearch()
        self.renamed: Renamed | None = None
        # Nobody can say which model it names.
        self.gave_up = False

    def feed(self, raw: bytes, content: Sequence[bytes], *, is_whole: bool) -> bytes | None:
        """Take the next bytes of the body, as they came and as they are meant.

        Return what may go on, head and all, once that is known; nothing may be fed after that.
        """
        self._raw += raw
        for piece in content:
            self._search.feed(piece)
        if self._search.found is not None:
            return self._renamed(*self._search.found)
        too_long = len(self._raw) > HELD_LIMIT or self._search.signs > SIGNS_LIMIT
        self.gave_up = too_long and not self._search.is_over
        if is_whole or self._search.is_over or self.gave_up:
            return self._encode(self._head) + bytes(self._raw)
        return None

    def _renamed(self, start: int, end: int) -> bytes:
        alias = _text(self._search.content(start, end))
        model = self._aliases.get(alias) if alias is not None else None
        raw, head = bytes(self._raw), self._head
        if alias is not None and model is not None:
            self.renamed = Renamed(alias, model)
            name = json.dumps(model, ensure_ascii=False).encode()
            if head.content_length is None:
                raw = splice_chunks(raw, start, end, name)
            else:
                raw = raw[:start] + name + raw[end:]
                head = _with_length(head, head.content_length + len(name) - (end - start))
        return self._encode(head) + raw


class ModelSearch:
    """Find the value of the top-level `model` in a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        self._depth = 0
        self._string_start: int | None = None
        self._key: str | None = None
        self._is_value = False
        # Where its quotes stand, as soon as it is known.
        self.found: tuple[int, int] | None = None
        # There is none.
        self.is_over = False
        # Brackets and strings so far: what the search costs.
        self.signs = 0

    def content(self, start: int, end: int) -> bytes:
        return bytes(self._data[start:end])

    def feed(self, piece: bytes) -> None:
        if self.found is not None or self.is_over:
            return
        self._data += piece
        while self.found is None and not self.is_over and self._at < len(self._data):
            if self.signs > SIGNS_LIMIT:
                return
            if self._string_start is not None:
                if not self._end_string(self._string_start):
                    return
            elif self._depth == 0:
                self._begin()
            else:
                self._take_sign()

    def _begin(self) -> None:
        sign = self._data[self._at : self._at + 1]
        self._at += 1
        if sign == b"{":
            self._depth = 1
        elif sign not in _BLANK:
            self.is_over = True

    def _take_sign(self) -> None:
        match = (_IN_OBJECT if self._depth == 1 else _NESTED).search(self._data, self._at)
        if match is None:
            self._at = len(self._data)
            return
        self._at = match.end()
        self.signs += 1
        sign = match[0]
        if sign == b'"':
            self._string_start = match.start()
        elif sign == b":":
            self._is_value = True
        elif sign == b",":
            # A model that is no text is none that we could know.
            self.is_over = self._is_value and self._key == "model"
            self._is_value = False
        elif sign in b"{[":
            self._depth += 1
        else:
            self._depth -= 1
            self.is_over = self._depth == 0

    def _end_string(self, start: int) -> bool:
        """Go on to the end of a string; return False where that has not come yet."""
        match = _IN_STRING.match(self._data, self._at)
        assert match is not None
        self._at = match.end()
        if self._data[self._at : self._at + 1] != b'"':
            return False
        self._at += 1
        self._string_start = None
        if self._depth == 1 and not self._is_value:
            self._key = _text(self.content(start, self._at))
        elif self._depth == 1 and self._key == "model":
            self.found = start, self._at
        return True


def splice_chunks(raw: bytes, start: int, end: int, new: bytes) -> bytes:
    """Return chunked *raw* with *new* in the place of its content from *start* to *end*.

    *raw* may end anywhere behind that. Chunks that have no part in it stay as they are.
    """
    parts: list[bytes] = []
    position = content_position = 0
    while content_position < end:
        line_end = raw.index(b"\r\n", position) + 2
        digits = re.match(rb"[0-9A-Fa-f]+", raw[position:line_end])
        assert digits is not None
        size = int(digits[0], 16)
        first, last = content_position, content_position + size
        chunk = raw[line_end : line_end + size]
        if last <= start:
            parts.append(raw[position : line_end + size + 2])
        else:
            # In the last of them: no chunk may become empty whose end is still to come.
            put_in = new if last >= end else b""
            cut = max(start - first, 0), min(end - first, size)
            chunk = chunk[: cut[0]] + put_in + chunk[cut[1] :]
            size += len(put_in) - (cut[1] - cut[0])
            if size:
                extension = raw[position + digits.end() : line_end]
                line_end_of_chunk = raw[line_end + last - first : line_end + last - first + 2]
                parts += [b"%x" % size, extension, chunk, line_end_of_chunk]
        position = min(line_end + last - first + 2, len(raw))
        content_position = last
    return b"".join(parts) + raw[position:]


def _with_length(head: RequestHead, length: int) -> RequestHead:
    lines = [
        line.partition(b":")[0] + b": %d" % length if _is_length(line) else line
        for line in head.lines
    ]
    return replace(head, lines=lines, content_length=length)


def _is_length(line: bytes) -> bool:
    return line.partition(b":")[0].lower() == b"content-length"


def _text(literal: bytes) -> str | None:
    try:
        text = json.loads(literal)
    except ValueError:
        return None
    return text if isinstance(text, str) else None

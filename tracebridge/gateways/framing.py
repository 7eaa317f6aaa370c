"""Where HTTP/1.1 messages begin and end.

Requests are read strictly: what two servers could understand in two ways must not pass, or a
request could be smuggled behind another. Responses are only followed, in a copy, and following
never raises: what cannot be followed is relayed all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import httptools
from msgspec import Struct

HEAD_LIMIT = 256 * 1024
_CHUNK_LINE_LIMIT = 4096
# Too long to be remembered.
_LONG_LINE = 1024
_FRAMING = frozenset({"content-length", "transfer-encoding", "host"})

_BARE_NEWLINE = re.compile(rb"(?<!\r)\n")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~\x80-\xff]+) HTTP/1\.[01]")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00\r\n]*)")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00\r\n]*)?")


class BadRequestError(Exception):
    """A request that must not go further."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class RequestHead(Struct, frozen=True):
    method: str
    target: str
    # The target without its query.
    path: str
    # The last word of the request line.
    version: bytes
    # As sent, without line ends.
    lines: Sequence[bytes]
    # Lower-case name to the first value under that name.
    fields: Mapping[str, str]
    # None: chunked.
    content_length: int | None

    def encode(self, target: str, host: str) -> bytes:
        """Return the head with another target and Host value, all else kept."""
        lines = [f"{self.method} {target} ".encode("latin-1") + self.version]
        for line in self.lines:
            if line[:5].lower() == b"host:":
                name, _, value = line.partition(b":")
                space = value[: len(value) - len(value.lstrip(b" \t"))]
                lines.append(name + b":" + space + host.encode("ascii"))
            else:
                lines.append(line)
        return b"\r\n".join(lines) + b"\r\n\r\n"


def find_head_end(data: bytes | bytearray, start: int) -> int:
    """Return where the head in *data* ends, -1 if further on; *start*: how far it was looked at."""
    start = max(0, start - 3)
    end = data.find(b"\r\n\r\n", start) + 4
    is_whole = end >= 4
    if not is_whole:
        end = len(data)
    # Counted, which is ten times as fast as looking for a bare one.
    if data.count(b"\n", start, end) != data.count(b"\r\n", max(0, start - 1), end):
        bare = _BARE_NEWLINE.search(data, start, end)
        if bare is not None and bare.end() <= HEAD_LIMIT:
            raise BadRequestError("a line of the request head ends without a carriage return")
    if end > HEAD_LIMIT:
        raise BadRequestError(f"the request head is larger than {HEAD_LIMIT} bytes", 431)
    return end if is_whole else -1


def parse_request_head(data: bytes) -> RequestHead:
    """Return what the head *data* says, or raise BadRequestError."""
    request_line, *lines = data[:-4].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(request_line)
    if match is None:
        raise BadRequestError("the request line is malformed")
    fields: dict[str, str] = {}
    lengths: set[str] = set()
    codings: list[str] = []
    hosts = 0
    for line in lines:
        name, value = _parse_field(line) if len(line) > _LONG_LINE else _parse_short_field(line)
        fields.setdefault(name, value)
        if name not in _FRAMING:
            continue
        if name == "content-length":
            lengths.add(value)
        elif name == "transfer-encoding":
            codings.append(value.lower())
        else:
            hosts += 1
    if hosts != 1:
        raise BadRequestError("the request needs exactly one Host")
    version = request_line.rsplit(b" ", 1)[1]
    target = match[2].decode("latin-1")
    return RequestHead(
        method=match[1].decode("ascii"),
        target=target,
        path=target.partition("?")[0],
        version=version,
        lines=lines,
        fields=fields,
        content_length=_content_length(lengths, codings, version),
    )


def _parse_field(line: bytes) -> tuple[str, str]:
    field = _FIELD.fullmatch(line)
    if field is None:
        if line.startswith((b" ", b"\t")):
            raise BadRequestError("a header field is folded over several lines")
        raise BadRequestError("a header field is malformed")
    return field[1].lower().decode("ascii"), field[2].decode("latin-1").rstrip(" \t")


# Most of an agent's head is the same for each of its calls.
_parse_short_field = lru_cache(maxsize=1024)(_parse_field)


def _content_length(lengths: set[str], codings: list[str], version: bytes) -> int | None:
    if codings:
        if lengths:
            raise BadRequestError("both Content-Length and Transfer-Encoding are given")
        if codings != ["chunked"] or version != b"HTTP/1.1":
            raise BadRequestError("the only Transfer-Encoding understood is chunked, in HTTP/1.1")
        return None
    if len(lengths) > 1:
        raise BadRequestError("several unequal Content-Length fields are given")
    text = lengths.pop() if lengths else "0"
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadRequestError("Content-Length is not a number")
    return int(text)


class BodyReader(Protocol):
    """What we expect of a reader of one request body."""

    @property
    def done(self) -> bool: ...

    def feed(self, data: bytes) -> tuple[int, list[bytes]]:
        """Return how many bytes of *data* belong to the body, and the content in them.

        Raise BadRequestError where the framing is broken.
        """
        ...


class LengthBody:
    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[int, list[bytes]]:
        piece = data if len(data) <= self._left else data[: self._left]
        self._left -= len(piece)
        self.done = self._left == 0
        return len(piece), [piece]


class ChunkedBody:
    def __init__(self) -> None:
        self.done = False
        # Content bytes to come in this chunk, with the line end behind them.
        self._left = 0
        # A line not yet whole: a chunk's size, or a trailer once the last chunk is past.
        self._line = b""
        self._in_trailer = False
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> tuple[int, list[bytes]]:
        content: list[bytes] = []
        position = 0
        while position < len(data) and not self.done:
            if self._left:
                position = self._feed_content(data, position, content)
            else:
                position = self._feed_line(data, position)
        return position, content

    def _feed_content(self, data: bytes, start: int, content: list[bytes]) -> int:
        piece = data[start : start + self._left]
        end_of_content = max(0, min(len(piece), self._left - 2))
        if end_of_content:
            content.append(piece[:end_of_content])
        expected = b"\r\n"[max(0, 2 - self._left) :]
        if not expected.startswith(piece[end_of_content:]):
            raise BadRequestError("a chunk is longer than its size says")
        self._left -= len(piece)
        return start + len(piece)

    def _feed_line(self, data: bytes, start: int) -> int:
        newline = data.find(b"\n", start)
        end = newline + 1 or len(data)
        self._line += data[start:end]
        if len(self._line) > _CHUNK_LINE_LIMIT:
            raise BadRequestError("a chunk's size line or a trailer is too long")
        if newline < 0:
            return end
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n"):
            raise BadRequestError("a line of a chunked body ends without a carriage return")
        if self._in_trailer:
            self._take_trailer(line[:-2])
        else:
            match = _CHUNK_LINE.fullmatch(line[:-2])
            if match is None:
                raise BadRequestError("a chunk's size is malformed")
            size = int(match[1], 16)
            self._left = size + 2 if size else 0
            self._in_trailer = size == 0
        return end

    def _take_trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._trailer_bytes += len(line)
        if self._trailer_bytes > HEAD_LIMIT or _FIELD.fullmatch(line) is None:
            raise BadRequestError("a trailer field is malformed")


def body_reader(head: RequestHead) -> BodyReader:
    return ChunkedBody() if head.content_length is None else LengthBody(head.content_length)


class _EndOfMessage(Exception):  # noqa: N818 - not an error: how a callback stops the parser.
    pass


class ResponseReader:
    """Follow the response to one request in a copy of its bytes."""

    def __init__(
        self,
        method: str,
        on_head: Callable[[int, list[tuple[bytes, bytes]]], None],
        on_body: Callable[[bytes], None],
    ) -> None:
        self._method = method
        self._report_head = on_head
        self._report_body = on_body
        # What httptools looks for by name. A read may bring hundreds of chunks.
        self._content: list[bytes] = []
        self.on_body = self._content.append
        self._fields: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._in_head = True
        self._interim = False
        self._framed = False
        self.started = False
        self.has_head = False
        self.done = False
        self.upgraded = False
        # The copy cannot be followed any more; nobody knows where the response ends.
        self.lost = False
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    @property
    def is_head_only(self) -> bool:
        return self._method == "HEAD"

    @property
    def ends_with_connection(self) -> bool:
        return self.has_head and not self._framed and not self.done

    def feed(self, data: bytes) -> None:
        self.started = True
        if self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.lost = not self.upgraded
        except httptools.HttpParserError:
            # Also how an exception of a callback arrives, ours and others'.
            self.lost = not (self.done or self.upgraded)
        if self._content:
            self._report_body(b"".join(self._content))
            self._content.clear()
        if self.done or self.lost:
            # It holds us, and whoever collects the garbage comes late for a body of megabytes.
            self._parser = None

    def on_message_begin(self) -> None:
        if self.done:
            raise _EndOfMessage
        self._fields = []
        self._head_bytes = 0
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come this way too.
        if self._in_head:
            self._head_bytes += len(name) + len(value)
            if self._head_bytes > HEAD_LIMIT:
                # Relayed all the same; only the copy must not grow without end.
                raise _EndOfMessage
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        assert self._parser is not None
        status = self._parser.get_status_code()
        self._interim = 100 <= status < 200 and status != 101
        if self._interim:
            return
        self.has_head = True
        names = {name.lower() for name, _ in self._fields}
        self._framed = b"content-length" in names or b"transfer-encoding" in names
        self._report_head(status, self._fields)
        if status == 101:
            self.upgraded = True
            raise _EndOfMessage
        # The parser cannot know these have no body.
        if self._method == "HEAD" or status in (204, 304):
            self.done = True
            raise _EndOfMessage

    def on_message_complete(self) -> None:
        self.done = not self._interim

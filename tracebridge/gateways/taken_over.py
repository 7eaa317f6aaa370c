"""A connection that is for nobody behind us: what they have in common who serve one."""

from __future__ import annotations

import asyncio
from typing import cast

from tracebridge.gateways.forwarding import Forwarder
from tracebridge.gateways.framing import (
    BodyReader,
    RequestHead,
    body_reader,
    find_head_end,
    parse_request_head,
)
from tracebridge.gateways.limits import Standstill

# How long a client may go on sending what nobody reads, so that it gets to our answer.
_LINGER_SECONDS = 2
_REASONS = {
    200: "OK",
    201: "Created",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class TakenOver(asyncio.Protocol):
    """A connection on which somebody tells us something, and is answered once that is kept."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._transport: asyncio.Transport
        self._held = bytearray()
        self._head: RequestHead | None = None
        self._reader: BodyReader | None = None
        self._body = bytearray()
        self._storing: asyncio.Task[None] | None = None
        self._heard_bytes = 0
        self._standstill = Standstill()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._forwarder.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._forwarder.connections.discard(self)
        if not self._forwarder.connections:
            self._forwarder.on_idle()

    def give_up(self, now: float) -> None:
        limit = self._forwarder.limits.idle_seconds
        if self._standstill.seconds(self._heard_bytes, now) >= limit and self._storing is None:
            self._transport.close()

    def drain(self) -> None:
        if self._storing is None:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def _take_head(self) -> RequestHead | None:
        """Take a head off what is held, None where more of it has to come first."""
        end = find_head_end(self._held, 0)
        if end < 0:
            return None
        self._head = parse_request_head(bytes(self._held[:end]))
        del self._held[:end]
        self._reader = body_reader(self._head)
        return self._head

    def _write(self, status: int, content_type: str, body: bytes, fields: str = "") -> None:
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
            f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n{fields}\r\n"
        )
        if not self._transport.is_closing():
            self._transport.write(head.encode() + body)

    def _end_lingering(self) -> None:
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._transport.close)

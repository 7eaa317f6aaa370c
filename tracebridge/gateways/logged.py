"""Calls of which somebody tells us by HTTP after the fact, on the gateway's own port.

`POST /api/request-logs/create/`: a request log in Respan's shape comes in, from a script that called
a model past all gateways; one `GatewayCall` goes out, and Respan's answer. It goes no further: as a
span it reaches Respan, and every other backend, by its sink.

`POST /api/litellm-logs/`: what LiteLLM's `generic_api` callback posts, an array of log records; one
`GatewayCall` of each goes out.

Nothing is acknowledged before it is in the spool.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import orjson

from tracebridge.fields import dicts_in, text_of
from tracebridge.gateways._respan_rows import call_of_row, is_call
from tracebridge.gateways.access import NotAdmittedError
from tracebridge.gateways.decompress import decompress
from tracebridge.gateways.forwarding import Forwarder, why_strange
from tracebridge.gateways.framing import (
    BadRequestError,
    BodyReader,
    RequestHead,
    body_reader,
    find_head_end,
    parse_request_head,
)
from tracebridge.gateways.limits import Standstill
from tracebridge.gateways.litellm import call_of_record
from tracebridge.lines import parse_object
from tracebridge.model import LOGGED, GatewayCall

RESPAN_PATHS = ("/api/request-logs/create", "/api/request-logs")
LITELLM_PATH = "/api/litellm-logs"
# Respan takes no more.
BODY_LIMIT = 20 * 1024 * 1024
_REASONS = {
    200: "OK",
    201: "Created",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    413: "Content Too Large",
    503: "Service Unavailable",
}
# How long a client may go on sending what nobody reads, so that it gets to our answer.
_LINGER_SECONDS = 2


class LoggedCalls:
    """Take over the connections on which scripts log; *record* gets each call, may block or raise."""

    def __init__(self, record: Callable[[GatewayCall], None]) -> None:
        self._record = record

    def __call__(self, forwarder: Forwarder, head: RequestHead) -> asyncio.Protocol | None:
        known = head.method == "POST" and _path(head) in {*RESPAN_PATHS, LITELLM_PATH}
        return _Logging(forwarder, self._record) if known else None


def call_of_body(body: bytes, client: str, now_ns: int) -> GatewayCall:
    """Return the call that a request log tells of. Raise ValueError where it tells of none."""
    row = parse_object(body)
    if isinstance(row, str):
        raise ValueError(f"the request log is {row}")
    if not is_call(row):
        raise ValueError(
            f"log_type {row.get('log_type')!r} is no call to a model; send such logs as OTLP spans"
        )
    if text_of(row, "model") is None:
        raise ValueError("the request log names no model")
    # A script may say who it is; else a log that is sent twice is two calls.
    log_id = text_of(row, "unique_id") or text_of(row, "span_unique_id") or uuid.uuid4().hex
    call = call_of_row(row, call_id=f"{LOGGED}:{log_id[:128]}", gateway=LOGGED, arrived_ns=now_ns)
    return replace(call, request_headers={"user-agent": client} if client else {})


def calls_of_records(body: bytes) -> list[GatewayCall]:
    """Return the calls that LiteLLM's records tell of. Raise ValueError where one tells of none."""
    records = orjson.loads(body)
    calls = [call_of_record(record) for record in dicts_in(records)]
    known = [call for call in calls if call is not None]
    if not isinstance(records, list) or len(known) < len(records):
        raise ValueError("the request holds something else than an array of LiteLLM's log records")
    return known


class _Logging(asyncio.Protocol):
    """A connection on which one request log comes; the next request finds another."""

    def __init__(self, forwarder: Forwarder, record: Callable[[GatewayCall], None]) -> None:
        self._forwarder = forwarder
        self._record = record
        self._transport: asyncio.Transport
        self._held = bytearray()
        self._head: RequestHead | None = None
        self._client_name: str | None = None
        self._reader: BodyReader | None = None
        self._body = bytearray()
        self._storing: asyncio.Task[None] | None = None
        self._answered = False
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

    def data_received(self, data: bytes) -> None:
        self._heard_bytes += len(data)
        # What comes behind the log is thrown away, so that the client gets to our answer.
        if self._storing is None and not self._answered:
            try:
                self._take(data)
            except BadRequestError as error:
                self._refuse(error.status, str(error))

    def give_up(self, now: float) -> None:
        limit = self._forwarder.limits.idle_seconds
        if self._standstill.seconds(self._heard_bytes, now) >= limit and self._storing is None:
            self._transport.close()

    def drain(self) -> None:
        if self._storing is None:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def _take(self, data: bytes) -> None:
        if self._reader is None:
            self._held += data
            end = find_head_end(self._held, 0)
            if end < 0:
                return
            self._head = parse_request_head(bytes(self._held[:end]))
            self._reader = body_reader(self._head)
            if not self._admit(self._head):
                return
            data = bytes(self._held[end:])
        _, content = self._reader.feed(data)
        for piece in content:
            self._body += piece
        if len(self._body) > BODY_LIMIT:
            self._refuse(413, f"a request log may have {BODY_LIMIT} bytes")
        elif self._reader.done and self._head is not None:
            storing = self._store(self._head, bytes(self._body))
            self._storing = asyncio.get_running_loop().create_task(storing)

    def _admit(self, head: RequestHead) -> bool:
        stranger = why_strange(head, self._forwarder.names)
        if stranger is not None:
            self._refuse(403, stranger)
            return False
        try:
            caller = self._forwarder.access.caller(head)
        except NotAdmittedError as error:
            self._refuse(401, str(error))
            return False
        self._client_name = None if caller is None else caller.key.name
        if (head.content_length or 0) > BODY_LIMIT:
            self._refuse(413, f"a request log may have {BODY_LIMIT} bytes")
            return False
        return True

    async def _store(self, head: RequestHead, body: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(None, self._keep, head, body)
        except OSError as error:
            # The script may come again.
            self._refuse(503, f"the request log cannot be kept: {error.strerror}")
        # Whatever a script's bytes do, it must get an answer.
        except Exception as error:  # noqa: BLE001
            self._refuse(400, str(error))
        else:
            self._answer(201 if answer else 200, answer)

    def _keep(self, head: RequestHead, body: bytes) -> dict[str, str]:
        """Record what a body tells; return the answer."""
        data = decompress(body, head.fields.get("content-encoding", ""))
        if _path(head) == LITELLM_PATH:
            for call in calls_of_records(data):
                self._record(call)
            return {}
        call = call_of_body(data, head.fields.get("user-agent", ""), time.time_ns())
        if self._client_name is not None:
            call = replace(call, client_name=self._client_name)
        self._record(call)
        return {"message": "log successful", "unique_id": call.call_id.partition(":")[2]}

    def _refuse(self, status: int, message: str) -> None:
        self._forwarder.complaints.add(f"request log refused ({status})", message)
        self._answer(status, {"detail": f"tracebridge gateway: {message}"[:500]})

    def _answer(self, status: int, document: dict[str, str]) -> None:
        body = orjson.dumps(document)
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Bad Request')}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            # The next request may be for a model, and not for us.
            "connection: close\r\n\r\n"
        )
        self._storing = None
        self._answered = True
        if not self._transport.is_closing():
            self._transport.write(head.encode() + body)
            if self._transport.can_write_eof():
                self._transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._transport.close)


def _path(head: RequestHead) -> str:
    return head.target.partition("?")[0].rstrip("/")

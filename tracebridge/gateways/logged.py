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
from dataclasses import replace

import orjson

from tracebridge.fields import dicts_in, text_of
from tracebridge.gateways._respan_rows import call_of_row, is_call
from tracebridge.gateways.access import NotAdmittedError
from tracebridge.gateways.decompress import decompress
from tracebridge.gateways.forwarding import Forwarder, why_strange
from tracebridge.gateways.framing import BadRequestError, RequestHead
from tracebridge.gateways.litellm import call_of_record
from tracebridge.gateways.recorder import Record
from tracebridge.gateways.taken_over import TakenOver
from tracebridge.lines import parse_object
from tracebridge.model import LOGGED, GatewayCall

RESPAN_PATHS = ("/api/request-logs/create", "/api/request-logs")
LITELLM_PATH = "/api/litellm-logs"
_PATHS = frozenset({*RESPAN_PATHS, LITELLM_PATH})
# Respan takes no more.
BODY_LIMIT = 20 * 1024 * 1024


class LoggedCalls:
    """Take over the connections on which scripts log; *record* gets their calls."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def __call__(self, forwarder: Forwarder, head: RequestHead) -> asyncio.Protocol | None:
        known = head.method == "POST" and _path(head) in _PATHS
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


class _Logging(TakenOver):
    """A connection on which one request log comes; the next request finds another."""

    def __init__(self, forwarder: Forwarder, record: Record) -> None:
        super().__init__(forwarder)
        self._record = record
        self._client_name: str | None = None
        self._answered = False

    def data_received(self, data: bytes) -> None:
        self._heard_bytes += len(data)
        # What comes behind the log is thrown away, so that the client gets to our answer.
        if self._storing is None and not self._answered:
            try:
                self._take(data)
            except BadRequestError as error:
                self._refuse(error.status, str(error))

    def _take(self, data: bytes) -> None:
        self._held += data
        if self._reader is None:
            head = self._take_head()
            if head is None or not self._admit(head):
                return
        assert self._reader is not None
        _, content = self._reader.feed(bytes(self._held))
        self._held.clear()
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
            self._record(calls_of_records(data))
            return {}
        call = call_of_body(data, head.fields.get("user-agent", ""), time.time_ns())
        if self._client_name is not None:
            call = replace(call, client_name=self._client_name)
        self._record((call,))
        return {"message": "log successful", "unique_id": call.call_id.partition(":")[2]}

    def _refuse(self, status: int, message: str) -> None:
        self._forwarder.complaints.add(f"request log refused ({status})", message)
        self._answer(status, {"detail": f"tracebridge gateway: {message}"[:500]})

    def _answer(self, status: int, document: dict[str, str]) -> None:
        self._storing = None
        self._answered = True
        # The next request may be for a model, and not for us.
        self._write(status, "application/json", orjson.dumps(document), "connection: close\r\n")
        self._end_lingering()


def _path(head: RequestHead) -> str:
    return head.path.rstrip("/")

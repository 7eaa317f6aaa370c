"""The byte path: one connection to an upstream for each connection of a client.

Bytes are passed on as they arrive, in both directions, and copied afterwards. Only the head of a
request is touched. What one end does (half-close, reset, slow reading) is done to the other, so
the agent sees what it would see without us and its own retries stay right; nothing is retried
here. A request that comes before the answer to the one before it is held until that is over, which
is how a response is matched to its request.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from tracebridge.dialects import find_dialect
from tracebridge.gateways.access import Access, Caller, NotAdmittedError
from tracebridge.gateways.aliases import HeldRequest
from tracebridge.gateways.framing import (
    BadRequestError,
    BodyReader,
    RequestHead,
    ResponseReader,
    body_reader,
    find_head_end,
    parse_request_head,
)
from tracebridge.gateways.limits import LimitedBody, Limits, Standstill
from tracebridge.gateways.outward import Outward
from tracebridge.gateways.recorder import Complaints, Recorder, Recording, identify
from tracebridge.gateways.spending import Spending
from tracebridge.gateways.upstream import Origin, Route, Upstreams

# How long a client may go on sending what nobody will read, so that it gets to our answer.
_LINGER_SECONDS = 2
# What may wait here before reading stops: for a connection, or for the answer before.
_HELD_LIMIT = 256 * 1024
# What malloc asks the kernel for, from 128 kB on, comes as pages that each cost a fault: more than
# all else that is done with them.
_READ_BYTES = 120 * 1024

# Any other Host on a connection to loopback is an attack by way of DNS.
_LOOPBACK_HOST = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_PORT = re.compile(r":[0-9]{1,5}$")
_EMPTY_LINES = re.compile(rb"\A(?:\r\n)+")
# Below no vendor's API. Whoever sends us requests may know that we live, and no more.
HEALTH = "/tracebridge/health"
_REASONS = {
    400: ("Bad Request", "invalid_request_error", "INVALID_ARGUMENT"),
    401: ("Unauthorized", "authentication_error", "UNAUTHENTICATED"),
    403: ("Forbidden", "permission_error", "PERMISSION_DENIED"),
    404: ("Not Found", "not_found_error", "NOT_FOUND"),
    408: ("Request Timeout", "timeout_error", "DEADLINE_EXCEEDED"),
    413: ("Content Too Large", "request_too_large", "INVALID_ARGUMENT"),
    426: ("Upgrade Required", "invalid_request_error", "FAILED_PRECONDITION"),
    429: ("Too Many Requests", "rate_limit_error", "RESOURCE_EXHAUSTED"),
    431: ("Request Header Fields Too Large", "invalid_request_error", "INVALID_ARGUMENT"),
    502: ("Bad Gateway", "api_error", "UNAVAILABLE"),
    503: ("Service Unavailable", "overloaded_error", "UNAVAILABLE"),
}


class Connection(Protocol):
    """What we expect of a client's connection: that it ends when it is time."""

    def give_up(self, now: float) -> None:
        """End it if its client has kept us waiting for too long; asked every few seconds."""
        ...

    def drain(self) -> None:
        """End it as soon as no request is under way."""
        ...

    def abort(self) -> None:
        """End it at once."""
        ...


class TakeOver(Protocol):
    """What we expect of who serves requests that are for nobody behind us."""

    def __call__(self, forwarder: Forwarder, head: RequestHead) -> asyncio.Protocol | None:
        """Return who serves the rest of a connection that says *head* now, or None."""
        ...


class OwnPage(Protocol):
    """What we expect of who answers requests that are about the gateway itself."""

    def __call__(self, forwarder: Forwarder, path: str) -> tuple[str, bytes] | None:
        """Return content type and body of the page at *path*, None if there is none."""
        ...


@dataclass(slots=True, kw_only=True)
class Forwarder:
    """What all connections share."""

    upstreams: Upstreams
    recorder: Recorder
    complaints: Complaints
    outward: Outward
    tls: ssl.SSLContext
    take_over: TakeOver = lambda _forwarder, _head: None
    own_page: OwnPage = lambda _forwarder, _path: None
    access: Access = field(default_factory=Access)
    # Names under which clients may reach us; None: on loopback alone.
    names: frozenset[str] | None = None
    spending: Spending | None = None
    limits: Limits = field(default_factory=Limits)
    # Requests that we refused, by status.
    refused: Counter[int] = field(default_factory=Counter)
    # What the engine that we started proves by that it is ours.
    engine_key: str | None = field(default=None, repr=False)
    connections: set[Connection] = field(default_factory=set)
    draining: bool = False
    on_idle: Callable[[], None] = lambda: None
    # Of all connections, one after the other: room of its own would cost a read three more system
    # calls and its first touch.
    buffer: memoryview = field(
        default_factory=lambda: memoryview(bytearray(_READ_BYTES)), repr=False
    )

    def why_refused(self, head: RequestHead) -> tuple[int, str] | None:
        """Say with which status and words to refuse what a program says of itself, if at all."""
        stranger = why_strange(head, self.names)
        if stranger is not None:
            return 403, stranger
        # On this machine exporters know of no key; our own engine has one for itself.
        if self.names is not None and not self._is_our_engine(head):
            try:
                self.access.caller(head)
            except NotAdmittedError as error:
                return 401, str(error)
        return None

    def _is_our_engine(self, head: RequestHead) -> bool:
        told = head.fields.get("authorization", "").encode("latin-1")
        expected = f"Bearer {self.engine_key}".encode()
        return self.engine_key is not None and hmac.compare_digest(told, expected)


class ClientConnection(asyncio.BufferedProtocol):
    """A client's connection, and the one who decides for its upstream's."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._upstream: _UpstreamConnection | None = None
        self._origin: Origin | None = None
        self._connecting: asyncio.Task[None] | None = None
        # For the upstream, while there is no connection to it yet.
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        # From the client: an unfinished head, or requests whose turn has not come.
        self._held: bytes | bytearray = b""
        self._head_scanned = 0
        self._body: BodyReader | None = None
        # The request under way, while it is not known yet which model it names.
        self._unnamed: HeldRequest | None = None
        self._response: ResponseReader | None = None
        self._recording: Recording | None = None
        self._caller: Caller | None = None
        self._requests = 0
        self._standstill = Standstill()
        self._is_tunnel = False
        self._client_is_done_sending = False
        # Nothing more is passed on; what still comes in is thrown away.
        self._ending = False
        self._linger: asyncio.TimerHandle | None = None
        self._paused_for: set[str] = set()
        self.is_write_paused = False

    # What the client does.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._forwarder.connections.add(self)
        most = self._forwarder.limits.connections
        if len(self._forwarder.connections) > most:
            # Of the files that we may open, what we record and our upstreams need some too.
            message = f"tracebridge gateway: it has the {most} connections that it may have"
            self._answer(503, message, fields=("retry-after: 1",))

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._forwarder.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._ending:
            return
        data = bytes(self._forwarder.buffer[:nbytes])
        if self._is_tunnel:
            self._send(data)
            return
        if self._body is not None and not self._body.done and not self._held:
            data = self._take_body(data)
        if data and not self._ending:
            self._hold(data)
            self._advance()

    def eof_received(self) -> bool:
        if self._ending or self._body is None or not self._body.done:
            return False
        # TLS cannot end one direction alone.
        if self._origin is None or self._origin.scheme == "https" or not self._can_half_close:
            return False
        # No client that was closed can be told from one that only ended its sending; the upstream
        # is told the same, as it would be without us.
        self._client_is_done_sending = True
        self._pass_on_end_of_sending()
        return True

    def pause_writing(self) -> None:
        self.is_write_paused = True
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        if self._upstream is not None:
            self._upstream.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forwarder.connections.discard(self)
        self._ending = True
        if self._linger is not None:
            self._linger.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        self._drop_upstream(reset=exc is not None)
        if self._recording is not None:
            self._recording.finish("client_abort")
        if not self._forwarder.connections:
            self._forwarder.on_idle()

    # Requests.

    def _hold(self, data: bytes) -> None:
        if not self._held:
            self._held = data
        else:
            if isinstance(self._held, bytes):
                self._held = bytearray(self._held)
            self._held += data

    def _advance(self) -> None:
        """Take on what is held, as far as that is possible now."""
        while self._held and not self._ending and not self._is_tunnel:
            if self._body is None:
                if not self._take_head():
                    break
            elif not self._body.done:
                data, self._held = bytes(self._held), b""
                self._held = self._take_body(data)
            elif self._response is not None and self._response.lost:
                # Where the answer ended only the client knows, and it goes on.
                self._end_exchange()
            else:
                if len(self._held) > _HELD_LIMIT:
                    self._pause_client("held")
                return
        self._resume_client("held")
        self._pass_on_end_of_sending()

    def _pass_on_end_of_sending(self) -> None:
        if not self._client_is_done_sending or self._ending:
            return
        if self._body is None:
            self._close()
        elif self._upstream is not None and not self._held:
            self._upstream.half_close()

    def _take_head(self) -> bool:
        """Start on the next request; return False where more of its head has to come first."""
        if self._held.startswith(b"\r\n"):
            # A client may end a body with a line too many; it belongs to no message.
            self._held = _EMPTY_LINES.sub(b"", self._held)
        try:
            end = find_head_end(self._held, self._head_scanned)
            if end < 0:
                self._head_scanned = len(self._held)
                return False
            head = parse_request_head(bytes(self._held[:end]))
        except BadRequestError as error:
            self._refuse(error.status, str(error))
            return False
        self._head_scanned = 0
        other = self._forwarder.take_over(self._forwarder, head)
        if other is not None:
            self._hand_over(other)
            return False
        rest, self._held = bytes(self._held[end:]), b""
        route = self._admit(head)
        if route is not None:
            self._start_exchange(head, route, rest)
        return True

    def _hand_over(self, other: asyncio.Protocol) -> None:
        """Leave the connection to *other*, with the request that it shall answer."""
        held, self._held = bytes(self._held), b""
        self._ending = True
        self._drop_upstream(reset=False)
        self._forwarder.connections.discard(self)
        self._transport.set_protocol(other)
        other.connection_made(self._transport)
        other.data_received(held)

    def _admit(self, head: RequestHead) -> Route | None:
        """Return where the request may go, or answer it and return None."""
        without_body = head.method == "HEAD"
        if not head.target.startswith("/"):
            self._refuse(
                400,
                "this is no forward proxy; set the client's base URL to the gateway's",
                without_body=without_body,
            )
            return None
        stranger = why_strange(head, self._forwarder.names)
        if stranger is not None:
            self._refuse(403, stranger, without_body=without_body)
            return None
        path = head.path
        try:
            self._caller = None if path == HEALTH else self._forwarder.access.caller(head)
        except NotAdmittedError as error:
            self._refuse(401, str(error), without_body=without_body)
            return None
        page = self._forwarder.own_page(self._forwarder, path)
        if page is not None:
            self._write_answer(200, *page, without_body=without_body)
            return None
        if self._is_agents_websocket(head):
            # In a tunnel no call could be told from the next. To 426 the one agent that asks for it
            # goes on over HTTP, at once and in silence.
            self._refuse(426, "model calls go over plain HTTP here")
            return None
        route = self._forwarder.upstreams.route(head.target)
        if route is None:
            self._refuse(
                404, self._forwarder.upstreams.missing(head.target), without_body=without_body
            )
            return None
        return None if self._is_over_budget(head, route) else route

    def _is_over_budget(self, head: RequestHead, route: Route) -> bool:
        """Say whether the caller may spend no more today, and answer the request if so."""
        caller, spending = self._caller, self._forwarder.spending
        if caller is None or spending is None or caller.key.usd_per_day is None:
            return False
        if spending.usd_today(caller.key.name) < caller.key.usd_per_day:
            return False
        message = (
            f"tracebridge gateway: {caller.key.name} may spend {caller.key.usd_per_day:g} USD a day"
            " and has; the next day begins at 0:00 UTC"
        )
        recording = self._start_recording(head, route)
        self._refused_by_us(recording, 429, "spend_limit", message)
        # The vendors' own clients would else try again and again until tomorrow.
        fields = (f"retry-after: {spending.seconds_left_today()}", "x-should-retry: false")
        call_id = recording.call_id if recording else None
        self._answer(429, message, call_id=call_id, fields=fields)
        return True

    def _is_agents_websocket(self, head: RequestHead) -> bool:
        return (
            head.fields.get("upgrade", "").lower() == "websocket"
            and find_dialect("POST", head.path) is not None
            and identify(head.fields, {}, self._forwarder.complaints) is not None
        )

    def _start_exchange(self, head: RequestHead, route: Route, rest: bytes) -> None:
        body = body_reader(head)
        limit = self._forwarder.limits.request_bytes
        try:
            if limit is not None:
                body = LimitedBody(body, limit, head.content_length)
            # Before anything is sent: a request found bad here leaves no trace upstream.
            used, content = body.feed(rest)
        except BadRequestError as error:
            self._refuse(error.status, str(error), without_body=head.method == "HEAD")
            return
        self._body = body
        self._requests += 1
        recording = self._recording = self._start_recording(head, route)
        self._response = ResponseReader(
            head.method,
            recording.take_response_head if recording else lambda _status, _fields: None,
            recording.take_response_body if recording else lambda _piece: None,
        )
        if self._origin != route.origin:
            self._drop_upstream(reset=False)
            self._origin = route.origin
        target = route.target
        client = None
        if self._caller is not None:
            client = self._caller.key.name
            head, target, secret = self._forwarder.access.swapped(head, route, self._caller)
            if recording is not None and secret is not None:
                recording.secrets += (secret,)
        if route.names_calls and recording is not None:
            target = f"/{recording.call_id}{target}"
        out = self._forwarder.outward.prepare(head, target, route, client)
        if recording is not None:
            recording.secrets += out.secrets
            recording.renamed = out.renamed
        self._unnamed = out.held(route.origin.host_header)
        if self._unnamed is None:
            self._send(out.encode(out.head, route.origin.host_header) + rest[:used])
        else:
            self._send_once_named(self._unnamed, rest[:used], content)
        self._record_body(content)
        self._held = rest[used:]

    def _start_recording(self, head: RequestHead, route: Route) -> Recording | None:
        if head.method != "POST":
            return None
        recording = Recording(
            self._forwarder.recorder,
            method=head.method,
            path=head.path,
            headers=head.fields,
            origin=route.origin,
        )
        if self._caller is not None:
            recording.client_name = self._caller.key.name
            recording.secrets = (self._caller.secret,)
        return recording

    def _send_once_named(self, request: HeldRequest, raw: bytes, content: list[bytes]) -> None:
        """Pass a request on from the moment when it is known which model it names."""
        assert self._body is not None
        ready = request.feed(raw, content, is_whole=self._body.done)
        if ready is None:
            return
        self._unnamed = None
        if request.gave_up:
            self._forwarder.complaints.add("no alias looked for (long body)", "it passes as it is")
        if self._recording is not None and request.renamed is not None:
            self._recording.renamed = request.renamed
        self._send(ready)

    def _record_body(self, content: list[bytes]) -> None:
        if self._recording is not None:
            for piece in content:
                self._recording.take_request_body(piece)

    def _take_body(self, data: bytes) -> bytes:
        """Pass on what belongs to the body and return the rest."""
        assert self._body is not None
        try:
            used, content = self._body.feed(data)
        except BadRequestError as error:
            self._break_off(error)
            return b""
        data, rest = (data, b"") if used == len(data) else (data[:used], data[used:])
        if self._unnamed is None:
            self._send(data)
        else:
            self._send_once_named(self._unnamed, data, content)
        self._record_body(content)
        if self._body.done and self._response is not None and self._response.done:
            # The answer came before the request was whole.
            self._end_exchange()
        return rest

    def _send(self, data: bytes) -> None:
        if self._upstream is not None:
            self._upstream.write(data)
            return
        self._outgoing.append(data)
        self._outgoing_bytes += len(data)
        if self._outgoing_bytes > _HELD_LIMIT:
            self._pause_client("connecting")
        if self._connecting is None:
            self._connecting = self._loop.create_task(self._connect())

    # The upstream.

    async def _connect(self) -> None:
        origin = self._origin
        assert origin is not None
        is_tls = origin.scheme == "https"
        seconds = self._forwarder.limits.connect_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._loop.create_connection(
                    lambda: _UpstreamConnection(self, self._forwarder.buffer),
                    origin.host,
                    origin.port,
                    ssl=self._forwarder.tls if is_tls else None,
                    **_race_of_addresses(self._loop),
                )
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or str(error)
            self._cannot_connect(origin, "tls_error", f"TLS certificate or protocol: {reason}")
        except TimeoutError:
            self._cannot_connect(origin, "connect_failed", f"no answer in {seconds:g} s")
        # Whatever it is, the client must not wait for an answer that cannot come.
        except Exception as error:  # noqa: BLE001
            reason = getattr(error, "strerror", None) or str(error)
            self._cannot_connect(origin, "connect_failed", reason)

    def upstream_connected(self, upstream: _UpstreamConnection) -> None:
        if self._ending:
            upstream.drop(reset=False)
            return
        self._connecting = None
        self._upstream = upstream
        if self.is_write_paused:
            upstream.pause_reading()
        for data in self._outgoing:
            upstream.write(data)
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self._resume_client("connecting")
        self._pass_on_end_of_sending()

    def _cannot_connect(self, origin: Origin, error_type: str, reason: str) -> None:
        self._connecting = None
        recording = self._recording
        message = f"tracebridge gateway: cannot connect to {origin.host_header}: {reason}"
        call_id = recording.call_id if recording else None
        self._refused_by_us(recording, 502, error_type, message)
        without_body = self._response is not None and self._response.is_head_only
        self._answer(502, message, call_id=call_id, without_body=without_body)

    def _refused_by_us(
        self, recording: Recording | None, status: int, error_type: str, message: str
    ) -> None:
        if recording is not None:
            recording.status = status
            recording.answered_by_us = True
            recording.response_fields = [(b"request-id", f"tb_{recording.call_id}".encode())]
            recording.finish(error_type, message)

    def response_received(self, data: bytes) -> None:
        self._transport.write(data)
        response = self._response
        if response is None:
            # Unasked, as when a server announces that it closes an idle connection.
            return
        response.feed(data)
        if response.upgraded and not self._is_tunnel:
            self._start_tunnel()
        elif response.done:
            if self._recording is not None:
                self._recording.finish()
            if self._body is not None and self._body.done:
                self._end_exchange()
                self._advance()

    def upstream_lost(self, exc: Exception | None) -> None:
        self._upstream = None
        if self._unnamed is not None:
            # Nothing of the request has gone yet: it takes a new connection.
            self._resume_client("upstream")
            return
        response, recording = self._response, self._recording
        is_whole = response is None or response.done or self._is_tunnel
        if exc is None and response is not None and response.ends_with_connection:
            is_whole = True
        if recording is not None:
            if response is not None and response.lost:
                recording.partial = True
            recording.finish(None if is_whole else self._loss(response))
        if exc is not None and not is_whole:
            _reset(self._transport)
        elif self._body is not None and not self._body.done:
            self._end_lingering()
        else:
            self._ending = True
            self._transport.close()

    def _loss(self, response: ResponseReader | None) -> str | None:
        if self._client_is_done_sending:
            return "client_abort"
        if response is None or not response.started:
            return "upstream_closed"
        if response.lost:
            # With a head, it may have been whole; nobody could tell.
            return None if response.has_head else "malformed_response"
        return "stream_cut"

    def _start_tunnel(self) -> None:
        self._is_tunnel = True
        if self._recording is not None:
            self._recording.finish()
        if self._held:
            self._send(bytes(self._held))
            self._held = b""

    def _end_exchange(self) -> None:
        if self._recording is not None:
            if self._response is not None and self._response.lost:
                self._recording.partial = True
            self._recording.finish()
        self._body = self._response = self._recording = None
        if self._forwarder.draining:
            self._close()

    def _drop_upstream(self, *, reset: bool) -> None:
        if self._upstream is not None:
            self._upstream.drop(reset=reset)
            self._upstream = None
            self._resume_client("upstream")

    def _close(self) -> None:
        self._ending = True
        self._drop_upstream(reset=False)
        self._transport.close()

    # Ends.

    def drain(self) -> None:
        """End the connection as soon as no request is under way."""
        if self._body is None and not self._ending:
            self._close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._recording is not None:
            self._recording.finish("gateway_stopped")
        _reset(self._transport)

    def give_up(self, now: float) -> None:
        """End the connection if its client has kept us waiting for too long."""
        limits = self._forwarder.limits
        is_in_head = self._body is None and bool(self._held)
        # While we do not read, or a model is at work, it is not the client's turn.
        is_ours_to_wait = self._is_tunnel or self._ending or bool(self._paused_for)
        if is_ours_to_wait or (self._body is not None and self._body.done):
            self._standstill.seconds(None, now)
            return
        sent = self._recording.request_bytes if self._recording is not None else 0
        seconds = self._standstill.seconds((self._requests, is_in_head, sent), now)
        if is_in_head and seconds >= limits.header_seconds:
            self._refuse(408, "the request's head did not come to an end in time")
        elif seconds >= limits.idle_seconds:
            if self._body is None:
                self._close()
            else:
                self._break_off(BadRequestError("the request's body stopped coming", 408))

    def _break_off(self, error: BadRequestError) -> None:
        """End an exchange whose request turns out to be bad when part of it is already gone."""
        message = str(error)
        self._drop_upstream(reset=True)
        if self._recording is not None:
            self._recording.finish("bad_request", message)
        if self._response is not None and self._response.started:
            _reset(self._transport)
            self._ending = True
        else:
            self._refuse(error.status, message)

    def _refuse(self, status: int, message: str, *, without_body: bool = False) -> None:
        self._answer(status, f"tracebridge gateway: {message}", without_body=without_body)

    def _answer(
        self,
        status: int,
        message: str,
        *,
        call_id: str | None = None,
        fields: tuple[str, ...] = (),
        without_body: bool = False,
    ) -> None:
        """Answer in the upstream's stead, in a shape that every vendor's clients understand."""
        self._forwarder.refused[status] += 1
        _, error_type, google_status = _REASONS[status]
        error = {"type": error_type, "message": message, "code": status, "status": google_status}
        document: dict[str, object] = {"type": "error", "error": error}
        if call_id is not None:
            document["request_id"] = f"tb_{call_id}"
            fields = (f"request-id: tb_{call_id}", *fields)
        body = json.dumps(document).encode()
        self._write_answer(
            status, "application/json", body, fields=fields, without_body=without_body
        )

    def _write_answer(
        self,
        status: int,
        content_type: str,
        body: bytes,
        *,
        fields: tuple[str, ...] = (),
        without_body: bool,
    ) -> None:
        reason = _REASONS[status][0] if status in _REASONS else "OK"
        lines = (
            f"HTTP/1.1 {status} {reason}",
            f"content-type: {content_type}",
            f"content-length: {len(body)}",
            *fields,
            "Connection: close\r\n\r\n",
        )
        head = "\r\n".join(lines).encode("latin-1")
        self._transport.write(head + (b"" if without_body else body))
        self._end_lingering()

    def _end_lingering(self) -> None:
        """Say that we are done, and let the client find that out before the connection goes.

        To close while the client still sends would reset the connection, and the client would lose
        what it has not read yet.
        """
        self._ending = True
        self._held = b""
        if self._connecting is not None:
            self._connecting.cancel()
        self._drop_upstream(reset=False)
        if self._transport.is_closing():
            return
        for reason in tuple(self._paused_for):
            self._resume_client(reason)
        if self._can_half_close:
            self._transport.write_eof()
        self._linger = self._loop.call_later(_LINGER_SECONDS, self._transport.close)

    @property
    def _can_half_close(self) -> bool:
        return self._transport.can_write_eof()

    # Backpressure.

    def upstream_is_full(self) -> None:
        self._pause_client("upstream")

    def upstream_has_room(self) -> None:
        self._resume_client("upstream")

    def _pause_client(self, reason: str) -> None:
        if not self._paused_for and not self._transport.is_closing():
            self._transport.pause_reading()
        self._paused_for.add(reason)

    def _resume_client(self, reason: str) -> None:
        if reason in self._paused_for:
            self._paused_for.discard(reason)
            if not self._paused_for and not self._transport.is_closing():
                self._transport.resume_reading()


class _UpstreamConnection(asyncio.BufferedProtocol):
    def __init__(self, client: ClientConnection, buffer: memoryview) -> None:
        self._client: ClientConnection | None = client
        self._buffer = buffer
        self._transport: asyncio.Transport
        self._is_half_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._client is not None:
            self._client.upstream_connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._client is not None:
            self._client.response_received(bytes(self._buffer[:nbytes]))

    def pause_writing(self) -> None:
        if self._client is not None:
            self._client.upstream_is_full()

    def resume_writing(self) -> None:
        if self._client is not None:
            self._client.upstream_has_room()

    def connection_lost(self, exc: Exception | None) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.upstream_lost(exc)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def half_close(self) -> None:
        if not self._is_half_closed:
            self._is_half_closed = True
            self._transport.write_eof()

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def drop(self, *, reset: bool) -> None:
        """Close without telling the client's side, which asked for it."""
        self._client = None
        if reset:
            _reset(self._transport)
        else:
            self._transport.abort()


def _reset(transport: asyncio.Transport) -> None:
    """Close so that the other end sees an error and not an end."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        # The other end may have been faster.
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _race_of_addresses(loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    # So that a name whose first address does not answer is still reached. uvloop cannot do it.
    return {"happy_eyeballs_delay": 0.25} if isinstance(loop, asyncio.BaseEventLoop) else {}


def why_strange(head: RequestHead, names: frozenset[str] | None = None) -> str | None:
    """Say why a request cannot come from a program that means us, if it cannot.

    *names*: those under which other machines reach us; None where none may.
    """
    host = head.fields["host"]
    if names is None and not _has_our_name(host, names):
        return "the Host is not this machine's own; use http://127.0.0.1:PORT as base URL"
    # What is no name cannot be led elsewhere by way of DNS.
    if not (_has_our_name(host, names) or _is_address(host)):
        return "the Host is not one of this gateway's names; start it with --server-name NAME"
    origin = head.fields.get("origin")
    if origin is not None and not _is_our_origin(origin, names):
        return "web pages may not use the gateway"
    return None


def _is_our_origin(origin: str, names: frozenset[str] | None) -> bool:
    try:
        netloc = urlsplit(origin).netloc
    except ValueError:
        return False
    return _has_our_name(netloc, names)


def _has_our_name(host: str, names: frozenset[str] | None) -> bool:
    if _LOOPBACK_HOST.fullmatch(host):
        return True
    return names is not None and _PORT.sub("", host).lower() in names


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(_PORT.sub("", host).strip("[]"))
    except ValueError:
        return False
    return True

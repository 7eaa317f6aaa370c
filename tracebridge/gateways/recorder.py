"""The copy: what passed through the forwarder in, one `GatewayCall` per attempt out.

The forwarder's thread only notes bytes and times; everything is parsed and recorded in a thread of its
own. A slow or broken disk makes that thread wait or fail, and nothing else: what then piles up is
thrown away at a limit, bodies first.
"""

from __future__ import annotations

import itertools
import os
import queue
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tracebridge.agents import identify_call
from tracebridge.dialects import (
    RequestFacts,
    ResponseFacts,
    ResponseParser,
    find_dialect,
    model_in_path,
    parse_error_message,
)
from tracebridge.gateways.aliases import Renamed
from tracebridge.gateways.decompress import CannotDecompressError, Decompressor, decompress
from tracebridge.gateways.upstream import Origin
from tracebridge.model import UPSTREAM_HEADERS, CallIdentity, GatewayCall

COPY_LIMIT = 8 * 1024 * 1024
# Copies waiting for the recording thread, of all connections together.
BACKLOG_LIMIT_BYTES = 64 * 1024 * 1024
BACKLOG_LIMIT_CALLS = 10_000
# A long response is handed over in parts, so that it never lies in memory as a whole.
_HAND_OVER_BYTES = 64 * 1024
# What a piece costs beside its bytes; a response may come byte by byte.
_PIECE_COST = 128
# From where on it is kept, and not a copy of it.
_SHARED_BYTES = 4096
_ATTEMPTS_REMEMBERED = 4096
_SETTLE_SECONDS = 0.02
# For how long recording waits for a pause, and for how much: memory that is soon free is used again.
_LONGEST_WAIT_SECONDS = 0.1
_WAIT_LIMIT_BYTES = 4 * 1024 * 1024
_MOST_AT_ONCE = 100
_MESSAGE_LIMIT = 500
_HEADER_VALUE_LIMIT = 1024
_ERROR_BODY_LIMIT = 256 * 1024
# 32 hex digits an attempt: those of the process, then its number in it.
_OWN_DIGITS = secrets.token_hex(10)
_NUMBERS = itertools.count()

_REQUEST_HEADERS = frozenset(
    {
        "user-agent",
        "x-app",
        "anthropic-version",
        "anthropic-beta",
        "x-claude-1p-request-class",
        "x-respan-route-provider",
        "x-stainless-retry-count",
        "x-stainless-timeout",
        "traceparent",
        "tracestate",
    }
)
_REQUEST_HEADER_PREFIXES = ("x-claude-code-",)
_RESPONSE_HEADERS = frozenset(
    {
        "request-id",
        "x-request-id",
        "retry-after",
        "cf-ray",
        "server",
        "content-type",
        "content-encoding",
        *UPSTREAM_HEADERS,
    }
)
_RESPONSE_HEADER_PREFIXES = ("anthropic-ratelimit-", "x-respan-")
_SECRET_HEADERS = (
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "x-goog-api-key",
    "api-key",
    "cookie",
)


class Complaints:
    """Tell of each kind of failure once, on stderr, and count the rest."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, detail: object) -> None:
        self.counts[kind] += 1
        if self.counts[kind] == 1:
            text = f"tracebridge gateway: {kind}: {detail} (told once)\n"
            # Nobody may be there to hear it. Past sys.stderr, which would keep what it could not
            # write and fail once more at the end of the process.
            with suppress(OSError):
                os.write(2, text.encode("utf-8", "replace"))


def identify(
    headers: Mapping[str, str], body: Mapping[str, Any], complaints: Complaints
) -> CallIdentity | None:
    """Return who is calling; a fault in an agent's module costs the identity, not the call."""
    try:
        return identify_call(headers, body)
    except Exception as error:  # noqa: BLE001
        complaints.add(f"caller not identified ({_kind(error)})", error)
        return None


class Recording:
    """One attempt, as the forwarder notes it."""

    def __init__(
        self,
        recorder: Recorder,
        *,
        method: str,
        path: str,
        headers: Mapping[str, str],
        origin: Origin,
    ) -> None:
        self._recorder = recorder
        self._clock_offset_ns = time.time_ns() - time.perf_counter_ns()
        self.call_id = f"{_OWN_DIGITS}{next(_NUMBERS):012x}"
        self.start_ns = self._now_ns()
        self.end_ns = self.start_ns
        self.method = method
        self.path = path
        self.headers = headers
        self.origin = origin
        # The last of them collects what is small.
        self._small = bytearray()
        self.request_body: list[bytes | bytearray] = [self._small]
        self.request_bytes = 0
        self.status: int | None = None
        self.response_fields: Sequence[tuple[bytes, bytes]] = ()
        self.response_bytes = 0
        self.first_byte_ns: int | None = None
        self.error_type: str | None = None
        self.error_message: str | None = None
        self.partial = False
        # The status is that of our own answer; nothing came from the upstream.
        self.answered_by_us = False
        # Whose key it came with; and what must stand in no message, beside what its headers hold.
        self.client_name: str | None = None
        self.secrets: tuple[str, ...] = ()
        # The model that the request names, and the one that was put in its place.
        self.renamed: Renamed | None = None
        self.parsing: _Parsing | None = None
        self._pieces: list[tuple[int, bytes]] = []
        self._pieces_bytes = 0
        self._finished = False

    def _now_ns(self) -> int:
        # A wall clock that is set while the call runs must not make it end before it starts.
        return time.perf_counter_ns() + self._clock_offset_ns

    def take_request_body(self, piece: bytes) -> None:
        self.request_bytes += len(piece)
        if self._finished:
            return
        if self.request_bytes > COPY_LIMIT:
            # JSON without its end tells nothing.
            self._small = bytearray()
            self.request_body = []
        elif len(piece) < _SHARED_BYTES:
            self._small += piece
        else:
            self._small = bytearray()
            self.request_body += (piece, self._small)

    def take_response_head(self, status: int, fields: Sequence[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.response_fields = fields

    def take_response_body(self, piece: bytes) -> None:
        now_ns = self._now_ns()
        if self.first_byte_ns is None:
            self.first_byte_ns = now_ns
        self.response_bytes += len(piece)
        self._pieces.append((now_ns, piece))
        self._pieces_bytes += len(piece) + _PIECE_COST
        if self._pieces_bytes >= _HAND_OVER_BYTES:
            self._hand_over(is_last=False)

    def finish(self, error_type: str | None = None, error_message: str | None = None) -> None:
        """Say that the attempt is over; only the first time counts."""
        if self._finished:
            return
        self._finished = True
        self.end_ns = self._now_ns()
        self.error_type = error_type
        self.error_message = error_message
        self.partial |= self.request_bytes > COPY_LIMIT
        self._hand_over(is_last=True)

    def _hand_over(self, *, is_last: bool) -> None:
        pieces, self._pieces = self._pieces, []
        cost, self._pieces_bytes = self._pieces_bytes, 0
        self._recorder.submit(self, pieces, cost, is_last=is_last)


class Recorder:
    """Make calls of recordings in a thread of its own and give them to *record*."""

    def __init__(
        self,
        record: Record,
        complaints: Complaints,
        count: Callable[[GatewayCall], None] = lambda _call: None,
    ) -> None:
        self._record = record
        self._count = count
        self._complaints = complaints
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        # How often something was; by the forwarder's thread alone.
        self._submitted = 0
        # Of the backlog, what is being recorded.
        self._taken = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._backlog_bytes = 0
        self._backlog_calls = 0
        self._attempts = _Attempts()
        # A daemon: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="tracebridge-recorder", daemon=True)
        self._thread.start()

    def submit(
        self,
        recording: Recording,
        pieces: list[tuple[int, bytes]],
        cost: int,
        *,
        is_last: bool,
    ) -> None:
        if is_last:
            cost += sum(map(len, recording.request_body))
        with self._lock:
            too_many_calls = is_last and self._backlog_calls >= BACKLOG_LIMIT_CALLS
            too_many_bytes = self._backlog_bytes + cost > BACKLOG_LIMIT_BYTES
            if too_many_bytes:
                cost = 0
            if not too_many_calls:
                self._backlog_bytes += cost
                self._backlog_calls += is_last
        if too_many_calls:
            self._complaints.add("calls not recorded", "recording is too slow; is the disk?")
            return
        if too_many_bytes:
            self._complaints.add("bodies not recorded", "recording is too slow; is the disk?")
            recording.partial = True
            pieces = []
            if is_last:
                recording.request_body = []
        self._submitted += 1
        self._work.put((recording, pieces, cost, is_last))

    @property
    def backlog_calls(self) -> int:
        return self._backlog_calls

    def close(self, timeout_seconds: float) -> bool:
        """Record what is pending; return whether all of it was done in time."""
        self._closing.set()
        self._work.put(None)
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            calls = self._calls(work)
            del work
            if calls:
                self._keep(calls)
                self._count_in(calls)
            with self._lock:
                self._backlog_calls -= self._taken
                self._taken = 0

    def _keep(self, calls: Sequence[GatewayCall]) -> None:
        try:
            self._record(calls)
        # Whatever the disk does, the next calls are to be recorded.
        except Exception as error:  # noqa: BLE001
            if len(calls) == 1:
                self._complaints.add(f"call not recorded ({_kind(error)})", error)
                return
            # It may be the fault of one of them.
            for call in calls:
                self._keep((call,))

    def _count_in(self, calls: Sequence[GatewayCall]) -> None:
        for call in calls:
            try:
                self._count(call)
            except Exception as error:  # noqa: BLE001
                self._complaints.add(f"call not counted ({_kind(error)})", error)

    def _next(self) -> _Work | None:
        try:
            return self._work.get_nowait()
        except queue.Empty:
            work = self._work.get()
            self._wait_for_a_pause()
            return work

    def _wait_for_a_pause(self) -> None:
        # An agent often sends its next request as soon as it has an answer; to parse just then
        # would hold up the forwarder, which needs the interpreter too.
        give_up = time.monotonic() + _LONGEST_WAIT_SECONDS
        submitted = -1
        while self._submitted != submitted and self._backlog_bytes < _WAIT_LIMIT_BYTES:
            submitted = self._submitted
            if self._closing.wait(_SETTLE_SECONDS) or time.monotonic() > give_up:
                break

    def _calls(self, work: _Work) -> list[GatewayCall]:
        """Return the calls that end with *work* and what waits behind it."""
        calls: list[GatewayCall] = []
        while True:
            recording, pieces, cost, is_last = work
            try:
                call = self._take(recording, pieces, is_last=is_last)
                if call is not None:
                    calls.append(call)
            # Whatever a vendor's bytes do, the next call is to be recorded.
            except Exception as error:  # noqa: BLE001
                self._complaints.add(f"call not recorded ({_kind(error)})", error)
            del recording, pieces
            self._taken += is_last
            with self._lock:
                self._backlog_bytes -= cost
            if len(calls) == _MOST_AT_ONCE or self._work.empty():
                return calls
            following = self._work.get()
            if following is None:
                self._work.put(None)
                return calls
            work = following

    def _take(
        self, recording: Recording, pieces: list[tuple[int, bytes]], *, is_last: bool
    ) -> GatewayCall | None:
        if recording.parsing is None:
            recording.parsing = _Parsing(recording, self._complaints)
        recording.parsing.feed(pieces)
        if not is_last:
            return None
        # They hold each other, and whoever collects the garbage comes late for a body of megabytes.
        parsing, recording.parsing = recording.parsing, None
        return parsing.make_call(self._attempts)


# What keeps calls; it may block or raise.
Record = Callable[[Sequence[GatewayCall]], None]
_Work = tuple[Recording, list[tuple[int, bytes]], int, bool]


class _Parsing:
    """What the recording thread has made of one recording so far."""

    def __init__(self, recording: Recording, complaints: Complaints) -> None:
        self._recording = recording
        self._complaints = complaints
        self._dialect = find_dialect(recording.method, recording.path)
        self._understood = True
        self._parser: ResponseParser | None = None
        self._error_body = bytearray()
        self._decompressor: Decompressor | None = None
        # Of several of one name, the first.
        self._headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in reversed(recording.response_fields)
        }
        headers = self._headers
        try:
            self._decompressor = Decompressor(headers.get("content-encoding", ""))
        except CannotDecompressError:
            self._understood = False
        if self._dialect and recording.status is not None and recording.status < 400:
            dialect, name = self._dialect
            self._parser = dialect.response_parser(name, headers.get("content-type", ""))

    def feed(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        for time_ns, piece in pieces:
            if self._decompressor is None:
                return
            try:
                data = self._decompressor.feed(piece)
            except CannotDecompressError:
                self._decompressor = None
                self._understood = False
                return
            if self._parser is not None:
                self._parser.feed(data, time_ns)
            elif len(self._error_body) < _ERROR_BODY_LIMIT:
                self._error_body += data

    def make_call(self, attempts: _Attempts) -> GatewayCall:
        recording = self._recording
        request = self._parse_request()
        response = self._parser.facts() if self._parser else ResponseFacts()
        identity = identify(recording.headers, request.body, self._complaints)
        error_type, error_message = self._error(response)
        headers = self._headers
        renamed = recording.renamed
        requested_model = request.requested_model if renamed is None else renamed.model
        dialect, provider = "unknown", None
        if self._dialect is not None:
            module, dialect = self._dialect
            provider = module.PROVIDER
            requested_model = requested_model or model_in_path(module, recording.path)
        return GatewayCall(
            call_id=recording.call_id,
            gateway="tracebridge",
            method=recording.method,
            path=recording.path,
            start_ns=recording.start_ns,
            end_ns=recording.end_ns,
            identity=identity,
            traceparent=recording.headers.get("traceparent"),
            dialect=dialect,
            provider=provider,
            server_address=recording.origin.host,
            server_port=recording.origin.port,
            requested_model=requested_model,
            model_alias=None if renamed is None else renamed.alias,
            model=response.model,
            streaming=request.streaming,
            status_code=recording.status,
            error_type=error_type,
            error_message=error_message,
            first_byte_ns=recording.first_byte_ns,
            first_token_ns=response.first_token_ns,
            response_id=response.response_id,
            request_id=headers.get("request-id") or headers.get("x-request-id"),
            stop_reason=response.stop_reason,
            usage=response.usage,
            tool_call_ids=response.tool_call_ids,
            blocks=response.blocks,
            tool_result_ids=request.tool_result_ids,
            attempt=attempts.count(identity, request.digest),
            request_bytes=recording.request_bytes,
            response_bytes=recording.response_bytes,
            request_headers=_allowed(recording.headers, _REQUEST_HEADERS, _REQUEST_HEADER_PREFIXES),
            response_headers=_allowed(headers, _RESPONSE_HEADERS, _RESPONSE_HEADER_PREFIXES),
            partial=recording.partial or not self._understood or not response.understood,
            client_name=recording.client_name,
        )

    def _parse_request(self) -> RequestFacts:
        recording = self._recording
        if self._dialect is None:
            return RequestFacts()
        dialect, name = self._dialect
        try:
            body = decompress(
                b"".join(recording.request_body), recording.headers.get("content-encoding", "")
            )
            return dialect.parse_request(name, body)
        except (ValueError, CannotDecompressError):
            self._understood = False
            return RequestFacts()

    def _error(self, response: ResponseFacts) -> tuple[str | None, str | None]:
        recording = self._recording
        status = recording.status
        if status is None or recording.answered_by_us:
            error_type, message = recording.error_type, recording.error_message
        elif status >= 400:
            error_type, message = str(status), parse_error_message(bytes(self._error_body))
        elif response.error_type is not None:
            error_type, message = _low_cardinality(response.error_type), response.error_message
        elif response.ended:
            # The client may well go once it has the API's own end.
            error_type, message = None, None
        elif recording.error_type is not None:
            error_type, message = recording.error_type, recording.error_message
        elif self._is_cut_stream(response):
            error_type, message = "stream_cut", None
        else:
            error_type, message = None, None
        return error_type, message and self._masked(message)[:_MESSAGE_LIMIT]

    def _is_cut_stream(self, response: ResponseFacts) -> bool:
        recording = self._recording
        return (
            self._parser is not None
            and not response.ended
            and self._understood
            and response.understood
            and not recording.partial
            and "text/event-stream" in self._headers.get("content-type", "").lower()
        )

    def _masked(self, message: str) -> str:
        values = [self._recording.headers.get(name, "") for name in _SECRET_HEADERS]
        # "Bearer sk-1" is a secret as a whole, and so is "sk-1".
        words = [value.rpartition(" ")[2] for value in values]
        for secret in (*values, *words, *self._recording.secrets):
            if len(secret) >= 4:
                message = message.replace(secret, "[redacted]")
        return message


class _Attempts:
    """Which attempt at the same request this is, for the requests seen last."""

    def __init__(self) -> None:
        self._seen: OrderedDict[object, int] = OrderedDict()

    def count(self, identity: CallIdentity | None, digest: int | None) -> int | None:
        if identity is None or digest is None:
            return None
        key = (identity.session_id, identity.turn_key, identity.subagent_id, digest)
        attempt = self._seen.pop(key, 0) + 1
        self._seen[key] = attempt
        if len(self._seen) > _ATTEMPTS_REMEMBERED:
            self._seen.popitem(last=False)
        # Without a session, equal requests may be strangers to each other; the first is the first.
        return attempt if identity.session_id is not None or attempt == 1 else None


def _allowed(
    headers: Mapping[str, str], names: frozenset[str], prefixes: tuple[str, ...]
) -> dict[str, str]:
    return {
        name: value[:_HEADER_VALUE_LIMIT]
        for name, value in headers.items()
        if name in names or name.startswith(prefixes)
    }


def _low_cardinality(word: str) -> str:
    return word if len(word) <= 64 and word.isascii() and word.isidentifier() else "error"


def _kind(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return type(error).__name__ if number is None else f"{type(error).__name__} {number}"

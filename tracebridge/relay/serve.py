"""The relay's face: OTLP over HTTP, as protobuf or JSON, for traces.

    POST /v1/traces            an export; answered once the backend, or what holds it, has it
    GET  /tracebridge/status   counts, as JSON
    GET  /tracebridge/health   what a load balancer asks; needs no key

Who sends more than we get rid of is told to come again: nothing is queued here.
"""

from __future__ import annotations

import asyncio
import gc
import hmac
import math
import re
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
from aiohttp import web
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from tracebridge.gateways.client_keys import ClientKeysError, digest_of, read_keys
from tracebridge.gateways.decompress import CannotDecompressError, decompress
from tracebridge.gateways.proxy import OptionsError, parse_listen
from tracebridge.relay.backend import Answer, Backend, later
from tracebridge.relay.central import Relay
from tracebridge.relay.foreign import Reader
from tracebridge.relay.grpc_face import GrpcFace, response_of
from tracebridge.relay.index import Index, IndexUnavailableError
from tracebridge.relay.json_requests import parse_json
from tracebridge.relay.local_index import LocalIndex
from tracebridge.relay.rules import Rules
from tracebridge.sinks._otlp_settings import (
    OtlpSettings,
    WireProtocol,
    check_url,
    is_loopback,
    read_otlp_settings,
)

BODY_LIMIT = 16 * 1024 * 1024
TOO_LARGE = f"an export may have {BODY_LIMIT} bytes; send smaller batches"
# Of requests under way; what comes beyond it shall come later.
MOST_UNDER_WAY_BYTES = 8 * BODY_LIMIT
PROTOBUF, JSON = "application/x-protobuf", "application/json"
_GRPC_CODES = {400: 3, 401: 16, 403: 7, 413: 8, 415: 3, 503: 14}
_DRAIN_SECONDS = 15.0
_CANCEL_SECONDS = 0.5
_OBJECTS_BETWEEN_COLLECTIONS = 50_000
# As our gateway has them.
HEALTH, STATUS = "/tracebridge/health", "/tracebridge/status"
_LOOPBACK_HOST = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_MAKE_KEY = "`tracebridge gateway-key add NAME` makes one"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """How to run a relay. Raise OptionsError if it cannot be run like this."""

    listen: str
    backend: OtlpSettings
    home: Path
    rules: Rules
    # The file of senders' keys; nobody is asked for one as long as it is not there.
    client_keys: Path
    # HOST:PORT for gRPC beside HTTP.
    grpc_listen: str = ""
    redis_url: str = ""
    wait_seconds: float = 1800.0
    tls_cert: Path | None = None
    # None: it stands with the certificate.
    tls_key: Path | None = None
    # Let everybody in that reaches us, and in plain text, if that is how we are set up.
    is_insecure: bool = False

    def __post_init__(self) -> None:
        try:
            has_keys = bool(read_keys(self.client_keys))
        except ClientKeysError as error:
            raise OptionsError(str(error)) from error
        lacking = []
        if not has_keys:
            lacking.append(f"senders' keys ({_MAKE_KEY})")
        if self.tls_cert is None:
            lacking.append("TLS (--tls-cert and --tls-key)")
        if lacking and not self.is_on_loopback and not self.is_insecure:
            raise OptionsError(
                f"listen address {self.listen!r}: others could send to the relay; it needs "
                f"{' and '.join(lacking)}, or listen on 127.0.0.1:PORT; "
                "--insecure-listen does without"
            )

    @property
    def is_on_loopback(self) -> bool:
        both = filter(None, (self.listen, self.grpc_listen))
        return all(is_loopback(parse_listen(each)[0]) for each in both)


def read_backend(url: str, env: Mapping[str, str]) -> OtlpSettings:
    """Return where and how to send. Raise SinkSettingsError naming the option or variable."""
    check_url("--to", url, "https://otlp.example.com")
    return read_otlp_settings(env, endpoint=url, protocol=WireProtocol.HTTP_PROTOBUF)


async def serve(options: RelayOptions, ready: Callable[[str], None]) -> None:
    """Run a relay until cancelled; then let requests under way end before returning.

    *ready* gets the base URL once connections are accepted. Raise OptionsError or OSError where
    that is impossible.
    """
    index = _index(options)
    backend = Backend(options.backend)
    relay = Relay(index, backend, Reader(options.rules), options.wait_seconds)
    keys = _Keys(options.client_keys)
    face = _Face(relay, options, keys)
    grpc_face: GrpcFace | None = None
    runner = web.AppRunner(
        face.application(),
        access_log=None,
        shutdown_timeout=_DRAIN_SECONDS,
        handle_signals=False,
        # A few kilobytes can be made to decompress to gigabytes; ours looks at what comes out.
        auto_decompress=False,
    )
    sweeping = asyncio.create_task(relay.sweep())
    try:
        await runner.setup()
        host, port = parse_listen(options.listen)
        try:
            site = web.TCPSite(runner, host, port, ssl_context=_tls(options), backlog=1024)
            await site.start()
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                error.errno,
                f"cannot listen on {options.listen}: {reason}; choose another address or port",
            ) from error
        port = runner.addresses[0][1]
        scheme = "http" if options.tls_cert is None else "https"
        ready(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
        if options.grpc_listen:
            grpc_face = GrpcFace(relay.take, keys.admit, BODY_LIMIT)
            host, _ = parse_listen(options.grpc_listen)
            port = await grpc_face.start(options.grpc_listen, options.tls_cert, options.tls_key)
            ready(f"grpc://[{host}]:{port}" if ":" in host else f"grpc://{host}:{port}")
        # It ends only by an error.
        await asyncio.shield(sweeping)
    finally:
        if grpc_face is not None:
            await grpc_face.stop(_DRAIN_SECONDS)
        await runner.cleanup()
        while not sweeping.done():
            # Again and again: wait_for of Python 3.11, on which the client of Redis relies, may
            # swallow that it was cancelled.
            sweeping.cancel()
            await asyncio.wait([sweeping], timeout=_CANCEL_SECONDS)
        await backend.close()
        await index.close()


def run(options: RelayOptions) -> None:
    """Run a relay until SIGTERM or SIGINT; the first line on stdout is its base URL.

    The second, where there is one, is the address for gRPC.
    """
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):
        # An extra, and a third faster.
        import uvloop  # noqa: PLC0415

        loop_factory = uvloop.new_event_loop
    # Each request makes thousands of objects, none of them in a circle, and gone when it is answered.
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve_until_signal(options))


async def _serve_until_signal(options: RelayOptions) -> None:
    def announce(url: str) -> None:
        sys.stdout.write(url + "\n")
        sys.stdout.flush()

    loop = asyncio.get_running_loop()
    serving = loop.create_task(serve(options, announce))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        if not serving.cancelled():
            raise


class _Face:
    def __init__(self, relay: Relay, options: RelayOptions, keys: _Keys) -> None:
        self._relay = relay
        self._options = options
        self._keys = keys
        self._under_way_bytes = 0

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._admit])
        application.router.add_post("/v1/traces", self._export)
        application.router.add_get(STATUS, self._status)
        application.router.add_get(HEALTH, self._health)
        return application

    @web.middleware
    async def _admit(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        on_loopback = self._options.is_on_loopback
        if request.headers.get("Origin") is not None:
            return self._refuse(request, 403, "web pages may not use the relay")
        if on_loopback and not _LOOPBACK_HOST.fullmatch(request.headers.get("Host", "")):
            # On a connection to loopback it is an attack by way of DNS.
            return self._refuse(request, 403, "the Host is not this machine's own")
        try:
            known = request.path == HEALTH or self._keys.admit(request.headers)
        except ClientKeysError as error:
            return self._refuse(request, 503, str(error))
        if not known:
            message = f"a key is needed, as bearer token or x-api-key; {_MAKE_KEY}"
            return self._refuse(request, 401, message)
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status in (404, 405):
                paths = "POST /v1/traces takes traces; logs and metrics go to a collector"
                return self._refuse(request, error.status, paths)
            return self._refuse(request, error.status, error.reason)

    async def _export(self, request: web.Request) -> web.Response:
        content_type = request.content_type.lower()
        if content_type not in (PROTOBUF, JSON):
            return self._refuse(request, 415, f"send {PROTOBUF} or {JSON}")
        expected = request.content_length or BODY_LIMIT
        if expected > BODY_LIMIT:
            return self._refuse(request, 413, TOO_LARGE)
        if self._under_way_bytes + expected > MOST_UNDER_WAY_BYTES:
            return self._answer(request, later("more is under way than fits here", 1))
        self._under_way_bytes += expected
        try:
            sent = await _body(request)
            body = decompress(sent, request.headers.get("Content-Encoding", ""))
            if max(len(sent), len(body)) > BODY_LIMIT:
                return self._refuse(request, 413, TOO_LARGE)
            answer = await self._relay.take(parse_json(body) if content_type == JSON else body)
        except (CannotDecompressError, web.RequestPayloadError, ValueError) as error:
            self._relay.counts["requests refused"] += 1
            return self._refuse(request, 400, f"no OTLP trace request: {error}"[:500])
        finally:
            self._under_way_bytes -= expected
        return self._answer(request, answer)

    @staticmethod
    async def _health(_: web.Request) -> web.Response:
        return web.Response(body=b'{"status": "ok"}', content_type=JSON)

    async def _status(self, _: web.Request) -> web.Response:
        relay = self._relay
        state = {
            "spans": {k: n for k, n in sorted(relay.counts.items()) if not k.startswith("trouble")},
            "troubles": {k: n for k, n in sorted(relay.counts.items()) if k.startswith("trouble")},
            "last_trouble": relay.last_trouble or None,
            "waiting_traces": await relay.waiting(),
        }
        return web.Response(body=orjson.dumps(state), content_type=JSON)

    def _answer(self, request: web.Request, answer: Answer) -> web.Response:
        if not answer.is_taken:
            response = self._refuse(request, answer.status, answer.message)
            if answer.retry_after_s is not None:
                response.headers["Retry-After"] = str(math.ceil(answer.retry_after_s))
            return response
        message = response_of(answer)
        if request.content_type.lower() == JSON:
            return web.Response(body=orjson.dumps(MessageToDict(message)), content_type=JSON)
        return web.Response(body=message.SerializeToString(), content_type=PROTOBUF)

    @staticmethod
    def _refuse(request: web.Request, status: int, message: str) -> web.Response:
        text = f"tracebridge relay: {message}"[:500]
        code = _GRPC_CODES.get(status, 2)
        if request.content_type.lower() == PROTOBUF:
            body = Status(code=code, message=text).SerializeToString()
            return web.Response(status=status, body=body, content_type=PROTOBUF)
        body = orjson.dumps({"code": code, "message": text})
        return web.Response(status=status, body=body, content_type=JSON)


async def _body(request: web.Request) -> bytes:
    """Return the body, or as much of it as shows that it is too large."""
    pieces: list[bytes] = []
    size = 0
    while size <= BODY_LIMIT and (piece := await request.content.readany()):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


class _Keys:
    """The senders' keys, as the file has them now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._digests: list[bytes] | None = None

    def admit(self, headers: Mapping[str, str]) -> bool:
        """Say whether a request comes with a key that is known, or none is needed."""
        digests = self._read()
        if digests is None:
            return True
        # In lower case: aiohttp does not mind, and gRPC has no other.
        bearer = headers.get("authorization", "").rpartition(" ")[2]
        given = [digest_of(key) for key in (bearer, headers.get("x-api-key", "")) if key]
        found = False
        # All of them, each in constant time: how long it takes tells nothing.
        for digest in digests:
            for other in given:
                found |= hmac.compare_digest(digest, other)
        return found

    def _read(self) -> list[bytes] | None:
        try:
            state = self._path.stat()
        except FileNotFoundError:
            self._seen = self._digests = None
            return None
        except OSError as error:
            raise ClientKeysError(f"{self._path}: {error.strerror}") from error
        if self._seen != (state.st_mtime_ns, state.st_ino):
            keys = read_keys(self._path)
            self._digests = None if keys is None else [key.digest for key in keys]
            self._seen = (state.st_mtime_ns, state.st_ino)
        return self._digests


def _index(options: RelayOptions) -> Index:
    if not options.redis_url:
        try:
            return LocalIndex(options.home)
        except IndexUnavailableError as error:
            raise OptionsError(str(error)) from error
    try:
        from tracebridge.relay.redis_index import RedisIndex  # noqa: PLC0415  # an extra

        return RedisIndex(options.redis_url)
    except ValueError:
        # Its text repeats the URL, and with it a password.
        raise OptionsError(
            "--redis: not a URL of Redis; write it like redis://host:6379/0"
        ) from None


def _tls(options: RelayOptions) -> ssl.SSLContext | None:
    if options.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise OptionsError(f"--tls-cert {options.tls_cert}: {error.strerror or error}") from error
    return context

"""Our own gateway: a byte-exact proxy in front of any upstream, which records each call.

Requests of an agent flow in and go out unchanged but for path prefix, Host and what `outward` adds;
`GatewayCall`s flow to whoever records.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import resource
import signal
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tracebridge.gateways.client_keys import ClientKeysError, read_keys
from tracebridge.gateways.engine import Engine, EngineError, find_program
from tracebridge.gateways.figures import Figures
from tracebridge.gateways.forwarding import ClientConnection, Forwarder, TakeOver
from tracebridge.gateways.framing import RequestHead
from tracebridge.gateways.limits import Limits
from tracebridge.gateways.logged import LoggedCalls
from tracebridge.gateways.otlp import OtlpReceiver, Take
from tracebridge.gateways.outward import Outward
from tracebridge.gateways.recorder import Complaints, Record, Recorder
from tracebridge.gateways.reloading import InForce, SourceError, Sources, parse_upstream_keys
from tracebridge.gateways.spending import Spending
from tracebridge.gateways.upstream import Upstream, Upstreams, parse_upstreams
from tracebridge.model import GatewayCall, SpanExport
from tracebridge.scrub import scrub_call
from tracebridge.settings import CONFIG
from tracebridge.spool import Spool
from tracebridge.tags import parse_tags, tags_in

# Many connections can come at once when agents start together.
_LISTEN_BACKLOG = 1024
_LAST_RECORDS_SECONDS = 5
# That we may have open beside those of connections.
_OTHER_FILES = 64
# How often we look for clients that keep us waiting.
_LOOK_SECONDS = 5
# The recording thread must not keep the forwarder waiting for Python's default of 5 ms at a time.
_THREAD_SWITCH_SECONDS = 0.0005
# glibc gives back what is freed, and for the next request the kernel clears each page anew: a third of
# what a large one costs. Once a block so large came and went, it keeps up to twice as much.
_KEPT_BYTES = 8 * 1024 * 1024
_LISTEN = re.compile(r"(?:\[(?P<ip6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


# A base URL for an engine that has not started yet.
_NOWHERE = "http://127.0.0.1:1"
_MAKE_KEY = "`tracebridge gateway-key add NAME` makes one"


class OptionsError(ValueError):
    """The gateway cannot be run like this; the message names the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """How to run the gateway. Raise OptionsError if it cannot be run like this."""

    # Base URLs, FAMILY=URL or presets: see `upstream`.
    upstream: tuple[str, ...]
    # Where `run` keeps the spool.
    home: Path
    # HOST:PORT; port 0 takes a free one.
    listen: str = "127.0.0.1:0"
    send_traceparent: bool = True
    use_uvloop: bool = False
    # How long requests under way may go on once the gateway is told to stop.
    drain_seconds: float = 10
    # Stop when standard input ends: whoever started us is gone, even if it was killed.
    stop_with_stdin: bool = False
    # The process whose calls alone come here: its end is theirs, its tags are theirs.
    launcher_pid: int | None = None
    # The file of client keys; nobody is asked for one as long as it is not there.
    client_keys: Path | None = None
    # [FAMILY=]REFERENCE: what goes upstream in the place of a client's key.
    upstream_keys: tuple[str, ...] = ()
    tls_cert: Path | None = None
    # None: it stands with the certificate.
    tls_key: Path | None = None
    # Under which other machines reach us, beside the address.
    server_names: tuple[str, ...] = ()
    # Let everybody in that reaches us, and in plain text, if that is how we are set up.
    is_insecure: bool = False
    limits: Limits = field(default_factory=Limits)
    # Start a routing engine with this config, and send it what no family's URL is for.
    engine_config: Path | None = None

    def __post_init__(self) -> None:
        try:
            self.upstreams()
            if self.engine_config is not None:
                find_program()
            references = parse_upstream_keys(self.upstream_keys)
            has_keys = self.client_keys is not None and bool(read_keys(self.client_keys))
        except (ValueError, ClientKeysError) as error:
            raise OptionsError(str(error)) from error
        if self.tls_key is not None and self.tls_cert is None:
            raise OptionsError("--tls-key: it needs the certificate too, by --tls-cert")
        if references and not has_keys:
            # Whoever reached us would use it.
            raise OptionsError(f"--upstream-key: only clients with a key may use it; {_MAKE_KEY}")
        lacking = []
        if self.is_open_to_others and not has_keys:
            lacking.append(f"client keys ({_MAKE_KEY})")
        if not self.is_on_loopback and self.tls_cert is None:
            lacking.append("TLS (--tls-cert and --tls-key)")
        if lacking and not self.is_insecure:
            raise OptionsError(
                f"listen address {self.listen!r}: others could use the gateway; it needs "
                f"{' and '.join(lacking)}, or listen on 127.0.0.1:PORT; "
                "--insecure-listen does without"
            )

    def upstreams(self, engine: Upstream | None = None) -> Upstreams:
        """Return where requests go, with *engine* where it is; until then nobody answers there."""
        if self.engine_config is None:
            return parse_upstreams(self.upstream)
        found = parse_upstreams((*self.upstream, _NOWHERE))
        return found if engine is None else replace(found, base=engine)

    @property
    def is_on_loopback(self) -> bool:
        return _is_loopback(parse_listen(self.listen)[0])

    @property
    def is_open_to_others(self) -> bool:
        # Something on this machine may stand before us for them.
        return bool(self.server_names) or not self.is_on_loopback

    @property
    def names(self) -> frozenset[str] | None:
        """Return the names under which others reach us, None where none may."""
        if not self.is_open_to_others:
            return None
        return frozenset(map(str.lower, (*self.server_names, parse_listen(self.listen)[0])))


def parse_listen(listen: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, or raise OptionsError."""
    match = _LISTEN.fullmatch(listen)
    if match is None or int(match["port"]) > 65535:
        raise OptionsError(f"listen address {listen!r}: write it as HOST:PORT, [::1]:PORT for IPv6")
    host = match["ip6"] or match["host"]
    # The name stands for two addresses, and port 0 would give each a port of its own.
    return ("127.0.0.1" if host.lower() == "localhost" else host), int(match["port"])


async def serve(
    options: GatewayOptions,
    record: Record,
    ready: Callable[[str], None],
    take: Take | None = None,
    hang_up: Callable[[Callable[[], None]], None] = lambda _reload: None,
) -> None:
    """Run the gateway until cancelled; then let requests under way end before returning.

    *record* is called in threads, with calls that ended at about the same time; it may block or raise.
    *take* gets what agents and other gateways export, in threads; without it nobody can export.
    *ready* gets the base URL once connections are accepted, *hang_up* what to call on SIGHUP.
    Raise OptionsError where a key, a certificate or an engine cannot be used.
    """
    loop = asyncio.get_running_loop()
    complaints = Complaints()
    tls = ssl.create_default_context()
    tls.set_alpn_protocols(["http/1.1"])
    figures = Figures()
    spending = None if options.client_keys is None else Spending(options.home)
    engine = None
    if options.engine_config is not None:
        engine = Engine(options.engine_config, complaints)
        record = _naming(record, engine)
    forwarder = Forwarder(
        upstreams=options.upstreams(),
        recorder=Recorder(record, complaints, _counting(figures, spending, complaints)),
        complaints=complaints,
        outward=_outward(options, complaints),
        tls=tls,
        own_page=figures.own_page,
        names=options.names,
        spending=spending,
        limits=replace(
            options.limits, connections=min(options.limits.connections, _room_for_connections())
        ),
    )
    faces: list[TakeOver] = [LoggedCalls(record)]
    if take is not None:
        faces.append(OtlpReceiver(take if engine is None else _naming_spans(take, engine)))
    forwarder.take_over = partial(_taken_over, faces)
    sources = Sources(
        client_keys=options.client_keys,
        upstream_keys=parse_upstream_keys(options.upstream_keys),
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        config=options.home / CONFIG,
    )
    in_force = InForce(sources, os.environ, forwarder.access, forwarder.outward, complaints)
    host, port = parse_listen(options.listen)
    try:
        try:
            await in_force.load()
            server = await loop.create_server(
                lambda: ClientConnection(forwarder),
                host,
                port,
                backlog=_LISTEN_BACKLOG,
                ssl=in_force.tls,
                ssl_handshake_timeout=options.limits.header_seconds if in_force.tls else None,
            )
        except SourceError as error:
            raise OptionsError(str(error)) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                error.errno,
                f"cannot listen on {options.listen}: {reason}; choose another address or port",
            ) from error
        doors = [server]
        try:
            port = _port_of(server)
            scheme = "http" if in_force.tls is None else "https"
            url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
            if engine is not None:
                # A door for its exports: it could not reach, or not trust, what we listen on.
                doors.append(
                    await loop.create_server(lambda: ClientConnection(forwarder), "127.0.0.1", 0)
                )
                copy = options.home / f"engine-{port}.toml"
                await _start_engine(engine, forwarder, options, copy, _port_of(doors[-1]))
            hang_up(in_force.asked.set)
            ready(url)
            async with asyncio.TaskGroup() as tasks:
                if engine is not None:
                    tasks.create_task(engine.keep())
                    tasks.create_task(engine.follow_config())
                tasks.create_task(in_force.keep())
                tasks.create_task(_give_up_in_time(forwarder))
        finally:
            for door in doors:
                door.close()
            await _drain(forwarder, options.drain_seconds)
            if engine is not None:
                await engine.stop()
    finally:
        done = await loop.run_in_executor(None, forwarder.recorder.close, _LAST_RECORDS_SECONDS)
        if not done:
            complaints.add("calls not recorded", "recording did not end in time; is the disk full?")


def run(options: GatewayOptions) -> None:
    """Run the gateway until SIGTERM or SIGINT, recording into the spool.

    The first line on stdout is the base URL, written once connections are accepted.
    Raise OSError where listening is impossible.
    """
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if options.use_uvloop:
        # An extra; only who asks for it needs it.
        import uvloop  # noqa: PLC0415

        loop_factory = uvloop.new_event_loop
    # Often few, for the sake of programs from long ago.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    bytearray(_KEPT_BYTES)
    switch_seconds = sys.getswitchinterval()
    sys.setswitchinterval(_THREAD_SWITCH_SECONDS)
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_serve_until_signal(options, Spool(options.home)))
    finally:
        sys.setswitchinterval(switch_seconds)


async def _serve_until_signal(options: GatewayOptions, spool: Spool) -> None:
    def announce(url: str) -> None:
        sys.stdout.write(url + "\n")
        sys.stdout.flush()

    loop = asyncio.get_running_loop()
    launcher_env = tags_in(os.environ) if options.launcher_pid is not None else {}

    def as_kept(call: GatewayCall) -> GatewayCall:
        if options.launcher_pid is not None:
            call = replace(call, launcher_pid=options.launcher_pid, launcher_env=launcher_env)
        # What an upstream says of an error may repeat what it was sent.
        return call if call.error_message is None else scrub_call(call)

    def record(calls: Sequence[GatewayCall]) -> None:
        spool.write_calls(list(map(as_kept, calls)))

    def hang_up(reload: Callable[[], None]) -> None:
        # In a terminal it means that the terminal is gone.
        if not os.isatty(0):
            loop.add_signal_handler(signal.SIGHUP, reload)

    serving = loop.create_task(serve(options, record, announce, spool.take, hang_up))
    for number in (signal.SIGTERM, signal.SIGINT):
        # A second signal cuts the draining short: cancelling again interrupts it.
        loop.add_signal_handler(number, serving.cancel)
    if options.stop_with_stdin:

        def on_stdin() -> None:
            if not os.read(0, 4096):
                loop.remove_reader(0)
                serving.cancel()

        loop.add_reader(0, on_stdin)
    try:
        await serving
    except asyncio.CancelledError:
        if not serving.cancelled():
            raise


def _counting(
    figures: Figures, spending: Spending | None, complaints: Complaints
) -> Callable[[GatewayCall], None]:
    """Return what counts a call, whether it could be recorded or not."""

    def count(call: GatewayCall) -> None:
        figures.count(call)
        if spending is None or call.client_name is None:
            return
        try:
            if not spending.add(call):
                figures.count_unpriced(call)
                complaints.add("no price known, not counted", call.model or call.requested_model)
        except OSError as error:
            complaints.add("spending not counted", error)

    return count


def _naming(record: Record, engine: Engine) -> Record:
    return lambda calls: record(list(map(engine.named, calls)))


def _naming_spans(take: Take, engine: Engine) -> Take:
    return lambda told: take(engine.with_names(told) if isinstance(told, SpanExport) else told)


def _room_for_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else (files - _OTHER_FILES) // 2


def _port_of(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


async def _start_engine(
    engine: Engine, forwarder: Forwarder, options: GatewayOptions, copy: Path, port: int
) -> None:
    def move(upstream: Upstream) -> None:
        forwarder.upstreams = options.upstreams(upstream)

    forwarder.engine_key = engine.export_key
    try:
        await engine.start(copy, port, move)
    except EngineError as error:
        raise OptionsError(str(error)) from error


async def _give_up_in_time(forwarder: Forwarder) -> None:
    loop = asyncio.get_running_loop()
    limits = forwarder.limits
    seconds = min(_LOOK_SECONDS, limits.header_seconds / 4, limits.idle_seconds / 4)
    while True:
        await asyncio.sleep(max(seconds, 0.05))
        for connection in tuple(forwarder.connections):
            connection.give_up(loop.time())


def _outward(options: GatewayOptions, complaints: Complaints) -> Outward:
    is_launched = options.launcher_pid is not None
    return Outward(
        complaints=complaints,
        send_context=options.send_traceparent,
        # What is wrong with them, the watcher notes.
        tags=parse_tags(os.environ)[0] if is_launched else None,
        project=Path.cwd() if is_launched else None,
    )


def _taken_over(
    faces: Sequence[TakeOver], forwarder: Forwarder, head: RequestHead
) -> asyncio.Protocol | None:
    for face in faces:
        protocol = face(forwarder, head)
        if protocol is not None:
            return protocol
    return None


async def _drain(forwarder: Forwarder, seconds: float) -> None:
    idle = asyncio.get_running_loop().create_future()
    forwarder.draining = True
    forwarder.on_idle = lambda: None if idle.done() else idle.set_result(None)
    for connection in tuple(forwarder.connections):
        connection.drain()
    try:
        if forwarder.connections:
            async with asyncio.timeout(seconds):
                await idle
    except TimeoutError:
        pass
    finally:
        for connection in tuple(forwarder.connections):
            connection.abort()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # A name may come to mean anything.
        return False

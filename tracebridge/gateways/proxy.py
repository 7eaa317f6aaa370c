"""Our own gateway: a byte-exact proxy in front of any upstream, which records each call.

Requests of an agent flow in and go out unchanged but for path prefix, Host and an added
`traceparent`; `GatewayCall`s flow to whoever records.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import signal
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tracebridge.gateways.forwarding import ClientConnection, Forwarder
from tracebridge.gateways.otlp import OtlpReceiver
from tracebridge.gateways.recorder import Complaints, Recorder
from tracebridge.gateways.upstream import parse_upstreams
from tracebridge.model import GatewayCall, HookEvent
from tracebridge.scrub import scrub_call
from tracebridge.spool import Spool
from tracebridge.tags import tags_in

# Many connections can come at once when agents start together.
_LISTEN_BACKLOG = 1024
_LAST_RECORDS_SECONDS = 5
# The recording thread must not keep the forwarder waiting for Python's default of 5 ms at a time.
_THREAD_SWITCH_SECONDS = 0.0005
_LISTEN = re.compile(r"(?:\[(?P<ip6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


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

    def __post_init__(self) -> None:
        try:
            parse_upstreams(self.upstream)
        except ValueError as error:
            raise OptionsError(str(error)) from error
        host, _ = parse_listen(self.listen)
        if not _is_loopback(host):
            # There are no client keys yet: whoever reached it could use it.
            raise OptionsError(
                f"listen address {self.listen!r}: others could use the gateway; "
                "listen on 127.0.0.1:PORT"
            )


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
    record: Callable[[GatewayCall], None],
    ready: Callable[[str], None],
    take: Callable[[HookEvent], None] | None = None,
) -> None:
    """Run the gateway until cancelled; then let requests under way end before returning.

    *record* is called in a thread of its own, one call at a time, and may block or raise.
    *take* gets what agents export about themselves, in threads; without it nobody can export.
    *ready* gets the base URL once connections are accepted.
    """
    loop = asyncio.get_running_loop()
    complaints = Complaints()
    tls = ssl.create_default_context()
    tls.set_alpn_protocols(["http/1.1"])
    forwarder = Forwarder(
        upstreams=parse_upstreams(options.upstream),
        recorder=Recorder(record, complaints),
        complaints=complaints,
        send_traceparent=options.send_traceparent,
        tls=tls,
    )
    if take is not None:
        forwarder.take_over = OtlpReceiver(take)
    host, port = parse_listen(options.listen)
    try:
        try:
            server = await loop.create_server(
                lambda: ClientConnection(forwarder), host, port, backlog=_LISTEN_BACKLOG
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                error.errno,
                f"cannot listen on {options.listen}: {reason}; choose another address or port",
            ) from error
        try:
            port = server.sockets[0].getsockname()[1]
            ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            await loop.create_future()
        finally:
            server.close()
            await _drain(forwarder, options.drain_seconds)
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

    def record(call: GatewayCall) -> None:
        call = replace(call, launcher_pid=options.launcher_pid, launcher_env=launcher_env)
        # What an upstream says of an error may repeat what it was sent.
        spool.write_call(call if call.error_message is None else scrub_call(call))

    serving = loop.create_task(serve(options, record, announce, spool.write_hook))
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

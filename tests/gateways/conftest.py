"""Raw sockets on both sides of the gateway, driven step by step by the test."""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tracebridge.gateways.proxy import GatewayOptions, serve
from tracebridge.model import GatewayCall

LIMIT_SECONDS = 120


class Peer:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(LIMIT_SECONDS)
        self._buffer = b""

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def read_until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(self._buffer)
            self._buffer += data
        cut = self._buffer.index(end) + len(end)
        result, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return result

    def read_head(self) -> bytes:
        return self.read_until(b"\r\n\r\n")

    def read(self, size: int) -> bytes:
        parts = [self._buffer[:size]]
        self._buffer = self._buffer[size:]
        missing = size - len(parts[0])
        while missing:
            data = self.socket.recv(min(missing, 1 << 20))
            if not data:
                raise EOFError(b"".join(parts))
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def read_to_end(self) -> bytes:
        """Return all that comes before the connection ends cleanly."""
        parts = [self._buffer]
        self._buffer = b""
        while data := self.socket.recv(65536):
            parts.append(data)
        return b"".join(parts)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class ScriptedUpstream:
    """Accepts connections; what they say is up to the test."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(LIMIT_SECONDS)
        self.port: int = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.peers: list[Peer] = []

    def accept(self) -> Peer:
        peer = Peer(self.listener.accept()[0])
        self.peers.append(peer)
        return peer

    def has_nobody_waiting(self) -> bool:
        self.listener.setblocking(False)
        try:
            self.peers.append(Peer(self.listener.accept()[0]))
        except BlockingIOError:
            return True
        finally:
            self.listener.settimeout(LIMIT_SECONDS)
        return False

    def close(self) -> None:
        self.listener.close()
        for peer in self.peers:
            peer.close()


class RunningGateway:
    """The gateway in a thread, its calls in a list."""

    def __init__(self, options: GatewayOptions) -> None:
        self.url = ""
        self.calls: list[GatewayCall] = []
        # How many came together.
        self.batches: list[int] = []
        self.on_record = self.record
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._error: Exception | None = None
        self._clients: list[Peer] = []
        self._thread = threading.Thread(target=self._run, args=(options,))
        self._thread.start()
        assert self._ready.wait(LIMIT_SECONDS)
        if self._error is not None:
            raise self._error

    def _run(self, options: GatewayOptions) -> None:
        factory = asyncio.new_event_loop
        if options.use_uvloop:
            import uvloop

            factory = uvloop.new_event_loop
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(self._serve(options))
        # Raised again in the test's own thread.
        except Exception as error:  # noqa: BLE001
            self._error = error
            self._ready.set()

    async def _serve(self, options: GatewayOptions) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(serve(options, self._pass_on, self._announce))
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    def _announce(self, url: str) -> None:
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self._ready.set()

    def _pass_on(self, calls: Sequence[GatewayCall]) -> None:
        self.batches.append(len(calls))
        for call in calls:
            self.on_record(call)

    def record(self, call: GatewayCall) -> None:
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()

    def wait_for_calls(self, number: int) -> list[GatewayCall]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= number, LIMIT_SECONDS)
            return list(self.calls)

    def connect(self) -> Peer:
        client = Peer(socket.create_connection(("127.0.0.1", self.port)))
        self._clients.append(client)
        return client

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        if not self._task.done():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(LIMIT_SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    result = ScriptedUpstream()
    yield result
    result.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_name(request) -> str:
    return request.param


@pytest.fixture
def start_gateway(tmp_path: Path):
    started = []

    def start(*upstream: str, **options) -> RunningGateway:
        gateway = RunningGateway(
            GatewayOptions(upstream=upstream, home=tmp_path, drain_seconds=0.2, **options)
        )
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        gateway.stop()


@pytest.fixture
def gateway(start_gateway, upstream: ScriptedUpstream) -> RunningGateway:
    return start_gateway(upstream.url)

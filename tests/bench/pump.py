"""The least that a gateway in Python can do: bytes passed on, none looked at, nothing recorded.

Asked with the upstream's port and one of `asyncio`, `uvloop` and `threads`; prints its own port.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from contextlib import suppress
from typing import cast

ONE_READ = 256 * 1024


class End(asyncio.Protocol):
    """One of the two connections of a pair."""

    def __init__(self) -> None:
        self.other: asyncio.Transport | None = None
        # What comes before there is another end.
        self.held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is of a class of its own.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.held += data
        else:
            self.other.write(data)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self.other is not None:
            self.other.abort()


class ClientsEnd(End):
    def __init__(self, upstream: int) -> None:
        super().__init__()
        self._upstream = upstream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self.other, end = await loop.create_connection(End, "127.0.0.1", self._upstream)
        end.other = self.transport
        self.other.write(self.held)


async def serve(upstream: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ClientsEnd(upstream), "127.0.0.1", 0, backlog=1000)
    tell(server.sockets[0])
    await server.serve_forever()


def serve_by_threads(upstream: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
    tell(listener)
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", upstream))
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=pass_on, args=(one, other), daemon=True).start()


def pass_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(ONE_READ):
            other.sendall(data)
        other.shutdown(socket.SHUT_RDWR)


def tell(listener: socket.socket) -> None:
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    upstream, kind = int(sys.argv[1]), sys.argv[2]
    if kind == "threads":
        serve_by_threads(upstream)
    elif kind == "uvloop":
        import uvloop

        uvloop.run(serve(upstream))
    else:
        asyncio.run(serve(upstream))

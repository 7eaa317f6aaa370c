"""A requests adapter whose exchanges end in time, however slowly the other side speaks.

The timeouts of sockets count anew with every byte, so a server that sends one now and then would
hold us for ever: in its headers, its body or the TLS handshake. Here the connection is cut.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

_watch: ContextVar[Callable[[socket.socket], None] | None] = ContextVar("watch", default=None)


class Deadline:
    over = False


@contextmanager
def deadline(seconds: float) -> Iterator[Deadline]:
    """Cut the connections used in this context once *seconds* have passed."""
    state = Deadline()
    watched: list[socket.socket] = []
    lock = threading.Lock()

    def watch(connection: socket.socket) -> None:
        with lock:
            # A duplicate: it stays ours when TLS takes over the original or the pool closes it.
            watched.append(socket.fromfd(connection.fileno(), connection.family, connection.type))
            if state.over:
                _cut(watched)

    def cut() -> None:
        with lock:
            state.over = True
            _cut(watched)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    token = _watch.set(watch)
    timer.start()
    try:
        yield state
    finally:
        _watch.reset(token)
        timer.cancel()
        timer.join()
        for each in watched:
            each.close()


def _cut(connections: list[socket.socket]) -> None:
    for each in connections:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


class _Watched(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        connection = super()._new_conn()
        self._tell(connection)
        return connection

    def putrequest(self, *args: Any, **options: Any) -> None:
        # A connection kept from an earlier request belongs to this one now.
        if self.sock is not None:
            self._tell(self.sock)
        super().putrequest(*args, **options)

    @staticmethod
    def _tell(connection: socket.socket) -> None:
        watch = _watch.get()
        if watch is not None:
            watch(connection)


class _WatchedTls(_Watched, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Watched


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedTls


_POOLS = {"http": _Pool, "https": _TlsPool}


class DeadlineAdapter(HTTPAdapter):
    """Heed `deadline`."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager

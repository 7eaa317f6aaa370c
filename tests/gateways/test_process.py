"""The gateway as a process: its first line, its signals, its memory, its spool."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.gateways.conftest import LIMIT_SECONDS, Peer
from tracebridge.model import GatewayCall
from tracebridge.spool import Spool

MESSAGES = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"id":"msg_1"}'


class GatewayProcess:
    def __init__(self, home: Path, upstream_url: str, *, stderr: int = subprocess.PIPE) -> None:
        command = [sys.executable, "-m", "tracebridge", "gateway"]
        self.process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", "--upstream", upstream_url],
            env={"TRACEBRIDGE_HOME": str(home), "HOME": str(home), "PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline().decode()
        self.port = int(self.first_line.strip().rpartition(":")[2])
        self._clients: list[Peer] = []

    def connect(self) -> Peer:
        self._clients.append(Peer(socket.create_connection(("127.0.0.1", self.port))))
        return self._clients[-1]

    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> None:
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def finish(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=LIMIT_SECONDS)
        return self.process.returncode, (errors or b"").decode()


@pytest.fixture
def start_process(tmp_path, upstream):
    started = []

    def start(home: Path = tmp_path, **options) -> GatewayProcess:
        started.append(GatewayProcess(home, upstream.url, **options))
        return started[-1]

    yield start
    for each in started:
        each.end()


def recorded(home: Path) -> list[GatewayCall]:
    contents = [file.content for file in Spool(home).read()]
    assert all(isinstance(content, GatewayCall) for content in contents)
    return contents


def call(gateway, upstream) -> None:
    client = gateway.connect()
    client.send(MESSAGES)
    peer = upstream.accept()
    peer.read_until(b"{}")
    peer.send(OK)
    assert client.read(len(OK)) == OK
    client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop(start_process, upstream, tmp_path, number):
    """Told to stop, it lets what is under way end, records it, says nothing and exits 0."""
    gateway = start_process()
    assert gateway.first_line.startswith("http://127.0.0.1:")
    idle = gateway.connect()
    busy = gateway.connect()
    busy.send(MESSAGES)
    peer = upstream.accept()
    peer.read_until(b"{}")
    gateway.process.send_signal(number)
    assert idle.read_to_end() == b""
    with pytest.raises(ConnectionRefusedError):
        gateway.connect()
    peer.send(OK)
    assert busy.read_to_end() == OK
    assert gateway.finish() == (0, "")
    assert [each.response_id for each in recorded(tmp_path)] == ["msg_1"]


def test_second_signal(start_process, upstream, tmp_path):
    """A second signal ends what is under way; it is recorded as cut by the gateway."""
    gateway = start_process()
    idle = gateway.connect()
    busy = gateway.connect()
    busy.send(MESSAGES)
    upstream.accept().read_until(b"{}")
    gateway.process.terminate()
    assert idle.read_to_end() == b""
    gateway.process.terminate()
    with pytest.raises(ConnectionResetError):
        busy.read_to_end()
    assert gateway.finish() == (0, "")
    assert [each.error_type for each in recorded(tmp_path)] == ["gateway_stopped"]


def test_home_that_cannot_be_written(start_process, upstream, tmp_path):
    """Where nothing can be recorded calls pass all the same, and stderr says so once."""
    (tmp_path / "spool").write_text("no folder")
    gateway = start_process()
    for _ in range(3):
        call(gateway, upstream)
    gateway.process.terminate()
    code, errors = gateway.finish()
    assert code == 0
    assert errors.count("Not a directory") == 1


def test_stderr_that_is_gone(start_process, upstream, tmp_path):
    """With nowhere to complain to, calls pass all the same."""
    reader, writer = os.pipe()
    (tmp_path / "spool").write_text("no folder")
    gateway = start_process(stderr=writer)
    os.close(reader)
    os.close(writer)
    for _ in range(3):
        call(gateway, upstream)
    gateway.process.terminate()
    assert gateway.finish()[0] == 0


def test_spool_comes_back(start_process, upstream, tmp_path):
    """A spool that was removed under its feet is made anew for the next call."""
    gateway = start_process()
    call(gateway, upstream)
    while not recorded(tmp_path):
        pass
    (tmp_path / "spool").rename(tmp_path / "gone")
    call(gateway, upstream)
    gateway.process.terminate()
    assert gateway.finish() == (0, "")
    assert len(recorded(tmp_path)) == 1


def push(peer: Peer, total: int) -> tuple[threading.Thread, list[int]]:
    """Send *total* bytes in a thread; the list holds how many are out."""
    sent = [0]
    peer.socket.settimeout(None)

    def run() -> None:
        block = bytes(1 << 20)
        while sent[0] < total:
            sent[0] += peer.socket.send(block[: total - sent[0]])

    thread = threading.Thread(target=run)
    thread.start()
    return thread, sent


def wait_until_stalled(sent: list[int]) -> None:
    before = -1
    while sent[0] != before or not sent[0]:
        before = sent[0]
        # Not to synchronise: what is measured is that nothing happens.
        threading.Event().wait(0.5)


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_stalled_reader(start_process, upstream, direction):
    """A reader that stalls stops the sender; the gateway buffers little of 200 MB."""
    total = 200_000_000
    gateway = start_process()
    call(gateway, upstream)
    before = gateway.resident_bytes()
    client = gateway.connect()
    if direction == "download":
        client.send(MESSAGES)
        peer = upstream.accept()
        peer.read_until(b"{}")
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        sender, receiver = peer, client
    else:
        client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n")
        client.send(b"Content-Length: %d\r\n\r\n" % total)
        peer = upstream.accept()
        sender, receiver = client, peer
    receiver.read_head()
    thread, sent = push(sender, total)
    wait_until_stalled(sent)
    assert sent[0] < 40_000_000
    assert gateway.resident_bytes() - before < 20_000_000
    received = 0
    while received < total:
        received += len(receiver.read(min(1 << 20, total - received)))
    thread.join()
    # The copy of what passed is capped at 8 MB, whatever else the allocator keeps for itself.
    assert gateway.resident_bytes() - before < 100_000_000


def test_client_that_leaves_a_stalled_stream(start_process, upstream, tmp_path):
    """A client that goes without having read ends the upstream's connection."""
    gateway = start_process()
    client = gateway.connect()
    client.send(MESSAGES)
    peer = upstream.accept()
    peer.read_until(b"{}")
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 200000000\r\n\r\n")
    peer.socket.settimeout(LIMIT_SECONDS)
    client.read_head()
    failed = threading.Event()

    def send() -> None:
        try:
            peer.send(bytes(200_000_000))
        except ConnectionError:
            failed.set()

    thread = threading.Thread(target=send)
    thread.start()
    client.close()
    thread.join()
    assert failed.is_set()
    gateway.process.terminate()
    assert gateway.finish() == (0, "")
    assert [each.error_type for each in recorded(tmp_path)] == ["client_abort"]

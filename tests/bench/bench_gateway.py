"""How much our gateway adds: the same exchanges direct and through it, recording on.

Run: python tests/bench/bench_gateway.py [ROUNDS]. Direct and gateway take turns, so that a busy
moment of the machine hits both; read the ratios and differences, not the absolute times.
"""

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

HEAD = (
    b"POST /api/anthropic/v1/messages HTTP/1.1\r\nHost: localhost\r\n"
    b"X-Claude-Code-Session-Id: s\r\nx-claude-code-prompt-id: p\r\nX-Case: %s\r\n"
    b"Content-Length: %d\r\n\r\n"
)
EVENT_COUNT = 200
EVENT = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"some words of an answer"}}\n\n'
)
STREAM_END = b"0\r\n\r\n"
ANSWER = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "model": "m",
        "content": [{"type": "text", "text": "x" * 650}],
        "usage": {"input_tokens": 1, "output_tokens": 2},
    }
).encode()


def request(case: bytes, size: int) -> bytes:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * size}]})
    return HEAD % (case, len(body)) + body.encode()


CASES = {
    "small call": (request(b"plain", 2_000), b"}"),
    "200 events in a burst": (request(b"burst", 2_000), STREAM_END),
    "500 kB request": (request(b"plain", 500_000), b"}"),
}


def answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = b""
    with connection:
        while True:
            while b"\r\n\r\n" not in buffer:
                data = connection.recv(1 << 20)
                if not data:
                    return
                buffer += data
            head, _, rest = buffer.partition(b"\r\n\r\n")
            missing = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]) - len(rest)
            while missing > 0:
                missing -= len(connection.recv(1 << 20))
            buffer = b""
            if b"X-Case: burst" in head:
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                    b"Transfer-Encoding: chunked\r\n\r\n"
                )
                for _ in range(EVENT_COUNT):
                    connection.sendall(b"%x\r\n%s\r\n" % (len(EVENT), EVENT))
                connection.sendall(STREAM_END)
            else:
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
                )


def serve_upstream(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def exchange(connection: socket.socket, sent: bytes, end: bytes) -> float:
    """Return the milliseconds from the first byte out to the last byte in."""
    start = time.perf_counter_ns()
    connection.sendall(sent)
    tail = b""
    while not tail.endswith(end):
        data = connection.recv(1 << 16)
        assert data, "the connection was closed"
        tail = (tail + data)[-16:]
    return (time.perf_counter_ns() - start) / 1e6


def start_gateway(home: Path, port: int, *options: str) -> tuple[subprocess.Popen[bytes], int]:
    code = (
        "import sys; from pathlib import Path\n"
        "from tracebridge.gateways.proxy import GatewayOptions, run\n"
        "run(GatewayOptions(upstream=(sys.argv[1],), home=Path(sys.argv[2]),"
        " use_uvloop='uvloop' in sys.argv))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"http://127.0.0.1:{port}", str(home), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline().strip().rpartition(b":")[2])


def measure(ports: dict[str, int], rounds: int) -> None:
    connections = {
        name: socket.create_connection(("127.0.0.1", port)) for name, port in ports.items()
    }
    for connection in connections.values():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    write_line(f"{'case':22} {'path':18} {'p50 ms':>8} {'p99 ms':>8} {'added ms':>9} {'ratio':>6}")
    for case, (sent, end) in CASES.items():
        times: dict[str, list[float]] = {name: [] for name in connections}
        for number in range(rounds + 10):
            for name, connection in connections.items():
                elapsed = exchange(connection, sent, end)
                if number >= 10:
                    times[name].append(elapsed)
        direct = statistics.median(times["direct"])
        for name, values in times.items():
            median = statistics.median(values)
            p99 = sorted(values)[int(len(values) * 0.99)]
            write_line(
                f"{case:22} {name:18} {median:8.3f} {p99:8.3f} {median - direct:9.3f}"
                f" {median / direct:6.2f}"
            )
    for connection in connections.values():
        connection.close()


def write_line(text: str) -> None:
    sys.stdout.write(text + "\n")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    # A process of its own, so that it does not share the interpreter with the client.
    if len(sys.argv) > 2:
        serve_upstream(socket.socket(fileno=int(sys.argv[2])))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        tempfile.TemporaryDirectory() as folder,
    ):
        number = listener.fileno()
        upstream = subprocess.Popen([sys.executable, __file__, "0", str(number)], pass_fds=[number])
        port = listener.getsockname()[1]
        gateways: list[subprocess.Popen[bytes]] = []
        ports = {"direct": port}
        homes: dict[str, Path] = {}
        starts: dict[str, Callable[[Path], tuple[subprocess.Popen[bytes], int]]] = {
            "gateway": lambda home: start_gateway(home, port),
            "gateway + uvloop": lambda home: start_gateway(home, port, "uvloop"),
        }
        try:
            for name, start in starts.items():
                homes[name] = Path(folder) / name
                process, ports[name] = start(homes[name])
                gateways.append(process)
            measure(ports, rounds)
        finally:
            for process in gateways:
                process.terminate()
                process.wait(30)
            upstream.kill()
            upstream.wait()
        for name, home in homes.items():
            written = len(list((home / "spool" / "new").iterdir()))
            write_line(f"{name}: {written} calls recorded of {len(CASES) * (rounds + 10)}")


if __name__ == "__main__":
    main()

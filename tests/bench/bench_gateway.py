"""How much our gateway adds: the same exchanges direct and through it, recording on.

    python tests/bench/bench_gateway.py [--rounds 200] [--rivals] [--json FILE]

One call at a time takes turns over all ways, so that a busy moment of the machine hits all of them;
parallel ones follow each other way by way, in rounds. nginx, the limit, is there if it is installed;
the floor is `pump.py`, which passes bytes on in Python and looks at none. `--rivals` adds the LiteLLM
proxy, without any callback, and `respan-gateway`, fetched from PyPI into a cache. CPU is the kernel's
count of what the gateway's processes used, recording included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from model_server import MARK, PACED_EVENTS
from runner import Reach, tell

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from pypi_programs import Program, installed  # noqa: E402  # needs the path above

from tracebridge.spool import Spool  # noqa: E402

LITELLM = Program(
    "litellm",
    "1.106.2",
    "bin/litellm",
    ("litellm[proxy]==1.106.2", "opentelemetry-sdk", "opentelemetry-exporter-otlp"),
)
RESPAN_GATEWAY = Program("respan-gateway", "0.3.0", "bin/respan-gateway")
DIRECT, OURS, UVLOOP, NGINX, RESPAN = "direct", "ours", "ours, uvloop", "nginx", "respan-gateway"
# What Python itself costs; "threads" are blocking ones, two a connection.
FLOORS = {OURS: ("floor", "asyncio"), UVLOOP: ("floor, uvloop", "uvloop")}
THREADS = "floor, threads"
PATIENCE_S = 120.0
ATTEMPTS = 3
SLOW = {"litellm": 5}
NGINX_CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 2000; }}
http {{
  access_log off; keepalive_requests 1000000; client_max_body_size 0; client_body_buffer_size 16k;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 200; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1000;
    location / {{
      proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off;
    }}
  }}
}}
"""
OUR_GATEWAY = """
import sys
from pathlib import Path
from tracebridge.gateways.proxy import GatewayOptions, run
run(GatewayOptions(listen="127.0.0.1:0", upstream=("anthropic=" + sys.argv[1],),
    home=Path(sys.argv[2]), use_uvloop=sys.argv[3] == "uvloop"))
"""


@dataclass
class Way:
    name: str
    port: int
    path: str = "/v1/messages"
    process: subprocess.Popen[bytes] | None = None
    home: Path | None = None
    figures: dict[str, float] = field(default_factory=dict)

    def request(self, case: str, size: int = 2_000, *, stream: bool = False) -> bytes:
        body = body_of(case, size, stream=stream)
        return (
            f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
            "content-type: application/json\r\nanthropic-version: 2023-06-01\r\n"
            "x-api-key: sk-bench\r\nx-claude-code-session-id: s\r\nx-claude-code-prompt-id: p\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def processes(self) -> Iterator[Path]:
        if self.process is not None:
            waiting = [self.process.pid]
            while waiting:
                place = Path(f"/proc/{waiting.pop()}")
                yield place
                for task in (place / "task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())

    def cpu_ms(self) -> float:
        return sum(
            int((task / "schedstat").read_text().split()[0]) / 1e6
            for place in self.processes()
            for task in (place / "task").iterdir()
        )

    def memory_mb(self) -> float:
        pages = [int((place / "statm").read_text().split()[1]) for place in self.processes()]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


@cache
def body_of(case: str, size: int, *, stream: bool) -> str:
    """Return a request as agents send it: a few kilobytes for each tool they have used."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Please mend the tests."}]
    text = '    return {name: value for name, value in found}  # as "told"\n'
    for number in range(max(1, size // 4_000)):
        use = {"type": "tool_use", "id": f"toolu_{number}", "name": "Read", "input": {}}
        content = text * (min(size, 4_000) // len(text))
        result = {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": content}
        messages += ({"role": "assistant", "content": [use]}, {"role": "user", "content": [result]})
    return json.dumps(
        {"model": f"claude-{case}", "max_tokens": 9, "stream": stream, "messages": messages}
    )


class Client(asyncio.Protocol):
    """One kept connection; an exchange at a time."""

    def __init__(self, port: int) -> None:
        self.delays_ms: list[float] = []
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is of a class of its own.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(f"closed in an answer: {exc}"))

    def data_received(self, data: bytes) -> None:
        now_ns = time.perf_counter_ns()
        for piece in data.split(MARK)[1:]:
            sent_ns, found, _ = piece.partition(b".")
            if found:
                self.delays_ms.append((now_ns - int(sent_ns)) / 1e6)
        if self._missing is None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 200 " not in head[:16]:
                self._finish(ConnectionError(self._head[:400].decode("utf-8", "replace")))
                return
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            self._missing = int(length) if length else -1
        if self._missing < 0:
            self._tail = (self._tail + data)[-7:]
            if self._tail.endswith(b"\r\n0\r\n\r\n"):
                self._finish(None)
            return
        self._missing -= len(data)
        if not self._missing:
            self._finish(None)

    async def exchange(self, request: bytes) -> float:
        """Return the milliseconds from the first byte out to the last byte in."""
        loop = asyncio.get_running_loop()
        for attempt in range(ATTEMPTS):
            if self._transport is None or self._transport.is_closing():
                # Some servers close what has been idle for some seconds.
                await loop.create_connection(lambda: self, "127.0.0.1", self._port)
            self._head = self._tail = b""
            self._missing: int | None = None
            self._done = loop.create_future()
            began = time.perf_counter_ns()
            try:
                assert self._transport is not None
                self._transport.write(request)
                await asyncio.wait_for(self._done, PATIENCE_S)
            except ConnectionError:
                if self._head or attempt == ATTEMPTS - 1:
                    raise
            else:
                return (time.perf_counter_ns() - began) / 1e6
        raise AssertionError("unreachable")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _finish(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)


async def connect(way: Way) -> Client:
    loop = asyncio.get_running_loop()
    client = Client(way.port)
    await loop.create_connection(lambda: client, "127.0.0.1", way.port)
    return client


# How often in a hundred rounds, and what is asked for.
CASES: dict[str, tuple[int, tuple[Any, ...], dict[str, bool]]] = {
    "small call": (100, ("plain",), {}),
    "200 events": (100, ("burst",), {"stream": True}),
    "500 kB request": (50, ("plain", 500_000), {}),
    "5 MB request": (10, ("plain", 5_000_000), {}),
}


async def one_at_a_time(ways: Sequence[Way], rounds: int) -> None:
    clients = [(way, await connect(way)) for way in ways]
    for case, (share, arguments, options) in CASES.items():
        count = max(rounds * share // 100, 10)
        times: dict[str, list[float]] = {way.name: [] for way in ways}
        for number in range(count + 5):
            for way, client in clients:
                if number >= 5 and number % SLOW.get(way.name, 1):
                    continue
                took = await client.exchange(way.request(*arguments, **options))
                if number >= 5:
                    times[way.name].append(took)
        direct = statistics.median(times[DIRECT])
        for way in ways:
            values = sorted(times[way.name])
            way.figures[f"{case}, p50 ms"] = statistics.median(values)
            way.figures[f"{case}, p99 ms"] = values[int(len(values) * 0.99)]
            way.figures[f"{case}, added p50 ms"] = statistics.median(values) - direct
    for _, client in clients:
        client.close()


async def one_after_another(way: Way, case: str, rounds: int) -> None:
    """Note the CPU of calls that follow each other on one connection."""
    share, arguments, options = CASES[case]
    count = max(rounds * share // 100, 10)
    request = way.request(*arguments, **options)
    client = await connect(way)
    await client.exchange(request)
    await settled(way)
    cpu_ms = way.cpu_ms()
    for _ in range(count):
        await client.exchange(request)
    await settled(way)
    keep(way, f"{case}, CPU ms/call", (way.cpu_ms() - cpu_ms) / count)
    client.close()


async def in_parallel(way: Way, streams: int, calls: int) -> None:
    """Have so many connections make calls one after another; note times, rate and CPU."""
    clients = [await connect(way) for _ in range(streams)]
    request = way.request("plain")
    each = max(calls // streams // SLOW.get(way.name, 1), 2)

    async def many(client: Client, count: int) -> list[float]:
        return [await client.exchange(request) for _ in range(count)]

    await asyncio.gather(*(many(client, 1) for client in clients))
    cpu_ms, began = way.cpu_ms(), time.perf_counter()
    found = await asyncio.gather(*(many(client, each) for client in clients))
    took_s = time.perf_counter() - began
    # What is recorded beside the stream belongs to it.
    await settled(way)
    times = sorted(time for values in found for time in values)
    keep(way, f"{streams} at once, p50 ms", statistics.median(times))
    keep(way, f"{streams} at once, p99 ms", times[int(len(times) * 0.99)])
    keep(way, f"{streams} at once, calls/s", len(times) / took_s)
    keep(way, f"{streams} at once, CPU ms/call", (way.cpu_ms() - cpu_ms) / len(times))
    for client in clients:
        client.close()


async def paced(way: Way, streams: int) -> None:
    """Have so many streams of events at once, and note by how much each event is late."""
    clients = [await connect(way) for _ in range(streams)]
    request = way.request("paced", stream=True)
    for _ in range(max(1, 16 // streams)):
        await asyncio.gather(*(client.exchange(request) for client in clients))
    delays = sorted(delay for client in clients for delay in client.delays_ms)
    assert len(delays) >= streams * PACED_EVENTS * 0.9, f"{way.name}: events are missing"
    keep(way, f"{streams} streams, event late by p50 ms", statistics.median(delays))
    keep(way, f"{streams} streams, event late by p99 ms", delays[int(len(delays) * 0.99)])
    for client in clients:
        client.close()


def keep(way: Way, name: str, value: float) -> None:
    """Note the median over the rounds so far."""
    seen = SEEN.setdefault((way.name, name), [])
    seen.append(value)
    way.figures[name] = statistics.median(seen)


SEEN: dict[tuple[str, str], list[float]] = {}


async def settled(way: Way) -> None:
    """Wait until a gateway has nothing more to do."""
    before = -1.0
    while (now := way.cpu_ms()) - before > 1:
        before = now
        await asyncio.sleep(0.2)


async def measure(ways: Sequence[Way], rounds: int) -> None:
    for way in ways:
        way.figures["RSS before, MB"] = way.memory_mb()
    await one_at_a_time(ways, rounds)
    gave_up: set[tuple[str, int]] = set()
    for number in range(3):
        if number == 1:
            # Now all buffers are as large as they get.
            for way in ways:
                way.figures["RSS after a round, MB"] = way.memory_mb()
        for way, case in [(way, case) for case in CASES for way in ways]:
            if way.process is not None and way.name not in SLOW:
                await one_after_another(way, case, rounds)
        for way, streams in [(way, streams) for streams in (1, 16, 100) for way in ways]:
            if (way.name, streams) in gave_up:
                continue
            try:
                # Longer than recording may wait for a pause.
                await in_parallel(way, streams, rounds * 30)
                if way.name not in SLOW or streams < 100:
                    await paced(way, streams)
            except (TimeoutError, ConnectionError) as error:
                if way.name in (DIRECT, OURS, UVLOOP):
                    raise
                # What others cannot do shall not keep us from our own figures.
                sys.stdout.write(f"{way.name}, {streams} at once: {error!r}\n")
                gave_up.add((way.name, streams))
    for way in ways:
        await settled(way)
        way.figures["RSS after, MB"] = way.memory_mb()
        if way.home is not None:
            # Left where they are: ext4 is slow to make files for a minute after it deleted many.
            spool = Spool(way.home)
            way.figures["recorded"] = len(spool.read(limit=sys.maxsize))
            way.figures["files"] = spool.depth()


@contextmanager
def started(
    command: Sequence[str], env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def ways(folder: Path, *, rivals: bool) -> Iterator[list[Way]]:
    with ExitStack() as stack:
        here = Path(__file__).parent
        model = stack.enter_context(started([sys.executable, str(here / "model_server.py")]))
        upstream = port_told(model)
        found = [Way(DIRECT, upstream)]
        for name in (OURS, UVLOOP):
            home = folder / name.replace(", ", "-")
            loop = "uvloop" if name == UVLOOP else "asyncio"
            command = [
                sys.executable,
                "-c",
                OUR_GATEWAY,
                f"http://127.0.0.1:{upstream}",
                str(home),
                loop,
            ]
            process = stack.enter_context(started(command))
            found.append(Way(name, port_told(process), "/api/anthropic/v1/messages", process, home))
        for name, kind in (*FLOORS.values(), (THREADS, "threads")):
            pump = [sys.executable, str(here / "pump.py"), str(upstream), kind]
            process = stack.enter_context(started(pump))
            found.append(Way(name, port_told(process), process=process))
        if program := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
            port = free_port()
            config = folder / "nginx.conf"
            config.write_text(NGINX_CONFIG.format(folder=folder, port=port, upstream=upstream))
            process = stack.enter_context(started([program, "-c", str(config)]))
            found.append(Way(NGINX, port, process=process))
            wait_for(port)
        else:
            sys.stdout.write("nginx is not installed, so its rows are missing\n")
        if rivals:
            found += others(folder, upstream, stack)
        yield found


def others(folder: Path, upstream: int, stack: ExitStack) -> Iterator[Way]:
    port = free_port()
    config = folder / "respan.toml"
    config.write_text(
        f'listen = "127.0.0.1:{port}"\n[providers.anthropic]\nvendor = "anthropic"\n'
        f'base_url = "http://127.0.0.1:{upstream}"\nkey = "sk-upstream"\n'
    )
    env = {**os.environ, "RESPAN_CONFIG": str(config), "RESPAN_LOG": "off"}
    process = stack.enter_context(started([str(installed(RESPAN_GATEWAY)), "serve"], env))
    wait_for(port)
    yield Way(RESPAN, port, process=process)
    port = free_port()
    model = {
        "model": "anthropic/claude-*",
        "api_base": f"http://127.0.0.1:{upstream}",
        "api_key": "sk-upstream",
    }
    config = folder / "litellm.yaml"
    # JSON is YAML.
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": "claude-*", "litellm_params": model}],
                "general_settings": {"master_key": "sk-bench"},
            }
        )
    )
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(folder)}
    command = [str(installed(LITELLM)), "--config", str(config), "--host", "127.0.0.1"]
    process = stack.enter_context(started([*command, "--port", str(port)], env))
    wait_for(port, "/health/liveliness")
    yield Way("litellm", port, process=process)


def port_told(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args} did not start")
    return int(line.strip().rpartition(b":")[2])


def wait_for(port: int, path: str | None = None) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        try:
            if path is None:
                socket.create_connection(("127.0.0.1", port)).close()
            else:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"nothing answers at port {port}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def reaches(found: Sequence[Way]) -> list[Reach]:
    by_name = {way.name: way.figures for way in found}
    rows = []
    for ours in (OURS, UVLOOP):
        mine = by_name[ours]
        if NGINX in by_name:
            limit = by_name[NGINX]
            for case, most in (
                ("small call, added p50 ms", 2),
                ("500 kB request, added p50 ms", 2),
                ("5 MB request, added p50 ms", 2),
                ("16 at once, p50 ms", 2),
                ("100 at once, p50 ms", 2),
                ("200 events, p50 ms", 2),
                ("small call, CPU ms/call", 3),
                ("500 kB request, CPU ms/call", 3),
                ("5 MB request, CPU ms/call", 3),
                ("200 events, CPU ms/call", 3),
                ("16 at once, CPU ms/call", 3),
                ("100 at once, CPU ms/call", 3),
            ):
                # Where nginx adds nothing that can be told from noise, a ratio says nothing.
                ratio = mine[case] / max(limit[case], 0.005)
                rows.append(Reach(f"{ours} / nginx: {case}", ratio, at_most=most))
        floor, _ = FLOORS[ours]
        for case in (
            "small call, added p50 ms",
            "500 kB request, added p50 ms",
            "5 MB request, added p50 ms",
            "16 at once, p50 ms",
            "500 kB request, CPU ms/call",
            "16 at once, CPU ms/call",
            "100 at once, CPU ms/call",
        ):
            ratio = mine[case] / max(by_name[floor][case], 0.005)
            rows.append(Reach(f"{ours} / {floor}: {case}", ratio, at_most=1.5))
        if "respan-gateway" in by_name:
            other = by_name["respan-gateway"]
            rows += [
                Reach(f"{ours} / respan-gateway: {case}", mine[case] / other[case])
                for case in ("small call, added p50 ms", "16 at once, CPU ms/call")
            ]
        if "litellm" in by_name:
            ratio = (
                by_name["litellm"]["small call, added p50 ms"] / mine["small call, added p50 ms"]
            )
            rows.append(Reach(f"litellm / {ours}: small call, added p50", ratio, at_least=30))
        grown = mine["RSS after, MB"] - mine["RSS after a round, MB"]
        rows.append(Reach(f"{ours}: RSS grown by two more rounds", grown, "MB", at_most=10))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        ways(Path(folder), rivals=options.rivals) as found,
    ):
        try:
            import uvloop  # an extra
        except ImportError:
            asyncio.run(measure(found, options.rounds))
        else:
            uvloop.run(measure(found, options.rounds))
    names = dict.fromkeys(name for way in found for name in way.figures)
    sys.stdout.write(f"{'':40}" + "".join(f"{way.name:>15}" for way in found) + "\n")
    for name in names:
        cells = (f"{way.figures[name]:15.3f}" if name in way.figures else " " * 15 for way in found)
        sys.stdout.write(f"{name:40}{''.join(cells)}\n")
    tell(reaches(found), {way.name: way.figures for way in found}, options.json)


if __name__ == "__main__":
    main()

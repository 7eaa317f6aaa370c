"""What a relay passes on per second of a core, against protobuf's own parsing and serialising.

    python tests/bench/bench_relay.py [--batches 60] [--rounds 3] [--json FILE]

Relays are processes with a Redis between them, as in life; a process of its own stands for the
backend. Counted is the CPU time that the relays take, with all of their HTTP and the index; so the
figure is that of a core, and on a machine of two, where sender and backend need one, two replicas can
be compared with one. The floor is `SerializeToString(FromString(request))` of the same requests, in
the same run and in CPU time too. Beside it stand processes that do less than a relay must, with the
same server, client and loop: one that posts on what it receives, one that parses and serialises it in
between, and one that besides gives each span another trace id, a parent, an attribute and a link.
Nothing that takes OTLP over HTTP in Python and answers for it is faster than these.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from redis_server import RedisServer

from tests.bench.bench_delivery import RECEIVER
from tests.bench.runner import Reach, tell
from tracebridge.encode import encode_span, export_request
from tracebridge.ids import root_span_id, span_id, trace_id
from tracebridge.model import Span, SpanKind

NOW = 1_795_000_000_000_000_000
SPANS_PER_BATCH = 512
SPANS_PER_TURN, CALLS_PER_TURN = 20, 5
SPANS_PER_CALL = 6
SAID = "the user's words, and those of the model, at some length. "
# Of a watcher's span: as many and as long as those of a real `chat` span.
ATTRIBUTES = {f"tracebridge.attribute.{n}": f"value number {n} of this span" for n in range(30)} | {
    f"gen_ai.usage.{n}": n * 1000 for n in range(8)
}
REACH = 0.5
WORDY = "gateways' with 20 kB of text a call"
ONE, TWO, PROTOBUF = "one replica", "two replicas", "protobuf"


def watchers(numbers: Iterator[int]) -> bytes:
    """Return what a watcher sends: whole turns, with the attributes of real spans."""
    spans = []
    while len(spans) < SPANS_PER_BATCH:
        turn = next(numbers)
        trace = trace_id("claude-code", f"session-{turn}", "prompt")
        for number in range(SPANS_PER_TURN):
            is_call = number < CALLS_PER_TURN
            response = f"msg_{turn:020}x{number}"
            extra = {"gen_ai.response.id": response} if is_call else {}
            spans.append(
                Span(
                    trace_id=trace,
                    span_id=span_id(trace, "llm" if is_call else "tool", response),
                    parent_span_id=root_span_id(trace),
                    name="chat claude-opus-5" if is_call else "execute_tool Edit",
                    kind=SpanKind.CLIENT,
                    start_ns=NOW,
                    end_ns=NOW + number,
                    attributes={**ATTRIBUTES, **extra},
                )
            )
    resource = (("service.name", "claude-code"), ("telemetry.distro.name", "tracebridge"))
    return export_request({resource: [encode_span(span) for span in spans]})


def gateway(numbers: Iterator[int], *, keys: bool, said: str = "") -> bytes:
    """Return what LiteLLM's second OpenTelemetry version sends: six spans a call, one a chat."""
    chance = random.Random(1)
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    _add(group.resource.attributes, {"service.name": "litellm", "telemetry.sdk.language": "python"})
    scope = group.scope_spans.add()
    scope.scope.name = "litellm"
    while len(scope.spans) < SPANS_PER_BATCH:
        call = next(numbers)
        trace = call.to_bytes(16, "big")
        for index in range(SPANS_PER_CALL):
            span = scope.spans.add(
                trace_id=trace,
                span_id=(call * SPANS_PER_CALL + index + 1).to_bytes(8, "big"),
                parent_span_id=(call * SPANS_PER_CALL + 1).to_bytes(8, "big") if index else b"",
                name=NAMES[index],
                kind=2 if index == 0 else 1,
                start_time_unix_nano=NOW + call,
                end_time_unix_nano=NOW + call + index,
                flags=0x101,
            )
            _add(span.attributes, _attributes(index, call, chance, keys=keys, said=said))
    return request.SerializeToString()


NAMES = (
    "POST /v1/messages",
    "fastapi.dependencies",
    "auth /v1/messages",
    "fastapi.endpoint",
    "route claude-opus-5",
    "chat claude-opus-5",
)


def _attributes(
    index: int, call: int, chance: random.Random, *, keys: bool, said: str
) -> dict[str, Any]:
    if index == 0:
        return {
            "http.request.method": "POST",
            "url.path": "/v1/messages",
            "http.route": "/v1/messages",
            "http.response.status_code": 200,
            "server.address": "127.0.0.1",
            "server.port": 4000,
            "client.address": "127.0.0.1",
            "client.port": chance.randrange(1024, 65536),
            "user_agent.original": "claude-cli/2.1.329 (external, cli)",
        }
    if index < SPANS_PER_CALL - 1:
        return {
            "code.function.name": f"litellm.proxy.step_{index}",
            "litellm.route": "/v1/messages",
        }
    sent = {
        "http.request.header.x-claude-code-session-id": f"2e23f0a0-0000-4000-8000-{call:012}",
        "http.request.header.x-claude-code-prompt-id": f"5d00821f-0000-4000-8000-{call:012}",
    }
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-opus-5",
        "gen_ai.response.model": "claude-opus-5",
        # Those that a watcher told of, where there are no keys.
        "gen_ai.response.id": f"msg_{call // CALLS_PER_TURN:020}x{call % CALLS_PER_TURN}",
        "gen_ai.conversation.id": f"2e23f0a0-0000-4000-8000-{call:012}",
        "litellm.call_id": f"{call:032x}",
        "gen_ai.usage.input_tokens": chance.randrange(1, 100_000),
        "gen_ai.usage.output_tokens": chance.randrange(1, 5000),
        "gen_ai.usage.cache_read.input_tokens": chance.randrange(1, 100_000),
        "gen_ai.usage.cache_creation.input_tokens": 0,
        "gen_ai.request.stream": 1,
        "server.address": "api.anthropic.com",
        **(sent if keys else {}),
        **(
            {"gen_ai.input.messages": f"{call} {said}", "gen_ai.output.messages": said}
            if said
            else {}
        ),
    }


def _add(holder: Any, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        added = holder.add(key=name).value
        if isinstance(value, int):
            added.int_value = value
        else:
            added.string_value = value


def cpu_seconds(pid: int) -> float:
    # By the scheduler's account, in nanoseconds: clock ticks are as long as a dozen requests.
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def floor(requests: Sequence[bytes]) -> float:
    """Return the CPU seconds in which protobuf parses and serialises *requests*."""
    began = time.process_time()
    for request in requests:
        ExportTraceServiceRequest.FromString(request).SerializeToString()
    return time.process_time() - began


@contextmanager
def backend() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


# In argv: where to post, what to do.
LESS = """
import asyncio, sys
import aiohttp
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

URL, DO = sys.argv[1:]

def work(request):
    if DO == "pass on":
        return request
    message = ExportTraceServiceRequest.FromString(request)
    if DO == "move":
        for resource in message.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    before = span.trace_id
                    span.links.add(trace_id=before, span_id=span.span_id)
                    moved = span.attributes.add(key="tracebridge.original.trace_id")
                    moved.value.string_value = before.hex()
                    span.trace_id = before[::-1]
                    span.parent_span_id = span.parent_span_id or before[:8]
    return message.SerializeToString()

async def main():
    headers = {"content-type": "application/x-protobuf"}
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers)
    async def take(request):
        body = await request.read()
        async with session.post(URL + "/v1/traces", data=work(body)) as response:
            await response.read()
        return web.Response(content_type="application/x-protobuf")
    application = web.Application(client_max_size=2**30)
    application.router.add_post("/v1/traces", take)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""
# What they do, by how they are called in the results.
LESSER = {
    "aiohttp alone": "pass on",
    "aiohttp and protobuf": "parse",
    "aiohttp, protobuf, each span changed": "move",
}


@contextmanager
def lesser(to: str) -> Iterator[dict[str, tuple[int, int]]]:
    """Yield process id and port of each, by its name."""
    processes = {
        name: subprocess.Popen([sys.executable, "-c", LESS, to, what], stdout=subprocess.PIPE)
        for name, what in LESSER.items()
    }
    try:
        yield {name: (each.pid, _port(each)) for name, each in processes.items()}
    finally:
        for each in processes.values():
            each.kill()
            each.wait()


@contextmanager
def relays(count: int, to: str, redis: str) -> Iterator[list[tuple[int, int]]]:
    """Yield process id and port of each."""
    command = [sys.executable, "-m", "tracebridge", "relay", "--listen", "127.0.0.1:0", "--to", to]
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as home:
        env = {"TRACEBRIDGE_HOME": home, "HOME": home, "PATH": os.defpath}
        try:
            processes += [
                subprocess.Popen([*command, "--redis", redis], env=env, stdout=subprocess.PIPE)
                for _ in range(count)
            ]
            yield [(each.pid, _port(each)) for each in processes]
        finally:
            for each in processes:
                each.kill()
                each.wait()


def _port(relay: subprocess.Popen[bytes]) -> int:
    assert relay.stdout is not None
    return int(relay.stdout.readline().decode().rpartition(":")[2])


def send(port: int, requests: Sequence[bytes]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for request in requests:
        headers = {"content-type": "application/x-protobuf"}
        connection.request("POST", "/v1/traces", request, headers)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200 or said:
            raise RuntimeError(f"HTTP {answer.status}: {said[:200]!r}")
    connection.close()


def relay(replicas: Sequence[tuple[int, int]], requests: Sequence[bytes]) -> float:
    """Return the CPU seconds that all replicas together take for *requests*."""
    began = sum(cpu_seconds(pid) for pid, _ in replicas)
    senders = [
        threading.Thread(target=send, args=(port, requests[place :: len(replicas)]))
        for place, (_, port) in enumerate(replicas)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return sum(cpu_seconds(pid) for pid, _ in replicas) - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # Of each kind new ones in each round; a response id that nobody told of would wait.
    turns, joined, keyed, wordy = (iter(range(1, 10**9)) for _ in range(4))
    next(joined)
    kinds: dict[str, Callable[[], bytes]] = {
        "watchers' spans": lambda: watchers(turns),
        "gateways', by response id": lambda: gateway(joined, keys=False),
        "gateways', by keys": lambda: gateway(keyed, keys=True),
        WORDY: lambda: gateway(wordy, keys=True, said=SAID * 170),
    }
    # Spans per second of a core, by kind and who.
    rates: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in kinds}
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Path(folder)) as redis,
        backend() as to,
        relays(1, to, redis.url) as one,
        relays(2, to, redis.url) as two,
        lesser(to) as others,
    ):
        joined = iter(range(CALLS_PER_TURN, 10**9))
        for number in range(options.rounds + 1):
            # The first is for imports and caches.
            batches = options.batches if number else 4
            for name, make in kinds.items():
                few = max(batches // (10 if name == WORDY else 1), 2)
                seconds = {}
                for who, replicas in ((ONE, one), (TWO, two)):
                    requests = [make() for _ in range(few)]
                    seconds[who] = relay(replicas, requests)
                    seconds[f"{PROTOBUF}, {who}"] = floor(requests)
                for who, process in others.items():
                    seconds[who] = relay([process], requests)
                for who, took in seconds.items():
                    if number:
                        rates[name][who].append(few * SPANS_PER_BATCH / took)
    reaches = []
    for name, by_who in rates.items():
        medians = {who: statistics.median(each) for who, each in by_who.items()}
        least = medians[f"{PROTOBUF}, {ONE}"]
        told = ", ".join(f"{who} {rate:,.0f}" for who, rate in medians.items())
        sys.stdout.write(f"{name}, spans/s of a core: {told}\n")
        reaches.append(Reach(f"{name} / protobuf", medians[ONE] / least, at_least=REACH))
        reaches += [Reach(f"  {who} / protobuf", medians[who] / least) for who in LESSER]
        reaches.append(Reach("  per core of two / of one", medians[TWO] / medians[ONE]))
    tell(reaches, {"spans_per_core_second": rates}, options.json)


if __name__ == "__main__":
    main()

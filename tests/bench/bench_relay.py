"""What a relay passes on per second of a core, against protobuf's own parsing and serialising.

    python tests/bench/bench_relay.py [--batches 60] [--rounds 3] [--json FILE]

Relays are processes with a Redis between them, as in life; a process of its own stands for the
backend. Counted is the CPU time that the relays take, with all of their HTTP and the index; so the
figure is that of a core, and on a machine of two, where sender and backend need one, two replicas can
be compared with one. The floor is `SerializeToString(FromString(request))` of the same requests, in
the same run and in CPU time too: nobody who looks into a request at all does less in Python.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from redis_server import RedisServer

from tests.bench.bench_delivery import ATTRIBUTES, RECEIVER
from tests.bench.runner import Reach, tell
from tracebridge.encode import encode_span, export_request
from tracebridge.ids import root_span_id, span_id, trace_id
from tracebridge.model import Span, SpanKind

NOW = 1_795_000_000_000_000_000
SPANS_PER_BATCH = 512
SPANS_PER_TURN, CALLS_PER_TURN = 20, 5
SPANS_PER_CALL = 6
SAID = "the user's words, and those of the model, at some length. "
TICKS = os.sysconf("SC_CLK_TCK")
REACH = 0.5


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
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


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
        "gateways' with 20 kB of text a call": lambda: gateway(wordy, keys=True, said=SAID * 170),
    }
    rates: dict[tuple[str, int], list[float]] = {}
    floors: dict[str, list[float]] = {name: [] for name in kinds}
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Path(folder)) as redis,
        backend() as to,
        relays(1, to, redis.url) as one,
        relays(2, to, redis.url) as two,
    ):
        joined = iter(range(CALLS_PER_TURN, 10**9))
        for number in range(options.rounds + 1):
            # The first is for imports and caches.
            batches = options.batches if number else 4
            for name, make in kinds.items():
                for replicas in (one, two):
                    few = (
                        batches if name != "gateways' with 20 kB of text a call" else batches // 10
                    )
                    requests = [make() for _ in range(max(few, 2))]
                    took = relay(replicas, requests)
                    least = floor(requests)
                    if number:
                        spans = len(requests) * SPANS_PER_BATCH
                        rates.setdefault((name, len(replicas)), []).append(spans / took)
                        floors[name].append(spans / least)
    reaches = []
    for name in kinds:
        least = statistics.median(floors[name])
        single, double = (statistics.median(rates[name, count]) for count in (1, 2))
        sys.stdout.write(
            f"{name:38} {single:9.0f} spans/s of a core, {double:9.0f} with two replicas, "
            f"protobuf {least:9.0f}\n"
        )
        reaches.append(Reach(f"{name} / protobuf", single / least, at_least=REACH))
        reaches.append(Reach(f"{name}, per core of two / of one", double / single))
    details = {
        "spans_per_core_second": {f"{name}, {n} replicas": r for (name, n), r in rates.items()},
        "protobuf": floors,
    }
    tell(reaches, details, options.json)


if __name__ == "__main__":
    main()

"""Spans encoded and acknowledged at a loopback receiver, ours against OpenTelemetry's own SDK.

    python tests/bench/bench_delivery.py [--spans 5000] [--rounds 5] [--json FILE]

Both have the same finished spans, with the same attributes, and count until the receiver, a process
of its own, has acknowledged the last. Ours go by way of the outbox in SQLite: once with a commit, and
so a wait for the disk, after each turn of twenty spans, as in life; once with one for all, as a
backlog goes out. The SDK's are kept in memory, and lost if the process ends.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from runner import Reach, tell

from tracebridge.delivery import SPANS_PER_BATCH, deliver
from tracebridge.encode import encode_span
from tracebridge.model import Span, SpanKind
from tracebridge.settings import read_settings
from tracebridge.sinks import OutboxSpan, configured_sinks
from tracebridge.spans import resource_of
from tracebridge.store import Store

COMMITS = {"tracebridge, a commit for each turn": 20, "tracebridge, a backlog": 1_000_000}
IN_MEMORY = "tracebridge, without its outbox"
RECEIVER = """
import asyncio

class Receiver(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data += data
        while (end := self.data.find(b"\\r\\n\\r\\n")) >= 0:
            head = self.data[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\\r\\n")[0])
            if len(self.data) < end + 4 + length:
                return
            self.data = self.data[end + 4 + length :]
            self.transport.write(
                b"HTTP/1.1 200 OK\\r\\ncontent-type: application/x-protobuf\\r\\n"
                b"content-length: 0\\r\\n\\r\\n"
            )

async def main():
    server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
SPANS_PER_TURN = 20
START_NS = 1_790_000_000_000_000_000
# As many and as long as those of a real `chat` span.
ATTRIBUTES = {f"tracebridge.attribute.{n}": f"value number {n} of this span" for n in range(30)} | {
    f"gen_ai.usage.{n}": n * 1000 for n in range(8)
}


def spans(count: int) -> list[Span]:
    return [
        Span(
            trace_id=f"{n // SPANS_PER_TURN + 1:032x}",
            span_id=f"{n + 1:016x}",
            parent_span_id=None,
            name="chat model",
            kind=SpanKind.CLIENT,
            start_ns=START_NS + n,
            end_ns=START_NS + n + 1000,
            attributes=ATTRIBUTES,
        )
        for n in range(count)
    ]


def ours(count: int, place: Path, *, per_commit: int) -> float:
    """Return spans per second."""
    settings = read_settings({**os.environ, "TRACEBRIDGE_HOME": str(place)})
    (ready,) = configured_sinks(settings.env)
    batch = spans(count)
    with Store(place) as store:
        sink = ready.open()
        began = time.perf_counter()
        for first in range(0, count, per_commit):
            part = batch[first : first + per_commit]
            with store.transaction():
                for place_in_part in range(0, len(part), SPANS_PER_TURN):
                    turn = part[place_in_part : place_in_part + SPANS_PER_TURN]
                    store.offer(
                        turn[0].trace_id,
                        [(span.span_id, encode_span(span)) for span in turn],
                        resource_of("claude-code", turn, settings.resource),
                        [ready.name],
                    )
        report = deliver(store, ready.name, sink)
        took = time.perf_counter() - began
        sink.close()
    assert report.acknowledged == count, report
    return count / took


def without_outbox(count: int, place: Path) -> float:
    """Return spans per second of ours, kept in memory as the SDK's are: what the outbox costs."""
    settings = read_settings({**os.environ, "TRACEBRIDGE_HOME": str(place)})
    (ready,) = configured_sinks(settings.env)
    batch = spans(count)
    sink = ready.open()
    began = time.perf_counter()
    resource = resource_of("claude-code", batch, settings.resource)
    for first in range(0, count, SPANS_PER_BATCH):
        part = [
            OutboxSpan(
                span_id=span.span_id,
                trace_id=span.trace_id,
                resource=resource,
                data=encode_span(span),
            )
            for span in batch[first : first + SPANS_PER_BATCH]
        ]
        assert len(sink.send(part).acknowledged) == len(part)
    took = time.perf_counter() - began
    sink.close()
    return count / took


def theirs(count: int, endpoint: str) -> float:
    """Return spans per second."""
    provider = TracerProvider(resource=SdkResource.create({"service.name": "claude-code"}))
    exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=count + 1))
    tracer = provider.get_tracer("bench")
    began = time.perf_counter()
    for n in range(count):
        tracer.start_span("chat model", start_time=START_NS + n, attributes=ATTRIBUTES).end(
            START_NS + n + 1000
        )
    assert provider.force_flush(120_000)
    took = time.perf_counter() - began
    provider.shutdown()
    return count / took


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--spans", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    receiver = subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE)
    assert receiver.stdout is not None
    endpoint = f"http://127.0.0.1:{int(receiver.stdout.readline())}"
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    rates: dict[str, list[float]] = {name: [] for name in (*COMMITS, IN_MEMORY, "SDK")}
    try:
        for number in range(options.rounds + 1):
            measured = {}
            for name, per_commit in COMMITS.items():
                with tempfile.TemporaryDirectory() as folder:
                    measured[name] = ours(options.spans, Path(folder), per_commit=per_commit)
            with tempfile.TemporaryDirectory() as folder:
                measured[IN_MEMORY] = without_outbox(options.spans, Path(folder))
            measured["SDK"] = theirs(options.spans, endpoint)
            # The first is for imports and caches.
            for name, rate in measured.items() if number else ():
                rates[name].append(rate)
    finally:
        receiver.kill()
        receiver.wait()
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {name: rate / median["SDK"] for name, rate in median.items()}
    for name, rate in median.items():
        sys.stdout.write(f"{name:36} {rate:9.0f} spans/s {ratios[name]:6.2f}x\n")
    reaches = [
        Reach(f"{name} / SDK", ratios[name], at_least=4 if name in COMMITS else None)
        for name in (*COMMITS, IN_MEMORY)
    ]
    tell(reaches, {"spans_per_second": median}, options.json)


if __name__ == "__main__":
    main()

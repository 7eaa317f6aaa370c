"""Spans encoded and acknowledged at a loopback receiver, ours against OpenTelemetry's own SDK.

    python tests/bench/bench_delivery.py [--spans 5000] [--rounds 5] [--json FILE]

Both have the same finished spans, those of a recorded turn of each of the four agents again and again,
and count until the receiver, a process of its own, has acknowledged the last. Ours go by way of the
outbox in SQLite: once with a commit, and so a wait for the disk, after each turn, as in life; once
with one for all, as a backlog goes out. The SDK's are kept in memory, and lost if the process ends.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from runner import Reach, tell

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from recorded_turns import recorded_turns  # noqa: E402  # needs the path above

from tracebridge.delivery import SPANS_PER_BATCH, deliver  # noqa: E402
from tracebridge.encode import encode_span  # noqa: E402
from tracebridge.model import Span  # noqa: E402
from tracebridge.settings import read_settings  # noqa: E402
from tracebridge.sinks import OutboxSpan, configured_sinks  # noqa: E402
from tracebridge.spans import resource_of  # noqa: E402
from tracebridge.store import Store  # noqa: E402

RECORDED = ("claude-code/tools", "codex-cli/tools", "gemini-cli/tools", "opencode/tools")
# Turns per commit.
COMMITS = {"tracebridge, a commit for each turn": 1, "tracebridge, a backlog": 1_000_000}
IN_MEMORY = "tracebridge, without its outbox"
IN_A_FILE = "the same, each turn first synced to a file"
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
START_NS = 1_790_000_000_000_000_000
MINUTE_NS = 60_000_000_000


def turns(count: int) -> list[list[Span]]:
    """Return turns of so many spans in all."""
    found: list[list[Span]] = []
    missing = count
    for number, (turn, spans) in enumerate(itertools.cycle(recorded_turns(*RECORDED))):
        copy = list(copied(spans, number, START_NS + number * MINUTE_NS - turn.start_ns))
        found.append(copy[:missing])
        missing -= len(found[-1])
        if not missing:
            break
    return found


def copied(spans: Sequence[Span], number: int, by_ns: int) -> Iterator[Span]:
    """Yield the same spans in a trace of their own at another time."""
    for span in spans:
        parent = span.parent_span_id
        yield replace(
            span,
            trace_id=f"{number + 1:032x}",
            span_id=f"{number + 1:08x}{span.span_id[:8]}",
            parent_span_id=parent and f"{number + 1:08x}{parent[:8]}",
            start_ns=span.start_ns + by_ns,
            end_ns=(span.end_ns or span.start_ns) + by_ns,
        )


def ours(batch: Sequence[Sequence[Span]], place: Path, *, per_commit: int) -> float:
    """Return spans per second."""
    settings = read_settings({**os.environ, "TRACEBRIDGE_HOME": str(place)})
    (ready,) = configured_sinks(settings.env)
    count = sum(map(len, batch))
    with Store(place) as store:
        sink = ready.open()
        began = time.perf_counter()
        for first in range(0, len(batch), per_commit):
            with store.transaction():
                for turn in batch[first : first + per_commit]:
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


def without_outbox(batch: Sequence[Sequence[Span]], place: Path, *, file: bool = False) -> float:
    """Return spans per second of ours, kept in memory as the SDK's are: what the outbox costs.

    With a *file*, each turn is appended to that and on the disk before any is sent: the floor of
    whatever loses nothing.
    """
    settings = read_settings({**os.environ, "TRACEBRIDGE_HOME": str(place)})
    (ready,) = configured_sinks(settings.env)
    sink = ready.open()
    waiting = []
    began = time.perf_counter()
    with (place / "waiting").open("wb", buffering=0) as journal:
        for turn in batch:
            resource = resource_of("claude-code", turn, settings.resource)
            encoded = [
                OutboxSpan(
                    span_id=span.span_id,
                    trace_id=span.trace_id,
                    resource=resource,
                    data=encode_span(span),
                )
                for span in turn
            ]
            waiting += encoded
            if file:
                journal.write(b"".join(span.data for span in encoded))
                os.fdatasync(journal.fileno())
    for first in range(0, len(waiting), SPANS_PER_BATCH):
        part = waiting[first : first + SPANS_PER_BATCH]
        assert len(sink.send(part).acknowledged) == len(part)
    took = time.perf_counter() - began
    sink.close()
    return len(waiting) / took


def theirs(batch: Sequence[Sequence[Span]], endpoint: str) -> float:
    """Return spans per second."""
    spans = list(itertools.chain(*batch))
    provider = TracerProvider(resource=SdkResource.create({"service.name": "claude-code"}))
    exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=len(spans) + 1))
    tracer = provider.get_tracer("bench")
    began = time.perf_counter()
    for span in spans:
        tracer.start_span(span.name, start_time=span.start_ns, attributes=span.attributes).end(
            span.end_ns
        )
    assert provider.force_flush(120_000)
    took = time.perf_counter() - began
    provider.shutdown()
    return len(spans) / took


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
    batch = turns(options.spans)
    rates: dict[str, list[float]] = {name: [] for name in (*COMMITS, IN_MEMORY, IN_A_FILE, "SDK")}
    try:
        for number in range(options.rounds + 1):
            measured = {}
            for name, per_commit in COMMITS.items():
                with tempfile.TemporaryDirectory() as folder:
                    measured[name] = ours(batch, Path(folder), per_commit=per_commit)
            for name, file in {IN_MEMORY: False, IN_A_FILE: True}.items():
                with tempfile.TemporaryDirectory() as folder:
                    measured[name] = without_outbox(batch, Path(folder), file=file)
            measured["SDK"] = theirs(batch, endpoint)
            # The first is for imports and caches.
            for name, rate in measured.items() if number else ():
                rates[name].append(rate)
    finally:
        receiver.kill()
        receiver.wait()
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {name: rate / median["SDK"] for name, rate in median.items()}
    for name, rate in median.items():
        sys.stdout.write(f"{name:42} {rate:9.0f} spans/s {ratios[name]:6.2f}x\n")
    reaches = [
        Reach(f"{name} / SDK", ratios[name], at_least=4 if name in COMMITS else None)
        for name in (*COMMITS, IN_MEMORY, IN_A_FILE)
    ]
    each_turn = next(iter(COMMITS))
    reaches.append(Reach(f"{each_turn} / {IN_A_FILE}", median[each_turn] / median[IN_A_FILE]))
    tell(reaches, {"spans_per_second": median}, options.json)


if __name__ == "__main__":
    main()

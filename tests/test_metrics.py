"""Metrics: each span counted once, under the conventions' names; nothing they meet stops a watcher."""

from __future__ import annotations

import gzip
import signal
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from recorded_turns import recorded_turns
from test_tree import span

from tracebridge import semconv
from tracebridge.metrics import Metrics, metrics_to
from tracebridge.store import Store
from tracebridge.totals import Totals, totals_of

LIMIT_S = 180
BEHAVIOURS = ("claude-code/tools", "codex-cli/tools", "gemini-cli/tools", "opencode/tools")


@pytest.fixture
def read():
    """Return metrics and a function that reads all their points by name."""
    reader = InMemoryMetricReader()
    metrics = Metrics(reader, lambda: 3, {})

    def points():
        found = {}
        data = reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    found[metric.name] = list(metric.data.data_points)
        return found

    yield metrics, points
    metrics.stop()


def tell(metrics, turns):
    for turn, spans in turns:
        metrics.told(turn.agent, spans, {each.span_id for each in spans})


def total(points, name):
    return sum(getattr(p, "value", None) or getattr(p, "sum", 0) for p in points.get(name, ()))


def test_counters_are_what_stats_say(read):
    """Tokens, cost, lines, calls and times of recorded turns of four agents."""
    metrics, points = read
    turns = recorded_turns(*BEHAVIOURS)
    tell(metrics, turns)
    found = points()
    truth = Totals()
    for _, spans in turns:
        truth.add(totals_of(spans, 0))
    usage = "gen_ai.client.inference.usage"
    assert total(found, f"{usage}.input_tokens") == truth.input_tokens
    assert total(found, f"{usage}.output_tokens") == truth.output_tokens
    assert total(found, f"{usage}.cache_read.input_tokens") == truth.cache_read_tokens
    assert total(found, "tracebridge.cost") == pytest.approx(truth.cost_usd)
    assert total(found, "tracebridge.edit.lines") == truth.lines_added + truth.lines_removed
    assert total(found, "gen_ai.invoke_agent.inference_calls") == truth.calls
    assert total(found, "gen_ai.invoke_agent.tool_calls") == truth.tool_calls
    assert total(found, "tracebridge.turn.time") == pytest.approx(
        (truth.model_ns + truth.tools_ns + truth.human_ns + truth.agent_ns) / 1e9
    )
    tools = sum(point.count for point in found["gen_ai.execute_tool.duration"])
    assert tools == truth.tool_calls
    agents = {p.attributes[semconv.AGENT_NAME] for p in found["gen_ai.invoke_agent.duration"]}
    assert agents == {"claude-code", "codex-cli", "gemini-cli", "opencode"}
    assert total(found, "tracebridge.spool.depth") == 3


def test_only_what_is_new_counts(read):
    """A turn that is told more of later counts what came later, and no more."""
    metrics, points = read
    ((turn, spans),) = recorded_turns("claude-code/tools")
    chats = {each.span_id for each in spans if each.attributes[semconv.SPAN_TYPE] == "llm"}
    first = min(chats)
    metrics.told(turn.agent, spans, chats - {first})
    metrics.told(turn.agent, spans, {first})
    metrics.told(turn.agent, spans, set())
    name = "gen_ai.client.inference.usage.input_tokens"
    assert total(points(), name) == spans[-1].attributes[semconv.TURN_INPUT_TOKENS]


def test_link_rate_and_hook_latency(read):
    """Calls that a gateway saw against those no turn claims; an event's way into the watcher."""
    metrics, points = read
    assert "tracebridge.link.rate" not in points()
    sources = ["gateway", "gateway+transcript", "gateway", "transcript"]
    chats = [
        span(str(n), "root", "chat m", 0, 1, SPAN_TYPE="llm", LLM_SOURCE=s, LINK_EVIDENCE="turn_id")
        for n, s in enumerate(sources)
    ]
    metrics.told("claude-code", chats, {chat.span_id for chat in chats})
    metrics.orphan("claude-code")
    metrics.hook_event("claude-code", 1_000_000, 4_000_000)
    metrics.hook_event("claude-code", 9_000_000, 4_000_000)
    found = points()
    assert total(found, "tracebridge.link.rate") == 0.75
    evidence = Counter(
        {p.attributes[semconv.LINK_EVIDENCE]: p.value for p in found["tracebridge.link.calls"]}
    )
    assert evidence == {"turn_id": 3, "orphan": 1}
    (latency,) = found["tracebridge.hook.latency"]
    # A clock that was set back is no negative time.
    assert (latency.count, latency.sum) == (2, pytest.approx(0.003))


def test_attributes_have_few_values(read):
    """No session, prompt, path, id or customer: a metric with those would cost its owner dearly."""
    metrics, points = read
    tell(metrics, recorded_turns(*BEHAVIOURS, "claude-code/permission_denied"))
    allowed = {
        semconv.AGENT_NAME,
        semconv.OPERATION,
        semconv.PROVIDER,
        semconv.REQUEST_MODEL,
        semconv.RESPONSE_MODEL,
        semconv.TOOL_NAME,
        semconv.ERROR_TYPE,
        semconv.LINK_EVIDENCE,
        "tracebridge.edit.change",
        "tracebridge.turn.spent_by",
    }
    for series in points().values():
        for point in series:
            assert set(point.attributes or ()) <= allowed


def test_odd_spans_count_nothing_and_raise_nothing(read):
    """Attributes of the wrong type, missing ends, unknown kinds."""
    metrics, points = read
    odd = [
        span("a", "root", "chat", 5, 1, SPAN_TYPE="llm", INPUT_TOKENS="many", OI_COST_TOTAL="much"),
        span("b", "root", "x", 0, None, SPAN_TYPE="something new"),
        span("c", "root", "edit", 0, None, SPAN_TYPE="edit", EDIT_LINES_ADDED=1.5),
        span("d", None, "turn", 0, None, SPAN_TYPE="turn", TURN_CALLS="x"),
        span("e", "nobody", "y", 0, None),
    ]
    metrics.told("a", odd, {each.span_id for each in odd})
    assert total(points(), "gen_ai.client.inference.usage.input_tokens") == 0


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_METRICS_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "TRACEBRIDGE_SINKS": "json_file:/x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        },
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://api.respan.ai/api"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "not a URL"},
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
            "OTEL_METRIC_EXPORT_INTERVAL": "soon",
        },
    ],
)
def test_no_endpoint_for_metrics_no_metrics(env):
    """Unset, switched off, for traces alone, or not usable: the watcher goes on without."""
    assert metrics_to(env, lambda: 0, {}) is None


class Backend:
    """An OTLP endpoint that takes metrics, answers as it is told, and keeps what came."""

    def __init__(self, status=200):
        self.names: set[str] = set()
        self._changed = threading.Condition()
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path.endswith("/metrics"):
                    message = ExportMetricsServiceRequest.FromString(body)
                    backend.take(self.path, self.headers.get("x-key"), message)
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.paths: set[str] = set()
        self.keys: set[str | None] = set()
        self.services: set[str] = set()

    def take(self, path, key, message):
        with self._changed:
            self.paths.add(path)
            self.keys.add(key)
            for resource in message.resource_metrics:
                self.services |= {
                    a.value.string_value
                    for a in resource.resource.attributes
                    if a.key == "service.name"
                }
                for scope in resource.scope_metrics:
                    self.names |= {metric.name for metric in scope.metrics}
            self._changed.notify_all()

    def wait_for(self, condition):
        with self._changed:
            assert self._changed.wait_for(condition, LIMIT_S), self.names

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(LIMIT_S)


def hook(home, event, **payload):
    """Give the real hook one event of a session."""
    known = {"session_id": "s-1", "prompt_id": "p-1", "hook_event_name": event, **payload}
    script = Path(__file__).parents[1] / "hooks" / "tracebridge_hook.py"
    subprocess.run(
        [sys.executable, script, "claude-code"],
        input=orjson.dumps(known),
        env={"TRACEBRIDGE_HOME": str(home), "TRACEBRIDGE_NO_WATCH": "1", "PATH": ""},
        check=True,
    )


def watching(home, **env):
    return subprocess.Popen(
        [sys.executable, "-m", "tracebridge", "watch"],
        env={"TRACEBRIDGE_HOME": str(home), "PATH": "", "HOME": str(home), **env},
        stderr=subprocess.PIPE,
    )


def end(process):
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=LIMIT_S)
    return process.returncode, errors.decode()


def test_a_watcher_sends_them_where_its_spans_go(home):
    """With the headers that were set, to the path of the specification, periodically."""
    with Backend() as backend:
        process = watching(
            home,
            OTEL_EXPORTER_OTLP_ENDPOINT=backend.url,
            OTEL_EXPORTER_OTLP_HEADERS="x-key=secret",
            OTEL_METRIC_EXPORT_INTERVAL="100",
        )
        try:
            hook(home, "UserPromptSubmit", prompt="hello")
            hook(home, "Stop", last_assistant_message="hi")
            backend.wait_for(
                lambda: (
                    {
                        "tracebridge.hook.latency",
                        "tracebridge.spool.depth",
                        "gen_ai.invoke_agent.duration",
                    }
                    <= backend.names
                )
            )
        finally:
            assert end(process) == (0, "")
        assert backend.paths == {"/v1/metrics"}
        assert backend.keys == {"secret"}
        assert backend.services == {"tracebridge"}


@pytest.mark.parametrize("status", [404, None])
def test_a_backend_that_wants_none_disturbs_nobody(home, status):
    """It refuses them, or is not there: turns are told, the log stays empty, the end is clean."""
    with Backend(status or 200) as backend:
        process = watching(
            home,
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=backend.url if status else "http://127.0.0.1:9",
            OTEL_METRIC_EXPORT_INTERVAL="50",
        )
        try:
            hook(home, "UserPromptSubmit", prompt="hello")
            hook(home, "Stop", last_assistant_message="hi")
            deadline = threading.Event()
            with Store(home) as store:
                for _ in range(LIMIT_S * 20):
                    if any(row.told for row in store.turns()):
                        break
                    deadline.wait(0.05)
                else:
                    pytest.fail("the turn was not told")
        finally:
            assert end(process) == (0, "")

"""Metrics of what the watcher tells, through the OpenTelemetry SDK, to where the spans go.

Names are the GenAI conventions' where they have one (state after 1.41), and ours below
`tracebridge.` where they have none. Attributes are few-valued: no session, prompt or path.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tracebridge import semconv
from tracebridge.model import AttributeValue, Span, Status
from tracebridge.time_spent import time_spent

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.sdk.metrics.export import MetricReader

# How long the watcher's end may wait for the last export.
LAST_EXPORT_MS = 2000
EXPORT_TIMEOUT_S = 3
OTLP = "OTEL_EXPORTER_OTLP_"
EXPORTER_LOGGERS = ("opentelemetry.exporter", "opentelemetry.sdk.metrics")
SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
LONG_SECONDS = (*SECONDS, 300, 1200, 3600, 14_400)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304)
SHORT_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 60)

logger = logging.getLogger(__name__)


class Metrics:
    """Count what is given to it; whoever reads is called by the SDK in a thread of its own."""

    def __init__(
        self, reader: MetricReader, spool_depth: Callable[[], int], resource: Mapping[str, str]
    ) -> None:
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415  # only where wanted
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  # as above

        self._provider = MeterProvider(
            [reader],
            # Not Resource.create(): it would read, and wait for, what belongs to other processes.
            resource=Resource({"service.name": "tracebridge", **resource}),
            shutdown_on_exit=False,
        )
        meter = self._provider.get_meter("tracebridge")

        def histogram(name: str, unit: str, buckets: tuple[float, ...], text: str = "") -> Record:
            made = meter.create_histogram(
                name, unit, text, explicit_bucket_boundaries_advisory=list(buckets)
            )
            return made.record

        def counter(name: str, unit: str, text: str = "") -> Record:
            return meter.create_counter(name, unit, text).add

        call = "gen_ai.client.inference"
        self._call_s = histogram(f"{call}.duration", "s", LONG_SECONDS)
        self._first_token_s = histogram(f"{call}.time_to_first_chunk", "s", SECONDS)
        self._tokens_per_call = {
            semconv.INPUT_TOKENS: histogram(f"{call}.operation.input_tokens", "{token}", TOKENS),
            semconv.OUTPUT_TOKENS: histogram(f"{call}.operation.output_tokens", "{token}", TOKENS),
        }
        self._usage = {
            name: counter(f"{call}.usage.{name.removeprefix('gen_ai.usage.')}", "{token}")
            for name in (
                semconv.INPUT_TOKENS,
                semconv.OUTPUT_TOKENS,
                semconv.CACHE_READ_TOKENS,
                semconv.CACHE_WRITE_TOKENS,
                semconv.REASONING_TOKENS,
            )
        }
        self._agent_s = histogram("gen_ai.invoke_agent.duration", "s", LONG_SECONDS)
        self._agent_calls = histogram("gen_ai.invoke_agent.inference_calls", "{call}", TOKENS)
        self._agent_tools = histogram("gen_ai.invoke_agent.tool_calls", "{call}", TOKENS)
        self._tool_s = histogram("gen_ai.execute_tool.duration", "s", LONG_SECONDS)
        self._cost = counter("tracebridge.cost", "USD", "at list prices")
        self._lines = counter("tracebridge.edit.lines", "{line}")
        self._wait_s = histogram("tracebridge.permission.wait", "s", LONG_SECONDS)
        self._spent_s = counter("tracebridge.turn.time", "s", "where turns spent their time")
        self._links = counter("tracebridge.link.calls", "{call}", "model calls by evidence")
        self._hook_s = histogram(
            "tracebridge.hook.latency", "s", SHORT_SECONDS, "from a hook event to the watcher"
        )
        self._linked: dict[bool, int] = {True: 0, False: 0}
        meter.create_observable_gauge("tracebridge.link.rate", [self._link_rate], "1")

        def depth(_: CallbackOptions) -> Iterable[Observation]:
            yield _observation(spool_depth())

        meter.create_observable_gauge("tracebridge.spool.depth", [depth], "{file}")

    def hook_event(self, agent: str, sent_ns: int, now_ns: int | None = None) -> None:
        """Count a hook event that has arrived."""
        took_ns = (time.time_ns() if now_ns is None else now_ns) - sent_ns
        self._hook_s(max(took_ns, 0) / 1e9, {semconv.AGENT_NAME: agent})

    def told(self, agent: str, spans: Iterable[Span], new: set[str]) -> None:
        """Count those spans of a turn that went out now, and were not told before."""
        spans = list(spans)
        for span in spans:
            if span.span_id in new:
                self._span(agent, span, spans)

    def orphan(self, agent: str) -> None:
        """Count a call that no turn claims."""
        self._linked[False] += 1
        self._links(1, {semconv.AGENT_NAME: agent, semconv.LINK_EVIDENCE: "orphan"})

    def stop(self) -> None:
        """Send what is left, if that is quick."""
        try:
            self._provider.shutdown(timeout_millis=LAST_EXPORT_MS)
        except Exception as error:  # noqa: BLE001  # whatever the SDK's parts raise, we are leaving
            logger.warning("metrics: the last export failed: %s", error)

    def _span(self, agent: str, span: Span, spans: list[Span]) -> None:
        took_s = max((span.end_ns or span.start_ns) - span.start_ns, 0) / 1e9
        known: dict[str, AttributeValue] = {semconv.AGENT_NAME: agent}
        if span.status is Status.ERROR:
            known[semconv.ERROR_TYPE] = span.attributes.get(semconv.ERROR_TYPE, "_OTHER")
        match span.attributes.get(semconv.SPAN_TYPE):
            case "llm":
                self._call(span, took_s, known)
            case "tool":
                name = span.attributes.get(semconv.TOOL_NAME, "unknown")
                self._tool_s(took_s, {**known, semconv.TOOL_NAME: name})
            case "permission":
                self._wait_s(took_s, known)
            case "edit":
                for change, name in (
                    ("added", semconv.EDIT_LINES_ADDED),
                    ("removed", semconv.EDIT_LINES_REMOVED),
                ):
                    if number := _number(span, name):
                        self._lines(number, {**known, "tracebridge.edit.change": change})
            case "turn":
                self._agent_s(took_s, known)
                self._agent_calls(_number(span, semconv.TURN_CALLS), known)
                self._agent_tools(_number(span, semconv.TURN_TOOL_CALLS), known)
                spent = time_spent(spans, span.end_ns or span.start_ns)
                for who in ("model", "tools", "human", "agent"):
                    if ns := getattr(spent, f"{who}_ns"):
                        self._spent_s(ns / 1e9, {**known, "tracebridge.turn.spent_by": who})
            case _:
                pass

    def _call(self, span: Span, took_s: float, known: dict[str, AttributeValue]) -> None:
        for name in (
            semconv.OPERATION,
            semconv.PROVIDER,
            semconv.REQUEST_MODEL,
            semconv.RESPONSE_MODEL,
        ):
            if name in span.attributes:
                known[name] = span.attributes[name]
        if semconv.START_UNKNOWN not in span.attributes:
            self._call_s(took_s, known)
        first_s = span.attributes.get(semconv.TIME_TO_FIRST_CHUNK)
        if isinstance(first_s, int | float):
            self._first_token_s(first_s, known)
        for name, add in self._usage.items():
            if number := _number(span, name):
                add(number, known)
        for name, record in self._tokens_per_call.items():
            if name in span.attributes:
                record(_number(span, name), known)
        cost = span.attributes.get(semconv.OI_COST_TOTAL)
        if isinstance(cost, int | float):
            self._cost(cost, known)
        evidence = span.attributes.get(semconv.LINK_EVIDENCE)
        if span.attributes.get(semconv.LLM_SOURCE) != "transcript" and evidence is not None:
            self._linked[True] += 1
            who = {semconv.AGENT_NAME: known[semconv.AGENT_NAME]}
            self._links(1, {**who, semconv.LINK_EVIDENCE: evidence})

    def _link_rate(self, _: CallbackOptions) -> Iterable[Observation]:
        whole = sum(self._linked.values())
        if whole:
            yield _observation(self._linked[True] / whole)


Record = Callable[[float, Mapping[str, AttributeValue]], None]


def metrics_to(
    env: Mapping[str, str], spool_depth: Callable[[], int], resource: Mapping[str, str]
) -> Metrics | None:
    """Return metrics on their way to the OTLP endpoint that *env* names; None if it names none.

    OTEL_METRICS_EXPORTER=none and OTEL_SDK_DISABLED=true turn them off, as the specification says.
    """
    off = env.get("OTEL_METRICS_EXPORTER", "").strip().lower() == "none"
    off = off or env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    sinks = [name.strip() for name in env.get("TRACEBRIDGE_SINKS", "").split(",") if name.strip()]
    # An endpoint in the environment may be meant for others where the sinks are named.
    wanted = not sinks or any(name.startswith(("otlp", "collector")) for name in sinks)
    named = env.get(f"{OTLP}METRICS_ENDPOINT") or (wanted and env.get(f"{OTLP}ENDPOINT"))
    if off or not named:
        return None
    try:
        return _metrics(env, spool_depth, resource)
    except Exception as error:  # noqa: BLE001  # metrics are never worth a watcher
        logger.warning("metrics are off: %s", error)
        return None


def _metrics(
    env: Mapping[str, str], spool_depth: Callable[[], int], resource: Mapping[str, str]
) -> Metrics | None:
    from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415  # 120 ms
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415
        OTLPMetricExporter,
    )
    from opentelemetry.sdk.metrics.export import (  # noqa: PLC0415  # as above
        PeriodicExportingMetricReader,
    )

    from tracebridge.sinks._otlp_settings import (  # noqa: PLC0415  # as above
        WireProtocol,
        is_respan,
        read_otlp_settings,
    )

    # One reader of these variables for both signals: it knows those of traces.
    own = {name: value for name, value in env.items() if not name.startswith(f"{OTLP}TRACES_")}
    for name in list(own):
        if name.startswith(f"{OTLP}METRICS_"):
            own[name.replace("_METRICS_", "_TRACES_")] = own.pop(name)
    settings = read_otlp_settings(own)
    if settings.protocol is WireProtocol.GRPC or is_respan(urlsplit(settings.endpoint)):
        return None
    endpoint = settings.endpoint
    if not own.get(f"{OTLP}TRACES_ENDPOINT"):
        endpoint = endpoint.removesuffix("/v1/traces") + "/v1/metrics"
    # A backend for traces alone answers 404 or 405 each minute; that is no news for a log.
    for name in EXPORTER_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    exporter = OTLPMetricExporter(
        endpoint=endpoint,
        headers=dict(settings.headers),
        certificate_file=str(settings.certificate) if settings.certificate else None,
        client_key_file=str(settings.client_key) if settings.client_key else None,
        client_certificate_file=(
            str(settings.client_certificate) if settings.client_certificate else None
        ),
        timeout=min(settings.timeout_s, EXPORT_TIMEOUT_S),
        compression=Compression.Gzip if settings.gzip else Compression.NoCompression,
    )
    pause_ms = float(env.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip() or 60_000)
    reader = PeriodicExportingMetricReader(
        exporter, export_interval_millis=pause_ms, export_timeout_millis=EXPORT_TIMEOUT_S * 1000
    )
    return Metrics(reader, spool_depth, resource)


def _observation(value: float) -> Observation:
    from opentelemetry.metrics import Observation  # noqa: PLC0415  # only where wanted

    return Observation(value)


def _number(span: Span, name: str) -> int:
    value = span.attributes.get(name)
    return value if isinstance(value, int) else 0

"""Small real receivers: oteltap, trace-view, and rotel as a collector on the way."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from backend_runs import Turns, answers, get, running, until
from beside import free_port
from pypi_programs import Program, installed

from tracebridge import semconv
from tracebridge.testing.receiver import Receiver

OTELTAP = Program("oteltap", "1.0.0", "bin/oteltap")
TRACE_VIEW = Program("trace-view", "0.1.0", "bin/tv")
ROTEL = Program("rotel", "0.0.1a15", "lib/{python}/site-packages/rotel/rotel-agent")


@contextmanager
def oteltap(folder: Path) -> Iterator[tuple[str, Path]]:
    """Give its address, and the file of JSON lines with what it received."""
    port = free_port()
    command = [installed(OTELTAP), "--port", str(port)]
    # Line by line, not when it ends.
    env = {"PYTHONUNBUFFERED": "1"}
    with running(command, folder, env, lambda: _listens(port)):
        yield f"http://127.0.0.1:{port}", folder / "log"


@contextmanager
def trace_view(folder: Path) -> Iterator[tuple[str, Path]]:
    """Give its address and its database."""
    port, database = free_port(), folder / "traces.db"
    command = [installed(TRACE_VIEW), "-p", str(port), "-d", database, "serve"]
    url = f"http://127.0.0.1:{port}"
    with running(command, folder, {}, lambda: answers(f"{url}/api/sessions")):
        yield url, database


@contextmanager
def rotel(folder: Path, to: str) -> Iterator[tuple[str, str]]:
    """Give its addresses for HTTP and gRPC; it sends on to *to*."""
    http, grpc = free_port(), free_port()
    command = [installed(ROTEL), "start", "--otlp-http-endpoint", f"127.0.0.1:{http}"]
    command += ["--otlp-grpc-endpoint", f"127.0.0.1:{grpc}", "--exporter", "otlp"]
    command += ["--otlp-exporter-endpoint", to, "--otlp-exporter-protocol", "http"]
    with running(command, folder, {}, lambda: _listens(http) and _listens(grpc)):
        yield f"http://127.0.0.1:{http}", f"http://127.0.0.1:{grpc}"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _received(log: Path) -> list[dict[str, Any]]:
    # The last line may be one that is just being written.
    lines = log.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line[0] == "{" and line[-1] == "\n"]


def test_oteltap_gets_what_was_exported_whenever_it_is_sent(turns: Turns, tmp_path):
    """Sent twice by the preset for a collector: the same spans, field by field the same."""
    with oteltap(tmp_path / "oteltap") as (url, log):
        for _ in range(2):
            turns.send("collector", OTEL_EXPORTER_OTLP_ENDPOINT=url)
        until(lambda: len(_received(log)) >= 2 * len(turns.spans), "oteltap lacks spans")
        found = _received(log)
    assert Counter(span["spanId"] for span in found) == Counter(
        [span.span_id for span in turns.spans] * 2
    )
    by_id = {}
    for span in found:
        assert by_id.setdefault(span["spanId"], span) == span
    for span in turns.spans:
        assert by_id[span.span_id]["name"] == span.name
        assert by_id[span.span_id]["parentSpanId"] == (span.parent or "")
        assert (by_id[span.span_id]["status"].get("code") == 2) == span.failed


def test_trace_view_shows_sessions_tokens_and_tools(turns: Turns, tmp_path):
    """As its own table has them: one row a span, calls with tokens, tools with name and id."""
    with trace_view(tmp_path / "tv") as (url, database):
        for _ in range(2):
            turns.send("collector", OTEL_EXPORTER_OTLP_ENDPOINT=url)

        def rows() -> list[tuple[Any, ...]]:
            with closing(sqlite3.connect(database)) as db:
                return db.execute(
                    "SELECT id, parent_span_id, session_id, kind, input_tokens, output_tokens,"
                    " tool_name, tool_call_id FROM spans"
                ).fetchall()

        events = 2
        until(lambda: len(rows()) >= len(turns.spans) + events, "trace-view lacks spans")
        # It also makes a row of each event on a span.
        shown = {row[0]: row[1:] for row in rows() if "-event-" not in row[0]}
        assert {session["id"] for session in get(f"{url}/api/sessions")} == turns.sessions
    assert shown.keys() == {span.span_id for span in turns.spans}
    for span in turns.spans:
        parent, session, kind, given, said, tool, call = shown[span.span_id]
        assert (parent, session) == (span.parent, span.attributes[semconv.SESSION_ID])
        if span.type == "llm":
            assert kind == "assistant"
            assert given == span.attributes.get(semconv.INPUT_TOKENS)
            assert said == span.attributes.get(semconv.OUTPUT_TOKENS)
        elif span.type == "tool":
            assert kind == "tool_call"
            assert tool == span.attributes[semconv.TOOL_NAME]
            assert call == span.attributes[semconv.TOOL_CALL_ID]
        else:
            assert (kind, given) == ("thinking" if span.type == "thinking" else "span", None)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_on_the_way_changes_nothing(turns: Turns, tmp_path, protocol):
    """What rotel sends on is what we sent: ids, parents, kinds, times, attributes."""
    with Receiver() as receiver, rotel(tmp_path / "rotel", receiver.endpoint) as (http, grpc):
        turns.send(
            "collector",
            OTEL_EXPORTER_OTLP_ENDPOINT=grpc if protocol == "grpc" else http,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        )
        until(lambda: len(receiver.spans) >= len(turns.spans), "rotel lacks spans")
        found = {span.span_id: span for span in receiver.spans}
    assert len(found) == len(turns.spans)
    for span in turns.spans:
        passed = found[span.span_id]
        assert passed.parent_span_id == (span.parent or "")
        assert (passed.trace_id, passed.name, passed.start_ns) == (
            span.trace_id,
            span.name,
            span.start_ns,
        )
        assert passed.attributes == span.attributes


def test_several_backends_at_once_have_the_same(turns: Turns, tmp_path):
    """One command, three sinks: a viewer, a receiver and a file."""
    file = tmp_path / "spans.jsonl"
    with oteltap(tmp_path / "oteltap") as (tap, log), trace_view(tmp_path / "tv") as (view, _):
        turns.send(f"otlp_http:{tap}", f"otlp_http:{view}", f"json_file:{file}")
        until(lambda: len(_received(log)) >= len(turns.spans), "oteltap lacks spans")
        until(
            lambda: {s["id"] for s in get(f"{view}/api/sessions")} == turns.sessions,
            "trace-view lacks sessions",
        )
    written = json.loads(file.read_text())
    ids = {
        span["spanId"]
        for resource in written["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    }
    assert ids == {span["spanId"] for span in _received(log)}

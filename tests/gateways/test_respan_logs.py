"""Respan's request logs, read on look by look from a stand-in of its API on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from beside import started
from claude_files import Claude, at, stamp
from hypothesis import given
from hypothesis import strategies as st

from tracebridge import semconv
from tracebridge.agents import Cursor
from tracebridge.fields import moment_of
from tracebridge.gateways.respan_logs import OVERLAP_NS, PAGE_SIZE, RespanLogs, RespanLogsError
from tracebridge.ids import root_span_id, trace_id
from tracebridge.model import CallIdentity, GatewayCall
from tracebridge.poller import LONGEST_PAUSE_S, PAUSE_S, pause_s
from tracebridge.settings import read_settings
from tracebridge.testing.receiver import Receiver
from tracebridge.views.status import status
from tracebridge.watch import watch_once

KEY = "sk-respan-0123456789"
MINUTE = 60 * 1_000_000_000


class RespanApi:
    """Serves rows as Respan does: by time and filters, oldest first, in pages."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.queries: list[dict[str, str]] = []
        self.keys: set[str] = set()
        # Answers to give instead, one by one: status, headers, body.
        self.instead: deque[tuple[int, dict[str, str], bytes]] = deque()
        self.dripping = False
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                api.keys.add(self.headers["authorization"])
                code, headers, data = api.answer(self.path, body)
                self.send_response(code)
                for name, value in {**headers, "content-length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(ConnectionError):
                    while api.dripping:
                        self.wfile.write(b" ")
                        time.sleep(0.02)
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # base class's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, body: dict) -> tuple[int, dict[str, str], bytes]:
        if self.instead:
            return self.instead.popleft()
        where = urlsplit(path)
        if where.path != "/api/request-logs/list/":
            return 404, {}, b"{}"
        query = {name: values[0] for name, values in parse_qs(where.query).items()}
        self.queries.append(query)
        begun, until = moment_of(query["start_time"]), moment_of(query["end_time"])
        rows = [row for row in self.rows if begun <= moment_of(row["timestamp"]) <= until]
        for field, wanted in body["filters"].items():
            rows = [row for row in rows if row.get(field) in wanted["value"]]
        size, page = int(query["page_size"]), int(query["page"])
        shown = rows[(page - 1) * size : page * size]
        following = "more" if page * size < len(rows) else None
        return (
            200,
            {},
            json.dumps({"count": len(rows), "next": following, "results": shown}).encode(),
        )


def row(name: str, seconds: float, **known) -> dict[str, Any]:
    return {
        "unique_id": name,
        "timestamp": stamp(seconds),
        "latency": 1.5,
        "model": "claude-opus-5",
        "log_type": "chat",
        "status_code": 200,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "prompt_cache_hit_tokens": 60,
        "customer_identifier": "me",
        **known,
    }


@pytest.fixture
def api():
    with RespanApi() as api:
        yield api


@pytest.fixture
def logs(api):
    return RespanLogs(api.url, KEY)


def names(reading) -> list[str]:
    return [call.response_headers["x-respan-log-id"] for call in reading.calls]


def test_each_log_comes_once(api, logs):
    """Look by look; a row that appears late, behind younger ones, is not missed."""
    api.rows = [row("one", 0), row("two", 60)]
    first = logs.read(Cursor(), at(70))
    assert names(first) == ["one", "two"]
    api.rows.insert(1, row("late", 30))
    api.rows.append(row("three", 80))
    second = logs.read(first.cursor, at(90))
    assert names(second) == ["late", "three"]
    third = logs.read(second.cursor, at(100))
    assert names(third) == []
    # What is older than any row may appear is not asked for again, and not remembered.
    later = logs.read(third.cursor, at(100) + 3 * OVERLAP_NS)
    assert logs.read(later.cursor, at(110) + 3 * OVERLAP_NS).cursor.memory == {}
    assert api.keys == {f"Bearer {KEY}"}


def test_what_a_row_says(api, logs):
    """Times, tokens and names stand in the call; texts are not even asked for."""
    api.rows = [
        row("one", 10, input="hush", output="hush", session_identifier="s", stream=True),
        row("two", 20, status_code=429, error_message="slow down", prompt_tokens=0),
        row("tool", 30, log_type="tool"),
    ]
    one, two = logs.read(Cursor(), at(40)).calls
    assert (one.start_ns, one.end_ns) == (at(8.5), at(10))
    assert (one.usage.input_tokens, one.usage.cache_read_tokens) == (100, 60)
    assert (one.gateway, one.client_name, one.conversation_id) == ("respan", "me", "s")
    assert (two.error_type, two.error_message, two.usage) == ("429", "slow down", None)
    assert "hush" not in repr(one)
    asked = set(api.queries[0]["include_fields"].split(","))
    assert {"unique_id", "timestamp"} <= asked
    assert not asked & {"input", "output", "full_request", "full_response", "prompt_messages"}


def test_pages(api, logs):
    """All pages of a window are read; of too many, the next look goes on where this one ended."""
    api.rows = [row(str(n), n / 100) for n in range(PAGE_SIZE * 2 + 1)]
    reading = logs.read(Cursor(), at(60))
    assert names(reading) == [str(n) for n in range(PAGE_SIZE * 2 + 1)]
    assert [query["page"] for query in api.queries] == ["1", "2", "3"]


def test_more_than_one_look_holds(api, logs, monkeypatch):
    """The rest comes with the next looks, each row once."""
    monkeypatch.setattr("tracebridge.gateways.respan_logs.MOST_PAGES", 2)
    seconds_per_row = OVERLAP_NS // 1_000_000_000 // 100
    api.rows = [row(str(n), n * seconds_per_row) for n in range(1000)]
    # As if it had been off for some days.
    cursor, found = Cursor(offset=at(0)), []
    now_ns = at(1001 * seconds_per_row)
    for _ in range(20):
        reading = logs.read(cursor, now_ns)
        found += names(reading)
        cursor = reading.cursor
    assert found == [str(n) for n in range(1000)]


def test_windows_reach_back_a_week_at_most(api, logs):
    """Whatever the cursor says: Respan gives no more."""
    logs.read(Cursor(offset=at(0)), at(30 * 86_400))
    (query,) = api.queries
    assert moment_of(query["end_time"]) - moment_of(query["start_time"]) == 7 * 86_400 * 10**9


def test_only_a_customer_s_own(api):
    """Others' calls stay out, whether Respan heeds the filter or not."""
    api.rows = [row("mine", 1), row("yours", 2, customer_identifier="you")]
    logs = RespanLogs(f"{api.url}/api/", KEY, "me")
    assert names(logs.read(Cursor(), at(10))) == ["mine"]
    body = json.dumps({"results": api.rows, "next": None}).encode()
    api.instead.append((200, {}, body))
    assert names(logs.read(Cursor(), at(10))) == ["mine"]


@pytest.mark.parametrize(
    ("answer", "said", "retry_after_s"),
    [
        ((401, {}, b"{}"), "status 401; check the key in respan_logs", None),
        ((429, {"retry-after": "7"}, b""), "status 429", 7),
        ((503, {"retry-after": "Wed, 21 Oct 2026"}, b""), "status 503", None),
        ((302, {"location": "http://evil.example/"}, b""), "status 302", None),
        ((200, {}, b"<html>"), "no list of logs", None),
        ((200, {}, b"[]"), "no list of logs", None),
        ((200, {"content-encoding": "gzip"}, b"\x1f\x8bnot"), "", None),
        ((200, {}, b'{"results": {}}'), "no list of logs", None),
    ],
)
def test_what_goes_wrong(api, logs, answer, said, retry_after_s):
    """Each failure is told with its remedy and without the key; the cursor stays where it was."""
    api.rows = [row("one", 0)]
    api.instead.append(answer)
    with pytest.raises(RespanLogsError) as caught:
        logs.read(Cursor(), at(10))
    assert said in str(caught.value)
    assert KEY not in str(caught.value)
    assert caught.value.retry_after_s == retry_after_s
    assert names(logs.read(Cursor(), at(10))) == ["one"]


def test_an_answer_that_drips(api, logs, monkeypatch):
    """Byte by byte it could go on for ever: at a time it is cut off, and comes again."""
    api.rows = [row("one", 0)]
    api.dripping = True
    with monkeypatch.context() as patience:
        patience.setattr("tracebridge.gateways.respan_logs._PAGE_S", 0.5)
        with pytest.raises(RespanLogsError):
            logs.read(Cursor(), at(10))
    api.dripping = False
    assert names(logs.read(Cursor(), at(10))) == ["one"]


def test_nobody_there():
    """A connection that is refused is one of them."""
    closed = RespanLogs("http://127.0.0.1:1", KEY)
    with pytest.raises(RespanLogsError, match=r"127\.0\.0\.1:1"):
        closed.read(Cursor(), at(10))


@given(
    rows=st.lists(
        st.dictionaries(
            st.sampled_from([*row("x", 0), "usage", "failed"]),
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(),
                st.text(),
                st.just([]),
                st.just({"a": 1}),
                st.floats(allow_nan=False, allow_infinity=False),
            ),
        ),
        max_size=4,
    )
)
def test_any_row(rows):
    """Whatever stands in rows, what comes of them are calls in order."""
    with RespanApi() as api:
        api.instead.append((200, {}, json.dumps({"results": rows}).encode()))
        logs = RespanLogs(api.url, KEY)
        for call in logs.read(Cursor(), at(10)).calls:
            assert 0 <= call.start_ns <= call.end_ns < 2**63


def test_pauses_grow():
    """They double with each failure, up to a limit, and are never shorter than what is asked."""
    assert pause_s(0, None) == PAUSE_S
    assert [pause_s(n, None) / PAUSE_S for n in (1, 2, 3)] == [2, 4, 8]
    assert pause_s(1000, None) == LONGEST_PAUSE_S
    assert pause_s(1, 100) == 100
    assert pause_s(1, 1e9) == LONGEST_PAUSE_S


@pytest.fixture
def configured(api, home, monkeypatch):
    monkeypatch.setenv("TRACEBRIDGE_RESPAN_LOGS", "ENV:RESPAN_LOG_KEY")
    monkeypatch.setenv("RESPAN_LOG_KEY", KEY)
    monkeypatch.setenv("RESPAN_BASE_URL", api.url)
    return home


def just_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 5))


def test_a_log_is_linked_by_the_turn_that_the_gateway_was_told(
    configured, api, tmp_path, monkeypatch
):
    """A log whose ids are those of a turn is that turn's call, and points at its row in Respan."""
    claude = Claude(configured, tmp_path)
    trace = trace_id("claude-code", claude.session, claude.turn)
    api.rows = [
        row("log-1", 3, trace_unique_id=trace, span_parent_id=root_span_id(trace)),
        row("log-2", 4),
    ]
    for each in api.rows:
        each["timestamp"] = just_now()
    claude.hook(0, "UserPromptSubmit", prompt="hi")
    claude.prompt_line(0, "hi")
    claude.hook(5, "Stop")
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        assert watch_once(read_settings())
        assert watch_once(read_settings())
        (chat,) = [span for span in receiver.spans if span.name.startswith("chat")]
    assert chat.trace_id == trace
    assert chat.attributes[semconv.RESPAN_GATEWAY_LOG_ID] == "log-1"
    assert chat.attributes[semconv.LINK_EVIDENCE] == "traceparent"
    links = status(read_settings())["links"]
    assert links["by_gateway"] == {"respan": {"traceparent": 1, "waiting": 1}}


def test_a_log_of_a_call_that_is_told_is_no_second_one(configured, api, tmp_path, monkeypatch):
    """Our gateway saw it, with the id of the log in the answer; the log comes when all is told."""
    claude = Claude(configured, tmp_path)
    claude.hook(0, "UserPromptSubmit", prompt="hi")
    claude.prompt_line(0, "hi")
    claude.answer_line(3, "msg_1", {"type": "text", "text": "hello"}, began=1)
    claude.hook(3, "Stop")
    claude.spool.write_call(
        GatewayCall(
            call_id="ours",
            gateway="tracebridge",
            method="POST",
            path="/api/anthropic/v1/messages",
            start_ns=at(1),
            end_ns=at(3),
            response_id="msg_1",
            response_headers={"x-respan-log-id": "log-1"},
            identity=CallIdentity(agent="claude-code", session_id=claude.session),
        )
    )
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        assert watch_once(read_settings())
        told = len(receiver.spans)
        # Found by its window of today, made at the time of the call.
        api.rows = [row("log-1", 3, timestamp=just_now(), start_time=stamp(1.5))]
        assert watch_once(read_settings())
        assert watch_once(read_settings(), close_open=True)
        assert len(receiver.spans) == told
    links = status(read_settings())["links"]
    assert (links["orphans"], links["waiting"]) == (0, 0)
    assert sum(links["by_gateway"]["respan"].values()) == 1


@pytest.mark.usefixtures("configured")
def test_failures_are_noted_and_hold_nothing_up(api):
    """Without a key, or while Respan refuses, all else goes on; then the logs come after all."""
    api.rows = [row("one", 1, timestamp=just_now())]
    api.instead.append((429, {}, b""))
    assert watch_once(read_settings())
    missing = {**os.environ, "RESPAN_LOG_KEY": ""}
    assert watch_once(read_settings(missing))
    notes = status(read_settings())["notes"]
    assert any("status 429" in note for note in notes)
    assert any("RESPAN_LOG_KEY" in note for note in notes)
    assert watch_once(read_settings())
    assert status(read_settings())["links"]["waiting"] == 1
    assert KEY not in json.dumps(status(read_settings()))


def test_a_running_watcher_asks_by_itself(api, monkeypatch):
    """Nobody has to ask it to."""
    monkeypatch.setenv("TRACEBRIDGE_RESPAN_LOGS", "ENV:RESPAN_LOG_KEY")
    monkeypatch.setenv("RESPAN_LOG_KEY", KEY)
    monkeypatch.setenv("RESPAN_BASE_URL", api.url)
    api.rows = [row("one", 0, timestamp=just_now())]
    with started([sys.executable, "-m", "tracebridge", "watch"], stdin=subprocess.DEVNULL):
        deadline = time.monotonic() + 180
        while status(read_settings())["links"]["waiting"] != 1:
            assert time.monotonic() < deadline, "no call of the log"
            time.sleep(0.02)


def test_without_the_setting_nobody_is_asked(api, home, monkeypatch):
    """A key for sending alone is none for reading; nor may a project's environment say so."""
    monkeypatch.setenv("RESPAN_API_KEY", KEY)
    monkeypatch.setenv("RESPAN_BASE_URL", api.url)
    assert watch_once(read_settings())
    monkeypatch.setenv("TRACEBRIDGE_RESPAN_LOGS", "CMD:touch broken-in")
    assert watch_once(read_settings(file_first=True))
    assert api.queries == []
    assert home.exists()

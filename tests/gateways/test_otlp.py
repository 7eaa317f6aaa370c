"""The OTLP receiver on the gateway's port: what it takes, what it keeps, and what it refuses."""

import asyncio
import contextlib
import gzip
import json
import queue
import socket
import threading

import pytest
from exports import documents, message
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.gateways.conftest import LIMIT_SECONDS
from tracebridge.gateways.otlp import BODY_LIMIT, log_records, parse_export, reduce
from tracebridge.gateways.proxy import GatewayOptions, serve
from tracebridge.model import HookEvent, SpanExport

NOW = 1_795_000_000_000_000_000
RESPONSE = {
    "session.id": "s-1",
    "event.name": "gemini_cli.api_response",
    "event.timestamp": "2026-11-21T05:31:01.500Z",
    "model": "m",
    "duration_ms": 250,
    "input_token_count": 100,
    "response_text": "a secret answer",
    "user.email": "me@example.org",
}


def export(*records: dict, service: str = "gemini-cli") -> dict:
    return {
        "resourceLogs": [
            {
                "resource": {"attributes": _attributes({"service.name": service})},
                "scopeLogs": [
                    {
                        "logRecords": [
                            {"timeUnixNano": str(NOW), "attributes": _attributes(record)}
                            for record in records
                        ]
                    }
                ],
            }
        ]
    }


def _attributes(values: dict) -> list[dict]:
    return [
        {
            "key": key,
            "value": {"intValue": value} if isinstance(value, int) else {"stringValue": value},
        }
        for key, value in values.items()
    ]


def as_protobuf(document: dict) -> bytes:
    message = ExportLogsServiceRequest()
    for group in document["resourceLogs"]:
        resource = message.resource_logs.add()
        _add(resource.resource.attributes, group["resource"]["attributes"])
        for record in group["scopeLogs"][0]["logRecords"]:
            log = resource.scope_logs.add().log_records.add(time_unix_nano=NOW)
            _add(log.attributes, record["attributes"])
    return message.SerializeToString()


def _add(holder, attributes: list[dict]) -> None:
    for each in attributes:
        added = holder.add(key=each["key"])
        if "intValue" in each["value"]:
            added.value.int_value = each["value"]["intValue"]
        else:
            added.value.string_value = each["value"]["stringValue"]


def kept(events: list[HookEvent]) -> list[dict]:
    return [record for event in events for record in json.loads(event.payload)["telemetry"]]


class Served:
    """A gateway that runs in a thread, and what exports gave it."""

    def __init__(self, home) -> None:
        self.events: list[HookEvent] = []
        self.exports: list[SpanExport] = []
        self.notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.failing = False
        self._home = home
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(LIMIT_SECONDS)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(LIMIT_SECONDS)

    def take(self, told: HookEvent | SpanExport | str) -> None:
        if self.failing:
            raise OSError(28, "No space left on device")
        match told:
            case HookEvent():
                self.events.append(told)
            case SpanExport():
                self.exports.append(told)
            case str():
                self.notes.put(told)

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), LIMIT_SECONDS)
        connection.settimeout(LIMIT_SECONDS)
        return connection

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        with self.connect() as connection:
            send(connection, path, body, **headers)
            return receive(connection)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        options = GatewayOptions(upstream=("http://127.0.0.1:9",), home=self._home)

        def ready(url: str) -> None:
            self.port = int(url.rpartition(":")[2])
            self._ready.set()

        self._serving = asyncio.create_task(serve(options, lambda _call: None, ready, self.take))
        with contextlib.suppress(asyncio.CancelledError):
            await self._serving


def send(connection: socket.socket, path: str, body: bytes, **headers: str) -> None:
    fields = {
        "host": "127.0.0.1:1",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    connection.sendall(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)


def receive(connection: socket.socket) -> tuple[int, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        assert more, data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1]), body


@pytest.fixture
def served(tmp_path):
    with Served(tmp_path) as gateway:
        yield gateway


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
@pytest.mark.parametrize("compressed", [False, True])
def test_only_what_an_agent_names_is_kept(served, encoding, compressed):
    """Of a log record, ids, times and counts are kept, whatever the encoding, and no content."""
    document = export(RESPONSE)
    body = json.dumps(document).encode() if encoding == "json" else as_protobuf(document)
    kind = "application/json" if encoding == "json" else "application/x-protobuf"
    sent = gzip.compress(body) if compressed else body
    status, answer = served.post(
        "/v1/logs", sent, content_type=kind, content_encoding="gzip" if compressed else ""
    )
    assert (status, answer) == (200, b"{}" if encoding == "json" else b"")
    (event,) = served.events
    assert event.agent == "gemini-cli"
    (record,) = kept([event])
    assert record == {
        "name": "gemini_cli.api_response",
        "time_ns": NOW,
        "session.id": "s-1",
        "event.timestamp": "2026-11-21T05:31:01.500Z",
        "model": "m",
        "duration_ms": 250,
        "input_token_count": 100,
    }


def test_other_services_and_events_are_let_go():
    """What no agent's module asks for leaves nothing behind."""
    strange = export(RESPONSE, service="somebody-else")
    prompt = export({**RESPONSE, "event.name": "gemini_cli.user_prompt"})
    long = export({**RESPONSE, "session.id": "x" * 5000})
    assert reduce(log_records(strange), NOW) == []
    assert reduce(log_records(prompt), NOW) == []
    assert "session.id" not in kept(reduce(log_records(long), NOW))[0]


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
@pytest.mark.parametrize("compressed", [False, True])
def test_spans_of_other_gateways_are_kept(served, encoding, compressed):
    """What a gateway exports is kept as it is, whatever the encoding, before it is acknowledged."""
    (document, *_) = documents("litellm-claude-v2")[-1:]
    request = message(document)
    is_json = encoding == "json"
    body = json.dumps(document).encode() if is_json else request.SerializeToString()
    status, answer = served.post(
        "/v1/traces",
        gzip.compress(body) if compressed else body,
        content_type="application/json" if is_json else "application/x-protobuf",
        content_encoding="gzip" if compressed else "",
    )
    assert (status, answer) == (200, b"{}" if is_json else b"")
    (export_,) = served.exports
    assert ExportTraceServiceRequest.FromString(export_.request) == request


def test_spans_of_agents_and_of_ours_are_let_go(served):
    """What an agent traces of itself is not kept; nor what we sent, or it would come round again."""
    document = documents("litellm-claude-v2")[-1]
    for group in document["resourceSpans"]:
        group["resource"] = {"attributes": _attributes({"service.name": "gemini-cli"})}
    assert served.post("/v1/traces", json.dumps(document).encode())[0] == 200
    ours = documents("litellm-claude-v2")[-1]
    for group in ours["resourceSpans"]:
        for scope in group["scopeSpans"]:
            scope["scope"] = {"name": "tracebridge"}
    assert served.post("/v1/traces", json.dumps(ours).encode())[0] == 200
    assert served.exports == []


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"resourceSpans": 1}', {}, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}', {}, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"kind": [1]}]}]}]}', {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"\x0a\xff", {"content_type": "application/x-protobuf"}, 400),
        (gzip.compress(bytes(80_000_000)), {"content_encoding": "gzip"}, 400),
        (gzip.compress(bytes(20_000_000)), {"content_encoding": "gzip"}, 413),
        (gzip.compress(bytes(1000))[:-20], {"content_encoding": "gzip"}, 400),
        (b"{}", {"content_type": "application/grpc"}, 415),
    ],
    ids=["shape", "hex", "kind", "deep", "protobuf", "bomb", "large", "cut", "grpc"],
)
def test_spans_that_are_none_are_refused(served, body, headers, status):
    """Malformed exports are refused with a reason, counted for `status`, and harm nobody."""
    found, answer = served.post("/v1/traces", body, **headers)
    assert found == status
    assert answer
    note = f"export refused ({status}); the gateway says why on stderr"
    assert served.notes.get(timeout=LIMIT_SECONDS) == note
    assert served.exports == []
    assert served.post("/v1/traces", b"{}")[0] == 200


def test_spans_are_not_acknowledged_before_they_are_kept(served):
    """Where the spool does not take spans, the exporter is told to come again."""
    body = json.dumps(documents("litellm-claude-v2")[-1]).encode()
    served.failing = True
    assert served.post("/v1/traces", body)[0] == 503
    served.failing = False
    assert served.post("/v1/traces", body)[0] == 200
    assert len(served.exports) == 1


def test_exports_without_spans_and_metrics_are_accepted(served):
    """An exporter that sends metrics too is not told of a failure."""
    for path in ("/v1/traces", "/v1/metrics"):
        assert served.post(path, b"{}")[0] == 200
        assert served.post(path, b"", content_type="application/x-protobuf")[0] == 200
    assert (served.events, served.exports) == ([], [])


def test_exports_on_one_connection(served):
    """Requests come one after the other on one connection, chunked too, also without waiting."""
    body = json.dumps(export(RESPONSE)).encode()
    with served.connect() as connection:
        send(connection, "/v1/logs", body)
        send(connection, "/v1/logs", body)
        assert [receive(connection)[0]] == [200]
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        connection.sendall(
            b"POST /v1/logs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n" + chunked
        )
        receive(connection)
    assert len(served.events) >= 2


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"{", {}, 400, b"cannot be read"),
        (b"[]", {}, 400, b"not a JSON object"),
        (b"\xff\xff", {"content_type": "application/x-protobuf"}, 400, b"read"),
        (b"no gzip", {"content_encoding": "gzip"}, 400, b"cannot be read"),
        (b"x", {"content_encoding": "nonsense"}, 400, b"nonsense"),
        (b"x", {"content_type": "text/plain"}, 415, b"application/json"),
        (b"{}", {"host": "evil.example"}, 403, b"127.0.0.1"),
        (b"{}", {"origin": "https://evil.example"}, 403, b"web pages"),
        (b"", {"content_length": str(BODY_LIMIT + 1)}, 413, b"smaller"),
    ],
)
def test_what_is_refused(served, body, headers, status, said):
    """What cannot be an export of this machine is refused with words that help, and leaves nothing."""
    found, answer = served.post("/v1/logs", body, **headers)
    assert found == status
    if headers.get("content_type") == "application/x-protobuf":
        answer = Status.FromString(answer).message.encode()
    assert said in answer
    assert served.events == []


def test_a_body_without_end_is_refused(served):
    """A chunked body is refused once it is larger than any export may be."""
    with served.connect() as connection:
        send(connection, "/v1/logs", b"", content_length="", transfer_encoding="chunked")
        piece = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        for _ in range(BODY_LIMIT // 0x100000 + 1):
            connection.sendall(piece)
        assert receive(connection)[0] == 413


def test_not_acknowledged_before_it_is_kept(served):
    """Where the spool does not take an export, the exporter is told to come again, and can."""
    body = json.dumps(export(RESPONSE)).encode()
    served.failing = True
    with served.connect() as connection:
        send(connection, "/v1/logs", body)
        status, answer = receive(connection)
        assert (status, b"No space left" in answer) == (503, True)
        served.failing = False
        send(connection, "/v1/logs", body)
        assert receive(connection)[0] == 200
    assert len(served.events) == 1


def test_stopping_with_an_exporter_connected(tmp_path):
    """A gateway that is told to stop does not wait for an exporter that has nothing to send."""
    with Served(tmp_path) as gateway:
        connection = gateway.connect()
        send(connection, "/v1/logs", b"{}")
        assert receive(connection)[0] == 200
    with connection:
        assert connection.recv(1) == b""


@given(st.binary(max_size=300), st.sampled_from(["application/json", "application/x-protobuf"]))
def test_garbage(data, kind):
    """Whatever bytes come, they are an export or a ValueError."""
    try:
        export_ = parse_export("/v1/logs", kind, data)
    except ValueError:
        return
    reduce(log_records(export_), NOW)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "resourceLogs",
                        "scopeLogs",
                        "logRecords",
                        "attributes",
                        "key",
                        "value",
                        "intValue",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_any_shape(document):
    """JSON of any shape in the place of an export is read without failing."""
    reduce(log_records({"resourceLogs": document}), NOW)

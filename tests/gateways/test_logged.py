"""Scripts that log their calls after the fact, in Respan's shape, on the gateway's own port."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracebridge import semconv
from tracebridge.fields import moment_of
from tracebridge.gateways.client_keys import FILE, add_key
from tracebridge.gateways.logged import BODY_LIMIT, call_of_body
from tracebridge.model import GatewayCall, Usage
from tracebridge.settings import read_settings
from tracebridge.spool import Spool
from tracebridge.testing.receiver import Receiver
from tracebridge.views.status import status
from tracebridge.watch import watch_once

NOW = 1_795_000_000_000_000_000
LOG = {
    "model": "gpt-4o-mini",
    "log_type": "chat",
    "input": json.dumps([{"role": "user", "content": "a secret question"}]),
    "output": json.dumps({"role": "assistant", "content": "a secret answer"}),
    "usage": {
        "prompt_tokens": 10,
        "completion_tokens": 8,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    },
    "start_time": "2026-11-18T08:26:38.000Z",
    "timestamp": "2026-11-18T08:26:40.000Z",
    "time_to_first_token": 0.5,
    "customer_identifier": "nightly",
    "stream": True,
}


def posted(gateway, path: str, body: bytes, **headers: str) -> tuple[int, dict]:
    client = gateway.connect()
    client.send(request(path, body, **headers))
    status_line, _, answer = client.read_to_end().partition(b"\r\n")
    return int(status_line.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


def request(path: str, body: bytes, **headers: str) -> bytes:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    fields = {"host": "127.0.0.1", "content-length": str(len(body)), **given}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


@pytest.mark.parametrize(
    "path", ["/api/request-logs/create/", "/api/request-logs/create", "/api/request-logs/"]
)
def test_a_log_becomes_a_call(gateway, path):
    """Times, tokens and names stand in the call, and nothing of what was said."""
    code, answer = posted(gateway, path, json.dumps(LOG).encode(), user_agent="curl/8")
    assert (code, answer["message"]) == (201, "log successful")
    (call,) = gateway.wait_for_calls(1)
    assert call.call_id == f"logged:{answer['unique_id']}"
    assert (call.end_ns - call.start_ns, call.first_token_ns - call.start_ns) == (2e9, 5e8)
    assert call.usage == Usage(
        input_tokens=10, output_tokens=8, cache_read_tokens=4, reasoning_tokens=3
    )
    assert (call.model, call.client_name, call.streaming) == ("gpt-4o-mini", "nightly", True)
    assert call.error_type is None
    assert "secret" not in repr(call)


def test_a_log_is_a_script_s_trace(start_gateway, upstream, home, monkeypatch):
    """It goes out as a trace of its own, or under the span that it names."""
    spool = Spool(home)
    gateway = start_gateway(upstream.url)
    gateway.on_record = lambda call: (spool.write_call(call), gateway.record(call))
    within = {"trace_unique_id": "a" * 32, "span_parent_id": "b" * 16}
    for more in ({}, within):
        assert (
            posted(gateway, "/api/request-logs/create/", json.dumps(LOG | more).encode())[0] == 201
        )
    gateway.wait_for_calls(2)
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        assert watch_once(read_settings())
        one, two = sorted(receiver.spans, key=lambda span: span.parent_span_id)
    assert (one.parent_span_id, two.parent_span_id) == ("", "b" * 16)
    assert two.trace_id == "a" * 32
    assert one.attributes[semconv.USER_ID] == "nightly"
    assert status(read_settings())["links"]["by_gateway"] == {"logged": {"script": 2}}


def test_not_acknowledged_before_it_is_kept(gateway):
    """A full disk is said so, and the next request on a new connection is served."""

    def full(_call: GatewayCall) -> None:
        raise OSError(28, "No space left on device")

    gateway.on_record = full
    code, answer = posted(gateway, "/api/request-logs/create/", json.dumps(LOG).encode())
    assert code == 503
    assert "No space left" in answer["detail"]
    gateway.on_record = gateway.record
    assert posted(gateway, "/api/request-logs/create/", json.dumps(LOG).encode())[0] == 201


@pytest.mark.parametrize(
    ("body", "headers", "code", "said"),
    [
        (b"", {}, 400, "not JSON"),
        (b"[]", {}, 400, "not a JSON object"),
        (b"{}", {}, 400, "no model"),
        (json.dumps(LOG | {"log_type": "tool"}).encode(), {}, 400, "'tool' is no call"),
        (b"{}", {"content_encoding": "gzip"}, 400, ""),
        (b"{}", {"content_length": str(BODY_LIMIT + 1)}, 413, "may have"),
        (b"{}", {"host": "evil.example"}, 403, ""),
        (b"{}", {"origin": "https://evil.example"}, 403, ""),
        (b"{}", {"content_length": "2", "transfer_encoding": "chunked"}, 400, ""),
    ],
)
def test_what_is_refused(gateway, body, headers, code, said):
    """With the reason, in the shape of Respan's errors; the gateway goes on."""
    answered, answer = posted(gateway, "/api/request-logs/create/", body, **headers)
    assert answered == code
    assert said in str(answer)
    assert gateway.calls == []


RECORDS = (Path(__file__).parent / "records" / "litellm.jsonl").read_text().splitlines()


def test_what_litellm_posts(gateway):
    """Its `generic_api` callback sends arrays of records: a call of each, by LiteLLM's name."""
    body = f"[{','.join(RECORDS)}]".encode()
    assert posted(gateway, "/api/litellm-logs/", body) == (200, {})
    calls = gateway.wait_for_calls(len(RECORDS))
    assert {call.gateway for call in calls} == {"litellm"}
    assert len({call.call_id for call in calls}) == len(RECORDS)


@pytest.mark.parametrize(
    "body", [b"", b"7", b"{}x", b"[1]", b'[{"id": "x"}]', b"null", b"[" * 9999]
)
def test_what_is_none_of_litellm_s(gateway, body):
    """It is refused as a whole, and nothing of it is kept."""
    assert posted(gateway, "/api/litellm-logs", body)[0] == 400
    assert gateway.calls == []


def test_with_client_keys(start_gateway, upstream, home):
    """Who has no key may not log; who has one logs in its name, whatever the log says."""
    key = add_key(home / FILE, "alice", None)
    gateway = start_gateway(upstream.url, client_keys=home / FILE)
    body = json.dumps(LOG).encode()
    assert posted(gateway, "/api/request-logs/create/", body)[0] == 401
    given = {"authorization": f"Bearer {key}"}
    assert posted(gateway, "/api/request-logs/create/", body, **given)[0] == 201
    (call,) = gateway.wait_for_calls(1)
    assert call.client_name == "alice"
    assert key not in repr(call)


def test_compressed_and_in_pieces(gateway):
    """However a body comes, it is read; what is sent behind it is let go."""
    packed = gzip.compress(json.dumps(LOG).encode())
    client = gateway.connect()
    data = request("/api/request-logs/create/", packed, content_encoding="gzip")
    for place in range(0, len(data), 7):
        client.send(data[place : place + 7])
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    assert client.read_to_end().startswith(b"HTTP/1.1 201 ")
    assert len(gateway.wait_for_calls(1)) == 1


def test_other_paths_of_the_api_are_the_upstream_s(gateway, upstream):
    """Lists of logs, and logs in batches, go where all else goes; also on one connection."""
    client = gateway.connect()
    client.send(request("/api/request-logs/list/?page=1", b"{}"))
    peer = upstream.accept()
    assert peer.read_head().startswith(b"POST /api/request-logs/list/?page=1 ")
    assert peer.read(2) == b"{}"
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]")
    assert client.read_head().startswith(b"HTTP/1.1 200 ")
    assert client.read(2) == b"[]"
    client.send(request("/api/request-logs/create/", json.dumps(LOG).encode()))
    assert client.read_to_end().startswith(b"HTTP/1.1 201 ")


def test_a_client_that_leaves(gateway):
    """In the middle of its log: nothing is recorded, and the next one is."""
    client = gateway.connect()
    client.send(request("/api/request-logs/create/", json.dumps(LOG).encode())[:-20])
    client.close()
    assert posted(gateway, "/api/request-logs/create/", json.dumps(LOG).encode())[0] == 201
    assert len(gateway.wait_for_calls(1)) == 1


def test_times_as_far_as_they_are_told():
    """What is missing follows from the rest, and at last from when the log came."""

    def times(**told) -> tuple[int, int]:
        call = call_of_body(json.dumps({"model": "m", **told}).encode(), "", NOW)
        return call.start_ns - NOW, call.end_ns - NOW

    stamp = "2026-11-18T10:26:40+02:00"
    assert times() == (0, 0)
    assert times(latency=2) == (-2e9, 0)
    assert times(timestamp=stamp, generation_time=1.5) == (-1.5e9 + at(stamp), at(stamp))
    assert times(start_time=stamp, latency=3) == (at(stamp), at(stamp) + 3e9)
    assert times(start_time=stamp) == (at(stamp), max(0, at(stamp)))
    for odd in ("now", "2026-11-18", 7, None, "9999-01-01T00:00:00Z", [1]):
        assert times(timestamp=odd, start_time=odd)[0] <= times(timestamp=odd)[1]


def at(stamp: str) -> int:
    moment = moment_of(stamp)
    assert moment is not None
    return moment - NOW


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = [*LOG, "latency", "status_code", "error_message", "full_response", "unique_id", "failed"]


@given(document=st.dictionaries(st.sampled_from(NAMES), JSON))
def test_any_shape(document):
    """Whatever stands in a log: a call in order, or words why not."""
    body = json.dumps(LOG | document).encode()
    try:
        call = call_of_body(body, "", NOW)
    except ValueError as error:
        said = str(error)
        if "model" not in said:
            raise
    else:
        assert 0 <= call.start_ns <= call.end_ns < 2**63


@given(data=st.binary())
def test_garbage(data):
    """What is no log says why."""
    with pytest.raises(ValueError, match="request log"):
        call_of_body(data, "", NOW)

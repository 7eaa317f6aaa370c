"""The relay's HTTP: who is let in, what is understood, and what the sender hears of the backend."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from pathlib import Path

import orjson
import pytest
import requests
import trustme
from beside import free_port
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.relay.conftest import (
    PATIENCE_S,
    GatewayCall,
    keys,
    post,
    status,
    turn,
    watchers_request,
)
from tracebridge.encode import to_json
from tracebridge.gateways.client_keys import add_key
from tracebridge.gateways.proxy import OptionsError
from tracebridge.relay.json_requests import parse_json
from tracebridge.relay.rules import Rules
from tracebridge.relay.serve import BODY_LIMIT, RelayOptions, read_backend
from tracebridge.sinks import SinkSettingsError
from tracebridge.testing.receiver import Answer, parse_spans

GOOD = watchers_request(turn(), "msg_1")


def said(response: requests.Response) -> str:
    return Status.FromString(response.content).message


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=503, headers={"retry-after": "7"}),
        Answer(status=429, headers={"retry-after": "7"}),
        Answer(status=500),
        Answer(status=502),
        Answer(status=401),
        Answer(status=404),
        Answer(status=302, headers={"location": "http://127.0.0.1:1/"}),
        Answer(body=b"<html>welcome</html>"),
        Answer(hang_up_after=0),
        Answer(hang_up_after=20),
        # Before it has taken anything, it may be a header that it wants.
        Answer(status=400),
    ],
    ids=lambda answer: f"{answer.status}-{answer.hang_up_after}-{len(answer.body or b'')}",
)
def test_what_the_backend_did_not_take_the_sender_keeps(answer, start_relay, receiver):
    """Whatever it said: the sender hears 503 with a time to wait, and comes again."""
    relay = start_relay()
    receiver.answer_next(answer)
    refused = post(relay.url, GOOD)
    assert refused.status_code == 503
    asked = 7 if "retry-after" in answer.headers else 5
    assert refused.headers["retry-after"] == str(asked)
    assert "HTTP" in said(refused) or "no connection" in said(refused)
    assert post(relay.url, GOOD).status_code == 200


@pytest.mark.parametrize("code", [400, 413, 422])
def test_what_only_the_sender_can_mend_it_hears(code, start_relay, receiver):
    """A backend that has taken something before does not like this one request."""
    relay = start_relay()
    assert post(relay.url, GOOD).status_code == 200
    receiver.answer_next(Answer(status=code, body=b"too much"))
    refused = post(relay.url, GOOD)
    assert refused.status_code == code
    assert "too much" in said(refused)


def test_spans_that_the_backend_rejects_are_reported_to_the_sender(start_relay, receiver):
    """A partial success comes through."""
    relay = start_relay()
    receiver.answer_next(Answer(rejected=1, error_message="no such tenant"))
    response = post(relay.url, GOOD)
    partial = ExportTraceServiceResponse.FromString(response.content).partial_success
    assert (response.status_code, partial.rejected_spans) == (200, 1)
    assert "no such tenant" in partial.error_message


def test_a_backend_that_says_nothing_is_given_up_in_time(start_relay, receiver):
    """The sender hears of it while it still waits."""
    hold = threading.Event()
    receiver.answer_next(Answer(hold=hold))
    backend = read_backend(receiver.endpoint, {"OTEL_EXPORTER_OTLP_TIMEOUT": "300"})
    relay = start_relay(backend=backend)
    try:
        refused = post(relay.url, GOOD)
        assert refused.status_code == 503
        assert "no answer within 0.3 s" in said(refused)
    finally:
        hold.set()


def test_a_backend_that_is_not_there(start_relay, capfd):
    """Nothing is acknowledged, and whoever looks after the relay is told once."""
    relay = start_relay(backend=read_backend(f"http://127.0.0.1:{free_port()}", {}))
    refused = post(relay.url, GOOD)
    assert refused.status_code == 503
    assert "no connection" in said(refused)
    assert post(relay.url, GOOD).status_code == 503
    assert status(relay.url)["troubles"] == {"trouble with the backend": 2}
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("tracebridge relay: trouble with the backend: http://127.0.0.1:")


def test_the_backends_own_headers_are_sent(start_relay, receiver):
    """The standard variables say them; the sender's key stays here."""
    env = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20of-the-backend"}
    relay = start_relay(backend=read_backend(receiver.endpoint, env))
    post(relay.url, GOOD, authorization="Bearer of-the-sender")
    (request,) = receiver.requests
    assert request.headers["authorization"] == "Bearer of-the-backend"


def test_json_is_understood_as_protobuf_is(start_relay, receiver):
    """Ids in hex, and an answer in JSON."""
    relay = start_relay()
    document = to_json({(("service.name", "litellm"),): []})
    spans = parse_spans(GatewayCall("msg_1", attributes=keys()).request())
    document["resourceSpans"][0]["scopeSpans"][0] |= {
        "scope": {"name": "litellm"},
        "unknown": 1,
        "spans": [
            {
                "traceId": span.trace_id,
                "spanId": span.span_id,
                "parentSpanId": span.parent_span_id,
                "name": span.name,
                "kind": span.kind,
                "startTimeUnixNano": str(span.start_ns),
                "endTimeUnixNano": span.end_ns,
                "attributes": [
                    {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
                    {
                        "key": "http.request.header.x-claude-code-session-id",
                        "value": {"stringValue": "s-1"},
                    },
                    {
                        "key": "http.request.header.x-claude-code-prompt-id",
                        "value": {"stringValue": "p-1"},
                    },
                ],
            }
            for span in spans
        ],
    }
    response = post(relay.url, orjson.dumps(document), **{"content-type": "application/json"})
    assert (response.status_code, response.json()) == (200, {})
    assert [span.name for span in receiver.spans] == [span.name for span in spans]
    assert len({span.trace_id for span in receiver.spans} - {span.trace_id for span in spans}) == 1


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests_are_understood(coding, start_relay, receiver):
    """As collectors send them."""
    import zlib

    relay = start_relay()
    body = gzip.compress(GOOD) if coding == "gzip" else zlib.compress(GOOD)
    assert post(relay.url, body, **{"content-encoding": coding}).status_code == 200
    assert receiver.requests[0].body == GOOD


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"\xff\xff\xff", {}, 400),
        (GOOD[:-5], {}, 400),
        (b"\x0a\x05\x12\x7fab", {}, 400),
        (b"{", {"content-type": "application/json"}, 400),
        (b"[]", {"content-type": "application/json"}, 400),
        (b"[" * 100_000, {"content-type": "application/json"}, 400),
        (b'{"resourceSpans": 7}', {"content-type": "application/json"}, 400),
        (b"no gzip", {"content-encoding": "gzip"}, 400),
        (gzip.compress(b"\0" * (BODY_LIMIT + 1)), {"content-encoding": "gzip"}, 413),
        (b"\0" * (BODY_LIMIT + 1), {}, 413),
        (GOOD, {"content-type": "text/plain"}, 415),
        (GOOD, {"origin": "https://example.org"}, 403),
        (GOOD, {"host": "example.org"}, 403),
    ],
    ids=[
        "garbage",
        "truncated",
        "length beyond the end",
        "cut JSON",
        "a list",
        "deep JSON",
        "wrong types",
        "no gzip",
        "gzip bomb",
        "too large",
        "another type",
        "a web page",
        "another host",
    ],
)
def test_what_is_no_export_is_refused(body, headers, code, start_relay, receiver):
    """With the reason, and the relay goes on."""
    relay = start_relay()
    try:
        refused = post(relay.url, body, **headers)
        assert refused.status_code == code
        assert refused.content
    except requests.ConnectionError:
        # The relay answered before the body was through, and the client did not look.
        assert code == 413
    assert not receiver.requests
    assert post(relay.url, GOOD).status_code == 200


def test_a_span_that_cannot_be_is_rejected_and_the_rest_goes_on(start_relay, receiver):
    """One without ids, as a partial success."""
    relay = start_relay()
    good = GatewayCall("msg_1", attributes=keys())
    broken = GatewayCall("msg_2", number=2, trace=b"short")
    response = post(relay.url, good.request() + broken.request(2))
    partial = ExportTraceServiceResponse.FromString(response.content).partial_success
    assert (response.status_code, partial.rejected_spans) == (200, 1)
    assert "trace id of 16 bytes" in partial.error_message
    assert len(receiver.spans) == 3


@given(st.binary(max_size=300))
def test_any_bytes_are_an_export_or_an_error(body):
    """Read as JSON they raise nothing else."""
    try:
        parse_json(body)
    except ValueError:
        return


def test_other_paths_and_methods_are_named_wrong(start_relay):
    """Logs and metrics are not taken and thrown away."""
    relay = start_relay()
    for found in (
        requests.post(f"{relay.url}/v1/logs", timeout=PATIENCE_S),
        requests.get(f"{relay.url}/v1/traces", timeout=PATIENCE_S),
    ):
        assert found.status_code in (404, 405)
        assert "POST /v1/traces" in found.json()["message"]


def test_senders_need_a_key_once_there_are_keys(start_relay, receiver, tmp_path):
    """One of the gateway's, as bearer token or x-api-key; health is told to everybody."""
    home = tmp_path / "home"
    relay = start_relay(home=home)
    assert post(relay.url, GOOD).status_code == 200
    key = add_key(home / "gateway-keys.toml", "collector", None)
    assert post(relay.url, GOOD).status_code == 401
    assert post(relay.url, GOOD, authorization="Bearer wrong").status_code == 401
    assert requests.get(f"{relay.url}/tracebridge/status", timeout=PATIENCE_S).status_code == 401
    health = requests.get(f"{relay.url}/tracebridge/health", timeout=PATIENCE_S)
    assert health.json() == {"status": "ok"}
    assert post(relay.url, GOOD, authorization=f"Bearer {key}").status_code == 200
    assert post(relay.url, GOOD, **{"x-api-key": key}).status_code == 200
    assert len(receiver.requests) == 3


def test_listening_for_others_needs_keys_and_tls(tmp_path):
    """Or to be asked for in so many words."""
    options = {
        "backend": read_backend("http://127.0.0.1:4318", {}),
        "home": tmp_path,
        "rules": Rules(),
        "client_keys": tmp_path / "gateway-keys.toml",
    }
    with pytest.raises(OptionsError, match=r"senders' keys .* and TLS"):
        RelayOptions(listen="0.0.0.0:4319", **options)
    add_key(options["client_keys"], "collector", None)
    with pytest.raises(OptionsError, match="it needs TLS"):
        RelayOptions(listen="0.0.0.0:4319", **options)
    RelayOptions(listen="0.0.0.0:4319", tls_cert=tmp_path / "cert.pem", **options)
    RelayOptions(listen="0.0.0.0:4319", is_insecure=True, **options)
    with pytest.raises(OptionsError, match="HOST:PORT"):
        RelayOptions(listen="somewhere", **options)
    with pytest.raises(SinkSettingsError, match="--to"):
        read_backend("ftp://example.org", {})


def test_tls_with_a_certificate(start_relay, receiver, tmp_path):
    """What is sent can be read by nobody on the way."""
    authority = trustme.CA()
    chain, trust = tmp_path / "chain.pem", tmp_path / "ca.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(chain)
    authority.cert_pem.write_to_path(trust)
    relay = start_relay(tls_cert=chain)
    assert relay.url.startswith("https://")
    response = requests.post(
        f"{relay.url}/v1/traces",
        data=GOOD,
        headers={"content-type": "application/x-protobuf"},
        verify=str(trust),
        timeout=PATIENCE_S,
    )
    assert response.status_code == 200
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--to", "nowhere"], "--to"),
        (["--to", "http://127.0.0.1:1", "--redis", "postgres://me:secret@x"], "--redis"),
        (["--to", "http://127.0.0.1:1", "--listen", "0.0.0.0:0"], "--insecure-listen"),
        (["--to", "http://127.0.0.1:1", "--tls-cert", "/nowhere.pem"], "--tls-cert"),
    ],
)
def test_wrong_usage_is_named_with_its_remedy(arguments, error, home):
    """Exit code 2, one line, and no secret in it."""
    done = subprocess.run(
        [sys.executable, "-m", "tracebridge", "relay", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={"TRACEBRIDGE_HOME": str(home), "HOME": str(home)},
    )
    assert done.returncode == 2
    assert error in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_that_cannot_be_used_is_named(tmp_path):
    """Before anything is taken."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "relay.sqlite3").write_bytes(b"not a database" * 1000)
    done = subprocess.run(
        [sys.executable, "-m", "tracebridge", "relay", "--to", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={"TRACEBRIDGE_HOME": str(home), "HOME": str(home)},
    )
    assert done.returncode == 2
    assert str(Path(home) / "relay.sqlite3") in done.stderr


def test_counts_are_readable_as_json(start_relay):
    """By whatever watches relays."""
    relay = start_relay()
    post(relay.url, GOOD)
    post(relay.url, GatewayCall("msg_2", number=2, attributes=keys()).request())
    found = status(relay.url)
    assert found["spans"] == {"held": 0, "ours": 2, "refused": 0, "turn_id": 3}
    assert json.dumps(found)

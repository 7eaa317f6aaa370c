from __future__ import annotations

import gzip
import re
import socket
import ssl
import threading
from email.utils import formatdate
from pathlib import Path

import pytest
import trustme
from beside import free_port

from tracebridge.sinks import Receipt, prepare
from tracebridge.sinks._batch import SETTINGS_RETRY_S
from tracebridge.sinks.otlp_http import parse_partial_success, parse_retry_after
from tracebridge.testing.receiver import Answer, Receiver


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def send():
    """Send spans to an endpoint with settings, by a sink that is closed at the end."""
    sinks = []

    def send(spans, endpoint, **env) -> Receipt:
        env = {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in env.items()}
        sink = prepare("otlp_http", {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **env}).open()
        sinks.append(sink)
        return sink.send(spans)

    yield send
    for sink in sinks:
        sink.close()


def ids_of(spans):
    return tuple(span.span_id for span in spans)


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_spans_arrive_whole(make_spans, receiver, send, protocol, compression):
    """Spans arrive with ids, attributes and resource in either encoding, gzipped or not."""
    spans = make_spans(3, "é")
    receipt = send(spans, receiver.endpoint, PROTOCOL=protocol, COMPRESSION=compression)
    assert receipt == Receipt(acknowledged=ids_of(spans))
    (request,) = receiver.requests
    assert request.path == "/v1/traces"
    assert [span.message.SerializeToString() for span in request.spans] == [s.data for s in spans]
    assert request.spans[0].attributes == {"text": "é"}
    assert request.spans[0].resource == {"service.name": "claude-code"}
    assert request.spans[0].scope[0] == "tracebridge"
    assert request.headers["content-type"].endswith(protocol.rpartition("/")[2])
    assert (request.headers.get("content-encoding") == "gzip") == (compression == "gzip")
    assert (gzip.decompress(request.raw) if compression == "gzip" else request.raw) == request.body


def test_headers_of_the_user_are_sent(make_spans, receiver, send):
    """Headers are percent-decoded and sent with every request."""
    send(make_spans(1), receiver.endpoint, HEADERS="Authorization=Basic%20dTpw==,X-Tenant=a%2Cb")
    headers = receiver.requests[0].headers
    assert (headers["authorization"], headers["x-tenant"]) == ("Basic dTpw==", "a,b")


def test_a_resend_is_byte_identical(make_spans, receiver, send):
    """What failed with 503 is sent again with the same bytes, gzip included."""
    spans = make_spans(20)
    receiver.answer_next(Answer(status=503))
    for expected in ((), ids_of(spans)):
        assert send(spans, receiver.endpoint, COMPRESSION="gzip").acknowledged == expected
    first, second = receiver.requests
    assert first.raw == second.raw


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504, 529])
def test_a_backend_that_is_not_ready_is_asked_again_when_it_says(
    make_spans, receiver, send, status
):
    """Nothing is acknowledged or refused, and Retry-After is handed on."""
    receiver.answer_next(Answer(status=status, headers={"Retry-After": "17"}, body=b"busy"))
    receipt = send(make_spans(2), receiver.endpoint)
    assert (receipt.acknowledged, receipt.refused, receipt.retry_after_s) == ((), {}, 17)
    assert f"HTTP {status}" in receipt.error
    assert "busy" in receipt.error
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 405, 415, 418, 301, 302, 307, 308, 501])
def test_wrong_settings_lose_nothing(make_spans, receiver, send, status):
    """A wrong key or path, or a redirect, is reported and tried again a minute later."""
    receiver.rule = lambda _: Answer(status=status, headers={"location": receiver.endpoint})
    receipt = send(make_spans(2), receiver.endpoint)
    assert (receipt.acknowledged, receipt.refused) == ((), {})
    assert receipt.retry_after_s == SETTINGS_RETRY_S
    assert f"HTTP {status}" in receipt.error
    assert len(receiver.requests) == 1, "redirects are not followed"


def test_the_key_never_stands_in_a_message(make_spans, receiver, send):
    """A backend that repeats our key does not get it into our messages."""
    receiver.answer_next(Answer(status=401, body=b"bad key sk-secret-1 \x1b[31m" + b"x" * 10_000))
    receipt = send(make_spans(1), receiver.endpoint, HEADERS="authorization=Bearer sk-secret-1")
    assert "sk-secret-1" not in receipt.error
    assert "bad key ***" in receipt.error
    assert receipt.error.isprintable()
    assert len(receipt.error) < 500


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("bad", [0, 7, 63])
def test_one_bad_span_is_refused_and_the_rest_goes_through(make_spans, receiver, send, status, bad):
    """The batch is halved until the bad span stands alone."""
    spans = make_spans(64)
    bad_id = spans[bad].span_id
    receiver.rule = lambda request: Answer(
        status=status if bad_id in request.span_ids else 200, body=b"so bad"
    )
    receipt = send(spans, receiver.endpoint)
    assert set(receipt.acknowledged) == set(ids_of(spans)) - {bad_id}
    assert list(receipt.refused) == [bad_id]
    assert "so bad" in receipt.refused[bad_id]
    assert receipt.error is None
    assert len(receiver.requests) <= 2 * 6 + 1
    assert [span.span_id for span in receiver.spans] == [
        span.span_id for span in spans if span.span_id != bad_id
    ] or bad == 0, "the order is kept, except where the very first span is in doubt"


def test_many_bad_spans_at_the_head_do_not_block_the_rest(make_spans, receiver, send):
    """Where the first spans are all bad, spans far from them are tried."""
    spans = make_spans(512)
    bad = set(ids_of(spans[:40]))
    receiver.rule = lambda request: Answer(status=400 if bad & set(request.span_ids) else 200)
    receipt = send(spans, receiver.endpoint)
    assert len(receipt.acknowledged) >= 256
    assert set(receipt.refused) <= bad


@pytest.mark.parametrize("status", [400, 422])
def test_a_backend_that_refuses_everything_costs_nothing(make_spans, receiver, send, status):
    """Without proof that the settings are right, no span is given up."""
    receiver.rule = lambda _: Answer(status=status, body=b"header x-experiment is missing")
    receipt = send(make_spans(512), receiver.endpoint)
    assert (receipt.acknowledged, receipt.refused) == ((), {})
    assert "x-experiment" in receipt.error
    assert receipt.retry_after_s == SETTINGS_RETRY_S
    assert len(receiver.requests) <= 24


def test_a_span_that_breaks_the_backend_does_not_block_the_rest(make_spans, receiver, send):
    """A span answered with 500 stays in the outbox while the others go through."""
    spans = make_spans(32)
    bad_id = spans[5].span_id
    receiver.rule = lambda request: Answer(status=500 if bad_id in request.span_ids else 200)
    receipt = send(spans, receiver.endpoint)
    assert set(receipt.acknowledged) == set(ids_of(spans)) - {bad_id}
    assert receipt.refused == {}
    assert "HTTP 500" in receipt.error


def test_a_batch_that_is_too_large_is_halved(make_spans, receiver, send):
    """After 413 the spans go in smaller requests; one too large by itself is refused."""
    spans = [*make_spans(1, "x" * 20_000), *make_spans(16)[1:]]
    receiver.rule = lambda request: Answer(status=413 if len(request.body) > 1500 else 200)
    receipt = send(spans, receiver.endpoint)
    assert receipt.acknowledged == ids_of(spans[1:])
    assert "413" in receipt.refused[spans[0].span_id]


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json"])
def test_spans_rejected_in_part_are_found(make_spans, receiver, send, protocol):
    """A partial success says how many and not which, so the batch is halved."""
    spans = make_spans(32)
    bad = {spans[3].span_id, spans[30].span_id}

    def rule(request):
        rejected = len(bad & set(request.span_ids))
        return Answer(rejected=rejected, error_message="no such name" if rejected else "")

    receiver.rule = rule
    receipt = send(spans, receiver.endpoint, PROTOCOL=protocol)
    assert set(receipt.refused) == bad
    assert set(receipt.acknowledged) == set(ids_of(spans)) - bad
    assert all("no such name" in reason for reason in receipt.refused.values())


def test_a_batch_rejected_as_a_whole_is_not_halved(make_spans, receiver, send):
    """Where all are rejected, one request tells."""
    receiver.rule = lambda request: Answer(rejected=len(request.spans))
    assert len(send(make_spans(64), receiver.endpoint).refused) == 64
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"ok", b"\xff\xfe\x00", b"[1]", b'{"partialSuccess": 3}', b"x" * 200_000]
)
def test_a_success_in_the_backends_own_words_is_a_success(make_spans, receiver, send, body):
    """Whatever stands in the body of a 2xx, but a web page, does not hinder."""
    receiver.answer_next(Answer(status=202, body=body))
    spans = make_spans(2)
    assert send(spans, receiver.endpoint).acknowledged == ids_of(spans)


def test_a_web_page_is_no_success(make_spans, receiver, send):
    """An endpoint at which a web application lives would swallow every span."""
    receiver.answer_next(Answer(body=b"\n<!doctype html><html></html>"))
    receipt = send(make_spans(2), receiver.endpoint)
    assert receipt.acknowledged == ()
    assert "check the endpoint" in receipt.error


def test_nobody_listening_is_a_failure(make_spans, send):
    """A refused connection keeps the spans and says so."""
    receipt = send(make_spans(2), f"http://127.0.0.1:{free_port()}")
    assert receipt.acknowledged == ()
    assert "Connection refused" in receipt.error


@pytest.mark.parametrize("after", [0, 10, 60])
def test_a_connection_cut_in_the_answer_is_a_failure(make_spans, receiver, send, after):
    """Hanging up before, within or just after the status line acknowledges nothing."""
    answer = Answer(hang_up_after=after, rejected=1, error_message="z" * 500)
    receiver.answer_next(answer)
    receipt = send(make_spans(2), receiver.endpoint)
    assert (receipt.acknowledged, receipt.refused) == ((), {})
    assert receipt.error


def test_a_body_cut_short_is_a_failure(make_spans, receiver, send):
    """Half a partial success is not taken for a success."""
    body = b'{"partialSuccess": {"rejectedSpans": "2", "errorMessage": "' + b"z" * 300 + b'"}}'
    receiver.answer_next(Answer(hang_up_after=200, body=body))
    receipt = send(make_spans(2), receiver.endpoint)
    assert (receipt.acknowledged, receipt.refused) == ((), {})


def test_a_silent_backend_does_not_hold_us(make_spans, receiver, send):
    """A backend that takes the request and says nothing is given up after the timeout."""
    release = threading.Event()
    receiver.answer_next(Answer(hold=release))
    receipt = send(make_spans(1), receiver.endpoint, TIMEOUT="200")
    release.set()
    assert receipt.acknowledged == ()
    assert "no answer within 0.2 s" in receipt.error


class DrippingServer:
    """Gives these answers, one for each request, and follows the last with byte after byte."""

    def __init__(self, *answers: bytes, drop: bytes) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._answers, self._drop = answers, drop
        self._thread = threading.Thread(target=self._run)
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        # Not cut off within several times the timeout of the client.
        self.had_its_say = False

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join()
        self._server.close()

    def _run(self) -> None:
        connection, _ = self._server.accept()
        pause = threading.Event()
        with connection:
            try:
                for answer in self._answers:
                    self._read_request(connection)
                    connection.sendall(answer)
                for _ in range(1000):
                    connection.sendall(self._drop)
                    pause.wait(0.02)
            except OSError:
                return
        self.had_its_say = True

    @staticmethod
    def _read_request(connection: socket.socket) -> None:
        request = connection.recv(65536)
        head, _, body = request.partition(b"\r\n\r\n")
        # A TLS greeting has no such header and comes in one piece.
        if length := re.search(rb"(?i)content-length: (\d+)", head):
            while len(body) < int(length[1]):
                body += connection.recv(65536)


@pytest.mark.parametrize(
    ("scheme", "answer", "drop"),
    [
        # A TLS record of a kilobyte that never comes to its end.
        ("https", b"\x16\x03\x03\x04\x00", b"\x02"),
        ("http", b"HTTP/1.1 200 OK\r\nx-header: ", b"x"),
        ("http", b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n", b" "),
        ("http", b"HTTP/1.1 200 OK\r\n\r\n", b" "),
        ("http", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["handshake", "head", "body", "body_without_length", "chunks"],
)
def test_a_byte_now_and_then_does_not_hold_us(make_spans, send, scheme, answer, drop):
    """Wherever the backend has got to, the connection is cut, and nothing is acknowledged."""
    with DrippingServer(answer, drop=drop) as server:
        # Long enough for the handshake to begin, also where the machine is busy: Python does not
        # close a socket that is cut just before.
        receipt = send(make_spans(1), f"{scheme}://{server.address}", TIMEOUT="1500")
    assert not server.had_its_say
    assert receipt.acknowledged == ()
    assert "no answer within 1.5 s" in receipt.error


def test_a_kept_connection_is_cut_as_well(make_spans):
    """The deadline holds for requests on a connection that an earlier one opened."""
    success = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    with DrippingServer(success, b"HTTP/1.1 ", drop=b"2") as server:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{server.address}",
            # Long enough for the first, also where the machine is busy.
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2000",
        }
        sink = prepare("otlp_http", env).open()
        assert sink.send(make_spans(1)).error is None
        assert "no answer within" in sink.send(make_spans(1)).error
        sink.close()
    assert not server.had_its_say


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    authority = trustme.CA()
    folder = tmp_path_factory.mktemp("tls")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    client = authority.issue_cert("client@example.org")
    client.private_key_pem.write_to_path(str(folder / "key.pem"))
    client.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
    return authority, folder


def server_context(authority, *, ask_client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if ask_client:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_tls_with_an_authority_of_ones_own(make_spans, send, authority):
    """OTEL_EXPORTER_OTLP_CERTIFICATE names the authority to trust."""
    ca, folder = authority
    with Receiver(server_context(ca)) as receiver:
        spans = make_spans(2)
        receipt = send(spans, receiver.endpoint, CERTIFICATE=str(folder / "ca.pem"))
        assert receipt.acknowledged == ids_of(spans)


def test_an_unknown_authority_is_a_failure_with_a_remedy(make_spans, send, authority):
    """A certificate that nobody vouches for keeps the spans here."""
    with Receiver(server_context(authority[0])) as receiver:
        receipt = send(make_spans(2), receiver.endpoint)
    assert receipt.acknowledged == ()
    assert receiver.requests == []
    assert "local issuer" in receipt.error
    assert "OTEL_EXPORTER_OTLP_CERTIFICATE" in receipt.error


def test_a_client_certificate_is_shown(make_spans, send, authority):
    """A backend that asks for a client certificate gets the one that is set."""
    ca, folder = authority
    with Receiver(server_context(ca, ask_client=True)) as receiver:
        files = {
            "CERTIFICATE": str(folder / "ca.pem"),
            "CLIENT_CERTIFICATE": str(folder / "client.pem"),
            "CLIENT_KEY": str(folder / "key.pem"),
        }
        assert len(send(make_spans(2), receiver.endpoint, **files).acknowledged) == 2
        without = send(make_spans(2), receiver.endpoint, CERTIFICATE=files["CERTIFICATE"])
        assert without.acknowledged == ()
        assert without.error


def test_a_proxy_does_not_get_what_is_meant_for_this_machine(
    make_spans, receiver, send, monkeypatch
):
    """Loopback endpoints are reached directly, whatever the proxy variables say."""
    with Receiver() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        assert len(send(make_spans(1), receiver.endpoint).acknowledged) == 1
        assert proxy.requests == []


def test_a_proxy_gets_all_else_and_netrc_is_not_asked(
    make_spans, receiver, send, monkeypatch, tmp_path: Path
):
    """Other endpoints go through the proxy, gzipped, with our own authorization header."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine backend.invalid login other password other\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", receiver.endpoint)
    receipt = send(make_spans(1), "http://backend.invalid", HEADERS="authorization=Bearer mine")
    assert len(receipt.acknowledged) == 1
    (request,) = receiver.requests
    assert request.path == "http://backend.invalid/v1/traces"
    assert request.headers["authorization"] == "Bearer mine"
    assert request.headers["content-encoding"] == "gzip"


def test_a_damaged_span_is_refused_where_it_must_be_read(make_spans, receiver, send):
    """JSON needs the span decoded; one that the disk has spoilt does not block the rest."""
    from dataclasses import replace

    spans = make_spans(4)
    spans[2] = replace(spans[2], data=b"\xff\xff")
    receipt = send(spans, receiver.endpoint, PROTOCOL="http/json")
    assert list(receipt.refused) == [spans[2].span_id]
    assert len(receipt.acknowledged) == 3


def test_retry_after_is_seconds_or_a_date():
    """What makes no sense counts as not said."""
    now = 1_700_000_000.0
    assert parse_retry_after("120", now) == 120
    assert parse_retry_after(formatdate(now + 90, usegmt=True), now) == 90
    assert parse_retry_after(formatdate(now - 90, usegmt=True), now) == 0
    for nonsense in (None, "", "-5", "soon", "inf", "nan", "9" * 5000, "Mon, 99 Foo 20", "²"):
        assert parse_retry_after(nonsense, now) is None


def test_partial_success_is_read_from_any_spelling():
    """JSON in camel or snake case, numbers as strings; nonsense is no rejection."""
    assert parse_partial_success(b'{"partialSuccess":{"rejectedSpans":"3"}}') == (3, "")
    assert parse_partial_success(b'{"partial_success":{"rejected_spans":2}}') == (2, "")
    assert parse_partial_success(
        b'{"partialSuccess":{"rejectedSpans":0,"errorMessage":"slow down"}}'
    ) == (0, "slow down")
    for nonsense in (b'{"partialSuccess":{"rejectedSpans":-3}}', b"[]", b"null", b"\x00", b"{"):
        assert parse_partial_success(nonsense)[0] == 0

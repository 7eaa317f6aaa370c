"""What goes wrong at one end is told to the other as it happened; nothing is made up."""

import json
import socket
import ssl
import subprocess

import pytest

from tests.gateways.conftest import LIMIT_SECONDS
from tracebridge.gateways.proxy import GatewayOptions, OptionsError

MESSAGES = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
CHUNK = b"7\r\n: ping\n\r\n"


@pytest.fixture
def gateway(start_gateway, upstream, loop_name):
    return start_gateway(upstream.url, use_uvloop=loop_name == "uvloop")


def start_stream(gateway, upstream):
    client = gateway.connect()
    client.send(MESSAGES)
    peer = upstream.accept()
    peer.read_until(b"{}")
    peer.send(STREAM_HEAD, CHUNK)
    assert client.read(len(STREAM_HEAD + CHUNK)) == STREAM_HEAD + CHUNK
    return client, peer


def test_upstream_resets_mid_stream(gateway, upstream):
    """A reset of the upstream in a stream is a reset for the client."""
    client, peer = start_stream(gateway, upstream)
    peer.reset()
    with pytest.raises(ConnectionResetError):
        client.read_to_end()
    assert gateway.wait_for_calls(1)[0].error_type == "stream_cut"


def test_upstream_ends_mid_stream(gateway, upstream):
    """An upstream that ends without the last chunk gives an end without the last chunk."""
    client, peer = start_stream(gateway, upstream)
    peer.close()
    assert client.read_to_end() == b""
    assert gateway.wait_for_calls(1)[0].error_type == "stream_cut"


def test_upstream_ends_before_any_answer(gateway, upstream):
    """An upstream that closes without a word is not answered for."""
    client = gateway.connect()
    client.send(MESSAGES)
    peer = upstream.accept()
    peer.read_until(b"{}")
    peer.close()
    assert client.read_to_end() == b""
    [call] = gateway.wait_for_calls(1)
    assert (call.error_type, call.status_code) == ("upstream_closed", None)


def test_short_body(gateway, upstream):
    """A body shorter than its Content-Length stays short."""
    client = gateway.connect()
    client.send(MESSAGES)
    peer = upstream.accept()
    peer.read_until(b"{}")
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    peer.close()
    assert client.read_to_end().endswith(b"\r\n\r\nabc")
    assert gateway.wait_for_calls(1)[0].error_type == "stream_cut"


def test_body_that_ends_with_the_connection(gateway, upstream):
    """A body framed by the end of the connection is whole when the connection ends."""
    client = gateway.connect()
    client.send(MESSAGES)
    peer = upstream.accept()
    peer.read_until(b"{}")
    peer.send(b'HTTP/1.1 200 OK\r\n\r\n{"id":"msg_1"}')
    peer.close()
    assert client.read_to_end().endswith(b'{"id":"msg_1"}')
    [call] = gateway.wait_for_calls(1)
    assert (call.error_type, call.response_id) == (None, "msg_1")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_client_goes_mid_stream(gateway, upstream, how):
    """A client that goes away in a stream ends the upstream's connection."""
    client, peer = start_stream(gateway, upstream)
    getattr(client, how)()
    with pytest.raises((ConnectionResetError, EOFError)):
        peer.read(1)
    peer.close()
    assert gateway.wait_for_calls(1)[0].error_type == "client_abort"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_client_goes_before_the_head(gateway, upstream, how):
    """A client that goes away while the model thinks ends the upstream's connection."""
    client = gateway.connect()
    client.send(MESSAGES)
    peer = upstream.accept()
    peer.read_until(b"{}")
    getattr(client, how)()
    with pytest.raises((ConnectionResetError, EOFError)):
        peer.read(1)
    peer.close()
    [call] = gateway.wait_for_calls(1)
    assert (call.error_type, call.status_code) == ("client_abort", None)


def test_client_goes_while_sending(gateway, upstream):
    """A client that goes away in its own request ends the upstream's connection."""
    client = gateway.connect()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
    peer = upstream.accept()
    peer.read_head()
    client.close()
    with pytest.raises((ConnectionResetError, EOFError)):
        peer.read(2)
    assert gateway.wait_for_calls(1)[0].error_type == "client_abort"


def test_client_that_only_ended_sending(gateway, upstream):
    """A client that half-closes gets its answers all the same, also to what it sent ahead."""
    client = gateway.connect()
    client.send(MESSAGES, b"GET /2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    client.socket.shutdown(socket.SHUT_WR)
    peer = upstream.accept()
    peer.read_until(b"{}")
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    assert peer.read_until(b" HTTP/1.1") == b"GET /2 HTTP/1.1"
    peer.read_head()
    assert peer.read_to_end() == b""
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    assert client.read_to_end().endswith(b"\r\n\r\nhi")


def test_idle_upstream_closes(gateway, upstream):
    """An upstream that closes an idle connection closes the client's, as it would directly."""
    client = gateway.connect()
    client.send(MESSAGES)
    peer = upstream.accept()
    peer.read_until(b"{}")
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    client.read_head()
    client.read(2)
    peer.close()
    assert client.read_to_end() == b""


def test_answer_and_close_while_the_client_still_sends(gateway, upstream):
    """A client gets the early answer of an upstream that then closes, though it still sends."""
    client = gateway.connect()
    client.send(b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
    peer = upstream.accept()
    peer.read_head()
    answer = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    peer.send(answer)
    peer.close()
    assert client.read(len(answer)) == answer
    client.send(b"x" * 500_000)
    assert client.read_to_end() == b""


def refused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def read_answer(client):
    head = client.read_head()
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    body = json.loads(client.read(int(fields[b"content-length"])))
    assert client.read_to_end() == b""
    return int(head.split(b" ")[1]), fields, body


def test_no_connection(start_gateway, loop_name):
    """Without an upstream the client gets our own 502, which names it and can be found again."""
    port = refused_port()
    gateway = start_gateway(f"http://127.0.0.1:{port}", use_uvloop=loop_name == "uvloop")
    client = gateway.connect()
    client.send(MESSAGES)
    status, fields, body = read_answer(client)
    [call] = gateway.wait_for_calls(1)
    assert status == call.status_code == 502
    assert fields[b"connection"] == b"close"
    assert fields[b"request-id"].decode() == call.request_id == f"tb_{call.call_id}"
    assert body["type"] == "error"
    assert body["error"]["type"] == "api_error"
    assert f"127.0.0.1:{port}" in body["error"]["message"]
    assert call.error_type == "connect_failed"
    assert call.error_message == body["error"]["message"]


def test_no_connection_large_upload(start_gateway):
    """The 502 also reaches a client that is in the middle of a large body."""
    client = start_gateway(f"http://127.0.0.1:{refused_port()}").connect()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n")
    client.send(b"x" * 5_000_000)
    assert read_answer(client)[0] == 502


@pytest.mark.parametrize(
    ("request_bytes", "status", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, "Host"),
        (b"GET / HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n", 403, "Host"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil\r\n\r\n", 403, "web pages"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n", 403, "web pages"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n\r\n", 403, "web pages"),
        (b"GET http://x/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "base URL"),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "base URL"),
        (b"GET /\r\n\r\n", 400, "request line"),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 400, "request line"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "request line"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\nHost: localhost\n\n", 400, "carriage return"),
        (b"GET / HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n", 400, "carriage return"),
        (b"GET / HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400, "folded"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX : a\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n", 400, "malformed"),
    ],
)
def test_refused(gateway, upstream, request_bytes, status, words):
    """A request that must not pass is answered with the reason, and no byte goes upstream."""
    client = gateway.connect()
    client.send(request_bytes)
    got, _, body = read_answer(client)
    assert got == status
    assert words in body["error"]["message"]
    assert upstream.has_nobody_waiting()


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"Content-Length: 1, 1\r\n\r\na",
        b"Content-Length: +1\r\n\r\na",
        b"Content-Length: -1\r\n\r\na",
        b"Content-Length: \xb2\r\n\r\na",
        b"Content-Length:\r\n\r\n",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffff\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1\na\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 5000,
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n folded\r\n\r\n",
    ],
)
def test_ambiguous_framing(gateway, upstream, rest):
    """A body whose end could be understood in two ways is refused, and no byte goes upstream."""
    client = gateway.connect()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n", rest)
    assert read_answer(client)[0] == 400
    assert upstream.has_nobody_waiting()


def test_bad_chunk_later(gateway, upstream):
    """A chunk that is bad when the head is gone ends the upstream's connection with an error."""
    client = gateway.connect()
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n")
    client.send(b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    peer = upstream.accept()
    peer.read_until(b"1\r\na\r\n")
    client.send(b"zz\r\n")
    assert read_answer(client)[0] == 400
    with pytest.raises(ConnectionResetError):
        peer.read(1)


def test_head_too_large(gateway, upstream):
    """A head beyond 256 kB is refused."""
    client = gateway.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"x" * 300_000)
    assert read_answer(client)[0] == 431
    assert upstream.has_nobody_waiting()


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        (b"/api/anthropic/v1/messages", "anthropic=URL"),
        (b"/api/google/gemini/x", "gemini=URL"),
    ],
)
def test_nothing_serves_the_path(start_gateway, upstream, path, remedy):
    """A path without an upstream is a 404 in a shape all vendors' clients read, with the remedy."""
    gateway = start_gateway(f"openai={upstream.url}")
    client = gateway.connect()
    client.send(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}" % path)
    status, _, body = read_answer(client)
    assert status == 404
    assert remedy in body["error"]["message"]
    assert (body["type"], body["error"]["type"]) == ("error", "not_found_error")
    assert (body["error"]["code"], body["error"]["status"]) == (404, "NOT_FOUND")
    assert gateway.calls == []


def test_refused_head_request(start_gateway, upstream):
    """Our own answer to HEAD has no body."""
    client = start_gateway(f"openai={upstream.url}").connect()
    client.send(b"HEAD /api/anthropic HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.read_to_end().endswith(b"\r\n\r\n")


def test_nobody_else_can_connect(upstream, tmp_path):
    """The gateway listens on loopback only."""
    for listen in ("0.0.0.0:0", "[::]:0", "192.0.2.1:0", "gateway.example:0"):
        with pytest.raises(OptionsError, match="others could use"):
            GatewayOptions(upstream=(upstream.url,), home=tmp_path, listen=listen)


@pytest.mark.parametrize("listen", ["", "8080", "localhost", "127.0.0.1:99999", "::1:80", "a:b:1"])
def test_bad_listen_address(listen, tmp_path):
    """A listen address that cannot be understood is refused with an example."""
    with pytest.raises(OptionsError, match="HOST:PORT"):
        GatewayOptions(upstream=("respan",), home=tmp_path, listen=listen)


def test_port_in_use(start_gateway, upstream):
    """A port that is taken is an error that names it."""
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{upstream.port}"):
        start_gateway("respan", listen=f"127.0.0.1:{upstream.port}")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Make a certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    command += f" -keyout {folder}/key.pem -out {folder}/cert.pem -subj /CN=localhost"
    command += " -addext subjectAltName=DNS:localhost"
    subprocess.run(command.split(), check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def serve_tls(upstream, certificate):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    upstream.listener = context.wrap_socket(upstream.listener, server_side=True)
    upstream.listener.settimeout(LIMIT_SECONDS)


def test_tls(start_gateway, upstream, certificate, monkeypatch, loop_name):
    """An upstream over TLS whose certificate is trusted gets the same bytes."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    serve_tls(upstream, certificate)
    gateway = start_gateway(f"https://localhost:{upstream.port}", use_uvloop=loop_name == "uvloop")
    client = gateway.connect()
    client.send(MESSAGES)
    peer = upstream.accept()
    expected = MESSAGES.replace(b"localhost", b"localhost:%d" % upstream.port)
    assert peer.read(len(expected)) == expected
    peer.send(STREAM_HEAD, CHUNK, b"0\r\n\r\n")
    assert client.read(len(STREAM_HEAD + CHUNK) + 5).endswith(b"0\r\n\r\n")
    client.send(MESSAGES)
    assert peer.read(len(expected)) == expected
    client.close()
    with pytest.raises((ConnectionResetError, EOFError, ssl.SSLError)):
        peer.read(1)
    assert [call.error_type for call in gateway.wait_for_calls(2)] == ["stream_cut", "client_abort"]


@pytest.mark.parametrize(
    ("trusted", "host", "words"),
    [(False, "localhost", "self-signed certificate"), (True, "127.0.0.1", "IP address mismatch")],
)
def test_tls_refused(start_gateway, upstream, certificate, monkeypatch, *, trusted, host, words):
    """Another authority and another name are refused, and the 502 says which it was."""
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    serve_tls(upstream, certificate)
    gateway = start_gateway(f"https://{host}:{upstream.port}")
    client = gateway.connect()
    client.send(MESSAGES)
    with pytest.raises((ssl.SSLError, OSError)):
        upstream.accept()
    status, _, body = read_answer(client)
    assert status == 502
    assert words in body["error"]["message"]
    assert gateway.wait_for_calls(1)[0].error_type == "tls_error"

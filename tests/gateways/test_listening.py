"""Beyond loopback: only with keys and TLS, only under our own names; what the gateway says of itself."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from tests.gateways.conftest import LIMIT_SECONDS, Peer
from tracebridge.gateways.client_keys import FILE, add_key
from tracebridge.gateways.figures import METRICS
from tracebridge.gateways.forwarding import HEALTH
from tracebridge.gateways.proxy import GatewayOptions, OptionsError

NAME = "llm.example.com"
EVERYWHERE = "0.0.0.0:0"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def issue(authority, tmp_path):
    """Give a function that writes a new certificate."""

    def write(until: dt.datetime | None = None) -> Path:
        issued = authority.issue_cert(NAME, not_after=until)
        path = tmp_path / "certificate.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(path)
        return path

    return write


@pytest.fixture
def certificate(issue) -> Path:
    return issue()


@pytest.fixture
def keys(home) -> Path:
    return home / FILE


@pytest.fixture(autouse=True)
def key(keys) -> str:
    return add_key(keys, "alice", None)


@pytest.fixture
def open_gateway(start_gateway, upstream, certificate, keys):
    return start_gateway(
        upstream.url,
        listen=EVERYWHERE,
        client_keys=keys,
        tls_cert=certificate,
        server_names=(NAME,),
    )


@pytest.fixture
def over_tls(authority):
    """Give a function that connects to a port as a client that trusts *authority*."""
    opened = []

    def connect(port: int) -> Peer:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        raw = socket.create_connection(("127.0.0.1", port), LIMIT_SECONDS)
        opened.append(
            Peer(context.wrap_socket(raw, server_hostname=NAME, suppress_ragged_eofs=False))
        )
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


def get(path: str, *fields: str, host: str = "localhost") -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", f"Host: {host}", *fields, "", "")).encode()


def post(key: str, host: str = NAME, path: str = "/v1/messages") -> bytes:
    fields = (f"POST {path} HTTP/1.1", f"Host: {host}", f"x-api-key: {key}")
    return "\r\n".join((*fields, "Content-Length: 2", "", "{}")).encode()


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        ({}, "client keys .* and TLS"),
        ({"with_keys": True}, "it needs TLS"),
        ({"with_tls": True}, "it needs client keys"),
        ({"listen": "127.0.0.1:0", "server_names": (NAME,)}, "it needs client keys"),
    ],
)
def test_what_is_open_to_others_needs_keys_and_tls(home, certificate, options, lacking):
    """A name by which others come is such a door too; what is lacking is named."""
    asked = {"listen": EVERYWHERE, **options}
    if asked.pop("with_keys", False):
        asked["client_keys"] = home / FILE
    if asked.pop("with_tls", False):
        asked["tls_cert"] = certificate
    with pytest.raises(OptionsError, match=lacking):
        GatewayOptions(upstream=("anthropic",), home=home, **asked)
    assert GatewayOptions(upstream=("anthropic",), home=home, is_insecure=True, **asked)


def test_a_file_without_a_key_is_no_key(home):
    """An empty file would let nobody in, but it could get its first key from anybody."""
    (home / FILE).write_text("")
    with pytest.raises(OptionsError, match="client keys"):
        GatewayOptions(
            upstream=("anthropic",), home=home, listen=EVERYWHERE, client_keys=home / FILE
        )


def test_calls_over_tls(open_gateway, upstream, over_tls, key):
    """Bytes pass as they do without, more than one call a connection, to the end of the stream."""
    client = over_tls(open_gateway.port)
    assert open_gateway.url.startswith("https://")
    peer = None
    for number in range(3):
        client.send(post(key))
        peer = peer or upstream.accept()
        peer.read_until(b"\r\n\r\n{}")
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n%d\r\n" % number)
        assert client.read_until(b"%d\r\n" % number).endswith(b"%d\r\n" % number)
        peer.send(b"0\r\n\r\n")
        assert client.read_until(b"0\r\n\r\n")
    calls = open_gateway.wait_for_calls(3)
    assert [call.client_name for call in calls] == ["alice"] * 3


def test_an_upstream_that_is_cut_is_cut_over_tls(open_gateway, upstream, over_tls, key):
    """The client sees no clean end of the answer."""
    client = over_tls(open_gateway.port)
    client.send(post(key))
    peer = upstream.accept()
    peer.read_until(b"\r\n\r\n{}")
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n")
    client.read_until(b"1\r\n1\r\n")
    peer.reset()
    with pytest.raises((ConnectionResetError, ssl.SSLError)):
        client.socket.recv(10)
    (call,) = open_gateway.wait_for_calls(1)
    assert call.error_type == "stream_cut"


def test_a_client_that_goes_over_tls_is_gone_upstream(open_gateway, upstream, over_tls, key):
    """TLS has no half-closed connections: its end is the call's."""
    client = over_tls(open_gateway.port)
    client.send(post(key))
    peer = upstream.accept()
    peer.read_until(b"\r\n\r\n{}")
    client.close()
    with pytest.raises((ConnectionResetError, EOFError)):
        peer.read(1)
    (call,) = open_gateway.wait_for_calls(1)
    assert call.error_type == "client_abort"


def test_a_refusal_over_tls_gets_to_its_client(open_gateway, upstream, over_tls):
    """Though much of the request is still on its way."""
    client = over_tls(open_gateway.port)
    body = bytes(300_000)
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: %s\r\n" % NAME.encode())
    client.send(b"Content-Length: %d\r\n\r\n" % len(body), body)
    assert client.read_head().startswith(b"HTTP/1.1 401 ")
    assert upstream.has_nobody_waiting()


def test_plain_text_is_no_way_in(open_gateway, upstream, key):
    """Where TLS is spoken nothing else is."""
    client = open_gateway.connect()
    client.send(post(key))
    with contextlib.suppress(ConnectionResetError):
        assert b"200" not in client.read_to_end()
    assert upstream.has_nobody_waiting()


@pytest.mark.parametrize(
    ("host", "origin", "is_let_in"),
    [
        (NAME, None, True),
        (f"{NAME.upper()}:4141", None, True),
        ("localhost:1", None, True),
        ("192.0.2.7:4141", None, True),
        ("[2001:db8::1]:4141", None, True),
        (NAME, f"https://{NAME}", True),
        ("evil.example", None, False),
        (f"{NAME}.evil.example", None, False),
        (f"{NAME}@evil.example", None, False),
        (NAME, "https://evil.example", False),
        # A page may well come from an address.
        ("192.0.2.7:4141", "http://192.0.2.7", False),
        (NAME, "null", False),
    ],
)
def test_others_come_under_our_names(open_gateway, over_tls, host, origin, is_let_in):
    """Or by address, which nobody can lead elsewhere; web pages of others do not."""
    client = over_tls(open_gateway.port)
    client.send(get(HEALTH, *((f"Origin: {origin}",) if origin else ()), host=host))
    status = client.read_head().split()[1]
    assert status == (b"200" if is_let_in else b"403")


def test_health_needs_no_key_and_figures_do(open_gateway, over_tls, key):
    """A load balancer has none; who has a key and what was spent is for those inside."""
    client = over_tls(open_gateway.port)
    client.send(get(HEALTH, host=NAME))
    head = client.read_head()
    assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
    assert json.loads(client.read_to_end()) == {"status": "ok"}
    client = over_tls(open_gateway.port)
    client.send(get(METRICS, host=NAME))
    assert client.read_head().startswith(b"HTTP/1.1 401 ")
    client = over_tls(open_gateway.port)
    client.send(get(METRICS, f"Authorization: Bearer {key}", host=NAME))
    assert client.read_head().startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0")
    assert b'tracebridge_gateway_refused_total{status="401"} 1\n' in client.read_to_end()


def test_figures_are_not_for_everybody(start_gateway, upstream):
    """A gateway that lets everybody in keeps them to itself: the upstream is asked instead."""
    gateway = start_gateway(upstream.url, listen=EVERYWHERE, is_insecure=True)
    client = gateway.connect()
    client.send(get(METRICS))
    assert upstream.accept().read_head().startswith(b"GET /tracebridge/metrics HTTP/1.1\r\n")


def test_figures_on_loopback(gateway, upstream):
    """Calls by client, provider and status, with tokens and times, as Prometheus reads them."""
    client = gateway.connect()
    client.send(post("sk-mine", "localhost"))
    peer = upstream.accept()
    peer.read_until(b"\r\n\r\n{}")
    usage = {"input_tokens": 3, "output_tokens": 4}
    answer = json.dumps({"id": "msg_1", "type": "message", "model": "m", "usage": usage}).encode()
    fields = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
    peer.send(b"HTTP/1.1 200 OK\r\n", fields, answer)
    client.read_until(answer)
    gateway.wait_for_calls(1)
    page = gateway_figures(gateway, b"calls_total")
    assert b'calls_total{client="",provider="anthropic",status="200"} 1\n' in page
    assert b'tokens_total{client="",provider="anthropic",type="output"} 4\n' in page
    assert b'call_seconds_bucket{client="",provider="anthropic",le="+Inf"} 1\n' in page
    assert b"tracebridge_gateway_connections 2\n" in page
    names = [line.split()[2] for line in page.splitlines() if line.startswith(b"# TYPE ")]
    assert len(names) == len(set(names))
    for line in page.splitlines():
        if not line.startswith(b"#"):
            float(line.rpartition(b" ")[2])


def gateway_figures(gateway, part: bytes) -> bytes:
    limit = time.monotonic() + LIMIT_SECONDS
    while True:
        client = gateway.connect()
        client.send(get(METRICS))
        assert client.read_head().startswith(b"HTTP/1.1 200 OK\r\n")
        page = client.read_to_end()
        client.close()
        # A call is counted after it is recorded.
        if part in page:
            return page
        assert time.monotonic() < limit


class TlsProcess:
    """The gateway as other machines would find it."""

    def __init__(self, home: Path, upstream_url: str, certificate: Path) -> None:
        self.home = home
        words = ["--listen", EVERYWHERE, "--upstream", upstream_url]
        words += ["--tls-cert", str(certificate), "--server-name", NAME]
        words += ["--upstream-key", "CMD:cat " + str(home / "real-key")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tracebridge", "gateway", *words],
            env={"TRACEBRIDGE_HOME": str(home), "HOME": str(home), "PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().strip()
        assert self.url, self.process.communicate()
        self.port = int(self.url.rpartition(":")[2])


@pytest.fixture
def tls_process(home, upstream, certificate):
    (home / "real-key").write_text("sk-first")
    process = TlsProcess(home, upstream.url, certificate)
    yield process
    if process.process.poll() is None:
        process.process.kill()
    process.process.communicate()


def test_what_is_new_is_taken_up(tls_process, upstream, over_tls, issue, key):
    """The certificate when its file changes, what a command prints on SIGHUP; streams go on."""
    client = over_tls(tls_process.port)
    first = client.socket.getpeercert(binary_form=True)
    client.send(post(key))
    peer = upstream.accept()
    assert b"x-api-key: sk-first\r\n" in peer.read_until(b"\r\n\r\n{}")
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n")
    client.read_until(b"1\r\n1\r\n")

    issue(dt.datetime.now(dt.UTC) + dt.timedelta(days=9))
    (tls_process.home / "real-key").write_text("sk-second")
    limit = time.monotonic() + LIMIT_SECONDS
    while over_tls(tls_process.port).socket.getpeercert(binary_form=True) == first:
        assert time.monotonic() < limit
    tls_process.process.send_signal(signal.SIGHUP)
    seen = b""
    while b"sk-second" not in seen:
        other = over_tls(tls_process.port)
        other.send(post(key))
        seen = upstream.accept().read_until(b"\r\n\r\n{}")
        assert time.monotonic() < limit

    peer.send(b"1\r\n2\r\n0\r\n\r\n")
    assert client.read_until(b"0\r\n\r\n") == b"1\r\n2\r\n0\r\n\r\n"


def test_a_certificate_that_is_none_changes_nothing(tls_process, over_tls, certificate):
    """What was in force stays, and stderr says so once."""
    certificate.write_text("-----BEGIN CERTIFICATE-----\nnone\n")
    tls_process.process.send_signal(signal.SIGHUP)
    assert tls_process.process.stderr is not None
    line = tls_process.process.stderr.readline().decode()
    assert "not reloaded" in line
    assert str(certificate) in line
    assert over_tls(tls_process.port)


@pytest.mark.parametrize("has_key", [True, False])
def test_exports_from_elsewhere_need_a_key(tls_process, over_tls, key, has_key):
    """The receiver on the same port takes nothing from strangers."""
    client = over_tls(tls_process.port)
    fields = (f"x-api-key: {key if has_key else 'tbk_wrong'}", "Content-Type: application/json")
    head = ("POST /v1/logs HTTP/1.1", f"Host: {NAME}", *fields, "Content-Length: 2", "", "{}")
    client.send("\r\n".join(head).encode())
    assert client.read_head().split()[1] == (b"200" if has_key else b"401")

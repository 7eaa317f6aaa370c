"""OTLP over gRPC: the same as over HTTP, in gRPC's words."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import trustme
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.relay.conftest import (
    PATIENCE_S,
    GatewayCall,
    RelayProcess,
    keys,
    turn,
    watchers_request,
)
from tracebridge.gateways.client_keys import add_key
from tracebridge.testing.receiver import Answer

grpc = importlib.import_module("grpc")
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
GOOD = watchers_request(turn(), "msg_1")


class Channel:
    """A relay process, and an exporter's channel to it."""

    def __init__(self, to: str, home: Path, *arguments: str, trust: bytes | None = None) -> None:
        listen = ("--grpc-listen", "127.0.0.1:0", *arguments)
        self.relay = RelayProcess("--to", to, *listen, home=home)
        assert self.relay.process.stdout is not None
        line = self.relay.process.stdout.readline().decode().strip()
        target = line.removeprefix("grpc://")
        self._channel = (
            grpc.insecure_channel(target)
            if trust is None
            else grpc.secure_channel(target, grpc.ssl_channel_credentials(trust))
        )

    def export(self, request: bytes, **metadata: str) -> ExportTraceServiceResponse:
        call = self._channel.unary_unary(EXPORT)
        answer = call(request, metadata=tuple(metadata.items()), timeout=PATIENCE_S)
        return ExportTraceServiceResponse.FromString(answer)

    def close(self) -> None:
        self._channel.close()
        self.relay.end()


@pytest.fixture
def connect(tmp_path, receiver):
    made = []

    def connect(*arguments: str, home: Path = tmp_path, trust: bytes | None = None) -> Channel:
        made.append(Channel(receiver.endpoint, home, *arguments, trust=trust))
        return made[-1]

    yield connect
    for each in made:
        each.close()


def test_spans_over_grpc_go_the_same_way(connect, receiver):
    """Ours byte for byte, a gateway's under its turn."""
    channel = connect()
    assert channel.export(GOOD) == ExportTraceServiceResponse()
    assert receiver.requests[0].body == GOOD
    channel.export(GatewayCall("msg_1", attributes=keys()).request())
    assert {span.trace_id for span in receiver.spans} == {turn()}


def test_what_the_backend_did_not_take_is_unavailable(connect, receiver):
    """So that the exporter sends it again; what can never be is an invalid argument."""
    channel = connect()
    receiver.answer_next(Answer(status=500))
    with pytest.raises(grpc.RpcError) as caught:
        channel.export(GOOD)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError) as caught:
        channel.export(b"\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    channel.export(GOOD)
    receiver.answer_next(Answer(rejected=1, error_message="no such tenant"))
    assert channel.export(GOOD).partial_success.rejected_spans == 1


def test_keys_and_tls_hold_for_grpc_too(connect, receiver, tmp_path):
    """The same file of keys, the same certificate."""
    authority = trustme.CA()
    chain = tmp_path / "chain.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(chain)
    home = tmp_path / "home"
    key = add_key(home / "gateway-keys.toml", "litellm", None)
    channel = connect("--tls-cert", str(chain), home=home, trust=authority.cert_pem.bytes())
    with pytest.raises(grpc.RpcError) as caught:
        channel.export(GOOD)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    channel.export(GOOD, authorization=f"Bearer {key}")
    assert len(receiver.requests) == 1

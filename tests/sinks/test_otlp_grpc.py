from __future__ import annotations

import subprocess
import sys

import pytest
from beside import free_port
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from tracebridge.sinks import Receipt, prepare
from tracebridge.sinks._batch import SETTINGS_RETRY_S
from tracebridge.testing.receiver import Answer, GrpcReceiver


@pytest.fixture
def receiver():
    with GrpcReceiver() as receiver:
        yield receiver


@pytest.fixture
def sink(receiver):
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=secret-1",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "5000",
    }
    sink = prepare("otlp_grpc", env).open()
    yield sink
    sink.close()


def retry_in(seconds: float) -> tuple[tuple[str, bytes], ...]:
    info = RetryInfo()
    info.retry_delay.FromMilliseconds(int(seconds * 1000))
    detail = Any()
    detail.Pack(info)
    return (("grpc-status-details-bin", Status(details=[detail]).SerializeToString()),)


def test_spans_arrive_whole(make_spans, receiver, sink):
    """Spans and headers arrive as over HTTP."""
    spans = make_spans(3)
    assert sink.send(spans) == Receipt(acknowledged=tuple(span.span_id for span in spans))
    (request,) = receiver.requests
    assert [span.message.SerializeToString() for span in request.spans] == [s.data for s in spans]
    assert request.headers["x-key"] == "secret-1"


@pytest.mark.parametrize(
    "code",
    ["UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "DATA_LOSS"],
)
def test_what_the_specification_calls_retryable_is_kept(make_spans, receiver, sink, code):
    """With the delay that the backend asks for."""
    receiver.answer_next(Answer(grpc_code=code, grpc_metadata=retry_in(2.5)))
    receipt = sink.send(make_spans(2))
    assert (receipt.acknowledged, receipt.refused, receipt.retry_after_s) == ((), {}, 2.5)
    assert code in receipt.error


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"])
def test_wrong_settings_lose_nothing(make_spans, receiver, sink, code):
    """A wrong key is reported without the key, and tried again a minute later."""
    receiver.answer_next(Answer(grpc_code=code, error_message="bad secret-1"))
    receipt = sink.send(make_spans(2))
    assert (receipt.acknowledged, receipt.refused) == ((), {})
    assert receipt.retry_after_s == SETTINGS_RETRY_S
    assert "bad ***" in receipt.error
    assert "check" in receipt.error


def test_an_exhausted_backend_is_left_alone_or_given_less(make_spans, receiver, sink):
    """RESOURCE_EXHAUSTED means the backend if it names a delay, and the size if not."""
    receiver.answer_next(Answer(grpc_code="RESOURCE_EXHAUSTED", grpc_metadata=retry_in(7)))
    receipt = sink.send(make_spans(4))
    assert (receipt.acknowledged, receipt.retry_after_s) == ((), 7)
    receiver.rule = lambda request: Answer(
        grpc_code="RESOURCE_EXHAUSTED" if len(request.spans) > 2 else ""
    )
    assert len(sink.send(make_spans(8)).acknowledged) == 8


@pytest.mark.parametrize("partial", [True, False])
def test_bad_spans_are_found(make_spans, receiver, sink, partial):
    """By halving, after INVALID_ARGUMENT as after a partial success."""
    spans = make_spans(32)
    bad = spans[9].span_id

    def rule(request):
        if bad not in request.span_ids:
            return Answer()
        return Answer(rejected=1) if partial else Answer(grpc_code="INVALID_ARGUMENT")

    receiver.rule = rule
    receipt = sink.send(spans)
    assert list(receipt.refused) == [bad]
    assert len(receipt.acknowledged) == 31


def test_garbage_is_no_success(make_spans, receiver, sink):
    """An answer that is no OTLP response acknowledges nothing."""
    receiver.rule = lambda _: Answer(body=b"\xff\xff")
    receipt = sink.send(make_spans(2))
    assert (receipt.acknowledged, receipt.refused) == ((), {})
    assert receipt.error


def test_nobody_listening_is_a_failure(make_spans):
    """The spans are kept."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    sink = prepare("otlp_grpc", {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}).open()
    receipt = sink.send(make_spans(1))
    sink.close()
    assert receipt.acknowledged == ()
    assert "UNAVAILABLE" in receipt.error


def test_without_the_extra_the_remedy_is_told():
    """A missing grpc is a settings error with the command that mends it."""
    program = (
        "import sys; sys.modules['grpc'] = None\n"
        "from tracebridge.sinks import SinkSettingsError, prepare\n"
        "try: prepare('otlp_grpc', {})\n"
        "except SinkSettingsError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install 'tracebridge[grpc]'" in done.stdout

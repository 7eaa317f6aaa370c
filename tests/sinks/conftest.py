from __future__ import annotations

from collections.abc import Callable

import pytest

from tracebridge import ids
from tracebridge.encode import encode_span
from tracebridge.model import Span, SpanKind
from tracebridge.sinks import OutboxSpan


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_spans() -> Callable[..., list[OutboxSpan]]:
    def make(count: int, text: str = "") -> list[OutboxSpan]:
        trace_id = ids.trace_id("claude-code", "session", "turn")
        spans = []
        for number in range(count):
            span_id = ids.span_id(trace_id, "tool", str(number))
            span = Span(
                trace_id=trace_id,
                span_id=span_id,
                parent_span_id=ids.root_span_id(trace_id),
                name=f"execute_tool {number}",
                kind=SpanKind.INTERNAL,
                start_ns=number,
                end_ns=number + 1,
                attributes={"text": text},
            )
            spans.append(
                OutboxSpan(
                    span_id=span_id,
                    trace_id=trace_id,
                    resource=(("service.name", "claude-code"),),
                    data=encode_span(span),
                )
            )
        return spans

    return make

"""Calls of plain scripts: traces of their own at once, unless an agent's turn may still claim them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from claude_files import Claude, at
from exports import exported
from hypothesis import given
from hypothesis import strategies as st

from tracebridge import semconv
from tracebridge.model import SCRIPT_CALL, CallIdentity, GatewayCall, SpanExport, Usage
from tracebridge.scripts import is_of_script, outer_context
from tracebridge.settings import read_settings
from tracebridge.spool import Spool
from tracebridge.testing.receiver import Receiver
from tracebridge.views.status import status
from tracebridge.watch import watch_once

SDK = "OpenAI/Python 2.8.1"
OUTER = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture
def receiver(monkeypatch):
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


def a_call(call_id: str = "c", client: str = SDK, **known) -> GatewayCall:
    given = {
        "start_ns": at(1),
        "end_ns": at(2),
        "response_id": f"resp_{call_id}",
        "usage": Usage(input_tokens=3, output_tokens=2),
        "request_headers": {"user-agent": client},
    } | known
    return GatewayCall(
        call_id=call_id, gateway="tracebridge", method="POST", path="/v1/responses", **given
    )


def test_each_call_is_a_trace_at_once(receiver, home: Path):
    """Two calls of a script: two traces of one span, counted as a script's and not as orphans."""
    spool = Spool(home)
    spool.write_call(a_call("one", client_name="nightly"))
    spool.write_call(a_call("two"))
    assert watch_once(read_settings())
    one, two = sorted(receiver.spans, key=lambda span: span.attributes[semconv.RESPONSE_ID])
    assert one.trace_id != two.trace_id
    assert (one.parent_span_id, two.parent_span_id) == ("", "")
    assert one.attributes[semconv.LINK_REASON] == SCRIPT_CALL
    assert one.attributes[semconv.USER_ID] == one.attributes[semconv.RESPAN_CUSTOMER] == "nightly"
    assert semconv.USER_ID not in two.attributes
    assert one.resource["service.name"] == "script"
    links = status(read_settings())["links"]
    assert (links["scripts"], links["orphans"], links["waiting"]) == (2, 0, 0)
    assert links["orphan_reasons"] == {}
    assert watch_once(read_settings())
    assert len(receiver.spans) == 2


def test_a_script_with_a_trace_of_its_own_keeps_it(receiver, home: Path):
    """Calls made under a traceparent hang below the span that it names, in that trace."""
    for name in ("one", "two"):
        Spool(home).write_call(a_call(name, traceparent=OUTER))
    assert watch_once(read_settings())
    assert {(span.trace_id, span.parent_span_id) for span in receiver.spans} == {
        ("a" * 32, "b" * 16)
    }
    assert len({span.span_id for span in receiver.spans}) == 2


def test_what_may_be_an_agents_waits_for_its_turn(receiver, home: Path, tmp_path: Path):
    """Behind another gateway an agent's call may look like a script's: an open turn may claim it."""
    claude = Claude(home, tmp_path)
    claude.hook(0, "UserPromptSubmit", prompt="hi")
    claude.prompt_line(0, "hi")
    claude.spool.write_call(a_call(response_id="msg_1"))
    assert watch_once(read_settings())
    assert status(read_settings())["links"]["waiting"] == 1
    claude.answer_line(3, "msg_1", {"type": "text", "text": "hello"}, began=1)
    claude.hook(3, "Stop")
    claude.spool.write_call(a_call("script"))
    # Once for the turn, once for what it has left.
    assert watch_once(read_settings())
    assert watch_once(read_settings())
    links = status(read_settings())["links"]
    assert (links["by_evidence"]["response_id"], links["scripts"]) == (1, 1)
    trace = next(span.trace_id for span in receiver.spans if span.name.startswith("invoke_agent"))
    chats = {
        span.attributes[semconv.RESPONSE_ID]: span for span in receiver.spans if span.kind == 3
    }
    assert set(chats) == {"msg_1", "resp_script"}
    assert chats["msg_1"].trace_id == trace != chats["resp_script"].trace_id


def test_what_a_gateway_behind_ours_tells_of_a_script_is_no_second_call(receiver, home: Path):
    """Known by the id of LiteLLM, or of the response, whether it comes at once or later."""
    named = {"response_headers": {"x-litellm-call-id": "l-1"}, "response_id": None}
    ours = [a_call("one", **named), a_call("two")]
    behind = [
        replace(call, call_id=f"litellm:{call.call_id}", gateway="litellm", start_ns=at(1.1))
        for call in ours
    ]
    spool = Spool(home)
    for call in (behind[0], *ours):
        spool.write_call(call)
    assert watch_once(read_settings())
    spool.write_call(behind[1])
    assert watch_once(read_settings())
    assert len(receiver.spans) == 2
    links = status(read_settings())["links"]
    assert links["by_gateway"] == {"litellm": {"script": 2}, "tracebridge": {"script": 2}}
    spool.write_call(replace(behind[1], call_id="another", response_id="resp_other"))
    assert watch_once(read_settings())
    assert len(receiver.spans) == 3


def test_spans_of_a_gateway_behind_ours_do_not_count_a_script_s_call_again(receiver, home: Path):
    """They go out as they came, but for the usage, which stands on what our gateway saw."""
    spool = Spool(home)
    spool.write_call(a_call("one", response_id="chatcmpl-1"))
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.usage.input_tokens": 3,
    }
    export = exported({"name": "chat m", "start": at(1.1), "end": at(1.9), "attributes": told})
    spool.take(SpanExport(time_ns=at(2), request=export.SerializeToString()))
    assert watch_once(read_settings(), close_open=True)
    ours, theirs = sorted(receiver.spans, key=lambda span: span.start_ns)
    assert ours.trace_id != theirs.trace_id
    assert ours.attributes[semconv.INPUT_TOKENS] == 3
    assert semconv.INPUT_TOKENS not in theirs.attributes
    assert status(read_settings())["links"]["orphans"] == 0


@pytest.mark.parametrize(
    "client",
    [
        "Anthropic/Python 0.75.0",
        "AsyncAnthropic/Python 0.75.0",
        "Anthropic/JS 0.70.0",
        "AsyncOpenAI/Python 2.8.1",
        "google-genai-sdk/1.52.0 gl-python/3.11.7",
        "curl/8.5.0",
        "python-requests/2.32.5",
    ],
)
def test_who_is_a_script(client):
    """SDKs and what scripts use without one are known by their names."""
    assert is_of_script(a_call(client=client))
    named = CallIdentity(agent="gemini-cli", session_id=None)
    assert not is_of_script(a_call(client=client, identity=named))


@pytest.mark.parametrize("client", ["", "litellm/1.106.2", "claude-cli/2.1.329", "node", "my/1"])
def test_who_is_not_known_to_be_one(client):
    """Gateways and unknown programs may carry an agent's calls, so these wait for their turn."""
    assert not is_of_script(a_call(client=client))


@given(header=st.text())
def test_any_traceparent(header):
    """What is no traceparent gives no parent; zeros are none either."""
    assert outer_context(a_call(traceparent=header)) is None
    assert outer_context(a_call(traceparent=f"00-{'0' * 32}-{'b' * 16}-01")) is None
    assert outer_context(a_call(traceparent=OUTER)) == ("a" * 32, "b" * 16)

"""Where a relay puts the spans of other gateways, and what it leaves as it is."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.relay.conftest import (
    NOW,
    GatewayCall,
    keys,
    post,
    status,
    turn,
    watchers_request,
    with_more,
)
from tracebridge.ids import root_span_id, span_id
from tracebridge.relay.rules import Rules
from tracebridge.relay.wire import Resource, Scope, join
from tracebridge.scrub import scrub_text
from tracebridge.spans import Content

USAGE = "gen_ai.usage.input_tokens"


def test_what_watchers_send_passes_byte_for_byte(start_relay, receiver):
    """It is final: the request that arrives is the one that was sent."""
    relay = start_relay()
    sent = watchers_request(turn(), "msg_1", "msg_2")
    assert post(relay.url, sent).status_code == 200
    assert [request.body for request in receiver.requests] == [sent]


def test_a_call_with_keys_lies_under_its_turns_chat_at_once(start_relay, receiver):
    """Nothing else has to be known: trace and parent are computed."""
    relay = start_relay()
    call = GatewayCall("msg_1", attributes=keys())
    assert post(relay.url, call.request()).status_code == 200
    spans = {span.name: span for span in receiver.spans}
    server, noise, chat = (
        spans[name] for name in ("POST /v1/messages", "auth /v1/messages", "chat claude-opus-5")
    )
    assert {span.trace_id for span in receiver.spans} == {turn()}
    assert [server.span_id, noise.span_id, chat.span_id] == call.span_ids
    assert server.parent_span_id == span_id(turn(), "llm", "msg_1")
    assert (noise.parent_span_id, chat.parent_span_id) == (server.span_id, noise.span_id)
    assert server.start_ns == NOW
    for span in (server, noise, chat):
        assert span.attributes["tracebridge.original.trace_id"] == call.trace.hex()
        (link,) = span.message.links
        assert (link.trace_id, link.span_id.hex()) == (call.trace, span.span_id)
    assert status(relay.url)["spans"]["turn_id"] == 3


def test_usage_of_a_linked_call_is_set_aside(start_relay, receiver):
    """The watcher's chat has it; it is still there to be read, where no backend adds it up."""
    relay = start_relay()
    post(relay.url, GatewayCall("msg_1", attributes=keys()).request())
    (chat,) = (span for span in receiver.spans if span.name.startswith("chat"))
    assert USAGE not in chat.attributes
    assert chat.attributes[f"tracebridge.original.{USAGE}"] == 100
    assert chat.attributes["gen_ai.response.id"] == "msg_1"


def test_the_headers_that_litellm_writes_as_a_text_are_keys(start_relay, receiver):
    """Its first OpenTelemetry version has them in Python's notation, the caller's key among them."""
    codex = '{"session_id": "séance", "turn_id": "t-1"}'
    headers = {"x-codex-turn-metadata": codex, "x-api-key": "of-the-caller-0123456789"}
    relay = start_relay()
    call = GatewayCall("resp_1", attributes={"metadata.requester_custom_headers": str(headers)})
    assert post(relay.url, call.request()).status_code == 200
    assert {span.trace_id for span in receiver.spans} == {"556498a75da2dd19665060989868f2f1"}
    assert b"of-the-caller" not in receiver.requests[0].body


def test_spans_whose_parents_lead_in_a_circle_are_passed_on(start_relay, receiver, index):
    """Alone or with others, in whatever number: every span comes out, in time."""
    relay = start_relay(wait_seconds=0.1, **index)
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    ids = [number.to_bytes(8, "big") for number in range(1, 5001)]
    for span_id_, parent in zip(ids, [*ids[1:], ids[0]], strict=True):
        scope.spans.add(trace_id=b"\x42" * 16, span_id=span_id_, parent_span_id=parent)
    scope.spans.add(trace_id=b"\x43" * 16, span_id=ids[0], parent_span_id=ids[0])
    assert post(relay.url, message.SerializeToString()).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 5001)


def test_a_failed_call_with_keys_lies_under_the_turn_itself(start_relay, receiver):
    """Without an answer there is no response id, and no chat that is named by it."""
    relay = start_relay()
    post(relay.url, GatewayCall(None, attributes=keys()).request())
    (server,) = (span for span in receiver.spans if span.name.startswith("POST"))
    assert server.parent_span_id == root_span_id(turn())


@pytest.mark.parametrize("watcher_first", [True, False], ids=["watcher first", "gateway first"])
def test_a_response_id_joins_call_and_turn(watcher_first, start_relay, receiver, index):
    """Whichever comes first, through different replicas: the call lies under its chat."""
    one, other = start_relay(**index), start_relay(**index)
    call, told = GatewayCall("msg_1"), watchers_request(turn(), "msg_1")
    if watcher_first:
        assert post(one.url, told).status_code == 200
        assert post(other.url, call.request()).status_code == 200
    else:
        assert post(other.url, call.request()).status_code == 200
        assert status(other.url)["waiting_traces"] == 1
        assert not receiver.spans
        assert post(one.url, told).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 5)
    parents = {span.span_id: span.parent_span_id for span in receiver.spans}
    assert {span.trace_id for span in receiver.spans} == {turn()}
    assert parents[call.span_ids[0]] == span_id(turn(), "llm", "msg_1")
    counted = [span.name for span in receiver.spans if USAGE in span.attributes]
    assert counted == ["chat claude-opus-5"]


def test_a_response_id_that_a_gateway_wrapped_is_the_providers(start_relay, receiver, index):
    """LiteLLM gives Codex a long id of its own, and keeps either in its spans."""
    relay = start_relay(**index)
    inside = b"litellm:custom_llm_provider:openai;model_id:m;response_id:resp_0123456789abcdef"
    wrapped = "resp_" + base64.b64encode(inside).decode()
    assert post(relay.url, watchers_request(turn(), wrapped)).status_code == 200
    assert post(relay.url, GatewayCall("resp_0123456789abcdef").request()).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 5)
    (server,) = (span for span in receiver.spans if span.name.startswith("POST"))
    assert server.parent_span_id == span_id(turn(), "llm", wrapped)


def test_spans_of_one_call_come_in_pieces_and_lie_together(start_relay, receiver, index):
    """Whatever is in whichever batch, through whichever replica, the tree is the same."""
    one, other = start_relay(**index), start_relay(**index)
    call = GatewayCall("msg_1")
    assert post(one.url, call.request(1)).status_code == 200
    assert post(other.url, call.request(2)).status_code == 200
    assert post(other.url, watchers_request(turn(), "msg_1")).status_code == 200
    assert post(one.url, call.request(0)).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 5)
    parents = {span.span_id: span.parent_span_id for span in receiver.spans}
    server, noise, chat = call.span_ids
    assert {span.trace_id for span in receiver.spans} == {turn()}
    assert parents[server] == span_id(turn(), "llm", "msg_1")
    assert (parents[noise], parents[chat]) == (server, noise)


def test_keys_in_one_batch_place_the_spans_of_another(start_relay, receiver, index):
    """The server's span, which ends last and has no keys, follows the call that had them."""
    one, other = start_relay(**index), start_relay(**index)
    call = GatewayCall("msg_1", attributes=keys())
    assert post(one.url, call.request(2)).status_code == 200
    assert post(other.url, call.request(0, 1)).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 3)
    parents = {span.span_id: span.parent_span_id for span in receiver.spans}
    assert parents[call.span_ids[0]] == span_id(turn(), "llm", "msg_1")
    assert {span.trace_id for span in receiver.spans} == {turn()}


def test_what_no_turn_claims_goes_out_as_it_came_and_marked(start_relay, receiver, index):
    """After the wait it keeps its ids, its parents and its usage, and says why it is alone."""
    relay = start_relay(wait_seconds=0.1, **index)
    call = GatewayCall("msg_unknown")
    assert post(relay.url, call.request()).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 3)
    assert {span.trace_id for span in receiver.spans} == {call.trace.hex()}
    (chat,) = (span for span in receiver.spans if span.name.startswith("chat"))
    assert chat.attributes[USAGE] == 100
    for span in receiver.spans:
        assert span.attributes["tracebridge.link.reason"].startswith("its turn was not known")
    # The rest of it stays with it, even if a watcher has told of it since.
    assert post(relay.url, watchers_request(turn(), "msg_unknown")).status_code == 200
    assert post(relay.url, call.request(1)).status_code == 200
    assert receiver.requests[-1].spans[0].trace_id == call.trace.hex()
    assert status(relay.url)["waiting_traces"] == 0


def test_a_gateway_that_took_part_in_the_turns_trace_is_not_moved(start_relay, receiver, index):
    """Its spans keep their parents; only what was under the turn for want of better goes down."""
    relay = start_relay(**index)
    attempt = bytes.fromhex(span_id(turn(), "attempt", "1"))
    trace = bytes.fromhex(turn())
    under_attempt = GatewayCall("msg_1", trace=trace, remote_parent=attempt)
    root = bytes.fromhex(root_span_id(turn()))
    under_root = GatewayCall("msg_2", number=2, trace=trace, remote_parent=root)
    request = with_more(under_attempt.request(), under_root.request())
    assert post(relay.url, request).status_code == 200
    assert post(relay.url, watchers_request(turn(), "msg_1", "msg_2")).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 9)
    parents = {span.span_id: span.parent_span_id for span in receiver.spans}
    assert parents[under_attempt.span_ids[0]] == attempt.hex()
    assert parents[under_root.span_ids[0]] == span_id(turn(), "llm", "msg_2")
    foreign = [s for s in receiver.spans if s.span_id in under_attempt.span_ids]
    assert all(USAGE not in span.attributes for span in foreign)
    assert all("tracebridge.original.trace_id" not in span.attributes for span in foreign)


def test_calls_of_several_turns_in_one_foreign_trace_are_told_apart(start_relay, receiver, index):
    """An agent that traces its session sends one trace; each call lies under its own turn."""
    relay = start_relay(**index)
    trace, outside = b"\x99" * 16, b"\x77" * 8
    first, second = (
        GatewayCall(f"msg_{n}", number=n, trace=trace, remote_parent=outside) for n in (1, 2)
    )
    assert post(relay.url, watchers_request(turn(1), "msg_1")).status_code == 200
    assert post(relay.url, watchers_request(turn(2), "msg_2")).status_code == 200
    assert post(relay.url, first.request()).status_code == 200
    assert post(relay.url, second.request()).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 10)
    traces = {span.span_id: span.trace_id for span in receiver.spans}
    assert [traces[each] for each in first.span_ids] == [turn(1)] * 3
    assert [traces[each] for each in second.span_ids] == [turn(2)] * 3


@pytest.mark.parametrize("minutes", [-10, 10])
def test_clocks_that_differ_change_no_link(minutes, start_relay, receiver, index):
    """Places come from ids; the gateway's times stay as they are."""
    relay = start_relay(**index)
    skew_ns = minutes * 60 * 1_000_000_000
    assert post(relay.url, GatewayCall("msg_1", skew_ns=skew_ns).request()).status_code == 200
    assert post(relay.url, watchers_request(turn(), "msg_1")).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 5)
    assert {span.trace_id for span in receiver.spans} == {turn()}
    (server,) = (span for span in receiver.spans if span.name.startswith("POST"))
    assert server.start_ns == NOW + skew_ns


@pytest.mark.parametrize("name", ["x-claude-code-session-id", "x-codex-turn-metadata"])
@pytest.mark.parametrize(
    "value",
    ["", "\r\nx: y", "A" * 65536, "\x00", "{", '{"session_id": 7, "turn_id": []}', "é" * 100],
    ids=["empty", "line break", "64 kB", "NUL", "cut JSON", "wrong types", "not ASCII"],
)
def test_hostile_headers_on_spans_harm_nothing(name, value, start_relay, receiver):
    """The span waits like any other, or lies in a trace of its own; the relay goes on."""
    relay = start_relay(wait_seconds=0.1)
    hostile = GatewayCall(None, attributes={f"http.request.header.{name}": [value]})
    assert post(relay.url, hostile.request()).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 3)
    assert post(relay.url, watchers_request(turn(), "msg_1")).status_code == 200


def test_an_unknown_agent_is_linked_by_its_response_id(start_relay, receiver, index):
    """A relay needs to know no agent to join what two others tell."""
    relay = start_relay(**index)
    trace = "ab" * 16
    assert post(relay.url, GatewayCall("resp_new").request()).status_code == 200
    assert post(relay.url, watchers_request(trace, "resp_new")).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 5)
    assert {span.trace_id for span in receiver.spans} == {trace}


def test_secrets_in_foreign_spans_go_no_further(start_relay, receiver, tmp_path):
    """Neither to the backend nor into the file of what waits."""
    secret = "sk-ant-api03-" + "Zx9" * 12
    home = tmp_path / "alone"
    relay = start_relay(wait_seconds=0.1, home=home)
    hostile = GatewayCall("msg_1", attributes={"error.message": f"bad key {secret}"})
    assert post(relay.url, hostile.request()).status_code == 200
    assert all(secret.encode() not in file.read_bytes() for file in home.iterdir())
    receiver.wait_for(lambda it: len(it.spans) == 3)
    assert secret.encode() not in b"".join(request.body for request in receiver.requests)
    assert "[api-key removed]" in str([span.attributes for span in receiver.spans])


@given(st.from_regex(r"[0-9a-f-]{1,64}|(msg_|resp_|chatcmpl-)[0-9A-Za-z]{1,40}", fullmatch=True))
def test_what_a_relay_takes_for_an_id_holds_no_secret(text):
    """It does not look into these any further; scrubbing would leave them as they are."""
    assert scrub_text(text) == text


@pytest.mark.parametrize("content", list(Content))
def test_content_of_foreign_spans_obeys_the_level(content, start_relay, receiver):
    """What was said is left out, cut or kept; what it cost and which model is metadata."""
    said = "word " * 10_000
    relay = start_relay(rules=Rules(content))
    attributes = {"gen_ai.input.messages": said, **keys()}
    post(relay.url, GatewayCall("msg_1", attributes=attributes).request())
    (chat,) = (span for span in receiver.spans if span.name.startswith("chat"))
    kept = chat.attributes.get("gen_ai.input.messages")
    if content is Content.METADATA:
        assert kept is None
    elif content is Content.REDACTED:
        assert kept is not None
        assert kept.endswith("[cut: 50000 characters]")
    else:
        assert kept == said


def test_spans_encoded_in_any_order_of_fields_are_understood(start_relay, receiver):
    """Protobuf leaves the order to who writes it."""
    call = GatewayCall("msg_1", attributes=keys())
    relay = start_relay()
    post(relay.url, call.request())
    usual = {span.span_id: span for span in receiver.spans}
    message = Span.FromString(usual[call.span_ids[0]].message.SerializeToString())
    assert message.name == "POST /v1/messages"
    request = ExportTraceServiceRequest.FromString(call.request())
    scope = request.resource_spans[0].scope_spans[0]
    turned = [_backwards(span) for span in scope.spans]
    del scope.spans[:]
    # Behind each other, messages add up.
    whole = request.SerializeToString() + join([Resource(b"", [Scope(b"", turned)])])
    before = len(receiver.spans)
    assert post(relay.url, whole).status_code == 200
    again = {span.span_id: span for span in receiver.spans[before:]}
    assert again.keys() == usual.keys()
    for each in call.span_ids:
        assert again[each].trace_id == usual[each].trace_id
        assert again[each].parent_span_id == usual[each].parent_span_id
        assert again[each].attributes == usual[each].attributes


def _backwards(span: Span) -> bytes:
    """Return *span* with its fields in the opposite order."""
    pieces = []
    for descriptor, _ in reversed(span.ListFields()):
        part = Span()
        if descriptor.is_repeated:
            getattr(part, descriptor.name).extend(getattr(span, descriptor.name))
        elif descriptor.message_type is not None:
            getattr(part, descriptor.name).CopyFrom(getattr(span, descriptor.name))
        else:
            setattr(part, descriptor.name, getattr(span, descriptor.name))
        pieces.append(part.SerializeToString())
    return b"".join(pieces)

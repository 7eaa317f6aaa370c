"""Spans that other gateways exported: which calls they tell of, and where they come to lie."""

from __future__ import annotations

import base64

import pytest
from exports import add_attributes, exported, whole
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tracebridge import semconv
from tracebridge.fragments import (
    LITERAL_LIMIT,
    Fragment,
    attributes_of,
    calls_in,
    nest,
    reduce,
    scrub,
    split,
)
from tracebridge.ids import root_span_id, span_id, trace_id
from tracebridge.model import GatewayCall, Usage
from tracebridge.response_ids import is_hidden, provider_id
from tracebridge.scrub import scrub_text

NOW = 1_795_000_000_000_000_000
TRACE = trace_id("claude-code", "s-1", "p-1")
ROOT = root_span_id(TRACE)
WRAPPED = (
    "resp_"
    + base64.b64encode(
        b"litellm:custom_llm_provider:openai;model_id:0123456789abcdef;response_id:resp_openai0001"
    ).decode()
)


def fragment_of(*spans: dict, **more) -> Fragment:
    (fragment,), _ = split(exported(*spans, **more))
    return fragment


def call_of(**attributes) -> GatewayCall:
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    named = {name.replace("__", "."): value for name, value in attributes.items()}
    (call,) = calls_in(fragment_of({"attributes": chat | named})).values()
    return call


def recorded_calls(name: str) -> list[GatewayCall]:
    fragments, notes = split(whole(name))
    assert not notes
    calls = [call for fragment in fragments for call in calls_in(fragment).values()]
    return sorted(calls, key=lambda call: call.start_ns)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_litellm_tells_the_calls_of_claude_code(version):
    """Both versions of its telemetry name provider's id, session, tokens and LiteLLM's own id."""
    calls = recorded_calls(f"litellm-claude-{version}")
    assert len(calls) == 2
    for call in calls:
        assert call.gateway == "litellm"
        assert call.response_id is not None
        assert call.response_id.startswith("msg_")
        assert call.identity is not None
        assert call.identity.agent == "claude-code"
        assert call.identity.session_id
        assert call.response_headers["x-litellm-call-id"]
        assert call.usage is not None
        assert call.usage.input_tokens
        assert call.usage.cache_read_tokens
        assert call.usage.cache_write_tokens
        assert call.usage.output_tokens
        assert call.streaming
        assert call.error_type is None


def test_litellm_tells_the_calls_of_codex():
    """The first version repeats Codex's headers and so names the turn; the second the session."""
    first, second = recorded_calls("litellm-codex-v1"), recorded_calls("litellm-codex-v2")
    assert [call.response_id for call in second] == ["resp_openai0001", "resp_openai0002"]
    for call in first:
        assert call.identity is not None
        assert (call.identity.agent, bool(call.identity.turn_key)) == ("codex-cli", True)
        assert call.usage is not None
        assert call.usage.reasoning_tokens == 0
        assert call.usage.cache_write_tokens
    assert {call.identity for call in second} == {None}
    assert all(call.conversation_id for call in second)
    assert first[0].tool_call_ids == ("call_openai0005_0",)


def test_the_providers_id_is_found_inside_the_gateways():
    """LiteLLM's base64 is undone; what it encrypts is known as hidden, and all else left alone."""
    assert provider_id(WRAPPED) == "resp_openai0001"
    assert not is_hidden(WRAPPED)
    assert call_of(gen_ai__response__id=WRAPPED).response_id == "resp_openai0001"
    hidden = "resp_" + base64.urlsafe_b64encode(bytes(range(256))).decode()
    assert provider_id(hidden) == hidden
    assert is_hidden(hidden)
    for own in ("msg_01B", "chatcmpl-1", "resp_" + "0a" * 24, "", "resp_", "resp_" + "ü" * 200):
        assert provider_id(own) == own
        assert not is_hidden(own)


def test_a_gateways_own_id_is_no_response_id():
    """LiteLLM's pass-through routes put their call id where the provider's belongs."""
    call = call_of(gen_ai__response__id="c-1", litellm__call_id="c-1")
    assert call.response_id is None
    assert call.response_headers == {"x-litellm-call-id": "c-1"}


def test_headers_are_read_as_pythons_notation():
    """A dictionary as Python shows it is read, in JSON too; nothing in it is evaluated."""
    headers = {"x-claude-code-session-id": "s-1", "X-Claude-Code-Prompt-Id": "p'1\""}
    identity = call_of(metadata__requester_custom_headers=str(headers)).identity
    assert identity is not None
    assert (identity.session_id, identity.turn_key) == ("s-1", "p'1\"")
    for strange in (
        "__import__('os').abort()",
        "{'x-claude-code-session-id': open('/etc/passwd').read()}",
        "{" * 5000,
        "(" * 5000,
        "-" * 60_000 + "1",
        "{'x-claude-code-session-id': 's'" + " " * LITERAL_LIMIT + "}",
        "{1: 2}",
        "[1]",
        "\0",
    ):
        assert call_of(metadata__requester_custom_headers=strange).identity is None


def test_headers_captured_by_the_semantic_conventions_name_the_caller():
    """Any gateway whose tracing captures request headers tells who called."""
    attributes = {"http.request.header.x-claude-code-session-id": ["s-9"]}
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    fragment = fragment_of({"attributes": chat | attributes}, service="shop", scope="x")
    (call,) = calls_in(fragment).values()
    assert call.gateway == "shop"
    assert call.identity is not None
    assert call.identity.session_id == "s-9"


def test_the_innermost_of_nested_calls_is_the_physical_one():
    """A wrapper that repeats model and tokens is no call of its own."""
    facts = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    fragment = fragment_of(
        {"id": 1, "attributes": facts}, {"id": 2, "parent": 1, "attributes": facts}
    )
    assert list(calls_in(fragment)) == ["02" * 8]


def test_envoy_tells_who_asked_and_what_answered():
    """By headers and an id that its configuration makes it read; of tokens and models it knows none."""
    calls = recorded_calls("envoy-codex")
    assert [call.response_id for call in calls] == ["resp_real0001", "resp_real0002"]
    for call in calls:
        assert (call.gateway, call.status_code, call.usage) == ("envoy", 200, None)
        assert call.identity is not None
        assert call.identity.agent == "codex-cli"
        assert call.identity.turn_key


@pytest.mark.parametrize("come", [4, 3])
def test_of_attempts_at_one_request_the_last_is_the_call(come):
    """What Envoy tried again by itself stays a span; its span of the whole request comes last."""
    fragments, _ = split(whole("envoy-claude-retries"))
    fragment = max(fragments, key=lambda each: len(each.spans))
    fragment.spans.sort(key=lambda each: each.span.end_time_unix_nano)
    assert [each.span.name for each in fragment.spans][3:] == ["ingress"]
    del fragment.spans[come:]
    (call,) = calls_in(fragment).values()
    assert (call.response_id, call.request_id) == ("msg_real0004", "req_real0004")
    assert call.error_type is None


@pytest.mark.parametrize(
    ("parent", "second", "known"),
    [
        # The parent of both is a span of the gateway's: one request.
        ({"parent": 1}, {"http.request.resend_count": 1}, ["503"]),
        # Nothing says that one follows from the other.
        ({"parent": 1}, {}, ["503", "529"]),
        # Their parent is the agent's turn: requests of their own.
        ({"parent": 9}, {"http.request.resend_count": 1}, ["503", "529"]),
    ],
)
def test_only_what_says_so_is_an_attempt_at_the_same_request(parent, second, known):
    """Failed calls next to each other may be of different requests."""
    chat = {"gen_ai.operation.name": "chat"}
    first = chat | {"http.response.status_code": 529}
    again = chat | {"http.response.status_code": 503} | second
    fragment = fragment_of(
        {"id": 1, "name": "POST /v1/messages"},
        {"id": 2, "error": "overloaded", "attributes": first} | parent,
        {"id": 3, "error": "unavailable", "attributes": again} | parent,
    )
    assert sorted(str(call.error_type) for call in calls_in(fragment).values()) == known


@pytest.mark.parametrize("told", ["req_1", ["req_1"], ["req_1", "req_2"]])
@pytest.mark.parametrize("name", ["request-id", "x-request-id"])
def test_the_providers_id_of_a_request_stands_in_its_response_header(name, told):
    """As text or as a list: an attempt that failed is known by it, too."""
    header = {f"http.response.header.{name}": told}
    chat = {"gen_ai.operation.name": "chat"} | header
    (call,) = calls_in(fragment_of({"error": "slow down", "attributes": chat})).values()
    assert call.request_id == "req_1"


@pytest.mark.parametrize("told", ["", [], 7, [""]])
def test_a_response_header_that_says_nothing_is_no_id(told):
    """Whatever stands in its place."""
    chat = {"gen_ai.operation.name": "chat", "http.response.header.request-id": told}
    (call,) = calls_in(fragment_of({"attributes": chat})).values()
    assert call.request_id is None


@pytest.mark.parametrize("operation", ["invoke_agent", "execute_tool"])
def test_what_contains_calls_is_none(operation):
    """An agent's or a tool's span is not mistaken for a call, whatever tokens it sums up."""
    facts = {"gen_ai.operation.name": operation, "gen_ai.request.model": "m"}
    assert not calls_in(fragment_of({"attributes": facts | {"gen_ai.usage.input_tokens": 5}}))


def test_openinference_and_legacy_names_are_read():
    """Gateways that follow OpenInference, or the conventions of before, are understood alike."""
    openinference = fragment_of(
        {
            "attributes": {
                "openinference.span.kind": "LLM",
                "llm.model_name": "m",
                "llm.token_count.prompt": 9,
                "llm.token_count.completion": 2,
                "llm.token_count.prompt_details.cache_read": 4,
                "llm.output_messages.0.message.tool_calls.0.tool_call.id": "t-1",
                "llm.input_messages.3.message.tool_call_id": "t-0",
            }
        },
        service="ai-gateway",
        scope="envoy",
    )
    (call,) = calls_in(openinference).values()
    assert call.gateway == "envoy"
    assert call.usage == Usage(input_tokens=9, output_tokens=2, cache_read_tokens=4)
    assert (call.tool_call_ids, call.tool_result_ids) == (("t-1",), ("t-0",))
    legacy = call_of(gen_ai__usage__prompt_tokens=3, gen_ai__usage__completion_tokens=1)
    assert legacy.usage == Usage(input_tokens=3, output_tokens=1)


def test_no_tokens_at_all_are_unknown():
    """A gateway that says 0 did not understand the answer; that is not free of charge."""
    assert call_of(gen_ai__usage__input_tokens=0, gen_ai__usage__output_tokens=0).usage is None


def test_a_failed_attempt_is_told_as_such():
    """Status, message and the HTTP code make the error; it has no usage."""
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    code = {"http.response.status_code": 429, "gen_ai.usage.input_tokens": 7}
    (call,) = calls_in(fragment_of({"error": "slow down", "attributes": chat | code})).values()
    assert (call.error_type, call.error_message, call.status_code) == ("429", "slow down", 429)
    assert call.usage is None


def test_a_honoured_traceparent_shows():
    """The parent that is not in the export is who called the gateway."""
    facts = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    inside = fragment_of(
        {"id": 1, "trace": TRACE, "parent": 9},
        {"id": 2, "trace": TRACE, "parent": 1} | {"attributes": facts},
    )
    (call,) = calls_in(inside).values()
    assert call.traceparent == f"00-{TRACE}-{'09' * 8}-01"
    assert call_of().traceparent is None


def test_spans_of_ours_and_of_agents_are_let_go():
    """What we sent, sent back to us, makes no circle; what agents say of themselves is no gateway."""
    for service, scope in (("x", "tracebridge"), ("claude-code", "y"), ("codex_exec", "z")):
        fragments, notes = split(exported({}, {}, service=service, scope=scope))
        assert not fragments
        assert sum(notes.values()) == 2


def test_spans_without_ids_or_times_are_counted():
    """What no store could keep is told and let go, and the rest is taken."""
    request = exported({}, {"id": 0}, {"start": 0}, {"end": 2**64 - 1}, {"trace": "00" * 16})
    request.resource_spans[0].scope_spans[0].spans.add(name="nothing")
    (fragment,), notes = split(request)
    assert len(fragment.spans) == 1
    assert notes == {"exported span without ids or times": 5}


def test_a_fragment_lies_down_under_the_chat():
    """Span ids, names and times stay; the roots come under the chat, and where they were is told."""
    fragment = next(f for f in split(whole("litellm-claude-v2"))[0] if calls_in(f))
    before = {each.span_id: each.parent_span_id for each in fragment.spans}
    ((call_span, call),) = calls_in(fragment).items()
    chat = span_id(TRACE, "llm", call.response_id or "")
    roots = {each.span_id for each in fragment.roots()}
    original = fragment.trace_id
    facts = {call_span: [(semconv.LINK_EVIDENCE, "response_id")]}
    nest(fragment, TRACE, ROOT, {call_span: chat}, facts)
    for each in fragment.spans:
        span, attributes = each.span, attributes_of(each.span.attributes)
        assert span.trace_id.hex() == TRACE
        assert each.parent_span_id == (chat if each.span_id in roots else before[each.span_id])
        assert attributes[semconv.ORIGINAL_TRACE] == original
        assert [link.trace_id.hex() for link in span.links] == [original]
        assert attributes[semconv.SPAN_TYPE] == "gateway"
        counted = ("gen_ai.usage.", "litellm.cost.", "gen_ai.request.model", "gen_ai.operation")
        assert not [name for name in attributes if name.startswith(counted)]
        if each.span_id == call_span:
            assert attributes["tracebridge.original.gen_ai.usage.output_tokens"]
            assert attributes[semconv.LINK_EVIDENCE] == "response_id"


def test_parts_without_a_call_follow_the_others():
    """LiteLLM's second tree of one request comes under the same chat; several chats share the turn."""
    facts = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    spans = [{"id": 1, "attributes": facts}, {"id": 2}, {"id": 3, "attributes": facts}]
    one = fragment_of(*spans[:2])
    nest(one, TRACE, ROOT, {"01" * 8: "c1" * 8})
    assert [each.parent_span_id for each in one.spans] == ["c1" * 8, "c1" * 8]
    two = fragment_of(*spans)
    nest(two, TRACE, ROOT, {"01" * 8: "c1" * 8, "03" * 8: "c3" * 8})
    assert [each.parent_span_id for each in two.spans] == ["c1" * 8, ROOT, "c3" * 8]


def test_usage_stays_where_no_chat_has_it():
    """A call that nobody claims keeps its tokens beside one that was claimed."""
    facts = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"} | {
        "gen_ai.usage.input_tokens": 5
    }
    fragment = fragment_of({"id": 1, "attributes": facts}, {"id": 2, "attributes": facts})
    nest(fragment, TRACE, ROOT, {"01" * 8: "c1" * 8})
    kept = ["gen_ai.usage.input_tokens" in attributes_of(e.span.attributes) for e in fragment.spans]
    assert kept == [False, True]


def test_what_lies_in_the_turns_trace_is_not_moved_again():
    """A gateway that honoured our traceparent stays; below the turn itself it finds its chat."""
    facts = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    for parent, expected in ((ROOT, "c1" * 8), ("55" * 8, "55" * 8)):
        fragment = fragment_of({"id": 1, "trace": TRACE, "attributes": facts})
        fragment.spans[0].span.parent_span_id = bytes.fromhex(parent)
        nest(fragment, TRACE, ROOT, {"01" * 8: "c1" * 8})
        (only,) = fragment.spans
        assert only.parent_span_id == expected
        assert not only.span.links
        assert semconv.ORIGINAL_TRACE not in attributes_of(only.span.attributes)
        assert "gen_ai.request.model" not in attributes_of(only.span.attributes)


def test_what_lies_under_a_subagent_finds_its_chat():
    """Our gateway names the subagent that calls; without a chat there is no better place."""
    for claimed, expected in (({"01" * 8: "c1" * 8}, "c1" * 8), ({}, "55" * 8)):
        facts = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
        fragment = fragment_of({"id": 1, "trace": TRACE, "attributes": facts})
        fragment.spans[0].span.parent_span_id = bytes.fromhex("55" * 8)
        nest(fragment, TRACE, ROOT, claimed, subagents=["55" * 8])
        (only,) = fragment.spans
        assert only.parent_span_id == expected


def test_a_circle_of_parents_ends():
    """Ids that lead back to themselves cost nobody the time to find their end."""
    facts = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    fragment = fragment_of(
        {"id": 1, "parent": 2, "attributes": facts}, {"id": 2, "parent": 1, "attributes": facts}
    )
    assert fragment.roots() == []
    assert calls_in(fragment) == {}
    nest(fragment, TRACE, ROOT, {})


def test_keys_are_taken_out_of_all_that_a_gateway_says():
    """Keys in headers, by whatever name, in texts, events and the resource, on every level."""
    key = "abcdefghijklmnop"
    headers = str({"x-api-key": key, "Authorization": f"Basic {key}", "x-other": "kept"})
    request = exported(
        {
            "name": f"curl -H 'Authorization: Bearer {key}'",
            "error": f"x-api-key: {key}",
            "attributes": {
                "metadata.requester_custom_headers": headers,
                "http.request.header.authorization": [f"Bearer {key}"],
                "http.request.header.x-api-key": [key],
                "http.request.header.x-other": [f"api_key={key}1"],
                "metadata.user_api_key_end_user_id": '{"device_id":"d-1","session_id":"s-1"}',
            },
        },
        command=f"litellm --api_key={key}2",
    )
    event = request.resource_spans[0].scope_spans[0].spans[0].events.add(name="exception")
    event.attributes.add(key="exception.message").value.string_value = f"api_key: '{key}3'"
    (fragment,), _ = split(request)
    scrub(fragment.spans, scrub_text)
    assert key not in str(request)
    attributes = attributes_of(fragment.spans[0].span.attributes)
    assert "'x-other': 'kept'" in attributes["metadata.requester_custom_headers"]
    assert attributes["metadata.user_api_key_end_user_id"] == '{"session_id":"s-1"}'


@pytest.mark.parametrize("name", ["litellm-claude-v1", "litellm-codex-v1", "litellm-claude-v2"])
def test_of_metadata_nothing_is_said(name):
    """On the level of metadata names, ids and numbers remain, and none of what was said."""
    fragments, _ = split(whole(name))
    for fragment in fragments:
        for each in fragment.spans:
            reduce(each.span, 0)
    said = str([each.span for fragment in fragments for each in fragment.spans])
    for word in ("I will.", "echo hi", "Codex, a coding agent", "Claude agent", "Executes a"):
        assert word not in said
    assert "litellm.call_id" in said


def test_long_texts_are_cut():
    """Of each text as much remains as the level says, and how long it was."""
    fragment = fragment_of({"attributes": {"gen_ai.input.messages": "x" * 50}})
    span = fragment.spans[0].span
    reduce(span, None)
    assert attributes_of(span.attributes)["gen_ai.input.messages"] == "x" * 50
    reduce(span, 10)
    assert (
        attributes_of(span.attributes)["gen_ai.input.messages"]
        == f"{'x' * 10}… [cut: 50 characters]"
    )


_VALUES = st.one_of(
    st.text(max_size=40),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(),
    st.lists(st.text(max_size=8), max_size=3),
)
_NAMES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "gen_ai.operation.name",
            "gen_ai.request.model",
            "gen_ai.response.id",
            "gen_ai.response.finish_reasons",
            "gen_ai.response.time_to_first_chunk",
            "gen_ai.usage.input_tokens",
            "gen_ai.input.messages",
            "http.response.status_code",
            "metadata.requester_custom_headers",
            "metadata.usage_object",
            "metadata.user_api_key_end_user_id",
        ]
    ),
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"id": st.integers(0, 5), "attributes": st.dictionaries(_NAMES, _VALUES, max_size=6)},
            optional={"parent": st.integers(0, 5), "error": st.text(max_size=9)},
        ),
        max_size=8,
    )
)
def test_whatever_is_exported_is_understood_or_passed_over(spans):
    """Any names, values and parents: no exception, and no span more or fewer."""
    request = exported(*spans)
    fragments, _ = split(request)
    for fragment in fragments:
        number = len(fragment.spans)
        calls = calls_in(fragment)
        scrub(fragment.spans, scrub_text)
        nest(fragment, TRACE, ROOT, dict.fromkeys(calls, "c1" * 8))
        for each in fragment.spans:
            reduce(each.span, 0)
        assert len(fragment.spans) == number


def test_a_long_chain_of_spans_is_followed():
    """A fragment may be deeper than Python's own stack."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for index in range(1, 20_001):
        span = spans.add(trace_id=b"\1" * 16, span_id=index.to_bytes(8, "big"))
        span.start_time_unix_nano = span.end_time_unix_nano = NOW
        span.parent_span_id = (index - 1).to_bytes(8, "big") if index > 1 else b""
        add_attributes(span, {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"})
    (fragment,), _ = split(request)
    assert list(calls_in(fragment)) == [(20_000).to_bytes(8, "big").hex()]

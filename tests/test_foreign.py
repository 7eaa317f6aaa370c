"""Spans of other gateways at the watcher: under the turn that made the calls, or as they came."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from claude_files import SECOND, SESSION, TURN, Claude, at, said, used
from exports import documents, exported, message

from tracebridge import semconv
from tracebridge.foreign import QUIET_NS
from tracebridge.ids import root_span_id, span_id, trace_id, traceparent
from tracebridge.model import CallIdentity, GatewayCall, SpanExport, Usage
from tracebridge.settings import read_settings
from tracebridge.store import Store
from tracebridge.testing.receiver import ReceivedSpan, Receiver
from tracebridge.views.status import status
from tracebridge.watch import watch_once
from tracebridge.watcher import ORPHAN_PATIENCE_NS, Watcher

TRACE = trace_id("claude-code", SESSION, TURN)
ROOT = root_span_id(TRACE)
FOREIGN = "ab" * 16
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "claude-opus-5-5"}
TOKENS = {"gen_ai.usage.input_tokens": 115, "gen_ai.usage.output_tokens": 20}
MESSAGE = f"msg_{TURN}"


class Clock:
    def __init__(self) -> None:
        self.now_ns = at(10)

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def claude(home: Path, tmp_path: Path) -> Claude:
    return Claude(home, tmp_path)


@pytest.fixture
def receiver(monkeypatch):
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watcher(receiver, clock):
    assert receiver.endpoint
    watcher = Watcher(read_settings(), clock)
    yield watcher
    watcher.close()


def span(number: int, name: str, parent: int | None = None, *, began: float = 1.2, **more) -> dict:
    given = {"id": number, "name": name, "start": at(began), "end": at(began + 0.5), **more}
    return given if parent is None else given | {"parent": parent}


def a_chat(number: int = 2, parent: int | None = 1, **more) -> dict:
    attributes = CHAT | TOKENS | {"litellm.call_id": "c-1", "gen_ai.response.id": MESSAGE}
    attributes |= more.pop("attributes", {})
    return span(number, "chat claude-opus-5-5", parent, attributes=attributes, **more)


def export(claude: Claude, *spans: dict, **more) -> None:
    request = exported(*spans, **more)
    claude.spool.take(SpanExport(time_ns=at(3), request=request.SerializeToString()))


def by_name(receiver: Receiver) -> dict[str, ReceivedSpan]:
    return {each.name: each for each in receiver.spans}


def tokens(spans) -> int:
    return sum(each.attributes.get(semconv.OUTPUT_TOKENS, 0) for each in spans)


def deliver() -> None:
    assert watch_once(read_settings())


def test_a_gateways_spans_come_under_the_chat(claude, receiver):
    """The whole fragment lies in the turn's trace, below the one chat, with the gateway's resource."""
    claude.simple_turn()
    export(claude, span(1, "POST /v1/messages"), a_chat(), span(3, "auth", 1))
    deliver()
    server = by_name(receiver)["POST /v1/messages"]
    llm, auth = (each for each in receiver.spans if each.parent_span_id == server.span_id)
    chat = next(s for s in receiver.spans if s.span_id == span_id(TRACE, "llm", MESSAGE))
    assert server.parent_span_id == chat.span_id
    assert (server.span_id, llm.span_id, auth.span_id) == ("01" * 8, "02" * 8, "03" * 8)
    assert {each.trace_id for each in receiver.spans} == {TRACE}
    assert chat.parent_span_id == ROOT
    assert chat.attributes[semconv.LLM_GATEWAY] == "litellm"
    assert chat.attributes[semconv.LLM_SOURCE] == "gateway+transcript"
    assert chat.attributes[semconv.LINK_EVIDENCE] == "response_id"
    assert llm.attributes[semconv.LINK_EVIDENCE] == "response_id"
    assert llm.attributes[semconv.ORIGINAL_TRACE] == FOREIGN
    assert tokens(receiver.spans) == tokens([chat]) == 20
    for each in (server, llm, auth):
        assert each.attributes[semconv.SESSION_ID] == SESSION
        assert each.resource["service.name"] == "litellm"
    assert chat.resource["service.name"] == "claude-code"


def test_spans_that_come_after_all_was_told_are_new_spans(claude, receiver):
    """An exporter's batch that is late adds to the turn, and changes nothing that was told."""
    claude.simple_turn()
    deliver()
    told = {each.span_id: each for each in receiver.spans}
    export(claude, span(1, "POST /v1/messages"), a_chat())
    deliver()
    new = [each for each in receiver.spans if each.span_id not in told]
    assert {each.span_id for each in new} == {"01" * 8, "02" * 8}
    assert len(receiver.spans) == len(told) + 2
    assert new[0].trace_id == TRACE
    assert by_name(receiver)["POST /v1/messages"].parent_span_id in told
    assert tokens(receiver.spans) == 20
    assert status(read_settings())["links"]["by_evidence"]["response_id"] == 1


def test_a_fragment_is_looked_at_as_a_whole(claude, watcher, clock):
    """A batch whose parents are still to come waits for them, and for no longer than exporters take."""
    claude.simple_turn()
    export(claude, a_chat())
    for _ in range(3):
        watcher.step()
    clock.now_ns += 5 * SECOND
    watcher.step()
    assert len(watcher.store.spans(TRACE)) == 2
    export(claude, span(1, "POST /v1/messages"))
    watcher.step()
    watcher.step()
    spans = {each.span_id: each for each in watcher.store.spans(TRACE)}
    assert spans["02" * 8].parent_span_id == "01" * 8
    assert spans["01" * 8].parent_span_id == span_id(TRACE, "llm", MESSAGE)


def test_parents_that_never_come_are_not_waited_for(claude, watcher, clock):
    """A fragment that stays quiet is taken as it is."""
    claude.simple_turn()
    export(claude, a_chat())
    watcher.step()
    clock.now_ns += QUIET_NS
    for _ in range(3):
        watcher.step()
    spans = {each.span_id: each for each in watcher.store.spans(TRACE)}
    assert spans["02" * 8].parent_span_id == span_id(TRACE, "llm", MESSAGE)
    assert spans["02" * 8].attributes[semconv.ORIGINAL_PARENT] == "01" * 8
    export(claude, span(7, "late", 2))
    watcher.step()
    clock.now_ns += QUIET_NS
    for _ in range(3):
        watcher.step()
    (late,) = (s for s in watcher.store.spans(TRACE) if s.name == "late")
    assert late.parent_span_id == "02" * 8


def test_what_nobody_claims_goes_out_as_it_came(claude, receiver, watcher, clock):
    """After a while a foreign trace is sent on with its own ids, usage and resource, once."""
    export(
        claude,
        span(1, "POST /v1/messages"),
        a_chat(attributes={"gen_ai.response.id": "msg_nobodys"}),
        span(4, "GET /health", trace="cd" * 16),
    )
    watcher.step()
    assert watcher.store.spans("cd" * 16) == []
    clock.now_ns += QUIET_NS
    watcher.step()
    assert [each.name for each in watcher.store.spans("cd" * 16)] == ["GET /health"]
    assert watcher.store.spans(FOREIGN) == []
    clock.now_ns += ORPHAN_PATIENCE_NS
    watcher.step()
    deliver()
    deliver()
    assert len(receiver.spans) == 3
    chat = by_name(receiver)["chat claude-opus-5-5"]
    assert (chat.trace_id, chat.span_id, chat.parent_span_id) == (FOREIGN, "02" * 8, "01" * 8)
    assert chat.attributes["gen_ai.usage.output_tokens"] == 20
    assert chat.attributes["gen_ai.operation.name"] == "chat"
    assert chat.resource["service.name"] == "litellm"
    links = status(read_settings())["links"]
    assert links["orphans"] == 1
    assert links["orphan_reasons"] == {"no session in the request": 1}


@pytest.mark.parametrize("skew_s", [-600, 600])
def test_another_clock_changes_neither_links_nor_times(claude, receiver, skew_s):
    """Ids win over times: ten minutes off, the call is linked, its times stay, the skew is told."""
    claude.simple_turn()
    began = 1.2 + skew_s
    export(claude, span(1, "POST /v1/messages", began=began), a_chat(began=began))
    deliver()
    server = by_name(receiver)["POST /v1/messages"]
    llm = next(each for each in receiver.spans if each.span_id == "02" * 8)
    assert server.trace_id == TRACE
    assert server.start_ns == at(began)
    assert abs(llm.attributes[semconv.CLOCK_SKEW_MS]) > 590_000
    assert (llm.attributes[semconv.CLOCK_SKEW_MS] > 0) == (skew_s > 0)
    root = by_name(receiver)["invoke_agent claude-code"]
    assert (root.start_ns, root.end_ns) == (at(0), at(3))
    assert tokens(receiver.spans) == 20


def ours(**known) -> GatewayCall:
    identity = CallIdentity(agent="claude-code", session_id=SESSION, turn_key=TURN)
    return GatewayCall(
        call_id="ours-1",
        gateway="tracebridge",
        method="POST",
        path="/v1/messages",
        start_ns=at(1),
        end_ns=at(2),
        identity=identity,
        usage=Usage(input_tokens=115, output_tokens=20),
        model="claude-opus-5-5",
        **known,
    )


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ({"response_id": MESSAGE}, {}),
        ({"response_headers": {"x-litellm-call-id": "c-1"}}, {"gen_ai.response.id": ""}),
        ({}, {"gen_ai.response.id": "", "litellm.call_id": "c-9"}),
    ],
    ids=["response", "call", "time"],
)
def test_our_gateway_in_front_of_another_makes_one_chat(claude, receiver, own, theirs):
    """What ours and the one behind it saw is one call: by response id, by its id, or by time."""
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    claude.hook(3, "Stop", last_assistant_message="done", background_tasks=[])
    claude.spool.write_call(ours(**own))
    inside = span(1, "POST /v1/messages", trace=TRACE)
    request = exported(inside, a_chat(attributes=theirs, trace=TRACE))
    request.resource_spans[0].scope_spans[0].spans[0].parent_span_id = bytes.fromhex(ROOT)
    claude.spool.take(SpanExport(time_ns=at(3), request=request.SerializeToString()))
    deliver()
    (chat,) = (s for s in receiver.spans if s.attributes[semconv.SPAN_TYPE] == "llm")
    server = by_name(receiver)["POST /v1/messages"]
    assert server.parent_span_id == chat.span_id
    assert chat.attributes[semconv.LLM_GATEWAY] == "tracebridge+litellm"
    assert chat.attributes[semconv.LINK_EVIDENCE] == "turn_id"
    assert tokens(receiver.spans) == 20
    assert semconv.ORIGINAL_TRACE not in server.attributes


def test_attempts_of_the_gateway_are_inside_the_one_call(claude, receiver):
    """What a gateway tried again by itself is one call of the agent's, the failure below it."""
    claude.simple_turn()
    failed = CHAT | {"litellm.call_id": "c-1", "gen_ai.conversation.id": SESSION}
    export(
        claude,
        span(1, "POST /v1/messages"),
        a_chat(),
        span(3, "failed attempt", 1, attributes=failed, error="overloaded"),
    )
    deliver()
    (chat,) = (s for s in receiver.spans if s.attributes[semconv.SPAN_TYPE] == "llm")
    attempt = by_name(receiver)["failed attempt"]
    assert attempt.trace_id == TRACE
    assert attempt.status == 2
    assert chat.status == 0
    assert tokens(receiver.spans) == 20


def test_a_gateway_without_ids_is_linked_by_tools_and_tokens(claude, receiver):
    """What names no session is the turn's that tells the same tools, or alone the same tokens."""
    claude.hook(0, "UserPromptSubmit", prompt="hello")
    claude.prompt_line(0, "hello")
    claude.answer_line(
        2, "msg_1", used("toolu_1", "Bash", command="true"), began=1, stop="tool_use"
    )
    claude.answer_line(4, "msg_2", said("done"), began=3, output_tokens=33)
    claude.hook(5, "Stop", last_assistant_message="done", background_tasks=[])
    more = {"service": "respan-gateway", "scope": "respan-gateway"}
    tool = {"gen_ai.completion.0.tool_calls.0.id": "toolu_1"}
    export(claude, span(1, "first", attributes=CHAT | TOKENS | tool), **more)
    last = TOKENS | {"gen_ai.usage.output_tokens": 33}
    one = span(2, "second", trace="cd" * 16, began=3.4, attributes=CHAT | last)
    export(claude, one, **more)
    deliver()
    spans = by_name(receiver)
    assert spans["first"].parent_span_id == span_id(TRACE, "llm", "msg_1")
    assert spans["second"].parent_span_id == span_id(TRACE, "llm", "msg_2")
    assert spans["first"].attributes[semconv.LINK_EVIDENCE] == "tool_call_id"
    assert spans["second"].attributes[semconv.LINK_CONFIDENCE] == "inferred"
    assert tokens(receiver.spans) == 53


def test_calls_of_two_turns_in_one_foreign_trace_stay_there(claude, receiver):
    """A trace of which no single turn can be the parent goes out as it came, its usage put aside."""
    claude.simple_turn()
    second = "5d00821f-0000-4000-8000-000000000003"
    claude.turn = second
    claude.simple_turn(10)
    other = {"gen_ai.response.id": f"msg_{second}", "litellm.call_id": "c-2"}
    export(claude, span(1, "batch"), a_chat(), a_chat(3, 1, attributes=other, began=11.2))
    deliver()
    batch = by_name(receiver)["batch"]
    assert batch.trace_id == FOREIGN
    linked = [s for s in receiver.spans if s.attributes.get(semconv.SPAN_TYPE) == "llm"]
    assert len(linked) == 2
    assert tokens(receiver.spans) == 40


def test_content_level_and_secrets_hold_for_foreign_spans(claude, receiver, monkeypatch, home):
    """On the level of metadata nothing that was said goes out, and a key on no level, nor to disk."""
    monkeypatch.setenv("TRACEBRIDGE_CONTENT", "metadata")
    claude.simple_turn()
    key = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz012345"
    said_too = {
        "gen_ai.input.messages": "what the user said",
        "metadata.requester_custom_headers": str({"x-api-key": key, "x-app": "cli"}),
    }
    export(claude, span(1, "POST /v1/messages"), a_chat(attributes=said_too))
    deliver()
    wire = b"".join(request.body for request in receiver.requests)
    assert b"POST /v1/messages" in wire
    assert b"what the user said" not in wire
    assert key.encode() not in wire
    for path in home.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


def test_untraced_sessions_leave_no_foreign_spans(claude, receiver, monkeypatch, home):
    """What a gateway tells of a session in a folder that is not to be traced is forgotten."""
    monkeypatch.setenv("TRACEBRIDGE_UNTRACED", "/project")
    claude.simple_turn()
    user = {"litellm.metadata.user_api_key_end_user_id": json.dumps({"session_id": SESSION})}
    export(claude, span(1, "POST /v1/messages"), a_chat(attributes=user))
    deliver()
    assert receiver.spans == []
    with Store(home) as store:
        assert store.foreign_spans(FOREIGN) == []


def test_the_same_export_twice_adds_nothing(claude, receiver):
    """An exporter that got no answer sends again; each span goes out once."""
    claude.simple_turn()
    for _ in range(2):
        export(claude, span(1, "POST /v1/messages"), a_chat())
    deliver()
    export(claude, span(1, "POST /v1/messages"), a_chat())
    deliver()
    assert len(receiver.spans) == 4


def test_forgetting_a_session_takes_its_foreign_spans_along(claude, home):
    """After `forget` nothing of what another gateway told of the session is left."""
    claude.simple_turn()
    export(claude, span(1, "POST /v1/messages"), a_chat())
    deliver()
    with Store(home) as store:
        store.forget_session(SESSION)
        assert store.foreign_spans(FOREIGN) == []
        assert store.spans(TRACE) == []


def test_a_traceparent_of_ours_is_enough(claude, receiver):
    """Spans without any call of a model, as Envoy's by default, lie in the turn that they name."""
    claude.simple_turn()
    assert traceparent(TRACE)[36:52] == ROOT
    document = documents("envoy-codex")[0]
    (part,) = document["resourceSpans"][0]["scopeSpans"]
    egress, ingress = part["spans"][:2]
    part["spans"] = [
        egress | {"traceId": TRACE},
        ingress | {"traceId": TRACE, "parentSpanId": ROOT},
    ]
    for each in part["spans"]:
        # What our page makes it tell, Envoy does not tell by itself.
        ours = ("gen_ai.", "http.request.header.")
        each["attributes"] = [a for a in each["attributes"] if not a["key"].startswith(ours)]
    request = message(document)
    claude.spool.take(SpanExport(time_ns=at(3), request=request.SerializeToString()))
    deliver()
    told = by_name(receiver)
    assert (told["ingress"].trace_id, told["ingress"].parent_span_id) == (TRACE, ROOT)
    assert told["router openai egress"].parent_span_id == told["ingress"].span_id


def test_an_export_that_cannot_be_understood_is_set_aside(claude, receiver, home):
    """What lies in the spool and is no export harms nothing that lies beside it, and is counted."""
    claude.spool.take(SpanExport(time_ns=at(3), request=b"\xff\xff"))
    claude.spool.take("export refused (400)")
    claude.simple_turn()
    deliver()
    assert len(receiver.spans) == 2
    assert status(read_settings())["notes"] == {
        "export refused (400)": 1,
        "exported spans not understood, set aside; see watch.log": 1,
    }
    assert [path.suffix for path in (home / "spool" / "bad").iterdir()] == [".event"]


def test_a_call_that_no_turn_claims_is_counted_once_too(claude, receiver, home):
    """What ours and the gateway behind it saw of a stranger goes out alone, its tokens once."""
    stranger = CallIdentity(agent="claude-code", session_id="nobody's", turn_key="none")
    claude.spool.write_call(
        replace(
            ours(response_headers={"x-litellm-call-id": "c-1"}, response_id="msg_strange"),
            identity=stranger,
        )
    )
    strange = {"gen_ai.response.id": "msg_strange"}
    export(claude, span(1, "POST /v1/messages"), a_chat(attributes=strange))
    assert watch_once(read_settings(), close_open=True)
    assert len(receiver.spans) == 3
    assert tokens(receiver.spans) == 20
    with Store(home) as store:
        assert store.turn_counts() == {}

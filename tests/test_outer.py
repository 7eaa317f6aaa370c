"""A turn that its user wants to lie in the trace of what its agent was started by: a CI job, say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from claude_files import SESSION, TURN, Claude, at, said
from click.testing import CliRunner
from exports import exported

from tracebridge.cli import main
from tracebridge.ids import root_span_id, span_id, trace_id
from tracebridge.model import SpanExport, Tags
from tracebridge.settings import read_settings
from tracebridge.store import Store
from tracebridge.tags import over, parse_tags, tags_in
from tracebridge.testing.receiver import Receiver
from tracebridge.watch import watch_once

TRACE = trace_id("claude-code", SESSION, TURN)
OUTER_TRACE, OUTER_SPAN = "ab" * 16, "cd" * 8
OUTER = f"00-{OUTER_TRACE}-{OUTER_SPAN}-01"
# What the agent gives its hooks of its own accord is somebody else's.
NATIVE = {"TRACEPARENT": f"00-{'12' * 16}-{'34' * 8}-01"}
ENV = {**NATIVE, "TRACEBRIDGE_TRACEPARENT": OUTER, "TRACEBRIDGE_TRACEPARENT_AS": "parent"}


@pytest.fixture
def claude(home: Path, tmp_path: Path) -> Claude:
    return Claude(home, tmp_path)


@pytest.fixture
def receiver(monkeypatch):
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


def turn(claude: Claude, env: dict[str, str]) -> None:
    claude.hook(0, "UserPromptSubmit", env, prompt="hello")
    claude.prompt_line(0, "hello")
    claude.answer_line(2, "msg_1", said("hi"), began=1)
    claude.hook(3, "Stop", env, last_assistant_message="hi", background_tasks=[])


def test_the_turn_lies_under_the_outer_span(claude, receiver):
    """All of its spans have the outer trace's id; the ids of spans stay those that anybody computes."""
    turn(claude, ENV)
    assert watch_once(read_settings())
    spans = {span.span_id: span for span in receiver.spans}
    assert {span.trace_id for span in spans.values()} == {OUTER_TRACE}
    assert set(spans) == {root_span_id(TRACE), span_id(TRACE, "llm", "msg_1")}
    root = spans[root_span_id(TRACE)]
    assert root.parent_span_id == OUTER_SPAN
    assert spans[span_id(TRACE, "llm", "msg_1")].parent_span_id == root.span_id
    assert not root.message.links
    assert root.attributes["tracebridge.outer.as"] == "parent"
    assert root.attributes["tracebridge.outer.trace_id"] == OUTER_TRACE
    assert root.attributes["tracebridge.turn.trace_id"] == TRACE


@pytest.mark.parametrize(
    "env",
    [
        NATIVE,
        {**NATIVE, "TRACEBRIDGE_TRACEPARENT_AS": "parent"},
        {"TRACEBRIDGE_TRACEPARENT": OUTER, "TRACEBRIDGE_TRACEPARENT_AS": "link"},
        {"TRACEBRIDGE_TRACEPARENT": OUTER, "TRACEBRIDGE_TRACEPARENT_AS": ""},
        {"TRACEBRIDGE_TRACEPARENT": OUTER, "TRACEBRIDGE_TRACEPARENT_AS": "Parent"},
        {"TRACEBRIDGE_TRACEPARENT": "rubbish", "TRACEBRIDGE_TRACEPARENT_AS": "parent"},
    ],
)
def test_only_on_request(claude, receiver, env):
    """A turn keeps its own trace, least of all for what an agent sets by itself."""
    turn(claude, env)
    assert watch_once(read_settings())
    assert {span.trace_id for span in receiver.spans} == {TRACE}
    assert not receiver.spans[-1].parent_span_id


@pytest.mark.usefixtures("receiver")
def test_what_is_here_keeps_its_ids(claude, home):
    """The store, and so `tail`, `turns`, `show` and `forget`, know the turn by its own trace id."""
    turn(claude, ENV)
    assert watch_once(read_settings())
    with Store(home) as store:
        (row,) = store.turns()
        assert row.trace_id == TRACE
        assert {span.trace_id for span in store.spans(TRACE)} == {TRACE}
        assert store.spans(TRACE)[-1].parent_span_id is None


def test_export_says_what_the_backend_has(claude, receiver):
    """The same ids, in OTLP and as lines."""
    turn(claude, ENV)
    assert watch_once(read_settings())
    sent = {(span.trace_id, span.span_id, span.parent_span_id or None) for span in receiver.spans}
    lines = CliRunner().invoke(main, ["export", "--format", "jsonl"]).stdout.splitlines()
    flat = [json.loads(line) for line in lines]
    assert {(s["trace_id"], s["span_id"], s["parent_span_id"]) for s in flat} == sent
    document = json.loads(CliRunner().invoke(main, ["export"]).stdout)
    spans = [
        span
        for resource in document["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    assert {(s["traceId"], s["spanId"], s.get("parentSpanId") or None) for s in spans} == sent


def test_what_comes_late_lies_there_too(claude, receiver):
    """A new span of a turn that was told goes to the same trace, and nothing goes twice."""
    turn(claude, ENV)
    assert watch_once(read_settings())
    claude.answer_line(2.5, "msg_late", said("more"), began=2.1)
    claude.hook(4, "Notification", ENV, message="x")
    assert watch_once(read_settings())
    assert len(receiver.spans) == len({span.span_id for span in receiver.spans}) == 3
    late = receiver.spans[-1]
    assert late.span_id == span_id(TRACE, "llm", "msg_late")
    assert (late.trace_id, late.parent_span_id) == (OUTER_TRACE, root_span_id(TRACE))


def test_turns_of_one_job_do_not_collide(home, tmp_path, receiver):
    """Of several turns in one outer trace each span has an id of its own."""
    for number in range(3):
        claude = Claude(home, tmp_path, session=f"{number}-session", turn=f"turn-{number}")
        turn(claude, ENV)
    assert watch_once(read_settings())
    assert len({span.span_id for span in receiver.spans}) == len(receiver.spans) == 6
    assert {span.trace_id for span in receiver.spans} == {OUTER_TRACE}
    roots = [span for span in receiver.spans if span.parent_span_id == OUTER_SPAN]
    assert len(roots) == 3


@pytest.mark.parametrize("foreign", ["ef" * 16, OUTER_TRACE], ids=["its own trace", "told by us"])
def test_spans_of_another_gateway_lie_there_too(claude, receiver, foreign):
    """Below the chat that they tell of, whether or not that gateway was told of the outer trace."""
    turn(claude, ENV)
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.response.id": "msg_1"}
    request = exported(
        {"trace": foreign, "start": at(1.2), "end": at(1.8), "attributes": attributes}
    )
    (span,) = request.resource_spans[0].scope_spans[0].spans
    span.parent_span_id = bytes.fromhex(root_span_id(TRACE))
    claude.spool.take(SpanExport(time_ns=at(3), request=request.SerializeToString()))
    assert watch_once(read_settings(), close_open=True)
    spans = {span.span_id: span for span in receiver.spans}
    assert {span.trace_id for span in receiver.spans} == {OUTER_TRACE}
    assert len(receiver.spans) == len(spans) == 3
    assert spans["01" * 8].parent_span_id == span_id(TRACE, "llm", "msg_1")


def test_a_gateway_that_knows_no_more_than_its_parent(claude, receiver):
    """Of several turns in one outer trace the parent tells which made the call."""
    turn(claude, ENV)
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    request = exported({"trace": OUTER_TRACE, "start": at(1.2), "attributes": attributes})
    (span,) = request.resource_spans[0].scope_spans[0].spans
    span.end_time_unix_nano = at(1.8)
    span.parent_span_id = bytes.fromhex(root_span_id(TRACE))
    claude.spool.take(SpanExport(time_ns=at(3), request=request.SerializeToString()))
    assert watch_once(read_settings(), close_open=True)
    assert {span.trace_id for span in receiver.spans} == {OUTER_TRACE}
    evidence = {span.attributes.get("tracebridge.link.evidence") for span in receiver.spans}
    assert "traceparent" in evidence


@pytest.mark.usefixtures("receiver")
def test_forget_names_the_trace_where_it_is(claude):
    """What a backend has is to be deleted there under the id that it has there."""
    turn(claude, ENV)
    assert watch_once(read_settings())
    said_of_it = CliRunner().invoke(main, ["forget", SESSION], input="y\n").stdout
    assert f"  {TRACE}, there in {OUTER_TRACE} below {root_span_id(TRACE)}" in said_of_it


@pytest.mark.usefixtures("receiver")
def test_what_is_neither_is_noted(home, claude):
    """A typing error gives a link, and says so."""
    turn(claude, {**ENV, "TRACEBRIDGE_TRACEPARENT_AS": "father"})
    assert watch_once(read_settings())
    with Store(home) as store:
        (note,) = [note for note in store.notes() if "TRACEBRIDGE_TRACEPARENT_AS" in note]
    assert note == "TRACEBRIDGE_TRACEPARENT_AS is neither link nor parent; the turn gets a link"


def test_tags_keep_both_words_together():
    """How it lies there is said of the context that it was said with, and of no other."""
    tags, problem = parse_tags({**ENV, "PATH": "/bin"})
    assert problem is None
    assert tags == Tags(outer=OUTER, outer_as="parent")
    assert tags.parent_trace_id == OUTER_TRACE
    linked = Tags(outer=OUTER.replace("ab", "12"))
    assert over(tags, linked) == linked
    assert over(linked, tags) == tags
    assert over(tags, Tags(customer_id="a")) == Tags(
        customer_id="a", outer=OUTER, outer_as="parent"
    )
    assert tags_in({**ENV, "PATH": "/bin"}) == {
        name: ENV[name] for name in ("TRACEBRIDGE_TRACEPARENT", "TRACEBRIDGE_TRACEPARENT_AS")
    }

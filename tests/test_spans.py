"""The spans of a turn: what stands on each, what on none, and how much of what was said."""

from __future__ import annotations

import pytest
from hypothesis import given
from msgspec.structs import replace
from sessions import AGENT, SECOND, Session, sessions
from test_turns import assembled, prompt, see

from tracebridge import semconv
from tracebridge.encode import encode_span
from tracebridge.ids import root_span_id, span_id
from tracebridge.linker import link
from tracebridge.model import (
    CallIdentity,
    Evidence,
    FileEdit,
    GatewayCall,
    ModelCall,
    Outcome,
    PermissionAsk,
    Source,
    SpanKind,
    Status,
    Subagent,
    Tags,
    Thinking,
    ToolCall,
    TurnEnd,
    Usage,
)
from tracebridge.spans import Content, render

TAGS = Tags(
    customer_id="acme",
    workflow_name="nightly",
    project_id="p-1",
    metadata=(("team", "blue"), ("ticket", "7")),
)
SAID = "the secret sauce"


def everything():
    """Return the sightings of one turn that has every kind of span."""
    call = ModelCall(
        key="msg",
        response_id="msg",
        model="m",
        start_ns=2 * SECOND,
        end_ns=3 * SECOND,
        output_text=SAID,
        usage=Usage(input_tokens=100, output_tokens=7, cache_read_tokens=90, cache_write_tokens=5),
    )
    return [
        prompt(SECOND, text=SAID),
        see(TAGS),
        see(call, source=Source.TRANSCRIPT),
        see(Thinking(key="msg:0", call_key="msg", end_ns=3 * SECOND, text=SAID)),
        see(ToolCall(key="edit", name="Edit", start_ns=4 * SECOND, input=SAID, input_digest="d")),
        see(PermissionAsk(key="q", tool_name="Edit", input_digest="d", start_ns=5 * SECOND)),
        see(ToolCall(key="edit", end_ns=8 * SECOND, duration_ns=SECOND, output=SAID)),
        see(FileEdit(key="edit:0", tool_key="edit", path="/p/a", lines_added=1, diff=SAID)),
        see(ToolCall(key="sub", name="Agent", start_ns=8 * SECOND, end_ns=9 * SECOND)),
        see(Subagent(key="a", type="helper", tool_key="sub", start_ns=8 * SECOND, output=SAID)),
        see(Subagent(key="a", end_ns=9 * SECOND)),
        see(
            ToolCall(
                key="bad",
                name="Bash",
                start_ns=8 * SECOND,
                end_ns=9 * SECOND,
                error_type="exit_nonzero",
                error_message=SAID,
                exit_code=3,
            ),
            subagent="a",
        ),
        see(TurnEnd(key="stop", end_ns=9 * SECOND, outcome=Outcome.COMPLETED, message=SAID)),
    ]


def spans_by_name(sightings=None, content=Content.REDACTED, calls=()):
    (turn,) = assembled("s", everything() if sightings is None else sightings, calls)
    return {span.name: span for span in render(turn, content)}


def test_what_contains_what():
    """Parents are what contains a thing, and the root comes last."""
    spans = spans_by_name()
    names = {span.span_id: name for name, span in spans.items()}
    assert {name: names.get(span.parent_span_id) for name, span in spans.items()} == {
        "chat m": "invoke_agent claude-code",
        "thinking": "chat m",
        "execute_tool Edit": "invoke_agent claude-code",
        "permission_wait Edit": "execute_tool Edit",
        "file_edit /p/a": "execute_tool Edit",
        "execute_tool Agent": "invoke_agent claude-code",
        "invoke_agent helper": "execute_tool Agent",
        "execute_tool Bash": "invoke_agent helper",
        "invoke_agent claude-code": None,
    }
    assert list(spans)[-1] == "invoke_agent claude-code"


def test_session_customer_and_metadata_stand_on_every_span():
    """A child can be filtered by whom it was for, whatever a backend reads."""
    for span in spans_by_name().values():
        assert span.attributes[semconv.CONVERSATION_ID] == "s"
        assert span.attributes[semconv.SESSION_ID] == "s"
        assert span.attributes[semconv.USER_ID] == "acme"
        assert span.attributes[semconv.RESPAN_CUSTOMER] == "acme"
        assert span.attributes[semconv.METADATA] == '{"team": "blue", "ticket": "7"}'
        assert span.attributes["tracebridge.metadata.team"] == "blue"
        assert span.attributes[semconv.WORKFLOW_NAME] == "nightly"
        assert span.attributes[semconv.PROJECT_ID] == "p-1"


def test_usage_of_the_turn_has_names_of_its_own():
    """The root tells the turn's totals where no backend adds them to those of the calls."""
    spans = spans_by_name()
    root, chat = spans["invoke_agent claude-code"], spans["chat m"]
    assert root.attributes[semconv.TURN_INPUT_TOKENS] == 100
    assert not [name for name in root.attributes if name.startswith(("gen_ai.usage", "llm."))]
    assert chat.attributes[semconv.CACHE_READ_TOKENS] == 90
    assert chat.attributes[semconv.CACHE_WRITE_TOKENS] == 5
    assert chat.attributes[semconv.CACHE_CREATION_TOKENS] == 5
    assert chat.attributes[semconv.OI_TOTAL_TOKENS] == 107


def test_failures_are_errors_and_waiting_is_no_work():
    """A failed tool has status ERROR and a type; an approval wait is a span of its own."""
    spans = spans_by_name()
    failed = spans["execute_tool Bash"]
    assert (failed.status, failed.attributes[semconv.ERROR_TYPE]) == (Status.ERROR, "exit_nonzero")
    assert failed.attributes[semconv.TOOL_EXIT_CODE] == 3
    wait = spans["permission_wait Edit"]
    assert (wait.start_ns, wait.end_ns) == (5 * SECOND, 7 * SECOND)
    edit = spans["file_edit /p/a"]
    assert (edit.start_ns, edit.end_ns) == (7 * SECOND, 8 * SECOND)


@pytest.mark.parametrize("content", Content)
def test_content_levels(content):
    """Metadata carries nothing that was said; the other levels carry it."""
    found = str(spans_by_name(content=content))
    assert (SAID in found) == (content is not Content.METADATA)


def test_long_texts_are_cut_with_their_size():
    """On the default level a text has an end, and says how long it was; full keeps all."""
    long = "x" * 50_000
    sightings = [prompt(SECOND, text=long)]
    text = spans_by_name(sightings)["invoke_agent claude-code"].attributes[semconv.OI_INPUT]
    assert len(text) < 21_000
    assert text.endswith("[cut: 50000 characters]")
    full = spans_by_name(sightings, Content.FULL)["invoke_agent claude-code"]
    assert full.attributes[semconv.OI_INPUT] == long


def test_the_gateway_sees_and_the_transcript_fills_in():
    """Of one call the gateway's times, status and usage count; what it cannot see comes from disk."""
    seen = GatewayCall(
        call_id="c",
        gateway="tracebridge",
        method="POST",
        path="/v1/messages",
        start_ns=2 * SECOND + 1,
        end_ns=3 * SECOND + 1,
        first_token_ns=2 * SECOND + 500_000_001,
        identity=CallIdentity(agent=AGENT, session_id="s", turn_key="t"),
        response_id="msg",
        requested_model="m",
        status_code=200,
        usage=Usage(input_tokens=1, output_tokens=2),
    )
    chat = spans_by_name(calls=[seen])["chat m"]
    assert chat.kind is SpanKind.CLIENT
    assert chat.start_ns == seen.start_ns
    assert chat.attributes[semconv.INPUT_TOKENS] == 1
    assert chat.attributes[semconv.TIME_TO_FIRST_CHUNK] == 0.5
    assert chat.attributes[semconv.LLM_SOURCE] == "gateway+transcript"
    assert chat.attributes[semconv.LINK_EVIDENCE] == Evidence.TURN_ID
    assert chat.attributes[semconv.LINK_CONFIDENCE] == "exact"
    assert chat.attributes[semconv.OI_OUTPUT] == SAID


def test_ids_are_those_of_the_contract():
    """Any process computes the ids of root, tool and call alone."""
    (turn,) = assembled("s", everything())
    spans = {span.name: span.span_id for span in render(turn)}
    assert spans["invoke_agent claude-code"] == root_span_id(turn.trace_id)
    assert spans["execute_tool Edit"] == span_id(turn.trace_id, "tool", "edit")
    assert spans["chat m"] == span_id(turn.trace_id, "llm", "msg")


def test_an_unknown_time_is_said_to_be_unknown():
    """A tool whose end nobody told ends with its turn, and says that this is not known."""
    sightings = [
        prompt(SECOND),
        see(ToolCall(key="a", name="Bash", start_ns=2 * SECOND)),
        see(TurnEnd(key="x", end_ns=5 * SECOND, outcome=Outcome.INTERRUPTED)),
    ]
    tool = spans_by_name(sightings)["execute_tool Bash"]
    assert tool.end_ns == 5 * SECOND
    assert tool.attributes[semconv.END_UNKNOWN] is True


def test_a_span_name_of_the_users_names_the_root():
    """RESPAN_SPAN_NAME names the root span."""
    sightings = [prompt(SECOND), see(replace(TAGS, span_name="deploy"))]
    assert "deploy" in spans_by_name(sightings)


@given(session=sessions())
def test_every_span_can_be_sent(session: Session):
    """Finished turns encode; ids are unique, parents are there, children do not begin before 1970."""
    turns = assembled(session.session_id, session.sightings, session.calls)
    linked, orphans = link(session.calls, turns)
    assert not orphans
    assert len(linked) == len(session.calls)
    for turn in turns:
        spans = render(turn)
        ids = [span.span_id for span in spans]
        assert len(ids) == len(set(ids))
        for span in spans:
            assert encode_span(span) == encode_span(span)
            assert span.parent_span_id is None or span.parent_span_id in ids
            assert span.end_ns >= span.start_ns > 0

"""Finished turns, printed or sent once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tracebridge import ids
from tracebridge.spool import Spool
from tracebridge.testing.receiver import Answer, Receiver

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS


def run(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "tracebridge", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **env},
    )


def ok(*arguments, **env):
    done = run(*arguments, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def put_turn(home, session, began_ns, cwd="/work/site"):
    """Put the hook events of one short turn into the spool."""
    spool = Spool(home)
    spool.create()
    events = [
        ("UserPromptSubmit", {"prompt": f"of {session}"}),
        ("PreToolUse", {"tool_name": "Bash", "tool_input": {}, "tool_use_id": "toolu_1"}),
        ("PostToolUse", {"tool_name": "Bash", "tool_input": {}, "tool_use_id": "toolu_1"}),
        ("Stop", {"last_assistant_message": "done"}),
    ]
    for number, (event, fields) in enumerate(events):
        time_ns = began_ns + number * SECOND_NS
        payload = {
            "session_id": session,
            "prompt_id": "p-1",
            "hook_event_name": event,
            "cwd": cwd,
            **fields,
        }
        head = f"format=1\0kind=hook\0agent=claude-code\0time_ns={time_ns}\0pid=1\0\0"
        path = spool.new / f"{time_ns:020d}-{session}.event"
        path.write_bytes(head.encode() + json.dumps(payload).encode())


@pytest.fixture
def two_turns(home):
    """One of ten days ago, one of an hour ago in another project."""
    now = time.time_ns()
    put_turn(home, "old", now - 10 * DAY_NS)
    put_turn(home, "new", now - 3600 * SECOND_NS, cwd="/work/other")
    ok("watch", "--once", "--close-open")
    return home


def sessions_in(text):
    return {json.loads(line)["session_id"] for line in text.splitlines()}


@pytest.mark.usefixtures("two_turns")
def test_lines_are_flat_and_complete():
    """One object a span, with parent and attributes by their full names."""
    spans = [json.loads(line) for line in ok("export", "--format", "jsonl").splitlines()]
    assert len(spans) == 4
    trace = ids.trace_id("claude-code", "new", "p-1")
    by_id = {span["span_id"]: span for span in spans if span["trace_id"] == trace}
    root = by_id[ids.root_span_id(trace)]
    tool = by_id[ids.span_id(trace, "tool", "toolu_1")]
    assert (root["parent_span_id"], tool["parent_span_id"]) == (None, root["span_id"])
    assert tool["attributes"]["gen_ai.tool.name"] == "Bash"
    assert root["attributes"]["tracebridge.turn.outcome"] == "completed"
    assert root["end_ns"] - root["start_ns"] == 3 * SECOND_NS


@pytest.mark.usefixtures("two_turns")
def test_a_part_can_be_asked_for():
    """By time, session, project or number; OTLP/JSON stays the default."""
    lines = ("export", "--format", "jsonl")
    assert sessions_in(ok(*lines, "--since", "1d")) == {"new"}
    assert sessions_in(ok(*lines, "--until", "1d")) == {"old"}
    assert sessions_in(ok(*lines, "--project", "other")) == {"new"}
    assert sessions_in(ok(*lines, "--session", "ol")) == {"old"}
    assert sessions_in(ok(*lines, "--limit", "1")) == {"new"}
    document = json.loads(ok("export"))
    assert sum(len(r["scopeSpans"][0]["spans"]) for r in document["resourceSpans"]) == 4
    for resource in document["resourceSpans"]:
        for span in resource["scopeSpans"][0]["spans"]:
            for name in ("traceId", "spanId", "parentSpanId"):
                span.pop(name, None)
    assert ParseDict(document, ExportTraceServiceRequest()).resource_spans


@pytest.mark.usefixtures("two_turns")
def test_a_backend_that_came_later_gets_what_was_before_it():
    """With --sink the turns go there, as often as asked for with the same bytes."""
    with Receiver() as receiver:
        for _ in range(2):
            said = ok("export", "--sink", f"otlp_http:{receiver.endpoint}")
            assert "4 spans sent" in said
        first, second = receiver.requests
        assert first.body == second.body
        assert len({span.span_id for span in receiver.spans}) == 4
        ok("export", "--since", "1d", "--sink", f"otlp_http:{receiver.endpoint}")
        assert len(receiver.spans) == 10
        # What was sent by hand is not sent again by the watcher.
        ok("watch", "--once")
        assert len(receiver.requests) == 3


@pytest.mark.usefixtures("two_turns")
def test_what_a_backend_does_not_take_now_waits_for_it():
    """The exit code says so, and the next attempt needs no second export."""
    with Receiver() as receiver:
        receiver.answer_next(Answer(status=503))
        sink = f"otlp_http:{receiver.endpoint}"
        failed = run("export", "--sink", sink)
        assert failed.returncode == 1
        assert "503" in failed.stderr
        ok("watch", "--once", TRACEBRIDGE_SINKS=sink)
        assert len({span.span_id for span in receiver.spans}) == 4


@pytest.mark.usefixtures("two_turns")
def test_a_sink_that_is_none_is_named():
    result = run("export", "--sink", "nowhere")
    assert result.returncode == 1
    assert "there is no sink 'nowhere'" in result.stderr
    assert result.stdout == ""


def test_sinks_are_listed_and_tried():
    """One span says that it arrives, or why not; the key is shown nowhere."""
    listed = ok("sink")
    assert "langfuse" in listed
    assert "LANGFUSE_SECRET_KEY" in listed
    assert json.loads(ok("sink", "--json"))["phoenix"].startswith("Arize Phoenix")
    with Receiver() as receiver:
        where = {"PHOENIX_COLLECTOR_ENDPOINT": receiver.endpoint, "PHOENIX_API_KEY": "s3cret"}
        assert "1 spans sent" in ok("sink", "phoenix", **where)
        (span,) = receiver.spans
        assert span.name == "tracebridge sink"
        receiver.answer_next(Answer(status=401, body=b"no such key s3cret"))
        refused = run("sink", "phoenix", **where)
        assert refused.returncode == 1
        assert "401" in refused.stderr
        assert "s3cret" not in refused.stderr + refused.stdout
    missing = run("sink", "honeycomb")
    assert missing.returncode == 1
    assert "HONEYCOMB_API_KEY" in missing.stderr


@pytest.mark.usefixtures("two_turns")
@pytest.mark.parametrize("configured", [False, True])
def test_a_sink_that_may_have_metadata_only_gets_no_more_by_hand(configured):
    """Whether its level is named with it, or was set up for it before."""
    with Receiver() as receiver:
        sink = f"otlp_http:{receiver.endpoint}"
        if configured:
            ok("export", "--sink", sink, TRACEBRIDGE_SINKS=f"respan, {sink}#metadata")
        else:
            ok("export", "--sink", f"{sink}#metadata")
        assert len(receiver.spans) == 4
        for request in receiver.requests:
            assert b"of new" not in request.body
        assert {s.attributes["tracebridge.turn.outcome"] for s in receiver.spans[1::2]} == {
            "completed"
        }
        ok("export", "--sink", sink)
        assert b"of new" in receiver.requests[-1].body


def test_a_sink_without_its_key_loses_nothing_and_hinders_no_other(home):
    """What is told waits for it, until somebody sets the key; others get theirs at once."""
    put_turn(home, "new", time.time_ns() - 3600 * SECOND_NS)
    with Receiver() as receiver, Receiver() as keyed:
        sinks = f"honeycomb, otlp_http:{receiver.endpoint}, nonsense"
        where = {"HONEYCOMB_API_ENDPOINT": keyed.endpoint}
        once = run("watch", "--once", "--close-open", TRACEBRIDGE_SINKS=sinks, **where)
        assert once.returncode == 1
        assert len(receiver.spans) == 2
        state = json.loads(ok("status", "--json", TRACEBRIDGE_SINKS=sinks))
        (honeycomb,) = [sink for sink in state["sinks"] if sink["name"] == "honeycomb"]
        assert honeycomb["waiting"] == 2
        assert "HONEYCOMB_API_KEY" in honeycomb["last_error"]
        sinks = sinks.replace(", nonsense", "")
        ok("watch", "--once", TRACEBRIDGE_SINKS=sinks, HONEYCOMB_API_KEY="k", **where)
        assert len(keyed.spans) == 2
        assert len(receiver.spans) == 2

"""What leaves this machine, and what is never written: levels, rules and folders of the user's."""

from __future__ import annotations

from pathlib import Path

import pytest
from claude_files import SESSION, TURN, Claude, at

from tracebridge.ids import trace_id
from tracebridge.model import CallIdentity, GatewayCall
from tracebridge.settings import read_settings
from tracebridge.sinks import configured_sinks
from tracebridge.store import Store
from tracebridge.testing.receiver import Receiver
from tracebridge.watch import watch_once

SAID = "the walrus is grey"


@pytest.fixture
def claude(home: Path, tmp_path: Path) -> Claude:
    return Claude(home, tmp_path)


def received(receiver: Receiver) -> str:
    return "".join(str(dict(span.attributes)) for span in receiver.spans)


def test_each_sink_has_its_own_level(claude, home, monkeypatch):
    """A shared backend gets the same spans without texts, the local one and the store have all."""
    claude.simple_turn(text=SAID)
    with Receiver() as shared, Receiver() as local:
        sinks = f"otlp_http:{shared.endpoint}#metadata,otlp_http:{local.endpoint}"
        monkeypatch.setenv("TRACEBRIDGE_SINKS", sinks)
        assert watch_once(read_settings())
        assert SAID not in received(shared)
        assert SAID in received(local)
        assert [span.span_id for span in shared.spans] == [span.span_id for span in local.spans]
    with Store(home) as store:
        spans = store.spans(trace_id("claude-code", SESSION, TURN))
    assert any(SAID in str(span.attributes) for span in spans)


def test_a_sink_may_have_more_than_the_store(claude, monkeypatch):
    """The level of a sink is its own, also upwards."""
    claude.simple_turn(text=SAID)
    with Receiver() as receiver:
        monkeypatch.setenv("TRACEBRIDGE_CONTENT", "metadata")
        monkeypatch.setenv("TRACEBRIDGE_SINKS", f"otlp_http:{receiver.endpoint}#full")
        assert watch_once(read_settings())
        assert SAID in received(receiver)


def test_a_call_that_goes_out_alone_obeys_the_level_too(claude, monkeypatch):
    """What an upstream said of an error is content."""
    identity = CallIdentity(agent="claude-code", session_id="nobody", turn_key="none")
    claude.spool.write_call(
        GatewayCall(
            call_id="c",
            gateway="tracebridge",
            method="POST",
            path="/v1/messages",
            start_ns=at(0),
            end_ns=at(1),
            identity=identity,
            error_type="400",
            error_message=SAID,
        )
    )
    with Receiver() as shared, Receiver() as local:
        sinks = f"otlp_http:{shared.endpoint}#metadata,otlp_http:{local.endpoint}#full"
        monkeypatch.setenv("TRACEBRIDGE_SINKS", sinks)
        assert watch_once(read_settings(), close_open=True)
        assert len(shared.spans) == len(local.spans) == 1


@pytest.mark.parametrize(
    ("entry", "name", "content"),
    [
        ("json_file:/tmp/a.jsonl#full", "json_file:/tmp/a.jsonl", "full"),
        ("json_file:/tmp/a#b.jsonl", "json_file:/tmp/a#b.jsonl", ""),
        ("memory#metadata", "memory", "metadata"),
        ("memory", "memory", ""),
    ],
)
def test_the_level_stands_behind_the_sink(entry, name, content):
    """It is no part of the sink's name: changing it does not make another outbox."""
    (ready,) = configured_sinks({"TRACEBRIDGE_SINKS": entry})
    assert (ready.name, ready.content) == (name, content)


def test_secrets_of_the_users_own_kind_go(claude, home, monkeypatch):
    """By an expression in the settings, from hooks, transcripts and calls, before the first write."""
    monkeypatch.setenv("TRACEBRIDGE_SCRUB_PATTERNS", "acme-[0-9]+\nbadge (?P<secret>[0-9]+)")
    claude.simple_turn(text="use acme-4711 and badge 12345678")
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        assert watch_once(read_settings())
        assert "use [secret removed] and badge [secret removed]" in received(receiver)
    for path in home.rglob("*"):
        if path.is_file():
            assert b"acme-4711" not in path.read_bytes()
            assert b"12345678" not in path.read_bytes()


def test_nothing_is_recorded_in_a_folder_that_is_not_traced(claude, home, tmp_path, monkeypatch):
    """Neither hooks nor transcript nor calls; sessions elsewhere are."""
    monkeypatch.setenv("TRACEBRIDGE_UNTRACED", "/project/private\n/elsewhere")
    private = Claude(home, tmp_path, session="private-session", turn="private-turn")
    private.hook(0, "UserPromptSubmit", cwd="/project/private/deep", prompt=SAID)
    private.prompt_line(0, SAID)
    identity = CallIdentity(
        agent="claude-code", session_id="private-session", turn_key="private-turn"
    )
    private.spool.write_call(
        GatewayCall(
            call_id="c",
            gateway="tracebridge",
            method="POST",
            path="/v1/messages",
            start_ns=at(0),
            end_ns=at(1),
            identity=identity,
        )
    )
    private.hook(1, "Stop", cwd="/somewhere", last_assistant_message=SAID, background_tasks=[])
    claude.simple_turn()
    assert watch_once(read_settings(), close_open=True)
    with Store(home) as store:
        assert [row.session_id for row in store.turns()] == [SESSION]
        assert store.notes()["hook event of a folder that is not traced"] == 2
    assert SAID.encode() not in (home / "store.sqlite3").read_bytes()

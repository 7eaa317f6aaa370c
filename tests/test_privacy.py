"""What leaves this machine, and what is never written: levels, rules and folders of the user's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from claude_files import SESSION, TURN, Claude, at, said

from tracebridge.ids import trace_id
from tracebridge.model import CallIdentity, GatewayCall
from tracebridge.settings import read_settings
from tracebridge.sinks import configured_sinks
from tracebridge.store import Store
from tracebridge.testing.receiver import Answer, Receiver
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


@pytest.mark.parametrize("levels", ["#full,#metadata", "#metadata,", ",#metadata,#redacted"])
def test_a_sink_that_is_named_twice_gets_the_less(claude, monkeypatch, levels):
    """And gets it once."""
    claude.simple_turn(text=SAID)
    with Receiver() as shared:
        sinks = ",".join(f"otlp_http:{shared.endpoint}{level}" for level in levels.split(","))
        monkeypatch.setenv("TRACEBRIDGE_SINKS", sinks)
        assert watch_once(read_settings())
        assert len(shared.spans) == 2
        assert SAID not in received(shared)


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_waits_is_brought_down_to_a_lower_level(claude, home, monkeypatch, by_hand):
    """The backend was away while it might have had all; it comes back and may have less."""
    claude.simple_turn(text=SAID)
    private_call(Claude(home, home.parent, session="nobody", turn="none"), "orphan")
    with Receiver() as shared:
        shared.rule = lambda _: Answer(status=503)
        sink = f"otlp_http:{shared.endpoint}"
        monkeypatch.setenv("TRACEBRIDGE_SINKS", f"{sink}#full")
        assert not watch_once(read_settings(), close_open=True)
        shared.rule = lambda _: Answer()
        monkeypatch.setenv("TRACEBRIDGE_SINKS", f"{sink}#metadata")
        if by_hand:
            words = [sys.executable, "-m", "tracebridge", "export", "--since", "2026-01-01"]
            subprocess.run([*words, "--sink", sink], check=True, capture_output=True)
        else:
            assert watch_once(read_settings())
        assert [span.name for span in shared.spans][-1:] == ["invoke_agent claude-code"]
        assert len(shared.spans) == 2
        assert SAID not in received(shared)
        with Store(home) as store:
            assert any(note.startswith("span not sent to") for note in store.notes())
        # Up again, what is new has all, and what was there goes nowhere twice.
        monkeypatch.setenv("TRACEBRIDGE_SINKS", f"{sink}#full")
        Claude(home, home.parent, session="another", turn="t").simple_turn(text=SAID)
        assert watch_once(read_settings())
        assert len(shared.spans) == 4
        assert SAID in received(shared)


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


def private_call(claude: Claude, call_id: str, **more) -> None:
    identity = CallIdentity(
        agent="claude-code", session_id=claude.session, turn_key=claude.turn, **more
    )
    claude.spool.write_call(
        GatewayCall(
            call_id=call_id,
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


def bytes_of(home: Path) -> bytes:
    return b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


@pytest.mark.parametrize("told_by", ["hook", "transcript"])
@pytest.mark.parametrize("gave_up", [False, True])
def test_calls_that_came_before_the_folder_was_known_go(
    claude, home, monkeypatch, told_by, gave_up
):
    """Also where they went out as orphans already, from what still waits; later ones never come in."""
    monkeypatch.setenv("TRACEBRIDGE_UNTRACED", "/project")
    monkeypatch.setenv("TRACEBRIDGE_SINKS", "otlp_http:http://127.0.0.1:9")
    private_call(claude, "before")
    watch_once(read_settings(), close_open=gave_up)
    with Store(home) as store:
        assert sum(store.link_counts().values()) == 1
        assert (store.waiting() == 1) == gave_up
    if told_by == "hook":
        claude.hook(0, "UserPromptSubmit", prompt=SAID)
    claude.prompt_line(0, SAID)
    claude.answer_line(2, "msg_1", said(SAID), began=1)
    if told_by == "transcript":
        # Who the session is, its calls have told; where it is, its own file does.
        find_transcript_of(claude, monkeypatch)
        private_call(claude, "another")
    watch_once(read_settings())
    # A watcher that was not there then.
    private_call(claude, "after")
    watch_once(read_settings(), close_open=True)
    with Store(home) as store:
        assert (store.link_counts(), store.turns(), store.waiting()) == ({}, [], 0)
    assert SAID.encode() not in bytes_of(home)


def find_transcript_of(claude: Claude, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the transcript lie where Claude Code would have put it."""
    user = claude.transcript.parent / "user"
    folder = user / ".claude" / "projects" / "-project"
    folder.mkdir(parents=True)
    claude.transcript = claude.transcript.rename(folder / f"{claude.session}.jsonl")
    monkeypatch.setenv("HOME", str(user))


def test_what_was_told_before_it_went_to_a_private_folder_stays(claude, home, monkeypatch):
    """Of a session that comes there, nothing more is recorded from then on."""
    monkeypatch.setenv("TRACEBRIDGE_UNTRACED", "/private")
    claude.simple_turn()
    assert watch_once(read_settings())
    claude.turn = "later-turn"
    claude.hook(20, "UserPromptSubmit", cwd="/private/x", prompt=SAID)
    claude.prompt_line(20, SAID)
    private_call(claude, "later")
    watch_once(read_settings(), close_open=True)
    with Store(home) as store:
        (row,) = store.turns()
        assert (row.turn_key, row.told) == (TURN, True)
        assert store.link_counts() == {}
    assert SAID.encode() not in (home / "store.sqlite3").read_bytes()


def test_a_link_leads_to_no_other_folder(home, tmp_path, monkeypatch):
    """A private folder stays private by whichever of its names the agent calls it."""
    secret, link = tmp_path / "secret", tmp_path / "link"
    secret.mkdir()
    link.symlink_to(secret)
    for number, (untraced, cwd) in enumerate(
        [
            (secret, link / "deep"),
            (link, secret),
            (secret, f"{tmp_path}/other/../secret"),
            ("/x", "/x\0"),
        ]
    ):
        monkeypatch.setenv("TRACEBRIDGE_UNTRACED", str(untraced))
        private = Claude(home, tmp_path, session=f"private-{number}", turn="t")
        private.hook(0, "UserPromptSubmit", cwd=str(cwd), prompt=SAID)
        watch_once(read_settings(), close_open=True)
    with Store(home) as store:
        # A name that no folder has is below none.
        assert [row.session_id for row in store.turns()] == ["private-3"]

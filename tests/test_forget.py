# ruff: noqa: ARG001 - fixtures are asked for by name
"""`forget`: the bytes go from this machine, and what cannot be deleted is said."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from claude_files import Claude, at

from tracebridge.forget import forget_before, forget_session, report_lines
from tracebridge.ids import trace_id
from tracebridge.model import CallIdentity, GatewayCall
from tracebridge.settings import read_settings
from tracebridge.spool import Spool
from tracebridge.store import Store
from tracebridge.testing.receiver import Answer, Receiver
from tracebridge.watch import watch_once
from tracebridge.watcher import Watcher

ZEBRA, HERON = "zebra-in-the-fridge", "heron-on-the-roof"


@pytest.fixture
def receiver(monkeypatch):
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


@pytest.fixture
def two(home, tmp_path):
    """Return two sessions, an older and a younger one."""
    zebra = Claude(home, tmp_path, session="zebra-session", turn="zebra-turn")
    zebra.simple_turn(0, ZEBRA)
    heron = Claude(home, tmp_path, session="heron-session", turn="heron-turn")
    heron.simple_turn(1000, HERON)
    return zebra, heron


def places_of(home: Path, text: str) -> list[str]:
    """Return the files below *home* that hold *text*."""
    files = [path for path in home.rglob("*") if path.is_file()]
    return sorted(path.name for path in files if text.encode() in path.read_bytes())


@pytest.mark.parametrize("delivered", [True, False])
def test_a_forgotten_session_leaves_no_byte(home, receiver, two, delivered):
    """Neither in the store nor in its log, the outbox or the spool; the other session stays."""
    zebra, _ = two
    if not delivered:
        receiver.rule = lambda _: Answer(status=503)
    assert watch_once(read_settings()) is delivered
    zebra.hook(5, "UserPromptSubmit", prompt=ZEBRA)
    (home / "spool" / "bad" / "1.event").write_bytes(b"torn zebra-session " + ZEBRA.encode())
    assert len(places_of(home, ZEBRA)) >= 3
    report = forget_session(home, "zebra-session")
    assert places_of(home, ZEBRA) == []
    assert places_of(home, HERON) != []
    assert report.spool_files == 2
    assert (report.stored.spans, report.stored.waiting) == (2, 0 if delivered else 2)
    with Store(home) as store:
        assert [row.session_id for row in store.turns()] == ["heron-session"]


def test_calls_of_others_in_the_same_file_stay(home, two):
    """A gateway writes calls together that ended at about the same time, whoever made them."""
    calls = [
        GatewayCall(
            call_id=name,
            gateway="tracebridge",
            method="POST",
            path="/v1/messages",
            start_ns=at(1),
            end_ns=at(2),
            identity=CallIdentity(agent="claude-code", session_id=f"{name}-session"),
        )
        for name in ("zebra", "heron")
    ]
    spool = Spool(home)
    for _ in range(2):
        spool.write_calls(calls)
    forget_session(home, "zebra-session")
    left = [file.content for file in spool.read() if isinstance(file.content, GatewayCall)]
    assert left == [calls[1]] * 2


def test_what_cannot_be_deleted_is_said(home, receiver, two):
    """Which sinks took spans, of which traces, and where the agent keeps its transcript."""
    zebra, _ = two
    assert watch_once(read_settings())
    text = "\n".join(report_lines(forget_session(home, "zebra-session")))
    assert "otlp" in text
    assert trace_id("claude-code", "zebra-session", "zebra-turn") in text
    assert str(zebra.transcript) in text
    assert zebra.transcript.exists()


def test_what_was_never_sent_is_not_said_to_be_elsewhere(home, two):
    """Without a sink, nobody else has it."""
    assert watch_once(read_settings())
    assert forget_session(home, "zebra-session").stored.sinks == ()


def test_all_before_a_date_goes(home, receiver, two):
    """Turns and events that are older; what is younger stays."""
    zebra, heron = two
    assert watch_once(read_settings())
    zebra.hook(6, "UserPromptSubmit", prompt=ZEBRA)
    heron.hook(1006, "UserPromptSubmit", prompt=HERON)
    report = forget_before(home, at(500))
    assert (len(report.stored.trace_ids), report.spool_files) == (1, 1)
    assert places_of(home, ZEBRA) == []
    assert len(places_of(home, HERON)) >= 2


def test_a_watcher_that_lives_does_not_tell_it_again(home, receiver, two):
    """It may still have the session in mind; what it knows is not written down any more."""
    watcher = Watcher(read_settings())
    watcher.step()
    forget_session(home, "zebra-session")
    watcher.step(settle_now=True)
    watcher.close()
    assert watch_once(read_settings())
    assert {span.attributes["session.id"] for span in receiver.spans} == {"heron-session"}
    assert places_of(home, ZEBRA) == []


def test_a_session_that_goes_on_is_recorded_from_then_on(home, receiver, two):
    """The transcript is not read from its beginning again."""
    zebra, _ = two
    assert watch_once(read_settings())
    forget_session(home, "zebra-session")
    zebra.turn = "next-turn"
    zebra.simple_turn(50, "what comes after")
    assert watch_once(read_settings())
    assert places_of(home, "what comes after") != []
    assert places_of(home, ZEBRA) == []


def test_nobody_of_that_name(home):
    """Nothing is deleted, and that is what is said."""
    report = forget_session(home, "nobody")
    assert report_lines(report) == [
        "forgotten here: 0 turns with 0 spans (0 were waiting to be sent), 0 spool files"
    ]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracebridge", "forget", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command(home, two):
    """It takes a session or a date, and not both or neither."""
    assert watch_once(read_settings())
    assert run().returncode == 2
    assert run("x", "--before", "2020-01-01").returncode == 2
    assert run("zebra-session", "--json").returncode == 0
    done = run("--before", time.strftime("%Y-%m-%d", time.gmtime(at(0) / 1e9 + 2 * 86_400)))
    assert done.stdout.startswith("forgotten here: 1 turns")
    assert orjson.loads(run("nobody", "--json").stdout)["spool_files"] == 0

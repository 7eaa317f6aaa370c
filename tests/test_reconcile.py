"""What the gateway counted against what the transcript tells."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs
from recordings import lay_out, recordings

from tracebridge.model import (
    CallIdentity,
    Chat,
    GatewayCall,
    ModelCall,
    Turn,
    TurnState,
    Usage,
)
from tracebridge.reconcile import compare
from tracebridge.spool import Spool
from tracebridge.store import Store

USAGE = Usage(input_tokens=1200, output_tokens=300, cache_read_tokens=1000, cache_write_tokens=50)
TOLD = ModelCall(
    key="msg_1", response_id="msg_1", model="claude-haiku-4-5", provider="anthropic", usage=USAGE
)
SEEN = GatewayCall(
    call_id="1",
    gateway="tracebridge",
    method="POST",
    path="/v1/messages",
    start_ns=1_700_000_000_000_000_000,
    end_ns=1_700_000_001_000_000_000,
    model="claude-haiku-4-5",
    provider="anthropic",
    response_id="msg_1",
    usage=USAGE,
)
SIDE = CallIdentity(agent="claude-code", session_id="s", request_class="auxiliary")


def turn(*chats):
    return Turn(
        agent="claude-code",
        session_id="s",
        turn_key="t",
        trace_id="0" * 32,
        state=TurnState.FINISHED,
        start_ns=1_700_000_000_000_000_000,
        chats=chats,
    )


def test_where_both_say_the_same_nothing_differs():
    """Each side has its own sum, with the cost by the price list."""
    compared = compare(turn(Chat(key="msg_1", told=TOLD, seen=SEEN)))
    assert compared.differences == ()
    assert compared.gateway == compared.transcript
    assert compared.gateway.input_tokens == 1200
    assert compared.gateway.cost_usd > 0


@pytest.mark.parametrize(
    ("chat", "reason", "explained"),
    [
        (
            Chat(key="1", told=TOLD, seen=replace(SEEN, usage=replace(USAGE, output_tokens=299))),
            "count output tokens differently",
            False,
        ),
        (
            Chat(
                key="1",
                told=TOLD,
                seen=replace(SEEN, usage=replace(USAGE, output_tokens=9), error_type="stream_cut"),
            ),
            "break off: stream_cut",
            True,
        ),
        (
            Chat(
                key="1",
                told=TOLD,
                seen=replace(SEEN, usage=replace(USAGE, output_tokens=9), partial=True),
            ),
            "kept only a part",
            True,
        ),
        (Chat(key="1", told=TOLD, seen=replace(SEEN, usage=None)), "saw no tokens", False),
        (
            Chat(key="1", told=TOLD, seen=replace(SEEN, usage=None, error_type="client_abort")),
            "break off",
            True,
        ),
        (
            Chat(key="1", told=structs.replace(TOLD, usage=None), seen=SEEN),
            "tells no tokens",
            False,
        ),
        (
            Chat(
                key="1",
                told=structs.replace(TOLD, usage=None, error_type="interrupted"),
                seen=replace(SEEN, error_type="client_abort"),
            ),
            "counts nothing of an answer that broke off",
            True,
        ),
        (Chat(key="1", seen=SEEN), "the transcript tells no such call", False),
        (Chat(key="1", seen=replace(SEEN, identity=SIDE)), "a side call", True),
        (Chat(key="1", seen=replace(SEEN, error_type="429", usage=None)), "kept no record", True),
        (Chat(key="1", told=structs.replace(TOLD, error_type="529")), "no gateway was told", True),
        (Chat(key="1", told=TOLD), "the gateway saw no such call", False),
    ],
)
def test_each_difference_has_its_reason(chat, reason, explained):
    """And says whether it is as it must be; another call of the turn went through the gateway."""
    agreed = Chat(key="msg_1", told=TOLD, seen=SEEN)
    compared = compare(turn(agreed, chat))
    (difference,) = compared.differences
    assert reason in difference.reason
    assert difference.explained is explained
    assert compared.unexplained == (not explained)


@pytest.mark.parametrize(
    "usage",
    [
        Usage(input_tokens=1200, output_tokens=300),
        replace(USAGE, reasoning_tokens=7),
        Usage(input_tokens=1200, output_tokens=300, cache_read_tokens=1000, cache_write_tokens=50),
    ],
)
def test_what_one_side_does_not_tell_is_no_contradiction(usage):
    """Agents leave out cache or reasoning; a call that counts nothing is none at all."""
    listed = replace(SEEN, call_id="2", response_id=None, usage=None, path="/v1/models")
    chats = (
        Chat(key="msg_1", told=TOLD, seen=replace(SEEN, usage=usage)),
        Chat(key="2", seen=listed),
    )
    assert compare(turn(*chats)).differences == ()


def test_a_turn_without_a_gateway_is_explained():
    """There was nothing to compare with."""
    compared = compare(turn(Chat(key="1", told=TOLD), Chat(key="2", told=TOLD)))
    assert {difference.explained for difference in compared.differences} == {True}
    assert (compared.gateway.calls, compared.transcript.calls) == (0, 2)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tracebridge", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def taken_in(home):
    """Take in a recorded turn of five calls; give its row and its chat spans."""
    (recording,) = [r for r in recordings() if (r.parent.name, r.name) == ("claude-code", "tools")]
    lay_out(recording, Path.home())
    assert run("import").returncode == 0
    with Store(home) as store:
        (row,) = store.turns()
        spans = [s for s in store.spans(row.trace_id) if s.name.startswith("chat ")]
    return home, row, spans


def see(home, row, spans, **changed):
    spool = Spool(home)
    spool.create()
    for number, span in enumerate(spans):
        given = span.attributes
        usage = Usage(
            input_tokens=given["gen_ai.usage.input_tokens"],
            output_tokens=given["gen_ai.usage.output_tokens"],
            cache_read_tokens=given["gen_ai.usage.cache_read.input_tokens"],
            cache_write_tokens=given["gen_ai.usage.cache_write.input_tokens"],
            reasoning_tokens=given["gen_ai.usage.reasoning.output_tokens"],
        )
        if number == 0:
            usage = replace(usage, **changed)
        call = replace(
            SEEN,
            call_id=str(number),
            start_ns=span.start_ns,
            end_ns=span.end_ns,
            model=given["gen_ai.request.model"],
            response_id=given["gen_ai.response.id"],
            identity=CallIdentity(agent=row.agent, session_id=row.session_id),
            usage=usage,
        )
        spool.write_call(call)
    assert run("watch", "--once", "--close-open").returncode == 0


def test_agreement_is_exit_code_zero(taken_in):
    """Gateway and transcript of a whole turn come to the same tokens and dollars."""
    home, row, spans = taken_in
    see(home, row, spans)
    done = run("reconcile", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 turns, 0 differ, 0 unexplained" in done.stdout
    (told,) = [json.loads(line) for line in run("reconcile", "--json").stdout.splitlines()]
    assert told["trace_id"] == row.trace_id
    assert told["gateway"] == told["transcript"]
    assert told["gateway"]["calls"] == 5
    assert told["gateway"]["cost_usd"] > 0


def test_an_unexplained_difference_is_exit_code_three(taken_in):
    """The call is named, with what it is about."""
    home, row, spans = taken_in
    see(home, row, spans, output_tokens=1)
    done = run("reconcile")
    assert done.returncode == 3
    assert "count output tokens differently" in done.stdout
    assert spans[0].attributes["gen_ai.response.id"] in done.stdout
    (told,) = [json.loads(line) for line in run("reconcile", "--json").stdout.splitlines()]
    assert told["unexplained"] == 1
    assert (
        told["differences"][0]["output_tokens"]
        == 1 - spans[0].attributes["gen_ai.usage.output_tokens"]
    )


@pytest.mark.usefixtures("taken_in")
def test_without_a_gateway_there_is_nothing_to_find():
    """Exit code 0, and the reason for each call."""
    done = run("reconcile")
    assert done.returncode == 0
    assert done.stdout.count("no gateway of ours was in the path") == 5
    nothing = run("reconcile", "--session", "nobody")
    assert (nothing.returncode, "0 turns" in nothing.stdout) == (0, True)


def test_calls_of_no_turn_are_counted(taken_in):
    """They are in no sum, so they must be said."""
    home, _, _ = taken_in
    Spool(home).create()
    Spool(home).write_call(replace(SEEN, call_id="stranger", response_id="msg_of_nobody"))
    assert run("watch", "--once", "--close-open").returncode == 0
    assert "1 calls that no turn claims" in run("reconcile").stdout

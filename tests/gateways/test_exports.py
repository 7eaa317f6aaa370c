"""Recorded turns of real agents through real gateways: the agent's records and the gateway's, one."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from pathlib import Path

import pytest
import requests
from exports import FOLDER, documents, message, transcript, truth

from tracebridge import semconv
from tracebridge.agents import agent
from tracebridge.model import SpanExport
from tracebridge.response_ids import is_hidden, provider_id
from tracebridge.run import started_gateway
from tracebridge.settings import read_settings
from tracebridge.spool import Spool
from tracebridge.testing.receiver import ReceivedSpan, Receiver
from tracebridge.views.status import status
from tracebridge.watch import watch_once
from tracebridge.watcher import Watcher

ERROR = 2
JSON = {"content-type": "application/json"}
RECORDINGS = sorted(path.name for path in FOLDER.iterdir())
# By what each recording's calls are known.
EVIDENCE = {
    "envoy-codex": {"turn_id"},
    "envoy-codex-without-ids": {"turn_id"},
    "litellm-codex-v1": {"turn_id"},
    "litellm-codex-v2-opaque": {"session_window"},
    "respan-gateway-claude": {"tool_call_id"},
}


class Player:
    """A user whose agent went through somebody else's gateway."""

    def __init__(self, name: str, home: Path, folder: Path) -> None:
        self.slug = "codex-cli" if "codex" in name else "claude-code"
        self.name = name
        self.transcript = folder / "sessions" / transcript(name).name
        self.transcript.parent.mkdir()
        shutil.copy(transcript(name), self.transcript)
        self._spool = Spool(home)
        self._spool.create()

    def tell(self) -> None:
        """Let the agent's own records be read."""
        watcher = Watcher(read_settings())
        watcher.import_transcript(agent(self.slug), self.transcript)
        watcher.close()

    def export(self, numbers: list[int]) -> None:
        for number in numbers:
            request = message(documents(self.name)[number]).SerializeToString()
            self._spool.take(SpanExport(time_ns=time.time_ns(), request=request))

    @property
    def batches(self) -> list[int]:
        return list(range(len(documents(self.name))))


@pytest.fixture
def receiver(monkeypatch):
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


@pytest.fixture(params=RECORDINGS)
def player(request, home, tmp_path) -> Player:
    return Player(request.param, home, tmp_path)


def deliver() -> None:
    assert watch_once(read_settings(), close_open=True)


def kind(span: ReceivedSpan) -> str | None:
    return span.attributes.get(semconv.SPAN_TYPE)


def judge(name: str, spans: list[ReceivedSpan]) -> None:
    """One trace; a chat for each answer with the model's own counts; the gateway's spans below."""
    assert len({span.span_id for span in spans}) == len(spans)
    (root,) = (span for span in spans if kind(span) == "turn")
    chats = [span for span in spans if kind(span) == "llm"]
    told = truth(name)
    assert sorted(map(counts, chats)) == sorted(true_counts(each["usage"]) for each in told)
    for span in spans:
        if kind(span) != "llm":
            assert semconv.OUTPUT_TOKENS not in span.attributes, span
    ids = {provider_id(chat.attributes[semconv.RESPONSE_ID]) for chat in chats}
    assert {each for each in ids if not is_hidden(each)} <= {each["message_id"] for each in told}
    theirs = [span for span in spans if kind(span) == "gateway"]
    assert {span.trace_id for span in (*chats, *theirs)} == {root.trace_id}
    parents = {span.span_id: span.parent_span_id for span in theirs}
    for span in theirs:
        parent = span.parent_span_id
        while parent in parents:
            parent = parents[parent]
        assert parent in {chat.span_id for chat in chats}
    outside = [span for span in spans if span.trace_id != root.trace_id]
    assert all(kind(span) is None for span in outside)
    # Which is nothing but a look at whether the gateway lives.
    assert len(outside) in (0, 4)


def counts(chat: ReceivedSpan) -> tuple[int, int]:
    return chat.attributes[semconv.INPUT_TOKENS], chat.attributes[semconv.OUTPUT_TOKENS]


def true_counts(usage: dict[str, int]) -> tuple[int, int]:
    read, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    return usage["input_tokens"] + read + written, usage["output_tokens"]


def test_the_gateways_records_first(player, receiver):
    """What the gateway exported is there before the agent's records are read."""
    player.export(player.batches)
    watch_once(read_settings())
    player.tell()
    deliver()
    judge(player.name, receiver.spans)
    links = status(read_settings())["links"]
    assert links["orphans"] == 0
    by_evidence = {how for how, number in links["by_evidence"].items() if number}
    assert by_evidence <= EVIDENCE.get(player.name, {"response_id"}) | {"session_window"}
    assert by_evidence & EVIDENCE.get(player.name, {"response_id"})


def test_the_gateways_records_after_all_was_told(player, receiver):
    """The turn was told from the agent's records alone; each batch that follows only adds."""
    player.tell()
    deliver()
    told = list(receiver.spans)
    for batch in player.batches:
        player.export([batch])
        deliver()
    assert receiver.spans[: len(told)] == told
    # A failed attempt whose success comes in a later batch is told by itself.
    chats = [s.span_id for s in receiver.spans if kind(s) == "llm" and s.status != ERROR]
    assert len(chats) == len(set(chats)) == len(truth(player.name))
    deliver()
    deliver()
    judge_usage(player.name, receiver.spans)


def judge_usage(name: str, spans: list[ReceivedSpan]) -> None:
    """Whatever came when: what the model answered is counted once in all."""
    true = sum(each["usage"]["output_tokens"] for each in truth(name))
    assert sum(span.attributes.get(semconv.OUTPUT_TOKENS, 0) for span in spans) == true
    (root,) = (span for span in spans if kind(span) == "turn")
    assert root.attributes[semconv.TURN_OUTPUT_TOKENS] == true
    assert root.attributes[semconv.TURN_COST] == pytest.approx(
        sum(span.attributes.get(semconv.OI_COST_TOTAL, 0) for span in spans)
    )
    for span in spans:
        # By other names than ours, too.
        counted = [
            name for name in span.attributes if re.match(r"(gen_ai|llm|litellm)\..*cost", name)
        ]
        assert kind(span) in {"llm", None} or not counted


@pytest.mark.parametrize("seed", range(3))
def test_in_any_order_and_doubled(player, receiver, seed):
    """Batches that overtake each other, and some of them twice, make the same turn."""
    order = [*player.batches, *player.batches]
    random.Random(seed).shuffle(order)
    player.export(order[:2])
    watch_once(read_settings())
    player.tell()
    player.export(order[2:])
    deliver()
    deliver()
    judge_usage(player.name, receiver.spans)
    (root,) = (span for span in receiver.spans if kind(span) == "turn")
    theirs = [span for span in receiver.spans if kind(span) == "gateway"]
    assert theirs
    assert {span.trace_id for span in theirs} == {root.trace_id}


def test_a_gateway_that_nothing_goes_through_takes_exports(home, tmp_path, receiver):
    """`tracebridge gateway`, its spool and the watcher as processes: an export becomes the call."""
    player = Player("litellm-claude-v2", home, tmp_path)
    player.tell()
    env = {**os.environ, "TRACEBRIDGE_HOME": str(home)}
    with started_gateway(["http://127.0.0.1:9"], env) as url:
        assert url is not None
        for document in documents(player.name):
            answer = requests.post(f"{url}/v1/traces", json=document, timeout=60)
            assert (answer.status_code, answer.json()) == (200, {})
        refused = requests.post(f"{url}/v1/traces", data=b"{", timeout=60, headers=JSON)
        assert refused.status_code == 400
    deliver()
    judge(player.name, receiver.spans)
    assert status(read_settings())["links"]["by_gateway"]["litellm"]["response_id"] == 2

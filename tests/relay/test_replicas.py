"""Relays as processes behind a load balancer: what is killed or goes away costs no span."""

from __future__ import annotations

import random
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Self

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.relay.conftest import (
    PATIENCE_S,
    PROTOBUF,
    GatewayCall,
    RelayProcess,
    keys,
    post,
    status,
    turn,
    watchers_request,
)
from tracebridge.ids import span_id
from tracebridge.testing.receiver import Answer, Receiver

TURNS, CALLS = 30, 4


class RoundRobin:
    """Give each connection to the next of some addresses, past those that refuse it."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._ports = [int(url.rpartition(":")[2]) for url in urls]
        self._next = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, name="round-robin")
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        with self._lock:
            for each in self._open:
                _end(each)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), name="round-robin")
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            for _ in self._ports:
                port = self._ports[self._next % len(self._ports)]
                self._next += 1
                try:
                    server = socket.create_connection(("127.0.0.1", port))
                except OSError:
                    continue
                with server:
                    self._pass(client, server)
                return

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        with self._lock:
            self._open |= {client, server}
        back = threading.Thread(target=_copy, args=(server, client), name="round-robin")
        back.start()
        _copy(client, server)
        back.join()
        with self._lock:
            self._open -= {client, server}


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        # One of them was killed, which is what the tests are about.
        pass
    _end(source)
    _end(target)


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def send(url: str, batches: Sequence[bytes]) -> None:
    """Send each batch until it is acknowledged, as a collector's queue does."""
    deadline = time.monotonic() + 2 * PATIENCE_S
    for batch in batches:
        while True:
            assert time.monotonic() < deadline, "never acknowledged"
            try:
                # A connection of its own, so that the next replica gets the next one.
                answer = requests.post(
                    f"{url}/v1/traces", data=batch, headers=PROTOBUF, timeout=PATIENCE_S
                )
            except requests.RequestException:
                time.sleep(0.02)
                continue
            if answer.status_code == 200:
                break
            assert answer.status_code == 503, answer.content
            time.sleep(0.02)


def send_all(url: str, queues: Sequence[Sequence[bytes]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=send, args=(url, queue), name="sender") for queue in queues]
    for thread in threads:
        thread.start()
    return threads


def fleet(seed: int) -> tuple[list[list[bytes]], dict[str, tuple[str, str]]]:
    """Return the queues of a gateway and of watchers, and where each gateway's span belongs."""
    chance = random.Random(seed)
    watchers, gateway = [], []
    expected: dict[str, tuple[str, str]] = {}
    number = 0
    for each in range(1, TURNS + 1):
        trace = turn(each)
        responses = [f"msg_{each}_{call}" for call in range(CALLS)]
        watchers.append(watchers_request(trace, *responses))
        for response in responses:
            number += 1
            has_keys = chance.random() < 0.5
            call = GatewayCall(response, number=number, attributes=keys(each) if has_keys else {})
            gateway += [call.request(index) for index in (1, 2, 0)]
            server, noise, chat = call.span_ids
            expected[server] = trace, span_id(trace, "llm", response)
            expected[noise], expected[chat] = (trace, server), (trace, noise)
    # Batches of several spans, in which traces begin and end somewhere.
    chance.shuffle(gateway)
    batches = [b"".join(gateway[start : start + 7]) for start in range(0, len(gateway), 7)]
    return [batches[::2], batches[1::2], watchers], expected


def check(
    receiver: Receiver, expected: dict[str, tuple[str, str]], beside: Collection[str] = ()
) -> None:
    """Every span is there, at its place; what came twice came with the same bytes."""
    versions: dict[str, set[bytes]] = defaultdict(set)
    spans = [span for span in receiver.spans if span.span_id not in beside]
    for span in spans:
        versions[span.span_id].add(span.message.SerializeToString(deterministic=True))
    placed = {span.span_id: (span.trace_id, span.parent_span_id) for span in spans}
    of_gateway = {each: place for each, place in placed.items() if each in expected}
    assert of_gateway == expected
    assert len(placed) == len(expected) + TURNS * (CALLS + 1)
    differing = [each for each, seen in versions.items() if len(seen) > 1]
    assert not differing
    # Each physical call is counted by one span.
    counted = [span for span in spans if "gen_ai.usage.input_tokens" in span.attributes]
    assert len({span.span_id for span in counted}) == TURNS * CALLS


@pytest.fixture
def start_process(tmp_path, receiver):
    started = []

    def start(*arguments: str, name: str = "", **options) -> RelayProcess:
        home = tmp_path / (name or f"home-{len(started)}")
        started.append(RelayProcess("--to", receiver.endpoint, *arguments, home=home, **options))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def pair(start_process, redis) -> Iterator[tuple[RelayProcess, RelayProcess, str]]:
    one, other = (start_process("--redis", redis.url) for _ in range(2))
    with RoundRobin([one.url, other.url]) as balancer:
        yield one, other, balancer.url


def all_of(expected: dict[str, tuple[str, str]]) -> Callable[[Receiver], bool]:
    total = len(expected) + TURNS * (CALLS + 1)
    return lambda receiver: len({span.span_id for span in receiver.spans}) >= total


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_replica_costs_nothing(seed, pair, receiver):
    """Killed in the middle of it, with requests under way and spans held: all arrive, once."""
    one, _, url = pair
    queues, expected = fleet(seed)
    senders = send_all(url, queues)
    receiver.wait_for(lambda it: len(it.spans) > len(expected) // 4)
    one.process.send_signal(signal.SIGKILL)
    for sender in senders:
        sender.join()
    receiver.wait_for(all_of(expected), 2 * PATIENCE_S)
    check(receiver, expected)


def test_redis_may_go_away_and_come_back(pair, redis, receiver):
    """What needs no index goes on; what needs it is not acknowledged until it is back."""
    one, _, url = pair
    queues, expected = fleet(3)
    senders = send_all(url, queues)
    receiver.wait_for(lambda it: len(it.spans) > len(expected) // 4)
    redis.kill()
    keyed = GatewayCall("msg_9", number=900, attributes=keys(9))
    assert post(one.url, keyed.request()).status_code == 200
    assert post(one.url, watchers_request(turn(900), "msg_900")).status_code == 200
    refused = post(one.url, GatewayCall("msg_901", number=901).request())
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    redis.start()
    for sender in senders:
        sender.join()
    extra = {*keyed.span_ids, span_id(turn(900), "llm", "msg_900"), span_id(turn(900), "turn", "")}
    receiver.wait_for(
        lambda it: (
            len({s.span_id for s in it.spans} - extra) >= len(expected) + TURNS * (CALLS + 1)
        ),
        2 * PATIENCE_S,
    )
    check(receiver, expected, beside=extra)
    # What a watcher told in the meantime is known since.
    late = GatewayCall("msg_900", number=902)
    assert post(one.url, late.request()).status_code == 200
    receiver.wait_for(lambda it: late.span_ids[0] in {span.span_id for span in it.spans})
    (server,) = (span for span in receiver.spans if span.span_id == late.span_ids[0])
    assert server.parent_span_id == span_id(turn(900), "llm", "msg_900")


def test_a_replica_that_is_told_to_stop_answers_what_it_has_begun(start_process, receiver):
    """SIGTERM: the request under way is acknowledged, and the exit code is 0."""
    hold = threading.Event()
    receiver.answer_next(Answer(hold=hold))
    relay = start_process()
    answers = []
    sender = threading.Thread(
        target=lambda: answers.append(post(relay.url, watchers_request(turn(), "msg_1")))
    )
    sender.start()
    receiver.wait_for(lambda it: len(it.requests) == 1)
    relay.process.terminate()
    hold.set()
    sender.join()
    # A second signal would find a process that is past hearing any.
    relay.process.communicate(timeout=PATIENCE_S)
    assert relay.process.returncode == 0
    assert answers[0].status_code == 200


def test_what_waits_survives_the_death_of_a_relay_that_is_alone(start_process, receiver):
    """It lies in its home, and goes out once somebody is there who knows where it belongs."""
    call = GatewayCall("msg_1")
    relay = start_process(name="alone")
    assert post(relay.url, call.request()).status_code == 200
    relay.end()
    again = start_process(name="alone")
    assert status(again.url)["waiting_traces"] == 1
    assert post(again.url, watchers_request(turn(), "msg_1")).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 5)
    assert {span.trace_id for span in receiver.spans} == {turn()}


def test_a_dead_replicas_claim_passes_to_another(start_process, redis, receiver):
    """Killed while it sends what was held: another one sends it some seconds later."""
    hold = threading.Event()
    one = start_process("--redis", redis.url, "--wait-minutes", "0.005")
    receiver.answer_next(Answer(status=503, hold=hold))
    assert post(one.url, GatewayCall("msg_1").request()).status_code == 200
    receiver.wait_for(lambda it: len(it.requests) == 1)
    one.end()
    hold.set()
    start_process("--redis", redis.url)
    receiver.wait_for(lambda it: len({s.span_id for s in it.spans}) == 3, 2 * PATIENCE_S)


def test_spans_that_were_held_are_in_redis_when_they_are_acknowledged(
    start_process, redis, receiver
):
    """Redis killed at that moment loses none, as far as it writes before it answers."""
    relay = start_process("--redis", redis.url)
    assert post(relay.url, GatewayCall("msg_1").request()).status_code == 200
    redis.kill()
    redis.start()
    assert post(relay.url, watchers_request(turn(), "msg_1")).status_code == 200
    receiver.wait_for(lambda it: len(it.spans) == 5)


def test_the_requests_of_the_test_are_what_they_seem():
    """The fleet's batches are export requests in which traces begin and end somewhere."""
    queues, expected = fleet(1)
    spans = {
        span.span_id.hex()
        for batch in queues[0] + queues[1]
        for group in ExportTraceServiceRequest.FromString(batch).resource_spans
        for span in group.scope_spans[0].spans
    }
    assert spans == expected.keys()

"""A limit on what a client key may spend on a day: counted after the answer, known after a restart."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gateways.conftest import LIMIT_SECONDS, Peer, RunningGateway
from tracebridge import prices
from tracebridge.gateways.client_keys import FILE, add_key
from tracebridge.gateways.spending import FOLDER, Spending
from tracebridge.model import GatewayCall, Usage

MODEL = "claude-opus-4-5"
USAGE = Usage(input_tokens=1000, output_tokens=1000)
DAY = 86_400
NOON = 20_000 * DAY + DAY / 2


def call_of(name: str, model: str = MODEL) -> GatewayCall:
    return GatewayCall(
        call_id="c",
        gateway="tracebridge",
        method="POST",
        path="/v1/messages",
        start_ns=0,
        end_ns=int(time.time() * 1e9),
        provider="anthropic",
        model=model,
        usage=USAGE,
        client_name=name,
    )


def price() -> float:
    cost = prices.cost_of(USAGE, MODEL, "anthropic", int(time.time() * 1e9))
    assert cost is not None
    return cost.total


def ask(client: Peer, key: str) -> None:
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n")
    client.send(f"x-api-key: {key}\r\nContent-Length: 2\r\n\r\n{{}}".encode())


def answer(peer: Peer, model: str = MODEL) -> bytes:
    usage = {"input_tokens": 1000, "output_tokens": 1000}
    body = json.dumps({"id": "msg_1", "type": "message", "model": model, "usage": usage}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    peer.send(head % len(body), body)
    return body


def spend(gateway: RunningGateway, upstream, key: str, model: str = MODEL) -> None:
    """Make one call, answer and all."""
    client = gateway.connect()
    ask(client, key)
    peer = upstream.accept()
    peer.read_until(b"\r\n\r\n{}")
    client.read_until(answer(peer, model))
    client.close()


@pytest.fixture
def keys(home) -> Path:
    return home / FILE


def wait_until_spent(home: Path, name: str, usd: float) -> None:
    limit = time.monotonic() + LIMIT_SECONDS
    spending = Spending(home)
    while spending.usd_today(name) < usd * 0.999:
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_who_has_spent_it_all_is_told_to_come_tomorrow(start_gateway, upstream, keys, tmp_path):
    """With 429 as a vendor would say it, and the seconds until then; others go on."""
    key = add_key(keys, "alice", price() * 1.5)
    other = add_key(keys, "bob", None)
    gateway = start_gateway(upstream.url, client_keys=keys)
    for _ in range(2):
        spend(gateway, upstream, key)
    wait_until_spent(tmp_path, "alice", 2 * price())
    client = gateway.connect()
    ask(client, key)
    head = client.read_head().decode()
    assert head.startswith("HTTP/1.1 429 Too Many Requests\r\n")
    fields = dict(line.split(": ", 1) for line in head.splitlines()[1:] if line)
    assert 0 < int(fields["retry-after"]) <= DAY
    assert fields["x-should-retry"] == "false"
    error = json.loads(client.read_to_end())["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", 429)
    assert error["status"] == "RESOURCE_EXHAUSTED"
    assert "alice may spend" in error["message"]
    assert upstream.has_nobody_waiting()
    spend(gateway, upstream, other)
    calls = gateway.wait_for_calls(4)
    assert [call.status_code for call in calls] == [200, 200, 429, 200]
    assert (calls[2].error_type, calls[2].client_name) == ("spend_limit", "alice")


def test_what_is_under_way_comes_to_its_end(start_gateway, upstream, keys, tmp_path):
    """A call is counted when its answer is over, so several at once can pass the limit together."""
    key = add_key(keys, "alice", price() * 0.5)
    gateway = start_gateway(upstream.url, client_keys=keys)
    clients = [gateway.connect() for _ in range(3)]
    peers = []
    for client in clients:
        ask(client, key)
        peers.append(upstream.accept())
        peers[-1].read_until(b"\r\n\r\n{}")
    for client, peer in zip(clients, peers, strict=True):
        client.read_until(answer(peer))
    wait_until_spent(tmp_path, "alice", 3 * price())


def test_a_limit_survives_a_restart_and_binds_every_gateway(
    start_gateway, upstream, keys, tmp_path
):
    """What was spent lies in the home, where all gateways of it look."""
    key = add_key(keys, "alice", price() * 0.5)
    first, second = (start_gateway(upstream.url, client_keys=keys) for _ in range(2))
    spend(first, upstream, key)
    wait_until_spent(tmp_path, "alice", price())
    first.stop()
    for gateway in (second, start_gateway(upstream.url, client_keys=keys)):
        client = gateway.connect()
        ask(client, key)
        assert client.read_head().startswith(b"HTTP/1.1 429 ")


def test_what_has_no_price_is_not_counted_but_told(start_gateway, upstream, keys, tmp_path):
    """A price is never guessed; the figures say how many such calls there were."""
    key = add_key(keys, "alice", 0.001)
    gateway = start_gateway(upstream.url, client_keys=keys)
    spend(gateway, upstream, key, model="a-model-that-no-list-knows")
    spend(gateway, upstream, key)
    wait_until_spent(tmp_path, "alice", price())
    client = gateway.connect()
    client.send(b"GET /tracebridge/metrics HTTP/1.1\r\nHost: localhost\r\n")
    client.send(f"x-api-key: {key}\r\n\r\n".encode())
    page = client.read_to_end().decode()
    assert 'tracebridge_gateway_unpriced_calls_total{client="alice"} 1\n' in page
    assert 'tracebridge_gateway_limit_usd_per_day{client="alice"} 0.001\n' in page
    (spent,) = (line for line in page.splitlines() if "spent_usd_today" in line and "{" in line)
    assert float(spent.split()[1]) == pytest.approx(price())


def test_a_day_begins_at_midnight_utc(home):
    """What was spent before is nothing then, and its file goes."""
    now = [NOON]
    spending = Spending(home, lambda: now[0])
    assert spending.add(call_of("alice"))
    assert spending.usd_today("alice") == pytest.approx(price())
    assert spending.seconds_left_today() == DAY / 2
    now[0] = (NOON // DAY + 1) * DAY
    assert spending.usd_today("alice") == 0
    assert spending.seconds_left_today() == DAY
    assert list((home / FOLDER).iterdir()) == []
    assert spending.add(call_of("alice"))
    assert spending.usd_today("alice") == pytest.approx(price())


def test_names_stay_apart_whatever_they_are(home):
    """Spaces and line ends in them are not those of the file."""
    names = ["alice", "alice b", "alice 1.0", "0.5", "ålice", "a%20b", "a b"]
    spending = Spending(home)
    for name in names:
        spending.add(call_of(name))
    assert [spending.usd_today(name) for name in names] == pytest.approx([price()] * len(names))


def test_garbage_in_the_file_costs_nobody_anything(home):
    """Cut and foreign lines are passed over; what is not whole yet waits."""
    spending = Spending(home, lambda: NOON)
    spending.add(call_of("alice"))
    (file,) = (home / FOLDER).iterdir()
    with file.open("ab") as stream:
        stream.write(b"\xff\xfe\x00 alice\n-5 alice\nx alice\n\n1e3")
        stream.flush()
        assert spending.usd_today("alice") == pytest.approx(price())
        stream.write(b" bob\n")
    assert spending.usd_today("bob") == 1000
    assert spending.usd_today("alice") == pytest.approx(price())


def test_many_gateways_count_together(home):
    """No line of one mixes with another's."""
    spendings = [Spending(home) for _ in range(4)]

    def work(spending: Spending) -> None:
        for _ in range(50):
            spending.add(call_of("alice"))

    threads = [threading.Thread(target=work, args=(each,)) for each in spendings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Spending(home).usd_today("alice") == pytest.approx(200 * price())


def test_a_call_without_usage_costs_nothing_and_is_no_news(home):
    """A refused one, for example."""
    spending = Spending(home)
    assert spending.add(replace(call_of("alice"), usage=None))
    assert not spending.add(call_of("alice", "a-model-that-no-list-knows"))
    assert spending.usd_today("alice") == 0

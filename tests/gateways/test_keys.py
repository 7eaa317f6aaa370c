"""Client keys: who has one is let in, it goes no further, and it can be taken away."""

from __future__ import annotations

import contextlib
import hmac
import json
import time
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.gateways.conftest import LIMIT_SECONDS, Peer, RunningGateway, ScriptedUpstream
from tracebridge.cli import main
from tracebridge.gateways import access
from tracebridge.gateways.client_keys import (
    FILE,
    PREFIX,
    ClientKeysError,
    add_key,
    digest_of,
    parse_keys,
    read_keys,
    revoke_key,
)
from tracebridge.gateways.proxy import OptionsError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REAL = "sk-the-real-one"


@pytest.fixture
def keys(home) -> Path:
    return home / FILE


@pytest.fixture
def real_key(monkeypatch) -> str:
    monkeypatch.setenv("REAL_KEY", REAL)
    return "ENV:REAL_KEY"


def request(*fields: str, target: str = "/api/anthropic/v1/messages") -> bytes:
    lines = (f"POST {target} HTTP/1.1", "Host: localhost", *fields, "Content-Length: 2", "", "{}")
    return "\r\n".join(lines).encode("latin-1")


def seen_upstream(gateway: RunningGateway, upstream: ScriptedUpstream, sent: bytes) -> bytes:
    """Return what the upstream gets of a request that the gateway lets in."""
    client = gateway.connect()
    client.send(sent)
    peer = upstream.accept()
    seen = peer.read_until(b"\r\n\r\n{}")
    peer.send(OK)
    assert client.read(len(OK)) == OK
    client.close()
    return seen


def refusal(client: Peer) -> dict:
    head = client.read_head()
    assert head.startswith(b"HTTP/1.1 401 Unauthorized\r\n"), head
    return json.loads(client.read_to_end())


def test_a_key_is_kept_as_a_digest_alone(keys):
    """Nobody can read it back; the file is its owner's alone and says since when."""
    key = add_key(keys, "alice", 20)
    assert key.startswith(PREFIX)
    assert len(key) > 40
    assert key not in keys.read_text()
    assert keys.stat().st_mode & 0o777 == 0o600
    (known,) = read_keys(keys) or ()
    assert (known.name, known.usd_per_day) == ("alice", 20)
    assert isinstance(known.created, date)


def test_a_name_has_one_key(keys):
    """A second is refused with the remedy, and so is taking away what is not there."""
    add_key(keys, "alice", None)
    before = keys.read_bytes()
    with pytest.raises(ClientKeysError, match="alice has a key"):
        add_key(keys, "alice", None)
    with pytest.raises(ClientKeysError, match="bob has no key"):
        revoke_key(keys, "bob")
    with pytest.raises(ClientKeysError, match="printable"):
        add_key(keys, "bob\r\nx: y", None)
    assert keys.read_bytes() == before


def test_what_people_write_into_the_file_stays(keys):
    """Comments and order live through our own changes."""
    add_key(keys, "alice", None)
    keys.write_text(f"# the team\n{keys.read_text()}# and the rest\n")
    add_key(keys, "bob@example.com", None)
    revoke_key(keys, "bob@example.com")
    text = keys.read_text()
    assert text.startswith("# the team\n[keys.alice]\n")
    assert "# and the rest" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys = 1", "only tables"),
        ("[keys.a]\nsha256 = 'x'", "64 digits"),
        ("[keys.a]\nsha256 = 1", "64 digits"),
        ("[keys]\na = 1", "it is a table of"),
        (f"[keys.a]\nsha256 = '{'0' * 64}'\nusd_per_day = -1", "usd_per_day"),
        (f"[keys.a]\nsha256 = '{'0' * 64}'\nusd_per_day = nan", "usd_per_day"),
        (f"[keys.a]\nsha256 = '{'0' * 64}'\nkey = 'x'", "it is a table of"),
        (f"[keys.a]\nsha256 = '{'0' * 64}'\ncreated = 'x'", "created"),
        (f"[keys.'']\nsha256 = '{'0' * 64}'", "printable"),
        ("[keys", "correct it"),
        ("a = " + "9" * 5000, "correct it"),
        ("a = " + "[" * 5000, "correct it"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(keys, text, said):
    """With what is wrong in it, by the gateway before it listens and by whoever changes it."""
    keys.parent.mkdir()
    keys.write_text(text)
    keys.chmod(0o600)
    with pytest.raises(ClientKeysError, match=said) as caught:
        read_keys(keys)
    assert str(keys) in str(caught.value)
    with pytest.raises(ClientKeysError):
        add_key(keys, "bob", None)
    assert keys.read_text() == text


@given(st.binary(max_size=300) | st.text(alphabet='[]keys.a="0\n', max_size=100).map(str.encode))
def test_any_bytes_are_keys_or_a_clear_error(data):
    """A file's content can do no more."""
    with contextlib.suppress(ClientKeysError):
        parse_keys(data, Path("f"))


def test_a_file_that_others_can_write_to_is_refused(keys):
    """Whoever can write to it could make a key of its own."""
    add_key(keys, "alice", None)
    keys.chmod(0o620)
    with pytest.raises(ClientKeysError, match="chmod 600"):
        read_keys(keys)


PLACES = {
    "x-api-key": ("X-Api-Key: {}", ""),
    "bearer": ("Authorization: Bearer {}", ""),
    "bearer in its own way": ("AUTHORIZATION:\tbearer   {}  ", ""),
    "x-goog-api-key": ("x-goog-api-key:{}", ""),
    "api-key": ("api-key: {}", ""),
    "query": ("X-Nothing: 1", "?alt=sse&key={}&x=%2F"),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_upstreams_key_takes_the_place_of_the_clients(
    start_gateway, upstream, keys, real_key, place
):
    """Wherever an agent puts it; all else, its own X-Forwarded-For too, goes as it came."""
    key = add_key(keys, "alice", None)
    gateway = start_gateway(
        upstream.url, client_keys=keys, upstream_keys=(real_key,), send_traceparent=False
    )
    field, query = PLACES[place]
    target = "/api/anthropic/v1/messages" + query
    others = ("x-first: 1", "X-Forwarded-For: 10.0.0.1", "X-DUP: a", "x-dup: b")
    sent = request(*others[:2], field.format(key), *others[2:], target=target.format(key))
    seen = seen_upstream(gateway, upstream, sent)
    host = f"127.0.0.1:{upstream.port}".encode()
    assert seen == sent.replace(key.encode(), REAL.encode()).replace(b"localhost", host)
    (call,) = gateway.wait_for_calls(1)
    assert call.client_name == "alice"
    assert key not in repr(call)
    assert REAL not in repr(call)


def test_a_key_in_two_places_goes_upstream_from_neither(start_gateway, upstream, keys, real_key):
    """What else stands there is the client's own affair."""
    key = add_key(keys, "alice", None)
    gateway = start_gateway(upstream.url, client_keys=keys, upstream_keys=(real_key,))
    fields = (f"x-api-key: {key}", f"Authorization: Bearer {key}", "x-goog-api-key: other")
    seen = seen_upstream(gateway, upstream, request(*fields))
    assert key.encode() not in seen
    assert seen.count(REAL.encode()) == 2
    assert b"x-goog-api-key: other\r\n" in seen


def test_an_upstream_that_wants_no_key_gets_none(start_gateway, upstream, keys):
    """The client's is taken out and nothing put in its place."""
    key = add_key(keys, "alice", None)
    gateway = start_gateway(upstream.url, client_keys=keys)
    sent = request(f"x-api-key: {key}", "x-b: 1", target=f"/v1/messages?key={key}")
    seen = seen_upstream(gateway, upstream, sent)
    assert seen.startswith(b"POST /v1/messages HTTP/1.1\r\nHost: ")
    assert key.encode() not in seen
    assert b"x-api-key" not in seen
    assert b"x-b: 1\r\n" in seen


def test_each_family_gets_its_own_key(start_gateway, upstream, keys, real_key, tmp_path):
    """And those without one of their own get the common one."""
    file = tmp_path / "openai"
    file.write_text("sk-openai\n")
    file.chmod(0o600)
    key = add_key(keys, "alice", None)
    gateway = start_gateway(
        upstream.url, client_keys=keys, upstream_keys=(real_key, f"openai=FILE:{file}")
    )
    for target, expected in (
        ("/api/chat/completions", b"Bearer sk-openai\r\n"),
        ("/api/anthropic/v1/messages", b"Bearer sk-the-real-one\r\n"),
    ):
        sent = request(f"Authorization: Bearer {key}", target=target)
        assert expected in seen_upstream(gateway, upstream, sent)


@pytest.mark.parametrize(
    ("fields", "query"),
    [
        ((), ""),
        (("x-api-key: tbk_wrong",), ""),
        (("x-api-key:",), ""),
        (("Authorization: Basic dXNlcjpwYXNz",), ""),
        (("Authorization: Bearer \xff\xfe",), ""),
        (("x-other: {}",), ""),
        ((), "?KEY={}"),
        ((), "?key={}x"),
    ],
)
def test_without_a_known_key_nothing_goes_upstream(start_gateway, upstream, keys, fields, query):
    """Whoever asks gets a 401 that every vendor's client understands; nothing is recorded."""
    key = add_key(keys, "alice", None)
    gateway = start_gateway(upstream.url, client_keys=keys)
    for target in ("/api/anthropic/v1/messages", "/api/responses", "/v1beta/models/m:generate"):
        client = gateway.connect()
        client.send(request(*(f.format(key) for f in fields), target=target + query.format(key)))
        error = refusal(client)["error"]
        assert error["type"] == "authentication_error"
        assert (error["code"], error["status"]) == (401, "UNAUTHENTICATED")
        assert "gateway-key add" in error["message"]
    assert upstream.has_nobody_waiting()
    assert gateway.calls == []


def test_an_empty_file_lets_nobody_in(start_gateway, upstream, keys):
    """Once the last key is revoked the door does not open."""
    key = add_key(keys, "alice", None)
    revoke_key(keys, "alice")
    gateway = start_gateway(upstream.url, client_keys=keys)
    client = gateway.connect()
    client.send(request(f"x-api-key: {key}"))
    refusal(client)


def test_every_key_is_compared_in_constant_time(start_gateway, upstream, keys, monkeypatch):
    """Which one fits, or that none does, cannot be told by the time it takes."""
    names = [f"client {number}" for number in range(5)]
    given_out = [add_key(keys, name, None) for name in names]
    gateway = start_gateway(upstream.url, client_keys=keys)
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(
        access.hmac, "compare_digest", lambda a, b: (compared.append((a, b)), compare(a, b))[1]
    )
    counts = []
    for key in (given_out[0], given_out[-1], "tbk_wrong"):
        compared.clear()
        client = gateway.connect()
        client.send(request(f"x-api-key: {key}"))
        if key != "tbk_wrong":
            upstream.accept().send(OK)
        client.read_head()
        counts.append(len(compared))
    assert counts == [len(names)] * 3


def test_many_keys_in_one_request_cost_little(start_gateway, upstream, keys, monkeypatch):
    """A head full of guesses is looked at to a limit."""
    key = add_key(keys, "alice", None)
    gateway = start_gateway(upstream.url, client_keys=keys)
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(
        access.hmac, "compare_digest", lambda a, b: (compared.append(a), compare(a, b))[1]
    )
    client = gateway.connect()
    client.send(request(*["x-api-key: tbk_guess"] * 5000, f"x-api-key: {key}"))
    refusal(client)
    assert len(compared) < 20


def wait_for_figures(gateway: RunningGateway, key: str, status: int, part: bytes = b"") -> None:
    """Ask for the gateway's figures with *key* until the answer is *status*, with *part* in it."""
    limit = time.monotonic() + LIMIT_SECONDS
    while True:
        client = gateway.connect()
        client.send(b"GET /tracebridge/metrics HTTP/1.1\r\nHost: localhost\r\n")
        client.send(f"x-api-key: {key}\r\n\r\n".encode())
        page = client.read_to_end()
        client.close()
        if page.startswith(b"HTTP/1.1 %d " % status) and part in page:
            return
        assert time.monotonic() < limit, page
        time.sleep(0.02)


def test_a_key_is_revoked_under_the_feet_of_a_stream(start_gateway, upstream, keys):
    """The answer under way comes to its end; the next request is refused."""
    key = add_key(keys, "alice", None)
    other = add_key(keys, "bob", None)
    gateway = start_gateway(upstream.url, client_keys=keys)
    client = gateway.connect()
    client.send(request(f"x-api-key: {key}"))
    peer = upstream.accept()
    peer.read_until(b"\r\n\r\n{}")
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
    assert client.read_until(b"first\r\n").endswith(b"first\r\n")
    revoke_key(keys, "alice")
    wait_for_figures(gateway, key, 401)
    peer.send(b"4\r\nlast\r\n0\r\n\r\n")
    assert client.read_until(b"0\r\n\r\n") == b"4\r\nlast\r\n0\r\n\r\n"
    client.send(request(f"x-api-key: {key}"))
    refusal(client)
    assert b"/v1/messages" in seen_upstream(gateway, upstream, request(f"x-api-key: {other}"))


def test_a_first_key_shuts_the_door_of_a_gateway_that_runs(start_gateway, upstream, keys):
    """Until then it asks nobody for one."""
    gateway = start_gateway(upstream.url, client_keys=keys)
    seen_upstream(gateway, upstream, request("x-api-key: sk-mine"))
    key = add_key(keys, "alice", None)
    wait_for_figures(gateway, "sk-mine", 401)
    assert key.encode() not in seen_upstream(gateway, upstream, request(f"x-api-key: {key}"))


def test_a_file_that_is_taken_away_opens_no_door(start_gateway, upstream, keys):
    """Nor does one that cannot be read any more: what was in force stays."""
    key = add_key(keys, "alice", None)
    gateway = start_gateway(upstream.url, client_keys=keys)
    keys.write_text("[keys")
    wait_for_figures(gateway, key, 200, b"not reloaded")
    keys.unlink()
    wait_for_figures(gateway, key, 401)


def test_upstream_keys_are_for_clients_with_a_key(start_gateway, upstream, keys, real_key):
    """Without client keys whoever reaches the gateway would use them."""
    with pytest.raises(OptionsError, match="gateway-key add"):
        start_gateway(upstream.url, client_keys=keys, upstream_keys=(real_key,))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sk-ant-api-secret",), "by reference"),
        (("anthropic=sk-ant-api-secret",), "by reference"),
        (("openai=ENV:A", "openai=ENV:B"), "openai is given twice"),
        (("ENV:NOT_THERE",), "the variable is not set"),
        (("FILE:/nowhere/at/all",), "No such file"),
    ],
)
def test_an_upstream_key_that_leads_nowhere_is_named(start_gateway, upstream, keys, words, said):
    """Before the gateway listens; and what may be the key itself is not repeated."""
    add_key(keys, "alice", None)
    with pytest.raises(OptionsError, match=said) as caught:
        start_gateway(upstream.url, client_keys=keys, upstream_keys=words)
    assert "secret" not in str(caught.value)


def test_the_command_line_gives_lists_and_takes_keys(home):
    """Exit code 1 and the reason where that cannot be; nothing but the key on stdout."""

    def typed(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["gateway-key", *words])
        return done.exit_code, done.stdout

    code, key = typed("add", "alice", "--usd-per-day", "2.5")
    assert code == 0
    assert read_keys(home / FILE)[0].digest == digest_of(key.strip())
    assert typed("add", "alice")[0] == 1
    code, listed = typed("list", "--json")
    (row,) = json.loads(listed)
    assert (code, row["name"], row["usd_today"], row["usd_per_day"]) == (0, "alice", 0, 2.5)
    assert key.strip() not in listed
    assert typed("revoke", "alice") == (0, "alice is let in no more\n")
    assert typed("revoke", "alice")[0] == 1
    assert "lets nobody in" in typed("list")[1]
    (home / FILE).write_text("[")
    assert [typed(*words)[0] for words in (("list",), ("add", "bob"))] == [1, 1]

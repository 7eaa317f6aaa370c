"""What the gateway adds to requests, and that all else leaves as it came."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateways.conftest import Peer, RunningGateway, ScriptedUpstream
from tracebridge import ids, semconv
from tracebridge.gateways.client_keys import FILE, add_key
from tracebridge.gateways.proxy import OptionsError
from tracebridge.gateways.request_settings import (
    RequestSettingsError,
    parse_table,
    read_request_settings,
)
from tracebridge.gateways.respan_params import LONGEST, NotMergedError, merged
from tracebridge.linker import Orphan
from tracebridge.model import UPSTREAM_HEADERS
from tracebridge.spans import render_orphan

REPOSITORY = Path(__file__).resolve().parents[2]
SESSION = "2e23f0a0-0000-4000-8000-000000000001"
PROMPT = "5d00821f-0000-4000-8000-000000000002"
TRACE = "d7c487cd7106e0dd92e7bece2e8dd15f"
ROOT = "d4f74fd32f47b44c"
# As its agent sends it; a user's own words stand around it, as odd as they may be.
AGENT = (
    "X-First: a",
    f"X-Claude-Code-Session-Id: {SESSION}",
    "x-DUP: 1",
    f"x-claude-code-prompt-id: {PROMPT}",
    "X-Dup:2  ",
    "Latin: caf\xe9",
)
CONTEXT = (f"traceparent: 00-{TRACE}-{ROOT}-01", f"baggage: session.id={SESSION}")
IDS = {
    "trace_unique_id": TRACE,
    "span_parent_id": ROOT,
    "session_identifier": SESSION,
    "thread_identifier": SESSION,
}
PARAMS = "X-Data-Respan-Params"
BODY = '{"model":"m","messages":["é"]}'.encode()
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"id":"msg_1"}'
# Respan's layout, and a vendor's own.
RESPAN, VENDOR = "/api/anthropic/v1/messages", "/v1/messages"


def request(fields: Iterable[str], path: str, method: str = "POST") -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", *fields)
    head = "\r\n".join((*lines, f"Content-Length: {len(BODY)}")).encode("latin-1")
    return head + b"\r\n\r\n" + BODY


def passed(
    gateway: RunningGateway,
    upstream: ScriptedUpstream,
    fields: Iterable[str],
    *,
    path: str = VENDOR,
    method: str = "POST",
    response: bytes = OK,
) -> list[str]:
    """Return the head's lines as they arrive behind the request line; the body is held by hash."""
    client = gateway.connect()
    client.send(request(fields, path, method))
    peer = upstream.accept()
    head = peer.read_head().decode("latin-1")
    assert sha256(peer.read(len(BODY))).digest() == sha256(BODY).digest()
    peer.send(response)
    assert client.read(len(response)) == response
    client.close()
    assert peer.read_to_end() == b""
    request_line, host, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    assert request_line == f"{method} {path} HTTP/1.1"
    assert host == "Host: " + upstream.url.removeprefix("http://")
    return lines


def length() -> str:
    return f"Content-Length: {len(BODY)}"


def encoded(document: object) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


def is_json(document: object) -> bool:
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def params_in(lines: list[str]) -> dict:
    (value,) = [line.partition(": ")[2] for line in lines if line.startswith(PARAMS)]
    return json.loads(base64.b64decode(value, validate=True))


@pytest.fixture
def config(tmp_path) -> Path:
    return tmp_path / "config.toml"


@pytest.fixture
def launched(start_gateway, upstream, monkeypatch):
    """Start a gateway for one command, with tags in its environment."""

    def start(**tags: str) -> RunningGateway:
        for name, value in tags.items():
            monkeypatch.setenv(f"TRACEBRIDGE_{name}", value)
        return start_gateway(upstream.url, launcher_pid=1)

    return start


def test_what_came_and_what_is_added(gateway, upstream):
    """Traceparent and baggage stand behind the client's own lines, of which none changes."""
    lines = passed(gateway, upstream, AGENT)
    assert lines == [*AGENT, length(), *CONTEXT]


def test_respan_gets_its_parameters_too(gateway, upstream):
    """Trace, parent, session and thread as our own spans have them."""
    lines = passed(gateway, upstream, AGENT, path=RESPAN)
    assert lines[:-1] == [*AGENT, length(), *CONTEXT]
    assert params_in(lines) == IDS


@pytest.mark.parametrize(
    ("fields", "path", "method"),
    [
        ((), RESPAN, "POST"),
        (AGENT, RESPAN, "GET"),
        (AGENT, "/api/anthropic/v1/models", "POST"),
        (AGENT, "/api/analytics/codex/turn-costs", "POST"),
        (("User-Agent: curl/8",), "/api/chat/completions", "POST"),
    ],
)
def test_nothing_is_added_to_what_is_nobodys_or_no_call(gateway, upstream, fields, path, method):
    """Only where an agent that is known asks a model."""
    lines = passed(gateway, upstream, fields, path=path, method=method)
    assert lines == [*fields, length()]


def test_a_family_of_its_own_is_not_respan(start_gateway, upstream):
    """Only Respan, or a base URL in front of its paths, gets what others would not know."""
    gateway = start_gateway(f"anthropic={upstream.url}/api/anthropic")
    lines = passed(gateway, upstream, AGENT, path=RESPAN)
    assert lines == [*AGENT, length(), *CONTEXT]


def test_no_context_if_it_is_not_wanted(start_gateway, upstream):
    """Then the request leaves as it came, to Respan too."""
    gateway = start_gateway(upstream.url, send_traceparent=False)
    assert passed(gateway, upstream, AGENT, path=RESPAN) == [*AGENT, length()]


def test_a_session_without_a_turn(gateway, upstream):
    """Without hint headers the session is known and the turn is not; then that is what is said."""
    fields = (f"X-Claude-Code-Session-Id: {SESSION}",)
    lines = passed(gateway, upstream, fields, path=RESPAN)
    assert lines[:-1] == [*fields, length(), CONTEXT[1]]
    assert params_in(lines) == {"session_identifier": SESSION, "thread_identifier": SESSION}


def test_the_parent_is_the_subagent(gateway, upstream):
    """Of a subagent's call its own span is the parent: one that our trace will have."""
    lines = passed(gateway, upstream, (*AGENT, "x-claude-code-agent-id: a1"), path=RESPAN)
    parent = ids.span_id(TRACE, "subagent", "a1")
    assert f"traceparent: 00-{TRACE}-{parent}-01" in lines
    assert params_in(lines)["span_parent_id"] == parent


def test_what_no_turn_will_tell_of_has_no_parent(gateway, upstream):
    """Codex has titles made in a thread of its own: a parent there would never exist."""
    told = {"session_id": "s", "thread_id": "s", "turn_id": "t", "thread_source": "thread_title"}
    fields = ("x-codex-turn-metadata: " + json.dumps(told),)
    lines = passed(gateway, upstream, fields, path="/api/responses")
    assert lines[:-1] == [*fields, length(), "baggage: session.id=s"]
    assert params_in(lines) == {"session_identifier": "s", "thread_identifier": "s"}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (("Baggage: a=1;p=2, b=%20",), ("Baggage: a=1;p=2, b=%20,session.id=" + SESSION,)),
        (("baggage:", "BAGGAGE:a=1 "), ("baggage:", "BAGGAGE:a=1 ,session.id=" + SESSION)),
        (("baggage: a=1,session.id =mine;p=1",), None),
        (("baggage: a=1", "baggage: session.id=mine"), None),
        (("baggage: " + "a=" + "x" * 8180,), None),
        (("baggage: " + ",".join(f"a{n}=1" for n in range(64)),), None),
    ],
)
def test_baggage_is_appended_to(gateway, upstream, sent, expected):
    """In the same line; not where the session is named already, nor beyond W3C's limits."""
    lines = passed(gateway, upstream, (*AGENT, *sent))
    assert lines == [*AGENT, *(expected or sent), length(), CONTEXT[0]]


def test_a_traceparent_that_is_there_stays(gateway, upstream):
    """What the client says of its own trace is not ours to change."""
    fields = (*AGENT, "TraceParent: 00-1-2-00", "tracestate: a=b")
    lines = passed(gateway, upstream, fields, path=RESPAN)
    assert lines[:-1] == [*fields, length(), CONTEXT[1]]
    assert params_in(lines) == IDS


def test_a_hostile_session(gateway, upstream):
    """A session id is percent-encoded, whatever is in it: no line can be broken in two."""
    session = 'a\r\nX-Evil: 1,b=c;"\\ é☃%'
    told = {"session_id": session, "root_turn_id": "t\r\n\r\n"}
    fields = ("x-codex-turn-metadata: " + json.dumps(told),)
    lines = passed(gateway, upstream, fields, path="/api/responses")
    trace = ids.trace_id("codex-cli", session, "t\r\n\r\n")
    assert lines[2] == f"traceparent: {ids.traceparent(trace)}"
    assert lines[3].isascii()
    assert unquote(lines[3], errors="surrogatepass") == f"baggage: session.id={session}"
    assert params_in(lines)["session_identifier"] == session
    assert len(lines) == 5


def test_a_session_id_of_64_kilobytes(gateway, upstream):
    """It is nobody's: the request passes as it is."""
    fields = ("X-Claude-Code-Session-Id: " + "s" * 65536,)
    assert passed(gateway, upstream, fields, path=RESPAN) == [*fields, length()]


@pytest.mark.parametrize("name", ["x-data-RESPAN-params", "X-Data-Keywordsai-Params"])
def test_the_clients_own_parameters_win(launched, upstream, name):
    """Ours are put beside them in the client's own field, in its place."""
    gateway = launched(CUSTOMER_ID="ours", METADATA='{"team": "blue", "ticket": 7}')
    theirs = {
        "customer_identifier": "theirs",
        "thread_identifier": None,
        "metadata": {"team": "red"},
        "x": [1, 2.5, "é", 10**30],
    }
    lines = passed(gateway, upstream, (f"{name}:{encoded(theirs)}  ", *AGENT), path=RESPAN)
    assert lines[1:] == [*AGENT, length(), *CONTEXT]
    own, _, value = lines[0].partition(": ")
    assert own == name
    assert json.loads(base64.b64decode(value, validate=True)) == {
        **IDS,
        **theirs,
        "metadata": {"team": "red", "ticket": "7"},
    }


def test_metadata_of_another_form(launched, upstream):
    """Where the client's metadata is no object, it stays what it is."""
    gateway = launched(METADATA='{"team": "blue"}')
    lines = passed(
        gateway, upstream, (f"{PARAMS}: {encoded({'metadata': 5})}", *AGENT), path=RESPAN
    )
    assert params_in(lines) == {**IDS, "metadata": 5}


@pytest.mark.parametrize(
    "sent",
    [
        ("{}",),
        ("%%%",),
        ("not base64 at all é",),
        (base64.b64encode(b"\xff\xfe").decode(),),
        (encoded([1]),),
        (base64.b64encode(b'{"a": 1e999}').decode(),),
        (base64.b64encode(b'{"a": NaN}').decode(),),
        (base64.b64encode(b'{"a":' * 30_000).decode(),),
        (encoded({"a": 1}), encoded({"b": 1})),
        (encoded({"a": "x" * LONGEST}),),
    ],
)
def test_parameters_that_cannot_be_added_to(gateway, upstream, capfd, sent):
    """They pass untouched, which is complained of; all else is added."""
    fields = [*AGENT, *(f"{PARAMS}: {value}" for value in sent)]
    assert passed(gateway, upstream, fields, path=RESPAN) == [*fields, length(), *CONTEXT]
    assert passed(gateway, upstream, fields, path=RESPAN) == [*fields, length(), *CONTEXT]
    assert capfd.readouterr().err.count(f"nothing added to a client's {PARAMS}") == 1


def test_tags_of_a_launched_command(launched, upstream):
    """Customer and metadata go to Respan as they are, line ends and all, and to nobody else."""
    metadata = {"team": "blue\r\nX-Evil: 1", "où": "é ☃"}
    gateway = launched(CUSTOMER_ID="Zoë\r\nX: y", METADATA=json.dumps(metadata))
    lines = passed(gateway, upstream, AGENT, path=RESPAN)
    assert lines[:-1] == [*AGENT, length(), *CONTEXT]
    assert params_in(lines) == {
        **IDS,
        "customer_identifier": "Zoë\r\nX: y",
        "metadata": metadata,
    }
    assert passed(gateway, upstream, AGENT) == [*AGENT, length(), *CONTEXT]


def test_metadata_that_is_too_long(launched, upstream, capfd):
    """A field of 64 kB would have the request refused: it is left out, and that is said."""
    gateway = launched(CUSTOMER_ID="ana", METADATA=json.dumps({"x": "y" * 65536}))
    lines = passed(gateway, upstream, AGENT, path=RESPAN)
    assert params_in(lines) == {**IDS, "customer_identifier": "ana"}
    assert "metadata not sent to Respan" in capfd.readouterr().err


def test_a_customer_that_is_too_long(launched, upstream, capfd):
    """Respan takes 254 characters; a part of a name would be somebody else's."""
    lines = passed(launched(CUSTOMER_ID="a" * 255), upstream, AGENT, path=RESPAN)
    assert params_in(lines) == IDS
    assert "customer not sent to Respan" in capfd.readouterr().err


def test_the_outer_trace_where_the_turn_lies_in_it(launched, upstream):
    """Upstream spans go where the turn's own spans go; only as a link it changes nothing."""
    outer = f"00-{'ab' * 16}-{'cd' * 8}-01"
    gateway = launched(TRACEPARENT=outer, TRACEPARENT_AS="parent")
    lines = passed(gateway, upstream, AGENT, path=RESPAN)
    assert f"traceparent: 00-{'ab' * 16}-{ROOT}-01" in lines
    assert params_in(lines) == {**IDS, "trace_unique_id": "ab" * 16}
    gateway = launched(TRACEPARENT=outer, TRACEPARENT_AS="link")
    assert CONTEXT[0] in passed(gateway, upstream, AGENT)


def test_a_clients_key_names_the_customer(start_gateway, upstream, tmp_path):
    """Of a script without an agent, too."""
    keys = tmp_path / FILE
    key = add_key(keys, "ana", None)
    gateway = start_gateway(upstream.url, client_keys=keys)
    lines = passed(gateway, upstream, (f"x-api-key: {key}",), path=RESPAN)
    assert lines[0] == length()
    assert params_in(lines) == {"customer_identifier": "ana"}


def test_what_the_user_wants_of_requests(start_gateway, upstream, config, monkeypatch):
    """Parameters go into Respan's field and the provider into its own; credentials nowhere else."""
    monkeypatch.setenv("THEIR_KEY", "sk-of-the-customer")
    config.write_text(
        """
        content = "full"
        [[gateway.requests]]
        fallback_models = ["claude-haiku-4-5"]
        cache_enabled = true
        cache_ttl = 60
        route_provider = "vertex_ai"
        [[gateway.requests]]
        agent = "claude"
        family = "anthropic"
        path = "/api/anthropic"
        cache_ttl = 5
        retry_params = { num_retries = 2, retry_after = 0.5 }
        load_balance_group = { models = [{ model = "m", credentials = { api_key = "ENV:THEIR_KEY" } }] }
        customer_credentials = { anthropic = { api_key = "ENV:THEIR_KEY" } }
        [[gateway.requests]]
        agent = "codex"
        exclude_models = ["x"]
        [[gateway.requests]]
        client = "ana"
        exclude_providers = ["x"]
        [[gateway.requests]]
        project = "/somewhere"
        models = ["x"]
        """
    )
    gateway = start_gateway(upstream.url)
    refusal = b'{"error":{"message":"bad key sk-of-the-customer"}}'
    response = b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n%s" % (len(refusal), refusal)
    lines = passed(gateway, upstream, AGENT, path=RESPAN, response=response)
    assert lines[:-2] == [*AGENT, length(), *CONTEXT]
    assert lines[-1] == "X-Respan-Route-Provider: vertex_ai"
    key = {"api_key": "sk-of-the-customer"}
    assert params_in(lines) == {
        **IDS,
        "fallback_models": ["claude-haiku-4-5"],
        "cache_enabled": True,
        "cache_ttl": 5,
        "retry_params": {"num_retries": 2, "retry_after": 0.5},
        "load_balance_group": {"models": [{"model": "m", "credentials": key}]},
        "customer_credentials": {"anthropic": key},
    }
    (call,) = gateway.wait_for_calls(1)
    assert call.error_message == "bad key [redacted]"
    assert "sk-of-the-customer" not in repr(call)
    theirs = (*AGENT, "x-respan-route-provider: openai", f"{PARAMS}: {encoded({'cache_ttl': 1})}")
    lines = passed(gateway, upstream, theirs, path=RESPAN)
    assert lines[: len(AGENT) + 1] == [*AGENT, "x-respan-route-provider: openai"]
    assert params_in(lines)["cache_ttl"] == 1
    assert len(lines) == len(theirs) + 3
    script = passed(gateway, upstream, (), path="/api/chat/completions")
    assert params_in(script) == {
        "fallback_models": ["claude-haiku-4-5"],
        "cache_enabled": True,
        "cache_ttl": 60,
    }


def test_a_vendor_gets_nothing_of_it(start_gateway, upstream, config, monkeypatch):
    """Least of all somebody's credentials."""
    monkeypatch.setenv("THEIR_KEY", "sk-of-the-customer")
    config.write_text(
        '[[gateway.requests]]\nroute_provider = "x"\n'
        'customer_credentials = { a = { api_key = "ENV:THEIR_KEY" } }\n'
    )
    gateway = start_gateway(upstream.url)
    assert passed(gateway, upstream, AGENT) == [*AGENT, length(), *CONTEXT]


def test_by_project(launched, upstream, config, tmp_path, monkeypatch):
    """A launched command's folder is known; that of others is not."""
    (tmp_path / "shop" / "web").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "shop" / "web")
    config.write_text(
        f'[[gateway.requests]]\nproject = "{tmp_path / "shop"}"\nmodels = ["a"]\n'
        f'[[gateway.requests]]\nproject = "{tmp_path / "other"}"\ncache_ttl = 1\n'
    )
    lines = passed(launched(), upstream, AGENT, path=RESPAN)
    assert params_in(lines) == {**IDS, "models": ["a"]}


def test_a_change_is_taken_up(start_gateway, upstream, config, capfd):
    """What is wanted changes with the file; what cannot be used leaves it as it was."""
    gateway = start_gateway(upstream.url)
    said = ""

    def until(is_so: Callable[[dict], bool]) -> None:
        # Each look takes a request; the gateway looks at its file once a second.
        while not is_so(params_in(passed(gateway, upstream, AGENT, path=RESPAN))):
            assert time.monotonic() < deadline

    def is_complained_of(params: dict) -> bool:
        nonlocal said
        said += capfd.readouterr().err
        assert params["cache_ttl"] == 5
        return f"not reloaded: {config}: gateway.requests[1].cache_ttl: write" in said

    deadline = time.monotonic() + 300
    until(lambda params: params == IDS)
    config.write_text("[[gateway.requests]]\ncache_ttl = 5\n")
    until(lambda params: params.get("cache_ttl") == 5)
    config.write_text("[[gateway.requests]]\ncache_ttl = 'x'\n")
    until(is_complained_of)
    config.write_text("[[gateway.requests]]\ncache_ttl = 60\n")
    until(lambda params: params.get("cache_ttl") == 60)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[gateway]\nrequests = 5", "gateway.requests: write tables [[gateway.requests]]"),
        ("gateway = 5", "gateway.requests: write tables [[gateway.requests]]"),
        ("[gateway]\nrequest = 5", "gateway.request: no such setting"),
        ("[[gateway.requests]]\ncache_tll = 5", "requests[1].cache_tll: no such setting"),
        (
            "[[gateway.requests]]\n[[gateway.requests]]\ncache_ttl = -5",
            "requests[2].cache_ttl: write",
        ),
        ("[[gateway.requests]]\nagent = 'clod'", "requests[1].agent: there are claude-code, "),
        ("[[gateway.requests]]\nfamily = 'x'", "requests[1].family: there are anthropic, "),
        ('[[gateway.requests]]\nroute_provider = "a\\r\\nX: b"', "route_provider: write"),
        ("[[gateway.requests]]\naliases = { a = 5 }", "aliases: write"),
        ("[[gateway.requests]]\nfallback_models = 'a'", "fallback_models: write"),
        (
            "[[gateway.requests]]\ncustomer_credentials = { a = { api_key = 'sk-in-clear' } }",
            "customer_credentials.a.api_key: write where the key is found",
        ),
        (
            "[[gateway.requests]]\ncustomer_credentials = { a = { api_key = 'ENV:NOT_THERE' } }",
            "customer_credentials.a.api_key: ENV:NOT_THERE: the variable is not set",
        ),
        ("[[gateway.requests]]\nretry_params = { a = 2026-01-01 }", "retry_params.a: write a text"),
        ("[[gateway.requests]]\nretry_params = { a = [nan] }", "retry_params.a: write a text"),
        ("[[gateway.requests]]\ncache_options = { a = -inf }", "cache_options.a: write a text"),
        ("[[gateway.requests]\n", "correct it or remove it"),
        ("[[gateway.requests]]\nx = " + "[" * 5000, "correct it or remove it"),
    ],
)
def test_what_cannot_be_used_is_said_at_the_start(start_gateway, upstream, config, text, complaint):
    """With the file, the place and the remedy, and never with a key."""
    config.write_text(text)
    with pytest.raises(OptionsError) as error:
        start_gateway(upstream.url)
    assert complaint in str(error.value)
    assert str(error.value).startswith(str(config))
    assert "sk-in-clear" not in str(error.value)


def test_a_config_that_is_no_text(start_gateway, upstream, config):
    """Bytes that are no UTF-8 are said to be so."""
    config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionsError, match="correct it or remove it"):
        start_gateway(upstream.url)


def test_what_an_upstream_gateway_calls_it(gateway, upstream):
    """The ids under which it keeps the call itself stand on the span; of its keys nothing does."""
    fields = "".join(f"{name.title()}: id-{name}\r\n" for name in UPSTREAM_HEADERS)
    fields += "X-Respan-Log-Id: log-1\r\nx-litellm-key-spend: 5\r\n"
    response = b"HTTP/1.1 200 OK\r\n%sContent-Length: 0\r\n\r\n" % fields.encode()
    passed(gateway, upstream, AGENT, response=response)
    (call,) = gateway.wait_for_calls(1)
    span = render_orphan(Orphan(call, "alone"), TRACE)
    upstreams = {
        name.removeprefix(semconv.LLM_UPSTREAM_PREFIX): value
        for name, value in span.attributes.items()
        if name.startswith(semconv.LLM_UPSTREAM_PREFIX)
    }
    assert upstreams == {name: f"id-{name}" for name in UPSTREAM_HEADERS}
    assert span.attributes[semconv.RESPAN_GATEWAY_LOG_ID] == "log-1"
    assert "x-litellm-key-spend" not in call.response_headers


@pytest.mark.parametrize("page", ["docs/gateway.md", "examples/gateways/respan.md"])
def test_what_the_pages_show_is_understood(page, tmp_path):
    """By who reads it, key references included."""
    text = (REPOSITORY / page).read_text("utf-8")
    shown = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    tables = [block for block in shown if "[[gateway.requests]]" in block]
    assert tables
    for block in tables:
        (tmp_path / "config.toml").write_text(block)
        settings = read_request_settings(tmp_path / "config.toml", {"ANAS_KEY": "sk-1"})
        assert any(each.wanted.aliases for each in settings)


SETTINGS = (
    "agent family path client project route_provider aliases fallback_models load_balance_group"
    " retry_params cache_enabled cache_ttl models exclude_models customer_credentials credentials"
)
NAMES = st.sampled_from(SETTINGS.split()) | st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(NAMES, VALUES))
def test_any_table(table):
    """It is understood, to what JSON has a form for, or refused with its name."""
    complaint = "config.toml: gateway.requests[1]."
    try:
        settings = parse_table(table, complaint.removesuffix("."), {})
    except RequestSettingsError as error:
        complaint = str(error)
    else:
        merged(None, dict(settings.wanted.params))
    assert complaint.startswith("config.toml: gateway.requests[1].")


@given(st.none() | st.text() | st.builds(encoded, VALUES.filter(is_json)), st.text())
def test_any_parameters_of_a_client(sent, session):
    """They are added to without a change to what they say, or not at all."""
    try:
        both = json.loads(base64.b64decode(merged(sent, {"session_identifier": session, "m": 1})))
    except NotMergedError:
        return
    theirs = {} if sent is None else json.loads(base64.b64decode(sent + "=="))
    assert both == {"session_identifier": session, "m": 1, **theirs}


def test_a_config_that_cannot_be_used_ends_the_command(tmp_path):
    """Before anybody is served: it is wrong usage, and the words name file, place and remedy."""
    home = tmp_path / "state"
    home.mkdir()
    (home / "config.toml").write_text("[[gateway.requests]]\nfallback_model = ['x']\n")
    command = [sys.executable, "-m", "tracebridge", "gateway", "--upstream", "http://127.0.0.1:9"]
    done = subprocess.run(
        [*command, "--listen", "127.0.0.1:0"],
        env={"TRACEBRIDGE_HOME": str(home), "HOME": str(tmp_path), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    place = f"{home / 'config.toml'}: gateway.requests[1].fallback_model: no such setting"
    assert place in done.stderr


def test_many_at_once_do_not_mix(gateway, upstream):
    """Each of a hundred requests has the ids of its own turn, and its own body."""
    number = 100
    bodies = {f"session-{n}": random.Random(n).randbytes(50_000 + n) for n in range(number)}

    def send(session: str) -> None:
        client = gateway.connect()
        client.send(
            f"POST {RESPAN} HTTP/1.1\r\nHost: localhost\r\nX-Claude-Code-Session-Id: {session}\r\n"
            f"x-claude-code-prompt-id: p\r\nContent-Length: {len(bodies[session])}\r\n\r\n".encode(),
            bodies[session],
        )
        assert client.read(len(OK)) == OK

    def answer(peer: Peer) -> tuple[list[str], bytes]:
        lines = peer.read_head().decode().removesuffix("\r\n\r\n").split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:])
        body = peer.read(int(fields["Content-Length"]))
        peer.send(OK)
        return lines, sha256(body).digest()

    with ThreadPoolExecutor(2 * number) as pool:
        sent = [pool.submit(send, session) for session in bodies]
        seen = [pool.submit(answer, upstream.accept()) for _ in bodies]
        for each in sent:
            each.result()
    arrived = {}
    for lines, digest in (each.result() for each in seen):
        session = params_in(lines)["session_identifier"]
        context = ids.traceparent(ids.trace_id("claude-code", session, "p"))
        assert lines[-3:-1] == [f"traceparent: {context}", f"baggage: session.id={session}"]
        arrived[session] = digest
    assert arrived == {session: sha256(body).digest() for session, body in bodies.items()}

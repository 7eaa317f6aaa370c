"""Whatever bytes come from outside: no crash, no hang, nothing that cannot be stored or scrubbed.

`corpus/` keeps what once did harm; it is tried first. TRACEBRIDGE_FUZZ multiplies the examples:
`make fuzz` uses 40.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest
from exports import documents, message
from fuzz.mutations import changed_bytes, changed_json, changed_lines, to_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracebridge.agents import Cursor, agents, identify_call
from tracebridge.codec import encode
from tracebridge.dialects import dialects, parse_error_message
from tracebridge.encode import encode_span
from tracebridge.foreign import records
from tracebridge.fragments import calls_in, nest, scrub, split
from tracebridge.gateway_choice import routes
from tracebridge.gateways.framing import (
    BadRequestError,
    ChunkedBody,
    ResponseReader,
    find_head_end,
    parse_request_head,
)
from tracebridge.gateways.otlp import JSON, PROTOBUF, parse_spans
from tracebridge.integrate import IntegrateError, Options, Place, integrate
from tracebridge.model import HookEvent, Sighting
from tracebridge.scrub import scrub_sighting, scrub_text
from tracebridge.settings import SettingsError, read_settings
from tracebridge.sinks.otlp_http import parse_partial_success, parse_retry_after
from tracebridge.spans import Content, render
from tracebridge.spool import SpoolFileError, parse
from tracebridge.store import parse_span
from tracebridge.tag_files import read_tags
from tracebridge.turns import TurnAssembler

TESTS = Path(__file__).resolve().parents[1]
CORPUS = Path(__file__).with_name("corpus")
TIMES = int(os.environ.get("TRACEBRIDGE_FUZZ", "1"))
MOST_MEMORY_KB = 1_500_000
SLUGS = sorted(agents())
WITHOUT_COMMENT = re.compile(rb"//.*")


def some(examples: int):
    """Run *examples* of a property, more where asked for; how long one takes says nothing here."""
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


@pytest.fixture(autouse=True)
def bounded_memory():
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MOST_MEMORY_KB


def kept(target: str) -> list[bytes]:
    """Return what once did harm to *target*."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]


def recorded_hooks(slug: str) -> list[bytes]:
    lines: dict[str, bytes] = {}
    for path in sorted((TESTS / "agents" / slug).glob("*/hooks.jsonl")):
        for line in path.read_bytes().splitlines():
            payload = orjson.loads(line)["payload"]
            kind = f"{payload.get('hook_event_name')} {payload.get('type')} {sorted(payload)}"
            lines.setdefault(kind, orjson.dumps(payload))
    return list(lines.values())


def recorded_lines(slug: str) -> list[bytes]:
    lines: dict[str, bytes] = {}
    for path in sorted((TESTS / "agents" / slug).glob("*/transcripts/**/*.jsonl")):
        for line in path.read_bytes().splitlines():
            record = orjson.loads(line)
            inner = record.get("payload") or record.get("message") or {}
            kind = inner.get("type") if isinstance(inner, dict) else None
            lines.setdefault(f"{record.get('type')} {kind} {sorted(record)}", line)
    return list(lines.values())


def take(slug: str, sightings: list[Sighting]) -> None:
    """Do with what was read what the watcher does."""
    scrubbed = [scrub_sighting(each) for each in sightings]
    by_session: dict[str, list[Sighting]] = {}
    for each in scrubbed:
        encode(each)
        assert -(2**63) <= each.time_ns < 2**63
        by_session.setdefault(each.session_id, []).append(each)
    for session_id, group in by_session.items():
        assembler = TurnAssembler(slug, session_id)
        assembler.add(group)
        for turn in assembler.turns(gone=True):
            render(turn)


def parse_hook(slug: str, payload: bytes) -> None:
    event = HookEvent(
        agent=slug, time_ns=1, pid=1, env={}, payload=payload, payload_bytes=len(payload)
    )
    take(slug, list(agents()[slug].parse_hook(event).sightings))


@pytest.mark.parametrize("slug", SLUGS)
def test_any_hook_payload(slug, tmp_path, monkeypatch):
    """Of every agent: noted where it cannot be understood, never raised."""
    monkeypatch.chdir(tmp_path)
    seeds = recorded_hooks(slug)
    assert seeds
    for payload in kept(f"hook-{slug}"):
        parse_hook(slug, payload)
    as_json = st.sampled_from(seeds).flatmap(lambda seed: changed_json(orjson.loads(seed)))
    as_bytes = st.sampled_from(seeds).flatmap(changed_bytes)

    @some(60)
    @given(st.one_of(as_json.map(to_bytes), as_bytes, st.binary(max_size=200)))
    def check(payload: bytes) -> None:
        parse_hook(slug, payload)

    check()


def read_all(slug: str, path: Path) -> None:
    agent = agents()[slug]
    sightings: list[Sighting] = []
    cursor = Cursor()
    for _ in range(1000):
        reading = agent.read_transcript(path, cursor)
        sightings += reading.sightings
        orjson.dumps(reading.cursor.memory)
        if reading.cursor == cursor:
            break
        cursor = reading.cursor
    else:
        pytest.fail("reading comes to no end")
    take(slug, sightings)


@pytest.mark.parametrize("slug", [slug for slug in SLUGS if slug != "opencode"])
def test_any_transcript(slug, tmp_path):
    """Of every agent that writes lines: what does not parse is passed over, the rest is read."""
    seeds = recorded_lines(slug)
    assert seeds
    path = tmp_path / "session-2e23f0a0.jsonl"
    for content in kept(f"transcript-{slug}"):
        path.write_bytes(content)
        read_all(slug, path)

    @some(50)
    @given(changed_lines(seeds))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        read_all(slug, path)

    check()


def test_any_database(tmp_path):
    """OpenCode's: values of other kinds, rows that are missing, and pages that are damaged."""
    dump = min((TESTS / "agents" / "opencode").glob("tools/transcripts/**/*.sql"))
    path = tmp_path / "opencode.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(dump.read_text())
        tables = [
            name
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        columns = {
            table: [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            for table in tables
        }
    whole = path.read_bytes()
    odd = st.one_of(
        st.none(), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=20), st.text(max_size=20)
    )
    cells = st.sampled_from(tables).flatmap(
        lambda table: st.tuples(st.just(table), st.sampled_from(columns[table]), odd)
    )

    said: list[OSError] = []

    @some(25)
    @given(st.lists(cells, min_size=1, max_size=4), st.booleans())
    def check_cells(changes, damaged: bool) -> None:
        path.write_bytes(whole)
        with closing(sqlite3.connect(path)) as database:
            for table, column, value in changes:
                try:
                    database.execute(f"UPDATE {table} SET {column} = ?", (value,))
                except sqlite3.Error:
                    continue
            database.commit()
        if damaged:
            data = bytearray(path.read_bytes())
            data[4096:8192] = b"\xa5" * 4096
            path.write_bytes(data)
        try:
            read_all("opencode", path)
        except OSError as error:
            said.append(error)

    check_cells()
    assert all(error.strerror for error in said)


STREAMS = {
    "anthropic": (
        b"event: message_start\n"
        b'data: {"type":"message_start","message":{"id":"msg_1","model":"m","usage":'
        b'{"input_tokens":3,"cache_read_input_tokens":1,"output_tokens":1}}}\n\n'
        b"event: content_block_start\n"
        b'data: {"type":"content_block_start","index":0,"content_block":'
        b'{"type":"tool_use","id":"toolu_1","name":"Bash","input":{}}}\n\n'
        b"event: message_delta\n"
        b'data: {"type":"message_delta","delta":{"stop_reason":"tool_use"},'
        b'"usage":{"output_tokens":9}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    ),
    "openai": (
        b'data: {"id":"c1","model":"m","choices":[{"index":0,"delta":{"content":"a","tool_calls":'
        b'[{"index":0,"id":"call_1","function":{"name":"f","arguments":""}}]}}]}\n\n'
        b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,'
        b'"prompt_tokens_details":{"cached_tokens":1}}}\n\ndata: [DONE]\n\n'
        b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"resp_1",'
        b'"model":"m","output":[{"type":"function_call","call_id":"c"}],"usage":'
        b'{"input_tokens":1,"output_tokens":2,"output_tokens_details":{"reasoning_tokens":1}}}}\n\n'
    ),
    "gemini": (
        b'data: {"candidates":[{"content":{"parts":[{"text":"a","thought":true},'
        b'{"functionCall":{"name":"f","args":{}}}]},"finishReason":"STOP"}],"modelVersion":"m",'
        b'"responseId":"r","usageMetadata":{"promptTokenCount":1,"candidatesTokenCount":2,'
        b'"thoughtsTokenCount":3,"cachedContentTokenCount":1}}\n\n'
    ),
}
PATHS = (
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/responses",
    "/v1/responses",
    "/api/chat/completions",
    "/v1/chat/completions",
    "/api/embeddings",
    "/v1beta/models/m:streamGenerateContent",
    "/v1beta/models/m:generateContent",
)


def named_calls() -> list:
    """Return each kind of call with its dialect."""
    found = {
        name: each
        for each in dialects()
        for path in PATHS
        if (name := each.name_call("POST", path)) is not None
    }
    assert len(found) >= 5
    return sorted(found.items())


@pytest.mark.parametrize(("name", "dialect"), named_calls())
def test_any_response(name, dialect):
    """As a stream in pieces and as a whole: facts come out, whatever was said."""
    seeds = [STREAMS[name.split(".")[0]], b'{"id": "x", "usage": {"input_tokens": 1}}']

    @some(80)
    @given(st.sampled_from(seeds).flatmap(changed_bytes), st.integers(1, 400), st.booleans())
    def check(stream: bytes, size: int, is_stream: bool) -> None:
        kind = "text/event-stream" if is_stream else "application/json"
        parser = dialect.response_parser(name, kind)
        for start in range(0, len(stream), size):
            parser.feed(stream[start : start + size], start)
        encode(parser.facts())
        parse_error_message(stream)

    check()


@pytest.mark.parametrize(("name", "dialect"), named_calls())
def test_any_request(name, dialect):
    """A body that cannot be understood is a ValueError and nothing else."""
    seed = {
        "model": "m",
        "stream": True,
        "metadata": {"user_id": '{"session_id": "s"}'},
        "client_metadata": {"x-codex-turn-metadata": "{}"},
        "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}],
        "input": [{"type": "function_call_output", "call_id": "c", "output": "o"}],
        "contents": [{"role": "user", "parts": [{"functionResponse": {"id": "f", "name": "n"}}]}],
    }

    @some(80)
    @given(st.one_of(changed_json(seed).map(to_bytes), st.binary(max_size=80)))
    def check(body: bytes) -> None:
        try:
            facts = dialect.parse_request(name, body)
        except ValueError:
            return
        encode(facts.tool_result_ids)
        identify_call({"x-codex-turn-metadata": body.decode("latin-1")}, facts.body)

    check()


REQUEST = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nX-A: b\r\n\r\n"
CHUNKED = b"5;x=y\r\nhello\r\n0\r\nTrailer: a\r\n\r\n"


@some(300)
@given(changed_bytes(REQUEST))
def test_any_request_head(data):
    """Understood in one way only, or refused."""
    try:
        end = find_head_end(data, 0)
        if end < 0:
            return
        head = parse_request_head(data[:end])
    except BadRequestError:
        return
    again = parse_request_head(head.encode(head.target, "localhost"))
    assert (again.method, again.content_length) == (head.method, head.content_length)


@some(300)
@given(changed_bytes(CHUNKED), st.integers(1, 40))
def test_any_chunked_body(data, size):
    """It does not matter in which pieces it comes."""

    def outcome(piece: int) -> tuple[object, ...]:
        body, content, used = ChunkedBody(), b"", 0
        try:
            for start in range(0, len(data), piece):
                if body.done:
                    break
                taken, parts = body.feed(data[start : start + piece])
                used += taken
                content += b"".join(parts)
        except BadRequestError as error:
            return ("refused", str(error))
        return (used, content, body.done)

    whole, pieces = outcome(len(data) or 1), outcome(size)
    assert whole == pieces or "refused" in (whole[0], pieces[0])
    assert (whole[0] == "refused") == (pieces[0] == "refused")


@some(150)
@given(
    changed_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: a/b\r\n\r\nabc"),
    st.integers(1, 60),
    st.sampled_from(["GET", "POST", "HEAD"]),
)
def test_any_response_head(data, size, method):
    """Following the copy never raises."""
    reader = ResponseReader(method, lambda _status, _fields: None, lambda _piece: None)
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])


SPOOLED = b"format=1\0kind=hook\0agent=claude-code\0time_ns=17\0pid=3\0payload_bytes=2\0\0{}"
CALLED = b'format=1\0kind=call\0\0{"call_id":"c","gateway":"g","method":"POST","path":"/","start_ns":1,"end_ns":2}'


@some(300)
@given(st.sampled_from([SPOOLED, CALLED]).flatmap(changed_bytes))
def test_any_spool_file(data):
    """A record or a SpoolFileError, and numbers that the store can hold."""
    try:
        content = parse(data, 5)
    except SpoolFileError:
        return
    encode(content)
    if isinstance(content, HookEvent):
        assert 0 <= content.time_ns < 2**63


RECORDED_EXPORTS = [
    document
    for name in ("litellm-claude-v1", "litellm-codex-v2")
    for document in documents(name)[1:]
]


def take_export(kind: str, data: bytes) -> None:
    """Do with an export of another gateway what receiver and watcher do."""
    try:
        request = parse_spans(kind, data)
    except ValueError:
        return
    fragments, _ = split(request)
    for fragment in fragments:
        scrub(fragment.spans, scrub_text)
        calls = calls_in(fragment)
        for call in calls.values():
            encode(call)
            assert 0 <= call.start_ns <= call.end_ns < 2**63
        nest(fragment, "1" * 32, "2" * 16, dict.fromkeys(calls, "3" * 16))
        for span in records(fragment, Content.REDACTED, {}):
            assert parse_span(encode(span)) == span
            encode_span(span)


@some(60)
@given(
    st.one_of(
        st.sampled_from(RECORDED_EXPORTS).flatmap(changed_json).map(to_bytes),
        st.sampled_from(RECORDED_EXPORTS).map(orjson.dumps).flatmap(changed_bytes),
        st.binary(max_size=200),
    )
)
def test_any_export_as_json(data):
    """Spans of another gateway in JSON: taken in, or refused as what they are not."""
    take_export(JSON, data)


@some(60)
@given(
    st.one_of(
        st.sampled_from(RECORDED_EXPORTS)
        .map(lambda document: message(document).SerializeToString())
        .flatmap(changed_bytes),
        st.binary(max_size=200),
    )
)
def test_any_export_as_protobuf(data):
    """Spans of another gateway in protobuf: taken in, or refused as what they are not."""
    take_export(PROTOBUF, data)


CONFIG = b"""content = "full"
retention_days = 7
scrub_patterns = ['a{2,3}']
untraced = ["/x"]
[env]
OTEL_EXPORTER_OTLP_ENDPOINT = "http://localhost:4318"
"""


def test_any_config_file(tmp_path):
    """Settings, or an error that names the file or the setting."""
    said: list[str] = []

    @some(150)
    @given(changed_bytes(CONFIG))
    def check(data: bytes) -> None:
        (tmp_path / "config.toml").write_bytes(data)
        try:
            read_settings({"TRACEBRIDGE_HOME": str(tmp_path)})
        except SettingsError as error:
            said.append(str(error))

    for data in kept("config"):
        check.hypothesis.inner_test(data)
    check()
    assert said
    assert all("config.toml" in each for each in said)


TAG_FILES = {
    ".respan.json": b'{"customer_id": "acme", "span_name": "n", "metadata": {"team": "blue"}, "k": 1}',
    ".claude/settings.json": b'{"env": {"OTEL_RESOURCE_ATTRIBUTES": "team=blue,a=b%20c"}}',
    ".claude/respan.json": b'{"project_id": "p", "workflow_name": "w"}',
}


@pytest.mark.parametrize("name", TAG_FILES)
def test_any_tag_file(name, tmp_path):
    """Tags that can be stored, or a problem that names the file."""
    path = tmp_path / "project" / name
    path.parent.mkdir(parents=True)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        tags, problems = read_tags(agents()["claude-code"], tmp_path / "project", tmp_path)
        encode(tags)
        assert all(str(path) in each for each in problems)

    @some(100)
    @given(
        st.one_of(
            changed_bytes(TAG_FILES[name]),
            changed_json(json.loads(TAG_FILES[name])).map(to_bytes),
            st.binary(max_size=80),
        )
    )
    def check(data: bytes) -> None:
        read(data)

    for data in kept("tags"):
        read(data)
    check()


WORDS = ("respan", "local", "none", "anthropic=https://gw.example/v1", "http://user@h:1/x?y#z")


@some(300)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(WORDS),
            st.text(max_size=60),
            st.sampled_from(WORDS)
            .flatmap(lambda word: changed_bytes(word.encode()))
            .map(lambda data: data.decode("utf-8", "replace")),
        ),
        max_size=3,
    )
)
def test_any_choice_of_a_gateway(words):
    """Base URLs that lead somewhere, or a ValueError that says what may be chosen."""
    said = "--gateway"
    found = {}
    try:
        found = routes(words)
    except ValueError as error:
        said = str(error)
    assert "--gateway" in said
    for url in found.values():
        assert urlsplit(url).hostname
        assert url.isascii()
        assert url.isprintable()


SETTINGS_FILES = {
    "claude-code": (
        ".claude/settings.json",
        b'{\n  // mine\n  "env": {"A": "1"},\n  "hooks": {"Stop": [{"hooks": '
        b'[{"type": "command", "command": "true"}]}]}\n}\n',
    ),
    "codex-cli": (
        ".codex/config.toml",
        b'model = "m" # mine\nnotify = ["say", "done"]\n\n[features]\nx = true\n',
    ),
    "gemini-cli": (
        ".gemini/settings.json",
        b'{"hooks": {"BeforeTool": []}, "security": {"auth": {"selectedType": "x"}}}',
    ),
    "opencode": (".config/opencode/opencode.json", b'{"plugin": ["a"], "provider": {}}\n'),
}


@pytest.mark.parametrize("slug", SETTINGS_FILES)
def test_any_settings_file(slug, tmp_path):
    """Set up and taken out again it has its bytes; what cannot be edited is left and named."""
    name, seed = SETTINGS_FILES[slug]
    refused: list[str] = []

    def set_up_and_take_out(data: bytes, folder: Path) -> None:
        home, project = folder / "user", folder / "project"
        path = home / name
        path.parent.mkdir(parents=True)
        project.mkdir()
        path.write_bytes(data)
        env = {"HOME": str(home), "PATH": os.defpath}
        place = Place(scope="global", home=home, project=project, env=env)
        options = Options(gateway=("http://127.0.0.1:9",), tags={"team": "blue"})
        for remove in (False, True):
            try:
                integrate(agents()[slug], place, options, folder / "state", remove=remove)
            except IntegrateError as error:
                refused.append(str(error))
                assert not remove
                break
        assert path.read_bytes() == data

    @some(25)
    @given(
        st.one_of(
            changed_bytes(seed),
            # What is well written and says odd things.
            changed_json(json.loads(WITHOUT_COMMENT.sub(b"", seed))).map(to_bytes)
            if name.endswith(".json")
            else changed_bytes(seed),
        )
    )
    def check(data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            set_up_and_take_out(data, Path(folder))

    for number, data in enumerate(kept(f"settings-{slug}")):
        set_up_and_take_out(data, tmp_path / f"kept-{number}")
    check()
    assert all(Path(name).name in each or slug in each for each in refused)


@pytest.mark.parametrize("remove", [False, True])
def test_any_record_of_what_was_set_up(remove, tmp_path):
    """Ours, and yet whatever stands in it: the agent's file says after it what it should."""
    home, project, state = tmp_path / "user", tmp_path / "project", tmp_path / "state"
    for folder in (home, project, state):
        folder.mkdir()
    place = Place(scope="global", home=home, project=project, env={"HOME": str(home)})
    claude = agents()["claude-code"]
    integrate(claude, place, Options(), state)
    record = (state / "integrations.json").read_bytes()
    settings_file = home / ".claude" / "settings.json"
    written = settings_file.read_bytes()

    @some(40)
    @given(st.one_of(changed_json(json.loads(record)).map(to_bytes), changed_bytes(record)))
    def check(data: bytes) -> None:
        (state / "integrations.json").write_bytes(data)
        settings_file.parent.mkdir(exist_ok=True)
        settings_file.write_bytes(written)
        try:
            integrate(claude, place, Options(), state, remove=remove)
        except IntegrateError:
            # It says which file, see above.
            return
        there = settings_file.read_bytes() if settings_file.exists() else b""
        assert (b"tracebridge_hook" in there) != remove

    check()


@some(150)
@given(
    st.one_of(
        st.binary(max_size=100),
        changed_bytes(b'{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "no"}}'),
        changed_bytes(b"\n\x06\x08\x03\x12\x02no"),
    ),
    st.text(max_size=40),
)
def test_any_answer_of_a_backend(body, header):
    """Whatever a backend says, a count and a text come of it."""
    rejected, said = parse_partial_success(body)
    assert isinstance(rejected, int)
    assert isinstance(said, str)
    seconds = parse_retry_after(header, 0.0)
    assert seconds is None or seconds >= 0

"""The id contract in other languages gives the same ids, where each can run."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tracebridge import ids

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "ids"
SESSION, PROMPT = "2e23f0a0-0000-4000-8000-000000000001", "5d00821f-0000-4000-8000-000000000002"
CLAUDE, ROOT = "d7c487cd7106e0dd92e7bece2e8dd15f", "d4f74fd32f47b44c"
# Of DESIGN's section 5.
TRACES = [
    (("claude-code", SESSION, PROMPT), CLAUDE),
    (("opencode", "ses_abc", "msg_def"), "ced544c3876bb510e6a0fd836de28e94"),
    (("codex-cli", "séance", "t-1"), "556498a75da2dd19665060989868f2f1"),
]
SPANS = [
    ((CLAUDE, "turn", ""), ROOT),
    ((CLAUDE, "tool", "toolu_01A"), "bb1d37b7d9fd0ec3"),
    ((CLAUDE, "llm", "msg_01B"), "a52004da2280f597"),
    (("ced544c3876bb510e6a0fd836de28e94", "turn", ""), "edbef4b162dc46e1"),
    (("556498a75da2dd19665060989868f2f1", "turn", ""), "7d168739f7c64e51"),
]
HEADERS = {"x-claude-code-session-id": SESSION, "x-claude-code-prompt-id": PROMPT}
TRACEPARENT = f"00-{CLAUDE}-{ROOT}-01"
LUA = ("luajit20", "luajit21", "lua52", "lua53", "lua54", "lua55")


@pytest.fixture
def litellm_ids():
    spec = importlib.util.spec_from_file_location("litellm_ids", EXAMPLES / "litellm_ids.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ours_gives_the_vectors():
    """What the examples are held against."""
    assert [ids.trace_id(*of) for of, _ in TRACES] == [trace for _, trace in TRACES]
    assert [ids.span_id(*of) for of, _ in SPANS] == [span for _, span in SPANS]


def test_python_of_the_litellm_callback(litellm_ids):
    """The functions alone; any Python program can have them."""
    assert [litellm_ids.trace_id(*of) for of, _ in TRACES] == [trace for _, trace in TRACES]
    assert [litellm_ids.span_id(*of) for of, _ in SPANS] == [span for _, span in SPANS]


def test_the_litellm_callback_sets_and_returns_ids(litellm_ids):
    """Into the request's metadata before the call, into the answer's headers after it."""
    callback = litellm_ids.ids
    data = {"proxy_server_request": {"headers": {k.title(): v for k, v in HEADERS.items()}}}
    asyncio.run(callback.async_pre_call_hook(None, None, data, "anthropic_messages"))
    assert data["metadata"] == {"tracebridge_trace_id": CLAUDE}
    answer = asyncio.run(
        callback.async_post_call_response_headers_hook(
            data, None, None, request_headers=HEADERS, litellm_call_info={}
        )
    )
    assert answer == {"x-tracebridge-traceparent": TRACEPARENT}


@pytest.mark.parametrize(
    "written",
    [
        {"session_id": "séance", "turn_id": "t-1"},
        {"session_id": "séance", "turn_id": "t-2", "root_turn_id": "t-1"},
    ],
)
def test_the_litellm_callback_knows_codex(written, litellm_ids):
    """Its metadata is one header of JSON."""
    headers = {"x-codex-turn-metadata": json.dumps(written)}
    assert litellm_ids.trace_of(headers) == TRACES[2][1]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-claude-code-session-id": SESSION},
        {"x-codex-turn-metadata": "{"},
        {"x-codex-turn-metadata": "[]"},
        {"x-codex-turn-metadata": '{"session_id": 1}'},
        {"x-codex-turn-metadata": '"text"'},
    ],
)
def test_the_litellm_callback_lets_all_other_calls_be(headers, litellm_ids):
    """Requests that do not say whose they are, or say it badly."""
    assert litellm_ids.trace_of(headers) is None
    data: dict[str, Any] = {"proxy_server_request": {"headers": headers}}
    asyncio.run(litellm_ids.ids.async_pre_call_hook(None, None, data, "completion"))
    assert "metadata" not in data


def test_javascript():
    """In the Node.js that the agents need anyway."""
    script = """
        const ids = require(process.argv[1]);
        const asked = JSON.parse(process.argv[2]);
        console.log(JSON.stringify([
          asked.traces.map((each) => ids.traceId(...each)),
          asked.spans.map((each) => ids.spanId(...each)),
          ids.traceparent(asked.headers), ids.traceparent({}),
        ]));
    """
    asked = {
        "traces": [of for of, _ in TRACES],
        "spans": [of for of, _ in SPANS],
        "headers": HEADERS,
    }
    done = subprocess.run(
        ["node", "-e", script, str(EXAMPLES / "ids.js"), json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    traces, spans, parent, nothing = json.loads(done.stdout)
    assert traces == [trace for _, trace in TRACES]
    assert spans == [span for _, span in SPANS]
    assert (parent, nothing) == (TRACEPARENT, None)


@pytest.fixture(params=LUA)
def lua(request):
    """Return one Lua, and SHA-256 in it."""
    runtime = importlib.import_module(f"lupa.{request.param}").LuaRuntime(encoding="utf-8")
    return runtime, runtime.execute((EXAMPLES / "sha256.lua").read_text("utf-8"))


def test_lua(lua):
    """In the dialects of Envoy, OpenResty and HAProxy."""
    runtime, sha256 = lua
    found = runtime.execute((EXAMPLES / "ids.lua").read_text("utf-8")).new(sha256)
    assert [found.trace_id(*of) for of, _ in TRACES] == [trace for _, trace in TRACES]
    assert [found.span_id(*of) for of, _ in SPANS] == [span for _, span in SPANS]
    assert found.traceparent(HEADERS.get) == TRACEPARENT
    assert found.traceparent(lambda _: None) is None


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 119, 120, 500])
def test_sha256_in_lua_at_every_kind_of_length(length, lua):
    """Where padding fills a block, and where it needs one more."""
    _, sha256 = lua
    text = "é" * (length // 2) + "a" * (length % 2)
    assert sha256(text) == hashlib.sha256(text.encode()).hexdigest()


def test_ottl():
    """Its expressions mean the ids, by what OTTL's documentation says of the functions."""
    page = (EXAMPLES / "ottl.yaml").read_text("utf-8")
    statements = re.findall(r"- (set\(.*)", page)
    attributes = {f"http.request.header.{name}": value for name, value in HEADERS.items()}
    for response_id, parent in (("msg_01B", SPANS[2][1]), (None, ROOT)):
        known = attributes | ({} if response_id is None else {"gen_ai.response.id": response_id})
        span = {"trace_id.string": "ab" * 16, "parent_span_id.string": ""}
        for statement in statements:
            _run(statement, span, known)
        assert span["trace_id.string"] == CLAUDE
        assert span["parent_span_id.string"] == parent
        assert known["tracebridge.original.trace_id"] == "ab" * 16


_TOKEN = re.compile(r'\s*(attributes\["[^"]+"\]|"(?:\\.|[^"\\])*"|[\w.]+|[()\[\],])')


def _run(statement: str, span: dict[str, str], attributes: dict[str, str]) -> None:
    """Carry out one OTTL statement, as far as the example's language goes."""
    call, _, condition = statement.partition(" where ")
    if condition:
        path, operator = re.fullmatch(r'attributes\["([^"]+)"\] (==|!=) nil', condition).groups()
        if (path in attributes) != (operator == "!="):
            return
    target, value = re.fullmatch(r"set\((attributes\[\"[^\"]+\"\]|[\w.]+), (.*)\)", call).groups()
    tokens = _TOKEN.findall(value)
    result = _value(tokens, span, attributes)
    assert not tokens
    if target.startswith("attributes"):
        attributes[json.loads(target[11:-1])] = result
    else:
        span[target] = result


def _value(tokens: list[str], span: dict[str, str], attributes: dict[str, str]) -> Any:
    token = tokens.pop(0)
    if token.startswith("attributes"):
        return attributes[json.loads(token[11:-1])]
    if token.startswith('"'):
        return json.loads(token)
    if token.isdigit():
        return int(token)
    if token in span:
        return span[token]
    end = "]" if token == "[" else ")"
    if token != "[":
        assert tokens.pop(0) == "("
    values = []
    while tokens[0] != end:
        values.append(_value(tokens, span, attributes))
        if tokens[0] == ",":
            tokens.pop(0)
    tokens.pop(0)
    if token == "[":
        return values
    return {
        "SHA256": lambda text: hashlib.sha256(text.encode()).hexdigest(),
        "Concat": lambda texts, between: between.join(texts),
        "Substring": lambda text, start, length: text[start : start + length],
    }[token](*values)

"""The model in the Responses shape says what the script says, and knows who asked."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

import pytest

from tracebridge.dialects import openai
from tracebridge.model import Usage
from tracebridge.testing.scripted_model import (
    Cut,
    HttpError,
    Reply,
    StreamError,
    Text,
    Thinking,
    ToolUse,
)
from tracebridge.testing.scripted_responses import ScriptedResponses

TOLD = {
    "session_id": "s",
    "thread_id": "c",
    "turn_id": "u",
    "root_turn_id": "t",
    "thread_source": "subagent",
}


@pytest.fixture
def model():
    with ScriptedResponses() as model:
        yield model


def post(model, *items, path="/api/responses", stream=True):
    connection = http.client.HTTPConnection(urlsplit(model.url).netloc, timeout=120)
    body = {
        "model": "m-1",
        "stream": stream,
        "input": list(items),
        "client_metadata": {"x-codex-turn-metadata": json.dumps(TOLD)},
    }
    try:
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        try:
            data = response.read()
        except http.client.IncompleteRead as error:
            data = error.partial
        return response, data
    finally:
        connection.close()


def user(text):
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def facts_of(response, data):
    parser = openai.response_parser(openai.RESPONSES, response.headers["content-type"])
    parser.feed(data, 1)
    return parser.facts()


@pytest.mark.parametrize("stream", [True, False])
def test_says_what_the_script_says(model, stream):
    """Thinking, text and both kinds of tool calls, with the usage and the ids of the truth."""
    blocks = [
        Thinking("hm"),
        Text("x"),
        ToolUse("exec_command", {"cmd": "ls"}),
        ToolUse("apply_patch", {"patch": "*** Begin Patch"}),
    ]
    model.script({"go": [Reply(blocks)]})
    response, data = post(model, user("go"), stream=stream)
    facts = facts_of(response, data)
    (truth,) = model.calls()
    assert response.headers["x-request-id"] == truth.request_id
    assert facts.response_id == truth.message_id
    assert list(facts.tool_call_ids) == truth.tool_use_ids
    assert len(truth.tool_use_ids) == 2
    usage = truth.usage
    read, write = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    assert facts.usage == Usage(
        input_tokens=usage["input_tokens"] + read + write,
        output_tokens=usage["output_tokens"],
        cache_read_tokens=read,
        cache_write_tokens=write,
        reasoning_tokens=usage["output_tokens_details"]["thinking_tokens"],
    )
    assert (facts.stop_reason, facts.ended) == (truth.stop_reason, True)
    assert (truth.session_id, truth.prompt_id, truth.agent_id) == ("s", "t", "c")
    assert truth.request_class == "subagent"


def test_knows_the_step(model):
    """What the model said in one go counts as one step, however many items it was."""
    model.script({"go": [Reply([Text("first")]), Reply([Text("second")])]})
    call = {"type": "function_call", "call_id": "a", "name": "x", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "a", "output": ""}
    _, data = post(model, user("go"), {"type": "reasoning", "summary": []}, call, result)
    assert b"second" in data


def test_failures(model):
    """An error status, a cut and a failed response are what they are, and then the reply comes."""
    failures = [HttpError(429), Cut(3), StreamError(3)]
    model.script({"go": [Reply([Text("at last")], failures=failures)]})
    answers = [post(model, user("go")) for _ in range(4)]
    assert [response.status for response, _ in answers] == [429, 200, 200, 200]
    cut, failed, whole = (facts_of(*answer) for answer in answers[1:])
    assert not cut.ended
    assert failed.error_type == "overloaded_error"
    assert whole.stop_reason == "completed"
    outcomes = [attempt.outcome for attempt in model.calls()]
    assert outcomes == ["http_error", "cut", "stream_error", "answered"]


def test_other_paths_are_not_found(model):
    """Analytics and the like have no answer here."""
    response, _ = post(model, path="/api/analytics/codex/turn-costs")
    assert response.status == 404

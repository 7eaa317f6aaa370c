"""The model in the Chat Completions shape says what the script says, and fails as it should."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

import pytest

from tracebridge.dialects import openai
from tracebridge.model import Usage
from tracebridge.testing.scripted_chat import ScriptedChat
from tracebridge.testing.scripted_model import Cut, HttpError, Reply, Text, Thinking, ToolUse


@pytest.fixture
def model():
    with ScriptedChat() as model:
        yield model


def post(model, *messages, path="/api/chat/completions", stream=True):
    connection = http.client.HTTPConnection(urlsplit(model.url).netloc, timeout=120)
    body = {"model": "m-1", "stream": stream, "messages": list(messages)}
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
    return {"role": "user", "content": text}


def facts_of(response, data):
    parser = openai.response_parser(openai.CHAT_COMPLETIONS, response.headers["content-type"])
    parser.feed(data, 1)
    return parser.facts()


@pytest.mark.parametrize("stream", [True, False])
def test_says_what_the_script_says(model, stream):
    """Text and tool calls, with the usage and the ids of the truth, as a stream or as a whole."""
    model.script({"go": [Reply([Thinking("hm"), Text("x"), ToolUse("bash", {"command": "ls"})])]})
    response, data = post(model, user("go"), stream=stream)
    facts = facts_of(response, data)
    (truth,) = model.calls()
    assert response.headers["x-request-id"] == truth.request_id
    assert facts.response_id == truth.message_id
    assert list(facts.tool_call_ids) == truth.tool_use_ids
    assert len(truth.tool_use_ids) == 1
    usage = truth.usage
    read, write = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    assert facts.usage == Usage(
        input_tokens=usage["input_tokens"] + read + write,
        output_tokens=usage["output_tokens"],
        cache_read_tokens=read,
        cache_write_tokens=write,
        reasoning_tokens=usage["output_tokens_details"]["thinking_tokens"],
    )
    assert (facts.stop_reason, facts.ended) == ("tool_calls", True)
    assert truth.stop_reason == "tool_calls"


def test_knows_the_step(model):
    """What the model said and what its tools gave count as one step."""
    model.script({"go": [Reply([Text("first")]), Reply([Text("second")])]})
    said = {"role": "assistant", "content": "first"}
    result = {"role": "tool", "tool_call_id": "a", "content": "go"}
    _, data = post(model, user("go"), said, result, stream=False)
    assert b"second" in data


def test_failures(model):
    """An error status and a cut are what they are, and then the reply comes."""
    model.script({"go": [Reply([Text("at last")], failures=[HttpError(429), Cut(2)])]})
    answers = [post(model, user("go")) for _ in range(3)]
    assert [response.status for response, _ in answers] == [429, 200, 200]
    cut, whole = (facts_of(*answer) for answer in answers[1:])
    assert (cut.ended, whole.ended) == (False, True)
    assert [a.outcome for a in model.calls()] == ["http_error", "cut", "answered"]


def test_other_paths_are_not_found(model):
    """It speaks one API."""
    response, _ = post(model, path="/api/responses")
    assert response.status == 404

"""The model that the tests trust must itself be one to trust."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from tracebridge.testing.scripted_model import (
    Cut,
    Hold,
    HttpError,
    Reply,
    ScriptedModel,
    StreamError,
    Text,
    Thinking,
    ToolUse,
)

LIMIT = 120
TOOLS = [{"name": "Bash", "input_schema": {"type": "object"}}]


@pytest.fixture
def model():
    with ScriptedModel() as model:
        yield model


def connect(model):
    return http.client.HTTPConnection(urlsplit(model.url).netloc, timeout=LIMIT)


def body_of(*messages, stream=True, **more):
    turns = [
        {"role": "assistant" if place % 2 else "user", "content": said}
        for place, said in enumerate(messages)
    ]
    return {"model": "m-1", "messages": turns, "tools": TOOLS, "stream": stream, **more}


def post(model, body, *, path="/v1/messages?beta=true", headers=None):
    connection = connect(model)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, headers or {})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def events_of(stream):
    return [
        json.loads(line.removeprefix(b"data: "))
        for line in stream.splitlines()
        if line.startswith(b"data: ")
    ]


def test_streams_every_kind_of_block(model):
    """A stream carries thinking with signature, text, and tool input in pieces, and its usage."""
    tool_input = {"command": "echo é"}
    model.script({"go": [Reply([Thinking("hm", "sig"), Text("x"), ToolUse("Bash", tool_input)])]})

    response, stream = post(model, body_of("go"))

    events = events_of(stream)
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "hm"
    assert [d["signature"] for d in deltas if d["type"] == "signature_delta"] == ["sig"]
    assert "".join(delta.get("text", "") for delta in deltas) == "x"
    assert json.loads("".join(delta.get("partial_json", "") for delta in deltas)) == tool_input
    assert events[-1] == {"type": "message_stop"}
    [truth] = model.calls()
    assert response.headers["request-id"] == truth.request_id
    assert events[0]["message"]["id"] == truth.message_id
    assert events[-2]["usage"] == truth.usage
    assert events[-2]["delta"]["stop_reason"] == truth.stop_reason == "tool_use"
    started = [event["content_block"] for event in events if "content_block" in event]
    assert [block["id"] for block in started if "id" in block] == truth.tool_use_ids
    assert truth.usage["output_tokens_details"]["thinking_tokens"] > 0
    assert truth.outcome == "answered"
    assert truth.end_ns >= truth.start_ns


def test_answers_whole_when_not_asked_to_stream(model):
    """Without `stream` the reply is one JSON message that says what the truth says."""
    model.script({"go": [Reply([Text("whole")])]})

    _, answer = post(model, body_of("go", stream=False), path="/any/prefix/v1/messages")

    [truth] = model.calls()
    message = json.loads(answer)
    assert message["content"] == [{"type": "text", "text": "whole"}]
    assert (message["id"], message["usage"]) == (truth.message_id, truth.usage)
    assert message["stop_reason"] == truth.stop_reason == "end_turn"
    assert not truth.streaming


def test_step_follows_from_the_request_alone(model):
    """The step is the count of answers since the prompt; reminders and results are no prompts."""
    model.script({"go": [Reply([Text("first")]), Reply([Text("second")]), Reply([Text("third")])]})
    reminder = {"type": "text", "text": "<system-reminder>go</system-reminder>"}
    prompt = [reminder, {"type": "text", "text": "go now"}, reminder]
    result = [{"type": "tool_result", "tool_use_id": "t", "content": "go"}, reminder]

    _, second = post(model, body_of("old", "x", prompt, "first", result, stream=False))
    _, first = post(model, body_of("old", "x", prompt, stream=False))
    _, past = post(model, body_of("go", "1", result, "2", result, "3", result, stream=False))

    said = [json.loads(answer)["content"][0]["text"] for answer in (second, first, past)]
    assert said[:2] == ["second", "first"]
    assert said[2] not in {"first", "second", "third"}


def test_numbers_never_repeat(model):
    """Each physical attempt has ids and usage of its own, also when many come at once."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: post(model, body_of("anything")), range(24)))

    truth = model.calls()
    assert len(truth) == 24
    for name in ("request_id", "message_id"):
        assert len({getattr(attempt, name) for attempt in truth}) == 24
    for name in ("input_tokens", "output_tokens", "cache_read_input_tokens"):
        assert len({attempt.usage[name] for attempt in truth}) == 24


def test_failures_meet_the_first_attempts(model):
    """A step's failures are met in order by attempts of the same request, then it is answered."""
    limited = HttpError(429, headers={"retry-after": "7"})
    odd = HttpError(502, body=b"<html>")
    model.script({"go": [Reply([Text("at last")], failures=[limited, HttpError(529), odd])]})

    answers = [post(model, body_of("go")) for _ in range(4)]

    assert [response.status for response, _ in answers] == [429, 529, 502, 200]
    assert answers[0][0].headers["retry-after"] == "7"
    assert json.loads(answers[0][1])["error"]["type"] == "rate_limit_error"
    assert json.loads(answers[1][1])["error"]["type"] == "overloaded_error"
    assert answers[2][1] == b"<html>"
    truth = model.calls()
    assert [attempt.try_number for attempt in truth] == [1, 2, 3, 4]
    assert [attempt.outcome for attempt in truth] == ["http_error"] * 3 + ["answered"]
    assert [response.headers["request-id"] for response, _ in answers] == [
        attempt.request_id for attempt in truth
    ]


def test_another_session_meets_the_failures_anew(model):
    """Attempts are counted per conversation."""
    model.script({"go": [Reply([Text("yes")], failures=[HttpError(500)])]})

    statuses = [
        post(model, body_of("go"), headers={"X-Claude-Code-Session-Id": session})[0].status
        for session in ("one", "two", "one", "two")
    ]

    assert statuses == [500, 500, 200, 200]


def test_cut_loses_the_connection_mid_stream(model):
    """After a cut the client has the first events and no end of the body."""
    model.script({"go": [Reply([Text("never whole")], failures=[Cut(after_events=4)])]})

    with pytest.raises(http.client.IncompleteRead) as cut:
        post(model, body_of("go"))

    assert len(events_of(cut.value.partial)) == 4
    [truth] = model.calls()
    assert (truth.outcome, truth.stop_reason) == ("cut", None)


def test_clean_cut_ends_the_body_early(model):
    """A clean cut is a whole HTTP body that lacks the end of the message."""
    model.script({"go": [Reply([Text("never")], failures=[Cut(3, clean=True), Cut(999)])]})

    _, stream = post(model, body_of("go"))
    with pytest.raises(http.client.IncompleteRead):
        post(model, body_of("go"))

    assert [event["type"] for event in events_of(stream)][-1] == "content_block_start"
    assert [attempt.outcome for attempt in model.calls()] == ["cut", "cut"]


def test_cut_without_streaming(model):
    """Without streaming a cut loses the connection before the announced length."""
    model.script({"go": [Reply([Text("never")], failures=[Cut()])]})

    with pytest.raises(http.client.IncompleteRead):
        post(model, body_of("go", stream=False))

    assert model.calls()[0].outcome == "cut"


def test_error_event_ends_the_stream(model):
    """An error mid-stream is an `error` event in a 200, or a status without streaming."""
    failures = [StreamError(after_events=4), StreamError()]
    model.script({"go": [Reply([Text("never")], failures=failures)]})

    response, stream = post(model, body_of("go"))
    whole, _ = post(model, body_of("go", stream=False))

    assert response.status == 200
    assert events_of(stream)[-1]["error"]["type"] == "overloaded_error"
    assert whole.status == 529
    assert [attempt.outcome for attempt in model.calls()] == ["stream_error", "http_error"]


def test_held_reply_waits_for_its_gate(model):
    """A held reply sends the events before its hold, and the rest when the gate opens."""
    model.script({"go": [Reply([Text("held")], hold=Hold("later", after_events=2))]})
    answers = []
    asking = threading.Thread(target=lambda: answers.append(post(model, body_of("go"))))
    asking.start()

    model.wait_until_held("later", LIMIT)
    assert model.calls()[0].outcome is None
    model.gate("later").set()
    asking.join(LIMIT)

    assert events_of(answers[0][1])[-1] == {"type": "message_stop"}


def test_client_that_leaves_is_told_in_the_truth(model):
    """A client that hangs up while its reply is held ends the attempt as an abort."""
    model.script({"go": [Reply([Text("held")], hold=Hold("never", after_events=2))]})
    connection = connect(model)
    connection.request("POST", "/v1/messages", json.dumps(body_of("go")))
    response = connection.getresponse()
    model.wait_until_held("never", LIMIT)

    response.close()
    connection.close()

    left = model.wait_for_request(lambda attempt: attempt.outcome is not None, LIMIT)
    assert (left.outcome, left.stop_reason) == ("client_abort", None)


def test_wait_says_what_came_instead(model):
    """A wait in vain names the requests that did come."""
    post(model, body_of("go"))

    with pytest.raises(TimeoutError, match="main"):
        model.wait_for_request(lambda attempt: attempt.request_class == "compaction", 0.01)


@pytest.mark.parametrize(
    ("headers", "more", "expected"),
    [
        ({}, {}, "main"),
        ({"X-Claude-Code-Agent-Id": "a1"}, {}, "subagent"),
        ({"X-Claude-Code-Request-Class": "subagent"}, {}, "subagent"),
        ({"X-Claude-Code-Session-Id": "s"}, {"tools": []}, "auxiliary"),
        ({"X-Claude-Code-Compaction": "manual"}, {}, "compaction"),
    ],
)
def test_tells_side_requests_from_the_conversation(model, headers, more, expected):
    """Subagents, classifiers and compaction are known by headers or by what they lack."""
    post(model, body_of("go") | more, headers=headers)

    assert model.calls()[0].request_class == expected


def test_session_in_the_metadata_is_found(model):
    """Without a session header the session is read from `metadata.user_id`."""
    post(model, body_of("go", metadata={"user_id": json.dumps({"session_id": "s-1"})}))
    post(model, body_of("go", metadata={"user_id": "{not json"}))

    assert [attempt.session_id for attempt in model.calls()] == ["s-1", None]


def test_answers_what_is_not_a_message_politely(model):
    """HEAD, GET, token counts and unknown paths get an answer on a connection that stays."""
    connection = connect(model)
    statuses = []
    for method, path, body in (
        ("HEAD", "/", None),
        ("GET", "/anything", None),
        ("POST", "/v1/messages/count_tokens", b'{"messages": []}'),
        ("POST", "/v1/unknown", b"{}"),
    ):
        connection.request(method, path, body)
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
    connection.close()

    assert statuses == [200, 200, 200, 404]
    assert model.calls() == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"messages": 7, "stream": true}',
        b'{"messages": [7, {"role": "user", "content": [7, {"text": 7}]}], "metadata": 7}',
        b'{"model": 7, "tools": "x", "messages": [{"role": "assistant"}], "unknown": {}}',
    ],
)
def test_garbage_gets_an_answer(model, garbage):
    """A request that makes no sense gets a 400 or the default reply, and the next one is served."""
    response, _ = post(model, garbage)
    following, _ = post(model, body_of("go"))

    assert response.status in {200, 400}
    assert following.status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: -1",
        b"content-length: many",
        b"content-length: 99999999999",
        b"transfer-encoding: chunked\r\n\r\nzz",
        b"transfer-encoding: chunked\r\n\r\n-5",
    ],
)
def test_broken_framing_gets_an_error(model, head):
    """A length that cannot be is answered with an error, not waited for."""
    with socket.create_connection(("127.0.0.1", urlsplit(model.url).port), LIMIT) as connection:
        connection.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n\r\n")
        answer = connection.recv(65536)

    assert answer.split(b" ", 2)[1][:2] == b"40" or answer.split(b" ", 2)[1] == b"413"


def test_chunked_request_is_read(model):
    """A request body may come in chunks, as a gateway may send it."""
    model.script({"go": [Reply([Text("read")])]})
    data = json.dumps(body_of("go", stream=False)).encode()
    connection = connect(model)
    connection.request("POST", "/v1/messages", iter([data[:9], data[9:]]), encode_chunked=True)
    answer = json.loads(connection.getresponse().read())
    connection.close()

    assert answer["content"][0]["text"] == "read"


def test_request_ids_can_be_switched_off():
    """Without request ids no response names one, as behind some gateways."""
    with ScriptedModel(request_ids=False) as model:
        response, _ = post(model, body_of("go"))

    assert response.headers["request-id"] is None
    assert model.calls()[0].request_id is None


def test_close_ends_what_is_open():
    """Closing releases held replies and idle connections at once."""
    model = ScriptedModel({"go": [Reply([Text("held")], hold=Hold("never"))]})
    idle = connect(model)
    idle.connect()
    held = connect(model)
    held.request("POST", "/v1/messages", json.dumps(body_of("go")))
    model.wait_until_held("never", LIMIT)

    model.close()

    idle.close()
    held.close()

"""LiteLLM's log records, as LiteLLM 1.106.2 gave them to the callback in `examples/gateways`.

Recorded in front of scripted models: three APIs, each answered, streamed and refused.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracebridge.gateways.litellm import call_of_record
from tracebridge.model import Usage

RECORDS = [
    json.loads(line)
    for line in (Path(__file__).parent / "records" / "litellm.jsonl").read_text().splitlines()
]
WHOLE, STREAMED, REFUSED = RECORDS[:3], RECORDS[3:6], RECORDS[6:]


@pytest.mark.parametrize(
    ("record", "dialect", "response_id"),
    [
        (WHOLE[0], "anthropic.messages", "msg_0001"),
        (WHOLE[1], "openai.responses", "resp_0001"),
        (WHOLE[2], "openai.chat_completions", "chatcmpl-0001"),
        # LiteLLM makes up an id where it should know the provider's.
        (STREAMED[0], "anthropic.messages", None),
        (STREAMED[1], "openai.responses", "resp_0002"),
        (STREAMED[2], "openai.chat_completions", "chatcmpl-0002"),
    ],
)
def test_an_answer(record, dialect, response_id):
    """Ids are the provider's, tokens those of the model, cache and thinking told apart."""
    call = call_of_record(record)
    number = 1 if record in WHOLE else 2
    assert (call.dialect, call.response_id) == (dialect, response_id)
    assert call.request_id == (None if response_id is None else f"req_000{number}")
    assert call.streaming == (number == 2)
    assert call.usage == Usage(
        input_tokens=1150 + 19 * number,
        output_tokens=40 + 3 * number,
        cache_read_tokens=1000 + 11 * number,
        cache_write_tokens=50 + number,
        reasoning_tokens=10 + number,
    )
    assert call.response_headers["x-litellm-call-id"] == record["litellm_call_id"]
    assert call.requested_model == call.model != record["model"]
    assert 0 < call.end_ns - call.start_ns < 1_000_000_000
    assert call.error_type is None


@pytest.mark.parametrize("record", REFUSED, ids=lambda record: record["call_type"])
def test_a_refusal(record):
    """The status is the error's type; there is no answer, and the provider's request id is kept."""
    call = call_of_record(record)
    assert (call.status_code, call.error_type, call.response_id, call.usage) == (
        400,
        "400",
        None,
        None,
    )
    assert call.request_id == "req_0005"


def test_who_calls():
    """Agents are known by their headers, and Claude Code by what it says of its user too."""
    anthropic, responses, chat = map(call_of_record, WHOLE)
    assert (anthropic.identity.agent, anthropic.identity.session_id) == ("claude-code", "sess-1")
    assert (responses.identity.agent, responses.identity.turn_key) == ("codex-cli", "t2")
    assert chat.identity is None
    bare = {**WHOLE[0], "metadata": {}}
    assert call_of_record(bare).identity.session_id == "sess-1"
    named = {**WHOLE[2], "metadata": {"user_api_key_alias": "ada"}}
    assert call_of_record(named).client_name == "ada"


@pytest.mark.parametrize(
    "response",
    [
        {"choices": [{"message": {"tool_calls": [{"id": "t1"}, {"id": "t2"}]}}]},
        {"content": [{"type": "tool_use", "id": "t1"}, {"type": "tool_use", "id": "t2"}]},
        {"output": [{"type": "function_call", "call_id": "t1"}, {"call_id": "t2"}]},
    ],
)
def test_tool_calls(response):
    """Records of `generic_api` hold the answer; of that the ids of tool calls are kept."""
    assert call_of_record({**WHOLE[0], "response": response}).tool_call_ids == ("t1", "t2")


def test_an_attempt_and_the_next_are_two_calls():
    """They share LiteLLM's id of the request."""
    failed = call_of_record({**WHOLE[0], "status": "failure"})
    assert failed.call_id != call_of_record(WHOLE[0]).call_id
    assert call_of_record(WHOLE[0]).call_id == call_of_record(dict(WHOLE[0])).call_id


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(changes=st.dictionaries(st.sampled_from([*WHOLE[0], "response", "error_str"]), ANY))
def test_any_shape(changes):
    """Whatever stands in a record: a call in order, or none."""
    call = call_of_record(WHOLE[0] | changes)
    assert call is None or 0 <= call.start_ns <= call.end_ns < 2**63

"""The scripted model in the shape of OpenAI's Responses API, as Codex CLI calls it.

The script, the gates and the ground truth are those of `ScriptedModel`; only what goes over the
wire is another. A `ToolUse` of `apply_patch` with a "patch" is a custom tool call whose input that
is; a name with a dot is a function in a namespace. The truth's usage keeps Anthropic's names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

from tracebridge.testing.scripted_model import (
    COMPACTION_INSTRUCTION,
    Attempt,
    Handler,
    HttpError,
    JsonObject,
    ScriptedModel,
    _Play,
    handler_of,
)


class ScriptedResponses(ScriptedModel):
    """Serve a script on loopback at any path that ends in `/responses`."""

    @staticmethod
    def _handler(play: _Play) -> type[BaseHTTPRequestHandler]:
        return handler_of(play, _ResponsesHandler)


class _ResponsesHandler(Handler):
    _response: JsonObject

    def _serve(self, attempt: Attempt, path: str, body: JsonObject) -> None:
        if path.endswith("/responses"):
            self._answer(attempt, _as_messages(attempt.headers, body))
        else:
            self._send_error(attempt, HttpError(404, f"no such endpoint: {path}"))

    def send_header(self, keyword: str, value: str) -> None:
        super().send_header("x-request-id" if keyword == "request-id" else keyword, value)

    def _send_head(self, attempt: Attempt, status: int, headers: Mapping[str, str]) -> None:
        # What the plan could not find out by the names of another API's client.
        if attempt.path.rstrip("/").endswith("/responses"):
            self.play.update(attempt, **_caller(attempt.headers, attempt.body or {}))
        super()._send_head(attempt, status, headers)

    def _document(self, message: JsonObject) -> JsonObject:
        return _response(message)

    def _facts(self, message: JsonObject) -> JsonObject:
        response = _response(message)
        return {
            "message_id": response["id"],
            "tool_use_ids": _call_ids(response),
            "usage": message["usage"],
            "stop_reason": "completed",
        }

    def _stream_events(self, message: JsonObject) -> Iterator[JsonObject]:
        self._message = message
        self._response = _response(message)
        return _events(self._response)

    def _note(self, attempt: Attempt, event: JsonObject) -> None:
        match event:
            case {"type": "response.created", "response": response}:
                self.play.update(attempt, message_id=response["id"])
            case {"type": "response.output_item.added", "item": {"call_id": new}}:
                self.play.update(attempt, tool_use_ids=[*attempt.tool_use_ids, new])
            case {"type": "response.completed"}:
                usage = self._message["usage"]
                self.play.update(attempt, usage=usage, stop_reason="completed")

    def _send_event(self, event: JsonObject) -> None:
        if event["type"] == "error":
            error = {"code": event["error"]["type"], "message": event["error"]["message"]}
            failed = {**self._response, "status": "failed", "output": [], "usage": None}
            event = {"type": "response.failed", "response": {**failed, "error": error}}
        super()._send_event(event)


def _metadata(headers: Mapping[str, str], body: JsonObject) -> JsonObject:
    text = headers.get("x-codex-turn-metadata") or (body.get("client_metadata") or {}).get(
        "x-codex-turn-metadata"
    )
    found = json.loads(text) if isinstance(text, str) else {}
    return found if isinstance(found, dict) else {}


def _caller(headers: Mapping[str, str], body: JsonObject) -> JsonObject:
    """Return what the truth says of who is calling, as far as the client says so."""
    told = _metadata(headers, body)
    if not told:
        return {}
    request_class = "main"
    if told.get("request_kind") == "compaction":
        request_class = "compaction"
    elif told.get("thread_source") == "subagent":
        request_class = "subagent"
    elif told.get("thread_source") == "thread_title":
        request_class = "auxiliary"
    is_subagent = told.get("thread_source") == "subagent"
    return {
        "session_id": told.get("session_id"),
        "prompt_id": told.get("root_turn_id") or told.get("turn_id"),
        "agent_id": told.get("thread_id") if is_subagent else None,
        "request_class": request_class,
    }


def _as_messages(headers: Mapping[str, str], body: JsonObject) -> JsonObject:
    """Return the request in the shape by which the script finds its reply."""
    messages: list[JsonObject] = []
    items = body.get("input")
    if isinstance(items, str):
        items = [{"type": "message", "role": "user", "content": items}]
    # Everything that the model said in one go was one step.
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        spoken = item.get("role") == "assistant" or item.get("type") in {
            "reasoning",
            "function_call",
            "custom_tool_call",
        }
        if not spoken:
            messages.append({"role": "user", "content": _heard(item.get("content"))})
        elif not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": []})
    if _metadata(headers, body).get("request_kind") == "compaction":
        messages.append({"role": "user", "content": COMPACTION_INSTRUCTION})
    return {**body, "messages": messages}


def _heard(content: Any) -> Any:
    if not isinstance(content, list):
        return content or []
    # The task that an agent gives another is told as if it were encrypted.
    return [
        {"text": part.get("text") or part.get("encrypted_content")}
        for part in content
        if isinstance(part, dict)
    ]


def _response(message: JsonObject) -> JsonObject:
    response_id = str(message["id"]).replace("msg_", "resp_")
    usage = message["usage"]
    read, write = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    input_tokens = usage["input_tokens"] + read + write
    return {
        "id": response_id,
        "object": "response",
        "created_at": 1_700_000_000,
        "model": message["model"],
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "output": [
            _item(response_id, index, block) for index, block in enumerate(message["content"])
        ],
        "usage": {
            "input_tokens": input_tokens,
            "input_tokens_details": {"cached_tokens": read, "cache_write_tokens": write},
            "output_tokens": usage["output_tokens"],
            "output_tokens_details": {
                "reasoning_tokens": usage["output_tokens_details"]["thinking_tokens"]
            },
            "total_tokens": input_tokens + usage["output_tokens"],
        },
    }


def _item(response_id: str, index: int, block: JsonObject) -> JsonObject:
    own = f"{response_id.removeprefix('resp_')}_{index}"
    if block["type"] == "thinking":
        summary = [{"type": "summary_text", "text": block["thinking"]}]
        return {
            "type": "reasoning",
            "id": f"rs_{own}",
            "summary": summary,
            "encrypted_content": "c2NyaXB0ZWQ=",
        }
    if block["type"] == "text":
        content = [{"type": "output_text", "text": block["text"], "annotations": []}]
        return {
            "type": "message",
            "id": f"msg_{own}",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }
    call_id = str(block["id"]).replace("toolu_", "call_")
    namespace, _, name = str(block["name"]).rpartition(".")
    if name == "apply_patch" and "patch" in block["input"]:
        return {
            "type": "custom_tool_call",
            "id": f"ctc_{own}",
            "call_id": call_id,
            "name": name,
            "input": block["input"]["patch"],
            "status": "completed",
        }
    return {
        "type": "function_call",
        "id": f"fc_{own}",
        "call_id": call_id,
        "name": name,
        **({"namespace": namespace} if namespace else {}),
        "arguments": json.dumps(block["input"]),
        "status": "completed",
    }


def _call_ids(response: JsonObject) -> list[str]:
    return [item["call_id"] for item in response["output"] if "call_id" in item]


def _events(response: JsonObject) -> Iterator[JsonObject]:
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    number = iter(range(1_000_000))
    yield {"type": "response.created", "response": begun, "sequence_number": next(number)}
    yield {"type": "response.in_progress", "response": begun, "sequence_number": next(number)}
    for index, item in enumerate(response["output"]):
        place = {"output_index": index, "item_id": item["id"]}
        empty = {**item, **_emptied(item), "status": "in_progress"}
        added = {"type": "response.output_item.added", "output_index": index, "item": empty}
        yield {**added, "sequence_number": next(number)}
        kind, text = _said(item)
        size = max(1, -(-len(text) // 3))
        if kind == "reasoning_summary_text":
            part = {"type": "summary_text", "text": ""}
            event = {"type": "response.reasoning_summary_part.added", "part": part}
            yield {**event, **place, "summary_index": 0, "sequence_number": next(number)}
        for start in range(0, len(text), size):
            delta: dict[str, Any] = {"type": f"response.{kind}.delta", **place}
            delta["summary_index" if kind == "reasoning_summary_text" else "content_index"] = 0
            yield {
                **delta,
                "delta": text[start : start + size],
                "sequence_number": next(number),
            }
        done = {"type": "response.output_item.done", "output_index": index, "item": item}
        yield {**done, "sequence_number": next(number)}
    yield {"type": "response.completed", "response": response, "sequence_number": next(number)}


def _emptied(item: JsonObject) -> JsonObject:
    """Return an item's bulk as it is before the first delta."""
    match item["type"]:
        case "reasoning":
            return {"summary": []}
        case "message":
            return {"content": []}
        case "custom_tool_call":
            return {"input": ""}
        case _:
            return {"arguments": ""}


def _said(item: JsonObject) -> tuple[str, str]:
    """Return the name of an item's deltas, and the text that they make up."""
    match item["type"]:
        case "reasoning":
            return "reasoning_summary_text", item["summary"][0]["text"]
        case "message":
            return "output_text", item["content"][0]["text"]
        case "custom_tool_call":
            return "custom_tool_call_input", item["input"]
        case _:
            return "function_call_arguments", item["arguments"]

"""The scripted model in the shape of OpenAI's Chat Completions, as most other gateways speak it.

The script, the gates and the ground truth are those of `ScriptedModel`; only what goes over the
wire is another. The truth's usage keeps Anthropic's names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

from tracebridge.testing.scripted_model import (
    Attempt,
    Handler,
    HttpError,
    JsonObject,
    ScriptedModel,
    _Play,
    handler_of,
)

_PATH = "/chat/completions"
# Stands behind the last chunk; it alone is no JSON.
_DONE: JsonObject = {"done": True}


class ScriptedChat(ScriptedModel):
    """Serve a script on loopback at any path that ends in `/chat/completions`."""

    @staticmethod
    def _handler(play: _Play) -> type[BaseHTTPRequestHandler]:
        return handler_of(play, _ChatHandler)


class _ChatHandler(Handler):
    def _serve(self, attempt: Attempt, path: str, body: JsonObject) -> None:
        if path.endswith(_PATH):
            # Messages have the roles and texts by which the script finds its reply.
            self._answer(attempt, body)
        else:
            self._send_error(attempt, HttpError(404, f"no such endpoint: {path}"))

    def send_header(self, keyword: str, value: str) -> None:
        super().send_header("x-request-id" if keyword == "request-id" else keyword, value)

    def _document(self, message: JsonObject) -> JsonObject:
        choice = {"index": 0, "message": _said(message), "finish_reason": _reason(message)}
        return {**_head(message, "chat.completion"), "choices": [choice], "usage": _usage(message)}

    def _facts(self, message: JsonObject) -> JsonObject:
        return {
            "message_id": _id(message),
            "tool_use_ids": [call["id"] for call in _tool_calls(message)],
            "usage": message["usage"],
            "stop_reason": _reason(message),
        }

    def _stream_events(self, message: JsonObject) -> Iterator[JsonObject]:
        self._message = message
        head = _head(message, "chat.completion.chunk")

        def chunk(delta: JsonObject, reason: str | None = None) -> JsonObject:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return {**head, "choices": [choice], "usage": None}

        said = _said(message)
        yield chunk({"role": "assistant", "content": ""})
        for name in ("reasoning_content", "content"):
            text = said.get(name) or ""
            size = max(1, -(-len(text) // 3))
            for start in range(0, len(text), size):
                yield chunk({name: text[start : start + size]})
        for index, call in enumerate(_tool_calls(message)):
            arguments = call["function"]["arguments"]
            opened = {**call, "function": {**call["function"], "arguments": ""}}
            yield chunk({"tool_calls": [{"index": index, **opened}]})
            half = len(arguments) // 2
            for piece in (arguments[:half], arguments[half:]):
                yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        yield chunk({}, _reason(message))
        yield {**head, "choices": [], "usage": _usage(message)}
        yield _DONE

    def _note(self, attempt: Attempt, event: JsonObject) -> None:
        facts = self._facts(self._message)
        if event is _DONE:
            return
        if not event["choices"]:
            self.play.update(attempt, usage=facts["usage"])
            return
        self.play.update(attempt, message_id=event["id"])
        choice = event["choices"][0]
        new = [call["id"] for call in choice["delta"].get("tool_calls", ()) if "id" in call]
        if new:
            self.play.update(attempt, tool_use_ids=[*attempt.tool_use_ids, *new])
        if choice["finish_reason"]:
            self.play.update(attempt, stop_reason=choice["finish_reason"])

    def _send_event(self, event: JsonObject) -> None:
        text = "[DONE]" if event is _DONE else json.dumps(event)
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def _id(message: JsonObject) -> str:
    return str(message["id"]).replace("msg_", "chatcmpl-")


def _head(message: JsonObject, kind: str) -> JsonObject:
    return {
        "id": _id(message),
        "object": kind,
        "created": 1_700_000_000,
        "model": message["model"],
    }


def _reason(message: JsonObject) -> str:
    return "tool_calls" if message["stop_reason"] == "tool_use" else "stop"


def _said(message: JsonObject) -> JsonObject:
    texts = {"thinking": "", "text": ""}
    for block in message["content"]:
        if block["type"] in texts:
            texts[block["type"]] += block[block["type"]]
    said: JsonObject = {"role": "assistant", "content": texts["text"] or None}
    if texts["thinking"]:
        said["reasoning_content"] = texts["thinking"]
    if calls := _tool_calls(message):
        said["tool_calls"] = calls
    return said


def _tool_calls(message: JsonObject) -> list[JsonObject]:
    return [
        {
            "id": str(block["id"]).replace("toolu_", "call_"),
            "type": "function",
            "function": {"name": block["name"], "arguments": json.dumps(block["input"])},
        }
        for block in message["content"]
        if block["type"] == "tool_use"
    ]


def _usage(message: JsonObject) -> JsonObject:
    usage = message["usage"]
    read, write = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    prompt = usage["input_tokens"] + read + write
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage["output_tokens"],
        "total_tokens": prompt + usage["output_tokens"],
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": write},
        "completion_tokens_details": {
            "reasoning_tokens": usage["output_tokens_details"]["thinking_tokens"]
        },
    }

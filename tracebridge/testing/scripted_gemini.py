"""The scripted model in the shape of Google's generateContent, for Gemini CLI.

Script, gates, failures and ground truth are those of `ScriptedModel`; the truth of an attempt's
usage stands in the same fields whatever the shape, with nothing written to a cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

from tracebridge.fields import dict_of, dicts_in, text_of
from tracebridge.testing.scripted_model import (
    Attempt,
    Handler,
    HttpError,
    JsonObject,
    ScriptedModel,
    _Play,
    handler_of,
)

_PATH = re.compile(r"/models/([^/:]+):(\w+)$")
_STATUS_WORDS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


class ScriptedGemini(ScriptedModel):
    """Serve a script on loopback, below whatever prefix the client puts before `/models/…`."""

    @staticmethod
    def _handler(play: _Play) -> type[BaseHTTPRequestHandler]:
        return handler_of(play, _GeminiHandler)


class _GeminiHandler(Handler):
    def _serve(self, attempt: Attempt, path: str, body: JsonObject) -> None:
        found = _PATH.search(path)
        method = found[2] if found else ""
        if method == "countTokens":
            self.play.update(attempt, request_class="count_tokens")
            self._send_json(
                attempt, json.dumps({"totalTokens": len(json.dumps(body)) // 4}).encode()
            )
        elif found and method in {"generateContent", "streamGenerateContent"}:
            self._answer(attempt, _as_messages(found[1], method, body, attempt))
            if _is_subagents(body):
                self.play.update(attempt, request_class="subagent")
            elif "<state_snapshot>" in json.dumps(body.get("systemInstruction")):
                self.play.update(attempt, request_class="compaction")
        else:
            self._send_error(attempt, HttpError(404, f"no such method: {path}"))

    def _document(self, message: JsonObject) -> JsonObject:
        return _chunk(message, message["content"], whole=True)

    def _stream_events(self, message: JsonObject) -> Iterator[JsonObject]:
        for block in message["content"]:
            if block["type"] == "tool_use":
                yield _chunk(message, [block], whole=False)
            else:
                kind = block["type"]
                middle = len(block[kind]) // 2
                # A thought comes as a whole, a text in pieces.
                pieces = (block[kind][:middle], block[kind][middle:])
                for piece in filter(None, [block[kind]] if kind == "thinking" else pieces):
                    yield _chunk(message, [{"type": kind, kind: piece}], whole=False)
        yield _chunk(message, [{"type": "text", "text": ""}], whole=True)

    def _note(self, attempt: Attempt, event: JsonObject) -> None:
        candidates = dicts_in(event.get("candidates"))
        for candidate in candidates:
            for part in dicts_in(dict_of(candidate.get("content")).get("parts")):
                if call := dict_of(part.get("functionCall")):
                    self.play.update(attempt, tool_use_ids=[*attempt.tool_use_ids, call["id"]])
            if "finishReason" in candidate:
                usage = _neutral_usage(dict_of(event.get("usageMetadata")))
                self.play.update(attempt, usage=usage, stop_reason=candidate["finishReason"])
        if candidates:
            self.play.update(attempt, message_id=event["responseId"])

    def _send_event(self, event: JsonObject) -> None:
        if event.get("type") == "error":
            event = {"error": {"code": 503, "message": "scripted failure", "status": "UNAVAILABLE"}}
        data = f"data: {json.dumps(event)}\r\n\r\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _send_json(self, attempt: Attempt, body: bytes, **facts: object) -> None:
        if "message_id" in facts:
            document = json.loads(body)
            self._note(attempt, document)
            facts = {}
        super()._send_json(attempt, body, **facts)

    def _send_error(self, attempt: Attempt, error: HttpError) -> None:
        if error.body is None:
            word = _STATUS_WORDS.get(error.status, "UNKNOWN")
            told = {"code": error.status, "message": error.message, "status": word}
            error = replace(error, body=json.dumps({"error": told}).encode())
        super()._send_error(attempt, error)


def _is_subagents(body: JsonObject) -> bool:
    # No header says so, but it alone has this tool, to say that it is done.
    tools = dicts_in(body.get("tools"))
    return any(
        declared.get("name") == "complete_task"
        for tool in tools
        for declared in dicts_in(tool.get("functionDeclarations"))
    )


def _as_messages(model: str, method: str, body: JsonObject, attempt: Attempt) -> JsonObject:
    """Return what the script goes by: the request in the terms of `ScriptedModel`."""
    messages = [
        {
            "role": "assistant" if content.get("role") == "model" else "user",
            "content": [
                {"type": "text", "text": text}
                for part in dicts_in(content.get("parts"))
                if (text := text_of(part, "text")) is not None
            ],
        }
        for content in dicts_in(body.get("contents"))
    ]
    session = attempt.headers.get("x-tracebridge-session", "")
    return {
        "model": model,
        "stream": method == "streamGenerateContent",
        "tools": body.get("tools"),
        "messages": messages,
        "metadata": {"user_id": json.dumps({"session_id": session.rpartition("/")[2] or None})},
    }


def _chunk(message: JsonObject, blocks: list[JsonObject], *, whole: bool) -> JsonObject:
    candidate: JsonObject = {
        "content": {"role": "model", "parts": [_part(block) for block in blocks]},
        "index": 0,
    }
    usage = message["usage"]
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    thoughts = usage["output_tokens_details"]["thinking_tokens"]
    # Before the end the counts are not the truth, as with the real API.
    told: JsonObject = {"promptTokenCount": prompt, "totalTokenCount": prompt}
    if whole:
        candidate["finishReason"] = "STOP"
        told = {
            "promptTokenCount": prompt,
            "candidatesTokenCount": usage["output_tokens"] - thoughts,
            "totalTokenCount": prompt + usage["output_tokens"],
            "cachedContentTokenCount": usage["cache_read_input_tokens"],
        }
        if thoughts:
            told["thoughtsTokenCount"] = thoughts
    return {
        "candidates": [candidate],
        "usageMetadata": told,
        "modelVersion": message["model"],
        "responseId": message["id"],
    }


def _part(block: JsonObject) -> JsonObject:
    if block["type"] == "thinking":
        return {"text": block["thinking"], "thought": True}
    if block["type"] == "text":
        return {"text": block["text"]}
    return {
        "functionCall": {"id": block["id"], "name": block["name"], "args": block["input"]},
    }


def _neutral_usage(usage: JsonObject) -> JsonObject:
    cached = usage.get("cachedContentTokenCount", 0)
    thoughts = usage.get("thoughtsTokenCount", 0)
    return {
        "input_tokens": usage["promptTokenCount"] - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage["candidatesTokenCount"] + thoughts,
        "output_tokens_details": {"thinking_tokens": thoughts},
    }

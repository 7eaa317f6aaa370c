"""Anthropic's Messages API: its bodies in, facts about a call out.

Format facts (API version 2023-06-01, as Claude Code 2.1.329 uses it):
- `usage.input_tokens` leaves out what came from or went to the cache.
- The usage of `message_delta` is cumulative and replaces that of `message_start`, field by field;
  until then `output_tokens` is a placeholder.
- An `error` event may come in the middle of a stream whose status was 200.
- The whole stream has come when `message_stop` has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tracebridge.dialects import (
    EVENT_LIMIT,
    EventStream,
    RequestFacts,
    ResponseFacts,
    parse_body,
)
from tracebridge.dialects import ResponseParser as ResponseParserProtocol
from tracebridge.model import Usage

PROVIDER = "anthropic"

MESSAGES = "anthropic.messages"
COUNT_TOKENS = "anthropic.count_tokens"


def name_call(method: str, path: str) -> str | None:
    if method != "POST":
        return None
    path = path.rstrip("/")
    if path.endswith("/v1/messages"):
        return MESSAGES
    if path.endswith("/v1/messages/count_tokens"):
        return COUNT_TOKENS
    return None


def parse_request(name: str, body: bytes) -> RequestFacts:
    del name  # Both calls take the same body.
    try:
        request = parse_body(body, "messages")
        small = request.small
        last = _last_user_message(request.items)
        if last is not None:
            # What is asked for now; the history before it is what makes a body large.
            small["messages"] = [last]
        return RequestFacts(
            requested_model=_text(small.get("model")),
            streaming=small.get("stream") is True,
            tool_result_ids=() if last is None else _tool_result_ids(last),
            digest=request.digest,
            body=small,
        )
    except RecursionError as error:
        raise ValueError("the body is nested too deeply") from error


def response_parser(name: str, content_type: str) -> ResponseParserProtocol:
    if name == COUNT_TOKENS:
        return _NoFacts()
    if "text/event-stream" in content_type.lower():
        return _StreamParser()
    return _DocumentParser()


class _NoFacts:
    # Counting tokens uses none, so its answer must not become usage.
    def feed(self, data: bytes, time_ns: int) -> None:
        pass

    def facts(self) -> ResponseFacts:
        return ResponseFacts(ended=True)


class _Message:
    """What is known of the response's message so far."""

    def __init__(self) -> None:
        self.response_id: str | None = None
        self.model: str | None = None
        self.stop_reason: str | None = None
        self.usage: dict[str, Any] = {}
        self.tool_call_ids: list[str] = []
        self.blocks = 0
        self.error_type: str | None = None
        self.error_message: str | None = None

    def take_message(self, message: Any) -> None:
        if not isinstance(message, dict):
            return
        self.response_id = _text(message.get("id"))
        self.model = _text(message.get("model"))
        self.stop_reason = _text(message.get("stop_reason"))
        self.take_usage(message.get("usage"))
        content = message.get("content")
        for block in content if isinstance(content, list) else ():
            self.take_block(block)

    def take_block(self, block: Any) -> None:
        self.blocks += 1
        if isinstance(block, dict) and block.get("type") == "tool_use":
            tool_call_id = _text(block.get("id"))
            if tool_call_id is not None:
                self.tool_call_ids.append(tool_call_id)

    def take_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self.usage.update({key: value for key, value in usage.items() if value is not None})

    def take_error(self, document: dict[str, Any]) -> None:
        error = document.get("error")
        error = error if isinstance(error, dict) else {}
        self.error_type = _text(error.get("type")) or "error"
        self.error_message = _text(error.get("message"))

    def facts(
        self,
        *,
        output_is_known: bool,
        first_token_ns: int | None,
        ended: bool,
        understood: bool,
    ) -> ResponseFacts:
        return ResponseFacts(
            response_id=self.response_id,
            model=self.model,
            stop_reason=self.stop_reason,
            usage=_usage(self.usage, output_is_known=output_is_known),
            tool_call_ids=tuple(self.tool_call_ids),
            blocks=self.blocks or None,
            first_token_ns=first_token_ns,
            error_type=self.error_type,
            error_message=self.error_message,
            ended=ended,
            understood=understood,
        )


class _DocumentParser:
    def __init__(self) -> None:
        self._body = bytearray()
        self._overflowed = False

    def feed(self, data: bytes, time_ns: int) -> None:
        del time_ns  # A document comes as a whole; nothing in it has a time of its own.
        if len(self._body) + len(data) > EVENT_LIMIT:
            self._overflowed = True
        else:
            self._body += data

    def facts(self) -> ResponseFacts:
        message = _Message()
        document = None if self._overflowed else _decode(self._body)
        understood = isinstance(document, dict)
        if isinstance(document, dict):
            if document.get("type") == "error":
                message.take_error(document)
            else:
                message.take_message(document)
        return message.facts(
            output_is_known=True, first_token_ns=None, ended=understood, understood=understood
        )


class _StreamParser:
    def __init__(self) -> None:
        self._stream = EventStream()
        self._message = _Message()
        self._first_token_ns: int | None = None
        self._output_is_known = False
        self._ended = False
        self._understood = True

    def feed(self, data: bytes, time_ns: int) -> None:
        for name, text in self._stream.feed(data):
            # Most of a stream; only when the first one came matters.
            if name == b"content_block_delta" and self._first_token_ns is not None:
                continue
            event = _decode(text)
            if isinstance(event, dict):
                self._take(event, time_ns)
            else:
                self._understood = False

    def _take(self, event: dict[str, Any], time_ns: int) -> None:
        message = self._message
        match event.get("type"):
            case "message_start":
                message.take_message(event.get("message"))
            case "content_block_start":
                block = event.get("content_block")
                message.take_block(block)
                if _has_content(block):
                    self._note_token(time_ns)
            case "content_block_delta":
                self._note_token(time_ns)
            case "message_delta":
                delta = event.get("delta")
                if isinstance(delta, dict):
                    message.stop_reason = _text(delta.get("stop_reason")) or message.stop_reason
                message.take_usage(event.get("usage"))
                self._output_is_known = True
            case "message_stop":
                self._ended = True
                self._output_is_known = True
            case "error":
                message.take_error(event)

    def _note_token(self, time_ns: int) -> None:
        if self._first_token_ns is None:
            self._first_token_ns = time_ns

    def facts(self) -> ResponseFacts:
        return self._message.facts(
            output_is_known=self._output_is_known,
            first_token_ns=self._first_token_ns,
            ended=self._ended,
            understood=self._understood and not self._stream.overflowed,
        )


def _last_user_message(messages: Sequence[msgspec.Raw]) -> dict[str, Any] | None:
    for raw in reversed(messages):
        message = msgspec.json.decode(raw)
        if isinstance(message, dict) and message.get("role") == "user":
            return message
    return None


def _tool_result_ids(message: dict[str, Any]) -> tuple[str, ...]:
    # The earlier ones were carried by earlier requests too.
    content = message.get("content")
    return tuple(
        block["tool_use_id"]
        for block in (content if isinstance(content, list) else ())
        if isinstance(block, dict)
        and block.get("type") == "tool_result"
        and isinstance(block.get("tool_use_id"), str)
    )


def _usage(usage: dict[str, Any], *, output_is_known: bool) -> Usage | None:
    fresh = _count(usage.get("input_tokens"))
    cache_read = _count(usage.get("cache_read_input_tokens"))
    cache_write = _count(usage.get("cache_creation_input_tokens"))
    details = usage.get("output_tokens_details")
    result = Usage(
        input_tokens=None if fresh is None else fresh + (cache_read or 0) + (cache_write or 0),
        output_tokens=_count(usage.get("output_tokens")) if output_is_known else None,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        reasoning_tokens=_count(details.get("thinking_tokens"))
        if isinstance(details, dict)
        else None,
    )
    return None if result == Usage() else result


def _has_content(block: Any) -> bool:
    return isinstance(block, dict) and any(
        block.get(key) for key in ("text", "thinking", "data", "input", "content")
    )


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return value if is_count else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _decode(data: bytes | bytearray) -> Any:
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None

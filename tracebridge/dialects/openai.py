"""OpenAI's Responses, Chat Completions and Embeddings APIs: bodies in, facts about a call out.

Format facts (as Codex CLI 0.169 and the AI SDK use them, and servers that follow OpenAI's lead):
- `input_tokens` and `prompt_tokens` include what came from the cache, and the output counts
  include reasoning.
- A Responses stream ends with `response.completed`, `.incomplete` or `.failed`, whose response
  repeats everything; before that its usage is null.
- A tool call has an item id and a call id; results and agents name the call id.
- Of an item of reasoning clients make one block for each summary, and one if it has none.
- A Chat stream tells usage only when asked to, in a chunk of its own behind the finish reason;
  some servers repeat it on each chunk, cumulative.
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
from tracebridge.fields import count_of, dict_of, dicts_in, text_of
from tracebridge.model import Usage

PROVIDER = "openai"

RESPONSES = "openai.responses"
CHAT_COMPLETIONS = "openai.chat_completions"
EMBEDDINGS = "openai.embeddings"
_NAME_OF_PATH = {
    "/responses": RESPONSES,
    "/chat/completions": CHAT_COMPLETIONS,
    "/embeddings": EMBEDDINGS,
}
_CONVERSATION = {RESPONSES: "input", CHAT_COMPLETIONS: "messages", EMBEDDINGS: "input"}

# Whichever name a server gives to what its model thought.
_KINDS = {"thought": ("reasoning_content", "reasoning"), "text": ("content",)}


def name_call(method: str, path: str) -> str | None:
    if method != "POST":
        return None
    path = path.rstrip("/")
    return next((name for end, name in _NAME_OF_PATH.items() if path.endswith(end)), None)


def parse_request(name: str, body: bytes) -> RequestFacts:
    try:
        request = parse_body(body, _CONVERSATION[name])
        return RequestFacts(
            requested_model=text_of(request.small, "model"),
            streaming=request.small.get("stream") is True,
            tool_result_ids=() if name == EMBEDDINGS else _tool_result_ids(request.items),
            digest=request.digest,
            body=request.small,
        )
    except RecursionError as error:
        raise ValueError("the body is nested too deeply") from error


def response_parser(name: str, content_type: str) -> ResponseParserProtocol:
    answer = _Response() if name == RESPONSES else _Completion()
    if "text/event-stream" in content_type.lower():
        return _StreamParser(answer)
    return _DocumentParser(answer)


class _Answer:
    """What is known of an answer so far."""

    def __init__(self) -> None:
        self.response_id: str | None = None
        self.model: str | None = None
        self.stop_reason: str | None = None
        self.usage: Usage | None = None
        # As keys, since a stream names a call more than once.
        self.tool_call_ids: dict[str, None] = {}
        self.error_type: str | None = None
        self.error_message: str | None = None
        self.first_token_ns: int | None = None
        self.ended = False

    @property
    def blocks(self) -> int:
        """Return of how many texts, thoughts and tool calls the answer is made."""
        raise NotImplementedError

    def take_document(self, document: dict[str, Any]) -> None:
        """Take an answer that came as a whole."""
        raise NotImplementedError

    def take_event(self, event: dict[str, Any], time_ns: int) -> None:
        """Take one event of a stream."""
        raise NotImplementedError

    def note_token(self, time_ns: int) -> None:
        if self.first_token_ns is None:
            self.first_token_ns = time_ns

    def take_error(self, error: Any, otherwise: str) -> None:
        if isinstance(error, str):
            error = {"message": error}
        error = dict_of(error)
        self.error_type = text_of(error, "code") or text_of(error, "type") or otherwise
        self.error_message = text_of(error, "message")

    def facts(self, *, understood: bool) -> ResponseFacts:
        return ResponseFacts(
            response_id=self.response_id,
            model=self.model,
            stop_reason=self.stop_reason,
            usage=self.usage,
            tool_call_ids=tuple(self.tool_call_ids),
            blocks=self.blocks or None,
            first_token_ns=self.first_token_ns,
            error_type=self.error_type,
            error_message=self.error_message,
            ended=self.ended,
            understood=understood,
        )


class _Response(_Answer):
    def __init__(self) -> None:
        super().__init__()
        # By item, since a stream tells of each more than once.
        self._blocks: dict[str | None, int] = {}

    @property
    def blocks(self) -> int:
        return 0 if None in self._blocks else sum(self._blocks.values())

    def take_document(self, document: dict[str, Any]) -> None:
        self.ended = True
        if "status" not in document and document.get("error"):
            self.take_error(document["error"], "error")
        else:
            self._take_response(document)

    def take_event(self, event: dict[str, Any], time_ns: int) -> None:
        kind = text_of(event, "type") or ""
        if kind.endswith(".delta"):
            self.note_token(time_ns)
        elif kind in {"response.output_item.added", "response.output_item.done"}:
            self._take_item(event.get("item"))
        elif kind == "error":
            # The fields of the error stand in the event itself, or one level down.
            self.take_error(event.get("error") or {**event, "type": None}, "error")
        elif kind.startswith("response."):
            self._take_response(event.get("response"))
            if kind in {"response.completed", "response.incomplete", "response.failed"}:
                self.ended = True
            if kind == "response.failed" and self.error_type is None:
                self.take_error(None, "response_failed")

    def _take_response(self, response: Any) -> None:
        if not isinstance(response, dict):
            return
        self.response_id = text_of(response, "id") or self.response_id
        self.model = text_of(response, "model") or self.model
        for item in dicts_in(response.get("output")):
            self._take_item(item)
        usage = response.get("usage")
        if isinstance(usage, dict):
            self.usage = _usage(usage, "input_tokens", "output_tokens")
        status = text_of(response, "status")
        if status == "failed":
            self.take_error(response.get("error"), "response_failed")
        elif status == "incomplete":
            details = dict_of(response.get("incomplete_details"))
            self.stop_reason = text_of(details, "reason") or status
        elif status == "completed":
            self.stop_reason = status

    def _take_item(self, item: Any) -> None:
        # function_call, custom_tool_call, local_shell_call; a hosted tool's call has no call id.
        if isinstance(item, dict) and (text_of(item, "type") or "").endswith("_call"):
            call_id = text_of(item, "call_id")
            if call_id is not None:
                self.tool_call_ids[call_id] = None
        if isinstance(item, dict):
            self._blocks[text_of(item, "id")] = len(dicts_in(item.get("summary"))) or 1


class _Completion(_Answer):
    """A chat completion; of embeddings it finds model and usage, as they stand alike."""

    def __init__(self) -> None:
        super().__init__()
        self._said: str | None = None
        self._runs = 0

    @property
    def blocks(self) -> int:
        return self._runs + len(self.tool_call_ids)

    def take_document(self, document: dict[str, Any]) -> None:
        self.ended = True
        self._take(document, "message")

    def take_event(self, event: dict[str, Any], time_ns: int) -> None:
        if self._take(event, "delta"):
            self.note_token(time_ns)

    def _take(self, chunk: dict[str, Any], message_name: str) -> bool:
        """Take a chunk or document and return whether there was anything of an answer in it."""
        if chunk.get("error"):
            self.take_error(chunk["error"], "error")
        self.response_id = text_of(chunk, "id") or self.response_id
        self.model = text_of(chunk, "model") or self.model
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.usage = _usage(usage, "prompt_tokens", "completion_tokens") or self.usage
        said = False
        for choice in dicts_in(chunk.get("choices")):
            message = dict_of(choice.get(message_name))
            tool_calls = dicts_in(message.get("tool_calls"))
            for tool_call in tool_calls:
                # Only the first piece of a call names it.
                if call_id := text_of(tool_call, "id"):
                    self.tool_call_ids[call_id] = None
            for kind, names in _KINDS.items():
                if self._said != kind and any(message.get(name) for name in names):
                    self._said = kind
                    self._runs += 1
            said |= bool(tool_calls) or any(
                value for key, value in message.items() if key not in {"role", "tool_calls"}
            )
            reason = text_of(choice, "finish_reason")
            if reason is not None:
                self.stop_reason = reason
                self.ended = True
        return said


class _DocumentParser:
    def __init__(self, answer: _Answer) -> None:
        self._answer = answer
        self._body = bytearray()
        self._overflowed = False

    def feed(self, data: bytes, time_ns: int) -> None:
        del time_ns  # A document comes as a whole; nothing in it has a time of its own.
        if len(self._body) + len(data) > EVENT_LIMIT:
            self._overflowed = True
        else:
            self._body += data

    def facts(self) -> ResponseFacts:
        document = None if self._overflowed else _decode(self._body)
        if isinstance(document, dict):
            self._answer.take_document(document)
        return self._answer.facts(understood=isinstance(document, dict))


class _StreamParser:
    def __init__(self, answer: _Answer) -> None:
        self._answer = answer
        self._stream = EventStream()
        self._understood = True

    def feed(self, data: bytes, time_ns: int) -> None:
        answer = self._answer
        for name, text in self._stream.feed(data):
            # Most of a stream; only when the first one came matters.
            if name.endswith(b".delta") and answer.first_token_ns is not None:
                continue
            if text == b"[DONE]":
                answer.ended = True
                continue
            event = _decode(text)
            if isinstance(event, dict):
                answer.take_event(event, time_ns)
            else:
                self._understood = False

    def facts(self) -> ResponseFacts:
        return self._answer.facts(understood=self._understood and not self._stream.overflowed)


def _tool_result_ids(items: Sequence[msgspec.Raw]) -> tuple[str, ...]:
    found: list[str] = []
    for raw in reversed(items):
        item = dict_of(msgspec.json.decode(raw))
        result_id = _result_id(item)
        if result_id is not None:
            found.append(result_id)
        elif text_of(item, "role") not in {"user", "developer", "system"}:
            # The model's own words: what came before was carried by earlier requests too.
            break
    return tuple(reversed(found))


def _result_id(item: dict[str, Any]) -> str | None:
    if item.get("role") == "tool":
        return text_of(item, "tool_call_id")
    if (text_of(item, "type") or "").endswith("_call_output"):
        return text_of(item, "call_id")
    return None


def _usage(usage: dict[str, Any], input_name: str, output_name: str) -> Usage | None:
    taken = dict_of(usage.get(f"{input_name}_details"))
    given = dict_of(usage.get(f"{output_name}_details"))
    result = Usage(
        input_tokens=count_of(usage, input_name),
        output_tokens=count_of(usage, output_name),
        cache_read_tokens=count_of(taken, "cached_tokens"),
        cache_write_tokens=count_of(taken, "cache_write_tokens"),
        reasoning_tokens=count_of(given, "reasoning_tokens"),
    )
    return None if result == Usage() else result


def _decode(data: bytes | bytearray) -> Any:
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None

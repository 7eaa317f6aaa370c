"""Google's generateContent, on Gemini API and Vertex AI alike: its bodies in, facts of a call out.

Format facts (v1beta and v1beta1, as Gemini CLI 0.61.0 uses them):
- The model stands in the path, and so does whether the answer is streamed: as server-sent events
  with `alt=sse`, else as one JSON array of the same chunks.
- `usageMetadata` is cumulative; that of the last chunk counts. `promptTokenCount` includes what
  came from the cache; `candidatesTokenCount` leaves out the thoughts. A count of zero is left out.
- There is no event for the end: the whole answer has come when a `finishReason` has.
- The answer to a blocked prompt has no candidates and tells `promptFeedback.blockReason`.
"""

from __future__ import annotations

import re
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

PROVIDER = "gcp.gen_ai"

GENERATE = "gemini.generate_content"
STREAM = "gemini.stream_generate_content"
COUNT_TOKENS = "gemini.count_tokens"
EMBEDDINGS = "gemini.embeddings"

_NAMES = {
    "generateContent": GENERATE,
    "streamGenerateContent": STREAM,
    "countTokens": COUNT_TOKENS,
    "embedContent": EMBEDDINGS,
    "batchEmbedContents": EMBEDDINGS,
}
# models/M on Gemini API; projects/P/locations/L/publishers/google/models/M on Vertex AI.
_MODEL_AND_METHOD = re.compile(
    r"/(?:publishers/google/|v\d\w*/)(?:models|tunedModels)/([^/:]+):(\w+)/*$"
)


def name_call(method: str, path: str) -> str | None:
    found = _MODEL_AND_METHOD.search(path) if method == "POST" else None
    return None if found is None else _NAMES.get(found[2])


def model_in_path(path: str) -> str | None:
    found = _MODEL_AND_METHOD.search(path)
    return None if found is None else found[1]


def parse_request(name: str, body: bytes) -> RequestFacts:
    try:
        request = parse_body(body, "contents")
        return RequestFacts(
            streaming=name == STREAM,
            tool_result_ids=_tool_result_ids(request.items),
            digest=request.digest,
            body=request.small,
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


class _Answer:
    """What is known of the answer so far."""

    def __init__(self) -> None:
        self._response_id: str | None = None
        self._model: str | None = None
        self._stop_reason: str | None = None
        self._usage: dict[str, Any] = {}
        self._tool_call_ids: list[str] = []
        self._error: dict[str, Any] | None = None
        self._first_token_ns: int | None = None

    def take_chunk(self, chunk: dict[str, Any], time_ns: int | None) -> None:
        if "error" in chunk:
            self._error = dict_of(chunk["error"])
            return
        self._response_id = text_of(chunk, "responseId") or self._response_id
        self._model = text_of(chunk, "modelVersion") or self._model
        self._usage.update(dict_of(chunk.get("usageMetadata")))
        blocked = text_of(dict_of(chunk.get("promptFeedback")), "blockReason")
        self._stop_reason = blocked or self._stop_reason
        for candidate in dicts_in(chunk.get("candidates")):
            self._stop_reason = text_of(candidate, "finishReason") or self._stop_reason
            for part in dicts_in(dict_of(candidate.get("content")).get("parts")):
                self._take_part(part, time_ns)

    def _take_part(self, part: dict[str, Any], time_ns: int | None) -> None:
        tool_call_id = text_of(dict_of(part.get("functionCall")), "id")
        if tool_call_id is not None and tool_call_id not in self._tool_call_ids:
            self._tool_call_ids.append(tool_call_id)
        # The last chunk often holds nothing but an empty text.
        has_content = any(value for name, value in part.items() if name != "thought")
        if self._first_token_ns is None and has_content:
            self._first_token_ns = time_ns

    def facts(self, *, understood: bool) -> ResponseFacts:
        error = self._error
        ended = self._stop_reason is not None
        return ResponseFacts(
            response_id=self._response_id,
            model=self._model,
            stop_reason=self._stop_reason,
            usage=_usage(self._usage, output_is_known=ended),
            tool_call_ids=tuple(self._tool_call_ids),
            first_token_ns=self._first_token_ns,
            error_type=None if error is None else _error_type(error),
            error_message=None if error is None else text_of(error, "message"),
            ended=ended,
            understood=understood,
        )


class _DocumentParser:
    def __init__(self) -> None:
        self._body = bytearray()
        self._overflowed = False

    def feed(self, data: bytes, time_ns: int) -> None:
        del time_ns  # Where in an array a chunk ends is not worth finding out while it comes.
        if len(self._body) + len(data) > EVENT_LIMIT:
            self._overflowed = True
        else:
            self._body += data

    def facts(self) -> ResponseFacts:
        document = None if self._overflowed else _decode(bytes(self._body))
        answer = _Answer()
        for chunk in document if isinstance(document, list) else [document]:
            if isinstance(chunk, dict):
                answer.take_chunk(chunk, None)
        return answer.facts(understood=isinstance(document, dict | list))


class _StreamParser:
    def __init__(self) -> None:
        self._stream = EventStream()
        self._answer = _Answer()
        self._understood = True

    def feed(self, data: bytes, time_ns: int) -> None:
        for _, text in self._stream.feed(data):
            chunk = _decode(text)
            if isinstance(chunk, dict):
                self._answer.take_chunk(chunk, time_ns)
            else:
                self._understood = False

    def facts(self) -> ResponseFacts:
        return self._answer.facts(understood=self._understood and not self._stream.overflowed)


def _tool_result_ids(contents: Sequence[msgspec.Raw]) -> tuple[str, ...]:
    # The earlier ones were carried by earlier requests too.
    for raw in reversed(contents):
        content = dict_of(msgspec.json.decode(raw))
        if text_of(content, "role") in {"user", "function"}:
            responses = [
                dict_of(part.get("functionResponse")) for part in dicts_in(content.get("parts"))
            ]
            return tuple(
                tool_call_id
                for response in responses
                if (tool_call_id := text_of(response, "id")) is not None
            )
    return ()


def _usage(usage: dict[str, Any], *, output_is_known: bool) -> Usage | None:
    prompt = count_of(usage, "promptTokenCount")
    # What tools of the vendor's own (a web search) put before the model.
    from_tools = count_of(usage, "toolUsePromptTokenCount")
    candidates = count_of(usage, "candidatesTokenCount")
    thoughts = count_of(usage, "thoughtsTokenCount")
    is_told = any(count is not None for count in (prompt, candidates, thoughts))
    result = Usage(
        input_tokens=None if prompt is None else prompt + (from_tools or 0),
        output_tokens=(candidates or 0) + (thoughts or 0) if output_is_known and is_told else None,
        cache_read_tokens=count_of(usage, "cachedContentTokenCount"),
        reasoning_tokens=thoughts if output_is_known else None,
    )
    return None if result == Usage() else result


def _error_type(error: dict[str, Any]) -> str:
    code = error.get("code")
    return text_of(error, "status") or (str(code) if isinstance(code, int) else "error")


def _decode(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None

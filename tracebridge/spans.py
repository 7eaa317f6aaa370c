"""A turn to the spans that show it. Pure, and the same turn always gives the same spans.

Parents come from what contains what: a file edit lies under its tool call, a tool call under the
subagent that made it, else under the turn. Usage stands on `chat` spans only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from functools import lru_cache
from itertools import chain
from pathlib import PurePath

from msgspec import structs

from tracebridge import semconv
from tracebridge.chats import call_key
from tracebridge.ids import root_span_id, span_id
from tracebridge.linker import SKEW_NS, Orphan
from tracebridge.model import (
    OUTER_PARENT,
    UPSTREAM_HEADERS,
    AttributeValue,
    Chat,
    Compaction,
    FileEdit,
    GatewayCall,
    ModelCall,
    Outcome,
    PermissionAsk,
    Prompt,
    Span,
    SpanEvent,
    SpanKind,
    SpanLink,
    Status,
    Subagent,
    Tags,
    Thinking,
    ToolCall,
    Turn,
    TurnState,
    Usage,
)
from tracebridge.prices import Cost, cost_of, price_list

Attributes = dict[str, AttributeValue | None]

STATUS_MESSAGE_LENGTH = 500


class Content(StrEnum):
    """How much of what was said a span may carry; secrets are gone before, on every level."""

    METADATA = "metadata"
    REDACTED = "redacted"
    FULL = "full"

    @property
    def longest(self) -> int | None:
        """Return how many characters of one text are kept; None for all."""
        return _LONGEST[self]


_LONGEST = {Content.METADATA: 0, Content.REDACTED: 20_000, Content.FULL: None}


def render(turn: Turn, content: Content = Content.REDACTED) -> tuple[Span, ...]:
    """Return the spans of *turn*, the root last. Of an open turn, what runs has no end yet."""
    return tuple(placed(turn, _Renderer(turn, content).spans()))


def placed(turn: Turn, spans: Iterable[Span]) -> Iterable[Span]:
    """Return *spans* of *turn*, to go out in the trace in which its user wants it."""
    if turn.tags.parent_trace_id is None:
        return spans
    outer = _outer(turn.tags)
    return [replace(span, within=outer) for span in spans]


def final_spans(turn: Turn, spans: Iterable[Span]) -> list[Span]:
    """Return those of the *spans* of an open turn that will not change any more.

    The rest waits for the turn's end: tools may still be found to have asked or edited, and what a
    subagent did may still be found to belong to another turn.
    """
    chats = {span_id(turn.trace_id, "llm", key) for key in turn.final}
    return [
        span
        for span in spans
        if span.span_id in chats
        or (
            span.parent_span_id in chats
            and span.attributes.get(semconv.SPAN_TYPE) == "thinking"
            and span.end_ns is not None
            and semconv.END_UNKNOWN not in span.attributes
        )
    ]


def render_orphan(
    orphan: Orphan,
    trace_id: str,
    content: Content = Content.REDACTED,
    parent_span_id: str | None = None,
) -> Span:
    """Return the span of a call that no turn claimed: a small trace of its own, without a parent."""
    identity = orphan.call.identity
    span = _chat_span(
        Chat(key=call_key(orphan.call), seen=orphan.call),
        trace_id=trace_id,
        parent_span_id=parent_span_id,
        common=_common(
            identity.session_id if identity is not None else None,
            Tags(customer_id=orphan.call.client_name),
        ),
        content=content,
    )
    reason: Mapping[str, AttributeValue] = {semconv.LINK_REASON: orphan.reason}
    return _with(span, reason)


def common_of(turn: Turn) -> Mapping[str, AttributeValue]:
    """Return what stands on every span of *turn*."""
    return _common(turn.session_id, turn.tags)


def clock_skew_ms(call: GatewayCall, turn: Turn) -> int | None:
    """Return by how much another gateway's clock puts a call outside of its turn, None if inside."""
    if call.is_ours or turn.end_ns is None:
        return None
    early_ns = turn.start_ns - call.start_ns
    late_ns = call.end_ns - turn.end_ns
    if max(early_ns, late_ns) <= SKEW_NS:
        return None
    return (late_ns if late_ns > early_ns else -early_ns) // 1_000_000


def resource_of(
    agent: str, spans: Iterable[Span], given: Mapping[str, str] | None = None
) -> tuple[tuple[str, str], ...]:
    """Return what stands for the agent as the thing that is observed; *given* wins."""
    versions = (span.attributes.get(semconv.AGENT_VERSION) for span in spans)
    version = next((str(version) for version in versions if version), None)
    ours = {"service.name": agent, "telemetry.distro.name": "tracebridge"}
    if version is not None:
        ours["service.version"] = version
    return tuple(sorted((ours | dict(given or {})).items()))


class _Renderer:
    def __init__(self, turn: Turn, content: Content) -> None:
        self._turn = turn
        self._content = content
        self._root = root_span_id(turn.trace_id)
        self._common = _common(turn.session_id, turn.tags)
        self._tools = {tool.key: tool for tool in turn.tools}
        self._subagents = {subagent.key: subagent for subagent in turn.subagents}
        self._chats = {key: chat for chat in turn.chats for key in _keys(chat)}

    def spans(self) -> Iterator[Span]:
        turn = self._turn
        yield from chain(
            (self._chat(chat) for chat in turn.chats),
            (self._thinking(thinking) for thinking in turn.thinking),
            (self._tool(tool) for tool in turn.tools),
            (self._wait(wait) for wait in turn.waits),
            (self._edit(edit) for edit in turn.edits),
            (self._subagent(subagent) for subagent in turn.subagents),
            (self._compaction(compaction) for compaction in turn.compactions),
        )
        yield self._turn_span()

    def _id(self, kind: str, key: str) -> str:
        return span_id(self._turn.trace_id, kind, key)

    def _container(self, subagent_id: str | None) -> str:
        if subagent_id is not None and subagent_id in self._subagents:
            return self._id("subagent", subagent_id)
        return self._root

    def _span(
        self,
        kind: str,
        key: str,
        name: str,
        parent: str,
        *,
        times: tuple[int | None, int | None],
        attributes: Attributes,
        error: tuple[str | None, str | None] = (None, None),
    ) -> Span:
        start_ns, end_ns = self._times(*times)
        error_type, message = error
        own: Attributes = {semconv.SPAN_TYPE: kind, **attributes, semconv.ERROR_TYPE: error_type}
        if times[0] is None:
            own[semconv.START_UNKNOWN] = True
        if times[1] is None and end_ns is not None:
            own[semconv.END_UNKNOWN] = True
        return Span(
            trace_id=self._turn.trace_id,
            span_id=self._id(kind, key),
            parent_span_id=parent,
            name=name,
            kind=SpanKind.INTERNAL,
            start_ns=start_ns,
            end_ns=end_ns,
            status=Status.UNSET if error_type is None else Status.ERROR,
            status_message=self._status_message(error_type, message),
            attributes={**self._common, **_known(own)},
        )

    def _times(self, start_ns: int | None, end_ns: int | None) -> tuple[int, int | None]:
        if end_ns is None and self._turn.state is not TurnState.OPEN:
            end_ns = max(self._turn.end_ns or 0, start_ns or 0)
        if start_ns is None:
            start_ns = end_ns if end_ns is not None else self._turn.start_ns
        return start_ns, None if end_ns is None else max(start_ns, end_ns)

    def _status_message(self, error_type: str | None, message: str | None) -> str:
        if error_type is None:
            return ""
        return (self._text(message) or error_type)[:STATUS_MESSAGE_LENGTH]

    def _text(self, text: str | None) -> str | None:
        return _content_text(text, self._content)

    def _turn_span(self) -> Span:
        turn = self._turn
        prompt = turn.prompts[0] if turn.prompts else None
        usages = [usage for chat in turn.chats if (usage := _call(chat).usage) is not None]
        costs = [_cost(call) for chat in turn.chats if (call := _call(chat)).usage is not None]
        failed = turn.outcome is Outcome.FAILED
        text = self._text(prompt.text) if prompt is not None else None
        own: Attributes = {
            semconv.SPAN_TYPE: "turn",
            semconv.OPERATION: "invoke_agent",
            semconv.AGENT_NAME: turn.agent,
            semconv.REQUEST_MODEL: turn.info.model or _main_model(turn),
            semconv.OI_KIND: "AGENT",
            semconv.OI_AGENT_NAME: turn.agent,
            semconv.OI_INPUT: text,
            semconv.OI_OUTPUT: self._text(turn.answer),
            semconv.RESPAN_LOG_TYPE: "agent",
            semconv.TRACELOOP_KIND: "workflow",
            semconv.AGENT_VERSION: turn.info.agent_version,
            semconv.CWD: turn.info.cwd,
            semconv.GIT_BRANCH: turn.info.git_branch,
            semconv.PERMISSION_MODE: turn.info.permission_mode,
            semconv.OUTER_TRACE: turn.tags.outer and turn.tags.outer[3:35],
            semconv.OUTER_SPAN: turn.tags.outer and turn.tags.outer[36:52],
            semconv.OUTER_AS: turn.tags.outer_as,
            semconv.TURN_TRACE: turn.trace_id if turn.tags.parent_trace_id else None,
            semconv.TURN_KEY: turn.turn_key,
            semconv.TURN_OUTCOME: turn.outcome,
            semconv.TURN_ORIGIN: prompt.origin if prompt is not None else None,
            semconv.TURN_INPUT_TOKENS: _sum(u.input_tokens for u in usages),
            semconv.TURN_OUTPUT_TOKENS: _sum(u.output_tokens for u in usages),
            semconv.TURN_CACHE_READ_TOKENS: _sum(u.cache_read_tokens for u in usages),
            semconv.TURN_CACHE_WRITE_TOKENS: _sum(u.cache_write_tokens for u in usages),
            semconv.TURN_REASONING_TOKENS: _sum(u.reasoning_tokens for u in usages),
            semconv.TURN_COST: _sum_of_costs(costs),
            semconv.TURN_UNPRICED_CALLS: costs.count(None) or None,
            semconv.TURN_CALLS: len(turn.chats),
            semconv.TURN_FAILED_CALLS: sum(
                _call(chat).error_type is not None for chat in turn.chats
            ),
            semconv.TURN_TOOL_CALLS: len(turn.tools),
            semconv.TURN_FAILED_TOOL_CALLS: sum(t.error_type is not None for t in turn.tools),
            semconv.TURN_LINES_ADDED: _sum(edit.lines_added for edit in turn.edits),
            semconv.TURN_LINES_REMOVED: _sum(edit.lines_removed for edit in turn.edits),
            semconv.ERROR_TYPE: (turn.error_type or "failed") if failed else None,
        }
        return Span(
            trace_id=turn.trace_id,
            span_id=self._root,
            parent_span_id=None,
            name=turn.tags.span_name or f"invoke_agent {turn.agent}",
            kind=SpanKind.INTERNAL,
            start_ns=turn.start_ns,
            end_ns=turn.end_ns,
            status=Status.ERROR if failed else Status.UNSET,
            status_message=turn.error_type or "failed" if failed else "",
            attributes={**self._common, **_known(own)},
            events=tuple(self._prompt_event(prompt) for prompt in turn.prompts[1:]),
            links=_outer_links(turn.tags),
        )

    def _prompt_event(self, prompt: Prompt) -> SpanEvent:
        return SpanEvent(
            name=semconv.PROMPT_EVENT,
            time_ns=prompt.start_ns or self._turn.start_ns,
            attributes=_known(
                {
                    semconv.PROMPT_ORIGIN: prompt.origin,
                    semconv.PROMPT_TEXT: self._text(prompt.text),
                }
            ),
        )

    def _chat(self, chat: Chat) -> Span:
        parent = self._container(chat.subagent_id)
        if chat.compaction_key is not None:
            parent = self._id("compaction", chat.compaction_key)
        span = _chat_span(
            chat,
            trace_id=self._turn.trace_id,
            parent_span_id=parent,
            common=self._common,
            content=self._content,
        )
        skew_ms = None if chat.seen is None else clock_skew_ms(chat.seen, self._turn)
        return span if skew_ms is None else _with(span, {semconv.CLOCK_SKEW_MS: skew_ms})

    def _thinking(self, thinking: Thinking) -> Span:
        chat = self._chats.get(thinking.call_key)
        parent = self._root if chat is None else self._id("llm", chat.key)
        text = self._text(thinking.text)
        return self._span(
            "thinking",
            thinking.key,
            "thinking",
            parent,
            times=(thinking.start_ns, thinking.end_ns),
            attributes={
                semconv.OI_KIND: "CHAIN",
                semconv.OI_OUTPUT: text,
                semconv.RESPAN_LOG_TYPE: "task",
                semconv.THINKING_CHARACTERS: len(thinking.text or ""),
                semconv.THINKING_REDACTED: thinking.redacted,
            },
        )

    def _tool(self, tool: ToolCall) -> Span:
        name = tool.name or "unknown"
        arguments, result = self._text(tool.input), self._text(tool.output)
        duration_ms = None if tool.duration_ns is None else tool.duration_ns / 1e6
        return self._span(
            "tool",
            tool.key,
            f"execute_tool {name}",
            self._container(self._turn.tool_owners.get(tool.key)),
            times=(tool.start_ns, tool.end_ns),
            attributes={
                semconv.OPERATION: "execute_tool",
                semconv.TOOL_NAME: name,
                semconv.TOOL_CALL_ID: tool.key,
                semconv.TOOL_TYPE: "function",
                semconv.TOOL_ARGUMENTS: arguments,
                semconv.TOOL_RESULT: result,
                semconv.OI_KIND: "TOOL",
                semconv.OI_TOOL_NAME: name,
                semconv.OI_TOOL_ID: tool.key,
                semconv.OI_INPUT: arguments,
                semconv.OI_OUTPUT: result,
                semconv.RESPAN_LOG_TYPE: "tool",
                semconv.TRACELOOP_KIND: "tool",
                semconv.TOOL_DURATION_MS: duration_ms,
                semconv.TOOL_EXIT_CODE: tool.exit_code,
                semconv.MCP_SERVER: tool.mcp_server,
            },
            error=(tool.error_type, tool.error_message),
        )

    def _wait(self, wait: PermissionAsk) -> Span:
        tool = self._tools.get(wait.tool_key or "")
        parent = self._root if tool is None else self._id("tool", tool.key)
        end_ns = wait.end_ns
        if end_ns is None and tool is not None:
            # No longer than the tool, whenever it was decided.
            end_ns = tool.end_ns
        return self._span(
            "permission",
            wait.key,
            f"permission_wait {wait.tool_name or 'unknown'}",
            parent,
            times=(wait.start_ns, end_ns),
            attributes={
                semconv.END_UNKNOWN: True if end_ns != wait.end_ns else None,
                semconv.OI_KIND: "CHAIN",
                semconv.RESPAN_LOG_TYPE: "task",
                semconv.PERMISSION_DECISION: wait.decision,
                semconv.PERMISSION_DECIDED_BY: wait.decided_by,
            },
        )

    def _edit(self, edit: FileEdit) -> Span:
        tool = self._tools.get(edit.tool_key)
        path = _relative(edit.path, self._turn.info.cwd)
        times = (None, None) if tool is None else (_edit_start(tool), tool.end_ns)
        return self._span(
            "edit",
            edit.key,
            f"file_edit {path}",
            self._id("tool", edit.tool_key),
            times=times,
            attributes={
                semconv.OI_KIND: "CHAIN",
                semconv.RESPAN_LOG_TYPE: "task",
                semconv.CODE_FILE_PATH: path,
                semconv.EDIT_OPERATION: edit.operation,
                semconv.EDIT_LINES_ADDED: edit.lines_added,
                semconv.EDIT_LINES_REMOVED: edit.lines_removed,
                semconv.EDIT_DIFF: self._text(edit.diff),
            },
            error=("edit_failed" if edit.failed else None, None),
        )

    def _subagent(self, subagent: Subagent) -> Span:
        parent = self._container(subagent.parent_key)
        if subagent.tool_key is not None and subagent.tool_key in self._tools:
            parent = self._id("tool", subagent.tool_key)
        name = subagent.type or "subagent"
        return self._span(
            "subagent",
            subagent.key,
            f"invoke_agent {name}",
            parent,
            times=(subagent.start_ns, subagent.end_ns),
            attributes={
                semconv.OPERATION: "invoke_agent",
                semconv.AGENT_NAME: name,
                semconv.OI_KIND: "AGENT",
                semconv.OI_AGENT_NAME: name,
                semconv.OI_OUTPUT: self._text(subagent.output),
                semconv.RESPAN_LOG_TYPE: "agent",
                semconv.TRACELOOP_KIND: "agent",
                semconv.SUBAGENT_ID: subagent.key,
                semconv.SUBAGENT_DESCRIPTION: self._text(subagent.description),
            },
        )

    def _compaction(self, compaction: Compaction) -> Span:
        return self._span(
            "compaction",
            compaction.key,
            "compaction",
            self._root,
            times=(compaction.start_ns, compaction.end_ns),
            attributes={
                semconv.OI_KIND: "CHAIN",
                semconv.RESPAN_LOG_TYPE: "task",
                semconv.COMPACTION_TRIGGER: compaction.trigger,
                semconv.COMPACTION_TOKENS_BEFORE: compaction.tokens_before,
                semconv.COMPACTION_TOKENS_AFTER: compaction.tokens_after,
            },
            error=(compaction.error_type, None),
        )


def _chat_span(
    chat: Chat,
    *,
    trace_id: str,
    parent_span_id: str | None,
    common: Mapping[str, AttributeValue],
    content: Content,
) -> Span:
    seen, told, call = chat.seen, chat.told, _call(chat)
    embeds = seen is not None and seen.dialect.endswith(".embeddings")
    operation = "embeddings" if embeds else "chat"
    requested = call.requested_model or call.model
    end_ns = call.end_ns or 0
    start_ns = end_ns if call.start_ns is None else call.start_ns
    own: Attributes = {
        semconv.SPAN_TYPE: "llm",
        semconv.OPERATION: operation,
        semconv.PROVIDER: call.provider or "unknown",
        semconv.REQUEST_MODEL: requested,
        semconv.RESPONSE_MODEL: call.model,
        semconv.RESPONSE_ID: call.response_id,
        semconv.FINISH_REASONS: (call.stop_reason,) if call.stop_reason else None,
        **_usage_attributes(call.usage),
        **_cost_attributes(_cost(call)),
        semconv.OI_KIND: "LLM" if operation == "chat" else "EMBEDDING",
        semconv.OI_MODEL: call.model or requested,
        semconv.OI_PROVIDER: call.provider,
        semconv.OI_FINISH_REASON: call.stop_reason,
        semconv.OI_OUTPUT: _content_text(call.output_text, content),
        semconv.RESPAN_LOG_TYPE: "chat" if operation == "chat" else "embedding",
        semconv.LINK_EVIDENCE: chat.evidence,
        semconv.LINK_CONFIDENCE: chat.evidence.confidence if chat.evidence else None,
        semconv.LLM_SOURCE: "+".join(
            name for name, known in (("gateway", seen), ("transcript", told)) if known is not None
        ),
        semconv.LLM_PURPOSE: _purpose(chat),
        semconv.LLM_REQUEST_ID: call.request_id,
        semconv.LLM_MATCHED_BY: chat.matched_by,
        semconv.LLM_ATTEMPT: chat.attempt or call.attempt,
        semconv.LLM_RETRY_OF: (
            None if chat.retry_of is None else span_id(trace_id, "llm", chat.retry_of)
        ),
        semconv.HTTP_STATUS_CODE: call.status_code,
        semconv.ERROR_TYPE: call.error_type,
    }
    if seen is None and told is not None:
        # The agent's own record is as exact as can be.
        own[semconv.LINK_EVIDENCE] = "response_id" if told.response_id else "request_id"
        own[semconv.LINK_CONFIDENCE] = "exact"
    if seen is not None:
        own |= _gateway_attributes(seen, chat.others)
    if call.start_ns is None:
        own[semconv.START_UNKNOWN] = True
    message = _content_text(call.error_message, content) or call.error_type or ""
    return Span(
        trace_id=trace_id,
        span_id=span_id(trace_id, "llm", chat.key),
        parent_span_id=parent_span_id,
        name=f"{operation} {requested or 'unknown'}",
        kind=SpanKind.CLIENT,
        start_ns=start_ns,
        end_ns=max(start_ns, end_ns),
        status=Status.UNSET if call.error_type is None else Status.ERROR,
        status_message="" if call.error_type is None else message[:STATUS_MESSAGE_LENGTH],
        attributes={**common, **_known(own)},
    )


def _gateway_attributes(seen: GatewayCall, others: Sequence[GatewayCall] = ()) -> Attributes:
    first_ns = seen.first_token_ns or seen.first_byte_ns
    return {
        semconv.REQUEST_STREAM: seen.streaming,
        semconv.TIME_TO_FIRST_CHUNK: None if first_ns is None else (first_ns - seen.start_ns) / 1e9,
        semconv.SERVER_ADDRESS: seen.server_address,
        semconv.SERVER_PORT: seen.server_port,
        semconv.LLM_REQUEST_BYTES: seen.request_bytes,
        semconv.LLM_RESPONSE_BYTES: seen.response_bytes,
        semconv.LLM_DIALECT: seen.dialect,
        semconv.LLM_GATEWAY: "+".join(
            dict.fromkeys((seen.gateway, *(other.gateway for other in others)))
        ),
        semconv.LLM_MODEL_ALIAS: seen.model_alias,
        semconv.RESPAN_GATEWAY_LOG_ID: seen.response_headers.get("x-respan-log-id"),
        **{
            semconv.LLM_UPSTREAM_PREFIX + name: seen.response_headers.get(name)
            for name in UPSTREAM_HEADERS
        },
    }


def _usage_attributes(usage: Usage | None) -> Attributes:
    if usage is None:
        return {}
    total = None
    if usage.input_tokens is not None and usage.output_tokens is not None:
        total = usage.input_tokens + usage.output_tokens
    return {
        semconv.INPUT_TOKENS: usage.input_tokens,
        semconv.OUTPUT_TOKENS: usage.output_tokens,
        semconv.CACHE_READ_TOKENS: usage.cache_read_tokens,
        semconv.CACHE_WRITE_TOKENS: usage.cache_write_tokens,
        semconv.CACHE_CREATION_TOKENS: usage.cache_write_tokens,
        semconv.REASONING_TOKENS: usage.reasoning_tokens,
        semconv.OI_PROMPT_TOKENS: usage.input_tokens,
        semconv.OI_COMPLETION_TOKENS: usage.output_tokens,
        semconv.OI_TOTAL_TOKENS: total,
        semconv.OI_CACHE_READ: usage.cache_read_tokens,
        semconv.OI_CACHE_WRITE: usage.cache_write_tokens,
        semconv.OI_REASONING: usage.reasoning_tokens,
    }


def _cost(call: ModelCall) -> Cost | None:
    """Return what a call cost by the model that answered it."""
    time_ns = call.end_ns or call.start_ns or 0
    answered = cost_of(call.usage, call.model, call.provider, time_ns)
    return answered or cost_of(call.usage, call.requested_model, call.provider, time_ns)


def _sum_of_costs(costs: Iterable[Cost | None]) -> float | None:
    known = [cost.total for cost in costs if cost is not None]
    # Ten digits behind the point are less than any price, and hide how binary fractions add up.
    return round(math.fsum(known), 10) if known else None


def _cost_attributes(cost: Cost | None) -> Attributes:
    if cost is None:
        return {}
    return {
        semconv.OI_COST_PROMPT: cost.prompt,
        semconv.OI_COST_COMPLETION: cost.completion,
        semconv.OI_COST_TOTAL: cost.total,
        semconv.OI_COST_CACHE_READ: cost.cache_read,
        semconv.OI_COST_CACHE_WRITE: cost.cache_write,
        semconv.LLM_PRICE_LIST: price_list(),
    }


def _common(session_id: str | None, tags: Tags) -> dict[str, AttributeValue]:
    """Return what stands on every span: session, customer and metadata."""
    metadata = dict(tags.metadata)
    as_json = json.dumps(metadata, ensure_ascii=False, sort_keys=True) if metadata else None
    common: Attributes = {
        semconv.CONVERSATION_ID: session_id,
        semconv.SESSION_ID: session_id,
        semconv.RESPAN_SESSION: session_id,
        semconv.RESPAN_THREAD: session_id,
        semconv.USER_ID: tags.customer_id,
        semconv.RESPAN_CUSTOMER: tags.customer_id,
        semconv.METADATA: as_json,
        semconv.RESPAN_METADATA: as_json,
        semconv.WORKFLOW_NAME: tags.workflow_name,
        semconv.PROJECT_ID: tags.project_id,
        **{semconv.METADATA_PREFIX + name: metadata[name] for name in sorted(metadata)},
    }
    return _known(common)


def _known(attributes: Attributes) -> dict[str, AttributeValue]:
    return {
        name: str(value) if isinstance(value, StrEnum) else value
        for name, value in attributes.items()
        if value is not None
    }


def _with(span: Span, more: Mapping[str, AttributeValue]) -> Span:
    return replace(span, attributes={**span.attributes, **more})


def _content_text(text: str | None, content: Content) -> str | None:
    if text is None or content is Content.METADATA:
        return None
    if content.longest is None or len(text) <= content.longest:
        return text
    return f"{text[: content.longest]}… [cut: {len(text)} characters]"


def _call(chat: Chat) -> ModelCall:
    """Return what is known of one call: the gateway saw it, the agent's records fill the rest."""
    seen, told = chat.seen, chat.told
    if seen is None:
        return told if told is not None else ModelCall(key=chat.key)
    told = told if told is not None else ModelCall(key=chat.key)
    behind = next((other.usage for other in chat.others if other.usage is not None), None)
    usage = _filled(seen.usage or behind, told.usage) if not seen.is_ours else seen.usage
    # Other gateways translate the reason into words of their own.
    reasons = (seen.stop_reason, told.stop_reason)
    return structs.replace(
        told,
        response_id=seen.response_id or told.response_id,
        request_id=seen.request_id or told.request_id,
        requested_model=seen.requested_model or told.requested_model,
        model=seen.model or told.model,
        provider=seen.provider or told.provider,
        start_ns=seen.start_ns,
        end_ns=seen.end_ns,
        usage=usage or told.usage or behind,
        stop_reason=next(filter(None, reasons if seen.is_ours else reversed(reasons)), None),
        status_code=seen.status_code,
        error_type=seen.error_type,
        error_message=seen.error_message,
        attempt=seen.attempt or told.attempt,
    )


def _filled(usage: Usage | None, more: Usage | None) -> Usage | None:
    """Return *usage*, with those counts of *more* that it lacks."""
    if usage is None or more is None:
        return usage
    counts = asdict(usage)
    return replace(more, **{name: count for name, count in counts.items() if count is not None})


def _outer(tags: Tags) -> SpanLink | None:
    """Return what points to the span that the agent was started in."""
    if tags.outer is None:
        return None
    return SpanLink(trace_id=tags.outer[3:35], span_id=tags.outer[36:52])


def _outer_links(tags: Tags) -> tuple[SpanLink, ...]:
    outer = _outer(tags)
    return () if outer is None or tags.outer_as == OUTER_PARENT else (outer,)


def _purpose(chat: Chat) -> str | None:
    """Return what a side call was for; None for the calls that do the work."""
    if chat.told is not None and chat.told.purpose is not None:
        # The agent knows better than its request shows.
        return chat.told.purpose
    identity = chat.seen.identity if chat.seen is not None else None
    return identity.request_class if identity is not None and identity.is_side_call else None


def _keys(chat: Chat) -> Iterable[str]:
    return {chat.key} if chat.told is None else {chat.key, chat.told.key}


def _edit_start(tool: ToolCall) -> int | None:
    if tool.end_ns is not None and tool.duration_ns is not None:
        return tool.end_ns - tool.duration_ns
    return tool.start_ns


def _main_model(turn: Turn) -> str | None:
    for chat in turn.chats:
        if chat.subagent_id is None and _purpose(chat) is None:
            call = _call(chat)
            return call.requested_model or call.model
    return None


@lru_cache(maxsize=1000)
def _relative(path: str | None, cwd: str | None) -> str:
    if path is None:
        return "unknown"
    if cwd is not None and PurePath(path).is_relative_to(cwd):
        return str(PurePath(path).relative_to(cwd))
    return path


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None

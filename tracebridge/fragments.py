"""Spans that other gateways export: what calls they tell of, and where in a turn they belong. Pure.

Spans come and go as OTLP messages, so that who only passes them on loses nothing. A fragment is
what came of one foreign trace. The span of each call to a model in it becomes one `GatewayCall`,
linked like those of our own gateway; then the fragment lies down under the turn's chats.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import orjson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tracebridge import semconv
from tracebridge.agents import agents, identify_call, telemetry
from tracebridge.fields import count_of, dict_of, dicts_in, text_of
from tracebridge.model import CallIdentity, GatewayCall, Usage
from tracebridge.response_ids import provider_id
from tracebridge.suspicion import Suspicion

SECOND_NS = 1_000_000_000
LATEST_NS = 2**63
# What our own attribute says of the type of a span that another gateway made.
SPAN_TYPE = "gateway"
# A dictionary in Python's notation; Codex's metadata in it has a few kilobytes.
LITERAL_LIMIT = 64 * 1024
NAME_LIMIT = 64
MESSAGE_LIMIT = 500
# Set by gateways that know whose span the parent is, and that it is not their own.
_PARENT_IS_KNOWN, PARENT_IS_REMOTE = 0x100, 0x200

# What is asked of a model. All else, such as invoke_agent, contains calls.
_CALLS = {"chat", "text_completion", "generate_content", "embeddings", "completion", "responses"}
_NO_CALLS = {"invoke_agent", "create_agent", "execute_tool", "invoke_workflow", "retrieval"}
# The newest name first.
_INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
_OUTPUT = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
)
_CACHE_READ = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "llm.token_count.prompt_details.cache_read",
)
_CACHE_WRITE = (
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "llm.token_count.prompt_details.cache_write",
)
_REASONING = (
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.reasoning_tokens",
    "llm.usage.reasoning_tokens",
    "llm.token_count.completion_details.reasoning",
)
_REQUEST_MODEL = ("gen_ai.request.model", "llm.request.model", "llm.model_name")
_RESPONSE_MODEL = ("gen_ai.response.model", "llm.response.model")
_PROVIDER = ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "gateway.provider")
_CONVERSATION = ("gen_ai.conversation.id", "session.id")
# The gateway's own id of a request, by the header in which it tells it to its client too.
_LOG_IDS = {
    "litellm.call_id": "x-litellm-call-id",
    "respan.gateway.log_id": "x-respan-log-id",
    "guid:x-request-id": "x-request-id",
}
_STATUS_CODE = ("http.response.status_code", "http.status_code", "litellm.provider.error.code")
_STREAMING = ("gen_ai.request.stream", "litellm.request.streaming", "llm.is_streaming")
_FIRST_CHUNK = ("gen_ai.response.time_to_first_chunk", "gen_ai.server.time_to_first_token")
# What an agent told of itself, as a gateway passes it on.
_HEADERS = "metadata.requester_custom_headers"
_HEADER_PREFIX = "http.request.header."
# As providers name their id of a request in the answer.
_REQUEST_IDS = ("http.response.header.request-id", "http.response.header.x-request-id")
# Which attempt at one request a span is, from the second on.
_RESENDS = ("http.request.resend_count", "retry.count")
_USAGE_OBJECT = "metadata.usage_object"
_END_USER = ("metadata.user_api_key_end_user_id", "litellm.metadata.user_api_key_end_user_id")
_RESPONSE_ID = ("gen_ai.response.id", "llm.response.id")
_CALLER_FACTS = {
    *("gen_ai.operation.name", "openinference.span.kind", _HEADERS),
    *_REQUEST_MODEL,
    *_RESPONSE_MODEL,
    *_RESPONSE_ID,
    *_INPUT,
    *_OUTPUT,
    *_END_USER,
    *_LOG_IDS,
}

# By these a backend counts a model call, its tokens or its cost; all of that stands on our chat.
_COUNTED = re.compile(
    r"gen_ai\.(?:operation\.name|(?:request|response)\.model|usage\..*|cost\..*|system|provider\.name)"
    r"|llm\.(?:model_name|token_count\..*|usage\..*|cost\..*|request\.(?:type|model)|response\.model)"
    r"|(?:litellm|respan|langfuse\.observation)\.(?:cost|usage)(?:[._].*)?"
    r"|openinference\.span\.kind|traceloop\.span\.kind|respan\.entity\.log_type"
    r"|(?:prompt|completion|total|total_request)_tokens|prompt_cache_(?:hit|creation)_tokens"
    r"|cost|model|metadata\.usage_object"
)
# What was said, by whatever name: texts, tools and their arguments, raw requests and answers.
_SAID = re.compile(
    r"gen_ai\.(?:input|output)\.messages|gen_ai\.system_instructions|gen_ai\.(?:prompt|completion)\b.*"
    r"|gen_ai\.tool\.(?:\d+\..*|definitions|call\.(?:arguments|result))"
    r"|llm\.(?:input_messages|output_messages|prompts|completions|tools|request\.functions)\b.*"
    r"|llm\.\w+\.(?:messages|input|instructions|system|tools|metadata|content|output|choices|text)"
    r"|(?:input|output)\.value|traceloop\.entity\.(?:input|output)|.*stack_?trace|hidden_params"
    r"|metadata\.requester_(?:metadata|custom_headers)|(?:litellm\.)?metadata\.user_api_key_end_user_id"
)
# On the level of metadata, a text that is longer than any name or id may be anything.
_LONGEST_NAME = 256
_SECRET_HEADER = re.compile(
    r"http\.(?:request|response)\.header\.(?:.*authorization|.*api[-_]key|x-litellm-key|(?:set-)?cookie)",
    re.IGNORECASE,
)
_SECRET_IN_TEXT = re.compile(
    r"(?i)(['\"](?:proxy-)?(?:authorization|x-litellm-key|[\w-]*api[-_]key|(?:set-)?cookie)['\"]\s*:"
    r"\s*)(?:'[^']*'|\"[^\"]*\")"
)
_REQUEST_ID = re.compile(r"\"request_id\":\s*\"([\w-]{4,100})\"")
_TOOL_CALL = re.compile(
    r"(?:gen_ai\.completion|llm\.output_messages)\..*tool_calls?\.\d+\.(?:tool_call\.)?id"
)
_TOOL_RESULT = re.compile(
    r"(?:gen_ai\.prompt|llm\.input_messages)\.\d+\.(?:message\.)?tool_call_id"
)


@dataclass(slots=True)
class ForeignSpan:
    """A span with what it shares with others of its export."""

    span: Span
    resource: Resource
    scope: InstrumentationScope

    @property
    def span_id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent_span_id(self) -> str | None:
        return self.span.parent_span_id.hex() or None

    @property
    def is_within(self) -> bool:
        """Say whether its gateway tells that the parent is a span of its own."""
        return self.span.flags & (_PARENT_IS_KNOWN | PARENT_IS_REMOTE) == _PARENT_IS_KNOWN


@dataclass(slots=True)
class Fragment:
    """What came of one foreign trace."""

    trace_id: str
    spans: list[ForeignSpan] = field(default_factory=list)

    def roots(self) -> list[ForeignSpan]:
        """Return the spans whose parent is not here."""
        known = {each.span_id for each in self.spans}
        return [each for each in self.spans if each.parent_span_id not in known]

    def below(self) -> dict[str, list[str]]:
        """Return, for each root, the span ids of all that lies below it, and its own."""
        children: dict[str | None, list[str]] = defaultdict(list)
        for each in self.spans:
            children[each.parent_span_id].append(each.span_id)
        found = {}
        for root in self.roots():
            # A set: whoever wrote the ids may have written a circle.
            seen: dict[str, None] = {}
            waiting = [root.span_id]
            while waiting:
                span_id = waiting.pop()
                if span_id not in seen:
                    seen[span_id] = None
                    waiting += children[span_id]
            found[root.span_id] = list(seen)
        return found


def split(request: ExportTraceServiceRequest) -> tuple[list[Fragment], Counter[str]]:
    """Return the fragments of an export, and how many spans are let go, by reason.

    Let go is what we sent ourselves, what an agent says of itself, and what is no span.
    """
    found: dict[str, Fragment] = {}
    notes: Counter[str] = Counter()
    for group in request.resource_spans:
        service = _service(group.resource)
        own = service in _agent_services()
        for part in group.scope_spans:
            if own or part.scope.name == "tracebridge":
                told_by = f"agent {service}" if own else "tracebridge"
                notes[f"exported span of {told_by} let go"] += len(part.spans)
                continue
            for span in part.spans:
                if not _is_sound(span):
                    notes["exported span without ids or times"] += 1
                    continue
                trace = span.trace_id.hex()
                fragment = found.setdefault(trace, Fragment(trace))
                fragment.spans.append(ForeignSpan(span, group.resource, part.scope))
    return list(found.values()), notes


def calls_in(fragment: Fragment) -> dict[str, GatewayCall]:
    """Return the calls to a model that a fragment tells of, by span id.

    Where spans of calls lie in each other, the innermost is the one physical call. Where a gateway
    tried again by itself, only its last attempt is: of those before nobody else knows.
    """
    parents = {each.span_id: each.parent_span_id for each in fragment.spans}
    facts = {each.span_id: attributes_of(each.span.attributes) for each in fragment.spans}
    told = {each.span_id for each in fragment.spans if _is_call(facts[each.span_id])}
    above: set[str] = set()
    for span_id in told:
        up = parents[span_id]
        while up is not None and up not in above:
            above.add(up)
            up = parents.get(up)
    innermost = told - above
    innermost -= _tried_again(fragment, innermost, facts)
    if not innermost:
        return {}
    roots = {each: root for root, ids in fragment.below().items() for each in ids}
    return {
        each.span_id: _call(each, facts[each.span_id], parents[roots[each.span_id]])
        for each in fragment.spans
        # Without a root in a circle of parents.
        if each.span_id in innermost and each.span_id in roots
    }


def _tried_again(
    fragment: Fragment, calls: Collection[str], facts: Mapping[str, Mapping[str, Any]]
) -> set[str]:
    """Return the span ids of failed attempts after which the gateway made another by itself."""
    here = {each.span_id for each in fragment.spans}
    attempts: dict[str, list[ForeignSpan]] = defaultdict(list)
    for each in fragment.spans:
        # Below a parent that is somebody else's lie attempts at other requests, too.
        if each.span_id in calls and (each.is_within or each.parent_span_id in here):
            attempts[str(each.parent_span_id)].append(each)
    again = set()
    for group in attempts.values():
        last = max(_resends(facts[each.span_id]) for each in group)
        again |= {
            each.span_id
            for each in group
            if _has_failed(each) and _resends(facts[each.span_id]) < last
        }
    return again


def tells_of_caller(name: str) -> bool:
    """Say whether `caller_in` looks at attributes of this name."""
    return name in _CALLER_FACTS or name.startswith(_HEADER_PREFIX)


def is_count(name: str) -> bool:
    """Say whether `caller_in` asks of attributes of this name only whether they are there."""
    return name in _INPUT or name in _OUTPUT


def caller_in(facts: dict[str, Any]) -> tuple[CallIdentity | None, str | None] | None:
    """Return who made the call that a span tells of, and the id of its answer; None for no call.

    *facts* are the span's attributes, at least those that `tells_of_caller` names.
    """
    return (_identity(facts), _response_id(facts)) if _is_call(facts) else None


def call_id_of(trace_id: str, span_id: str) -> str:
    """Return the id of the call that a foreign span tells of."""
    return f"otlp:{trace_id}:{span_id}"


def nest(
    fragment: Fragment,
    trace_id: str,
    root_span_id: str,
    chats: Mapping[str, str],
    facts: Mapping[str, Iterable[tuple[str, str | int]]] | None = None,
    *,
    subagents: Collection[str] = (),
) -> None:
    """Put a fragment into the trace of a turn, each part of it below the chat that it tells of.

    *chats* has the span ids of our chats by the foreign span ids of the calls; what is not in it
    keeps its usage, for no chat has it. *facts* has, by the same ids, what these spans shall say
    besides. *subagents* are the span ids of the turn's. Span ids, names and times stay.
    """
    below = fragment.below()
    own = {root: {chats[each] for each in ids if each in chats} for root, ids in below.items()}
    every = set(chats.values())
    everywhere = next(iter(every)) if len(every) == 1 else root_span_id
    unclaimed = set(calls_in(fragment)) - set(chats)
    for each in fragment.spans:
        span = each.span
        if each.span_id not in unclaimed:
            set_usage_aside(span)
        if each.span_id in below:
            claims = own[each.span_id]
            parent = next(iter(claims)) if len(claims) == 1 else everywhere
            # Only a chat is a better parent than the subagent.
            sent = {root_span_id, *(subagents if parent in every else ())}
            _move_below(span, parent, sent, stays=fragment.trace_id == trace_id)
        for name, value in (facts or {}).get(each.span_id, ()):
            _add(span, name, value)
        _add(span, semconv.SPAN_TYPE, SPAN_TYPE)
        if fragment.trace_id != trace_id:
            _add(span, semconv.ORIGINAL_TRACE, fragment.trace_id)
            span.links.add(trace_id=bytes.fromhex(fragment.trace_id), span_id=span.span_id)
            span.trace_id = bytes.fromhex(trace_id)
            # Of the trace that it came from.
            span.trace_state = ""


def scrub(spans: Iterable[ForeignSpan], scrubbed: Callable[[str], str]) -> None:
    """Take out what is secret, whatever the content level; *scrubbed* knows secrets by their look."""
    resources = {}
    for each in spans:
        span = each.span
        resources[id(each.resource)] = each.resource
        span.name = _clean(span.name, scrubbed)
        span.status.message = _clean(span.status.message, scrubbed)
        for event in span.events:
            event.name = _clean(event.name, scrubbed)
        bearers: list[Any] = [span, *span.events, *span.links]
        for bearer in bearers:
            scrub_attributes(bearer.attributes, scrubbed)
    for resource in resources.values():
        for attribute in resource.attributes:
            _change_texts(attribute.value, lambda text: _clean(text, scrubbed))


def scrub_attributes(attributes: Any, scrubbed: Callable[[str], str]) -> None:
    """Do to the attributes of a span what `scrub` does."""
    _keep(attributes, lambda name, _: not _SECRET_HEADER.fullmatch(name))
    for attribute in attributes:
        if attribute.key in _END_USER and attribute.value.HasField("string_value"):
            attribute.value.string_value = _session_only(attribute.value.string_value)
        _change_texts(attribute.value, lambda text: _clean(text, scrubbed))


def _clean(text: str, scrubbed: Callable[[str], str]) -> str:
    if not text:
        return text
    # Tried on every text, the pattern would be slower than all else.
    if _suspicion().of(text):
        text = _SECRET_IN_TEXT.sub(r"\1'[secret removed]'", text)
    return scrubbed(text)


@cache
def _suspicion() -> Suspicion[str]:
    return Suspicion({"header": _SECRET_IN_TEXT.pattern})


def reduce(span: Span, longest: int | None) -> None:
    """Leave of what was said *longest* characters of each text: all if None, nothing if 0."""
    if longest is None:
        return
    bearers: list[Any] = [span, *span.events]
    for bearer in bearers:
        if longest == 0:
            _keep(bearer.attributes, _is_metadata)
        for attribute in bearer.attributes:
            _change_texts(attribute.value, lambda text: _cut(text, longest or _LONGEST_NAME))
    span.status.message = _cut(span.status.message, longest)


def attributes_of(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {each.key: plain(each.value) for each in attributes}


def plain(value: AnyValue) -> Any:
    """Return a value as Python has it."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return getattr(value, kind)


def _is_call(facts: dict[str, Any]) -> bool:
    operation = text_of(facts, "gen_ai.operation.name")
    kind = text_of(facts, "openinference.span.kind")
    if operation in _NO_CALLS or kind in {"AGENT", "TOOL", "CHAIN"}:
        return False
    if operation in _CALLS or kind in {"LLM", "EMBEDDING"}:
        return True
    names_model = any(facts.get(name) for name in (*_REQUEST_MODEL, *_RESPONSE_MODEL))
    answered = facts.get("gen_ai.response.id") or any(name in facts for name in (*_INPUT, *_OUTPUT))
    # LiteLLM's first version has operations of its own.
    return names_model and bool(answered or operation)


def _has_failed(foreign: ForeignSpan) -> bool:
    return foreign.span.status.code == Status.STATUS_CODE_ERROR


def _resends(facts: Mapping[str, Any]) -> int:
    return _number(facts, _RESENDS) or 0


def _call(foreign: ForeignSpan, facts: dict[str, Any], parent: str | None) -> GatewayCall:
    span = foreign.span
    start_ns, end_ns = span.start_time_unix_nano, span.end_time_unix_nano
    log_ids = {header: told for name, header in _LOG_IDS.items() if (told := text_of(facts, name))}
    status_code = _number(facts, _STATUS_CODE)
    error_type = None
    if _has_failed(foreign):
        failed = status_code is not None and status_code >= 400
        error_type = str(status_code) if failed else _short(text_of(facts, "error.type")) or "error"
    message = None if error_type is None else _message(span, facts)
    first = _float(facts, _FIRST_CHUNK)
    operation = text_of(facts, "gen_ai.operation.name")
    identity = _identity(facts)
    asked, answered = _tools(facts)
    trace = span.trace_id.hex()
    return GatewayCall(
        call_id=call_id_of(trace, foreign.span_id),
        gateway=_gateway(foreign, facts),
        method="",
        path="",
        start_ns=start_ns,
        end_ns=max(start_ns, end_ns),
        identity=identity,
        conversation_id=_text(facts, _CONVERSATION),
        traceparent=None if parent is None else f"00-{trace}-{parent}-01",
        dialect="unknown.embeddings" if operation == "embeddings" else "unknown",
        provider=_short(_text(facts, _PROVIDER)),
        server_address=text_of(facts, "server.address"),
        server_port=_number(facts, ("server.port",)),
        requested_model=_text(facts, _REQUEST_MODEL),
        model=_text(facts, _RESPONSE_MODEL),
        streaming=any(str(facts.get(name)).lower() == "true" for name in _STREAMING),
        status_code=status_code,
        error_type=error_type,
        error_message=message,
        first_byte_ns=None if first is None else start_ns + int(first * SECOND_NS),
        response_id=_response_id(facts),
        request_id=_request_id(facts, message),
        stop_reason=_stop_reason(facts),
        usage=None if error_type is not None else _usage(facts),
        tool_call_ids=asked,
        tool_result_ids=answered,
        response_headers=log_ids,
    )


def _response_id(facts: Mapping[str, Any]) -> str | None:
    told = _text(facts, _RESPONSE_ID)
    # LiteLLM's pass-through routes put their own id there.
    own = [facts.get(name) for name in _LOG_IDS]
    return None if told is None or told in own else provider_id(told)


def _gateway(foreign: ForeignSpan, facts: Mapping[str, Any]) -> str:
    service = _service(foreign.resource)
    words = f"{foreign.scope.name} {service}".lower()
    if "litellm" in words or "litellm.call_id" in facts:
        return "litellm"
    if "respan" in words or "gateway.format" in facts:
        return "respan-gateway"
    if "envoy" in words:
        return "envoy"
    return _short(service) or "otlp"


def _identity(facts: Mapping[str, Any]) -> CallIdentity | None:
    headers = {
        name.lower(): value
        for name, value in _literal(facts.get(_HEADERS)).items()
        if isinstance(name, str) and isinstance(value, str)
    }
    for name in facts:
        if name.startswith(_HEADER_PREFIX) and (value := _header(facts, name)) is not None:
            headers[name.removeprefix(_HEADER_PREFIX).lower()] = value
    user = _text(facts, _END_USER)
    return identify_call(headers, {"metadata": {"user_id": user}}) if headers or user else None


def _literal(text: object) -> dict[Any, Any]:
    """Return the dictionary that *text* shows in JSON's or Python's notation, or an empty one."""
    if not isinstance(text, str) or len(text) > LITERAL_LIMIT:
        return {}
    try:
        value = orjson.loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return {}
    return dict_of(value)


def _usage(facts: dict[str, Any]) -> Usage | None:
    told = _literal(facts.get(_USAGE_OBJECT))
    read = dict_of(told.get("prompt_tokens_details"))
    written = dict_of(told.get("completion_tokens_details"))
    usage = Usage(
        input_tokens=_count(facts, _INPUT),
        output_tokens=_count(facts, _OUTPUT),
        cache_read_tokens=_first(_count(facts, _CACHE_READ), count_of(read, "cached_tokens")),
        cache_write_tokens=_first(
            _count(facts, _CACHE_WRITE),
            count_of(read, "cache_write_tokens"),
            count_of(read, "cache_creation_tokens"),
        ),
        reasoning_tokens=_first(_count(facts, _REASONING), count_of(written, "reasoning_tokens")),
    )
    # No model answers without having read a token: the gateway did not understand the answer.
    return usage if usage.input_tokens else None


def _tools(facts: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the ids of the tool calls that an answer asks for, and of those its request answers."""
    asked = [value for name, value in facts.items() if _TOOL_CALL.fullmatch(name)]
    answered = [value for name, value in facts.items() if _TOOL_RESULT.fullmatch(name)]
    asked += _parts(facts.get("gen_ai.output.messages"), "tool_call")
    answered += _parts(facts.get("gen_ai.input.messages"), "tool_call_response")
    return _ids(asked), _ids(answered)


def _parts(messages: object, kind: str) -> list[Any]:
    if not isinstance(messages, str):
        return []
    try:
        parsed = orjson.loads(messages)
    except ValueError:
        return []
    return [
        part.get("id")
        for message in dicts_in(parsed)
        for part in dicts_in(message.get("parts"))
        if part.get("type") == kind
    ]


def _ids(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for each in values if isinstance(each, str) and each))


def _stop_reason(facts: Mapping[str, Any]) -> str | None:
    told = facts.get("gen_ai.response.finish_reasons") or facts.get("llm.finish_reason")
    if isinstance(told, str) and told.startswith("["):
        try:
            told = json.loads(told)
        except (ValueError, RecursionError):
            return None
    if isinstance(told, list):
        told = told[0] if told else None
    return _short(told) if isinstance(told, str) else None


def _message(span: Span, facts: Mapping[str, Any]) -> str | None:
    events = (attributes_of(event.attributes) for event in span.events)
    told = (
        span.status.message,
        facts.get("error.message"),
        *(event.get("exception.message") for event in events),
    )
    return next((text[:MESSAGE_LIMIT] for text in told if isinstance(text, str) and text), None)


def _request_id(facts: Mapping[str, Any], message: str | None) -> str | None:
    """Return the provider's id of an attempt, or of a failed one as its *message* tells it."""
    told = (_header(facts, name) for name in _REQUEST_IDS)
    found = _REQUEST_ID.search(message or "")
    return next(filter(None, told), found[1] if found is not None else None)


def _header(facts: Mapping[str, Any], name: str) -> str | None:
    """Return a header that a span tells; a list by the conventions, a text by Envoy."""
    value = facts.get(name)
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, str) else None


def set_usage_aside(span: Span) -> None:
    """Put what a backend counts under names of our own."""
    for attribute in span.attributes:
        if _COUNTED.fullmatch(attribute.key):
            attribute.key = semconv.ORIGINAL_PREFIX + attribute.key


def _move_below(span: Span, parent: str, sent: set[str], *, stays: bool) -> None:
    before = span.parent_span_id.hex()
    if stays and before not in {"", *sent}:
        return
    if before and before != parent:
        _add(span, semconv.ORIGINAL_PARENT, before)
    span.parent_span_id = bytes.fromhex(parent)


def _add(span: Span, name: str, value: str | int) -> None:
    attribute = span.attributes.add(key=name)
    if isinstance(value, str):
        attribute.value.string_value = value
    else:
        attribute.value.int_value = value


def _keep(attributes: Any, wanted: Callable[[str, AnyValue], bool]) -> None:
    kept = [each for each in attributes if wanted(each.key, each.value)]
    if len(kept) < len(attributes):
        copies = [KeyValue.FromString(each.SerializeToString()) for each in kept]
        del attributes[:]
        attributes.extend(copies)


def _is_metadata(name: str, value: AnyValue) -> bool:
    return not _SAID.fullmatch(name) and len(value.SerializeToString()) <= _LONGEST_NAME


def _change_texts(value: AnyValue, change: Callable[[str], str]) -> None:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        text = value.string_value
        changed = change(text)
        if changed != text:
            value.string_value = changed
    elif kind == "array_value":
        for each in value.array_value.values:
            _change_texts(each, change)
    elif kind == "kvlist_value":
        for member in value.kvlist_value.values:
            _change_texts(member.value, change)


def _cut(text: str, longest: int) -> str:
    if longest == 0:
        return ""
    return text if len(text) <= longest else f"{text[:longest]}… [cut: {len(text)} characters]"


def _session_only(user: str) -> str:
    """Return what an agent says of its user without device and account."""
    told = _literal(user)
    session = told.get("session_id")
    return orjson.dumps({"session_id": session}).decode() if isinstance(session, str) else user


def _is_sound(span: Span) -> bool:
    return (
        len(span.trace_id) == 16
        and len(span.span_id) == 8
        and len(span.parent_span_id) in (0, 8)
        and any(span.trace_id)
        and any(span.span_id)
        and 0 < span.start_time_unix_nano < LATEST_NS
        and span.end_time_unix_nano < LATEST_NS
    )


def _service(resource: Resource) -> str:
    for attribute in resource.attributes:
        if attribute.key == "service.name":
            return attribute.value.string_value
    return ""


@cache
def _agent_services() -> frozenset[str]:
    """Return the names under which agents export spans of their own."""
    programs = {each.PROGRAM for each in agents().values()}
    # Codex names its mode behind its own name.
    modes = {f"{program}_{mode}" for program in programs for mode in ("exec", "cli_rs", "tui")}
    return frozenset({*agents(), *telemetry(), *programs, *modes})


def _text(facts: Mapping[str, Any], names: Iterable[str]) -> str | None:
    for name in names:
        value = facts.get(name)
        if value and isinstance(value, str):
            return value
    return None


def _number(facts: Mapping[str, Any], names: Iterable[str]) -> int | None:
    for name in names:
        try:
            number = int(facts[name])
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if 0 <= number < 2**31:
            return number
    return None


def _float(facts: Mapping[str, Any], names: Iterable[str]) -> float | None:
    values = (facts.get(name) for name in names)
    return next((v for v in values if isinstance(v, float) and 0 <= v < 86_400), None)


def _count(facts: dict[str, Any], names: Iterable[str]) -> int | None:
    return _first(*(count_of(facts, name) for name in names))


def _first(*numbers: int | None) -> int | None:
    return next((number for number in numbers if number is not None), None)


def _short(text: str | None) -> str | None:
    return text[:NAME_LIMIT] if text else None

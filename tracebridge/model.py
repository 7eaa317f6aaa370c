"""The frozen records that everything speaks.

What flows in: `HookEvent` (one payload an agent gave a hook), `Sighting` (what an adapter made of
a hook event or of transcript lines) and `GatewayCall` (one HTTP attempt as a gateway saw it).
What flows out: `Turn`, and the `Span`s that show it. Times are int nanoseconds since the epoch.

Sightings and their parts are structs of msgspec, which are made in a tenth of the time that a frozen
dataclass takes: a year of sessions has millions of them. What is frozen is in no cycle, so the garbage
collector need not look at them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TypeAlias

from msgspec import Struct

AttributeValue: TypeAlias = str | bool | int | float | tuple[str, ...]


class Source(StrEnum):
    """Who saw it."""

    HOOK = "hook"
    TRANSCRIPT = "transcript"
    GATEWAY = "gateway"


class Outcome(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    ABANDONED = "abandoned"


class Evidence(StrEnum):
    """The key by which a gateway call was linked; only the last is an inference."""

    TRACEPARENT = "traceparent"
    TURN_ID = "turn_id"
    RESPONSE_ID = "response_id"
    REQUEST_ID = "request_id"
    TOOL_CALL_ID = "tool_call_id"
    SESSION_WINDOW = "session_window"

    @property
    def confidence(self) -> str:
        return "inferred" if self is Evidence.SESSION_WINDOW else "exact"


@dataclass(frozen=True, slots=True, kw_only=True)
class HookEvent:
    """One payload that an agent gave a hook, untouched, with what only the hook could know."""

    agent: str
    time_ns: int
    pid: int
    env: Mapping[str, str]
    payload: bytes
    # The payload's real size; larger than len(payload) where the hook's cap cut it.
    payload_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanExport:
    """Spans that another gateway sent us: an OTLP ExportTraceServiceRequest, as protobuf."""

    time_ns: int
    request: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one model call. *input_tokens* includes both cache counts, as in OTel."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    # Part of output_tokens, not beside it.
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallIdentity:
    """What an agent tells a gateway about who is calling, in headers or body."""

    agent: str
    session_id: str | None = None
    turn_key: str | None = None
    subagent_id: str | None = None
    # What the call is for: main, subagent, auxiliary, compaction.
    request_class: str | None = None
    # Key of the agent's own record of the call, where it tells that instead of a response id.
    call_key: str | None = None
    # Made in a thread of its own, of which no turn tells.
    is_alone: bool = False
    # How long the tools took whose results the request brings, by tool call id.
    tool_durations_ns: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_side_call(self) -> bool:
        """Say whether the call serves the agent's housekeeping and not the turn's work."""
        return self.request_class in {"auxiliary", "compaction"}


# Why no turn claims a title call and the like, where an agent makes them in a thread of their own.
SIDE_CALL = "a side call in a thread of its own"
# Of calls that no agent made.
SCRIPT_CALL = "a call of a script, not of an agent"
# The gateway of calls that their client made past all gateways, and told us of afterwards.
LOGGED = "logged"


# What gateways behind ours say of a call in the headers of its response, so that it can be found
# again in their own records.
UPSTREAM_HEADERS = (
    "apim-request-id",
    "cf-aig-cache-status",
    "cf-aig-log-id",
    "helicone-id",
    "x-amzn-requestid",
    "x-generation-id",
    "x-litellm-attempted-fallbacks",
    "x-litellm-attempted-retries",
    "x-litellm-call-id",
    "x-litellm-model-id",
    "x-portkey-trace-id",
)


OWN_GATEWAY = "tracebridge"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayCall:
    """One HTTP attempt at a model, as a gateway saw it."""

    # Unique per physical attempt, given by the gateway that recorded it.
    call_id: str
    # Which gateway: "tracebridge" for ours.
    gateway: str
    method: str
    path: str
    start_ns: int
    end_ns: int
    identity: CallIdentity | None = None
    # The session, or the thread of a subagent, where a gateway does not say of which agent.
    conversation_id: str | None = None
    # The header as the client sent it; never the one we added.
    traceparent: str | None = None
    # "anthropic.messages", "anthropic.count_tokens", ...; "unknown" where nothing was parsed.
    dialect: str = "unknown"
    provider: str | None = None
    server_address: str | None = None
    server_port: int | None = None
    # What the upstream was asked for, and the alias that stood there before, if one did.
    requested_model: str | None = None
    model_alias: str | None = None
    model: str | None = None
    streaming: bool = False
    status_code: int | None = None
    # Low cardinality: "429", "overloaded_error", "stream_cut", "client_abort", "connect_failed".
    error_type: str | None = None
    error_message: str | None = None
    # First byte of the response body, and first token (text, thinking or tool input) in it.
    first_byte_ns: int | None = None
    first_token_ns: int | None = None
    response_id: str | None = None
    request_id: str | None = None
    stop_reason: str | None = None
    usage: Usage | None = None
    # How many content blocks the response had, where its API counts them.
    blocks: int | None = None
    # Tool calls the response asks for, and those whose results the request carries.
    tool_call_ids: tuple[str, ...] = ()
    tool_result_ids: tuple[str, ...] = ()
    # The nth attempt that this client connection history shows for the same request, from 1.
    attempt: int | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    # Allow-listed, lower-case names; never authorization.
    request_headers: Mapping[str, str] = field(default_factory=dict)
    response_headers: Mapping[str, str] = field(default_factory=dict)
    # True where the recorded copy was cut at its cap or could not be parsed.
    partial: bool = False
    # Of the one command that the gateway was started for: its process, and the user's tags in it.
    launcher_pid: int | None = None
    launcher_env: Mapping[str, str] = field(default_factory=dict)
    # Whose key it came with, or for whom its client says that it was made.
    client_name: str | None = None

    @property
    def is_ours(self) -> bool:
        """Say whether our own gateway saw it; others may lie behind it, and have other clocks."""
        return self.gateway == OWN_GATEWAY

    @property
    def is_to_a_model(self) -> bool:
        """Say whether anything shows that a model was asked, and not for analytics or a list."""
        known = (self.identity, self.requested_model, self.model, self.response_id, self.usage)
        return self.dialect != "unknown" or any(fact is not None for fact in known)


class Prompt(Struct, frozen=True, kw_only=True, gc=False):
    """Something said to the agent: the turn's prompt, or input while it ran."""

    key: str
    text: str | None = None
    # "human", "task_notification", "command", ...
    origin: str | None = None
    start_ns: int | None = None
    # Said while the turn was running, whether it was taken in or queued for the next.
    mid_turn: bool | None = None


class ModelCall(Struct, frozen=True, kw_only=True, gc=False):
    """One attempt at a model as the agent's own records tell it. *key*: response id or stand-in."""

    key: str
    response_id: str | None = None
    request_id: str | None = None
    requested_model: str | None = None
    model: str | None = None
    provider: str | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    usage: Usage | None = None
    stop_reason: str | None = None
    status_code: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    attempt: int | None = None
    output_text: str | None = None
    tool_call_ids: tuple[str, ...] | None = None
    # Which content blocks of the answer are told so far, where each is a record of its own.
    blocks: tuple[str, ...] | None = None
    purpose: str | None = None


class Thinking(Struct, frozen=True, kw_only=True, gc=False):
    """A thinking block of one response; its text may be empty while its time is known."""

    key: str
    call_key: str
    start_ns: int | None = None
    end_ns: int | None = None
    text: str | None = None
    redacted: bool | None = None


# How the key of a tool call begins that was told without an id; behind it, what keeps it apart.
UNNAMED = "unnamed:"


class ToolCall(Struct, frozen=True, kw_only=True, gc=False):
    key: str
    name: str | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    # What the tool itself took, without hooks and approval.
    duration_ns: int | None = None
    input: str | None = None
    output: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    exit_code: int | None = None
    # Digest of name and input: how an ask without a tool call id finds its tool.
    input_digest: str | None = None
    mcp_server: str | None = None


class FileEdit(Struct, frozen=True, kw_only=True, gc=False):
    key: str
    tool_key: str
    path: str | None = None
    # "create", "update", "delete".
    operation: str | None = None
    lines_added: int | None = None
    lines_removed: int | None = None
    diff: str | None = None
    failed: bool | None = None


class PermissionAsk(Struct, frozen=True, kw_only=True, gc=False):
    """Somebody was asked. *tool_key* or, where the agent does not tell it, *input_digest*."""

    key: str
    tool_key: str | None = None
    tool_name: str | None = None
    input_digest: str | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    decision: str | None = None
    decided_by: str | None = None


class Subagent(Struct, frozen=True, kw_only=True, gc=False):
    key: str
    type: str | None = None
    description: str | None = None
    tool_key: str | None = None
    # The subagent that started this one, if it was not the main thread.
    parent_key: str | None = None
    # A turn key under which hooks may tell of it as if it were a turn of the user.
    own_turn_key: str | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    output: str | None = None


class Compaction(Struct, frozen=True, kw_only=True, gc=False):
    key: str
    trigger: str | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    tokens_before: int | None = None
    tokens_after: int | None = None
    error_type: str | None = None


class TurnEnd(Struct, frozen=True, kw_only=True, gc=False):
    """A sign that the turn is over, and how it went."""

    key: str
    end_ns: int
    outcome: Outcome
    message: str | None = None
    error_type: str | None = None
    # Subagents that were still at work then.
    running: tuple[str, ...] = ()


class SessionInfo(Struct, frozen=True, kw_only=True, gc=False):
    """What is true of the whole session (or of the turn, where the sighting names one)."""

    key: str
    agent_version: str | None = None
    model: str | None = None
    cwd: str | None = None
    git_branch: str | None = None
    permission_mode: str | None = None
    pid: int | None = None
    transcript: str | None = None
    # Set when the session itself ended.
    ended_ns: int | None = None
    end_reason: str | None = None


OUTER_PARENT = "parent"


class Tags(Struct, frozen=True, kw_only=True, gc=False):
    """Who the work is for, in the user's own words."""

    key: str = "tags"
    customer_id: str | None = None
    workflow_name: str | None = None
    span_name: str | None = None
    project_id: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    # The traceparent of what the agent was started by: a CI job, an orchestrator.
    outer: str | None = None
    # "parent" where its turns shall lie in that trace; else they only point there.
    outer_as: str | None = None

    @property
    def parent_trace_id(self) -> str | None:
        """Return the trace in which the turn goes out, where that is not its own."""
        if self.outer is None or self.outer_as != OUTER_PARENT:
            return None
        return self.outer[3:35]


Part: TypeAlias = (
    Prompt
    | ModelCall
    | Thinking
    | ToolCall
    | FileEdit
    | PermissionAsk
    | Subagent
    | Compaction
    | TurnEnd
    | SessionInfo
    | Tags
)


class Sighting(Struct, frozen=True, kw_only=True, gc=False):
    """One thing one source saw: a partial record in which the unseen is None.

    A sighting is a value: the same hook event or transcript line always gives an equal one, so a
    set of sightings is all the state there is. Without *turn_key* it belongs to the turn of
    *subagent_id*, or else to the whole session.
    """

    agent: str
    session_id: str
    source: Source
    time_ns: int
    part: Part
    turn_key: str | None = None
    subagent_id: str | None = None


class SpanKind(IntEnum):
    """The numbers are OTLP's."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Status(IntEnum):
    """The numbers are OTLP's."""

    UNSET = 0
    OK = 1
    ERROR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanEvent:
    name: str
    time_ns: int
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanLink:
    trace_id: str
    span_id: str
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One finished span, or an open one while *end_ns* is None. Ids are lower-case hex."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: SpanKind
    start_ns: int
    end_ns: int | None
    status: Status = Status.UNSET
    status_message: str = ""
    # In a fixed order, so that the same span always encodes to the same bytes.
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()
    links: tuple[SpanLink, ...] = ()
    # Resource of who made it, where that is not the agent.
    origin: tuple[tuple[str, str], ...] = ()
    # The span of another's trace under which the whole turn goes out. Here it keeps its own ids.
    within: SpanLink | None = None

    @property
    def sent_trace_id(self) -> str:
        return self.trace_id if self.within is None else self.within.trace_id

    @property
    def sent_parent_span_id(self) -> str | None:
        if self.parent_span_id is None and self.within is not None:
            return self.within.span_id
        return self.parent_span_id


class TurnState(StrEnum):
    """An open turn may still grow; a finished one is told; an abandoned one never told its end."""

    OPEN = "open"
    FINISHED = "finished"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Which turn, and which subagent in it, made a gateway call, and how we know."""

    trace_id: str
    evidence: Evidence
    subagent_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """One physical call: what the agent's records say of it, what a gateway saw, or both."""

    # What its span id is derived from: response id, else request id, else a stand-in.
    key: str
    told: ModelCall | None = None
    seen: GatewayCall | None = None
    evidence: Evidence | None = None
    # By what *told* and *seen* are known to be one call: an id, "tokens" or "time".
    matched_by: str | None = None
    subagent_id: str | None = None
    compaction_key: str | None = None
    # From 2 where calls failed right before it, and the key of the first of them.
    attempt: int | None = None
    retry_of: str | None = None
    # The same call as gateways before or behind *seen* tell of it.
    others: tuple[GatewayCall, ...] = ()

    @property
    def start_ns(self) -> int | None:
        """Return when it began by a clock of this machine; another gateway's may be any other."""
        best = self.seen if self.seen is not None and self.seen.is_ours else self.told
        return best.start_ns if best is not None else None

    @property
    def end_ns(self) -> int | None:
        best = self.seen if self.seen is not None and self.seen.is_ours else self.told
        return best.end_ns if best is not None else None

    @property
    def error_type(self) -> str | None:
        return self._best.error_type if self._best is not None else None

    @property
    def is_side_call(self) -> bool:
        identity = self.seen.identity if self.seen is not None else None
        return identity is not None and identity.is_side_call

    @property
    def _best(self) -> GatewayCall | ModelCall | None:
        return self.seen if self.seen is not None else self.told


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn as far as it is known, put together from any number of sightings."""

    agent: str
    session_id: str
    turn_key: str
    trace_id: str
    state: TurnState
    start_ns: int
    # None while open.
    end_ns: int | None = None
    outcome: Outcome | None = None
    # Every source that told of the turn at all told of its end too: no need to wait for more.
    confirmed: bool = False
    error_type: str | None = None
    prompts: tuple[Prompt, ...] = ()
    answer: str | None = None
    info: SessionInfo = SessionInfo(key="")  # noqa: RUF009  # immutable
    tags: Tags = Tags()  # noqa: RUF009  # as above
    chats: tuple[Chat, ...] = ()
    thinking: tuple[Thinking, ...] = ()
    tools: tuple[ToolCall, ...] = ()
    edits: tuple[FileEdit, ...] = ()
    waits: tuple[PermissionAsk, ...] = ()
    subagents: tuple[Subagent, ...] = ()
    compactions: tuple[Compaction, ...] = ()
    # Keys of the chats that nothing which is still to come can change.
    final: tuple[str, ...] = ()
    # Who made what: the subagent of a tool call, by tool key.
    tool_owners: Mapping[str, str] = field(default_factory=dict)

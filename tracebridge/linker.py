"""Gateway calls and turns to links: which turn made which call, and how we know. Pure.

Evidence, best first: a traceparent that names a turn's trace; the turn id in the request; the
response id or request id that the transcript knows too; a tool call id; and last, marked as
inferred, the session and the time, where one turn alone can claim the call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tracebridge.ids import root_span_id, trace_id
from tracebridge.model import (
    LOGGED,
    SIDE_CALL,
    CallIdentity,
    Chat,
    Evidence,
    GatewayCall,
    Link,
    ModelCall,
    Turn,
)
from tracebridge.response_ids import comparable, gateway_names, is_added, provider_id

# Clocks of one machine, read by different processes.
SKEW_NS = 1_000_000_000
# Between what a gateway saw and what an agent without ids wrote of the end of the same answer.
SAME_ANSWER_NS = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Orphan:
    """A call that no turn claims, and why."""

    call: GatewayCall
    reason: str


def link(
    calls: Iterable[GatewayCall], turns: Sequence[Turn]
) -> tuple[list[tuple[GatewayCall, Link]], list[Orphan]]:
    """Return the calls with the turn that made each, and those that no turn alone can claim.

    *turns* may be open; they may also already carry calls from an earlier look.
    """
    index = _Index(turns)
    linked: list[tuple[GatewayCall, Link]] = []
    orphans: list[Orphan] = []
    for call in calls:
        found = index.link(call)
        if isinstance(found, Link):
            linked.append((call, found))
        else:
            orphans.append(Orphan(call, found))
    return _with_others(linked, orphans)


def _with_others(
    linked: list[tuple[GatewayCall, Link]], orphans: list[Orphan]
) -> tuple[list[tuple[GatewayCall, Link]], list[Orphan]]:
    """Link what other gateways saw of a linked call, and what tells no more than that, like it."""
    known = {name: found for call, found in linked for name in gateway_names(call)}
    still = []
    for orphan in orphans:
        names = [] if orphan.call.is_ours else gateway_names(orphan.call)
        found = next((known[name] for name in names if name in known), None)
        if found is None:
            still.append(orphan)
        else:
            linked.append((orphan.call, found))
    return linked, still


class _Index:
    def __init__(self, turns: Sequence[Turn]) -> None:
        self._traces = {turn.trace_id: turn for turn in turns}
        # Turns that go out in another's trace, by what is told of them as trace and parent.
        self._within = {
            (turn.tags.parent_trace_id, root_span_id(turn.trace_id)): turn
            for turn in turns
            if turn.tags.parent_trace_id is not None
        }
        self._by_response: dict[str, tuple[Turn, ModelCall]] = {}
        self._by_request: dict[str, Turn] = {}
        self._by_tool: dict[str, Turn] = {}
        self._sessions: dict[tuple[str, str], list[Turn]] = defaultdict(list)
        # By the ids of sessions and of subagents, whichever agent's.
        self._conversations: dict[str, list[Turn]] = defaultdict(list)
        for turn in sorted(turns, key=lambda turn: (turn.start_ns, turn.trace_id)):
            self._sessions[turn.agent, turn.session_id].append(turn)
            for conversation in {turn.session_id, *(each.key for each in turn.subagents)}:
                self._conversations[conversation].append(turn)
            for chat in turn.chats:
                if chat.told is not None and chat.told.response_id is not None:
                    name = provider_id(chat.told.response_id)
                    self._by_response.setdefault(name, (turn, chat.told))
                if chat.told is not None and chat.told.request_id is not None:
                    self._by_request.setdefault(chat.told.request_id, turn)
            # Until it is known who started a subagent, hooks may tell of its tools under any turn.
            at_home = {None, *(s.key for s in turn.subagents if s.start_ns or s.tool_key)}
            for tool in turn.tools:
                if turn.tool_owners.get(tool.key) in at_home:
                    self._by_tool.setdefault(tool.key, turn)

    def link(self, call: GatewayCall) -> Link | str:
        """Return the link of *call*, or the reason why there is none."""
        exact = self._exact(call)
        if exact is not None:
            turn, evidence = exact
            return Link(
                trace_id=turn.trace_id, evidence=evidence, subagent_id=_container(call, turn)
            )
        return self._by_window(call)

    def _exact(self, call: GatewayCall) -> tuple[Turn, Evidence] | None:
        identity = call.identity
        if call.traceparent is not None:
            told = call.traceparent[3:35], call.traceparent[36:52]
            turn = self._traces.get(told[0]) or self._within.get(told)
            if turn is not None:
                return turn, Evidence.TRACEPARENT
        if identity is not None and identity.session_id is not None and identity.turn_key:
            named = trace_id(identity.agent, identity.session_id, identity.turn_key)
            turn = self._traces.get(named)
            return None if turn is None else (turn, Evidence.TURN_ID)
        answered = None if call.response_id is None else provider_id(call.response_id)
        if answered is not None and answered in self._by_response:
            turn, told_call = self._by_response[answered]
            added = is_added(told_call, call)
            return turn, Evidence.TOOL_CALL_ID if added else Evidence.RESPONSE_ID
        if call.request_id is not None and call.request_id in self._by_request:
            return self._by_request[call.request_id], Evidence.REQUEST_ID
        tools = _tools(call)
        claims = {
            turn.trace_id: turn for tool in tools if (turn := self._by_tool.get(tool)) is not None
        }
        if len(claims) == 1:
            return next(iter(claims.values())), Evidence.TOOL_CALL_ID
        return None

    def _by_window(self, call: GatewayCall) -> Link | str:
        identity = call.identity
        if identity is None:
            return self._by_conversation(call)
        if identity.session_id is None:
            return self._by_agent(call, identity)
        turns = self._sessions.get((identity.agent, identity.session_id), [])
        if identity.turn_key:
            # It says whose it is; a guess would contradict it.
            return SIDE_CALL if identity.is_side_call and not turns else "its turn is not known"
        return self._by_time(call, turns)

    def _by_conversation(self, call: GatewayCall) -> Link | str:
        """Link a call of which another gateway tells the session at most, and not the agent."""
        named = self._conversations.get(call.conversation_id or "", [])
        if not call.is_ours and call.gateway != LOGGED:
            turns = named if call.conversation_id is not None else self._traces.values()
            claims = [(turn, chat) for turn in turns for chat in turn.chats if _is_told(call, chat)]
            if len({turn.trace_id for turn, _ in claims}) == 1:
                turn, chat = claims[0]
                return Link(
                    trace_id=turn.trace_id,
                    evidence=Evidence.SESSION_WINDOW,
                    subagent_id=_container(call, turn) or chat.subagent_id,
                )
        if call.conversation_id is None:
            return "no session in the request"
        return self._by_time(call, named)

    def _by_time(self, call: GatewayCall, turns: Sequence[Turn]) -> Link | str:
        """Link a call to the turn of its session that was open then, or the last before."""
        if not turns:
            return "its session is not known"
        during = _open_at(turns, call.start_ns, 0) or _open_at(turns, call.start_ns, SKEW_NS)
        if len(during) > 1:
            return "more than one turn of its session was open"
        # A title or classifier call may come after the answer: it is still the last turn's.
        begun = during or [turn for turn in turns if turn.start_ns <= call.start_ns]
        if not begun:
            return "before the first turn of its session"
        turn = begun[-1]
        return Link(
            trace_id=turn.trace_id,
            evidence=Evidence.SESSION_WINDOW,
            subagent_id=_container(call, turn),
        )

    def _by_agent(self, call: GatewayCall, identity: CallIdentity) -> Link | str:
        """Link a call whose request names its agent and no more.

        An answer is its who tells of one with its tokens at its time; of what failed and of side
        calls nobody tells, so that only the time counts.
        """
        turns = [
            turn
            for (agent, _), group in self._sessions.items()
            if agent == identity.agent
            for turn in group
        ]
        subagents: dict[str, str | None] = {}
        if call.error_type is None and not identity.is_side_call:
            for turn in turns:
                for chat in turn.chats:
                    if _is_told(call, chat):
                        subagents[turn.trace_id] = chat.subagent_id
            claims = [turn for turn in turns if turn.trace_id in subagents]
        else:
            claims = _open_at(turns, call.start_ns, 0) or _open_at(turns, call.start_ns, SKEW_NS)
        if len(claims) != 1:
            return "more than one turn may have made it" if claims else "no turn tells of it"
        return Link(
            trace_id=claims[0].trace_id,
            evidence=Evidence.SESSION_WINDOW,
            subagent_id=_container(call, claims[0]) or subagents.get(claims[0].trace_id),
        )


def _is_told(call: GatewayCall, chat: Chat) -> bool:
    """Say whether *chat* may be the answer to *call*, where no id can tell."""
    told = chat.told
    return (
        told is not None
        and (told.response_id is None or not comparable(call, told.response_id))
        and told.usage is not None
        and call.usage is not None
        and told.end_ns is not None
        and abs(told.end_ns - call.end_ns) < SAME_ANSWER_NS
        and (told.usage.input_tokens, told.usage.output_tokens)
        == (call.usage.input_tokens, call.usage.output_tokens)
    )


def _open_at(turns: Sequence[Turn], time_ns: int, skew_ns: int) -> list[Turn]:
    return [
        turn
        for turn in turns
        if turn.start_ns - skew_ns <= time_ns
        and (turn.end_ns is None or time_ns <= turn.end_ns + skew_ns)
    ]


def _container(call: GatewayCall, turn: Turn) -> str | None:
    """Return the subagent of *turn* that made the call, if it was not the main thread."""
    if call.identity is not None and call.identity.subagent_id is not None:
        return call.identity.subagent_id
    if any(subagent.key == call.conversation_id for subagent in turn.subagents):
        return call.conversation_id
    for chat in turn.chats:
        told = chat.told
        if (
            told is not None
            and chat.subagent_id is not None
            and call.response_id is not None
            and told.response_id is not None
            and provider_id(told.response_id) == provider_id(call.response_id)
        ):
            return chat.subagent_id
    owners = {turn.tool_owners.get(tool) for tool in _tools(call)}
    return next(iter(owners)) if len(owners) == 1 else None


def _tools(call: GatewayCall) -> tuple[str, ...]:
    """Return the tool calls that tie a call to its turn: asked for, or answered in its request."""
    if call.identity is not None and call.identity.is_side_call:
        # A summary carries the history of turns that it does not belong to.
        return call.tool_call_ids
    return (*call.tool_call_ids, *call.tool_result_ids)

"""Sightings of one session, in any order, to its turns. Pure: no I/O, no clock.

The state is a set of sightings and nothing else. Putting a turn together is a function of that
set, so order and repetition cannot matter; a sighting that never comes leaves a poorer turn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

from msgspec import structs
from msgspec.structs import replace

from tracebridge.chats import is_final, put_together
from tracebridge.codec import encode
from tracebridge.ids import trace_id
from tracebridge.model import (
    UNNAMED,
    Chat,
    Compaction,
    Evidence,
    FileEdit,
    GatewayCall,
    Link,
    ModelCall,
    Outcome,
    Part,
    PermissionAsk,
    Prompt,
    SessionInfo,
    Sighting,
    Source,
    Subagent,
    Tags,
    Thinking,
    ToolCall,
    Turn,
    TurnEnd,
    TurnState,
    Usage,
)
from tracebridge.unnamed import join_calls, name_tools, name_turns, number_compactions

AnyPart = TypeVar(
    "AnyPart",
    Compaction,
    FileEdit,
    ModelCall,
    PermissionAsk,
    Prompt,
    SessionInfo,
    Subagent,
    Tags,
    Thinking,
    ToolCall,
)

# Parts by type and key, each with what it was merged from.
Merged: TypeAlias = dict[tuple[type[Any], str], tuple[list[Sighting], Any]]

# A hook's clock is that of the thing itself; a transcript's lines are written in batches.
RANK = {Source.TRANSCRIPT: 1, Source.HOOK: 2, Source.GATEWAY: 3}


# What a sighting takes beside its texts.
SIGHTING_BYTES = 1000


class TurnAssembler:
    """Hold the sightings of one session and give its turns."""

    def __init__(self, agent: str, session_id: str) -> None:
        self.agent = agent
        self.session_id = session_id
        # In the order in which they came; a dictionary, because that finds what came before.
        self._sightings: dict[Sighting, None] = {}
        # About how many bytes of memory they take.
        self.size = 0
        # As they were at the last look: most of what a turn is stays as it is.
        self._drafts: dict[str, _Draft] = {}

    def add(self, sightings: Iterable[Sighting]) -> list[Sighting]:
        """Take in *sightings* and return those that were new."""
        new = []
        for sighting in sightings:
            if sighting not in self._sightings:
                self._sightings[sighting] = None
                self.size += _size_of(sighting)
                new.append(sighting)
        return new

    def turns(
        self,
        calls: Sequence[tuple[GatewayCall, Link]] = (),
        guessed: Collection[tuple[GatewayCall, Link]] = (),
        *,
        gone: bool = False,
        elsewhere_ns: int = 0,
    ) -> list[Turn]:
        """Return the session's turns by start, with the gateway calls that are linked to them.

        *guessed* calls were told where they are: a turn that names one leaves it out. *gone* says that the agent's process is known to have ended, however it did; at
        *elsewhere_ns* the last of those turns of the session began that are not here.
        """
        by_turn = self._by_turn()
        session = [s for s in self._sightings if _is_of_session(s)]
        info = merge([s for s in session if isinstance(s.part, SessionInfo)], SessionInfo)
        tags = merge([s for s in session if isinstance(s.part, Tags)], Tags)
        ended_ns = next((i.ended_ns for i in info if i.ended_ns is not None), None)
        # A session that was resumed after its end is not over.
        last_ns = max((s.time_ns for s in self._sightings), default=0)
        over_ns = ended_ns if ended_ns is not None and ended_ns >= last_ns else None
        calls_of = defaultdict(list)
        for call, link in (*calls, *guessed):
            calls_of[link.trace_id].append((call, link))
        whose = {
            name: link.trace_id
            for call, link in guessed
            for name in (call.response_id, call.request_id)
            if name is not None
        }
        drafts = []
        before, self._drafts = self._drafts, {}
        for turn_key, sightings in by_turn.items():
            told = (sightings, info, tags)
            draft = before.get(turn_key)
            if draft is None or draft.told != told:
                merged = draft.merged if draft is not None else {}
                draft = _Draft((self.agent, self.session_id), turn_key, told, merged)
            self._drafts[turn_key] = draft
            draft.link(calls_of.get(draft.trace_id, []), whose)
            if draft.is_turn:
                drafts.append(draft)
        drafts.sort(key=lambda draft: (draft.start_ns, draft.turn_key))
        latest = max((n for n, draft in enumerate(drafts) if draft.is_at_work), default=0)
        return [
            draft.turn(over_ns, moved_on=n < latest or elsewhere_ns > draft.start_ns, gone=gone)
            for n, draft in enumerate(drafts)
        ]

    @property
    def info(self) -> SessionInfo:
        """Return what is known of the session as a whole."""
        known = [s for s in self._sightings if isinstance(s.part, SessionInfo)]
        return next(iter(merge(known, SessionInfo)), SessionInfo(key="session"))

    def __len__(self) -> int:
        return len(self._sightings)

    def retire(self, turn_keys: Container[str] | None = None) -> None:
        """Let go of these turns, or of all, but for what tells of their subagents.

        Later sightings of those must find the turn to which they belong.
        """
        kept: dict[Sighting, None] = {}
        size = 0
        home = self.homes()
        for sighting in self._sightings:
            turn_key = home(sighting.turn_key, sighting.subagent_id)
            gone = turn_key is not None and (turn_keys is None or turn_key in turn_keys)
            if not gone or isinstance(sighting.part, Subagent):
                kept[sighting] = None
                size += _size_of(sighting)
        self._sightings = kept
        self.size = size
        self._drafts = {}

    def homes(self) -> Callable[[str | None, str | None], str | None]:
        """Return what tells the turn of a sighting by the turn and the subagent that it names."""
        homes, own_turns = self._homes(), self._own_turns()

        def home(turn_key: str | None, subagent_id: str | None) -> str | None:
            return homes.get(subagent_id or own_turns.get(turn_key or "", ""), turn_key)

        return home

    @property
    def needs_all(self) -> bool:
        """Say whether turns are named by counting them: then none can be put together alone."""
        return any((s.turn_key or "").startswith(UNNAMED) for s in self._sightings)

    def _by_turn(self) -> dict[str, list[Sighting]]:
        homes = self._homes()
        by_turn: dict[str, list[Sighting]] = defaultdict(list)
        own_turns = self._own_turns()
        for told in name_turns(self._sightings):
            if _is_of_session(told):
                continue
            sighting = told
            if told.turn_key in own_turns and told.subagent_id is None:
                if isinstance(told.part, Prompt | TurnEnd):
                    # Not the user's words, and not the end of what the user asked for.
                    continue
                if not isinstance(told.part, SessionInfo | Subagent | Tags):
                    sighting = replace(told, subagent_id=own_turns[told.turn_key])
            subagent = sighting.subagent_id or own_turns.get(sighting.turn_key or "")
            if isinstance(sighting.part, Subagent):
                subagent = sighting.part.key
            turn_key = homes.get(subagent or "", sighting.turn_key)
            if turn_key is not None:
                by_turn[turn_key].append(sighting)
        return by_turn

    def _own_turns(self) -> dict[str, str]:
        return {
            part.own_turn_key: part.key
            for part in (sighting.part for sighting in self._sightings)
            if isinstance(part, Subagent) and part.own_turn_key is not None
        }

    def _homes(self) -> dict[str, str]:
        """Return the turn that started each subagent: hooks of later events may name another."""
        homes: dict[str, tuple[int, int, str]] = {}
        for sighting in self._sightings:
            part, turn_key = sighting.part, sighting.turn_key
            if not isinstance(part, Subagent) or turn_key is None:
                continue
            # The start tells best, then whatever the transcript says.
            known = (part.start_ns is None, sighting.source is Source.HOOK)
            claim = (sum(known), sighting.time_ns, turn_key)
            homes[part.key] = min(homes.get(part.key, claim), claim)
        return {key: claim[2] for key, claim in homes.items()}


class _Draft:
    """One turn on its way from sightings to a `Turn`."""

    def __init__(
        self,
        session: tuple[str, str],
        turn_key: str,
        told: tuple[Sequence[Sighting], Sequence[SessionInfo], Sequence[Tags]],
        merged: Merged,
    ) -> None:
        """*told*: sightings, and what the session says; *merged*: parts as they were before."""
        self.told = told
        sightings, session_info, session_tags = told
        self.turn_key = turn_key
        self._agent, self._session_id = session
        self.trace_id = trace_id(self._agent, self._session_id, turn_key)
        sightings = join_calls(name_tools(number_compactions(_own(sightings))))
        self._owners = _owners(sightings)
        of: dict[type[Part], list[Sighting]] = defaultdict(list)
        for sighting in sightings:
            of[type(sighting.part)].append(sighting)
        self.merged: Merged = {}
        self.prompts = _by_time(merge(of[Prompt], Prompt))
        self.calls = _by_time(merge(of[ModelCall], ModelCall, merged, self.merged))
        self.thinking = _by_time(merge(of[Thinking], Thinking))
        self._told_tools = _by_time(merge(of[ToolCall], ToolCall, merged, self.merged))
        self.tools = self._told_tools
        self.edits = sorted(merge(of[FileEdit], FileEdit), key=attrgetter("key"))
        self.subagents = _by_time(merge(of[Subagent], Subagent))
        self.compactions = _by_time(merge(of[Compaction], Compaction))
        self._asks = _by_time(merge(of[PermissionAsk], PermissionAsk))
        self._ends = sorted(
            (s.part for s in of[TurnEnd] if isinstance(s.part, TurnEnd)),
            key=lambda end: (end.end_ns, end.key),
        )
        sources = {s.source for s in sightings if not isinstance(s.part, SessionInfo | Tags)}
        ends = {s.source for s in sightings if isinstance(s.part, TurnEnd)}
        self._confirmed = Source.TRANSCRIPT in ends and sources == ends
        # All hooks of a turn carry the same tags; an agent's telemetry has none.
        self._tags_known = any(
            s.source is Source.HOOK and not isinstance(s.part, ModelCall | SessionInfo | Tags)
            for s in sightings
        )
        self._told_by_hooks = {
            s.part.key for s in of[ModelCall] if s.source is not Source.TRANSCRIPT
        }
        own_info = merge(of[SessionInfo], SessionInfo)
        self._info = _overlaid(own_info, session_info, SessionInfo(key=""))
        self._tags = _overlaid(merge(of[Tags], Tags), session_tags, Tags())
        self.chats: list[Chat] = []

    def link(self, calls: Sequence[tuple[GatewayCall, Link]], whose: Mapping[str, str]) -> None:
        """Make one chat of each physical call, whoever told of it.

        *whose*: in which trace a call already went out, by its names.
        """
        told = [
            call
            for call in self.calls
            if {
                whose.get(name or "", self.trace_id) for name in (call.response_id, call.request_id)
            }
            == {self.trace_id}
        ]
        self.chats = put_together(told, self._owners, calls, self.compactions)
        durations: dict[str, int] = {}
        for call, _ in calls:
            if call.identity is not None:
                durations |= call.identity.tool_durations_ns
        self.tools = self._told_tools
        if durations:
            self.tools = _by_time(_timed(tool, durations.get(tool.key)) for tool in self.tools)
        clients = {call.client_name for call, _ in calls if call.client_name is not None}
        if self._tags.customer_id is None and len(clients) == 1:
            self._tags = replace(self._tags, customer_id=clients.pop())

    @property
    def is_turn(self) -> bool:
        """Say whether anything happened: a local command or the exit itself is no turn."""
        spoken = any(prompt.origin != "command" for prompt in self.prompts)
        return spoken or bool(self.chats or self.tools or self.compactions)

    @property
    def start_ns(self) -> int:
        starts = [
            *(prompt.start_ns for prompt in self.prompts),
            *(chat.start_ns for chat in self.chats),
            *(tool.start_ns for tool in self.tools),
            *(compaction.start_ns or compaction.end_ns for compaction in self.compactions),
        ]
        known = [start for start in starts if start is not None]
        return min(known or self._moments(), default=0)

    @property
    def is_at_work(self) -> bool:
        """Say whether the agent has begun with it: a prompt alone may wait for the turn before."""
        return bool(self.chats or self.tools or self._ends)

    def turn(self, over_ns: int | None, *, moved_on: bool, gone: bool) -> Turn:
        end = self._end(over_ns, moved_on=moved_on, gone=gone)
        last_ns = max(self._moments(), default=self.start_ns)
        state = TurnState.FINISHED
        if end is None:
            state = TurnState.OPEN
        elif end.outcome is Outcome.ABANDONED:
            state = TurnState.ABANDONED
        start_ns = min(self.start_ns, last_ns)
        prompts = tuple(
            replace(prompt, mid_turn=True if position else prompt.mid_turn)
            for position, prompt in enumerate(self.prompts)
        )
        waits = tuple(_waits(self._asks, self.tools))
        return Turn(
            agent=self._agent,
            session_id=self._session_id,
            turn_key=self.turn_key,
            trace_id=self.trace_id,
            state=state,
            start_ns=start_ns,
            end_ns=None if end is None else max(end.end_ns, start_ns),
            outcome=None if end is None else end.outcome,
            # A link that is inferred may become exact once more is told.
            confirmed=end is not None
            and self._confirmed
            and not any(chat.evidence is Evidence.SESSION_WINDOW for chat in self.chats),
            error_type=None if end is None else end.error_type,
            prompts=prompts,
            answer=self._answer(end),
            info=self._info,
            tags=self._tags,
            chats=tuple(self.chats),
            thinking=tuple(self.thinking),
            tools=tuple(_from_the_ask(self.tools, waits)),
            edits=tuple(self.edits),
            waits=waits,
            subagents=tuple(s for s in self.subagents if self._is_subagent(s)),
            compactions=tuple(_from_their_calls(self.compactions, self.chats)),
            final=tuple(chat.key for chat in self.chats if self._is_final(chat)),
            tool_owners=self._owners,
        )

    def _is_final(self, chat: Chat) -> bool:
        by_hooks = chat.told is not None and chat.told.key in self._told_by_hooks
        return (
            self._tags_known
            # What hooks tell beats the transcript's word: where they name calls in requests, too,
            # that has to be there, and else either may still be to come.
            and (by_hooks == (chat.matched_by == "call_key") or chat.matched_by == "tool_call_id")
            and is_final(chat)
        )

    def _is_subagent(self, subagent: Subagent) -> bool:
        # Compaction stops a subagent that never started.
        return (
            subagent.start_ns is not None
            or subagent.key in self._owners.values()
            or any(chat.subagent_id == subagent.key for chat in self.chats)
        )

    def _end(self, over_ns: int | None, *, moved_on: bool, gone: bool) -> TurnEnd | None:
        last_start_ns = max(self._main_starts(), default=0)
        told = self._told_end()
        if told is not None and told.end_ns >= last_start_ns:
            return told
        last_ns = max(self._moments(), default=self.start_ns)
        if moved_on:
            # Nobody told of an end, yet the session went on: the user broke off, by Escape.
            return TurnEnd(key="moved on", end_ns=last_ns, outcome=Outcome.INTERRUPTED)
        if over_ns is not None:
            waiting = any(tool.end_ns is None for tool in self.tools) or not self.chats
            end_ns = max(over_ns, last_ns) if waiting else last_ns
            return TurnEnd(key="session over", end_ns=end_ns, outcome=Outcome.INTERRUPTED)
        if gone:
            return TurnEnd(key="gone", end_ns=last_ns, outcome=Outcome.ABANDONED)
        return None

    def _told_end(self) -> TurnEnd | None:
        """Return the latest word on how the turn ended; the reason of a failure beats a bare one."""
        if not self._ends:
            return None
        last = self._ends[-1]
        interrupt = next((e for e in self._ends if e.outcome is Outcome.INTERRUPTED), None)
        failures = [e for e in self._ends if e.outcome is Outcome.FAILED]
        if interrupt is not None and interrupt.end_ns >= max(self._main_starts(), default=0):
            return interrupt
        if failures and last.outcome is Outcome.COMPLETED and last.key != "stop":
            return last
        return failures[-1] if failures and last.outcome is not Outcome.COMPLETED else last

    def _main_starts(self) -> Iterable[int]:
        for prompt in self.prompts:
            if prompt.start_ns is not None and not prompt.mid_turn:
                yield prompt.start_ns
        for chat in self.chats:
            if chat.subagent_id is None and chat.compaction_key is None:
                start = chat.start_ns
                # A side call after the answer (a title, a classifier) does not reopen the turn.
                if start is not None and not chat.is_side_call:
                    yield start
        for tool in self.tools:
            if tool.key not in self._owners and tool.start_ns is not None:
                yield tool.start_ns

    def _moments(self) -> Iterable[int]:
        """Give each time at which something is known to have happened on the main thread."""
        for prompt in self.prompts:
            if prompt.start_ns is not None:
                yield prompt.start_ns
        for end in self._ends:
            yield end.end_ns
        for chat in self.chats:
            if chat.subagent_id is None:
                yield from (t for t in (chat.start_ns, chat.end_ns) if t is not None)
        for tool in self.tools:
            if tool.key not in self._owners:
                yield from (t for t in (tool.start_ns, tool.end_ns) if t is not None)
        for compaction in self.compactions:
            yield from (t for t in (compaction.start_ns, compaction.end_ns) if t is not None)

    def _answer(self, end: TurnEnd | None) -> str | None:
        if end is None or end.outcome is not Outcome.COMPLETED:
            return None
        said = [e.message for e in self._ends if e.outcome is end.outcome and e.message]
        return said[-1] if said else None


def _size_of(sighting: Sighting) -> int:
    values = structs.astuple(sighting.part)
    return SIGHTING_BYTES + sum(len(value) for value in values if isinstance(value, str))


def merge(
    sightings: Iterable[Sighting],
    part_type: type[AnyPart],
    before: Merged | None = None,
    now: Merged | None = None,
) -> list[AnyPart]:
    """Return one part per key, each field from the best source that knows it.

    *before* has parts with what they were merged from; *now* gets those of this time.
    """
    found: dict[str, list[Sighting]] = defaultdict(list)
    for sighting in sightings:
        if isinstance(sighting.part, part_type):
            found[sighting.part.key].append(sighting)
    parts = []
    for key in sorted(found):
        group, known = found[key], (before or {}).get((part_type, key))
        same = known is not None and known[0] == group
        part: AnyPart = known[1] if known is not None and same else _merged(group, part_type)
        if now is not None:
            now[part_type, key] = (group, part)
        parts.append(part)
    return parts


def _merged(sightings: Sequence[Sighting], part_type: type[AnyPart]) -> AnyPart:
    if len(sightings) == 1:
        only: AnyPart = sightings[0].part  # type: ignore[assignment]  # merge() grouped by type
        return only
    values: dict[str, Any] = {}
    timed = [sighting for sighting in sightings if _is_timed(sighting.part)]
    told = zip(*(structs.astuple(sighting.part) for sighting in sightings), strict=True)
    for name, seen in zip(part_type.__struct_fields__, told, strict=True):
        if seen.count(None) == len(seen):
            continue
        known = [
            (RANK[sighting.source], sighting.time_ns, value)
            for sighting in (name in {"start_ns", "end_ns"} and timed) or sightings
            if (value := getattr(sighting.part, name)) is not None and value != ()
        ]
        if known:
            values[name] = _best(name, known)
    return part_type(**values)


def _timed(tool: ToolCall, duration_ns: int | None) -> ToolCall:
    """Return *tool* with the duration that the agent told a gateway, where nobody told it better."""
    if duration_ns is None or tool.duration_ns is not None:
        return tool
    start_ns = tool.start_ns
    if tool.end_ns is not None:
        # A transcript tells when it was asked for, which for one of several may be long before.
        start_ns = max(tool.end_ns - duration_ns, tool.start_ns or 0)
    return replace(tool, start_ns=start_ns, duration_ns=duration_ns)


def _is_timed(part: Part) -> bool:
    """Say whether a source timed the tool itself; hooks begin before it and end behind it."""
    return isinstance(part, ToolCall) and part.start_ns is not None and part.end_ns is not None


def _best(name: str, known: list[tuple[int, int, Any]]) -> Any:
    first = known[0][2]
    if not isinstance(first, tuple) and all(value == first for _, _, value in known):
        return first
    if name == "pid":
        # A session goes on in another process; then the one that was is not missed any more.
        known = [(0, time_ns, value) for _, time_ns, value in known]
    best_rank = max(rank for rank, _, _ in known)
    best = [value for rank, _, value in known if rank == best_rank]
    if name == "start_ns":
        return min(best)
    if name in {"end_ns", "ended_ns"}:
        return max(best)
    if isinstance(best[0], tuple):
        return tuple(sorted({item for value in best for item in value}))
    if isinstance(best[0], Usage):
        # Repeated on each block of a message; a partial one is smaller.
        return max(best, key=lambda usage: (usage.output_tokens or 0, encode(usage)))
    latest = max(time_ns for rank, time_ns, _ in known if rank == best_rank)
    return max(
        (value for rank, time_ns, value in known if (rank, time_ns) == (best_rank, latest)),
        key=encode,
    )


def _overlaid(own: Sequence[AnyPart], session: Sequence[AnyPart], empty: AnyPart) -> AnyPart:
    """Return what the turn says of itself over what the session says."""
    result = empty
    for part in (*session, *own):
        known = {
            name: value
            for name in part.__struct_fields__
            if (value := getattr(part, name)) is not None and value != ()
        }
        result = replace(result, **known)
    return result


def _is_of_session(sighting: Sighting) -> bool:
    return sighting.turn_key is None and sighting.subagent_id is None


def _own(sightings: Sequence[Sighting]) -> Sequence[Sighting]:
    """Return *sightings* without history that was copied into the turn.

    A turn begins with one prompt. Where a transcript tells of several (not of input while the turn
    ran), it is a fork's, and the last of them is its own: what came before happened elsewhere.
    """
    begun = [
        sighting.time_ns
        for sighting in sightings
        if sighting.source is Source.TRANSCRIPT
        and isinstance(sighting.part, Prompt)
        and not sighting.part.mid_turn
        and sighting.part.origin != "command"
    ]
    if len(begun) < 2:
        return sightings
    return [
        sighting
        for sighting in sightings
        if sighting.source is not Source.TRANSCRIPT
        or sighting.time_ns >= max(begun)
        # Without a time of its own: what is known of a subagent from the side.
        or sighting.time_ns == 0
    ]


def _owners(sightings: Iterable[Sighting]) -> Mapping[str, str]:
    """Return the subagent that made each call and each tool call, by key."""
    owners = {
        sighting.part.key: sighting.subagent_id
        for sighting in sightings
        if sighting.subagent_id is not None and isinstance(sighting.part, ToolCall | ModelCall)
    }
    return dict(sorted(owners.items()))


def _by_time(parts: Iterable[AnyPart]) -> list[AnyPart]:
    def order(part: Any) -> tuple[bool, int, str]:
        at = part.start_ns if part.start_ns is not None else getattr(part, "end_ns", None)
        return (at is None, at or 0, part.key)

    return sorted(parts, key=order)


def _waits(asks: Sequence[PermissionAsk], tools: Sequence[ToolCall]) -> list[PermissionAsk]:
    """Return the asks with the tool each was about, when it was decided, and how."""
    by_key = {tool.key: tool for tool in tools}
    decisions = {ask.tool_key: ask for ask in asks if ask.start_ns is None and ask.tool_key}
    waits = []
    for ask in asks:
        if ask.start_ns is None:
            continue
        tool = by_key.get(ask.tool_key or "") or _asked_tool(ask, tools)
        if tool is None:
            waits.append(ask)
            continue
        decision = decisions.get(tool.key, ask)
        denied = tool.error_type in {"permission_denied", "interrupted"}
        end_ns = ask.end_ns
        if end_ns is None and tool.end_ns is not None:
            if tool.duration_ns is not None:
                # The tool ran right after the decision, and says for how long.
                end_ns = max(tool.end_ns - tool.duration_ns, ask.start_ns)
            elif denied:
                end_ns = tool.end_ns
        verdict = "deny" if denied else "allow" if tool.end_ns is not None else None
        waits.append(
            replace(
                ask,
                tool_key=tool.key,
                tool_name=ask.tool_name or tool.name,
                end_ns=end_ns,
                decision=decision.decision or verdict,
                decided_by=decision.decided_by,
            )
        )
    return waits


def _asked_tool(ask: PermissionAsk, tools: Sequence[ToolCall]) -> ToolCall | None:
    """Return the tool call with this name and input that was under way, or next, when it came.

    An agent that times its tools itself may begin to count once it may run one.
    """
    candidates = [
        tool
        for tool in tools
        # One that names no tool is about the one that began last.
        if (tool.input_digest == ask.input_digest or ask.tool_name is None)
        and tool.start_ns is not None
        and ask.start_ns is not None
        and (tool.end_ns is None or tool.end_ns >= ask.start_ns)
    ]
    begun = [tool for tool in candidates if (tool.start_ns or 0) <= (ask.start_ns or 0)]
    if begun:
        return max(begun, key=lambda tool: (tool.start_ns or 0, tool.key))
    return min(candidates, key=lambda tool: (tool.start_ns or 0, tool.key), default=None)


def _from_their_calls(
    compactions: Iterable[Compaction], chats: Sequence[Chat]
) -> Iterator[Compaction]:
    """Yield the compactions, each that nobody saw begin from the first of its calls."""
    for compaction in compactions:
        starts = [
            chat.start_ns
            for chat in chats
            if chat.compaction_key == compaction.key and chat.start_ns is not None
        ]
        if compaction.start_ns is None and starts:
            yield replace(compaction, start_ns=min(starts))
        else:
            yield compaction


def _from_the_ask(tools: Iterable[ToolCall], waits: Iterable[PermissionAsk]) -> Iterator[ToolCall]:
    """Yield the tool calls, each with the wait for its permission inside of it."""
    asked = {wait.tool_key: wait.start_ns for wait in waits if wait.start_ns is not None}
    for tool in tools:
        asked_ns = asked.get(tool.key)
        if asked_ns is not None and tool.start_ns is not None and asked_ns < tool.start_ns:
            yield replace(tool, start_ns=asked_ns)
        else:
            yield tool

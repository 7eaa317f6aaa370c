"""Calls that an agent's records tell and calls that a gateway saw, to the calls there were. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus

from tracebridge.model import Chat, Compaction, Evidence, GatewayCall, Link, ModelCall
from tracebridge.response_ids import (
    comparable,
    gateway_names,
    is_added,
    is_hidden,
    provider_id,
)

# An attempt that the transcript tells without any id is the gateway's failed call that ended
# nearest to it, within this.
SAME_ATTEMPT_NS = 5_000_000_000
# Clocks in milliseconds, and what an agent does between its record of a call and the call.
SAME_ANSWER_NS = 50_000_000


def put_together(
    told: Sequence[ModelCall],
    owners: Mapping[str, str],
    calls: Sequence[tuple[GatewayCall, Link]],
    compactions: Sequence[Compaction],
) -> list[Chat]:
    """Return one chat of each physical call by start; *owners*: subagents by what they made."""
    unmatched = {call.key: call for call in told}
    nameless = {c.key: c for c in told if c.request_id is None and c.response_id is None}
    names = {
        name: call.key
        for call in reversed(told)
        for name in (call.request_id, call.response_id and provider_id(call.response_id), call.key)
        if name is not None
    }
    chats: list[Chat] = []
    taken: set[str] = set()
    known: dict[tuple[str, str], int] = {}
    for seen, link in sorted(calls, key=_ours_and_answers_first):
        place = _same_call(seen, chats, known)
        for name in gateway_names(seen):
            known.setdefault(name, len(chats) if place is None else place)
        if place is not None:
            chats[place] = replace(chats[place], others=(*chats[place].others, seen))
            continue
        same, matched_by = (
            _named(seen, names, unmatched)
            or _failed_nameless(seen, nameless.values())
            or _answered_nameless(seen, _may_be_told(seen, link, unmatched, owners))
            or (None, None)
        )
        # What another gateway saw may come when the agent's record of it is told already.
        key = call_key(seen) if same is None or seen.is_ours else same.key
        if key in taken:
            # A gateway's cache may answer twice with one response id: still two calls.
            key = f"{key}#{seen.call_id}"
        taken.add(key)
        owner = None
        if same is not None:
            del unmatched[same.key]
            nameless.pop(same.key, None)
            owner = owners.get(same.key)
        chats.append(
            Chat(
                key=key,
                told=same,
                seen=seen,
                evidence=link.evidence,
                matched_by=matched_by,
                subagent_id=link.subagent_id or owner,
            )
        )
    chats.extend(
        Chat(key=call.key, told=call, subagent_id=owners.get(call.key))
        for call in unmatched.values()
    )
    if compactions:
        chats = [replace(c, compaction_key=_compaction_of(c, compactions)) for c in chats]
    chats.sort(key=lambda chat: (_moment(chat), chat.key))
    return _with_attempts(chats)


def _ours_and_answers_first(pair: tuple[GatewayCall, Link]) -> tuple[bool, bool, int, str]:
    # A broken answer must not take the record of the one that came after all.
    seen = pair[0]
    return not seen.is_ours, seen.error_type is not None, seen.start_ns, seen.call_id


def _moment(chat: Chat) -> int:
    moment = chat.start_ns or chat.end_ns
    return moment or (chat.seen.start_ns if chat.seen is not None else 0)


def _same_call(
    seen: GatewayCall, chats: Sequence[Chat], known: Mapping[tuple[str, str], int]
) -> int | None:
    """Return which of *chats* is of the same call, as a gateway before or behind *seen* saw it."""
    if seen.is_ours:
        return None
    for kind, told in gateway_names(seen):
        place = known.get((kind, told))
        # A gateway's cache may give one answer twice; but it gives each request an id of its own.
        if place is not None and (kind != "response_id" or not _is_of(seen.gateway, chats[place])):
            return place
    # Some name nothing; but while ours waits for its upstream, that does nothing else for it.
    within = [
        (abs((chat.end_ns or 0) - seen.end_ns), place)
        for place, chat in enumerate(chats)
        if chat.seen is not None and chat.seen.is_ours and _may_lie_behind(seen, chat.seen)
    ]
    return min(within)[1] if within else None


def _is_of(gateway: str, chat: Chat) -> bool:
    return gateway in {each.gateway for each in (chat.seen, *chat.others) if each is not None}


def _may_lie_behind(seen: GatewayCall, ours: GatewayCall) -> bool:
    """Say whether *seen* may be what an upstream gateway did while *ours* waited for it."""
    if seen.response_id is not None and ours.response_id is not None:
        if provider_id(seen.response_id) == provider_id(ours.response_id):
            return True
        if not is_hidden(ours.response_id):
            return False
    return (
        ours.start_ns - SAME_ANSWER_NS <= seen.start_ns
        and seen.end_ns <= ours.end_ns + SAME_ANSWER_NS
        and (seen.usage is None or ours.usage is None or _counts(seen) == _counts(ours))
    )


def _may_be_told(
    seen: GatewayCall, link: Link, told: Mapping[str, ModelCall], owners: Mapping[str, str]
) -> list[ModelCall]:
    """Return the records that may be of the same call although no id says so."""
    return [
        call
        for key, call in told.items()
        if (link.subagent_id is None and not seen.is_ours) or owners.get(key) == link.subagent_id
        if call.request_id is None or call.response_id is not None
        if call.response_id is None or not comparable(seen, call.response_id)
    ]


def call_key(call: GatewayCall) -> str:
    """Return what a call's span id is derived from: response id, else request id, else call id."""
    return call.response_id or call.request_id or call.call_id


def is_final(chat: Chat) -> bool:
    """Say whether nothing that is still to come can change what is known of a call.

    What each source tells comes in the order in which it happened; of several, any may be first. So
    what counts is that our gateway saw an answer for the main thread, that the agent told all of it
    and names it alike, and that both count the same attempts.
    """
    seen, told = chat.seen, chat.told
    if seen is None or told is None or seen.identity is None or not seen.is_ours:
        return False
    return (
        _is_whole(seen, told, chat.matched_by)
        and (
            chat.evidence in {Evidence.TRACEPARENT, Evidence.TURN_ID, Evidence.RESPONSE_ID}
            or (chat.evidence, chat.matched_by) == (Evidence.TOOL_CALL_ID, "tool_call_id")
        )
        and chat.key == call_key(seen)
        and seen.error_type is None
        and told.error_type is None
        and (seen.usage is not None and seen.stop_reason is not None)
        and (chat.subagent_id is None and seen.identity.subagent_id is None)
        and not (seen.identity.is_side_call or told.purpose or chat.compaction_key)
        and seen.attempt == (chat.attempt or 1)
    )


def _is_whole(seen: GatewayCall, told: ModelCall, matched_by: str | None) -> bool:
    """Say whether the agent told all of an answer that goes into its span."""
    if told.end_ns is None:
        return False
    if matched_by == "response_id":
        return told.blocks is None or (
            told.stop_reason is not None and len(told.blocks) == seen.blocks
        )
    if set(told.tool_call_ids or ()) != set(seen.tool_call_ids):
        return False
    if matched_by == "tool_call_id":
        # Tools are told once they are done, and with them what was said before.
        return told.blocks is None
    return (
        matched_by == "call_key"
        and told.blocks is not None
        and len(told.blocks) == seen.blocks
        # Which model it was and why it stopped is told behind its tools.
        and None not in {seen.provider, seen.requested_model, seen.model}
        and (told.stop_reason is not None or bool(seen.tool_call_ids))
    )


def _with_attempts(chats: Sequence[Chat]) -> list[Chat]:
    """Count what follows a failure: to try again is all that an agent can do in the same lane."""
    lanes: dict[tuple[str | None, bool, str | None], list[Chat]] = defaultdict(list)
    numbered = []
    for chat in chats:
        lane = lanes[chat.subagent_id, chat.is_side_call, chat.compaction_key]
        if lane and (lane[-1].error_type is None or _is_first(chat)):
            lane.clear()
        lane.append(chat)
        if len(lane) > 1:
            numbered.append(replace(chat, attempt=len(lane), retry_of=lane[0].key))
        else:
            numbered.append(chat)
    return numbered


def _is_first(chat: Chat) -> bool:
    """Say whether our gateway knows that a call of no session is no second attempt.

    Whose the failures of such calls are is a guess that another session may undo.
    """
    seen = chat.seen
    return (
        seen is not None
        and seen.is_ours
        and seen.attempt == 1
        and seen.identity is not None
        and seen.identity.session_id is None
    )


Match = tuple[ModelCall, str]


def _named(
    seen: GatewayCall, names: Mapping[str, str], told: Mapping[str, ModelCall]
) -> Match | None:
    """Return the record that names the same call, and by what."""
    answered = seen.response_id and provider_id(seen.response_id)
    for by, name in (("response_id", answered), ("request_id", seen.request_id)):
        if name is not None and (call := told.get(names.get(name, ""))) is not None:
            return call, "tool_call_id" if by == "response_id" and is_added(call, seen) else by
    known = told.get(seen.identity.call_key or "") if seen.identity is not None else None
    if known is None or known.request_id is not None:
        return None
    # Attempts share the key of the call that came of them; of one broken off no end is told, and
    # what went wrong behind an answer may be told of it.
    alike = (
        known.end_ns is None
        or (known.error_type is None) == (seen.error_type is None)
        or bool(set(known.tool_call_ids or ()) & set(seen.tool_call_ids))
    )
    return (known, "call_key") if alike else None


def _failed_nameless(seen: GatewayCall, told: Iterable[ModelCall]) -> Match | None:
    """Return the failure that an agent tells without an id, or what came of a broken answer."""
    if seen.error_type is None:
        return None
    near = [
        call
        for call in told
        if call.end_ns is not None
        and _distance(seen, call) < SAME_ATTEMPT_NS
        # Of an answer that broke off, the agent may tell what came of it as if it were whole.
        and (call.error_type is not None or seen.status_code == HTTPStatus.OK)
    ]
    return _nearest(seen, near, "time")


def _answered_nameless(seen: GatewayCall, told: Iterable[ModelCall]) -> Match | None:
    """Return the answer that an agent which keeps no ids tells: by tools, by tokens, or by time."""
    if seen.error_type is not None:
        return None
    answers = [call for call in told if call.error_type is None]
    if seen.identity is not None and seen.identity.is_side_call:
        # Of its side calls an agent tells at most those that it tells apart.
        answers = [call for call in answers if call.purpose is not None]
    for call in answers:
        if set(call.tool_call_ids or ()) & set(seen.tool_call_ids):
            return call, "tool_call_id"
    alike = [call for call in answers if _tokens_agree(seen, call)]
    within = [call for call in answers if _lies_within(seen, call)]
    return _nearest(seen, alike, "tokens") or _nearest(seen, within, "time")


def _nearest(seen: GatewayCall, told: Sequence[ModelCall], matched_by: str) -> Match | None:
    if not told:
        return None
    return min(told, key=lambda call: (_distance(seen, call), call.key)), matched_by


def _tokens_agree(seen: GatewayCall, call: ModelCall) -> bool:
    return (
        seen.usage is not None
        and call.usage is not None
        and (call.usage.input_tokens, call.usage.output_tokens) == _counts(seen)
        and _distance(seen, call) < SAME_ATTEMPT_NS
    )


def _counts(seen: GatewayCall) -> tuple[int | None, int | None]:
    return (
        (None, None) if seen.usage is None else (seen.usage.input_tokens, seen.usage.output_tokens)
    )


def _lies_within(seen: GatewayCall, call: ModelCall) -> bool:
    # Who did not read an answer does not know for which tools it asks either.
    unread = not seen.is_ours and seen.response_id is None and seen.usage is None
    return (
        not (seen.tool_call_ids or (call.tool_call_ids and not unread))
        and call.start_ns is not None
        and call.end_ns is not None
        and call.start_ns <= seen.end_ns <= call.end_ns + SAME_ANSWER_NS
        and seen.start_ns >= call.start_ns - SAME_ANSWER_NS
    )


def _distance(seen: GatewayCall, call: ModelCall) -> int:
    return abs((call.end_ns or 0) - seen.end_ns)


def _compaction_of(chat: Chat, compactions: Sequence[Compaction]) -> str | None:
    """Return the compaction that a call serves: of several the last that had begun by its end."""
    identity = chat.seen.identity if chat.seen is not None else None
    # The agent knows better than its request shows.
    purpose = chat.told.purpose if chat.told is not None else None
    if purpose is None and identity is not None:
        purpose = identity.request_class
    if purpose != "compaction" or not compactions:
        return None
    end_ns = chat.end_ns or 0
    begun = [c.key for c in compactions if c.start_ns is not None and c.start_ns <= end_ns]
    if begun:
        return begun[-1]
    # Where only their ends are told, it is the next to end.
    start_ns = chat.start_ns or end_ns
    coming = [c.key for c in compactions if c.end_ns is not None and c.end_ns >= start_ns]
    return coming[0] if coming else compactions[0].key

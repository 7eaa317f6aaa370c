"""What the gateway counted against what the agent's own records tell, turn by turn.

Every difference has a reason. Some are in the nature of things: an agent writes down no titles that
it asked for, and a gateway that was not in the path saw nothing. What remains is unexplained, and
somebody should look.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tracebridge.model import Chat, GatewayCall, ModelCall, Turn, Usage
from tracebridge.prices import cost_of
from tracebridge.remembered import turns_of_session
from tracebridge.store import Store, TurnRow

# The kinds of tokens, by their names in Usage.
KINDS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """What one side says that a turn came to."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    # Of the calls whose model has a list price.
    cost_usd: float = 0.0

    def __add__(self, other: Sum) -> Sum:
        return Sum(
            calls=self.calls + other.calls,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One call on which the two sides do not say the same."""

    # The response id, or what stands in for one.
    call: str
    reason: str
    explained: bool
    # Gateway minus transcript.
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One turn as both sides tell it."""

    trace_id: str
    agent: str
    session_id: str
    start_ns: int
    gateway: Sum
    transcript: Sum
    differences: tuple[Difference, ...] = field(default_factory=tuple)

    @property
    def unexplained(self) -> int:
        return sum(not difference.explained for difference in self.differences)


def read_comparisons(store: Store, rows: Iterable[TurnRow]) -> Iterator[Comparison]:
    """Yield the comparison of each turn, in the order of *rows*."""
    sessions: dict[tuple[str, str], dict[str, Turn]] = {}
    for row in rows:
        key = (row.agent, row.session_id)
        if key not in sessions:
            # Turns of one session mostly stand together, and a thousand sessions are much.
            sessions = {key: turns_of_session(store, *key)}
        turn = sessions[key].get(row.trace_id)
        if turn is not None:
            yield compare(turn)


def compare(turn: Turn) -> Comparison:
    """Return what gateway and transcript say of *turn*, and why they differ where they do."""
    gateway, transcript = Sum(), Sum()
    differences = []
    watched = any(chat.seen is not None for chat in turn.chats)
    for chat in turn.chats:
        if chat.seen is not None:
            gateway += _sum_of(chat.seen)
        if chat.told is not None:
            transcript += _sum_of(chat.told)
        reason = _reason(chat, watched=watched)
        if reason is not None:
            why, explained = reason
            seen, told = _usage(chat.seen), _usage(chat.told)
            differences.append(
                Difference(
                    call=chat.key,
                    reason=why,
                    explained=explained,
                    input_tokens=(seen.input_tokens or 0) - (told.input_tokens or 0),
                    output_tokens=(seen.output_tokens or 0) - (told.output_tokens or 0),
                )
            )
    return Comparison(
        trace_id=turn.trace_id,
        agent=turn.agent,
        session_id=turn.session_id,
        start_ns=turn.start_ns,
        gateway=gateway,
        transcript=transcript,
        differences=tuple(differences),
    )


def verdict(comparisons: Sequence[Comparison], orphans: int) -> str:
    """Return what all turns came to, and how many calls belong to none."""
    gateway, transcript = Sum(), Sum()
    for comparison in comparisons:
        gateway += comparison.gateway
        transcript += comparison.transcript
    differing = sum(bool(comparison.differences) for comparison in comparisons)
    unexplained = sum(comparison.unexplained for comparison in comparisons)
    return (
        f"{len(comparisons)} turns, {differing} differ, {unexplained} unexplained differences\n"
        f"gateway {_words(gateway)}, transcript {_words(transcript)}"
        + (
            f"\n{orphans} calls that no turn claims; `tracebridge status` says why"
            if orphans
            else ""
        )
    )


def lines(comparison: Comparison) -> Iterator[str]:
    """Yield a turn with its differences as people are told."""
    gateway, transcript = comparison.gateway, comparison.transcript
    verdict = "agree" if not comparison.differences else "differ"
    if comparison.unexplained:
        verdict = f"{comparison.unexplained} unexplained"
    yield (
        f"{comparison.trace_id[:8]}  {comparison.agent:<11}  gateway {_words(gateway)}"
        f"  transcript {_words(transcript)}  {verdict}"
    )
    for difference in comparison.differences:
        mark = " " if difference.explained else "!"
        tokens = f"{difference.input_tokens:+} in, {difference.output_tokens:+} out"
        yield f"  {mark} {difference.call[:32]}: {difference.reason} ({tokens})"


def _words(one: Sum) -> str:
    return f"{one.calls} calls {one.input_tokens} → {one.output_tokens} tok ${one.cost_usd:.4f}"


def _reason(chat: Chat, *, watched: bool) -> tuple[str, bool] | None:
    """Return why the two sides differ on a call and whether that is as it must be."""
    seen, told = chat.seen, chat.told
    if seen is None:
        return _reason_unseen(chat, watched=watched)
    if told is None:
        return _reason_untold(chat, seen)
    if seen.usage is None or told.usage is None:
        return _reason_uncounted(seen, told)
    contrary = [kind for kind in KINDS if _contrary(seen.usage, told.usage, kind)]
    if contrary:
        if seen.partial:
            return "the gateway kept only a part of the answer", True
        if seen.error_type is not None:
            return f"the gateway saw the answer break off: {seen.error_type}", True
        return f"they count {', '.join(_plain(kind) for kind in contrary)} differently", False
    return None


def _reason_unseen(chat: Chat, *, watched: bool) -> tuple[str, bool]:
    if not watched:
        return "no gateway of ours was in the path of this turn", True
    if chat.told is not None and chat.told.error_type is not None:
        return "a failed attempt of which no gateway was told", True
    return "the gateway saw no such call", False


def _reason_untold(chat: Chat, seen: GatewayCall) -> tuple[str, bool] | None:
    if seen.usage is None and seen.error_type is None:
        # Token counts, model lists and the like: nothing to count on either side.
        return None
    if chat.is_side_call:
        return "a side call; agents keep no record of those", True
    if seen.error_type is not None:
        return f"a failed attempt that the agent kept no record of: {seen.error_type}", True
    return "the transcript tells no such call", False


def _reason_uncounted(seen: GatewayCall, told: ModelCall) -> tuple[str, bool] | None:
    if seen.usage is None and told.usage is None:
        return None
    if told.usage is None:
        if told.error_type is not None or seen.error_type is not None:
            return "the agent counts nothing of an answer that broke off", True
        return "the transcript tells no tokens of it", False
    if seen.partial:
        return "the gateway kept only a part of the answer", True
    if seen.error_type is not None:
        return f"the gateway saw the answer break off: {seen.error_type}", True
    return "the gateway saw no tokens in the answer", False


def _contrary(seen: Usage, told: Usage, kind: str) -> bool:
    one, other = getattr(seen, kind), getattr(told, kind)
    # What one side does not tell is no contradiction.
    return one is not None and other is not None and one != other


def _plain(kind: str) -> str:
    return kind.removesuffix("_tokens").replace("_", " ") + " tokens"


def _usage(call: GatewayCall | ModelCall | None) -> Usage:
    return (call.usage if call is not None else None) or Usage()


def _sum_of(call: GatewayCall | ModelCall) -> Sum:
    usage = _usage(call)
    when_ns = call.start_ns or call.end_ns or 0
    cost = cost_of(usage, call.model or call.requested_model, call.provider, when_ns)
    return Sum(
        calls=1,
        input_tokens=usage.input_tokens or 0,
        output_tokens=usage.output_tokens or 0,
        cache_read_tokens=usage.cache_read_tokens or 0,
        cache_write_tokens=usage.cache_write_tokens or 0,
        reasoning_tokens=usage.reasoning_tokens or 0,
        cost_usd=cost.total if cost is not None else 0.0,
    )

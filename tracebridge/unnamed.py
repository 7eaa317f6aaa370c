"""What was told without an id, to what was told with one. Pure.

Tool calls by name and input, in order: the kth that began and the kth that ended of the same digest
are the kth call of that digest. Where nobody tells an id, digest and number stand in for it. Model
calls by their tokens and the time. Turns by counting their prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from operator import attrgetter, itemgetter

from msgspec.structs import replace

from tracebridge.model import (
    UNNAMED,
    Compaction,
    FileEdit,
    ModelCall,
    Prompt,
    Sighting,
    Source,
    ToolCall,
)

# Between what an agent's telemetry and its transcript say of the end of the same answer.
SAME_END_NS = 2_000_000_000


# Between what a hook and a transcript say of the time of the same prompt.
SAME_PROMPT_NS = 5_000_000_000


def name_turns(sightings: Iterable[Sighting]) -> list[Sighting]:
    """Return *sightings* with a turn key in each that was told with no more than a time.

    Turns that are told like this are named by ordinals.
    """
    sightings = list(sightings)
    times = {
        sighting.turn_key: int(sighting.turn_key.removeprefix(UNNAMED))
        for sighting in sightings
        if sighting.turn_key is not None and sighting.turn_key.startswith(UNNAMED)
    }
    if not times:
        return sightings
    prompts = [each for each in sightings if isinstance(each.part, Prompt)]
    named = {each.turn_key: each for each in prompts if each.turn_key not in times}
    begun: list[tuple[int, str]] = []
    for prompt in sorted(prompts, key=lambda each: each.time_ns):
        if prompt.turn_key in times:
            same = [
                key
                for key, each in named.items()
                if each.part.key == prompt.part.key
                and abs(each.time_ns - prompt.time_ns) < SAME_PROMPT_NS
            ]
            earlier = {key for key, each in named.items() if each.time_ns < prompt.time_ns}
            last = int(begun[-1][1]) if begun else 0
            key = same[0] if same else str(max(last, len(earlier)) + 1)
            begun.append((times[prompt.turn_key], key or ""))
    keys: dict[str | None, str] = {
        turn_key: next((key for start, key in reversed(begun) if start <= time_ns), "1")
        for turn_key, time_ns in times.items()
    }
    return [replace(each, turn_key=keys.get(each.turn_key, each.turn_key)) for each in sightings]


def name_tools(sightings: Iterable[Sighting]) -> list[Sighting]:
    """Return *sightings* with an id in each tool call and file edit."""
    sightings = list(sightings)
    known: dict[str, dict[str, int]] = defaultdict(dict)
    nameless: dict[str, dict[bool, list[str]]] = defaultdict(lambda: defaultdict(list))
    tools = [(each.time_ns, each.part) for each in sightings if isinstance(each.part, ToolCall)]
    for _, tool in sorted(tools, key=itemgetter(0)):
        if tool.input_digest is None:
            continue
        if not tool.key.startswith(UNNAMED):
            known[tool.input_digest].setdefault(tool.key, len(known[tool.input_digest]))
        else:
            nameless[tool.input_digest][tool.end_ns is not None].append(tool.key)
    names: dict[str, str] = {}
    for digest, by_end in nameless.items():
        ids = list(known[digest])
        for keys in by_end.values():
            for position, key in enumerate(dict.fromkeys(keys)):
                names[key] = ids[position] if position < len(ids) else f"{digest}:{position}"
    return [_named(sighting, names) for sighting in sightings] if names else sightings


def join_calls(sightings: Iterable[Sighting]) -> list[Sighting]:
    """Return *sightings* with one key for each answer that hook and transcript both tell.

    The transcript's key stays: the span that is named after it may be told already.
    """
    sightings = list(sightings)
    ends: dict[bool, dict[str, Sighting]] = {False: {}, True: {}}
    calls = [each for each in sightings if isinstance(each.part, ModelCall)]
    for sighting in sorted(calls, key=attrgetter("time_ns")):
        call = sighting.part
        if isinstance(call, ModelCall) and call.end_ns is not None and call.error_type is None:
            if sighting.source is Source.TRANSCRIPT and call.response_id is None:
                ends[False][call.key] = sighting
            elif sighting.source is Source.HOOK and call.response_id is not None:
                ends[True][call.key] = sighting
    if not ends[True]:
        return sightings
    pairs = sorted(
        (distance, named, nameless)
        for named, one in ends[True].items()
        for nameless, other in ends[False].items()
        if (distance := _apart(one, other)) is not None
    )
    keys: dict[str, str] = {}
    for _, named, nameless in pairs:
        if named not in keys and nameless not in keys.values():
            keys[named] = nameless
    return [
        replace(sighting, part=replace(sighting.part, key=keys[sighting.part.key]))
        if isinstance(sighting.part, ModelCall) and sighting.part.key in keys
        else sighting
        for sighting in sightings
    ]


def number_compactions(sightings: Iterable[Sighting]) -> list[Sighting]:
    """Return *sightings* with a key for each compaction of a turn: nobody gives them ids.

    What one source tells twice are two of them, and so is what begins after an end; what another
    source tells meanwhile is the same one.
    """
    sightings = list(sightings)
    keys: dict[int, str] = {}
    told: dict[str | None, set[tuple[Source, str]]] = {}
    ends: dict[str | None, int] = {}
    numbers: dict[str | None, int] = {}
    compactions = [
        (part.start_ns or part.end_ns or sighting.time_ns, part.start_ns is None, place)
        for place, sighting in enumerate(sightings)
        if isinstance(part := sighting.part, Compaction)
    ]
    if not compactions:
        return sightings
    for _, _, place in sorted(compactions):
        sighting, part = sightings[place], sightings[place].part
        if not isinstance(part, Compaction):
            continue
        whose = sighting.subagent_id
        new = {
            (sighting.source, name)
            for name in ("start_ns", "end_ns")
            if getattr(part, name) is not None
        }
        begins_anew = part.start_ns is not None and part.start_ns > ends.get(whose, part.start_ns)
        if told.setdefault(whose, set()) & new or begins_anew:
            told[whose] = set()
            ends.pop(whose, None)
            numbers[whose] = numbers.get(whose, 0) + 1
        told[whose] |= new
        if part.end_ns is not None:
            ends[whose] = max(part.end_ns, ends.get(whose, 0))
        number = numbers.get(whose, 0)
        own = part.key if whose is None else f"{part.key}:{whose}"
        keys[place] = f"{own}:{number}" if number else own
    return [
        replace(sighting, part=replace(sighting.part, key=keys[place]))
        if place in keys and isinstance(sighting.part, Compaction)
        else sighting
        for place, sighting in enumerate(sightings)
    ]


def _apart(one: Sighting, other: Sighting) -> tuple[bool, int] | None:
    """Return how far two tellings of an answer are apart, None where they cannot be of the same."""
    first, second = one.part, other.part
    if not isinstance(first, ModelCall) or not isinstance(second, ModelCall):
        return None
    distance = abs((first.end_ns or 0) - (second.end_ns or 0))
    if one.subagent_id != other.subagent_id or distance > SAME_END_NS:
        return None
    # A transcript may tell of an answer before its usage.
    if second.usage is not None and first.usage != second.usage:
        return None
    return (second.usage is None, distance)


def _named(sighting: Sighting, names: dict[str, str]) -> Sighting:
    part = sighting.part
    if isinstance(part, ToolCall) and part.key in names:
        return replace(sighting, part=replace(part, key=names[part.key]))
    if isinstance(part, FileEdit) and part.tool_key in names:
        key = part.key.replace(part.tool_key, names[part.tool_key], 1)
        return replace(sighting, part=replace(part, key=key, tool_key=names[part.tool_key]))
    return sighting

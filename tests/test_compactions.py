"""Compactions have no ids: what hooks and transcript tell of them is put together by order."""

from __future__ import annotations

import random

import pytest

from tracebridge.model import Compaction, ModelCall, Prompt, Sighting, Source
from tracebridge.turns import TurnAssembler


def sight(source: Source, at: int, part, subagent_id: str | None = None) -> Sighting:
    return Sighting(
        agent="codex-cli",
        session_id="s",
        turn_key="t",
        source=source,
        time_ns=at,
        subagent_id=subagent_id,
        part=part,
    )


def pre(at: int, **more) -> Sighting:
    part = Compaction(key="compaction", trigger="auto", start_ns=at)
    return sight(Source.HOOK, at, part, **more)


def post(at: int, **more) -> Sighting:
    return sight(Source.HOOK, at, Compaction(key="compaction", end_ns=at), **more)


def told(start: int, end: int, **more) -> Sighting:
    part = Compaction(key="compaction", start_ns=start, end_ns=end)
    return sight(Source.TRANSCRIPT, end, part, **more)


def turn_of(*sightings: Sighting):
    everything = [
        sight(Source.TRANSCRIPT, 1, Prompt(key="p", text="go", start_ns=1)),
        *sightings,
    ]
    random.shuffle(everything)
    assembler = TurnAssembler("codex-cli", "s")
    assembler.add(everything)
    (turn,) = assembler.turns()
    return turn


def times(*sightings: Sighting) -> list[tuple[int | None, int | None]]:
    return [(c.start_ns, c.end_ns) for c in turn_of(*sightings).compactions]


FIRST = (pre(100), told(110, 190), post(200))
SECOND = (pre(500), told(510, 590), post(600))


@pytest.mark.parametrize(
    ("sightings", "expected"),
    [
        (FIRST, [(100, 200)]),
        ((*FIRST, *SECOND), [(100, 200), (500, 600)]),
        ((FIRST[0], FIRST[2], SECOND[0], SECOND[2]), [(100, 200), (500, 600)]),
        ((FIRST[1], SECOND[1]), [(110, 190), (510, 590)]),
        # The first one failed: nothing told of its end.
        ((FIRST[0], *SECOND), [(100, None), (500, 600)]),
        # The hook of the first one's beginning was lost.
        ((FIRST[1], FIRST[2], *SECOND), [(110, 200), (500, 600)]),
    ],
)
def test_each_compaction_of_a_turn_is_one(sightings, expected):
    """Whoever told of it, and whatever was lost."""
    assert times(*sightings) == expected


def test_the_first_keeps_the_name_that_a_lone_one_has():
    """What was told of a turn with one compaction stays true if it has another."""
    first, second = turn_of(*FIRST, *SECOND).compactions
    assert (first.key, second.key) == ("compaction", "compaction:1")


def test_a_subagents_compaction_is_another_one():
    """Also where both are at it at once."""
    keys = {c.key for c in turn_of(*FIRST, *(pre(150, subagent_id="x"),)).compactions}
    assert keys == {"compaction", "compaction:x"}


def test_a_call_belongs_to_the_compaction_that_it_serves():
    """Of several the last one that had begun."""
    calls = [
        sight(
            Source.TRANSCRIPT,
            end,
            ModelCall(key=f"r{end}", response_id=f"r{end}", end_ns=end, purpose="compaction"),
        )
        for end in (180, 580)
    ]
    chats = turn_of(*FIRST, *SECOND, *calls).chats
    assert [chat.compaction_key for chat in chats] == ["compaction", "compaction:1"]

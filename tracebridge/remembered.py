"""Turns put together anew from what the store remembers of their session."""

from __future__ import annotations

from tracebridge.linker import link
from tracebridge.model import Turn
from tracebridge.store import Store
from tracebridge.turns import TurnAssembler


def turns_of_session(store: Store, agent: str, session_id: str) -> dict[str, Turn]:
    """Return the turns of a session by trace id, with the calls that are linked to them."""
    assembler = TurnAssembler(agent, session_id)
    assembler.add(store.sightings(agent, session_id))
    turns = assembler.turns(gone=True)
    calls = [call for turn in turns for call in store.calls_of_turn(turn.trace_id)]
    linked, _ = link(calls, turns)
    return {turn.trace_id: turn for turn in assembler.turns(linked, gone=True)}

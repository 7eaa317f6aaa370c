"""Turns of the recorded sessions of all four agents, put into a store as the watcher would."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path

from tracebridge.encode import encode_span
from tracebridge.model import Sighting, Span, Turn
from tracebridge.spans import render
from tracebridge.store import Store
from tracebridge.turns import TurnAssembler

HERE = Path(__file__).parent / "agents"


def recorded_turns(*behaviours: str) -> list[tuple[Turn, tuple[Span, ...]]]:
    """Return turns with their spans; *behaviours* are folders such as `claude-code/tools`."""
    found = []
    for behaviour in behaviours:
        folder = HERE / behaviour
        sightings = recorded_sightings(behaviour)
        for session in dict.fromkeys(sighting.session_id for sighting in sightings):
            assembler = TurnAssembler(folder.parent.name, session)
            assembler.add([s for s in sightings if s.session_id == session])
            found += [(turn, render(turn)) for turn in assembler.turns()]
    return found


def recorded_sightings(
    behaviour: str, *, hooks: bool = True, transcript: bool = True
) -> list[Sighting]:
    """Return what the sources of a recording told, each in its order."""
    told: list[Sighting] = _golden().read_sightings(
        HERE / behaviour, hooks=hooks, transcript=transcript
    )
    return told


def moved(spans: tuple[Span, ...], by_ns: int) -> tuple[Span, ...]:
    """Return the same spans at another time."""
    return tuple(
        replace(
            span,
            start_ns=span.start_ns + by_ns,
            end_ns=None if span.end_ns is None else span.end_ns + by_ns,
        )
        for span in spans
    )


def put(store: Store, turn: Turn, spans: tuple[Span, ...], *, told: bool = True) -> None:
    with store.transaction():
        store.put_turn(turn, spans)
        if told:
            store.tell(turn.trace_id, [(s.span_id, encode_span(s)) for s in spans], (), [])


@cache
def _golden():
    spec = importlib.util.spec_from_file_location("golden", HERE / "test_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""Tool calls told without an id, to those that have one: by name and input, in order. Pure.

The kth that began and the kth that ended of the same digest are the kth call of that digest. Where
nobody tells an id, digest and number stand in for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from tracebridge.model import UNNAMED, FileEdit, Sighting, ToolCall


def name_tools(sightings: Iterable[Sighting]) -> list[Sighting]:
    """Return *sightings* with an id in each tool call and file edit."""
    sightings = list(sightings)
    known: dict[str, dict[str, int]] = defaultdict(dict)
    nameless: dict[str, dict[bool, list[str]]] = defaultdict(lambda: defaultdict(list))
    for sighting in sorted(sightings, key=lambda each: each.time_ns):
        tool = sighting.part
        if not isinstance(tool, ToolCall) or tool.input_digest is None:
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


def _named(sighting: Sighting, names: dict[str, str]) -> Sighting:
    part = sighting.part
    if isinstance(part, ToolCall) and part.key in names:
        return replace(sighting, part=replace(part, key=names[part.key]))
    if isinstance(part, FileEdit) and part.tool_key in names:
        key = part.key.replace(part.tool_key, names[part.tool_key], 1)
        return replace(sighting, part=replace(part, key=key, tool_key=names[part.tool_key]))
    return sighting

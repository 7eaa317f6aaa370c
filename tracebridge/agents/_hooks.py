"""Hooks in the settings of agents that have Claude Code's way of writing them. Pure.

`"hooks": {EVENT: [{"hooks": [HOOK, …]}, …]}`: by event a list of groups, each with its hooks.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from tracebridge.edits import Append, Change, Delete, Put
from tracebridge.fields import dict_of, dicts_in, text_of

HOOK_FILES = frozenset({"tracebridge_hook.py", "tracebridge_hook.sh"})
_ASSIGNMENT = re.compile(r"\w+=")


def hook_changes(
    settings: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]
) -> Iterator[Change]:
    """Yield what makes *groups*, one for each event, our only hooks in *settings*.

    A group that is there is written anew in its place and a new one comes last, so that no group of
    others moves. Raise ValueError where something stands that hooks cannot be added to.
    """
    hooks = settings.get("hooks", {})
    if not isinstance(hooks, dict):
        raise ValueError('"hooks" is not an object')
    for event in groups:
        if not isinstance(hooks.get(event, []), list):
            raise ValueError(f'"hooks.{event}" is not a list')
    for event, found in hooks.items():
        if event not in groups:
            yield from _event_without_ours(event, found)
    for event, group in groups.items():
        found = hooks.get(event, [])
        yield from _mixed_without_ours(event, found)
        places = _places(found)
        if not places:
            yield Append(("hooks", event), dict(group))
            continue
        yield Put(("hooks", event, places[0]), dict(group))
        for place in reversed(places[1:]):
            yield Delete(("hooks", event, place))


def unhook_changes(settings: Mapping[str, Any]) -> Iterator[Change]:
    """Yield what takes our hooks out of *settings*; what is empty then was there for us alone."""
    hooks = dict_of(settings.get("hooks"))
    emptied = [event for event, found in hooks.items() if _is_all_ours(found)]
    if emptied and len(emptied) == len(hooks):
        yield Delete(("hooks",))
        return
    for event, found in hooks.items():
        yield from _event_without_ours(event, found)


def is_hooked(settings: Mapping[str, Any]) -> bool:
    """Say whether a hook of ours stands in *settings*."""
    return any(
        is_ours(hook)
        for groups in dict_of(settings.get("hooks")).values()
        for group in dicts_in(groups)
        for hook in dicts_in(group.get("hooks"))
    )


def is_ours(hook: Any) -> bool:
    """Say whether a hook entry runs our hook: by its program's file, not by a word in it."""
    command = text_of(dict_of(hook), "command") or ""
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    while words and _ASSIGNMENT.match(words[0]):
        del words[0]
    # Behind the interpreter and its options; somebody else's command may name our file, too.
    program = next((word for word in words[1:] if not word.startswith("-")), "")
    return PurePath(program).name in HOOK_FILES


def _event_without_ours(event: str, found: Any) -> Iterator[Change]:
    if _is_all_ours(found):
        yield Delete(("hooks", event))
        return
    yield from _mixed_without_ours(event, found)
    for place in reversed(_places(found)):
        yield Delete(("hooks", event, place))


def _mixed_without_ours(event: str, found: Any) -> Iterator[Change]:
    """Yield what takes our hooks out of groups that others share with us."""
    for place, group in enumerate(found if isinstance(found, list) else []):
        hooks = dict_of(group).get("hooks")
        if isinstance(hooks, list) and not _is_our_group(group):
            for inner in reversed(range(len(hooks))):
                if is_ours(hooks[inner]):
                    yield Delete(("hooks", event, place, "hooks", inner))


def _places(found: Any) -> list[int]:
    groups = found if isinstance(found, list) else []
    return [place for place, group in enumerate(groups) if _is_our_group(group)]


def _is_all_ours(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(map(_is_our_group, found))


def _is_our_group(group: Any) -> bool:
    hooks = dict_of(group).get("hooks")
    return isinstance(hooks, list) and bool(hooks) and all(map(is_ours, hooks))

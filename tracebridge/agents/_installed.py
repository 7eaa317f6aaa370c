"""Our hooks in a file that an agent has read, for agents that write them in Claude Code's way."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from itertools import dropwhile
from typing import Any

from tracebridge.agents._hooks import is_ours
from tracebridge.config_files import ConfigFile
from tracebridge.fields import dict_of
from tracebridge.routing import InstalledHook

_ASSIGNMENT = re.compile(r"\w+=")


def installed_hooks(files: Iterable[ConfigFile]) -> list[InstalledHook]:
    return [
        InstalledHook(file, ("hooks", event, place, "hooks", number), event, _words(entry), entry)
        for file in files
        for event, groups in file.table("hooks").items()
        for place, group in enumerate(_list(groups))
        for number, entry in enumerate(_list(dict_of(group).get("hooks")))
        if is_ours(entry)
    ]


def _words(entry: Mapping[str, Any]) -> tuple[str, ...]:
    # What is ours has been split before, so it can be.
    return tuple(dropwhile(_ASSIGNMENT.match, shlex.split(entry["command"])))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []

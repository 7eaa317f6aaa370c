"""Who the work is for: tags from the environment of a hook, and from files. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from tracebridge.fields import dict_of
from tracebridge.lines import parse_object
from tracebridge.model import OUTER_PARENT, Tags

# The first one wins.
PREFIXES = ("TRACEBRIDGE_", "RESPAN_")
# Not TRACEPARENT: agents set that for their hooks themselves.
OUTER = "TRACEBRIDGE_TRACEPARENT"
OUTER_AS = "TRACEBRIDGE_TRACEPARENT_AS"
LINK = "link"
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# What has a place of its own; whatever else a file says is metadata.
FIELDS = ("customer_id", "workflow_name", "span_name", "project_id")
# A file of a project can give tags; where traces go is not its to say.
NO_TAGS = frozenset({"base_url", "enabled", "$schema"})
TELEMETRY = ("costCenter", "projectTag")


def parse_tags(env: Mapping[str, str]) -> tuple[Tags | None, str | None]:
    """Return the tags that *env* holds, and in words what is wrong with it."""
    metadata: dict[str, str] = {}
    problem = None
    text = _value(env, "METADATA")
    if text:
        parsed = parse_object(text.encode("utf-8", "replace"))
        if isinstance(parsed, str):
            name = next(f"{prefix}METADATA" for prefix in PREFIXES if env.get(f"{prefix}METADATA"))
            problem = f'{name} is {parsed}; write it as {{"team": "blue"}}'
        else:
            metadata = {name: _as_text(value) for name, value in parsed.items()}
    outer = env.get(OUTER)
    if outer and not _TRACEPARENT.fullmatch(outer):
        problem = f"{OUTER} is not a traceparent; write it as 00-TRACE_ID-SPAN_ID-01"
        outer = None
    outer_as = env.get(OUTER_AS) if outer else None
    if outer_as not in {None, "", LINK, OUTER_PARENT}:
        problem = f"{OUTER_AS} is neither {LINK} nor {OUTER_PARENT}; the turn gets a link"
    tags = Tags(
        customer_id=_value(env, "CUSTOMER_ID"),
        workflow_name=_value(env, "WORKFLOW_NAME"),
        span_name=_value(env, "SPAN_NAME"),
        project_id=_value(env, "PROJECT_ID"),
        metadata=tuple(sorted(metadata.items())),
        outer=outer or None,
        outer_as=OUTER_PARENT if outer_as == OUTER_PARENT else None,
    )
    return _known(tags), problem


def tags_in(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of *env* that are tags, and none else."""
    tags = ("CUSTOMER_ID", "METADATA", "WORKFLOW_NAME", "SPAN_NAME", "PROJECT_ID")
    names = [OUTER, OUTER_AS, *(prefix + tag for prefix in PREFIXES for tag in tags)]
    return {name: env[name] for name in names if env.get(name)}


def parse_file(data: bytes) -> tuple[Tags | None, str | None]:
    """Return the tags that a `respan.json` holds, and in words what is wrong with it."""
    parsed = parse_object(data)
    if isinstance(parsed, str):
        return None, parsed
    known = {name: _as_text(parsed[name]) for name in FIELDS if parsed.get(name) not in (None, "")}
    metadata = {
        name: _as_text(value)
        for name, value in parsed.items()
        if name not in FIELDS and name not in NO_TAGS and value is not None
    }
    return _known(Tags(**known, metadata=tuple(sorted(metadata.items())))), None


def parse_telemetry(data: bytes) -> tuple[Tags | None, str | None]:
    """Return the tags that a project's `.claude/settings.json` holds."""
    parsed = parse_object(data)
    if isinstance(parsed, str):
        # Claude Code itself tells its user.
        return None, None
    told = dict_of(parsed.get("telemetry"))
    metadata = [(name, _as_text(told[name])) for name in TELEMETRY if told.get(name)]
    return _known(Tags(metadata=tuple(sorted(metadata)))), None


def over(weaker: Tags | None, stronger: Tags | None) -> Tags | None:
    """Return both, and where both say something what *stronger* says."""
    if weaker is None or stronger is None:
        return weaker or stronger
    known = {name: getattr(stronger, name) or getattr(weaker, name) for name in FIELDS}
    metadata = {**dict(weaker.metadata), **dict(stronger.metadata)}
    outer = stronger if stronger.outer else weaker
    return Tags(
        **known,
        metadata=tuple(sorted(metadata.items())),
        outer=outer.outer,
        outer_as=outer.outer_as,
    )


def _known(tags: Tags) -> Tags | None:
    return None if tags == Tags() else tags


def _value(env: Mapping[str, str], name: str) -> str | None:
    return next((env[prefix + name] for prefix in PREFIXES if env.get(prefix + name)), None)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()

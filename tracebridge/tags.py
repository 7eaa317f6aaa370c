"""Who the work is for: tags from the environment of a hook. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from tracebridge.lines import parse_object
from tracebridge.model import Tags

# The first one wins.
PREFIXES = ("TRACEBRIDGE_", "RESPAN_")


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
    tags = Tags(
        customer_id=_value(env, "CUSTOMER_ID"),
        workflow_name=_value(env, "WORKFLOW_NAME"),
        span_name=_value(env, "SPAN_NAME"),
        project_id=_value(env, "PROJECT_ID"),
        metadata=tuple(sorted(metadata.items())),
    )
    return (None if tags == Tags() else tags), problem


def tags_in(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of *env* that are tags, and none else."""
    return {
        name: env[name]
        for prefix in PREFIXES
        for tag in ("CUSTOMER_ID", "METADATA", "WORKFLOW_NAME", "SPAN_NAME", "PROJECT_ID")
        if env.get(name := prefix + tag)
    }


def _value(env: Mapping[str, str], name: str) -> str | None:
    return next((env[prefix + name] for prefix in PREFIXES if env.get(prefix + name)), None)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()

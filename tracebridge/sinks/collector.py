"""A collector, or anything else that speaks OTLP, as the standard variables say.

The same as `otlp` under the name that people look for, and nothing is needed for one on this
machine.
"""

from __future__ import annotations

from collections.abc import Mapping

from tracebridge.sinks import ReadySink
from tracebridge.sinks import prepare as prepare_sink


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:
    return prepare_sink("otlp", env, name=name, argument=argument)

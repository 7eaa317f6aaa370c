"""OpenCode: its plugin's events and its database to sightings.

Format facts, each seen with 1.18.33:

* A turn is a user message. Each call at a model is an assistant message, whose `parentID` names it.
* A subagent is a session of its own, with `parent_id`; the `task` tool's metadata names it. Its
  events belong to the turn that runs in the outermost session, and so do its calls.
* Response ids are kept nowhere. Our plugin tells the gateway the assistant message's id instead.
* `tokens.input` leaves out what came from a cache, `tokens.output` what was reasoning.
* A message is completed when its tools are; its call ended when they began.
* A stream that ends early is an answer with `finish: "unknown"`, and OpenCode calls again.
* A killed process says nothing: its message is never completed, its tool stays `running`.
"""

from __future__ import annotations

from tracebridge.agents.opencode.database import find_transcript, read_transcript, transcripts
from tracebridge.agents.opencode.hooks import parse_hook
from tracebridge.agents.opencode.records import SLUG
from tracebridge.agents.opencode.requests import identify_call
from tracebridge.agents.opencode.wiring import (
    launch,
    prepare,
    settings_path,
    unwire,
    upstream,
    wire,
)

ALIASES = ()
PROGRAM = "opencode"
TESTED_VERSION = "1.18.33"

__all__ = [
    "ALIASES",
    "PROGRAM",
    "SLUG",
    "TESTED_VERSION",
    "find_transcript",
    "identify_call",
    "launch",
    "parse_hook",
    "prepare",
    "read_transcript",
    "settings_path",
    "transcripts",
    "unwire",
    "upstream",
    "wire",
]

"""OpenCode: its plugin's events and its database to sightings.

Format facts, each seen with 1.18.33:

* A turn is a user message. Each call at a model is an assistant message, whose `parentID` names it.
* A subagent is a session of its own, with `parent_id`; the `task` tool's metadata names it. Its
  events belong to the turn that runs in the outermost session, and so do its calls.
* Response ids are kept nowhere. Our plugin tells the gateway the assistant message's id instead.
* `tokens.input` leaves out what came from a cache, `tokens.output` what was reasoning.
* A message is completed when its tools are; its call ended when they began.
* A stream that ends early is an answer with `finish: "unknown"`, and OpenCode calls again.
* A process that a signal ends says nothing: its message is never completed, its tool stays
  `running`. Our plugin hears signals; in the terminal UI an abort is told as any error.
* A fork is a session with copies of messages: ids are new, calls and times are not.
* To sum up a session OpenCode writes user messages itself: one with a part `compaction`, and, unless
  the user asked for it, one to go on, marked `compaction_continue` or a copy of the prompt. No hook
  tells of them.
* A refused permission ends the turn, with neither answer nor error. A request that was too long
  leaves a message that is completed, with neither `finish` nor `error`.
"""

from __future__ import annotations

from tracebridge.agents.opencode.database import find_transcript, read_transcript, transcripts
from tracebridge.agents.opencode.edits import edits, remarks, settings_folder
from tracebridge.agents.opencode.hooks import parse_hook
from tracebridge.agents.opencode.past import past_sessions
from tracebridge.agents.opencode.records import SLUG
from tracebridge.agents.opencode.requests import identify_call
from tracebridge.agents.opencode.wiring import (
    launch,
    prepare,
    unwire,
    upstream,
    wire,
)

ALIASES = ()
PROGRAM = "opencode"
TESTED_VERSION = "1.18.33"
KEEPS_TRANSCRIPT_OPEN = False
TELLS_VERSION = True

__all__ = [
    "ALIASES",
    "KEEPS_TRANSCRIPT_OPEN",
    "PROGRAM",
    "SLUG",
    "TELLS_VERSION",
    "TESTED_VERSION",
    "edits",
    "find_transcript",
    "identify_call",
    "launch",
    "parse_hook",
    "past_sessions",
    "prepare",
    "read_transcript",
    "remarks",
    "settings_folder",
    "transcripts",
    "unwire",
    "upstream",
    "wire",
]

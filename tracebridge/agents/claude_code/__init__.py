"""Claude Code: hook events and transcripts to sightings, and what its requests say of themselves.

Format facts, each seen with 2.1.329:

* A turn is a change of `prompt_id`, not a UserPromptSubmit: that also fires, with the running id,
  for input while the turn runs, and not at all for a prompt that waited in the queue.
* Hooks of a background subagent carry the id of the turn that runs now; its SubagentStart and its
  own transcript carry that of the turn that started it.
* A transcript line holds one content block; the message's usage is repeated on each.
* The last assistant line lands some 50 ms after the Stop hook started.
* Requests are told by `api-request` lines, one per attempt; `requestRef` of an answer names its own.
* A fork's file begins with copies of its parent's lines, under the new session and, unlike what
  was there before, under the prompt id of the fork's own first turn. Only their times are old.
* PermissionRequest names no tool call id; name and input find the call.
"""

from __future__ import annotations

from tracebridge.agents.claude_code.edits import edits, remarks, settings_folder
from tracebridge.agents.claude_code.hooks import parse_hook
from tracebridge.agents.claude_code.past import past_sessions
from tracebridge.agents.claude_code.payload import SLUG
from tracebridge.agents.claude_code.requests import identify_call
from tracebridge.agents.claude_code.transcript import find_transcript, read_transcript, transcripts
from tracebridge.agents.claude_code.wiring import launch, unwire, upstream, wire

ALIASES = ("claude",)
PROGRAM = "claude"
TESTED_VERSION = "2.1.329"
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
    "read_transcript",
    "remarks",
    "settings_folder",
    "transcripts",
    "unwire",
    "upstream",
    "wire",
]

"""Codex CLI: hook events and rollout files to sightings, and what its requests say of themselves.

Format facts, each seen with 0.169.0:

* A turn is a `root_turn_id`. Hooks do not tell it: those of a subagent carry the subagent's own
  turn id, and only its rollout says whose that is.
* Hooks run only where the user approved them in /hooks, and a failed turn fires no Stop: what the
  rollout says must be enough.
* `token_usage_record` is written once per answered call and names the response; all other counts
  of tokens are sums. Attempts that failed are told by nobody but the gateway.
* A call is made as soon as its input is complete; no line tells when it began.
* A subagent's rollout begins with its parent's history, as far as `thread_settings_applied` of the
  thread itself, and in it the parent's turn ends as aborted.
* A patch that does not apply has no item, only the tool's output.
* `item_completed` has the item's own begin and end, in milliseconds.
* A rollout is open for writing as long as a process has the thread in hand, also between turns, and
  before the first hook runs. Killed, Codex tells nothing, but lets go of it.
* Compactions have no id that hooks know; `compacted` names the response that was the summary.
* PermissionRequest has the tool's input and the reason, but not the tool's id.
* A review is done by a thread of its own, whose hooks name its own turn and no subagent.
* What is typed in a terminal is done, and its hooks are run, by a server that outlives it: of the
  environment the hooks see that of the terminal which started the server.
"""

from __future__ import annotations

from tracebridge.agents.codex_cli.edits import edits, remarks, settings_folder
from tracebridge.agents.codex_cli.hooks import parse_hook
from tracebridge.agents.codex_cli.past import past_sessions
from tracebridge.agents.codex_cli.payload import SLUG
from tracebridge.agents.codex_cli.requests import identify_call
from tracebridge.agents.codex_cli.rollout import find_transcript, read_transcript, transcripts
from tracebridge.agents.codex_cli.wiring import launch, unwire, upstream, wire

ALIASES = ("codex",)
PROGRAM = "codex"
TESTED_VERSION = "0.169.0"
KEEPS_TRANSCRIPT_OPEN = True
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

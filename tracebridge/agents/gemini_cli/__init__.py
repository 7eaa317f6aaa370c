"""Gemini CLI: hook events and chat files to sightings, and what its requests say of themselves.

Format facts, each seen with 0.61.0:

* Neither hooks nor chat file name a turn. A turn is a user message with text; its key is that
  message's ordinal in the session, counted over all of the session's chat files; that of
  `/compress` is the last one's with `/compress` behind it.
* BeforeAgent fires some 20 ms before its message is in the chat file.
* Tool hooks name no tool call id; the chat file does, as `<tool>__<id that the model gave>`, once
  the tool is done.
* A chat line is written again when its message grows; the last one of an id counts.
* A line tells of the end of a model call; the call began once its input was recorded.
* `tokens.input` includes what came from the cache; `tokens.output` leaves out the thoughts.
* A turn that failed is rolled back: a `$set` of the messages leaves its prompt out. A turn that was
  broken off stays, without an answer. Neither fires AfterAgent.
* A resumed session begins with a `$set` of its history: the same ids, new times, no token counts.
* A prompt broken off by Escape is rolled back, too, behind an `info` line that says so; AfterAgent
  fires as after an answer.
* Of a tool that the user is asked about, `Notification` tells when, and not which: BeforeTool fired
  for it right before. Nothing tells when it was allowed. Refused, its turn is broken off, and the
  whole history stands there anew, line by line under new ids, as behind `/chat resume`.
* History that was summed up is a `$set` that begins with the summary and a fixed answer to it; what
  is kept of the latest has new ids. PreCompress fires before each model call as `auto`, whether or
  not anything is summed up, and as `manual` for `/compress`, which fires nothing else.
* What is typed while it works is put together to one prompt, for when it is done.
* `--session-file` begins a session with lines of another: older than its `startTime`.
* A subagent has a chat file of its own, `chats/<session>/<agent>.jsonl`; the line of the tool call
  that started it has its `agentId`. Its tools fire the session's hooks and name no subagent.
* A chat file may be deleted at the start of another process; what is still written to it makes a
  new one without the header. Versions before wrote one JSON document, `.json`.
* A system settings file counts only if it and all folders above it are root's, and writable by
  nobody else; otherwise there is a warning.
* Requests carry no id of session or turn; `GEMINI_CLI_CUSTOM_HEADERS` of one process can.
* Its telemetry tells of response ids, with prompts not logged, too. With nobody there to take it,
  the process takes 8 s longer to end.
"""

from __future__ import annotations

from tracebridge.agents.gemini_cli.chat import find_transcript, read_transcript, transcripts
from tracebridge.agents.gemini_cli.edits import edits, remarks, settings_folder
from tracebridge.agents.gemini_cli.hooks import parse_hook
from tracebridge.agents.gemini_cli.past import past_sessions
from tracebridge.agents.gemini_cli.payload import SLUG
from tracebridge.agents.gemini_cli.requests import identify_call
from tracebridge.agents.gemini_cli.telemetry import TELEMETRY
from tracebridge.agents.gemini_cli.wiring import launch, unwire, upstream, wire

ALIASES = ("gemini",)
PROGRAM = "gemini"
TESTED_VERSION = "0.61.0"
KEEPS_TRANSCRIPT_OPEN = False
TELLS_VERSION = False

__all__ = [
    "ALIASES",
    "KEEPS_TRANSCRIPT_OPEN",
    "PROGRAM",
    "SLUG",
    "TELEMETRY",
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

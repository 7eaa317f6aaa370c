"""Gemini CLI: hook events and chat files to sightings, and what its requests say of themselves.

Format facts, each seen with 0.61.0:

* Neither hooks nor chat file name a turn. A turn is a user message with text; its key is that
  message's ordinal in the session, counted over all of the session's chat files.
* BeforeAgent fires some 20 ms before its message is in the chat file.
* Tool hooks name no tool call id; the chat file does, as `<tool>__<id that the model gave>`, once
  the tool is done.
* A chat line is written again when its message grows; the last one of an id counts.
* A line tells of the end of a model call; the call began once its input was recorded.
* `tokens.input` includes what came from the cache; `tokens.output` leaves out the thoughts.
* A turn that failed is rolled back: a `$set` of the messages leaves its prompt out. A turn that was
  broken off stays, without an answer. Neither fires AfterAgent.
* A resumed session begins with a `$set` of its history: the same ids, new times, no token counts.
* A system settings file is passed over if a folder above it can be written to by others.
* Requests carry no id of session or turn; `GEMINI_CLI_CUSTOM_HEADERS` of one process can.
"""

from __future__ import annotations

from tracebridge.agents.gemini_cli.chat import find_transcript, read_transcript, transcripts
from tracebridge.agents.gemini_cli.hooks import parse_hook
from tracebridge.agents.gemini_cli.payload import SLUG
from tracebridge.agents.gemini_cli.requests import identify_call
from tracebridge.agents.gemini_cli.wiring import launch, settings_path, unwire, upstream, wire

ALIASES = ("gemini",)
PROGRAM = "gemini"
TESTED_VERSION = "0.61.0"

__all__ = [
    "ALIASES",
    "PROGRAM",
    "SLUG",
    "TESTED_VERSION",
    "find_transcript",
    "identify_call",
    "launch",
    "parse_hook",
    "read_transcript",
    "settings_path",
    "transcripts",
    "unwire",
    "upstream",
    "wire",
]

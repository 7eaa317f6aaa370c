"""Claude Code's hook payloads and transcript lines for tests, in the shapes that 2.1.329 writes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tracebridge.spool import Spool

SESSION = "2e23f0a0-0000-4000-8000-000000000001"
TURN = "5d00821f-0000-4000-8000-000000000002"
SECOND = 1_000_000_000
START = 1_795_000_000 * SECOND


def at(seconds: float) -> int:
    return START + int(seconds * SECOND)


def stamp(seconds: float) -> str:
    moment = datetime.fromtimestamp(at(seconds) / SECOND, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Claude:
    """One session, told by hook events in a spool and by a transcript file."""

    def __init__(self, home: Path, folder: Path, session: str = SESSION, turn: str = TURN) -> None:
        self.spool = Spool(home)
        self.spool.create()
        self.session = session
        self.turn = turn
        self.transcript = folder / "projects" / "-project" / f"{session}.jsonl"
        self.transcript.parent.mkdir(parents=True, exist_ok=True)
        self._serial = 0

    def hook(self, seconds: float, event: str, env: dict[str, str] | None = None, **fields: Any):
        """Put a hook event into the spool; a field given as None is left out."""
        payload = {
            "session_id": self.session,
            "transcript_path": str(self.transcript),
            "cwd": "/project",
            "prompt_id": self.turn,
            "hook_event_name": event,
            **fields,
        }
        payload = {name: value for name, value in payload.items() if value is not None}
        self.raw_hook(at(seconds), json.dumps(payload).encode(), env)

    def raw_hook(self, time_ns: int, payload: bytes, env: dict[str, str] | None = None):
        self._serial += 1
        head = [
            b"format=1",
            b"kind=hook",
            f"time_ns={time_ns}".encode(),
            b"agent=claude-code",
            b"pid=1",
            f"payload_bytes={len(payload)}".encode(),
            *(f"env.{name}={value}".encode() for name, value in (env or {}).items()),
        ]
        name = f"{time_ns:020d}-{self.session[:8]}-{self._serial}.event"
        (self.spool.new / name).write_bytes(b"\0".join(head) + b"\0\0" + payload)

    def line(self, kind: str, seconds: float, *, file: Path | None = None, **fields: Any):
        record = {
            "type": kind,
            "timestamp": stamp(seconds),
            "sessionId": self.session,
            "version": "2.1.329",
            "cwd": "/project",
            **fields,
        }
        with (file or self.transcript).open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def prompt_line(self, seconds: float, text: str, **fields: Any):
        message = {"role": "user", "content": text}
        self.line("user", seconds, promptId=self.turn, message=message, **fields)

    def answer_line(
        self,
        seconds: float,
        message_id: str,
        *blocks: dict[str, Any],
        began: float | None = None,
        stop: str | None = "end_turn",
        output_tokens: int = 20,
        **fields: Any,
    ):
        """Write one line per block, the usage repeated on each, as Claude Code does."""
        if began is not None:
            self.line("api-request", began, id=f"request-of-{message_id}")
        for index, block in enumerate(blocks):
            message = {
                "id": message_id,
                "role": "assistant",
                "model": "claude-opus-5-5",
                "content": [block],
                "stop_reason": stop,
                "usage": {
                    "input_tokens": 10,
                    "cache_creation_input_tokens": 5,
                    "cache_read_input_tokens": 100,
                    "output_tokens": output_tokens,
                },
            }
            self.line(
                "assistant",
                seconds,
                message=message,
                requestId=f"req-{message_id}",
                requestRef=f"request-of-{message_id}",
                requestedModel="claude-opus-5-5",
                apiBlockIndex=index,
                **fields,
            )

    def simple_turn(self, began: float = 0, text: str = "hello"):
        """Tell a turn of one answer by both sources."""
        self.hook(began, "UserPromptSubmit", prompt=text)
        self.prompt_line(began, text)
        self.answer_line(began + 2, f"msg_{self.turn}", said("done"), began=began + 1)
        self.hook(began + 3, "Stop", last_assistant_message="done", background_tasks=[])


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def used(key: str, name: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": key, "name": name, "input": given}

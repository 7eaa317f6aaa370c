"""A model API for measuring: answers at once, in a burst of events, or event by event.

    python tests/bench/model_server.py     prints its port

Which of them, the model's name in the request says. A paced event tells when it was sent, by a clock
that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

EVENTS = 200
PACED_EVENTS = 40
PACE_S = 0.005
MARK = b"sent-at-"


def event(name: str, **fields: object) -> bytes:
    data = json.dumps({"type": name, **fields}, separators=(",", ":"))
    return f"event: {name}\ndata: {data}\n\n".encode()


def words(text: str) -> bytes:
    delta = {"type": "text_delta", "text": text}
    return event("content_block_delta", index=0, delta=delta)


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-bench",
    "content": [{"type": "text", "text": "x" * 650}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 2},
}
PLAIN = json.dumps(MESSAGE).encode()
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(PLAIN),
    PLAIN,
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BEGIN = event("message_start", message={**MESSAGE, "content": []}) + event(
    "content_block_start", index=0, content_block={"type": "text", "text": ""}
)
END = (
    event("content_block_stop", index=0)
    + event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2})
    + event("message_stop")
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Model(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is of a class of its own.
        self._transport = cast("asyncio.Transport", transport)
        self._head = b""
        self._beginning = b""
        self._missing = 0

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            self._head += data
            head, found, rest = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            lower = head.lower()
            length = lower.partition(b"content-length:")[2].split(b"\r\n")[0]
            self._chunked = b"transfer-encoding: chunked" in lower
            self._missing = int(length or (1 << 60 if self._chunked else 0))
            self._head, self._beginning, data = b"", b"", rest
        self._missing -= len(data)
        if len(self._beginning) < 4096:
            self._beginning += data[:4096]
        if self._missing <= 0 or (self._chunked and data.endswith(b"0\r\n\r\n")):
            self._missing = 0
            self._answer()

    def _answer(self) -> None:
        if b"claude-burst" in self._beginning:
            self._transport.write(HEAD + chunk(BEGIN))
            for _ in range(EVENTS):
                self._transport.write(chunk(words("some words of an answer")))
            self._transport.write(chunk(END) + b"0\r\n\r\n")
        elif b"claude-paced" in self._beginning:
            self._transport.write(HEAD + chunk(BEGIN))
            self._pace(PACED_EVENTS)
        else:
            self._transport.write(PLAIN)

    def _pace(self, left: int) -> None:
        if self._transport.is_closing():
            return
        if not left:
            self._transport.write(chunk(END) + b"0\r\n\r\n")
            return
        self._transport.write(chunk(words(f"{MARK.decode()}{time.perf_counter_ns()}.")))
        asyncio.get_running_loop().call_later(PACE_S, self._pace, left - 1)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Model, "127.0.0.1", 0, backlog=1000)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())

"""An LLM that says what a script tells it, in the shape of Anthropic Messages, on loopback.

It picks each reply from the request alone (the prompt that began the turn, and how often the model
has spoken since), so an attempt that is sent again meets the same step. It keeps the ground truth:
one `Attempt` for each physical HTTP request, by which a trace can be judged.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, TypeAlias

JsonObject: TypeAlias = dict[str, Any]

DEFAULT_MODEL = "claude-scripted-1"
LARGEST_REQUEST_BYTES = 64 * 1024 * 1024

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}

# How a turn begins that a finished background task started: a prompt that nobody typed.
TASK_NOTIFICATION = "<task-notification>"
_NOTICE = "<system-reminder>\n[SYSTEM NOTIFICATION"
COMPACTION_INSTRUCTION = "Your task is to create a detailed summary of the conversation"


@dataclass(frozen=True, slots=True)
class Thinking:
    text: str
    signature: str = "c2NyaXB0ZWQ="


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class ToolUse:
    name: str
    input: Mapping[str, Any]


Block: TypeAlias = Thinking | Text | ToolUse


@dataclass(frozen=True, slots=True)
class HttpError:
    """The attempt is answered with an error status. *body* replaces the usual error object."""

    status: int
    message: str = "scripted failure"
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cut:
    """The stream stops after some events, by losing the connection or by a *clean* early end.

    Without streaming the connection is lost before the body is whole.
    """

    after_events: int = 4
    clean: bool = False


@dataclass(frozen=True, slots=True)
class StreamError:
    """An `error` event ends the stream; without streaming it is an HTTP error of that type."""

    after_events: int = 4
    type: str = "overloaded_error"


Failure: TypeAlias = HttpError | Cut | StreamError


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait after some events until the gate of this name opens."""

    gate: str
    after_events: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """One step of a turn: *failures* meet the first attempts, then the blocks are said."""

    blocks: Sequence[Block]
    failures: Sequence[Failure] = ()
    hold: Hold | None = None
    seconds_between_events: float = 0.0


@dataclass(slots=True, kw_only=True)
class Attempt:
    """The ground truth of one physical HTTP request. Header names are lower-case."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: JsonObject | None
    start_ns: int
    # "main", "subagent", "auxiliary", "compaction", "count_tokens", or "other".
    request_class: str = "other"
    session_id: str | None = None
    agent_id: str | None = None
    prompt_id: str | None = None
    # What the reply was picked by, and how often this very step was asked for, from 1.
    prompt: str | None = None
    step: int | None = None
    try_number: int | None = None
    model: str | None = None
    streaming: bool = False
    status: int | None = None
    request_id: str | None = None
    # From here on what was sent: of a stream that stopped, the part before.
    message_id: str | None = None
    usage: JsonObject | None = None
    stop_reason: str | None = None
    tool_use_ids: list[str] = field(default_factory=list)
    # "answered", "http_error", "cut", "stream_error" or "client_abort"; None while it runs.
    outcome: str | None = None
    end_ns: int | None = None


class ScriptedModel:
    """Serve a script on loopback; a context manager.

    *turns* maps how a prompt begins to the replies of its turn; a subagent's prompt is a prompt
    like any other. Prompts without an entry, and steps past the last, are answered with a line.
    """

    def __init__(
        self,
        turns: Mapping[str, Sequence[Reply]] | None = None,
        *,
        port: int = 0,
        id_prefix: str = "",
        request_ids: bool = True,
    ) -> None:
        self._play = _Play(turns or {}, id_prefix=id_prefix, request_ids=request_ids)
        self._server = _Server(("127.0.0.1", port), self._handler(self._play))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="scripted-model", daemon=True
        )
        self._thread.start()

    @staticmethod
    def _handler(play: _Play) -> type[BaseHTTPRequestHandler]:
        """Return the handler that speaks the API; a model of another shape has another."""
        return handler_of(play, Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def attempts(self) -> list[Attempt]:
        return self._play.seen()

    def calls(self) -> list[Attempt]:
        """Return the attempts that asked the model for a message."""
        asked = ("main", "subagent", "auxiliary", "compaction")
        return [attempt for attempt in self.attempts if attempt.request_class in asked]

    def ground_truth(self) -> list[JsonObject]:
        return [asdict(attempt) for attempt in self.attempts]

    def script(self, turns: Mapping[str, Sequence[Reply]]) -> None:
        """Add turns, or replace those whose prompt begins alike."""
        self._play.script(turns)

    def gate(self, name: str) -> threading.Event:
        return self._play.gate(name)

    def wait_until_held(self, gate: str, timeout: float = 120.0) -> None:
        play = self._play
        play.wait(lambda: play.is_held(gate), timeout, f"no reply is held at {gate!r}")

    def wait_for_request(
        self, predicate: Callable[[Attempt], bool], timeout: float = 120.0
    ) -> Attempt:
        """Return the first attempt that fits, now or when it comes or changes."""
        found: list[Attempt] = []

        def is_there() -> bool:
            found[:] = [attempt for attempt in self._play.seen() if predicate(attempt)]
            return bool(found)

        self._play.wait(is_there, timeout, "no such request")
        return found[0]

    def close(self) -> None:
        self._play.open_all_gates()
        self._server.shutdown()
        self._server.drop_connections()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


_SUMMARY = (
    "<analysis>\nThe user and the scripted model worked through a script.\n</analysis>\n\n"
    "<summary>\n1. Primary Request and Intent: to play a script.\n"
    "2. Current Work: the script.\n</summary>"
)


_SIDE_REPLIES = {
    "compaction": Reply([Text(_SUMMARY)]),
    "auxiliary": Reply([Text('{"title": "Scripted session"}')]),
}


def _classify(headers: Mapping[str, str], body: JsonObject) -> str:
    told = headers.get("x-claude-code-request-class")
    if told in {"main", "subagent", "auxiliary", "compaction"}:
        return told
    if "x-claude-code-compaction" in headers or _asks_for_summary(body):
        return "compaction"
    if "x-claude-code-agent-id" in headers or "x-parent-session-id" in headers:
        return "subagent"
    # An agent's titles and classifiers carry no tools; another client's plain chat is main.
    if not body.get("tools") and headers.keys() & {"x-claude-code-session-id", "x-session-id"}:
        return "auxiliary"
    return "main"


def _asks_for_summary(body: JsonObject) -> bool:
    messages = body.get("messages")
    return (
        isinstance(messages, list)
        and bool(messages)
        and any(COMPACTION_INSTRUCTION in text for text in _texts(messages[-1]))
    )


def _texts(message: object) -> list[str]:
    if not isinstance(message, dict) or message.get("role") != "user":
        return []
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        return []
    return [
        block["text"]
        for block in content
        if isinstance(block, dict) and isinstance(block.get("text"), str)
    ]


def _find_prompt(body: JsonObject, beginnings: Sequence[str]) -> tuple[str | None, int, int]:
    """Return the scripted prompt that the request is about, its step, and where it stands."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return None, 0, 0
    step = 0
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if isinstance(message, dict) and message.get("role") == "assistant":
            step += 1
        for text in reversed(_texts(message)):
            said = text.strip()
            if said.startswith(_NOTICE):
                said = said[max(0, said.find(TASK_NOTIFICATION)) :]
            fitting = [beginning for beginning in beginnings if said.startswith(beginning)]
            if fitting:
                return max(fitting, key=len), step, place
    return None, step, 0


def _session_in_metadata(body: JsonObject) -> str | None:
    metadata = body.get("metadata")
    user_id = metadata.get("user_id") if isinstance(metadata, dict) else None
    if not isinstance(user_id, str):
        return None
    try:
        session_id = json.loads(user_id).get("session_id")
    except (ValueError, AttributeError):
        return None
    return session_id if isinstance(session_id, str) else None


def _tool_use_ids(message: JsonObject) -> list[str]:
    return [block["id"] for block in message["content"] if block["type"] == "tool_use"]


def _stream_events(message: JsonObject) -> Iterator[JsonObject]:
    usage = message["usage"]
    # Both numbers of output are the truth only at the end, as with the real API.
    opening = {**message, "content": [], "stop_reason": None}
    opening["usage"] = {
        **usage,
        "output_tokens": 1,
        "output_tokens_details": {"thinking_tokens": 0},
    }
    yield {"type": "message_start", "message": opening}
    yield {"type": "ping"}
    for index, block in enumerate(message["content"]):
        if block["type"] == "thinking":
            start: JsonObject = {"type": "thinking", "thinking": "", "signature": ""}
            deltas: list[JsonObject] = [
                {"type": "thinking_delta", "thinking": part} for part in _pieces(block["thinking"])
            ]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif block["type"] == "text":
            start = {"type": "text", "text": ""}
            deltas = [{"type": "text_delta", "text": part} for part in _pieces(block["text"])]
        else:
            start = {**block, "input": {}}
            deltas = [
                {"type": "input_json_delta", "partial_json": part}
                for part in _pieces(json.dumps(block["input"]))
            ]
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
        "usage": usage,
    }
    yield {"type": "message_stop"}


def _pieces(text: str) -> list[str]:
    """Cut in three at most: enough that a client must put deltas together."""
    size = max(1, -(-len(text) // 3))
    return [text[start : start + size] for start in range(0, len(text), size)]


def _has_left(connection: socket.socket) -> bool:
    readable, _, _ = select.select([connection], [], [], 0)
    if not readable:
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def _error_body(status: int, message: str, request_id: str | None) -> bytes:
    kind = ERROR_TYPES.get(status, "api_error")
    error: JsonObject = {"type": "error", "error": {"type": kind, "message": message}}
    if request_id:
        error["request_id"] = request_id
    return json.dumps(error).encode()


class _Play:
    """What the threads share: the script, the gates, and the truth so far."""

    def __init__(
        self, turns: Mapping[str, Sequence[Reply]], *, id_prefix: str, request_ids: bool
    ) -> None:
        self._turns = dict(turns)
        self._id_prefix = id_prefix
        self._request_ids = request_ids
        self._attempts: list[Attempt] = []
        self._tries: dict[tuple[object, ...], int] = {}
        self._gates: dict[str, threading.Event] = {}
        self._held: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closing = False

    def seen(self) -> list[Attempt]:
        with self._changed:
            return list(self._attempts)

    def script(self, turns: Mapping[str, Sequence[Reply]]) -> None:
        with self._changed:
            self._turns.update(turns)

    def gate(self, name: str) -> threading.Event:
        with self._changed:
            gate = self._gates.setdefault(name, threading.Event())
            if self._closing:
                gate.set()
            return gate

    def open_all_gates(self) -> None:
        with self._changed:
            self._closing = True
            for gate in self._gates.values():
                gate.set()

    def is_held(self, gate: str) -> bool:
        with self._changed:
            return self._held.get(gate, 0) > 0

    def wait(self, condition: Callable[[], bool], timeout: float, complaint: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                seen = [
                    (attempt.number, attempt.request_class, attempt.prompt, attempt.step)
                    for attempt in self._attempts
                ]
                raise TimeoutError(f"scripted model: {complaint} after {timeout} s; seen: {seen}")

    def begin(
        self, method: str, path: str, headers: dict[str, str], body: JsonObject | None
    ) -> Attempt:
        with self._changed:
            number = len(self._attempts) + 1
            attempt = Attempt(
                number=number,
                method=method,
                path=path,
                headers=headers,
                body=body,
                start_ns=time.time_ns(),
            )
            if self._request_ids:
                attempt.request_id = f"req_{self._id_prefix}{number:04d}"
            self._attempts.append(attempt)
            self._changed.notify_all()
            return attempt

    def update(self, attempt: Attempt, **facts: Any) -> None:
        with self._changed:
            for name, value in facts.items():
                setattr(attempt, name, value)
            self._changed.notify_all()

    def plan(self, attempt: Attempt, body: JsonObject) -> tuple[Reply, Failure | None]:
        """Recognise the request, pick its reply, and the failure that this try must meet."""
        prompt: str | None
        step: int | None
        with self._changed:
            turns = dict(self._turns)
        prompt, step, place = _find_prompt(body, tuple(turns))
        headers = attempt.headers
        session_id = (
            headers.get("x-claude-code-session-id")
            or headers.get("x-session-id")
            or _session_in_metadata(body)
        )
        agent_id = headers.get("x-claude-code-agent-id")
        if agent_id is None and "x-parent-session-id" in headers:
            # OpenCode's subagents are sessions of their own.
            agent_id = session_id
        request_class = _classify(attempt.headers, body)
        if request_class in _SIDE_REPLIES:
            prompt = step = None
            reply = _SIDE_REPLIES[request_class]
        else:
            steps = turns.get(prompt or "", ())
            reply = steps[step] if step < len(steps) else Reply([Text("Scripted: nothing more.")])
        same_step = (session_id, agent_id, request_class, place, prompt, step)
        with self._changed:
            try_number = self._tries[same_step] = self._tries.get(same_step, 0) + 1
        model = body.get("model")
        self.update(
            attempt,
            request_class=request_class,
            session_id=session_id,
            agent_id=agent_id,
            prompt_id=attempt.headers.get("x-claude-code-prompt-id"),
            prompt=prompt,
            step=step,
            try_number=try_number,
            model=model if isinstance(model, str) else DEFAULT_MODEL,
            streaming=body.get("stream") is True,
        )
        failures = reply.failures
        return reply, failures[try_number - 1] if try_number <= len(failures) else None

    def compose(self, attempt: Attempt, reply: Reply) -> JsonObject:
        """Build the whole message; its numbers differ for each attempt, so none can stand in."""
        number = attempt.number
        content: list[JsonObject] = []
        for index, block in enumerate(reply.blocks):
            match block:
                case Thinking(text, signature):
                    content.append({"type": "thinking", "thinking": text, "signature": signature})
                case Text(text):
                    content.append({"type": "text", "text": text})
                case ToolUse(name, tool_input):
                    call = {"id": f"toolu_{self._id_prefix}{number:04d}_{index}", "name": name}
                    content.append({"type": "tool_use", **call, "input": dict(tool_input)})
        calls_tools = any(isinstance(block, ToolUse) for block in reply.blocks)
        thought = any(isinstance(block, Thinking) for block in reply.blocks)
        usage = {
            "input_tokens": 100 + 7 * number,
            "cache_creation_input_tokens": 50 + number,
            "cache_read_input_tokens": 1000 + 11 * number,
            "output_tokens": 40 + 3 * number,
            "output_tokens_details": {"thinking_tokens": 10 + number if thought else 0},
            "cache_creation": {
                "ephemeral_5m_input_tokens": 50 + number,
                "ephemeral_1h_input_tokens": 0,
            },
            "service_tier": "standard",
        }
        return {
            "id": f"msg_{self._id_prefix}{number:04d}",
            "type": "message",
            "role": "assistant",
            "model": attempt.model,
            "content": content,
            "stop_reason": "tool_use" if calls_tools else "end_turn",
            "stop_sequence": None,
            "usage": usage,
        }

    def wait_at(self, hold: Hold, connection: socket.socket) -> None:
        """Wait until the gate opens; raise if the client leaves meanwhile."""
        gate = self.gate(hold.gate)
        self._count_held(hold.gate, 1)
        try:
            while not gate.wait(0.02):
                if _has_left(connection):
                    raise ConnectionAbortedError
        finally:
            self._count_held(hold.gate, -1)

    def _count_held(self, gate: str, change: int) -> None:
        with self._changed:
            self._held[gate] = self._held.get(gate, 0) + change
            self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    # All threads end in close(): none may outlive the model with a socket in hand.
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _BadRequestError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def handler_of(shared: _Play, handler: type[Handler]) -> type[BaseHTTPRequestHandler]:
    """Return *handler* for one play."""

    class Bound(handler):  # type: ignore[misc, valid-type]  # mypy: a base that is a variable
        play = shared

    return Bound


class Handler(BaseHTTPRequestHandler):
    """Anthropic's shape; another API's overrides what is said, not when and how it fails."""

    # Else the body of a short answer waits 40 ms for the acknowledgement of its head.
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"
    play: _Play

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        pass

    def handle(self) -> None:
        # A client that leaves is an everyday event, told in the ground truth.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_HEAD(self) -> None:
        self._answer_politely()

    def do_GET(self) -> None:
        self._answer_politely()

    def do_POST(self) -> None:
        play = self.play
        headers = {name.lower(): value for name, value in self.headers.items()}
        complaint: _BadRequestError | None = None
        body: JsonObject | None = None
        try:
            body = _parse_object(self._read_body())
        except _BadRequestError as error:
            complaint = error
        attempt = play.begin("POST", self.path, headers, body)
        path = self.path.partition("?")[0].rstrip("/")
        try:
            if complaint is not None or body is None:
                status = complaint.status if complaint else 400
                self._send_error(attempt, HttpError(status, str(complaint)))
            else:
                self._serve(attempt, path, body)
        except ConnectionError:
            self.close_connection = True
            self._finish(attempt, "client_abort")

    def _serve(self, attempt: Attempt, path: str, body: JsonObject) -> None:
        if path.endswith("/v1/messages/count_tokens"):
            self.play.update(attempt, request_class="count_tokens")
            tokens = len(json.dumps(body)) // 4
            self._send_json(attempt, json.dumps({"input_tokens": tokens}).encode())
        elif path.endswith("/v1/messages"):
            self._answer(attempt, body)
        else:
            self._send_error(attempt, HttpError(404, f"no such endpoint: {path}"))

    def _document(self, message: JsonObject) -> JsonObject:
        """Return a whole message as the API puts it."""
        return message

    def _stream_events(self, message: JsonObject) -> Iterator[JsonObject]:
        """Yield the events by which the API streams a message."""
        return _stream_events(message)

    def _answer_politely(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        attempt = self.play.begin(self.command, self.path, headers, None)
        self._send_json(attempt, b'{"type": "scripted_model"}')

    def _read_body(self) -> bytes:
        if "chunked" in (self.headers.get("transfer-encoding") or "").lower():
            return self._read_chunks()
        try:
            length = int(self.headers.get("content-length") or 0)
        except ValueError:
            length = -1
        if not 0 <= length <= LARGEST_REQUEST_BYTES:
            self.close_connection = True
            raise _BadRequestError(413 if length > 0 else 400, "content-length is out of range")
        return self.rfile.read(length)

    def _read_chunks(self) -> bytes:
        body = b""
        while True:
            line = self.rfile.readline(1024).partition(b";")[0].strip()
            try:
                size = int(line, 16)
            except ValueError:
                size = -1
            if not 0 <= size <= LARGEST_REQUEST_BYTES - len(body):
                self.close_connection = True
                raise _BadRequestError(400, "bad chunk in the request")
            if size == 0:
                break
            body += self.rfile.read(size)
            self.rfile.readline(1024)
        while self.rfile.readline(1024).strip():
            pass
        return body

    def _answer(self, attempt: Attempt, body: JsonObject) -> None:
        play = self.play
        reply, failure = play.plan(attempt, body)
        if isinstance(failure, HttpError):
            self._send_error(attempt, failure)
            return
        message = play.compose(attempt, reply)
        if attempt.streaming:
            self._stream(attempt, reply, message, failure)
            return
        if reply.hold is not None:
            play.wait_at(reply.hold, self.connection)
        if isinstance(failure, StreamError):
            status = next((code for code, kind in ERROR_TYPES.items() if kind == failure.type), 500)
            self._send_error(attempt, HttpError(status))
            return
        whole = json.dumps(self._document(message)).encode()
        if isinstance(failure, Cut):
            self._send_head(attempt, 200, {"content-length": str(len(whole))})
            self.wfile.write(whole[: len(whole) // 2])
            self._hang_up(attempt)
            return
        self._send_json(attempt, whole, **self._facts(message))

    def _stream(
        self, attempt: Attempt, reply: Reply, message: JsonObject, failure: Failure | None
    ) -> None:
        head = {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}
        head["cache-control"] = "no-cache"
        self._send_head(attempt, 200, head)
        events = list(self._stream_events(message))
        last = len(events)
        if isinstance(failure, Cut | StreamError):
            last = min(failure.after_events, last - 1)
        hold = reply.hold
        for sent, event in enumerate(events[: last + 1]):
            if hold is not None and sent == hold.after_events:
                self.play.wait_at(hold, self.connection)
            if sent == last:
                break
            if sent and reply.seconds_between_events:
                time.sleep(reply.seconds_between_events)
            self._note(attempt, event)
            self._send_event(event)
        if failure is None:
            # Known before the client sees the end, so whoever waits for the client finds it whole.
            self._finish(attempt, "answered")
            self.wfile.write(b"0\r\n\r\n")
        elif isinstance(failure, StreamError):
            self._finish(attempt, "stream_error")
            error = {"type": failure.type, "message": "scripted failure"}
            self._send_event({"type": "error", "error": error})
            self.wfile.write(b"0\r\n\r\n")
        elif isinstance(failure, Cut) and failure.clean:
            self._finish(attempt, "cut")
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._hang_up(attempt)

    def _facts(self, message: JsonObject) -> JsonObject:
        """Return what the truth keeps of a whole message."""
        facts = {name: message[name] for name in ("usage", "stop_reason")}
        return {"message_id": message["id"], "tool_use_ids": _tool_use_ids(message), **facts}

    def _note(self, attempt: Attempt, event: JsonObject) -> None:
        """Keep in the truth what the client is about to be told."""
        match event:
            case {"type": "message_start", "message": message}:
                self.play.update(attempt, message_id=message["id"], usage=message["usage"])
            case {"type": "content_block_start", "content_block": {"type": "tool_use", "id": new}}:
                self.play.update(attempt, tool_use_ids=[*attempt.tool_use_ids, new])
            case {"type": "message_delta", "usage": usage, "delta": delta}:
                self.play.update(attempt, usage=usage, stop_reason=delta["stop_reason"])

    def _send_event(self, event: JsonObject) -> None:
        data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _send_head(self, attempt: Attempt, status: int, headers: Mapping[str, str]) -> None:
        self.play.update(attempt, status=status)
        known = status in {code.value for code in HTTPStatus}
        self.send_response(status, None if known else "Overloaded")
        if attempt.request_id:
            self.send_header("request-id", attempt.request_id)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_json(self, attempt: Attempt, body: bytes, **facts: Any) -> None:
        self.play.update(attempt, **facts)
        head = {"content-type": "application/json", "content-length": str(len(body))}
        self._finish(attempt, "answered")
        self._send_head(attempt, 200, head)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_error(self, attempt: Attempt, error: HttpError) -> None:
        body = error.body
        if body is None:
            body = _error_body(error.status, error.message, attempt.request_id)
        head = {"content-type": "application/json", "content-length": str(len(body))}
        self._finish(attempt, "http_error")
        self._send_head(attempt, error.status, head | dict(error.headers))
        self.wfile.write(body)

    def _hang_up(self, attempt: Attempt) -> None:
        self._finish(attempt, "cut")
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _finish(self, attempt: Attempt, outcome: str) -> None:
        self.play.update(attempt, outcome=outcome, end_ns=time.time_ns())


def _parse_object(body: bytes) -> JsonObject:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _BadRequestError(400, f"the request is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise _BadRequestError(400, "the request is not a JSON object")
    return parsed

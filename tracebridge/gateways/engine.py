"""A routing engine behind our gateway: `respan-gateway`, started on loopback, kept alive, listened to.

Fallback, retries, load balancing and translation are its own affair. It forwards no header of ours
and names no response; but it logs the path of each request, and takes any prefix. So ours carries
our id of the call, and by time and tokens the log tells which of its traces is whose.
Seen with respan-gateway 0.3.0.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import sys
import threading
import tomllib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tracebridge.gateways import leash
from tracebridge.gateways.recorder import Complaints
from tracebridge.gateways.upstream import Origin, Upstream
from tracebridge.model import GatewayCall, SpanExport

PROGRAM = "respan-gateway"
# By these two, the one on our call and the other on its spans, they are known for the same call.
_LOG_ID_HEADER, _LOG_ID = "x-respan-log-id", "respan.gateway.log_id"
_START_SECONDS = 30
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10
_REQUESTS_REMEMBERED = 4096
_LINES_REMEMBERED = 5
# Log and trace take the time one after the other: nearly always in the same millisecond, and on a
# busy machine some later.
_NEAR_MS = 250
# The log has whole milliseconds, and the trace ends behind it.
_SAME_MS = 1.5
# How often we look whether the config has changed.
_LOOK_SECONDS = 1
_CALL_ID = re.compile(r"/([0-9a-f]{32})/")


class EngineError(ValueError):
    """The engine cannot be run like this; the text names the remedy."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What the engine's log tells of one request."""

    call_id: str
    start_ms: int
    took_ms: int
    tokens: tuple[int | None, int | None]


def find_program() -> str:
    """Return where the engine is installed. Raise EngineError if it is not."""
    beside = Path(sys.executable).parent / PROGRAM
    found = shutil.which(PROGRAM) or (str(beside) if beside.is_file() else None)
    if found is None:
        raise EngineError(f"--engine: {PROGRAM} is not installed; run: pip install {PROGRAM}")
    return found


def with_exports(config: Path, url: str, key: str) -> str | None:
    """Return the text of *config* with exports to *url*, None if it exports elsewhere already."""
    import tomlkit  # noqa: PLC0415  # only where there is an engine

    try:
        text = config.read_text("utf-8")
        document = tomlkit.parse(text)
        tomllib.loads(text)
    except OSError as error:
        raise EngineError(f"--engine-config {config}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"--engine-config {config}: {error}; correct it") from error
    plugins = document.setdefault("plugins", tomlkit.table(is_super_table=True))
    if not isinstance(plugins, dict) or "respan" in plugins:
        return None
    plugins["respan"] = {"url": url, "key": key, "content": False}
    return tomlkit.dumps(document)


class Engine:
    """One engine, with a process that may change. Raise EngineError where it is not installed."""

    def __init__(self, config: Path, complaints: Complaints) -> None:
        # Proves that an export comes from it.
        self.export_key = secrets.token_urlsafe(32)
        self._program = find_program()
        self._config = config.absolute()
        self._complaints = complaints
        self._moved: Callable[[Upstream], None] = lambda _upstream: None
        self._ports: set[int] = set()
        self._process: asyncio.subprocess.Process | None = None
        # A copy of the config that has it export to us, and of which state that is.
        self._copy: Path | None = None
        self._exports_to = ""
        self._copied: object = None
        self._lines: deque[str] = deque(maxlen=_LINES_REMEMBERED)
        self._requests: deque[_Request] = deque(maxlen=_REQUESTS_REMEMBERED)
        self._lock = threading.Lock()

    async def start(self, copy: Path, port: int, moved: Callable[[Upstream], None]) -> None:
        """Start it and wait until it serves. Raise EngineError where it does not.

        Its *copy* of the config has it export to us at *port*; *moved* is told where it is, then
        and after each new start.
        """
        self._moved = moved
        self._exports_to = f"http://127.0.0.1:{port}/v1/traces"
        self._copy_config(copy)
        await self._spawn()

    def _copy_config(self, copy: Path) -> None:
        self._copied = _state_of(self._config)
        text = with_exports(self._config, self._exports_to, self.export_key)
        if text is None:
            return
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # It may hold the providers' keys.
        new = copy.with_suffix(".new")
        new.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(new, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        new.replace(copy)
        self._copy = copy

    async def follow_config(self) -> None:
        """Let it have each new state of its config, until cancelled; it looks by itself."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._copy is not None and _state_of(self._config) != self._copied:
                try:
                    self._copy_config(self._copy)
                except (EngineError, OSError) as error:
                    self._complaints.add(f"not reloaded: {error}", "the engine goes on as it is")

    async def keep(self) -> None:
        """Start it again whenever it ends, until cancelled."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            if self._process is not None:
                await self._listen(self._process)
                code = await self._process.wait()
                last = f": {self._lines[-1]}" if self._lines else ""
                self._complaints.add("the engine ended", f"exit code {code}{last}")
                self._process = None
            await asyncio.sleep(pause)
            try:
                await self._spawn()
            except (EngineError, OSError) as error:
                self._complaints.add("the engine does not start", error)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                pause = _FIRST_PAUSE_SECONDS

    async def stop(self) -> None:
        """End it in order, with what it has under way."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            # Its last lines, so that it is not held up by a pipe that nobody reads.
            await self._listen(process)
            await process.wait()
        if self._copy is not None:
            self._copy.unlink(missing_ok=True)

    async def _spawn(self) -> None:
        words = ["serve", "--config", str(self._copy or self._config)]
        words += ["--listen", "127.0.0.1:0", "--log", "json", "--color", "never", "--watch"]
        self._lines.clear()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", leash.__file__, self._program, *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # It reads a .env file from where it stands: of the config's folder, not of ours.
            cwd=self._config.parent,
            limit=1 << 20,
        )
        self._process = process
        try:
            async with asyncio.timeout(_START_SECONDS):
                port = await self._listen(process, until_it_serves=True)
                if port is None:
                    await process.wait()
                    said = "; ".join(self._lines) or "it said nothing"
                    raise EngineError(f"--engine: {PROGRAM} ended at once: {said}")
                await _wait_for_health(port)
        except TimeoutError as error:
            await self.stop()
            raise EngineError(
                f"--engine: {PROGRAM} does not serve after {_START_SECONDS} s"
            ) from error
        self._ports.add(port)
        self._moved(Upstream(Origin("http", "127.0.0.1", port), "", names_calls=True))

    async def _listen(
        self, process: asyncio.subprocess.Process, *, until_it_serves: bool = False
    ) -> int | None:
        """Take in what it says, to the end or until it says at which port it serves."""
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:
                # Longer than any line of its log.
                continue
            if not line:
                return None
            port = self._take(line.decode("utf-8", "replace").strip())
            if port is not None and until_it_serves:
                return port

    def _take(self, line: str) -> int | None:
        """Take in one line of its log; return the port if that is what it tells."""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            self._lines.append(line[:500])
            return None
        if record.get("msg") == "listening":
            _, colon, port = str(record.get("addr", "")).rpartition(":")
            return int(port) if colon and port.isdecimal() and len(port) < 6 else None
        request = _parse_request(record)
        if request is not None:
            with self._lock:
                self._requests.append(request)
        elif record.get("level") in {"warn", "error"}:
            text = str(record.get("msg", line))[:500]
            self._lines.append(text)
            self._complaints.add(f"the engine says {record['level']}", text)
        return None

    def named(self, call: GatewayCall) -> GatewayCall:
        """Return *call* with the name by which the engine's own spans of it are found."""
        if call.server_port not in self._ports or call.server_address != "127.0.0.1":
            return call
        headers = {_LOG_ID_HEADER: call.call_id, **call.response_headers}
        return replace(call, response_headers=headers)

    def with_names(self, export: SpanExport) -> SpanExport:
        """Return *export* with the ids of the calls that its traces are about, where that is sure."""
        request = ExportTraceServiceRequest.FromString(export.request)
        spans = list(_spans(request))
        found = False
        for root in (span for span in spans if not span.parent_span_id):
            trace = [span for span in spans if span.trace_id == root.trace_id]
            call_id = self._call_of(root, trace)
            if call_id is not None:
                found = True
                for span in trace:
                    span.attributes.add(key=_LOG_ID).value.string_value = call_id
        return replace(export, request=request.SerializeToString()) if found else export

    def _call_of(self, root: Span, trace: list[Span]) -> str | None:
        """Return the call that a trace is about, None where it could be more than one."""
        start_ms = root.start_time_unix_nano // 1_000_000
        took_ms = (root.end_time_unix_nano - root.start_time_unix_nano) / 1e6
        told = {_tokens_of(span) for span in trace} - {(None, None)}
        with self._lock:
            near = [each for each in self._requests if abs(each.start_ms - start_ms) <= _NEAR_MS]
        same = [each for each in near if each.start_ms == start_ms]
        alike = [each for each in near if each.tokens in told] or same
        if len(alike) > 1:
            alike = [each for each in alike if each in same]
        if len(alike) > 1:
            alike = [each for each in alike if 0 <= took_ms - each.took_ms < _SAME_MS]
        return alike[0].call_id if len(alike) == 1 else None


def _parse_request(record: dict[str, Any]) -> _Request | None:
    found = _CALL_ID.match(str(record.get("path", "")))
    took_ms = record.get("duration_ms")
    usage = record.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    if record.get("msg") != "request" or found is None or not isinstance(took_ms, int | float):
        return None
    with suppress(ValueError, OverflowError):
        started = datetime.fromisoformat(str(record.get("started_at")))
        return _Request(
            call_id=found[1],
            start_ms=round(started.timestamp() * 1000),
            took_ms=int(took_ms),
            tokens=(usage.get("input_tokens"), usage.get("output_tokens")),
        )
    return None


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for group in request.resource_spans:
        service = {a.key: a.value.string_value for a in group.resource.attributes}
        if service.get("service.name") == PROGRAM:
            for scope in group.scope_spans:
                yield from scope.spans


def _tokens_of(span: Span) -> tuple[int | None, int | None]:
    told = {attribute.key: attribute.value.int_value for attribute in span.attributes}
    return (told.get("gen_ai.usage.prompt_tokens"), told.get("gen_ai.usage.completion_tokens"))


def _state_of(path: Path) -> object:
    try:
        facts = path.stat()
    except OSError as error:
        return error.errno
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


async def _wait_for_health(port: int) -> None:
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(
                    b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
                )
                if (await reader.readline()).startswith(b"HTTP/1.1 200"):
                    return
            finally:
                writer.close()
        await asyncio.sleep(0.05)

"""Appends to a file: one OTLP/JSON document a line, as collectors write and read them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from tracebridge.encode import is_intact, to_json
from tracebridge.sinks import (
    DAMAGED,
    OutboxSpan,
    ReadySink,
    Receipt,
    SinkSettingsError,
    by_resource,
)


class JsonFileSink:
    def __init__(self, path: Path) -> None:
        self._path = path

    def send(self, spans: Sequence[OutboxSpan]) -> Receipt:
        if not spans:
            return Receipt()
        readable = [span for span in spans if is_intact(span.data)]
        refused = {span.span_id: DAMAGED for span in spans if not is_intact(span.data)}
        try:
            if readable:
                self._append(orjson.dumps(to_json(by_resource(readable))) + b"\n")
        except OSError as error:
            reason = f"cannot write {self._path}: {error.strerror}; make room or mend the path"
            return Receipt(refused=refused, error=reason)
        return Receipt(acknowledged=tuple(span.span_id for span in readable), refused=refused)

    def close(self) -> None:
        """Nothing is kept open."""

    def _append(self, line: bytes) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                # Whoever wrote last was stopped in mid-line; what follows must not join it.
                line = b"\n" + line
            rest = memoryview(line)
            try:
                while rest:
                    rest = rest[os.write(file, rest) :]
                # On disk before it is acknowledged.
                os.fsync(file)
            except OSError:
                os.ftruncate(file, size)
                raise
        finally:
            os.close(file)


def prepare(name: str, argument: str, env: Mapping[str, str]) -> ReadySink:  # noqa: ARG001
    path = Path(argument).expanduser() if argument else Path()
    if not path.is_absolute():
        # The watcher runs elsewhere than the shell in which this was written.
        raise SinkSettingsError(
            "TRACEBRIDGE_SINKS: json_file needs an absolute path, such as json_file:/tmp/spans.jsonl"
        )
    return ReadySink(name=name, target=str(path), open=lambda: JsonFileSink(path))

"""Real backends, and recorded turns that are sent to them with the commands that users have.

Three recordings of Claude Code: file edits and a failed command, two subagents at once, a call that
failed twice before it was answered; each with the tags of a customer.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from recordings import lay_out, recordings, spool_hooks

from tracebridge import semconv

PLAYED = ("tools", "subagents", "retry_429_529")
TAGS = {"RESPAN_CUSTOMER_ID": "acme", "RESPAN_METADATA": '{"team": "blue"}'}
PATIENCE_S = 300.0
ERROR = 2


@dataclass(frozen=True)
class Sent:
    """A span as `tracebridge export` tells it: what a backend should show."""

    span_id: str
    trace_id: str
    parent: str | None
    name: str
    failed: bool
    start_ns: int
    attributes: Mapping[str, Any]

    @property
    def type(self) -> str:
        return self.attributes[semconv.SPAN_TYPE]

    @property
    def kind(self) -> str:
        return self.attributes[semconv.OI_KIND]


@dataclass(frozen=True)
class Turns:
    """Recorded turns in a home of ours, not yet sent to anybody."""

    home: Path
    env: Mapping[str, str]
    spans: Sequence[Sent]

    def send(self, *sinks: str, **env: str) -> None:
        """Send them with the command for it, and expect that all are acknowledged."""
        words = [word for sink in sinks for word in ("--sink", sink)]
        tracebridge(["export", *words], {**self.env, **env})

    def of_type(self, kind: str) -> list[Sent]:
        return [span for span in self.spans if span.type == kind]

    @property
    def sessions(self) -> set[str]:
        return {span.attributes[semconv.SESSION_ID] for span in self.spans}

    def total(self, attribute: str) -> float:
        return sum(span.attributes.get(attribute, 0) for span in self.spans)


def tracebridge(arguments: Sequence[str], env: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tracebridge", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Turns:
    """Import the recordings as a user would: hooks in the spool, transcripts in the home."""
    place = tmp_path_factory.mktemp("turns")
    home = place / "state"
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(place / "home"),
        "TRACEBRIDGE_HOME": str(home),
        "TRACEBRIDGE_NO_WATCH": "1",
        # Some load half of themselves at the first request.
        "OTEL_EXPORTER_OTLP_TIMEOUT": "120000",
    }
    for recording in recordings():
        if recording.parent.name == "claude-code" and recording.name in PLAYED:
            lay_out(recording, place / "home")
            spool_hooks(recording, place / "home", home / "spool" / "new", TAGS)
    tracebridge(["import", "--local-only"], env)
    tracebridge(["watch", "--once", "--close-open"], env)
    spans = list(_spans(json.loads(tracebridge(["export"], env))))
    assert {span.type for span in spans} >= {"turn", "llm", "tool", "edit", "subagent", "thinking"}
    assert any(span.failed for span in spans if span.type == "llm")
    return Turns(home, env, spans)


def _spans(document: Mapping[str, Any]) -> Iterator[Sent]:
    for resource in document["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                attributes = {a["key"]: _value(a["value"]) for a in span["attributes"]}
                yield Sent(
                    span_id=span["spanId"],
                    trace_id=span["traceId"],
                    parent=span.get("parentSpanId"),
                    name=span["name"],
                    failed=span["status"].get("code") in (ERROR, "STATUS_CODE_ERROR"),
                    start_ns=int(span["startTimeUnixNano"]),
                    attributes=attributes,
                )


def _value(value: Mapping[str, Any]) -> Any:
    ((kind, plain),) = value.items()
    if kind == "intValue":
        return int(plain)
    return [_value(each) for each in plain["values"]] if kind == "arrayValue" else plain


@contextmanager
def running(
    command: Sequence[str | Path], folder: Path, env: Mapping[str, str], ready: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run somebody else's server until the block ends, once it answers."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env={**clean, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until(
            lambda: process.poll() is not None or ready(),
            f"{command[0]} did not start",
        )
        assert process.poll() is None, log.read_text("utf-8", "replace")[-3000:]
        yield process
    finally:
        # It may have workers of its own.
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def until(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status == 200
    except OSError:
        return False


def get(url: str, body: Any = None) -> Any:
    """Return the JSON that the backend's own API gives."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        pytest.fail(f"{url}: {error.code} {error.read()[:500]!r}")


def hex_of(encoded: str) -> str:
    return base64.b64decode(encoded).hex()

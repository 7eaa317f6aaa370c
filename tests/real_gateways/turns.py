"""A turn of a real agent through a real gateway that exports its spans to us, and its judge."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import claude
import codex
from backend_runs import until
from judge import CLAUDE_CODE, TAGS, Kind, running_watcher, wired_for

from tracebridge import semconv
from tracebridge.model import Evidence
from tracebridge.run import started_gateway
from tracebridge.settings import read_settings
from tracebridge.store import Store
from tracebridge.testing.receiver import ReceivedSpan, Receiver
from tracebridge.testing.scripted_model import Attempt, HttpError, Reply, Text, ToolUse
from tracebridge.watch import watch_once

# Starts a gateway before the model of a URL, exporting to another URL.
Starter: TypeAlias = Callable[[str, str], AbstractContextManager[str]]

PROMPT = "write the greeting"
# What an agent's base URL ends in.
VERSIONS = {"claude-code": "", "codex-cli": "/v1"}
KEYS = {"claude-code": claude.API_KEY, "codex-cli": codex.API_KEY}
COMMANDS = {
    "claude-code": ToolUse("Bash", {"command": "echo hi", "description": "greets"}),
    "codex-cli": ToolUse("exec_command", {"cmd": "echo hi"}),
}


@contextmanager
def played(
    kind: Kind,
    tmp_path: Path,
    monkeypatch: Any,
    start: Starter,
    *,
    name: str,
    ours_in_front: bool = False,
    failures: tuple[HttpError, ...] = (),
) -> Iterator[Played]:
    """Play a turn of two calls and a tool through gateway *name*, which exports to our port."""
    home = tmp_path / "state"
    with Receiver() as receiver, kind.model(id_prefix="real") as model:
        monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("HOME", str(tmp_path / "play" / "home"))
        env = {**os.environ, "TRACEBRIDGE_HOME": str(home)}
        replies = [Reply([COMMANDS[kind.slug]]), Reply([Text("Done.")], failures=failures)]
        model.script({PROMPT: replies})
        wired = wired_for(kind, home)
        with (
            running_watcher(env),
            started_gateway([f"{kind.family}=http://127.0.0.1:9"], env) as otlp,
            start(model.url, str(otlp)) as theirs,
            started_gateway([f"{kind.family}={theirs}{VERSIONS[kind.slug]}"], env) as ours,
        ):
            direct = f"{theirs}{VERSIONS[kind.slug]}"
            base_url = f"{ours}{kind.path}" if ours_in_front else direct
            stage = kind.stage(
                wired,
                workdir=tmp_path / "play",
                model=model,
                base_url=base_url,
                env={**TAGS, "TRACEBRIDGE_NO_WATCH": "1", "TRACEBRIDGE_HOME": str(home)},
            )
            if kind is CLAUDE_CODE:
                finished = stage.claude(hint_headers=False).run(PROMPT)
            else:
                finished = stage.codex().run(PROMPT)
            assert finished.exit_code == 0, finished.stderr
            answered = sum(attempt.outcome == "answered" for attempt in model.calls())
            until(lambda: linked(home, name) >= answered, f"the spans of {name} did not arrive")
        assert watch_once(read_settings())
        yield Played(name, receiver.spans, model.calls())


def linked(home: Path, gateway: str) -> int:
    """Return how many of the calls that a gateway told of have found their turn."""
    with Store(home) as store:
        counts = store.link_counts_by_gateway().get(gateway, {})
    return sum(number for fate, number in counts.items() if fate in set(Evidence))


class Played:
    """What a backend got, and what the model really answered."""

    def __init__(self, name: str, spans: list[ReceivedSpan], truth: list[Attempt]) -> None:
        self.name = name
        self.spans = spans
        self.truth = truth
        (self.root,) = (span for span in spans if self._type(span) == "turn")
        self.inside = [span for span in spans if span.trace_id == self.root.trace_id]
        self.chats = [span for span in self.inside if self._type(span) == "llm"]

    @staticmethod
    def _type(span: ReceivedSpan) -> str | None:
        return span.attributes.get(semconv.SPAN_TYPE)

    def judge(self, evidence: set[str]) -> None:
        """One trace; one chat per answer, the gateway's spans below it, its usage that of the model."""
        answered = [attempt for attempt in self.truth if attempt.outcome == "answered"]
        assert len(self.chats) == len(answered) == 2
        for attempt, chat in zip(
            answered, sorted(self.chats, key=lambda c: c.start_ns), strict=True
        ):
            usage = attempt.usage or {}
            assert chat.attributes[semconv.OUTPUT_TOKENS] == usage["output_tokens"]
            assert chat.attributes[semconv.LINK_EVIDENCE] in evidence
            assert chat.status == 0
            below = self.below(chat)
            theirs = {each.name for each in below if self._type(each) == "gateway"}
            assert len(theirs) >= 2, theirs
        counted = [s for s in self.spans if semconv.OUTPUT_TOKENS in s.attributes]
        assert sorted(s.span_id for s in counted) == sorted(c.span_id for c in self.chats)
        for span in self.spans:
            if span.resource["service.name"] == self.name and span not in self.inside:
                assert "health" in str(self.trace_of(span)), span

    def trace_of(self, span: ReceivedSpan) -> list[str]:
        return [each.name for each in self.spans if each.trace_id == span.trace_id]

    def below(self, top: ReceivedSpan) -> list[ReceivedSpan]:
        found: list[ReceivedSpan] = []
        waiting = [top.span_id]
        while waiting:
            parent = waiting.pop()
            children = [each for each in self.inside if each.parent_span_id == parent]
            found += children
            waiting += [each.span_id for each in children]
        return found

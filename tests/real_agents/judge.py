"""The ground truth of the scripted model as the judge of the traces that reached a backend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from beside import started
from claude import API_KEY
from scenarios import SCENARIOS, Played, Stage
from support import EVIDENCE
from terminal import PATIENCE_S, wait_until

from tracebridge import semconv
from tracebridge.agents import agent
from tracebridge.ids import root_span_id, span_id, trace_id
from tracebridge.integrate import hook_commands
from tracebridge.run import started_gateway
from tracebridge.settings import read_settings
from tracebridge.testing.receiver import ReceivedSpan, Receiver
from tracebridge.testing.scripted_model import Attempt, ScriptedModel
from tracebridge.watch import Watcher, watch_once

CANARY = "canary-in-the-environment-5f1c"
TAGS = {
    "RESPAN_CUSTOMER_ID": "acme",
    "RESPAN_METADATA": '{"team": "blue"}',
    # Hooks and tools see it; nothing of ours may write it down.
    "SOME_SERVICE_TOKEN": CANARY,
}
ERROR, CLIENT = 2, 3


@dataclass(frozen=True)
class Kind:
    """What a trial has to know of the agent that it is about."""

    slug: str
    scenarios: Mapping[str, Callable[[Any], Any]]
    # Makes a scenario's stage from what `wire` gave, and from what all stages take.
    stage: Callable[..., Any]
    model: type[ScriptedModel]
    # The gateway's family, and below which path an agent finds it.
    family: str
    path: str
    # Main transcripts, below the user's home.
    transcripts: str
    api_key: str


def _claude_stage(wired: Mapping[str, Any], **rest: Any) -> Stage:
    return Stage(hooks=wired.get("hooks", {}), settings_env=wired.get("env", {}), **rest)


CLAUDE_CODE = Kind(
    slug="claude-code",
    scenarios=SCENARIOS,
    stage=_claude_stage,
    model=ScriptedModel,
    family="anthropic",
    path="/api/anthropic",
    transcripts=".claude/projects/*/*.jsonl",
    api_key=API_KEY,
)


class Received(Protocol):
    """A receiver, or the part of what it got that is judged."""

    @property
    def spans(self) -> list[ReceivedSpan]: ...

    @property
    def requests(self) -> list[Any]: ...


@dataclass
class Trial:
    """One scenario played with everything real, and what reached the backend."""

    played: Played
    home: Path
    workdir: Path
    truth: list[Attempt]
    # What reached the backend.
    receiver: Received
    kind: Kind = CLAUDE_CODE

    @property
    def spans(self) -> list[ReceivedSpan]:
        return self.receiver.spans

    def of_type(self, kind: str) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.attributes[semconv.SPAN_TYPE] == kind]

    @property
    def turns(self) -> list[ReceivedSpan]:
        return sorted(self.of_type("turn"), key=lambda span: span.start_ns)

    @property
    def outcomes(self) -> list[str]:
        return [root.attributes[semconv.TURN_OUTCOME] for root in self.turns]

    def chat_of(self, attempt: Attempt) -> ReceivedSpan:
        """Return the one chat span of a physical call."""
        found = [
            chat
            for chat in self.of_type("llm")
            if (
                attempt.message_id is not None
                and chat.attributes.get(semconv.RESPONSE_ID) == attempt.message_id
            )
            or (
                attempt.request_id is not None
                and chat.attributes.get(semconv.LLM_REQUEST_ID) == attempt.request_id
            )
        ]
        assert len(found) == 1, f"{len(found)} chat spans for {attempt}"
        return found[0]

    def tree(self) -> list[tuple[str, str | None]]:
        """Return name and parent's name of every span but chats, sorted."""
        names = {span.span_id: span.name for span in self.spans}
        return sorted(
            (span.name, names.get(span.parent_span_id))
            for span in self.spans
            if span.attributes[semconv.SPAN_TYPE] != "llm"
        )

    def take_in_again(self) -> None:
        """Take in the whole history a second time."""
        watcher = Watcher(read_settings())
        for path in sorted((self.workdir / "home").glob(self.kind.transcripts)):
            for file in agent(self.kind.slug).transcripts(path):
                watcher.store.set_cursor(file, type(watcher.store.cursor(file))())
            watcher.import_transcript(agent(self.kind.slug), path)
        watcher.close()
        assert watch_once(read_settings())


@contextmanager
def trial(
    name: str,
    tmp_path: Path,
    monkeypatch: Any,
    *,
    gateway: bool = True,
    hooks: bool = True,
    launcher: tuple[str, ...] = (),
    kind: Kind = CLAUDE_CODE,
    upstream: str = "{family}={url}",
    **more: Any,
) -> Iterator[Trial]:
    """Play a scenario: real agent, hooks, gateway and watcher; a model and a backend on loopback.

    *more* goes to the stage.
    """
    home = tmp_path / "state"
    with Receiver() as receiver, kind.model() as model:
        monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("HOME", str(tmp_path / "play" / "home"))
        env = {**os.environ, "TRACEBRIDGE_HOME": str(home)}
        wired = wired_for(kind, home) if hooks else {}
        with (
            running_watcher(env),
            started_gateway([upstream.format(family=kind.family, url=model.url)], env) as url,
        ):
            assert url is not None
            stage = kind.stage(
                wired,
                workdir=tmp_path / "play",
                model=model,
                base_url=f"{url if gateway else model.url}{kind.path}",
                env={**TAGS, "TRACEBRIDGE_NO_WATCH": "1", "TRACEBRIDGE_HOME": str(home)},
                launcher=launcher,
                **more,
            )
            played = kind.scenarios[name](stage)
        # Gateway and watcher are gone, and with them whatever they kept in memory.
        assert watch_once(read_settings())
        yield Trial(played, home, tmp_path / "play", model.calls(), receiver, kind)


def wired_for(kind: Kind, home: Path) -> Mapping[str, Any]:
    """Return what our hooks add to the agent's settings."""
    which = agent(kind.slug)
    return which.wire({}, hook_commands(which, home))


@contextmanager
def running_watcher(env: Mapping[str, str]) -> Iterator[None]:
    command = [sys.executable, "-X", "faulthandler", "-m", "tracebridge", "watch"]
    with started(command, env=env) as process:
        yield
        # A scenario may be over before that; it does not know yet how to end well.
        lock = Path(env["TRACEBRIDGE_HOME"], "watch.lock")
        wait_until(lambda: lock.exists() or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            # Says where each of its threads is.
            process.send_signal(signal.SIGABRT)
            process.wait()
            raise
        assert code == 0, f"the watcher ended with {code}"


def judge_calls(trial: Trial, *, evidence: set[str], answered_only: bool = False) -> None:
    """Each call at the model is one chat span, in its turn and subagent, with its usage."""
    truth = [a for a in trial.truth if not answered_only or a.outcome == "answered"]
    assert truth
    chats = [trial.chat_of(attempt) for attempt in truth]
    assert len({chat.span_id for chat in chats}) == len(truth)
    if not answered_only:
        assert len(trial.of_type("llm")) == len(truth)
    for attempt, chat in zip(truth, chats, strict=True):
        assert chat.kind == CLIENT
        assert chat.attributes[semconv.LINK_EVIDENCE] in evidence
        EVIDENCE.add(str(chat.attributes[semconv.LINK_EVIDENCE]))
        _judge_place(trial, attempt, chat)
        if attempt.outcome == "answered":
            assert chat.status != ERROR
            assert _usage(chat) == _true_usage(attempt)
            assert chat.attributes[semconv.FINISH_REASONS] == [attempt.stop_reason]
        else:
            assert chat.status == ERROR, attempt


def _judge_place(trial: Trial, attempt: Attempt, chat: ReceivedSpan) -> None:
    traces = {root.trace_id for root in trial.turns}
    assert chat.trace_id in traces
    if attempt.prompt_id is not None:
        own = trace_id(trial.kind.slug, attempt.session_id, attempt.prompt_id)
        assert chat.trace_id == own
    if attempt.agent_id is not None and attempt.request_class == "subagent":
        assert chat.parent_span_id == span_id(chat.trace_id, "subagent", attempt.agent_id)
    elif attempt.request_class == "main":
        assert chat.parent_span_id == root_span_id(chat.trace_id)


def _usage(chat: ReceivedSpan) -> dict[str, int]:
    return {
        name: chat.attributes.get(name, 0)
        for name in (
            semconv.INPUT_TOKENS,
            semconv.OUTPUT_TOKENS,
            semconv.CACHE_READ_TOKENS,
            semconv.CACHE_WRITE_TOKENS,
            semconv.REASONING_TOKENS,
        )
    }


def _true_usage(attempt: Attempt) -> dict[str, int]:
    usage = attempt.usage
    read, write = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    return {
        semconv.INPUT_TOKENS: usage["input_tokens"] + read + write,
        semconv.OUTPUT_TOKENS: usage["output_tokens"],
        semconv.CACHE_READ_TOKENS: read,
        semconv.CACHE_WRITE_TOKENS: write,
        semconv.REASONING_TOKENS: usage["output_tokens_details"]["thinking_tokens"],
    }


def judge_tools(trial: Trial) -> None:
    """Each tool call of an answer is one span."""
    wanted = [key for a in trial.truth if a.outcome == "answered" for key in a.tool_use_ids]
    found = Counter(tool.attributes[semconv.TOOL_CALL_ID] for tool in trial.of_type("tool"))
    assert found == Counter(wanted)


def judge_spans(trial: Trial) -> None:
    """One root per trace, no span twice or without its parent, tags on each, usage on chats only."""
    ids = Counter((span.trace_id, span.span_id) for span in trial.spans)
    assert max(ids.values()) == 1
    roots = Counter(span.trace_id for span in trial.turns)
    assert roots.keys() == {span.trace_id for span in trial.spans}
    assert set(roots.values()) == {1}
    for span in trial.spans:
        assert span.end_ns >= span.start_ns > 0
        if span.attributes[semconv.SPAN_TYPE] != "turn":
            assert (span.trace_id, span.parent_span_id) in ids, f"{span.name} has no parent"
        if span.attributes[semconv.SPAN_TYPE] != "llm":
            used = [n for n in span.attributes if n.startswith(("gen_ai.usage", "llm.token"))]
            assert used == []


def judge_tags(trial: Trial) -> None:
    """Session, customer and metadata stand on every span."""
    sessions = set(trial.played.session_ids)
    for span in trial.spans:
        assert span.attributes[semconv.CONVERSATION_ID] in sessions
        assert span.attributes[semconv.USER_ID] == "acme"
        assert json.loads(span.attributes[semconv.METADATA]) == {"team": "blue"}
        assert span.attributes[semconv.METADATA_PREFIX + "team"] == "blue"


def judge_secrets(trial: Trial) -> None:
    """No key from environment or headers is on disk or on the wire."""
    places = [path for path in trial.home.rglob("*") if path.is_file()]
    assert places
    for secret in (trial.kind.api_key.encode(), CANARY.encode(), b"p4ssw0rd-in-a-url"):
        for path in places:
            assert secret not in path.read_bytes(), path
        for request in trial.receiver.requests:
            assert secret not in request.body

"""One real turn, followed along its way: the proof that a set-up works, or its first broken joint."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from shutil import which
from typing import IO, Any

from tracebridge import semconv
from tracebridge.agents import Agent
from tracebridge.checks import Rule, rules
from tracebridge.config_files import Place
from tracebridge.doctor import Diagnosis, Names, diagnose
from tracebridge.doctor import as_json as findings_json
from tracebridge.doctor import as_text as findings_text
from tracebridge.model import HookEvent, Source, Span
from tracebridge.routing import routing_module
from tracebridge.scrub import scrub_text
from tracebridge.settings import Settings
from tracebridge.sinks import SinkSettingsError, configured_sinks
from tracebridge.spool import Spool
from tracebridge.store import Store, TurnRow
from tracebridge.tree import printable
from tracebridge.watch_lock import is_watched

# How long a turn that is over may take to be put together, and its spans to be acknowledged.
SETTLE_S = 20.0
# Hooks have fired when the agent ends, and start a watcher at once; Codex's `notify` comes a little
# later. After so long without either nothing more will come.
SILENCE_S = 4.0
# Which rule is about a joint where no finding explains why it is broken.
RULE_OF_JOINT = {
    "program": "agent-program-missing",
    "turn": "gateway-not-running",
    "hooks": "hooks-missing",
    "watcher": "watcher-dead",
    "gateway": "gateway-silent",
    "link": "agent-version",
    "sink": "sink-failing",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One joint, and how it was found."""

    joint: str
    # None: there is nothing to be proved.
    holds: bool | None
    said: str


@dataclass(frozen=True, slots=True)
class Verdict:
    agent: str
    steps: tuple[Step, ...]
    trace_id: str | None = None
    # What explains the broken joint (where nothing does, its rule still tells what it is about),
    # or, where none is broken, what is wrong all the same.
    findings: tuple[Diagnosis, ...] = ()

    @property
    def broken(self) -> Step | None:
        return next((step for step in self.steps if step.holds is False), None)

    @property
    def rule(self) -> Rule | None:
        if self.broken is None:
            return None
        if self.findings:
            return self.findings[0].rule
        return rules()[RULE_OF_JOINT[self.broken.joint]][0]


@dataclass(slots=True)
class _Turn:
    """What is known of the turn so far."""

    agent: str
    settings: Settings
    began_ns: int
    # What it begins with; None: anything.
    prompt: str | None
    row: TurnRow | None = None
    hooks: int = 0
    spans: list[Span] = field(default_factory=list)

    def look(self, store: Store) -> bool:
        """Look again; say whether the turn is over and told."""
        self.row = next(filter(self._is_it, store.turns()), None)
        self.hooks = sum(
            isinstance(file.content, HookEvent)
            and file.content.agent == self.agent
            and file.content.time_ns >= self.began_ns
            for file in Spool(self.settings.home).read()
        )
        if self.row is None:
            return False
        sightings = store.sightings(self.agent, self.row.session_id)
        self.hooks += sum(
            each.source is Source.HOOK and each.time_ns >= self.began_ns for each in sightings
        )
        self.spans = store.spans(self.row.trace_id) if self.row.told else []
        return self.row.told

    def _is_it(self, row: TurnRow) -> bool:
        # Its user may be at work in another terminal.
        other = self.prompt is not None and row.prompt is not None and self.prompt not in row.prompt
        return row.agent == self.agent and row.start_ns >= self.began_ns and not other


def verify(
    agent: Agent,
    place: Place,
    settings: Settings,
    *,
    options: Sequence[str] = (),
    patience_s: float = 180.0,
    wait: bool = False,
) -> Verdict:
    """Run one turn as its user would, or *wait* for one; follow it to the sink."""
    prompt = None if wait else routing_module(agent).PROMPT
    turn = _Turn(agent.SLUG, settings, time.time_ns(), prompt)
    steps: list[Step] = []
    for step in _steps(agent, place, turn, options, patience_s, wait=wait):
        steps.append(step)
        if step.holds is False:
            break
    trace_id = turn.row.trace_id if turn.row is not None else None
    broken = Verdict(agent.SLUG, tuple(steps)).broken
    found = diagnose(place, Names(agents=(agent.SLUG,)))
    # Of a turn that went all the way what is wrong all the same; else what explains why it did not.
    told = [
        each
        for each in found
        if (not each.finding.note if broken is None else each.rule.joint == broken.joint)
    ]
    return Verdict(agent.SLUG, tuple(steps), trace_id, tuple(told))


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict for programs. The shape is a contract for scripts."""
    broken, rule = verdict.broken, verdict.rule
    return {
        "agent": verdict.agent,
        "verified": broken is None,
        "trace_id": verdict.trace_id,
        "joints": [
            {"joint": step.joint, "holds": step.holds, "said": step.said} for step in verdict.steps
        ],
        "broken": broken.joint if broken is not None else None,
        "rule": rule.id if rule is not None else None,
        "findings": findings_json(verdict.findings, {})["findings"],
    }


def as_text(verdict: Verdict, place: Place) -> str:
    marks = {True: "ok", False: "BROKEN", None: "-"}
    lines = [f"{marks[step.holds]:<7} {step.joint:<8} {step.said}" for step in verdict.steps]
    if verdict.trace_id is not None:
        lines += ["", f"the turn: tracebridge show {verdict.trace_id[:8]}"]
    rule = verdict.rule
    if verdict.findings:
        lines += ["", findings_text(verdict.findings, {}, place)]
    elif rule is not None:
        lines += [
            "",
            "Nothing that is known explains it; `tracebridge doctor` looks at the rest. About this"
            f" joint is {rule.id}: {rule.summary} {rule.reason}",
        ]
    return "\n".join(lines)


def _steps(
    agent: Agent,
    place: Place,
    turn: _Turn,
    options: Sequence[str],
    patience_s: float,
    *,
    wait: bool,
) -> Iterator[Step]:
    """Yield joint after joint; nothing further on is looked at before it is asked for."""
    if wait:
        yield from _wait_for_turn(turn, patience_s)
    else:
        program = which(agent.PROGRAM, path=place.env.get("PATH", ""))
        if program is None:
            yield Step("program", False, f"there is no {agent.PROGRAM} on PATH")
            return
        yield Step("program", True, program)
        words = routing_module(agent).one_turn(options)
        yield _run([program, *words], place, patience_s)
        with Store(turn.settings.home) as store:
            _settle(turn, store)
    yield Step(
        "hooks",
        turn.hooks > 0,
        f"{turn.hooks} hook events" if turn.hooks else "not one hook of ours fired",
    )
    told = turn.row is not None and turn.row.told
    yield Step("watcher", told, _of_watcher(turn))
    yield from _of_calls(turn)
    yield _of_sinks(turn)


def _run(command: Sequence[str], place: Place, patience_s: float) -> Step:
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=place.project,
            env=dict(place.env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Gemini CLI is a process that starts itself again: all of it must be ended.
            start_new_session=True,
        )
        try:
            code = process.wait(patience_s)
        except subprocess.TimeoutExpired:
            _end(process)
            return Step(
                "turn", False, f"it did not end within {patience_s:.0f} s{_last_words(output)}"
            )
        except BaseException:
            _end(process)
            raise
        if code:
            return Step("turn", False, f"it ended with exit code {code}{_last_words(output)}")
    return Step("turn", True, "the agent did one turn")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()


def _last_words(output: IO[bytes]) -> str:
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - 2000))
    lines = scrub_text(output.read().decode("utf-8", "replace")).split("\n")
    said = [" ".join(line.split()) for line in lines if line.strip()]
    return f": {printable(said[-1][:300])}" if said else ""


def _wait_for_turn(turn: _Turn, patience_s: float) -> Iterator[Step]:
    with Store(turn.settings.home) as store:
        _until(lambda: turn.look(store), patience_s)
    seen = turn.row is not None or turn.hooks > 0
    # Without a hook there is no telling whether there was a turn at all.
    yield Step("turn", True if seen else None, "a turn was made" if seen else "none was seen")


def _settle(turn: _Turn, store: Store) -> None:
    """Wait until the turn is told, or it is plain that nothing will come."""
    quiet_since = time.monotonic()

    def is_over() -> bool:
        nonlocal quiet_since
        if turn.look(store) and turn.hooks:
            return True
        if turn.hooks and is_watched(turn.settings.home):
            quiet_since = time.monotonic()
        return time.monotonic() - quiet_since > SILENCE_S

    _until(is_over, SETTLE_S)


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _of_watcher(turn: _Turn) -> str:
    if turn.row is not None and turn.row.told:
        return f"the turn is {turn.row.outcome}, {len(turn.spans)} spans"
    if not is_watched(turn.settings.home):
        return "no watcher is running: what the hooks told waits in the spool"
    return "the turn is not finished" if turn.row is not None else "the turn is not known yet"


def _of_calls(turn: _Turn) -> Iterator[Step]:
    chats = [span for span in turn.spans if span.attributes.get(semconv.SPAN_TYPE) == "llm"]
    seen = [c for c in chats if "gateway" in str(c.attributes.get(semconv.LLM_SOURCE))]
    said = f"{len(seen)} of {len(chats)} calls were seen by a gateway"
    yield Step("gateway", bool(seen) and len(seen) == len(chats), said)
    exact = [c for c in chats if c.attributes.get(semconv.LINK_CONFIDENCE) == "exact"]
    evidence = sorted({str(c.attributes.get(semconv.LINK_EVIDENCE)) for c in chats})
    said = f"{len(exact)} of {len(chats)} calls are linked exactly, by {', '.join(evidence)}"
    yield Step("link", len(exact) == len(chats), said)


def _of_sinks(turn: _Turn) -> Step:
    try:
        names = [sink.name for sink in configured_sinks(turn.settings.env)]
    except SinkSettingsError as error:
        return Step("sink", False, str(error))
    if not names or turn.row is None:
        return Step("sink", None, "no sink is set: the turn is kept here and sent nowhere")
    trace_id = turn.row.trace_id
    with Store(turn.settings.home) as store:

        def is_decided() -> bool:
            left = _kept_back(store, trace_id, names)
            failed = {
                row.name
                for row in store.sinks()
                if row.refused
                or (row.last_error_ns or 0) > max(turn.began_ns, row.last_success_ns or 0)
            }
            return left.keys() <= failed

        _until(is_decided, SETTLE_S)
        left = _kept_back(store, trace_id, names)
        errors = {row.name: row.last_error for row in store.sinks()}
        served = {row.name for row in store.sinks() if (row.last_success_ns or 0) >= turn.began_ns}
    if never := [name for name in names if name not in served and name not in left]:
        # A watcher that a hook started knows less than this shell.
        why = f"{', '.join(never)}: nothing was sent there; `tracebridge status` says why"
        return Step("sink", False, why)
    if left:
        why = "; ".join(
            f"{n}: {reason or errors.get(n) or 'no answer'}" for n, reason in left.items()
        )
        return Step("sink", False, why)
    return Step("sink", True, f"{', '.join(names)} acknowledged every span")


def _kept_back(store: Store, trace_id: str, names: Sequence[str]) -> Mapping[str, str | None]:
    waiting = store.undelivered(trace_id)
    return {name: waiting[name] for name in names if name in waiting}

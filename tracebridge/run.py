"""Trace one command with nothing installed and nothing edited."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO

from tracebridge.agents import Agent, Launch, agent
from tracebridge.gateway_choice import LOCAL
from tracebridge.integrate import gateway_upstreams, hook_commands
from tracebridge.settings import Settings
from tracebridge.spool import Spool
from tracebridge.store import Store, StoreError, TurnRow
from tracebridge.watch_lock import is_watched

# How long a helper process may take to come up, and a finished turn to be put together.
START_S = 20.0
SETTLE_S = 10.0
# How long a watcher that lives may take to come to it, on a busy machine.
BUSY_S = 60.0
# Where nothing is being put together for so long, nothing more is to come of a command that is done.
QUIET_S = 4.0


class RunError(Exception):
    """The command cannot be run; the text says why and what to do."""


def agent_of(command: Sequence[str]) -> Agent:
    """Return the agent that *command* starts. Raise RunError for a program that is none."""
    found = agent(PurePath(command[0]).stem)
    if found is None:
        raise RunError(
            f"{command[0]}: not an agent that tracebridge knows; run `tracebridge run -- claude …`"
        )
    return found


def run(command: Sequence[str], settings: Settings, upstream: Sequence[str]) -> int:
    """Run *command* as its own terminal would, traced; return its exit code."""
    which = agent_of(command)
    env = {**os.environ, "TRACEBRIDGE_HOME": str(settings.home)}
    began_ns = time.time_ns()
    upstream = upstream or [_upstream_of(which, env, settings.home)]
    start_watcher(settings, env)
    with started_gateway(upstream, env, launcher_pid=os.getpid()) as url:
        if url is None:
            say("the gateway did not start; model calls are taken from the transcript alone")
        launch = Launch(commands=hook_commands(which, settings.home), gateway_url=url, env=env)
        try:
            arguments, agent_env = which.launch(command, launch)
        except (ValueError, OSError) as error:
            raise RunError(str(error)) from error
        code = _run_in_terminal(arguments, agent_env)
    try:
        _say_where(settings, which.SLUG, began_ns)
    except StoreError as error:
        # The command is done; its exit code is what counts.
        say(str(error))
    return code


def _upstream_of(which: Agent, env: Mapping[str, str], home: Path) -> str:
    now = which.upstream(env, Path.home(), Path.cwd())
    # Through our other gateway each call would be recorded twice.
    return gateway_upstreams(home).get(which.SLUG, now) if LOCAL in now else now


@contextmanager
def started_gateway(
    upstream: Sequence[str], env: Mapping[str, str], *, launcher_pid: int | None = None
) -> Iterator[str | None]:
    """Start our gateway on a free port for the time of the block; give its URL, None if it fails.

    All calls that pass it are those of *launcher_pid*, if given, and carry the tags in *env*.
    """
    words = [sys.executable, "-m", "tracebridge", "gateway", "--listen", "127.0.0.1:0"]
    words.append("--stop-with-stdin")
    for spec in upstream:
        words += ["--upstream", spec]
    if launcher_pid is not None:
        words += ["--launcher-pid", str(launcher_pid)]
    process = subprocess.Popen(
        words,
        # Never written to: its end tells the gateway that we are gone, even if we were killed.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
        text=True,
        # Ctrl-C is for the agent; its last calls must still be recorded.
        start_new_session=True,
    )
    try:
        yield _first_line(process)
    finally:
        process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def start_watcher(settings: Settings, env: Mapping[str, str]) -> None:
    """Start a watcher that outlives us, unless one lives.

    The hooks would start one too, but an agent may keep OTEL_* from its hooks.
    """
    if is_watched(settings.home) or env.get("TRACEBRIDGE_NO_WATCH"):
        return
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (settings.home / "watch.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "tracebridge", "watch", "--background"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=env,
            cwd="/",
            start_new_session=True,
        )


def _first_line(process: subprocess.Popen[str]) -> str | None:
    """Return the URL that the gateway prints once it accepts connections."""
    stdout: IO[str] | None = process.stdout
    if stdout is None or not select.select([stdout], [], [], START_S)[0]:
        return None
    return stdout.readline().strip().rstrip("/") or None


def _run_in_terminal(arguments: Sequence[str], env: Mapping[str, str]) -> int:
    # The terminal sends Ctrl-C and Ctrl-Z to the agent and to us: what they mean is the agent's to
    # say.
    before = {
        number: signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP)
    }

    def as_usual() -> None:
        for number in before:
            signal.signal(number, signal.SIG_DFL)

    try:
        process = subprocess.Popen(arguments, env=env, preexec_fn=as_usual)  # noqa: PLW1509  # we have one thread
    except OSError as error:
        raise RunError(f"{arguments[0]}: {error.strerror}; is it installed?") from error
    else:
        # Not by the process object, which would look for its end and keep it from the wait below.
        signal.signal(signal.SIGTERM, lambda *_: os.kill(process.pid, signal.SIGTERM))
        code = process.returncode = _wait(process.pid)
        return 128 - code if code < 0 else code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(pid: int) -> int:
    """Wait for the end of a process; as long as it is suspended, so are we.

    The shell waits for us alone: it would not take the terminal back.
    """
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        number = os.WSTOPSIG(status)
        ours = signal.signal(number, signal.SIG_DFL) if number != signal.SIGSTOP else None
        os.kill(os.getpid(), number)
        # Here we go on when the shell lets us.
        if ours is not None:
            signal.signal(number, ours)
        os.kill(pid, signal.SIGCONT)


def _say_where(settings: Settings, slug: str, began_ns: int) -> None:
    turns = wait_for_turns(settings.home, slug, began_ns)
    if not turns:
        say("no turn was seen; `tracebridge status` says what is on")
    for turn in turns:
        state = turn.outcome or ("not over" if turn.state == "open" else turn.state)
        say(f"turn {state}: trace {turn.trace_id}; tracebridge show {turn.trace_id[:8]}")


def wait_for_turns(home: Path, slug: str, began_ns: int) -> list[TurnRow]:
    """Return the agent's turns since *began_ns* once all are told, or what there is after a while."""
    began = since = busy_s = time.monotonic()
    with Store(home) as store:
        while True:
            turns = [t for t in store.turns() if t.agent == slug and t.start_ns >= began_ns]
            now, waiting = time.monotonic(), Spool(home).depth()
            # Taken in, and not put together yet.
            begun = {session for agent, session in store.open_sessions() if agent == slug}
            begun -= {turn.session_id for turn in turns}
            # Of a turn that nobody ends the watcher hears once we are gone, too.
            if waiting or begun or any(turn.state != "open" for turn in turns):
                busy_s = now
            if waiting and now < began + BUSY_S and is_watched(home):
                since = now
            done = bool(turns) and all(turn.told for turn in turns)
            if done or now > min(since + SETTLE_S, busy_s + QUIET_S):
                return turns
            time.sleep(0.05)


def say(text: str) -> None:
    """Tell the user something, beside the agent's own output."""
    print(f"tracebridge: {text}", file=sys.stderr)  # noqa: T201  # a command line's own voice

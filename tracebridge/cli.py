"""The command line. Imports stand inside the commands: `--help` should not wait for SQLite."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from tracebridge.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

FAILED = 1
WRONG_USAGE = 2


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            from tracebridge.store import StoreError

            if not isinstance(error, StoreError):
                raise
            fail(str(error))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tracebridge")
def main() -> None:
    """One OpenTelemetry trace per turn of your coding agent, its gateway calls underneath.

    \b
    Start here:
      tracebridge demo                          see it work, no account needed
      tracebridge run -- claude -p "hi"         trace one command, nothing is edited
      tracebridge integrate claude-code         trace every turn from now on
      tracebridge tail                          watch turns as they happen
    """


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the spans as one OTLP/JSON document.")
@click.option("--agent", "agent_name", default="claude-code", help="Which agent to run.")
def demo(as_json: bool, agent_name: str) -> None:
    """Run the whole thing once with a scripted model, in a throw-away home.

    Example: tracebridge demo
    """
    from tracebridge.demo import DemoError
    from tracebridge.demo import demo as run_demo

    try:
        run_demo(agent_name, as_json=as_json)
    except DemoError as error:
        fail(str(error))


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--upstream", multiple=True, metavar="SPEC", help="Where model requests go.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(upstream: tuple[str, ...], command: tuple[str, ...]) -> None:
    """Trace one command; nothing is installed and nothing is edited.

    Its model requests go through our gateway to where they went before. The exit code is the
    command's own.

    Example: tracebridge run -- claude -p "what is in this folder?"
    """
    from tracebridge.run import RunError
    from tracebridge.run import run as run_command

    try:
        sys.exit(run_command(command, settings(), upstream))
    except RunError as error:
        fail(str(error))


@main.command()
@click.argument("agents", nargs=-1, required=True, metavar="AGENT...")
@click.option("--global", "scope", flag_value="global", default="global", help="For all projects.")
@click.option("--local", "scope", flag_value="local", help="For the project in this folder only.")
@click.option("--remove", is_flag=True, help="Take everything out again.")
@click.option("--dry-run", is_flag=True, help="Show what would change and change nothing.")
def integrate(agents: tuple[str, ...], scope: str, remove: bool, dry_run: bool) -> None:
    """Install our hooks into an agent's settings, or remove them.

    Everything else in the file stays; the file as it was is kept; a file that cannot be understood
    is left alone.

    Example: tracebridge integrate claude-code --dry-run
    """
    from tracebridge.agents import agent as agent_named
    from tracebridge.integrate import IntegrateError, apply, plan

    home = settings().home
    for name in agents:
        agent = agent_named(name)
        if agent is None:
            wrong_usage(f"{name}: unknown agent; choose from {', '.join(agent_names())}")
        path = agent.settings_path(scope, Path.home(), Path.cwd())
        try:
            change = plan(agent, path, home, remove=remove)
            if dry_run:
                click.echo(change.diff or f"{path}: nothing to change")
                continue
            backup = apply(change, home, remove=remove)
        except IntegrateError as error:
            fail(str(error))
        if change.before == change.after:
            click.echo(f"{path}: nothing to change")
        elif remove:
            click.echo(f"{path}: tracebridge removed")
        else:
            click.echo(f"{path}: {agent.SLUG} is traced from its next start on")
        if backup is not None:
            click.echo(f"the file as it was: {backup}")


@main.command()
@click.option("--once", is_flag=True, help="Take in what is there, deliver it and end.")
@click.option("--close-open", is_flag=True, help="With --once: also end turns that are still open.")
@click.option("--background", is_flag=True, help="End when there has been no work for a while.")
@click.option("--lock-fd", type=int, hidden=True)
def watch(once: bool, close_open: bool, background: bool, lock_fd: int | None) -> None:
    """Put turns together, link gateway calls, deliver spans; runs until stopped.

    The hooks start one by themselves. With --once the exit code is 0 only if every finished span
    was acknowledged.

    Example: tracebridge watch --once
    """
    import logging

    from tracebridge.watch import watch as run_watch
    from tracebridge.watch import watch_once

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    if once:
        if not watch_once(settings(), close_open=close_open):
            fail("not every finished span was acknowledged; `tracebridge status` says why")
    elif not run_watch(settings(), lock_fd=lock_fd, background=background):
        click.echo("another watcher is running", err=True)


@main.command()
@click.option("--listen", default="127.0.0.1:4141", show_default=True, metavar="HOST:PORT")
@click.option("--upstream", multiple=True, metavar="SPEC", help="Repeatable; see below.")
@click.option("--no-traceparent", is_flag=True, help="Send no traceparent of our own upstream.")
@click.option("--stop-with-stdin", is_flag=True, hidden=True)
@click.option("--launcher-pid", type=int, hidden=True)
def gateway(
    listen: str,
    upstream: tuple[str, ...],
    no_traceparent: bool,
    stop_with_stdin: bool,
    launcher_pid: int | None,
) -> None:
    """Run our recording gateway: bytes pass unchanged, a copy is parsed.

    \b
    SPEC is one of
      a base URL with Respan's layout (/api/anthropic/, /api/, /api/google/gemini, ...)
      FAMILY=URL with FAMILY anthropic, openai, gemini or vertex
      a preset: respan, anthropic, openai, google
    The URL is printed on the first line when it accepts connections.

    Example: tracebridge gateway --upstream anthropic
    """
    from tracebridge.gateways.proxy import GatewayOptions, OptionsError
    from tracebridge.gateways.proxy import run as run_gateway

    try:
        options = GatewayOptions(
            listen=listen,
            upstream=upstream or ("anthropic",),
            home=settings().home,
            send_traceparent=not no_traceparent,
            stop_with_stdin=stop_with_stdin,
            launcher_pid=launcher_pid,
        )
        run_gateway(options)
    except OptionsError as error:
        wrong_usage(str(error))
    except OSError as error:
        fail(str(error))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def tail(as_json: bool) -> None:
    """Show turns as they grow, of all sessions at once; Ctrl-C ends.

    Example: tracebridge tail
    """
    import threading

    from rich.console import Console

    from tracebridge.tail import follow_json, follow_terminal, write_out

    home = settings().home
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    stop = threading.Event()
    try:
        if as_json:
            follow_json(home, stop, write_out)
        else:
            follow_terminal(home, stop, Console(highlight=False))
    except (KeyboardInterrupt, BrokenPipeError):
        stop.set()


@main.command()
@click.option("--limit", default=20, show_default=True, help="How many, the latest first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def turns(limit: int, as_json: bool) -> None:
    """List turns.

    Example: tracebridge turns --limit 5
    """
    from dataclasses import asdict

    import orjson

    from tracebridge.store import Store
    from tracebridge.tail import printable

    with Store(settings().home) as store:
        rows = store.turns(limit=limit)
    if as_json:
        for row in rows:
            click.echo(orjson.dumps(asdict(row)).decode())
        return
    if not rows:
        click.echo("no turns yet; `tracebridge run -- claude …` makes one")
    for row in rows:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.start_ns / 1e9))
        took = "open" if row.end_ns is None else f"{(row.end_ns - row.start_ns) / 1e9:.1f} s"
        prompt = printable(" ".join((row.prompt or "").split())[:60])
        state = row.outcome or row.state
        click.echo(f"{row.trace_id[:8]}  {began}  {took:>9}  {row.agent}  {state:<11}  {prompt}")


@main.command()
@click.argument("trace", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The spans as one OTLP/JSON document.")
def show(trace: str, as_json: bool) -> None:
    """Print the tree of a turn. ID is its trace id or the beginning of it.

    Example: tracebridge show d7c487cd
    """
    import orjson
    from rich.console import Console

    from tracebridge.store import Store
    from tracebridge.tail import render_turn

    with Store(settings().home) as store:
        rows = store.turns(trace_prefix=trace.lower(), limit=2)
        if not rows:
            fail(f"{trace}: no such turn; `tracebridge turns` lists them")
        if len(rows) > 1:
            fail(f"{trace}: more than one turn begins so; give more digits")
        spans = store.spans(rows[0].trace_id)
    if as_json:
        from tracebridge.export import document

        click.echo(orjson.dumps(document([(rows[0], spans)])).decode())
    else:
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"trace {rows[0].trace_id}  session {rows[0].session_id}")
        console.print(render_turn(spans, max(console.width, 80)))


@main.command(name="import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--agent", "agent_name", default="claude-code", show_default=True)
def import_(paths: tuple[Path, ...], agent_name: str) -> None:
    """Take in past sessions from their transcripts. A second time adds nothing.

    Example: tracebridge import ~/.claude/projects/*/*.jsonl
    """
    from tracebridge.agents import agent as agent_named
    from tracebridge.watch import Watcher

    agent = agent_named(agent_name)
    if agent is None:
        wrong_usage(f"{agent_name}: unknown agent; choose from {', '.join(agent_names())}")
    watcher = Watcher(settings())
    unreadable = 0
    for path in paths:
        try:
            watcher.import_transcript(agent, path)
        except OSError as error:
            unreadable += 1
            click.echo(f"{path}: {error.strerror}", err=True)
    watcher.step(settle_now=True)
    watcher.close()
    click.echo(f"{len(paths) - unreadable} transcripts taken in; `tracebridge turns` lists them")
    sys.exit(FAILED if unreadable else 0)


@main.command()
@click.option("--limit", default=1000, show_default=True, help="How many turns, the latest.")
def export(limit: int) -> None:
    """Print finished turns as one OTLP/JSON document.

    Example: tracebridge export > turns.json
    """
    import orjson

    from tracebridge.export import document
    from tracebridge.store import Store

    with Store(settings().home) as store:
        rows = [row for row in store.turns(limit=limit) if row.told]
        click.echo(orjson.dumps(document([(r, store.spans(r.trace_id)) for r in rows])).decode())


@main.command()
@click.option("--json", "as_json", is_flag=True)
def status(as_json: bool) -> None:
    """Say what is on, what waits and what went wrong.

    Example: tracebridge status --json
    """
    import orjson

    from tracebridge.status import status as read_status
    from tracebridge.status import status_text

    state = read_status(settings())
    click.echo(orjson.dumps(state).decode() if as_json else status_text(state))


def settings() -> Settings:
    from tracebridge.settings import SettingsError, read_settings

    try:
        return read_settings()
    except SettingsError as error:
        fail(str(error))


def agent_names() -> list[str]:
    from tracebridge.agents import agents

    return list(agents())


def fail(text: str) -> NoReturn:
    click.echo(f"tracebridge: {text}", err=True)
    sys.exit(FAILED)


def wrong_usage(text: str) -> NoReturn:
    click.echo(f"tracebridge: {text}", err=True)
    sys.exit(WRONG_USAGE)

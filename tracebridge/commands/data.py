"""Past sessions in, finished turns out, compared, or forgotten."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import orjson

from tracebridge.commands._shared import (
    FAILED,
    FINDINGS,
    SINKS,
    agent_called,
    fail,
    keep_destinations,
    selecting,
    selection,
    sending,
    settings,
    wrong_usage,
)

if TYPE_CHECKING:
    from datetime import datetime

    from tracebridge.sending import Sent
    from tracebridge.sinks import ReadySink

commands = click.Group()


@commands.command(name="import")
@click.argument("what", nargs=-1, metavar="[AGENT|PATH]...")
@click.option("--agent", "agent_name", default="claude-code", help="Whose transcripts PATHs are.")
@click.option("--since", metavar="WHEN", help="Sessions that went on since: 2h, 7d or a date.")
@click.option("--project", metavar="NAME", help="Sessions of this project, by folder or path.")
@click.option("--dry-run", is_flag=True, help="Count what there is and take nothing in.")
@click.option("--local-only", is_flag=True, help="Keep them here and send them to no sink.")
@click.option("--json", "as_json", is_flag=True)
@sending
def import_(
    *,
    what: tuple[str, ...],
    agent_name: str,
    since: str | None,
    project: str | None,
    dry_run: bool,
    local_only: bool,
    as_json: bool,
) -> None:
    """Take in past sessions: of all agents, of those named, or from given transcripts.

    They are found where the agents keep them, and go to the sinks like turns that were traced
    live, under the same ids: a second time adds nothing, and an import that was stopped goes on.

    \b
    Examples:
      tracebridge import --dry-run
      tracebridge import claude-code codex-cli --since 7d
      tracebridge import ~/.claude/projects/*/*.jsonl
    """
    from tracebridge import imports
    from tracebridge.agents import agent as agent_named
    from tracebridge.agents import agents
    from tracebridge.store import Store

    whose = agent_called(agent_name)
    named = [agent for word in what if (agent := agent_named(word)) is not None]
    paths = [Path(word) for word in what if agent_named(word) is None]
    asked = selection(agent=None, session=None, project=None, errors=False, since=since)
    found = imports.at_paths(whose, paths)
    if named or not what:
        among = named or agents().values()
        found += imports.find(
            among,
            Path.home(),
            since_ns=asked.since_ns,
            project=project,
            untraced=settings().untraced,
        )
    with _progress(len(found.sessions)) as done:
        if dry_run:
            with Store(settings().home) as store:
                report = imports.count(found, store, done)
        else:
            report = imports.take_in(settings(), found, done, local_only=local_only)
    if as_json:
        click.echo(orjson.dumps(asdict(report)).decode())
    else:
        for line in imports.report_lines(report, dry_run=dry_run):
            click.echo(line)
    for problem in report.problems:
        click.echo(f"tracebridge: {problem}", err=True)
    _end_of_sending(report.sent, failed=bool(report.problems), silent=as_json)


@commands.command()
@selecting()
@click.option("--limit", default=1000, show_default=True, help="How many turns, the latest.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["otlp", "jsonl"]),
    default="otlp",
    show_default=True,
    help="One OTLP/JSON document, or one flat JSON object a span.",
)
@sending
def export(limit: int, form: str, **which: Any) -> None:
    """Print finished turns, or with --sink send them there, though they were sent before.

    \b
    Examples:
      tracebridge export > turns.json
      tracebridge export --since 7d --format jsonl
      tracebridge export --since 30d --sink phoenix
    """
    from tracebridge import export as exports
    from tracebridge.sending import send_again
    from tracebridge.store import Store

    asked = selection(**which)
    with Store(settings().home) as store:
        found = [turn for turn in asked.turns(store) if turn[0].told][:limit]
        found.reverse()
        if not click.get_current_context().meta.get(SINKS):
            if form == "otlp":
                click.echo(orjson.dumps(exports.document(found)).decode())
            else:
                for line in exports.lines(found):
                    click.echo(line)
            return
        reports = send_again(found, store, _named_sinks(), settings())
    _end_of_sending(reports)


@commands.command()
@selecting()
@click.option("--all", "show_all", is_flag=True, help="Show also the turns that agree.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a turn.")
def reconcile(show_all: bool, as_json: bool, **which: Any) -> None:
    """Compare tokens and cost, gateway against transcript, and say why they differ.

    The exit code is 3 where a difference is unexplained.

    \b
    Examples:
      tracebridge reconcile --since 7d
      tracebridge reconcile --session 5d00821f --all
    """
    from tracebridge import reconcile as comparing
    from tracebridge.store import Store

    with Store(settings().home) as store:
        asked = selection(**which)
        rows = [row for row, _ in asked.turns(store) if row.told]
        compared = list(comparing.read_comparisons(store, rows))
        orphans = sum(store.orphans_per_agent(asked.since_ns, asked.until_ns).values())
    compared.reverse()
    for one in compared:
        if as_json:
            click.echo(orjson.dumps({**asdict(one), "unexplained": one.unexplained}).decode())
        elif show_all or one.differences:
            click.echo("\n".join(comparing.lines(one)))
    unexplained = sum(one.unexplained for one in compared)
    if not as_json:
        click.echo(comparing.verdict(compared, orphans))
    sys.exit(FINDINGS if unexplained else 0)


@commands.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--keep", is_flag=True, help="Write where this shell sends spans into config.toml.")
@click.option("--json", "as_json", is_flag=True)
def sink(names: tuple[str, ...], keep: bool, as_json: bool) -> None:
    """List the backends that spans can be sent to, or try those named with one span.

    NAME is as in the setting `sinks`. The span is called `tracebridge sink`.

    \b
    Examples:
      tracebridge sink
      tracebridge sink phoenix
      TRACEBRIDGE_SINKS=phoenix tracebridge sink --keep
      tracebridge sink otlp_http:http://localhost:4318
    """
    from tracebridge.sending import known_sinks, try_sink

    if keep:
        if names:
            os.environ["TRACEBRIDGE_SINKS"] = ",".join(names)
        if not keep_destinations(over=True):
            click.echo(
                "config.toml says the same as this shell already, or this shell says nothing"
            )
        return
    if not names:
        found = known_sinks()
        if as_json:
            click.echo(orjson.dumps(found).decode())
        for name, summary in () if as_json else found.items():
            click.echo(f"{name:<10} {summary}")
        return
    os.environ["TRACEBRIDGE_SINKS"] = ",".join(names)
    _end_of_sending([try_sink(ready) for ready in _named_sinks()])


@commands.command()
@click.argument("session", required=False)
@click.option("--before", type=click.DateTime(), help="Instead: all that ended before this.")
@click.option("--json", "as_json", is_flag=True)
def forget(session: str | None, before: datetime | None, as_json: bool) -> None:
    """Delete what is kept here of a session, or all that is older than a date.

    Delivered or not; what this machine cannot delete is listed, with where it is.

    \b
    Example: tracebridge forget 2e23f0a0-0000-4000-8000-000000000001
             tracebridge forget --before 2026-01-31
    """
    from tracebridge.forget import forget_before, forget_session, report_lines

    if (session is None) == (before is None):
        wrong_usage("give a session id (`tracebridge turns --json` shows them) or --before DATE")
    home = settings().home
    if before is not None:
        report = forget_before(home, int(before.timestamp() * 1e9))
    else:
        report = forget_session(home, session or "")
    if as_json:
        click.echo(orjson.dumps(asdict(report), default=str).decode())
    else:
        click.echo("\n".join(report_lines(report)))


def _named_sinks() -> list[ReadySink]:
    """Return the sinks that are set, ready to be opened."""
    from tracebridge.sinks import SinkSettingsError, configured_sinks

    try:
        return configured_sinks(settings().env)
    except SinkSettingsError as error:
        fail(str(error))


def _end_of_sending(
    reports: Iterable[Sent], *, failed: bool = False, silent: bool = False
) -> NoReturn:
    """Say what each sink took, and end with the exit code for it."""
    for report in reports:
        if not silent:
            click.echo(f"{report.sink}: {report.spans} spans sent to {report.target}")
        if report.error is not None:
            failed = True
            click.echo(f"tracebridge: {report.sink}: {report.error}", err=True)
    sys.exit(FAILED if failed else 0)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Show how far a long command is, where somebody looks; give what to call after each step."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    shown = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)

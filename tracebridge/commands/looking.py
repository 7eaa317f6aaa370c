"""Turns on the terminal and on a page, one by one or summed, and the state of it all."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from tracebridge.commands._shared import fail, selecting, selection, settings, wrong_usage

if TYPE_CHECKING:
    from rich.console import Console

commands = click.Group()


@commands.command()
@selecting(period=False)
@click.option("--once", is_flag=True, help="Show what there is and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def tail(once: bool, as_json: bool, **which: Any) -> None:
    """Show turns as they grow, of all sessions at once; Ctrl-C ends.

    A finished turn folds to one line. Where stdout is no terminal, what ends is told line by line.

    \b
    Examples:
      tracebridge tail
      tracebridge tail --agent codex --errors
      tracebridge tail --once
    """
    from tracebridge.views import tail as turns_as_they_grow

    asked = selection(**which)
    home = settings().home
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    stop = threading.Event()
    write = turns_as_they_grow.write_out
    # The cursor is hidden meanwhile: whoever ends us must get it back.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        if once and as_json:
            turns_as_they_grow.write_once(home, write, asked)
        elif once:
            turns_as_they_grow.show_once(home, _console(), asked)
        elif as_json:
            turns_as_they_grow.follow_json(home, stop, write, asked)
        else:
            turns_as_they_grow.follow_terminal(home, stop, _console(), asked)
    except KeyboardInterrupt:
        stop.set()
    except BrokenPipeError:
        _end_of_pipe()


@commands.command()
@selecting()
@click.option("--limit", default=20, show_default=True, help="How many, the latest first.")
@click.option(
    "--sort",
    default="began",
    show_default=True,
    help="began, took, cost, tokens, calls, tools or lines; the largest come last.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def turns(limit: int, sort: str, as_json: bool, **which: Any) -> None:
    """List turns with what they came to.

    \b
    Examples:
      tracebridge turns --limit 5
      tracebridge turns --since 7d --sort cost
    """
    from tracebridge.store import Store
    from tracebridge.totals import totals_of
    from tracebridge.views import stats as sums

    if sort not in sums.SORTS:
        wrong_usage(f"--sort {sort}: choose from {', '.join(sums.SORTS)}")
    now_ns = time.time_ns()
    with Store(settings().home) as store:
        found = list(selection(**which).turns(store, limit if sort == "began" else None))
    found = sorted(found, key=sums.sort_key(sort, now_ns))[-limit:] if limit > 0 else []
    if as_json:
        for row, spans in found:
            totals = totals_of(spans, now_ns).as_dict()
            click.echo(orjson.dumps({**asdict(row), "totals": totals}).decode())
        return
    if not found:
        click.echo("no such turns; `tracebridge run -- claude …` makes one")
        return
    cells = [sums.turn_cells(row, spans, now_ns) for row, spans in found]
    for line in sums.table(sums.TURN_TITLES, cells, _console().width, last="prompt"):
        click.echo(line)


@commands.command()
@click.argument("trace", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The spans as one OTLP/JSON document.")
def show(trace: str, as_json: bool) -> None:
    """Print a turn as a waterfall. ID is its trace id or the beginning of it.

    Example: tracebridge show d7c487cd
    """
    from tracebridge.store import Store
    from tracebridge.views.stats import time_spent_line
    from tracebridge.views.waterfall import turn_lines

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
        return
    screen, now_ns = _console(), time.time_ns()
    screen.print(f"trace {rows[0].trace_id}  session {rows[0].session_id}", soft_wrap=True)
    for line in turn_lines(spans, max(screen.width, 60), now_ns, bars=True):
        screen.print(line, soft_wrap=True)
    screen.print(time_spent_line(spans, now_ns), soft_wrap=True)


@commands.command()
@selecting()
@click.option(
    "--by",
    default="day",
    show_default=True,
    help="day, project, customer, model, tool, agent or session.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document with every figure.")
def stats(by: str, as_json: bool, **which: Any) -> None:
    """Sum up turns: tokens, cost, lines, failures, retries, links, and where time went.

    Cost is by list prices; "≥" says that some calls have no price that we know. Columns that do
    not fit the terminal are left out.

    \b
    Examples:
      tracebridge stats --since 7d
      tracebridge stats --by model --json
    """
    from tracebridge.store import Store
    from tracebridge.views import stats as sums

    if by not in sums.GROUPS:
        wrong_usage(f"--by {by}: choose from {', '.join(sums.GROUPS)}")
    asked, now_ns = selection(**which), time.time_ns()
    with Store(settings().home) as store:
        groups, everything = sums.summed(store, asked, by, now_ns)
        if asked.project is None and asked.session is None and not asked.errors:
            orphans = store.orphans_per_agent(asked.since_ns, asked.until_ns)
            sums.add_orphans(groups, everything, by, orphans, asked.agent)
    if as_json:
        document = {
            "by": by,
            "groups": {name: totals.as_dict() for name, totals in groups.items()},
            "all": everything.as_dict(),
        }
        click.echo(orjson.dumps(document).decode())
        return
    if not groups:
        click.echo("no such turns; `tracebridge run -- claude …` makes one")
        return
    for line in sums.stats_lines(groups, everything, by, _console().width):
        click.echo(line)


@commands.command()
@click.argument("trace", metavar="[ID]", required=False)
@selecting()
@click.option("--limit", default=200, show_default=True, help="How many turns, the latest.")
@click.option(
    "-o", "--output", default="report.html", show_default=True, type=click.Path(path_type=Path)
)
def report(trace: str | None, limit: int, output: Path, **which: Any) -> None:
    """Write turns as one HTML page that needs nothing else; open it in any browser.

    ID is a trace id or its beginning; without one, the turns that the options choose.

    \b
    Examples:
      tracebridge report d7c487cd -o turn.html
      tracebridge report --since 7d --project shop
    """
    from tracebridge.store import Store
    from tracebridge.views.report import report as make_report

    asked = selection(**which)
    with Store(settings().home) as store:
        if trace is not None:
            rows = store.turns(trace_prefix=trace.lower(), limit=2)
            if len(rows) != 1:
                say = "more than one turn begins so; give more digits" if rows else "no such turn"
                fail(f"{trace}: {say}; `tracebridge turns` lists them")
            found, left_out = [(rows[0], store.spans(rows[0].trace_id))], False
        else:
            found = list(asked.turns(store, limit + 1))
            left_out = len(found) > limit
            found = found[:limit][::-1]
    if not found:
        fail("no such turns; `tracebridge turns` lists those there are")
    page = make_report(found, time.time_ns(), left_out=left_out)
    try:
        # Prompts and code are in it: for its owner alone, as the store is.
        output.touch(mode=0o600)
        output.write_text(page, "utf-8", errors="replace")
    except OSError as error:
        fail(f"{output}: {error.strerror}; choose another place with -o")
    click.echo(f"{output}: {len(found)} turns" if len(found) != 1 else f"{output}: 1 turn")
    if left_out:
        click.echo("earlier turns are left out; --limit and --since choose", err=True)


@commands.command()
@click.option("--json", "as_json", is_flag=True)
def status(as_json: bool) -> None:
    """Say what is on, what waits and what went wrong.

    Example: tracebridge status --json
    """
    from tracebridge.views.status import status as read_status
    from tracebridge.views.status import status_text

    state = read_status(settings())
    click.echo(orjson.dumps(state).decode() if as_json else status_text(state))


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def _end_of_pipe() -> None:
    """End quietly where nobody reads any more what we print."""
    # What is left in the buffer would be written, and fail, when Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

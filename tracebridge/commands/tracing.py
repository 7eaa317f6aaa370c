"""Turns are traced: for a look, for one command, or for good."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from tracebridge.commands._shared import fail, sending, settings

if TYPE_CHECKING:
    from tracebridge.settings import Settings

commands = click.Group()


@commands.command()
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


@commands.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option("--upstream", multiple=True, metavar="SPEC", help="Where model requests go.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@sending
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


@commands.command()
@click.option("--once", is_flag=True, help="Take in what is there, deliver it and end.")
@click.option("--close-open", is_flag=True, help="With --once: also end turns that are still open.")
@click.option("--background", is_flag=True, help="End when there has been no work for a while.")
@click.option("--lock-fd", type=int, hidden=True)
@click.option("--foreign-home", is_flag=True, hidden=True)
@sending
def watch(
    once: bool, close_open: bool, background: bool, lock_fd: int | None, foreign_home: bool
) -> None:
    """Put turns together, link gateway calls, deliver spans; runs until stopped.

    The hooks start one by themselves. With --once the exit code is 0 only if every finished span
    was acknowledged.

    Example: tracebridge watch --once
    """
    from tracebridge.watch import watch as run_watch
    from tracebridge.watch import watch_once

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    if once:
        if not watch_once(settings(), close_open=close_open):
            fail("not every finished span was acknowledged; `tracebridge status` says why")
    elif lock_fd is not None:
        # We were started by a hook, in the environment that its agent has.
        run_watch(_settings_of_hook(foreign_home=foreign_home), lock_fd=lock_fd)
    elif not run_watch(settings(), background=background):
        click.echo("another watcher is running", err=True)


def _settings_of_hook(*, foreign_home: bool) -> Settings:
    """Return the settings of the user's file; without destinations if the agent chose the home."""
    from tracebridge.settings import without_destinations

    ours = settings(file_first=True)
    if foreign_home:
        ours = replace(ours, env=without_destinations(ours.env))
        click.echo(
            f"{ours.home}: TRACEBRIDGE_HOME of the agent is not where its hooks were installed for:"
            " nothing is sent; run `tracebridge integrate` with it, or take it out",
            err=True,
        )
    # What sends asks the process itself for proxies and certificates.
    os.environ.clear()
    os.environ.update(ours.env)
    return ours

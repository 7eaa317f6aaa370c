"""What several commands need: options, settings, and how one ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from tracebridge.agents import Agent
    from tracebridge.settings import Settings
    from tracebridge.views.selection import Selection

Command = TypeVar("Command", bound=Callable[..., Any])

FAILED = 1
WRONG_USAGE = 2
FINDINGS = 3
# Where a command's context keeps the sinks that its user named.
SINKS = "tracebridge.sinks"


def settings(*, file_first: bool = False) -> Settings:
    from tracebridge.settings import SettingsError, read_settings

    try:
        return read_settings(file_first=file_first)
    except SettingsError as error:
        fail(str(error))


def agent_called(name: str) -> Agent:
    from tracebridge.agents import agent, agents

    found = agent(name)
    if found is None:
        wrong_usage(f"{name}: unknown agent; choose from {', '.join(agents())}")
    return found


def sending(command: Command) -> Command:
    """Give a command the option that says where finished spans go, above all settings."""

    def set_sinks(context: click.Context, _: click.Parameter, names: tuple[str, ...]) -> None:
        if names:
            set_up = settings().values["sinks"].value.split(",")
            # A sink that may not have everything does not get it because it is named again.
            levels = {each.strip().rpartition("#")[0]: each.strip() for each in set_up}
            context.meta[SINKS] = names
            os.environ["TRACEBRIDGE_SINKS"] = ",".join(levels.get(name, name) for name in names)

    option = click.option(
        "--sink",
        multiple=True,
        metavar="NAME",
        expose_value=False,
        callback=set_sinks,
        help="Send to this backend; repeatable. `tracebridge sink` lists them.",
    )
    return option(command)


def selecting(*, period: bool = True) -> Callable[[Command], Command]:
    """Give a command the options that say which turns it is about."""

    def decorate(command: Command) -> Command:
        options = [
            click.option("--agent", metavar="AGENT", help="Of this agent only."),
            click.option("--session", metavar="ID", help="Of this session; a beginning will do."),
            click.option("--project", metavar="NAME", help="Of this project, by id or folder."),
            click.option("--errors", is_flag=True, help="Where something failed."),
        ]
        if period:
            options.append(click.option("--since", metavar="WHEN", help="2h, 7d or a date."))
            options.append(click.option("--until", metavar="WHEN", help="As --since."))
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def selection(
    *,
    agent: str | None,
    session: str | None,
    project: str | None,
    errors: bool,
    since: str | None = None,
    until: str | None = None,
) -> Selection:
    from tracebridge.views.selection import Selection, parse_time

    if agent is not None:
        agent = agent_called(agent).SLUG
    try:
        since_ns = parse_time(since) if since is not None else 0
        until_ns = parse_time(until) if until is not None else None
    except ValueError as error:
        wrong_usage(str(error))
    return Selection(
        agent=agent,
        session=session,
        project=project,
        errors=errors,
        since_ns=since_ns,
        until_ns=until_ns,
    )


def keep_destinations(*, over: bool, dry_run: bool = False) -> bool:
    """Write where this shell says that spans go into config.toml; say whether there was any."""
    from tracebridge.destinations import keep, told
    from tracebridge.settings import CONFIG, SettingsError

    try:
        names = keep(settings(), over=over, dry_run=dry_run)
    except SettingsError as error:
        fail(str(error))
    if names:
        click.echo(told(names, settings().home / CONFIG, dry_run=dry_run))
    return bool(names)


def fail(text: str) -> NoReturn:
    click.echo(f"tracebridge: {text}", err=True)
    sys.exit(FAILED)


def wrong_usage(text: str) -> NoReturn:
    click.echo(f"tracebridge: {text}", err=True)
    sys.exit(WRONG_USAGE)

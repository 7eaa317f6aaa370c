"""An agent's set-up: written, shown, looked through, and proved."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from tracebridge.commands._shared import (
    FAILED,
    FINDINGS,
    agent_called,
    keep_destinations,
    settings,
    wrong_usage,
)

if TYPE_CHECKING:
    from tracebridge.agents import Agent

commands = click.Group()


@commands.command()
@click.argument("agents", nargs=-1, metavar="AGENT...")
@click.option("--all", "every", is_flag=True, help="Every agent that is found here.")
@click.option("--global", "scope", flag_value="global", default="global", help="For all projects.")
@click.option("--local", "scope", flag_value="local", help="For the project in this folder only.")
@click.option("--remove", is_flag=True, help="Take everything out again.")
@click.option("--enable/--disable", default=True, help="--disable is --remove.", show_default=False)
@click.option("--dry-run", is_flag=True, help="Show what would change and change nothing.")
@click.option(
    "--gateway",
    multiple=True,
    metavar="WHERE",
    help="Where requests go: a base URL, FAMILY=URL, respan, local or none (where they went).",
)
@click.option("--base-url", metavar="URL", help="Another Respan than https://api.respan.ai/api.")
@click.option(
    "--api-key-env",
    "key",
    metavar="NAME",
    help="Variable with the gateway's key; or FILE:/path, CMD:command.",
)
@click.option("--model", metavar="SLUG", help="The model to ask for.")
@click.option("--route-provider", metavar="NAME", help="Provider for the gateway to use.")
@click.option(
    "--traceparent", is_flag=True, default=None, help="Claude Code's own traceparent on requests."
)
@click.option(
    "--trust-hooks", is_flag=True, default=None, help="Codex: approve the hooks in your name."
)
@click.option(
    "--light/--full",
    default=None,
    help="Claude Code: no hooks at tool calls; its transcript alone tells of these, with wider times.",
)
@click.option("--project-id", envvar="RESPAN_PROJECT_ID", metavar="ID", help="Tag: project.")
@click.option("--customer-id", envvar="RESPAN_CUSTOMER_ID", metavar="ID", help="Tag: customer.")
@click.option("--workflow-name", metavar="NAME", help="Tag: workflow.")
@click.option("--span-name", metavar="NAME", help="Name of a turn's root span.")
@click.option("--attrs", metavar="JSON", help="More tags, as a JSON object.")
def integrate(
    agents: tuple[str, ...],
    *,
    every: bool,
    scope: str,
    remove: bool,
    enable: bool,
    dry_run: bool,
    **asked: Any,
) -> None:
    """Set agents up: hooks, the gateway, tags; or take it out again.

    Everything else in their files stays as it is, byte for byte; files as they were are kept; a
    file that cannot be understood is left alone. What was asked for is remembered: a second time
    without an option leaves it as it was. No key is written into them, only where it is found.

    Where this shell says that spans go (OTEL_EXPORTER_OTLP_*, TRACEBRIDGE_SINKS and what belongs to
    them) is written into our own config.toml unless that names sinks already: watchers that hooks
    start look nowhere else.

    \b
    Examples:
      tracebridge integrate claude-code --dry-run
      tracebridge integrate --all
      tracebridge integrate codex --gateway respan --api-key-env RESPAN_API_KEY
      tracebridge integrate claude --local --customer-id acme --attrs '{"team": "blue"}'
      tracebridge integrate claude-code --remove
    """
    from tracebridge.agents import agents as known_agents
    from tracebridge.integrate import IntegrateError, Place
    from tracebridge.integrate import integrate as set_up

    place = Place(scope=scope, home=Path.home(), project=Path.cwd(), env=dict(os.environ))
    remove = remove or not enable
    chosen = [agent_called(name) for name in agents]
    if every:
        chosen += [each for each in known_agents().values() if _is_here(each)]
    if not chosen:
        wrong_usage("no agent; name one, or --all where some are installed")
    options = _integrate_options(**asked)
    home = settings().home
    failed = False
    for agent in dict.fromkeys(chosen):
        try:
            done = set_up(agent, place, options, home, remove=remove, dry_run=dry_run)
        except IntegrateError as error:
            # The others may well be fine.
            click.echo(f"tracebridge: {error}", err=True)
            failed = True
            continue
        changes = [change for change in done.changes if change.changes]
        for change in changes:
            if dry_run:
                click.echo(change.diff)
                continue
            click.echo(f"{change.path}: {'tracebridge removed' if remove else 'written'}")
            if change.path in done.backups:
                click.echo(f"  the file as it was: {done.backups[change.path]}")
        if not changes:
            click.echo(f"{agent.SLUG}: nothing to change")
        elif not dry_run and not remove:
            click.echo(f"{agent.SLUG} is traced from its next start on")
        for remark in done.remarks:
            click.echo(f"note: {remark}")
    if not remove:
        keep_destinations(over=False, dry_run=dry_run)
    sys.exit(FAILED if failed else 0)


def _integrate_options(
    *,
    attrs: str | None,
    project_id: str | None,
    customer_id: str | None,
    workflow_name: str | None,
    span_name: str | None,
    gateway: tuple[str, ...],
    base_url: str | None,
    **rest: Any,
) -> Any:
    from tracebridge import gateway_choice
    from tracebridge.integrate import Options

    tags: dict[str, Any] = {
        "project_id": project_id,
        "customer_id": customer_id,
        "workflow_name": workflow_name,
        "span_name": span_name,
    }
    tags = {name: value for name, value in tags.items() if value}
    if attrs is not None:
        try:
            more = orjson.loads(attrs)
        except orjson.JSONDecodeError:
            more = None
        if not isinstance(more, dict):
            wrong_usage("""--attrs: not a JSON object; write it as '{"team": "blue"}'""")
        tags = {**more, **tags}
    try:
        gateway_choice.routes(gateway, base_url)
    except ValueError as error:
        wrong_usage(str(error))
    return Options(gateway=gateway or None, base_url=base_url, tags=tags or None, **rest)


def _is_here(agent: Agent) -> bool:
    return shutil.which(agent.PROGRAM) is not None


@commands.command()
@click.argument("agents", nargs=-1, metavar="[AGENT...]")
@click.option("--json", "as_json", is_flag=True)
def route(agents: tuple[str, ...], as_json: bool) -> None:
    """Say where each agent's model requests go, with which key, and which file or variable won.

    Nothing is changed and nothing is sent; keys are masked.

    Example: tracebridge route claude-code
    """
    from rich.console import Console

    from tracebridge.config_files import Place
    from tracebridge.route import print_routes, routes, routes_json

    place = Place(Path.home(), Path.cwd(), os.environ)
    found = routes(_agents_named(agents), place)
    if as_json:
        click.echo(orjson.dumps(routes_json(found)).decode())
    else:
        # Where nobody looks, nothing is folded either.
        width = None if sys.stdout.isatty() else 200
        print_routes(found, place, Console(highlight=False, width=width))


@commands.command()
@click.argument("agent", metavar="AGENT")
@click.option("--gateway", multiple=True, metavar="URL|respan|local", help="As for integrate.")
@click.option("--shell", type=click.Choice(["bash", "fish", "powershell"]), help="Else by $SHELL.")
@click.option("--api-key-env", metavar="NAME", help="The variable that holds the gateway's key.")
def env(agent: str, gateway: tuple[str, ...], shell: str | None, api_key_env: str | None) -> None:
    """Print the shell lines that route an agent through a gateway by hand.

    No key is printed: with --api-key-env the lines refer to that variable, without it the agent
    keeps the key that it has.

    Example: eval "$(tracebridge env claude-code --gateway respan --api-key-env RESPAN_API_KEY)"
    """
    from tracebridge import gateway_choice
    from tracebridge.route import env_lines
    from tracebridge.routing import routing_module

    (which,) = _agents_named((agent,))
    if api_key_env is not None and not api_key_env.isidentifier():
        wrong_usage("--api-key-env: give the name of a variable, not a key")
    if shell is None:
        shell = "fish" if os.environ.get("SHELL", "").endswith("fish") else "bash"
    try:
        routes = gateway_choice.routes(gateway or ("local",))
    except ValueError as error:
        wrong_usage(str(error))
    lines = env_lines(routing_module(which).by_hand(routes, api_key_env), which.PROGRAM, shell)
    if not lines:
        wrong_usage(f"--gateway: {which.SLUG} asks no model that this is for")
    for line in lines:
        click.echo(line)


@commands.command()
@click.argument("names", nargs=-1, metavar="[AGENT|RULE...]")
@click.option(
    "--fix", is_flag=True, help="Mend what is safe to mend, and the rules that are named."
)
@click.option("--json", "as_json", is_flag=True)
@click.option("--rules", "list_rules", is_flag=True, help="Print what each rule is about.")
def doctor(names: tuple[str, ...], fix: bool, as_json: bool, list_rules: bool) -> None:
    """Look for everything that is known to go wrong, and say how to mend it.

    Nothing is changed without --fix; files that it changes are kept as they were. Keys are masked.
    The exit code is 3 if a problem is left.

    Example: tracebridge doctor claude-code
    """
    from tracebridge import doctor as module
    from tracebridge.config_files import Place

    if list_rules:
        click.echo(module.rules_page(), nl=False)
        return
    try:
        asked = module.parse_names(names)
    except ValueError as error:
        wrong_usage(str(error))
    place = Place(Path.home(), Path.cwd(), os.environ)
    found = module.diagnose(place, asked)
    done: dict[int, str] = {}
    problems: list[str] = []
    if fix:
        backups = module.settings_of(os.environ)[0].home / "backups"
        done, problems = module.mend(found, asked, backups)
    if as_json:
        click.echo(json.dumps(module.as_json(found, done)))
    else:
        click.echo(module.as_text(found, done, place))
    for problem in problems:
        click.echo(f"tracebridge: {problem}", err=True)
    if problems:
        sys.exit(FAILED)
    sys.exit(FINDINGS if module.has_problems(found, done) else 0)


@commands.command()
@click.argument("agent", metavar="AGENT")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTION...]")
@click.option("--wait", is_flag=True, help="Wait for a turn of yours instead of making one.")
@click.option("--timeout", default=180.0, show_default=True, help="How many seconds at most.")
@click.option("--json", "as_json", is_flag=True)
def verify(agent: str, options: tuple[str, ...], wait: bool, timeout: float, as_json: bool) -> None:
    """Prove that an agent's set-up works: one real turn, followed from hook to sink.

    The agent is run once, here, as you would run it, with a prompt of a few words; what stands
    behind -- is given to it. Where a joint is broken the exit code is 1, and the first one is named
    with the rule of `tracebridge doctor` that is about it.

    Example: tracebridge verify codex -- -m openai/gpt-5.5
    """
    from tracebridge import verify as module
    from tracebridge.config_files import Place

    (which,) = _agents_named((agent,))
    place = Place(Path.home(), Path.cwd(), os.environ)
    if wait and not as_json:
        click.echo(f"waiting for a turn of {which.SLUG}: ask it anything", err=True)
    verdict = module.verify(
        which, place, settings(), options=options, patience_s=timeout, wait=wait
    )
    if as_json:
        click.echo(json.dumps(module.as_json(verdict)))
    else:
        click.echo(module.as_text(verdict, place))
    sys.exit(0 if verdict.broken is None else FAILED)


def _agents_named(names: tuple[str, ...]) -> list[Agent]:
    """Return the agents of these names, all where none is named."""
    from tracebridge.agents import agents as all_agents

    return [agent_called(name) for name in names or all_agents()]

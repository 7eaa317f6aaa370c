"""The command line. Imports stand inside the commands: `--help` should not wait for SQLite."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import Console

    from tracebridge.agents import Agent
    from tracebridge.selection import Selection
    from tracebridge.sending import Sent
    from tracebridge.settings import Settings
    from tracebridge.sinks import ReadySink

Command = TypeVar("Command", bound=Callable[..., Any])

FAILED = 1
WRONG_USAGE = 2
FINDINGS = 3


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            from tracebridge.store import StoreError

            if not isinstance(error, StoreError):
                raise
            fail(str(error))


# Where a command's context keeps the sinks that its user named.
SINKS = "tracebridge.sinks"


def sending(command: Command) -> Command:
    """Give a command the option that says where finished spans go, above all settings."""

    def set_sinks(context: click.Context, _: click.Parameter, names: tuple[str, ...]) -> None:
        if names:
            import os

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


@main.command()
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
    import os

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
        _keep_destinations(over=False, dry_run=dry_run)
    sys.exit(FAILED if failed else 0)


def _keep_destinations(*, over: bool, dry_run: bool = False) -> bool:
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
    import orjson

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
    import shutil

    return shutil.which(agent.PROGRAM) is not None


def agent_called(name: str) -> Agent:
    from tracebridge.agents import agent as agent_named

    found = agent_named(name)
    if found is None:
        wrong_usage(f"{name}: unknown agent; choose from {', '.join(agent_names())}")
    return found


@main.command()
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
    import logging

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
    import os
    from dataclasses import replace

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


def _upstreams_before(home: Path) -> tuple[str, ...]:
    """Return where requests of the agents went before they were sent to our gateway."""
    from tracebridge.integrate import gateway_upstreams

    return tuple(dict.fromkeys(gateway_upstreams(home).values())) or ("anthropic",)


@main.command()
@click.option("--listen", default="127.0.0.1:4141", show_default=True, metavar="HOST:PORT")
@click.option("--upstream", multiple=True, metavar="SPEC", help="Repeatable; see below.")
@click.option(
    "--no-traceparent", is_flag=True, help="Tell upstreams no trace, session or customer."
)
@click.option(
    "--upstream-key",
    "upstream_keys",
    multiple=True,
    metavar="[FAMILY=]REF",
    help="What goes upstream in the place of a client's key: ENV:NAME, FILE:/path, CMD:command.",
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key, if not in that file.")
@click.option(
    "--server-name",
    "server_names",
    multiple=True,
    metavar="NAME",
    help="Name by which other machines reach the gateway; repeatable.",
)
@click.option(
    "--insecure-listen", is_flag=True, help="Let others in without client keys or without TLS."
)
@click.option(
    "--engine",
    type=click.Choice(["respan-gateway"]),
    help="Start this routing engine behind the gateway: fallback, retries, load balancing.",
)
@click.option("--engine-config", type=click.Path(path_type=Path), help="The engine's own config.")
@click.option("--max-request-mb", type=click.FloatRange(0, min_open=True), metavar="MB")
@click.option("--header-timeout", default=30.0, show_default=True, metavar="SECONDS")
@click.option("--idle-timeout", default=900.0, show_default=True, metavar="SECONDS")
@click.option("--connect-timeout", default=30.0, show_default=True, metavar="SECONDS")
@click.option("--stop-with-stdin", is_flag=True, hidden=True)
@click.option("--launcher-pid", type=int, hidden=True)
def gateway(
    listen: str,
    upstream: tuple[str, ...],
    no_traceparent: bool,
    stop_with_stdin: bool,
    launcher_pid: int | None,
    *,
    engine: str | None,
    engine_config: Path | None,
    insecure_listen: bool,
    max_request_mb: float | None,
    header_timeout: float,
    idle_timeout: float,
    connect_timeout: float,
    **access: Any,
) -> None:
    """Run our recording gateway: bytes pass unchanged, a copy is parsed.

    \b
    SPEC is one of
      a base URL with Respan's layout (/api/anthropic/, /api/, /api/google/gemini, ...)
      FAMILY=URL with FAMILY anthropic, openai, gemini or vertex
      a preset: respan, anthropic, openai, google
    The URL is printed on the first line when it accepts connections. Once there are client keys
    (`tracebridge gateway-key`), only who has one is let in; SIGHUP has keys, certificate and the
    like read again, as a change of their files does.

    \b
    Examples:
      tracebridge gateway --upstream anthropic
      tracebridge gateway --listen 0.0.0.0:4141 --tls-cert cert.pem --tls-key key.pem \\
        --server-name llm.example.com --upstream respan --upstream-key ENV:RESPAN_API_KEY
      tracebridge gateway --engine respan-gateway --engine-config routes.toml
    """
    from tracebridge.gateways import client_keys
    from tracebridge.gateways.limits import Limits
    from tracebridge.gateways.proxy import GatewayOptions, OptionsError
    from tracebridge.gateways.proxy import run as run_gateway

    home = settings().home
    if (engine is None) != (engine_config is None):
        wrong_usage("--engine and --engine-config go together")
    if not upstream and engine is None:
        upstream = _upstreams_before(home)
    try:
        options = GatewayOptions(
            listen=listen,
            upstream=upstream,
            engine_config=engine_config,
            home=home,
            # What one command has for itself asks it for no key.
            client_keys=None if launcher_pid is not None else home / client_keys.FILE,
            is_insecure=insecure_listen,
            limits=Limits(
                header_seconds=header_timeout,
                idle_seconds=idle_timeout,
                connect_seconds=connect_timeout,
                request_bytes=None if max_request_mb is None else int(max_request_mb * 1e6),
            ),
            **access,
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
@click.option("--listen", default="127.0.0.1:4319", show_default=True, metavar="HOST:PORT")
@click.option("--grpc-listen", default="", metavar="HOST:PORT", help="OTLP over gRPC as well.")
@click.option("--to", required=True, metavar="URL", help="The backend's OTLP endpoint, over HTTP.")
@click.option(
    "--redis",
    "redis_url",
    default="",
    envvar="TRACEBRIDGE_REDIS_URL",
    metavar="URL",
    help="What the replicas share; or TRACEBRIDGE_REDIS_URL, as it may hold a password.",
)
@click.option(
    "--wait-minutes",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, 1440),
    help="How long a call may wait for the watcher that tells of its turn.",
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key, if not in that file.")
@click.option("--insecure-listen", is_flag=True, help="Let others in without keys or without TLS.")
def relay(
    *,
    listen: str,
    grpc_listen: str,
    to: str,
    redis_url: str,
    wait_minutes: float,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure_listen: bool,
) -> None:
    """Run the central mode: OTLP in, gateways' spans under their turns, OTLP out.

    Any number of replicas may stand behind a load balancer. What watchers send passes byte for
    byte; spans of other gateways are scrubbed and put under the turn whose keys they carry. Those
    that carry a response id only wait until a watcher tells of it: in Redis, which the replicas
    share, or in the home of a relay that is alone. Nothing is acknowledged before the backend has
    it. The backend's headers, certificates and timeout are OTEL_EXPORTER_OTLP_*; senders' keys are
    those of `tracebridge gateway-key`. The URL is printed on the first line.

    \b
    Examples:
      tracebridge relay --to http://127.0.0.1:6006
      tracebridge relay --listen 0.0.0.0:4319 --tls-cert cert.pem --tls-key key.pem \\
        --to https://otlp.example.com --redis redis://index:6379/0
    """
    from tracebridge.gateways.client_keys import FILE
    from tracebridge.gateways.proxy import OptionsError
    from tracebridge.sinks import SinkSettingsError

    try:
        from tracebridge.relay.rules import Rules
        from tracebridge.relay.serve import RelayOptions, read_backend
        from tracebridge.relay.serve import run as run_relay
    except ImportError as error:
        fail(f"{error}; pip install 'tracebridge[relay]'")
    ours = settings()
    try:
        run_relay(
            RelayOptions(
                listen=listen,
                grpc_listen=grpc_listen,
                backend=read_backend(to, ours.env),
                home=ours.home,
                rules=Rules(ours.content, ours.scrub_patterns),
                client_keys=ours.home / FILE,
                redis_url=redis_url,
                wait_seconds=wait_minutes * 60,
                tls_cert=tls_cert,
                tls_key=tls_key,
                is_insecure=insecure_listen,
            )
        )
    except (OptionsError, SinkSettingsError) as error:
        wrong_usage(str(error))
    except ImportError as error:
        fail(f"{error}; pip install 'tracebridge[grpc]'")
    except OSError as error:
        fail(str(error))


@main.group("gateway-key")
def gateway_key() -> None:
    """Give the clients of `tracebridge gateway` named keys, and take them away.

    With the first key the gateway lets in only who has one; the name becomes the customer id of
    what is done with it, unless tags say otherwise. Gateways that run know at once.

    Example: tracebridge gateway-key add alice
    """


@gateway_key.command("add")
@click.argument("name")
@click.option(
    "--usd-per-day", type=click.FloatRange(0), help="What may be spent with it on a day (UTC)."
)
def add_gateway_key(name: str, usd_per_day: float | None) -> None:
    """Make a key and print it, once: only its digest is kept.

    Example: tracebridge gateway-key add alice --usd-per-day 20
    """
    from tracebridge.gateways.client_keys import FILE, ClientKeysError, add_key

    try:
        key = add_key(settings().home / FILE, name, usd_per_day)
    except (ClientKeysError, OSError) as error:
        fail(str(error))
    click.echo(key)
    click.echo(f"{name} gives it to agents as their API key; it is not shown again", err=True)


@gateway_key.command("list")
@click.option("--json", "as_json", is_flag=True)
def list_gateway_keys(as_json: bool) -> None:
    """List who has a key, since when, and what was spent with it today.

    Example: tracebridge gateway-key list
    """
    import orjson

    from tracebridge.gateways.client_keys import FILE, ClientKeysError, read_keys
    from tracebridge.gateways.spending import Spending

    home = settings().home
    try:
        found = read_keys(home / FILE)
    except ClientKeysError as error:
        fail(str(error))
    spending = Spending(home)
    rows = [
        {
            "name": key.name,
            "created": key.created,
            "usd_today": round(spending.usd_today(key.name), 6),
            "usd_per_day": key.usd_per_day,
        }
        for key in found or ()
    ]
    if as_json:
        click.echo(orjson.dumps(rows).decode())
        return
    for row in rows:
        limit = "" if row["usd_per_day"] is None else f" of {row['usd_per_day']:.2f}"
        since = row["created"] or "unknown"
        click.echo(f"{row['name']:<24} since {since}   {row['usd_today']:.2f}{limit} USD today")
    if found is None:
        click.echo("no keys: the gateway asks nobody for one")
    elif not rows:
        click.echo(f"no keys: the gateway lets nobody in; delete {home / FILE} to let in everybody")


@gateway_key.command("revoke")
@click.argument("name")
def revoke_gateway_key(name: str) -> None:
    """Take a key away; gateways that run let it in no more.

    Example: tracebridge gateway-key revoke alice
    """
    from tracebridge.gateways.client_keys import FILE, ClientKeysError, revoke_key

    try:
        revoke_key(settings().home / FILE, name)
    except (ClientKeysError, OSError) as error:
        fail(str(error))
    click.echo(f"{name} is let in no more")


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
    from tracebridge.agents import agent as agent_named
    from tracebridge.selection import Selection, parse_time

    if agent is not None:
        known = agent_named(agent)
        if known is None:
            wrong_usage(f"{agent}: unknown agent; choose from {', '.join(agent_names())}")
        agent = known.SLUG
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


@main.command()
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
    import signal
    import threading

    from tracebridge import tail as turns_as_they_grow

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
            turns_as_they_grow.show_once(home, console(), asked)
        elif as_json:
            turns_as_they_grow.follow_json(home, stop, write, asked)
        else:
            turns_as_they_grow.follow_terminal(home, stop, console(), asked)
    except KeyboardInterrupt:
        stop.set()
    except BrokenPipeError:
        end_of_pipe()


@main.command()
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
    from dataclasses import asdict

    import orjson

    from tracebridge import stats as sums
    from tracebridge.store import Store

    if sort not in sums.SORTS:
        wrong_usage(f"--sort {sort}: choose from {', '.join(sums.SORTS)}")
    now_ns = time.time_ns()
    with Store(settings().home) as store:
        found = list(selection(**which).turns(store, limit if sort == "began" else None))
    found = sorted(found, key=sums.sort_key(sort, now_ns))[-limit:] if limit > 0 else []
    if as_json:
        for row, spans in found:
            totals = sums.totals_of(spans, now_ns).as_dict()
            click.echo(orjson.dumps({**asdict(row), "totals": totals}).decode())
        return
    if not found:
        click.echo("no such turns; `tracebridge run -- claude …` makes one")
        return
    cells = [sums.turn_cells(row, spans, now_ns) for row, spans in found]
    for line in sums.table(sums.TURN_TITLES, cells, console().width, last="prompt"):
        click.echo(line)


@main.command()
@click.argument("trace", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The spans as one OTLP/JSON document.")
def show(trace: str, as_json: bool) -> None:
    """Print a turn as a waterfall. ID is its trace id or the beginning of it.

    Example: tracebridge show d7c487cd
    """
    import orjson

    from tracebridge.stats import time_spent_line
    from tracebridge.store import Store
    from tracebridge.waterfall import turn_lines

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
    screen, now_ns = console(), time.time_ns()
    screen.print(f"trace {rows[0].trace_id}  session {rows[0].session_id}", soft_wrap=True)
    for line in turn_lines(spans, max(screen.width, 60), now_ns, bars=True):
        screen.print(line, soft_wrap=True)
    screen.print(time_spent_line(spans, now_ns), soft_wrap=True)


@main.command()
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
    import orjson

    from tracebridge import stats as sums
    from tracebridge.store import Store

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
    for line in sums.stats_lines(groups, everything, by, console().width):
        click.echo(line)


@main.command()
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
    from tracebridge.report import report as make_report
    from tracebridge.store import Store

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


@main.command(name="import")
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
    from dataclasses import asdict

    import orjson

    from tracebridge import imports
    from tracebridge.agents import agent as agent_named
    from tracebridge.agents import agents
    from tracebridge.store import Store

    whose = agent_named(agent_name)
    if whose is None:
        wrong_usage(f"{agent_name}: unknown agent; choose from {', '.join(agent_names())}")
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
    with progress(len(found.sessions)) as done:
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
    end_of_sending(report.sent, failed=bool(report.problems), silent=as_json)


@main.command()
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
    import orjson

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
        reports = send_again(found, store, named_sinks(), settings())
    end_of_sending(reports)


@main.command()
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
    from dataclasses import asdict

    import orjson

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


@main.command()
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
    import os

    import orjson

    from tracebridge.sending import known_sinks, try_sink

    if keep:
        if names:
            os.environ["TRACEBRIDGE_SINKS"] = ",".join(names)
        if not _keep_destinations(over=True):
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
    end_of_sending([try_sink(ready) for ready in named_sinks()])


@main.command()
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
    from dataclasses import asdict

    import orjson

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


@main.command()
@click.argument("agents", nargs=-1, metavar="[AGENT...]")
@click.option("--json", "as_json", is_flag=True)
def route(agents: tuple[str, ...], as_json: bool) -> None:
    """Say where each agent's model requests go, with which key, and which file or variable won.

    Nothing is changed and nothing is sent; keys are masked.

    Example: tracebridge route claude-code
    """
    import os

    import orjson
    from rich.console import Console

    from tracebridge.config_files import Place
    from tracebridge.route import print_routes, routes, routes_json

    place = Place(Path.home(), Path.cwd(), os.environ)
    found = routes(agents_named(agents), place)
    if as_json:
        click.echo(orjson.dumps(routes_json(found)).decode())
    else:
        # Where nobody looks, nothing is folded either.
        width = None if sys.stdout.isatty() else 200
        print_routes(found, place, Console(highlight=False, width=width))


@main.command()
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
    import os

    from tracebridge import gateway_choice
    from tracebridge.route import env_lines
    from tracebridge.routing import routing_module

    (which,) = agents_named((agent,))
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


@main.command()
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
    import json
    import os

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


@main.command()
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
    import json
    import os

    from tracebridge import verify as module
    from tracebridge.config_files import Place

    (which,) = agents_named((agent,))
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


def named_sinks() -> list[ReadySink]:
    """Return the sinks that are set, ready to be opened."""
    from tracebridge.sinks import SinkSettingsError, configured_sinks

    try:
        return configured_sinks(settings().env)
    except SinkSettingsError as error:
        fail(str(error))


def end_of_sending(
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


def end_of_pipe() -> None:
    """End quietly where nobody reads any more what we print."""
    import os

    # What is left in the buffer would be written, and fail, when Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """Show how far a long command is, where somebody looks; give what to call after each step."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    shown = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def settings(*, file_first: bool = False) -> Settings:
    from tracebridge.settings import SettingsError, read_settings

    try:
        return read_settings(file_first=file_first)
    except SettingsError as error:
        fail(str(error))


def agents_named(names: tuple[str, ...]) -> list[Agent]:
    """Return the agents of these names, all where none is named."""
    from tracebridge.agents import agents as all_agents

    return [agent_called(name) for name in names or all_agents()]


def agent_names() -> list[str]:
    from tracebridge.agents import agents

    return list(agents())


def fail(text: str) -> NoReturn:
    click.echo(f"tracebridge: {text}", err=True)
    sys.exit(FAILED)


def wrong_usage(text: str) -> NoReturn:
    click.echo(f"tracebridge: {text}", err=True)
    sys.exit(WRONG_USAGE)

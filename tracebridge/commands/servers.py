"""The gateway, who may come in, and the relay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import orjson

from tracebridge.commands._shared import fail, settings, wrong_usage

commands = click.Group()


@commands.command()
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


def _upstreams_before(home: Path) -> tuple[str, ...]:
    """Return where requests of the agents went before they were sent to our gateway."""
    from tracebridge.integrate import gateway_upstreams

    return tuple(dict.fromkeys(gateway_upstreams(home).values())) or ("anthropic",)


@commands.command()
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


@commands.group("gateway-key")
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

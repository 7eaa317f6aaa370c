"""The command line: its commands, and what each is for. What does them is loaded when asked for."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

# By module of `tracebridge.commands`; each line is how the command's own help begins.
COMMANDS = {
    "tracing": {
        "demo": "Run the whole thing once with a scripted model, in a throw-away home.",
        "run": "Trace one command; nothing is installed and nothing is edited.",
        "watch": "Put turns together, link gateway calls, deliver spans; runs until stopped.",
    },
    "set_up": {
        "integrate": "Set agents up: hooks, the gateway, tags; or take it out again.",
        "route": "Say where each agent's model requests go, with which key, and which file or variable won.",
        "env": "Print the shell lines that route an agent through a gateway by hand.",
        "doctor": "Look for everything that is known to go wrong, and say how to mend it.",
        "verify": "Prove that an agent's set-up works: one real turn, followed from hook to sink.",
    },
    "servers": {
        "gateway": "Run our recording gateway: bytes pass unchanged, a copy is parsed.",
        "relay": "Run the central mode: OTLP in, gateways' spans under their turns, OTLP out.",
        "gateway-key": "Give the clients of `tracebridge gateway` named keys, and take them away.",
    },
    "looking": {
        "tail": "Show turns as they grow, of all sessions at once; Ctrl-C ends.",
        "turns": "List turns with what they came to.",
        "show": "Print a turn as a waterfall.",
        "stats": "Sum up turns: tokens, cost, lines, failures, retries, links, and where time went.",
        "report": "Write turns as one HTML page that needs nothing else; open it in any browser.",
        "status": "Say what is on, what waits and what went wrong.",
    },
    "data": {
        "import": "Take in past sessions: of all agents, of those named, or from given transcripts.",
        "export": "Print finished turns, or with --sink send them there, though they were sent before.",
        "reconcile": "Compare tokens and cost, gateway against transcript, and say why they differ.",
        "sink": "List the backends that spans can be sent to, or try those named with one span.",
        "forget": "Delete what is kept here of a session, or all that is older than a date.",
    },
}


def load(name: str) -> click.Command:
    """Return a command with its options."""
    module = next(module for module, lines in COMMANDS.items() if name in lines)
    commands: click.Group = import_module(f"tracebridge.commands.{module}").commands
    return commands.commands[name]


class _Commands(click.Group):
    """Holds what lists need of each command, and loads the one that is to do something."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else load(name), rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # Whoever could raise one has loaded it; `turns --help` ends by an exception, too.
            store = sys.modules.get("tracebridge.store")
            if store is None or not isinstance(error, store.StoreError):
                raise
            from tracebridge.commands._shared import fail

            fail(str(error))


@click.group(
    cls=_Commands,
    commands=[
        click.Command(n, help=line) for lines in COMMANDS.values() for n, line in lines.items()
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)
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

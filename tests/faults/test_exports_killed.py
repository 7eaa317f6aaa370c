"""A watcher that is killed while it takes in and tells what another gateway exported."""

from __future__ import annotations

import random
import time

from claude_files import Claude, at
from exports import exported
from faults.scenarios import KILLED, arrives, chosen
from faults.world import Figures, Stepper, World

from tracebridge.model import SpanExport
from tracebridge.testing.receiver import Receiver

CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "claude-opus-5-5",
    "gen_ai.usage.input_tokens": 115,
    "gen_ai.usage.output_tokens": 20,
}


def tell(world: World) -> None:
    """Put a turn, the batches of its gateway and a trace of nobody's into the template."""
    claude = Claude(world.template, world.folder / "user" / ".claude")
    claude.simple_turn()
    own = CHAT | {"gen_ai.response.id": f"msg_{claude.turn}"}
    times = {"start": at(1.2), "end": at(1.8)}
    chat = {"id": 2, "name": "chat", "parent": 1, "attributes": own, **times}
    request = {"id": 1, "name": "POST /v1/messages", "start": at(1.1), "end": at(1.9)}
    health = {"id": 4, "name": "GET /health", "trace": "cd" * 16, **times}
    for batch in ([chat], [request, {"id": 3, "name": "auth", "parent": 1, **times}], [health]):
        claude.spool.take(
            SpanExport(time_ns=time.time_ns(), request=exported(*batch).SerializeToString())
        )


def test_exports_are_told_once_wherever_the_watcher_dies(tmp_path):
    """Killed at each kind of step: the spans of an undisturbed run, byte for byte, and no others."""
    (tmp_path / "user").mkdir()
    template = tmp_path / "template"
    template.mkdir(mode=0o700)
    world = World(tmp_path, template, Stepper())
    try:
        tell(world)
        home = world.new_home()
        world.expected = world.undisturbed(home)
        assert len(world.expected) == 6
        figures = Figures(name="killed with exports")
        home = world.new_home()
        with Receiver() as receiver:
            steps = world.watch_once(home, receiver, batch=2).steps
        for number in chosen(steps, random.Random(7), short=True):
            home = world.new_home()
            with Receiver() as receiver:
                died = world.watch_once(home, receiver, batch=2, die_at=number).code == KILLED
                arrives(world, home, receiver)
                figures.add(world.expected, receiver.spans, faults=died, may_resend=True)
        assert figures.is_clean, figures
    finally:
        world.close()

"""Large sessions: put together a part at a time, with the same result."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_chaos
from recordings import lay_out, recordings, spool_hooks

from tracebridge import held
from tracebridge.codec import encode
from tracebridge.settings import read_settings
from tracebridge.watcher import Watcher


def told(home: Path, recording: Path) -> dict[tuple[str, str], bytes]:
    """Return the spans that a recording gives in a new home."""
    user = home / "user"
    user.mkdir(parents=True)
    lay_out(recording, user)
    state = home / "state"
    spool_hooks(recording, user, state / "spool" / "new", {})
    watcher = Watcher(read_settings({"TRACEBRIDGE_HOME": str(state), "HOME": str(user)}))
    while watcher.step():
        pass
    watcher.step(settle_now=True, close_open=True)
    store = watcher.store
    spans = {
        (span.trace_id, span.span_id): encode(span)
        for row in store.turns()
        for span in store.spans(row.trace_id)
    }
    assert not any(store.untold(row.trace_id) for row in store.turns())
    watcher.close()
    return {key: body.replace(str(home).encode(), b"") for key, body in spans.items()}


@pytest.mark.parametrize("recording", recordings(), ids=lambda f: f"{f.parent.name}-{f.name}")
def test_in_parts_as_at_once(recording, tmp_path, monkeypatch):
    """A session too large to be held gives the spans that it gives when it is held as a whole."""
    at_once = told(tmp_path / "whole", recording)
    monkeypatch.setattr(held, "MOST_BYTES", 1)
    monkeypatch.setattr(held, "MOST_SIGHTINGS", 1)
    assert told(tmp_path / "parts", recording) == at_once


class CrowdedChaos(test_chaos.Chaos):
    """As if every session were too large to be held."""

    def __init__(self) -> None:
        self.limits = held.MOST_BYTES, held.MOST_SIGHTINGS
        held.MOST_BYTES = held.MOST_SIGHTINGS = 1
        super().__init__()

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            held.MOST_BYTES, held.MOST_SIGHTINGS = self.limits


TestCrowdedChaos = CrowdedChaos.TestCase
TestCrowdedChaos.settings = test_chaos.TestChaos.settings

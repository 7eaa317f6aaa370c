"""Large sessions: put together a part at a time, with the same result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import test_chaos
from hypothesis import given
from hypothesis import settings as example_settings
from recordings import lay_out, recordings, spool_hooks
from sessions import SECOND, Session, sessions, trace_of

from tracebridge import held, semconv
from tracebridge.codec import encode
from tracebridge.settings import read_settings
from tracebridge.watcher import ORPHAN_PATIENCE_NS, Watcher


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


@pytest.fixture
def crowded(monkeypatch):
    """Make every session too large to be held."""
    monkeypatch.setattr(held, "MOST_BYTES", 1)
    monkeypatch.setattr(held, "MOST_SIGHTINGS", 1)


@pytest.mark.parametrize("recording", recordings(), ids=lambda f: f"{f.parent.name}-{f.name}")
def test_in_parts_as_at_once(recording, tmp_path, request):
    """A session too large to be held gives the spans that it gives when it is held as a whole."""
    at_once = told(tmp_path / "whole", recording)
    request.getfixturevalue("crowded")
    assert told(tmp_path / "parts", recording) == at_once


@pytest.mark.usefixtures("crowded")
class TestCrowdedChaos(test_chaos.TestChaos):
    """What holds of the watcher under chaos holds of sessions that are too large to be held."""


@pytest.mark.usefixtures("crowded")
class TestCallsOfTurnsThatAreReadAgain:
    @example_settings(max_examples=10)
    @given(session=sessions())
    def test_are_found_by_their_responses_alone(self, session: Session):
        """A call that names no session is in the turn that made it, however large its session."""
        calls = [replace(call, identity=None) for call in session.calls]
        with TemporaryDirectory() as home:
            watcher = Watcher(read_settings({"TRACEBRIDGE_HOME": home}), lambda: 2_000 * SECOND)
            test_chaos.give(watcher, [*session.sightings, *calls])
            assert told_at_last(watcher) == answers(session)

    @example_settings(max_examples=10)
    @given(session=sessions())
    def test_are_no_orphans_before_that(self, session: Session):
        """A call that waited for long is not given up while its turn waits to be read."""
        now_ns = 2_000 * SECOND
        with TemporaryDirectory() as home:
            watcher = Watcher(read_settings({"TRACEBRIDGE_HOME": home}), lambda: now_ns)
            test_chaos.give(watcher, session.calls)
            watcher.step()
            now_ns += 2 * ORPHAN_PATIENCE_NS
            test_chaos.give(watcher, session.sightings)
            watcher.step()
            assert told_at_last(watcher) == answers(session)


def told_at_last(watcher: Watcher) -> dict[object, str]:
    """Return the responses of which gateway and transcript tell, each with its trace."""
    watcher.step(settle_now=True, close_open=True)
    told = {
        span.attributes[semconv.RESPONSE_ID]: span.trace_id
        for row in watcher.store.turns()
        for span in watcher.store.spans(row.trace_id)
        if span.attributes.get(semconv.LLM_SOURCE) == "gateway+transcript"
        and semconv.RESPONSE_ID in span.attributes
    }
    watcher.close()
    return told


def answers(session: Session) -> dict[object, str]:
    """Return the responses of a session, each with the trace that it belongs to."""
    return {
        call.response_id: trace_of(session, session.truth[call.call_id][0])
        for call in session.calls
        if call.response_id is not None
    }

"""What an agent remembers of a session, imported elsewhere, against what was traced live."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from judge import CLAUDE_CODE, Kind, trial
from test_codex_cli import CODEX_CLI
from test_gemini_cli import GEMINI_CLI
from test_opencode import OPENCODE

from tracebridge import imports, semconv
from tracebridge.agents import agent
from tracebridge.settings import read_settings
from tracebridge.store import Store

pytestmark = pytest.mark.real_agent

USAGE = (
    semconv.INPUT_TOKENS,
    semconv.OUTPUT_TOKENS,
    semconv.CACHE_READ_TOKENS,
    semconv.REASONING_TOKENS,
)
# These keep no response ids: a call that a gateway saw has another span id than one that was told.
NAMELESS = {"gemini-cli", "opencode"}


def usage(attributes):
    return tuple(attributes.get(name, 0) for name in USAGE)


@pytest.mark.parametrize(
    "kind", [CLAUDE_CODE, CODEX_CLI, GEMINI_CLI, OPENCODE], ids=lambda kind: kind.slug
)
def test_a_session_imported_elsewhere_is_the_one_traced_live(kind: Kind, tmp_path, monkeypatch):
    """With hooks and gateway, or from its transcript alone: the same spans, tokens and outcome."""
    with trial("tools", tmp_path, monkeypatch, kind=kind) as played:
        live = {span.span_id: span for span in played.spans}
        monkeypatch.setenv("TRACEBRIDGE_HOME", str(tmp_path / "elsewhere"))
        found = imports.find([agent(kind.slug)], Path.home())
        report = imports.take_in(read_settings(), found, lambda: None, local_only=True)
    assert report.problems == []
    with Store(tmp_path / "elsewhere") as store:
        rows = store.turns()
        imported = {span.span_id: span for row in rows for span in store.spans(row.trace_id)}
    assert [row.outcome for row in rows] == played.outcomes
    told = {i for i, span in imported.items() if span.attributes[semconv.SPAN_TYPE] != "llm"}
    # Agents write down no titles and the like, which only the gateway saw.
    calls = [span for span in played.of_type("llm") if semconv.LLM_PURPOSE not in span.attributes]
    # Only a hook knows that somebody was asked.
    seen = {
        i
        for i, span in live.items()
        if span.attributes[semconv.SPAN_TYPE] not in ("llm", "permission")
    }
    if kind.slug not in NAMELESS:
        assert told == seen
        chats = {i for i in imported if i not in told}
        assert chats == {span.span_id for span in calls}
    for span_id in told & seen:
        one, other = live[span_id], imported[span_id]
        assert one.trace_id == other.trace_id
        assert one.status == other.status
        assert one.attributes[semconv.SPAN_TYPE] == other.attributes[semconv.SPAN_TYPE]
    assert len(told) == len(seen)
    told_usage = Counter(usage(imported[i].attributes) for i in imported.keys() - told)
    assert told_usage == Counter(usage(span.attributes) for span in calls)

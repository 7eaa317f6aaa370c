"""The id contract, by its public test vectors."""

from __future__ import annotations

import pytest

from tracebridge.ids import root_span_id, span_id, trace_id, traceparent

CLAUDE = (
    "claude-code",
    "2e23f0a0-0000-4000-8000-000000000001",
    "5d00821f-0000-4000-8000-000000000002",
)


@pytest.mark.parametrize(
    ("turn", "trace", "root"),
    [
        (CLAUDE, "d7c487cd7106e0dd92e7bece2e8dd15f", "d4f74fd32f47b44c"),
        (
            ("opencode", "ses_abc", "msg_def"),
            "ced544c3876bb510e6a0fd836de28e94",
            "edbef4b162dc46e1",
        ),
        (("codex-cli", "séance", "t-1"), "556498a75da2dd19665060989868f2f1", "7d168739f7c64e51"),
    ],
)
def test_trace_and_root(turn, trace, root):
    """A turn's trace and root are what the contract's vectors say."""
    assert trace_id(*turn) == trace
    assert root_span_id(trace) == root


def test_children():
    """So are the spans of tools and calls."""
    trace = trace_id(*CLAUDE)
    assert span_id(trace, "tool", "toolu_01A") == "bb1d37b7d9fd0ec3"
    assert span_id(trace, "llm", "msg_01B") == "a52004da2280f597"


def test_traceparent():
    """The header names the root as the parent and says that the trace is sampled."""
    trace = trace_id(*CLAUDE)
    assert traceparent(trace) == f"00-{trace}-d4f74fd32f47b44c-01"


def test_damaged_text():
    """A lone surrogate, as damaged JSON yields it, gives an id like any other text."""
    assert len(trace_id("claude-code", "\ud800", "x")) == 32

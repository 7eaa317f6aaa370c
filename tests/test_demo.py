"""The whole thing in one command, as it is shown to somebody new."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tracebridge import ids
from tracebridge.agents import agents
from tracebridge.demo import find_program

SCRIPT = """
import sys
from tracebridge import demo
if sys.argv[1] == "stand-in":
    demo.find_program = lambda which: None
from tracebridge.cli import main
main(sys.argv[2:])
"""
REAL = [slug for slug, which in agents().items() if find_program(which)]
PLAYED = [("stand-in", "claude-code"), *(("real", slug) for slug in REAL)]


def run(which, *arguments):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, which, "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def spans_of(document):
    (resource_spans,) = document["resourceSpans"]
    (scope_spans,) = resource_spans["scopeSpans"]
    return [
        {
            **span,
            "attributes": {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]},
        }
        for span in scope_spans["spans"]
    ]


@pytest.mark.parametrize(("which", "slug"), PLAYED)
def test_the_demo_shows_a_turn_in_which_every_call_is_linked(
    which, slug, home, tmp_path, monkeypatch
):
    """One OTLP/JSON document on stdout; nothing is left anywhere."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    result = run(which, "--json", "--agent", slug)
    assert result.returncode == 0, result.stderr
    assert ("stand-in" in result.stderr) == (which == "stand-in")
    spans = spans_of(json.loads(result.stdout))
    chats = [span for span in spans if span["name"].startswith("chat ")]
    assert len(chats) >= 5
    for chat in chats:
        assert chat["attributes"]["tracebridge.link.confidence"] == "exact"
        assert "gateway" in chat["attributes"]["tracebridge.llm.source"]
    failed = [c["attributes"]["error.type"] for c in chats if "error.type" in c["attributes"]]
    assert failed == ["500" if slug == "codex-cli" else "429"]
    # OTLP/JSON writes whole numbers as text.
    assert [c["attributes"].get("tracebridge.llm.attempt") for c in chats].count("2") == 1
    (root,) = [span for span in spans if "parentSpanId" not in span]
    assert root["spanId"] == ids.root_span_id(root["traceId"])
    assert root["attributes"]["tracebridge.turn.outcome"] == "completed"
    tools = [s for s in spans if s["attributes"]["tracebridge.span.type"] == "tool"]
    failed = [tool["attributes"].get("error.type") for tool in tools]
    assert failed.count("exit_nonzero") == 1
    nested = [s["name"] for s in spans if s["name"].startswith("invoke_agent ") and s != root]
    # Gemini CLI's demo has no helper.
    assert len(nested) == (slug != "gemini-cli")
    assert any(span["name"].startswith("file_edit ") for span in spans)
    assert {span["attributes"]["user.id"] for span in spans} == {"demo-customer"}
    assert list(Path.home().iterdir()) == []
    assert not home.exists()
    assert [path for path in scratch.iterdir() if "tracebridge" in path.name] == []


def test_an_agent_that_is_not_there_is_named():
    """With what to do instead."""
    result = run("stand-in", "--agent", "codex")
    assert result.returncode == 1
    assert "codex: not found on PATH; install it" in result.stderr


def test_people_are_shown_the_tree_and_what_to_do_next():
    """With nothing that steers a terminal where there is none."""
    result = run("stand-in")
    assert result.returncode == 0, result.stderr
    assert "claude-code · project" in result.stdout
    assert "8 of 8 gateway calls linked exactly" in result.stdout
    assert "tracebridge integrate claude-code" in result.stdout
    assert "\x1b" not in result.stdout


def test_an_unknown_agent_is_named():
    """With exit code 1."""
    result = run("stand-in", "--agent", "emacs")
    assert (result.returncode, "emacs: unknown agent" in result.stderr) == (1, True)

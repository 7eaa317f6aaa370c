"""The whole thing in one command, as it is shown to somebody new."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tracebridge import ids
from tracebridge.agents import agent
from tracebridge.demo import find_program

SCRIPT = """
import sys
from tracebridge import demo
if sys.argv[1] == "stand-in":
    demo.find_program = lambda which: None
from tracebridge.cli import main
main(sys.argv[2:])
"""
AGENTS = ["stand-in", *(["real"] if find_program(agent("claude-code")) else [])]


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


@pytest.mark.parametrize("which", AGENTS)
def test_the_demo_shows_a_turn_in_which_every_call_is_linked(which, home, tmp_path, monkeypatch):
    """One OTLP/JSON document on stdout; nothing is left anywhere."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    result = run(which, "--json")
    assert result.returncode == 0, result.stderr
    assert ("stand-in" in result.stderr) == (which == "stand-in")
    spans = spans_of(json.loads(result.stdout))
    chats = [span for span in spans if span["name"].startswith("chat ")]
    assert len(chats) >= 7
    for chat in chats:
        assert chat["attributes"]["tracebridge.link.confidence"] == "exact"
        assert "gateway" in chat["attributes"]["tracebridge.llm.source"]
    assert [c["attributes"].get("error.type") for c in chats].count("429") == 1
    (root,) = [span for span in spans if "parentSpanId" not in span]
    assert root["spanId"] == ids.root_span_id(root["traceId"])
    assert root["attributes"]["tracebridge.turn.outcome"] == "completed"
    names = {span["name"] for span in spans}
    assert {"execute_tool Bash", "execute_tool Agent", "invoke_agent general-purpose"} <= names
    assert any(name.startswith("file_edit ") for name in names)
    assert root["attributes"]["user.id"] == "demo-customer"
    assert list(Path.home().iterdir()) == []
    assert not home.exists()
    assert [path for path in scratch.iterdir() if "tracebridge" in path.name] == []


def test_people_are_shown_the_tree_and_what_to_do_next():
    """With nothing that steers a terminal where there is none."""
    result = run("stand-in")
    assert result.returncode == 0, result.stderr
    assert "invoke_agent claude-code" in result.stdout
    assert "8 of 8 gateway calls linked exactly" in result.stdout
    assert "tracebridge integrate claude-code" in result.stdout
    assert "\x1b" not in result.stdout


def test_an_unknown_agent_is_named():
    """With exit code 1."""
    result = run("stand-in", "--agent", "emacs")
    assert (result.returncode, "emacs: unknown agent" in result.stderr) == (1, True)

"""What people see of the real agents: a live screen that knows of each step before the turn ends."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from judge import trial
from scenarios import SCENARIOS
from seeing import KINDS, LIMIT_S, tail, watched
from terminal import wait_until

from tracebridge.store import Store
from tracebridge.views.waterfall import SPINNER

pytestmark = pytest.mark.real_agent

RUNNING = f"[{SPINNER}]"


@pytest.mark.parametrize("slug", KINDS)
def test_tail_shows_a_turn_while_the_agent_works(slug, tmp_path, monkeypatch):
    """The edits and the failed command stand on the screen while the model still has the last word.

    Then the turn folds to one line, with tokens, cost and lines, and nothing of the tree is left.
    """
    home = tmp_path / "state"
    seen = []
    with tail(home, "--agent", slug, columns=110, rows=30) as screen:

        def look():
            screen.wait_for_text("edit greet.py", LIMIT_S)
            screen.wait_for_text("ERROR exit_nonzero", LIMIT_S)
            screen.wait_for_text(rf"{slug}.* {RUNNING} ", LIMIT_S)
            screen.wait_for_text(r"chat \S+ .* \d+ → \d+ tok", LIMIT_S)
            screen.wait_for_text(r"thinking +\d+ ms", LIMIT_S)
            seen.append(screen.text)

        def lines():
            return [line for line in screen.text.split("\n") if line.strip()]

        with trial("watched", tmp_path, monkeypatch, kind=watched(KINDS[slug], look)) as played:
            assert played.outcomes == ["completed"]
            screen.wait_for_text(rf"✓ {slug} · project .* tok  \$0\.\d+", LIMIT_S)
            wait_until(lambda: len(lines()) == 2, complaint="the turn does not fold to a line")
            assert "waiting for a turn" in lines()[1]
    (during,) = seen
    assert "✓" not in during


def test_a_wait_for_approval_stands_out(tmp_path, monkeypatch):
    """While somebody is asked, the screen says so, in a colour of its own."""
    home = tmp_path / "state"
    with tail(home, columns=110, rows=30) as screen:
        shown = []

        def play(stage):
            claude = type(stage.claude())
            answer = SCENARIOS["permission_allowed"]
            before = claude.interactive

            def interactive(self, *options):
                terminal = before(self, *options)
                press = terminal.answer

                def looked_at(key, question):
                    screen.wait_for_text("wait Bash .* waiting for you", LIMIT_S)
                    shown.append(colours_of(screen, "waiting for you"))
                    press(key, question)

                terminal.answer = looked_at
                return terminal

            monkeypatch.setattr(claude, "interactive", interactive)
            return answer(stage)

        kind = replace(KINDS["claude-code"], scenarios={"watched": play})
        with trial("watched", tmp_path, monkeypatch, kind=kind) as played:
            assert played.outcomes == ["completed"]
    assert shown == [{"af5f00"}]


def colours_of(screen, words):
    """Return the colours in which *words* stand on the screen."""
    with screen._changed:
        # What is drawn comes in pieces.
        screen._changed.wait_for(lambda: words in screen.text, LIMIT_S)
        for y, line in enumerate(screen._screen.display):
            if words in line:
                at = line.index(words)
                return {screen._screen.buffer[y][x].fg for x in range(at, at + len(words))}
    return set()


def test_the_other_commands_tell_the_same(tmp_path, monkeypatch):
    """`turns`, `stats`, `show` and `report` of a real turn, with every call linked exactly."""
    with trial("tools", tmp_path, monkeypatch) as played, Store(played.home) as store:
        (row,) = store.turns()

        def run(*words):
            command = [sys.executable, "-m", "tracebridge", *words]
            env = {"TRACEBRIDGE_HOME": str(played.home), "COLUMNS": "200", "PATH": ""}
            return subprocess.run(
                command, env=env, capture_output=True, text=True, check=True
            ).stdout

        assert "write the greeting" in run("turns")
        assert "100%" in run("stats", "--by", "model")
        shown = run("show", row.trace_id[:8])
        assert shown.count("⇄ turn_id") == len(played.truth)
        assert "ttft" in shown
        page = tmp_path / "report.html"
        run("report", row.trace_id, "-o", str(page))
        assert "5 of 5" in page.read_text()

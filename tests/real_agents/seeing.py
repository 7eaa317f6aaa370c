"""What people see while a real agent works: `tail` in a terminal of its own, and pictures of it."""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from judge import CLAUDE_CODE, Kind
from rich.cells import cell_len
from terminal import Terminal
from test_codex_cli import CODEX_CLI
from test_gemini_cli import GEMINI_CLI
from test_opencode import OPENCODE

from tracebridge.testing.scripted_model import Hold

KINDS = {kind.slug: kind for kind in (CLAUDE_CODE, CODEX_CLI, GEMINI_CLI, OPENCODE)}
GATE = "somebody is looking"
LIMIT_S = 300.0


def watched(kind: Kind, look: Callable[[], object], pace_s: float = 0.0) -> Kind:
    """Return the kind with a scenario in which the model waits with its last answer for *look*.

    *pace_s* is what it takes for each event of its streams: a real one is slower than a script.
    """

    def play(stage: Any) -> Any:
        script = stage.model.script

        def held(turns: Any) -> None:
            script(
                {
                    prompt: [
                        *(replace(r, seconds_between_events=pace_s) for r in replies[:-1]),
                        replace(replies[-1], hold=Hold(GATE)),
                    ]
                    for prompt, replies in turns.items()
                }
            )

        stage.model.script = held
        with ThreadPoolExecutor(1) as pool:
            playing = pool.submit(kind.scenarios["tools"], stage)
            try:
                stage.model.wait_until_held(GATE, LIMIT_S)
                look()
            finally:
                stage.model.gate(GATE).set()
            return playing.result(LIMIT_S)

    return replace(kind, scenarios={"watched": play})


@contextmanager
def tail(home: Path, *options: str, columns: int = 80, rows: int = 24) -> Iterator[Terminal]:
    """Run the real command in a terminal of this size, and wait until it follows."""
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tracebridge", "tail", *options]
    env = {
        "TRACEBRIDGE_HOME": str(home),
        "PATH": os.environ.get("PATH", os.defpath),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "HOME": str(home),
    }
    with Terminal(command, cwd=home, env=env, columns=columns, rows=rows) as terminal:
        terminal.wait_for_text("waiting for a turn")
        yield terminal


THEMES = {
    "dark": {"page": "#16181d", "text": "#d8dee9", "bar": "#2a2e37"},
    "light": {"page": "#ffffff", "text": "#24292f", "bar": "#eaeef2"},
}


def svg(terminal: Terminal, title: str, theme: str = "dark") -> str:
    """Return what the terminal shows, colours and all, as a picture that needs nothing else."""
    colours = THEMES[theme]
    cell, line = 8.4, 18
    screen = terminal._screen
    rows = [[screen.buffer[y][x] for x in range(screen.columns)] for y in range(screen.lines)]
    while len(rows) > 1 and not any(char.data.strip() for char in rows[-1]):
        rows.pop()
    width, height = screen.columns * cell + 24, len(rows) * line + 56
    texts = []
    for y, row in enumerate(rows):
        x = 0
        while x < len(row):
            char = row[x]
            run = char.data
            end = x + 1
            while end < len(row) and _look(row[end]) == _look(char) and row[end].data != "":
                run += row[end].data
                end += 1
            if run.strip():
                fill = colours["text"] if char.fg == "default" else f"#{char.fg}"
                weight = ' font-weight="700"' if char.bold else ""
                wide = cell_len(run) * cell
                texts.append(
                    f'<text x="{12 + x * cell:.1f}" y="{50 + y * line}" fill="{fill}"{weight}'
                    f' textLength="{wide:.1f}" xml:space="preserve">{html.escape(run)}</text>'
                )
            x = end
    dots = "".join(
        f'<circle cx="{18 + 18 * n}" cy="16" r="5" fill="{c}"/>'
        for n, c in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}"'
        f' width="{width:.0f}" font-size="14" font-family="\'DejaVu Sans Mono\','
        " 'Cascadia Mono', Menlo, Consolas, monospace\">\n"
        f'<title>{html.escape(title)}</title>\n<rect width="100%" height="100%" rx="8"'
        f' fill="{colours["page"]}"/><path d="M0 32V8a8 8 0 0 1 8-8h{width - 16:.0f}a8 8 0 0 1 8'
        f' 8v24z" fill="{colours["bar"]}"/>{dots}<text x="{width / 2:.0f}" y="21"'
        f' text-anchor="middle" fill="{colours["text"]}">{html.escape(title)}</text>\n'
        + "\n".join(texts)
        + "\n</svg>\n"
    )


def _look(char: Any) -> tuple[Any, ...]:
    # Box drawing and blocks must meet; letters of one colour make one run.
    return char.fg, char.bold, char.data == " " or ord(char.data[0]) < 0x2500

"""Make the pictures of the documentation: real agents at work, as people see them.

    python tests/real_agents/pictures.py FOLDER

The model is scripted; agents, hooks, gateway, watcher, terminal and browser are real. Pictures come
as SVG with the text beside them, the report as PNG.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

# As pytest has it.
sys.path.append(str(Path(__file__).parents[1]))

from browser import chromium, visit
from judge import trial
from seeing import KINDS, LIMIT_S, svg, tail, watched
from terminal import Terminal

from tracebridge.store import Store

# Of each event in a model's stream.
PACE_S = 0.15


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "state"
        home.mkdir()
        for slug in KINDS:
            draw_tail(slug, Path(scratch), home, folder)
        with Store(home) as store:
            trace = next(store.find_turns(agent="claude-code")).trace_id
        for name, columns, words in (
            ("show", 150, ["show", trace[:8]]),
            ("show-80", 80, ["show", trace[:8]]),
            ("turns", 130, ["turns"]),
            ("stats", 150, ["stats", "--by", "agent"]),
            ("tail-once", 120, ["tail", "--once"]),
        ):
            draw_command(name, columns, words, home, folder)
        draw_report("report", [trace], home, folder)
        draw_report("report-all", [], home, folder)


def draw_tail(slug: str, scratch: Path, home: Path, folder: Path) -> None:
    """Draw the live screen in the middle of a turn of this agent, as wide as it comes."""
    place = scratch / slug
    place.mkdir()
    (place / "state").symlink_to(home)
    sizes = {"": (112, 26), "-80": (80, 24), "-200": (200, 50)}
    with ExitStack() as stack:
        screens = {
            name: stack.enter_context(tail(home, columns=columns, rows=rows))
            for name, (columns, rows) in sizes.items()
        }

        def look() -> None:
            for name, screen in screens.items():
                screen.wait_for_text("edit greet.py", LIMIT_S)
                screen.wait_for_text("ERROR exit_nonzero", LIMIT_S)
                # The gateway tells of a call when its stream ends, a moment after its tool began.
                screen.wait_until_gone("  transcript", LIMIT_S)
                theme = "light" if name == "-80" else "dark"
                picture = svg(screen, "tracebridge tail", theme)
                (folder / f"tail-{slug}{name}.svg").write_text(picture)
                write(folder / f"tail-{slug}{name}.txt", screen.text)

        patch = stack.enter_context(pytest.MonkeyPatch.context())
        kind = watched(KINDS[slug], look, PACE_S)
        stack.enter_context(trial("watched", place, patch, kind=kind))


def draw_command(name: str, columns: int, words: list[str], home: Path, folder: Path) -> None:
    with Terminal(command(*words), cwd=home, env=environment(home), columns=columns, rows=32) as it:
        it.wait(LIMIT_S)
        it.wait_for_end(LIMIT_S)
        (folder / f"{name}.svg").write_text(svg(it, f"tracebridge {' '.join(words)}"))
        write(folder / f"{name}.txt", it.text)


def draw_report(name: str, words: list[str], home: Path, folder: Path) -> None:
    page = home / f"{name}.html"
    words = ["report", *words, "-o", str(page)]
    with Terminal(command(*words), cwd=home, env=environment(home)) as it:
        if it.wait(LIMIT_S):
            raise SystemExit(it.text)
    with chromium() as browser:
        for scheme in ("light", "dark"):
            with visit(browser, page, scheme=scheme, height=1000) as seen:
                if name == "report":
                    seen.page.locator(".edit > summary").nth(1).click()
                mark = "" if scheme == "light" else "-dark"
                seen.page.screenshot(path=folder / f"{name}{mark}.png")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "tracebridge", *words]


def environment(home: Path) -> dict[str, str]:
    return {
        "TRACEBRIDGE_HOME": str(home),
        "PATH": os.environ.get("PATH", os.defpath),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
    }


def write(path: Path, text: str) -> None:
    path.write_text("\n".join(line.rstrip() for line in text.rstrip().split("\n")) + "\n")


if __name__ == "__main__":
    main()

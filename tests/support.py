"""The README's support table, from what the tests of the real agents showed in this very run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tracebridge.agents import agent

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- support: written by `make support` -->", "<!-- end of support -->"
NAMES = {
    "claude-code": "Claude Code",
    "codex-cli": "Codex CLI",
    "gemini-cli": "Gemini CLI",
    "opencode": "OpenCode",
}
# What a user would ask about, and which behaviours show it.
FEATURES: Mapping[str, frozenset[str]] = {
    feature: frozenset(behaviours.split())
    for feature, behaviours in {
        "tools, file edits, thinking": "tools",
        "tools in parallel": "parallel_tools",
        "subagents, nested": "subagent subagents",
        "a refused call tried again: each attempt a span": "retry_429 retry_500 retry_429_529 retry_429_500",
        "a call refused for good": "error_400 error_401 error_429 error_500",
        "an answer that breaks off": "stream_cut stream_truncated stream_cut_once",
        "Ctrl-C": "sigint_stream sigint_tool",
        "SIGTERM": "sigterm_stream sigterm_tool",
        "SIGKILL": "sigkill_tool sigkill_stream",
        "Escape in the terminal": "escape_stream",
        "waiting for approval": "permission permission_allowed permission_denied",
        "resumed sessions": "resume continue",
        "forked sessions": "fork",
        "compaction": "compact auto_compact too_long",
        "prompts queued or taken in while it works": "queued_prompt absorbed_prompt steering",
        "sessions at once in one folder": "two_sessions three_sessions",
    }.items()
}


@dataclass
class Shown:
    """What passed, by agent: behaviours, and the evidence by which calls were linked."""

    behaviours: dict[str, set[str]] = field(default_factory=dict)
    evidence: dict[str, set[str]] = field(default_factory=dict)


# Of the test that runs.
EVIDENCE: set[str] = set()


def table(shown: Shown) -> str:
    """Return the table as Markdown."""
    versions = {slug: version_of(slug) for slug in NAMES}
    rows = [
        ["", *(f"{name} {versions[slug]}" for slug, name in NAMES.items())],
        ["---"] * (1 + len(NAMES)),
        [
            "calls are linked by",
            *(", ".join(f"`{e}`" for e in sorted(shown.evidence.get(slug, ()))) for slug in NAMES),
        ],
    ]
    rows += [
        [feature, *("✓" if names & shown.behaviours.get(slug, set()) else "-" for slug in NAMES)]
        for feature, names in FEATURES.items()
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def is_shown(written: str, shown: Shown) -> bool:
    """Say whether a table says what was shown; of evidence it may name what timing hid today."""
    if written.splitlines()[:2] + written.splitlines()[3:] != [
        *table(shown).splitlines()[:2],
        *table(shown).splitlines()[3:],
    ]:
        return False
    cells = written.splitlines()[2].split("|")[2:-1]
    return all(
        shown.evidence.get(slug, set()) <= set(cell.replace("`", "").replace(",", " ").split())
        for slug, cell in zip(NAMES, cells, strict=True)
    )


def version_of(slug: str) -> str:
    which = agent(slug)
    assert which is not None
    return which.TESTED_VERSION


def in_readme() -> str:
    """Return the table that the README shows."""
    found = re.search(f"{re.escape(BEGIN)}\n(.*?)\n{re.escape(END)}", README.read_text(), re.DOTALL)
    assert found is not None, f"{README}: the lines {BEGIN!r} and {END!r} are missing"
    return found[1]


def write_readme(shown: Shown) -> None:
    README.write_text(README.read_text().replace(in_readme(), table(shown)))

# ruff: noqa: E402, T201 - a program that also runs from outside of pytest
"""Our scrubbing against other rule sets: recall, false alarms, speed.

    .venv/bin/python tests/secrets/compare.py

The corpus holds, one a line, examples of two maintained rule sets: made from the expressions of
gitleaks, and the positive tests of detect-secrets. Each favours where it comes from, so recall is
told by source; `tests/test_scrub.py` adds how secrets look in what agents write. False alarms
are marks in Python's standard library and our own sources, where there is no secret.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import test_scrub

from tracebridge import scrub

CORPUS = Path(__file__).with_name("corpus.jsonl")
# Gives back the text without what it takes for secrets.
Scrubber = Callable[[str], str]


def examples() -> dict[str, list[tuple[str, str | None]]]:
    """Return text and secret by source; None where the source only says that there is one."""
    found: dict[str, list[tuple[str, str | None]]] = {}
    for line in CORPUS.read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["source"], []).append((row["text"], row["secret"]))
    ours = [
        (surroundings.format(key), key)
        for key in test_scrub.KEYS.values()
        for surroundings in test_scrub.SURROUNDINGS.values()
    ]
    marks = test_scrub.test_secrets_go_by_what_is_said_of_them.pytestmark
    return found | {"agents' texts": [*ours, *marks[0].args[1]]}


def is_gone(text: str, secret: str | None, scrubber: Scrubber) -> bool:
    scrubbed = scrubber(text)
    return scrubbed != text if secret is None else secret not in scrubbed


def innocent_texts() -> list[str]:
    library = Path(sysconfig.get_path("stdlib"))
    places = [*library.glob("*.py"), *library.glob("[a-z]*/*.py")]
    places = [path for path in places if not {"test", "site-packages"} & set(path.parts)]
    places += (TESTS.parent / "tracebridge").rglob("*.py")
    return [path.read_text("utf-8", "replace") for path in sorted(places)]


def ours(text: str) -> str:
    return scrub.scrub_text(text)


def without_the_maintained_rules(text: str) -> str:
    kept = scrub.without_vendor_secrets
    scrub.without_vendor_secrets = lambda text, _lower: text
    try:
        return scrub.scrub_text(text)
    finally:
        scrub.without_vendor_secrets = kept


def detect_secrets() -> Scrubber:
    scan = importlib.import_module("detect_secrets.core.scan")
    settings = importlib.import_module("detect_secrets.settings")
    default = settings.default_settings()
    default.__enter__()

    def scrubbed(text: str) -> str:
        lines = []
        # The settings hold as long as this is there.
        assert default is not None
        for line in text.split("\n"):
            clean = line
            for secret in scan.scan_line(line):
                if secret.secret_value:
                    clean = clean.replace(secret.secret_value, "[removed]")
            lines.append(clean)
        return "\n".join(lines)

    return scrubbed


def main() -> None:
    candidates: dict[str, Scrubber] = {
        "tracebridge": ours,
        "tracebridge, its own rules alone": without_the_maintained_rules,
    }
    try:
        candidates["detect-secrets"] = detect_secrets()
    except ImportError:
        print("detect-secrets is not installed, so it is not in the table", file=sys.stderr)
    corpus = examples()
    innocent = innocent_texts()
    million = sum(map(len, innocent)) / 1e6
    table = Table("", *corpus, "false alarms / MB", "MB / s", box=None)
    for name, scrubber in candidates.items():
        recall = [
            f"{sum(is_gone(text, secret, scrubber) for text, secret in rows) / len(rows):.1%}"
            for rows in corpus.values()
        ]
        began = time.perf_counter()
        alarms = sum(len(re.findall(r"\b\w* ?removed\]", scrubber(text))) for text in innocent)
        took_s = time.perf_counter() - began
        table.add_row(name, *recall, f"{alarms / million:.1f}", f"{million / took_s:.2f}")
    Console(width=120).print(table)
    print(f"{sum(map(len, corpus.values()))} examples, {million:.1f} MB without secrets")


if __name__ == "__main__":
    main()

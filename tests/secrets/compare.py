# ruff: noqa: E402, T201 - a program that also runs from outside of pytest
"""Our scrubbing against another rule set, and against itself without its table: three questions.

    make secrets

How much goes: of examples of every form in `secret_forms.txt`, which favours ours, and of how
secrets look in what agents write, from `tests/test_scrub.py`. How much goes that should stay:
marks in Python's standard library and our own sources, where there is no secret. How fast.
"""

from __future__ import annotations

import importlib
import re
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import secret_examples
import test_scrub

from tracebridge import scrub

# Gives back the text without what it takes for secrets.
Scrubber = Callable[[str], str]


def examples() -> dict[str, list[tuple[str, str]]]:
    """Return texts, each with the secret in it, by where they come from."""
    agents = [
        (surroundings.format(key), key)
        for key in test_scrub.KEYS.values()
        for surroundings in test_scrub.SURROUNDINGS.values()
    ]
    marks = test_scrub.test_secrets_go_by_what_is_said_of_them.pytestmark
    return {
        "vendors' forms": [(text, secret) for _, text, secret in secret_examples.examples()],
        "agents' texts": [*agents, *marks[0].args[1]],
    }


def innocent_texts() -> list[str]:
    library = Path(sysconfig.get_path("stdlib"))
    places = [*library.glob("*.py"), *library.glob("[a-z]*/*.py")]
    places = [path for path in places if not {"test", "site-packages"} & set(path.parts)]
    places += (TESTS.parent / "tracebridge").rglob("*.py")
    return [path.read_text("utf-8", "replace") for path in sorted(places)]


def ours(text: str) -> str:
    return scrub.scrub_text(text)


def general_rules(text: str) -> str:
    kept = scrub.without_vendor_secrets
    scrub.without_vendor_secrets = lambda text, _: text
    # What was scrubbed lately is remembered.
    scrub._short_scrubbed.cache_clear()
    try:
        return scrub.scrub_text(text)
    finally:
        scrub.without_vendor_secrets = kept
        scrub._short_scrubbed.cache_clear()


def detect_secrets(folder: Path) -> Scrubber:
    """Look as it does at files; asked for single lines it names every word that might be one."""
    scan = importlib.import_module("detect_secrets.core.scan")
    settings = importlib.import_module("detect_secrets.settings")
    # What an agent writes has no kind of file either.
    path = folder / "text.txt"

    def scrubbed(text: str) -> str:
        path.write_text(text, "utf-8", errors="replace")
        lines = text.split("\n")
        with settings.default_settings():
            found = list(scan.scan_file(str(path)))
        for secret in found:
            number = secret.line_number - 1
            lines[number] = lines[number].replace(secret.secret_value or "\0", "[removed]")
        return "\n".join(lines)

    return scrubbed


def main(folder: Path) -> None:
    candidates: dict[str, Scrubber] = {
        "tracebridge": ours,
        "tracebridge, its general rules alone": general_rules,
    }
    try:
        candidates["detect-secrets"] = detect_secrets(folder)
    except ImportError:
        print(
            f"detect-secrets is not in the table: {sys.executable} -m pip install detect-secrets",
            file=sys.stderr,
        )
    corpus = examples()
    innocent = innocent_texts()
    million = sum(map(len, innocent)) / 1e6
    table = Table("", *corpus, "false alarms / MB", "MB / s", box=None)
    for name, scrubber in candidates.items():
        recall = [
            f"{sum(secret not in scrubber(text) for text, secret in rows) / len(rows):.1%}"
            for rows in corpus.values()
        ]
        began = time.perf_counter()
        alarms = sum(len(re.findall(r"\b\w* ?removed\]", scrubber(text))) for text in innocent)
        took_s = time.perf_counter() - began
        table.add_row(name, *recall, f"{alarms / million:.1f}", f"{million / took_s:.2f}")
    Console(width=120).print(table)
    print(f"{sum(map(len, corpus.values()))} examples, {million:.1f} MB without secrets")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))

"""The maintained rules: what they find goes, in whatever way a tool shows it, in bounded time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tracebridge.scrub import scrub_text
from tracebridge.vendor_secrets import _rules, without_vendor_secrets

EXAMPLES = [
    row
    for line in Path(__file__).with_name("corpus.jsonl").read_text().splitlines()
    if (row := json.loads(line))["source"] == "gitleaks"
]


@pytest.mark.parametrize("surroundings", ["{}", "see\n{}\nthere", "{}, and more"])
def test_every_vendors_secret_goes(surroundings):
    """Also where it is not alone on its line."""
    kept = [
        row["kind"]
        for row in EXAMPLES
        if row["secret"] in scrub_text(surroundings.format(row["text"]))
    ]
    assert kept == []


def test_most_go_from_json_in_json_too():
    """Quotes are escaped there once or twice; a few rules want what then stands elsewhere."""
    kept = set()
    for row in EXAMPLES:
        text = json.dumps({"stdout": json.dumps({"line": row["text"]})})
        if row["secret"] in scrub_text(text):
            kept.add(row["kind"])
    assert len(kept) <= 10, kept


def test_scrubbing_twice_changes_nothing_more():
    """What is left of a secret is no secret to another rule."""
    for row in EXAMPLES:
        once = scrub_text(row["text"])
        assert scrub_text(once) == once, row["kind"]


@pytest.mark.parametrize("text", ["", "İstanbul datadog", "ß" * 50, "datadog: hello world"])
def test_what_holds_no_secret_stays(text):
    """Also where a letter is two in lower case."""
    assert without_vendor_secrets(text, text.lower()) == text


def test_keywords_without_end_take_no_time_without_end():
    """Each keyword ten thousand times over, in a process that has two minutes for all of them."""
    script = (
        "from tracebridge.vendor_secrets import _rules, without_vendor_secrets\n"
        "for word in list(_rules()[0]):\n"
        "    for text in (word * 1000, (word + '=') * 1000, (word + ' = aA1') * 500):\n"
        "        without_vendor_secrets(text, text.lower())\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=300, check=True)


def test_the_rules_say_where_they_come_from():
    """With version and licence, as that demands."""
    from importlib import resources

    head = json.loads((resources.files("tracebridge") / "secret_rules.json").read_text())
    assert head["source"] == "gitleaks"
    assert "MIT" in head["license"]
    assert len(_rules()[0]) > 150

"""Secrets by the form that their vendors give them, from a maintained set of rules. Pure.

The rules are those of gitleaks (MIT), made into `secret_rules.json` by `tests/secrets/refresh.py`.
A rule is tried only where one of its keywords stands in the text, and compiled when it first is.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import orjson

# Between a vendor's name and any value: what follows may be a word like others.
_ASSIGNED = "(?:=|>|:{1,3}="


# How far from its keyword a secret may begin, and end.
_BEFORE = 100
_BEHIND = 2000

_Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: str
    source: str
    least_entropy: float

    def find(self, text: str, windows: Iterable[_Place]) -> Iterator[_Place]:
        pattern = _compiled(self.source)
        for start, end in windows:
            for match in pattern.finditer(text, start, end):
                group = 1 if match.re.groups and match[1] is not None else 0
                if self._is_random(match[group]):
                    yield match.span(group)

    def _is_random(self, secret: str) -> bool:
        if _ASSIGNED in self.source and not any(letter.isdigit() for letter in secret):
            return False
        return self.least_entropy == 0 or _entropy(secret) >= self.least_entropy


def without_vendor_secrets(text: str, lower: str) -> str:
    """Return *text*, which is *lower* in lower case, with a mark in place of each secret."""
    by_keyword, keywords = _rules()
    if len(lower) != len(text):
        # Some letters become two: then places in one are not places in the other.
        lower = "".join(each if len(each.lower()) != 1 else each.lower() for each in text)
    windows: dict[_Rule, list[_Place]] = {}
    for hit in keywords.finditer(lower):
        place = (max(0, hit.start() - _BEFORE), hit.start() + _BEHIND)
        for rule in by_keyword[hit[1]]:
            known = windows.setdefault(rule, [])
            if known and known[-1][1] >= place[0]:
                known[-1] = (known[-1][0], place[1])
            else:
                known.append(place)
    marks = [
        (start, end, rule.kind)
        for rule, places in windows.items()
        for start, end in rule.find(text, places)
    ]
    # From the end, so that places further in front stay what they are.
    last = len(text)
    for start, end, kind in sorted(marks, reverse=True):
        if end <= last:
            text = f"{text[:start]}[{kind} removed]{text[end:]}"
            last = start
    return text


@cache
def _rules() -> tuple[Mapping[str, list[_Rule]], re.Pattern[str]]:
    document = orjson.loads((resources.files("tracebridge") / "secret_rules.json").read_bytes())
    by_keyword: dict[str, list[_Rule]] = {}
    for kind, keywords, source, entropy in document["rules"]:
        rule = _Rule(kind, source, entropy)
        for word in keywords:
            by_keyword.setdefault(word, []).append(rule)
    # A keyword that begins with another one is found by that.
    for word, rules in list(by_keyword.items()):
        for shorter, known in by_keyword.items():
            if word != shorter and word.startswith(shorter):
                known += [rule for rule in rules if rule not in known]
    # Looked for at each place, since one may begin within another.
    return by_keyword, re.compile(f"(?=({_tree(by_keyword)}))")


def _tree(words: Mapping[str, object]) -> str:
    """Return an expression that finds any of *words*, branching once per letter."""
    tree: dict[str, Any] = {}
    for word in words:
        branch = tree
        for letter in word:
            branch = branch.setdefault(letter, {})
        branch[""] = {}

    def expression(branch: Mapping[str, Any]) -> str:
        if "" in branch:
            return ""
        ways = [re.escape(letter) + expression(rest) for letter, rest in branch.items()]
        return ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"

    return expression(tree)


@cache
def _compiled(source: str) -> re.Pattern[str]:
    return re.compile(source)


def _entropy(text: str) -> float:
    """Return Shannon's entropy in bits per letter."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())

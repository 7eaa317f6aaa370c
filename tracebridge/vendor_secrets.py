"""Secrets by the form that their vendors give them, as `secret_forms.txt` lists them. Pure.

A form is tried only where a piece of text that it always holds stands, and compiled when it first
is. Every repetition in it is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeAlias

FILE = "secret_forms.txt"

_PART = r"\{([0-9A-Za-z+/=_.%@~-]+):(\d{1,4})(?:-(\d{1,4}))?\}|([^{}\s]++)"
_LINE = re.compile(rf"(?P<kind>[a-z0-9-]+)\s+(?:@(?P<names>\S+)\s+)?(?P<form>(?!@)(?:{_PART})+)")
# Where a word begins: text often comes as JSON, where a new line is a backslash and an n.
_START = r"(?:(?<![0-9A-Za-z_\\])|(?<=\\[nrt]))"
_END = r"(?![0-9A-Za-z_])"
# Behind a name also digests, paths and texts in base64 stand.
_VALUE_END = r"(?![0-9A-Za-z_+/-])"
# What stands between a name and its value: the rest of the name, quotes that may be escaped more
# than once, and what assigns in some language. A name in one of our marks has no value.
_LONGEST_NAME = 30
_ASSIGNS = (
    rf"(?![\w-]{{0,{_LONGEST_NAME}}} removed\])[\w\t .-]{{0,{_LONGEST_NAME}}}"
    r"[\\\"'`\])]{0,8}\s{0,3}[=:>,|?]{1,3}\s{0,3}[\\\"'`(]{0,8}"
)
_LONGEST_ASSIGNMENT = _LONGEST_NAME + 8 + 3 + 3 + 3 + 8
# A number of this length, alone behind a name, is no date and no count.
_LONG = 20

DIGIT = re.compile(rb"\d")

_Place = tuple[int, int]
# Each with the place where it begins.
LongWords: TypeAlias = Sequence[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Letters:
    alphabet: str
    least: int
    most: int


Part: TypeAlias = str | Letters


@dataclass(frozen=True, slots=True)
class Form:
    kind: str
    names: tuple[str, ...]
    parts: tuple[Part, ...]

    def keywords(self) -> tuple[str, ...]:
        """Return in lower case what stands in or before each secret of this form."""
        return self.names or (self._literal().lower(),)

    def window(self) -> _Place:
        """Return how far before a keyword and from its beginning on there may be a secret."""
        if self.names:
            behind = max(map(len, self.names)) + _LONGEST_ASSIGNMENT + _most(self.parts)
            return 0, behind + 1
        literal = self.parts.index(self._literal())
        return _most(self.parts[:literal]), _most(self.parts[literal:]) + 1

    def find(self, text: str, windows: Iterable[_Place]) -> Iterator[_Place]:
        pattern = _compiled(self)
        for start, end in windows:
            for match in pattern.finditer(text, start, end):
                if not self.names or _is_value(match["secret"]):
                    yield match.span("secret")

    def _literal(self) -> str:
        return max((part for part in self.parts if isinstance(part, str)), key=len, default="")


def long_words(text: str) -> LongWords:
    """Return the pieces of *text* that are long enough to be a secret of some form, and their places.

    A piece ends where a letter stands that no form has.
    """
    blanks, least = _alphabet()
    if len(text) < least:
        return []
    # One byte for each character, so that places stay the same.
    letters = text.encode("ascii", "replace")
    found = []
    end = 0
    for word in letters.translate(blanks).split():
        if len(word) >= least:
            start = letters.find(word, end)
            end = start + len(word)
            found.append((start, word))
    return found


def without_vendor_secrets(text: str, lower: str, words: LongWords | None = None) -> str:
    """Return *text*, which is *lower* in lower case, with a mark in place of each secret.

    *words* are its long words, if they are known.
    """
    by_keyword, keywords = _forms_by_keyword()
    if len(lower) != len(text):
        # Some letters become two: then places in one are not places in the other.
        lower = "".join(each if len(each.lower()) != 1 else each.lower() for each in text)
    windows: dict[Form, list[_Place]] = {}
    hits = (
        hit
        for start, end in _near(long_words(text) if words is None else words)
        for hit in keywords.finditer(lower, start, end)
    )
    for hit in hits:
        for form, (before, behind) in by_keyword[hit[1]]:
            start, end = max(0, hit.start() - before), hit.start() + behind
            known = windows.setdefault(form, [])
            if known and known[-1][1] >= start:
                known[-1] = (known[-1][0], max(known[-1][1], end))
            else:
                known.append((start, end))
    marks = sorted(
        (start, -end, form.kind)
        for form, places in windows.items()
        for start, end in form.find(text, places)
    )
    pieces = []
    done = 0
    for start, minus_end, kind in marks:
        if start >= done:
            pieces += [text[done:start], f"[{kind} removed]"]
        # Of two that overlap, all goes.
        done = max(done, -minus_end)
    return "".join([*pieces, text[done:]])


def parse_forms(lines: str) -> list[Form]:
    """Raise ValueError with the line that is no form."""
    return [
        _parsed(line, number)
        for number, line in enumerate(lines.splitlines(), 1)
        if line.strip() and not line.startswith("#")
    ]


@cache
def forms() -> tuple[Form, ...]:
    return tuple(parse_forms((resources.files("tracebridge") / FILE).read_text("utf-8")))


def _parsed(line: str, number: int) -> Form:
    match = _LINE.fullmatch(line.rstrip())
    if match is None:
        raise ValueError(f"{FILE}, line {number}: not `kind  form` or `kind  @name form`: {line}")
    parts: list[Part] = [
        literal or Letters(alphabet, int(least), int(most or least))
        for alphabet, least, most, literal in re.findall(_PART, match["form"])
    ]
    names = match["names"].lower().split("|") if match["names"] else []
    form = Form(match["kind"], tuple(names), tuple(parts))
    letters = [part for part in parts if isinstance(part, Letters)]
    if not letters:
        raise ValueError(f"{FILE}, line {number}: always the same text is no secret: {line}")
    if any(part.least > part.most for part in letters):
        raise ValueError(f"{FILE}, line {number}: more at least than at most: {line}")
    if min(map(len, form.keywords())) < 2:
        raise ValueError(f"{FILE}, line {number}: nothing in it tells where to look: {line}")
    return form


def _near(words: LongWords) -> list[_Place]:
    """Return where the keywords of secrets among *words* can stand; no place twice."""
    places: list[_Place] = []
    for place, word in words:
        # What follows a name has a digit, see `_is_value`.
        before = _LONGEST_ASSIGNMENT + _longest_name() if DIGIT.search(word) else 0
        first = max(0, place - before)
        while places and places[-1][1] >= first:
            first = min(first, places.pop()[0])
        places.append((first, place + len(word)))
    return places


@cache
def _alphabet() -> tuple[bytes, int]:
    """Return a table that makes blanks of what stands in no secret, and how long the shortest is."""
    pieces = {
        re.escape(part) if isinstance(part, str) else f"[{part.alphabet}]"
        for form in forms()
        for parts in form.parts
        for part in (parts if isinstance(parts, str) else [parts])
    }
    pattern = "|".join(pieces)
    letter = re.compile(pattern)
    table = bytes(code if letter.fullmatch(chr(code)) else ord(" ") for code in range(256))
    return table, min(_least(form.parts) for form in forms())


@cache
def _longest_name() -> int:
    return max(len(name) for form in forms() for name in form.names)


@cache
def _forms_by_keyword() -> tuple[Mapping[str, list[tuple[Form, _Place]]], re.Pattern[str]]:
    by_keyword: dict[str, list[tuple[Form, _Place]]] = {}
    for form in forms():
        for word in form.keywords():
            by_keyword.setdefault(word, []).append((form, form.window()))
    # A keyword that begins with another one is found by that.
    for word, found in list(by_keyword.items()):
        for shorter, known in by_keyword.items():
            if word != shorter and word.startswith(shorter):
                known += [each for each in found if each not in known]
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
def _compiled(form: Form) -> re.Pattern[str]:
    secret = "".join(
        re.escape(part)
        if isinstance(part, str)
        else f"[{part.alphabet}]{{{part.least},{part.most}}}"
        for part in form.parts
    )
    if form.names:
        names = "|".join(map(re.escape, form.names))
        return re.compile(f"(?i:{names}){_ASSIGNS}(?P<secret>{secret}){_VALUE_END}")
    first, last = form.parts[0], form.parts[-1]
    # One that begins with a sign begins within a word.
    start = "" if isinstance(first, str) and not first[0].isalnum() else _START
    # Of one that is longer than the longest, what is known of it goes all the same.
    end = _END if isinstance(last, str) or last.least == last.most else ""
    return re.compile(f"{start}(?P<secret>{secret}){end}")


def _most(parts: Iterable[Part]) -> int:
    return sum(len(part) if isinstance(part, str) else part.most for part in parts)


def _least(parts: Iterable[Part]) -> int:
    return sum(len(part) if isinstance(part, str) else part.least for part in parts)


def _is_value(text: str) -> bool:
    """Return whether this is no word, and no short number either."""
    digits = sum(letter.isdigit() for letter in text)
    return digits > 0 and (digits < len(text) or len(text) >= _LONG)

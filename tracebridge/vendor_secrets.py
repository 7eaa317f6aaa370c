"""Secrets by the form that their vendors give them, as `secret_forms.txt` lists them. Pure.

A form is compiled when a text is first suspected of it. Every repetition in it is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TypeAlias

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
_ASSIGNS = (
    r"(?![\w-]{0,30} removed\])[\w\t .-]{0,30}"
    r"[\\\"'`\])]{0,8}\s{0,3}[=:>,|?]{1,3}\s{0,3}[\\\"'`(]{0,8}"
)
# A number of this length, alone behind a name, is no date and no count.
_LONG = 20

_Place = tuple[int, int]


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

    def sign(self) -> str:
        """Return a pattern of what stands in or before each secret of this form."""
        by_name = self.names and self.known() > self._longest_literal()
        return self._any_name() if by_name else self._secret()

    def find(self, text: str) -> Iterator[_Place]:
        for match in _compiled(self).finditer(text):
            if not self.names or _is_value(match["secret"]):
                yield match.span("secret")

    def pattern(self) -> str:
        secret = f"(?P<secret>{self._secret()})"
        if self.names:
            return f"{self._any_name()}{_ASSIGNS}{secret}{_VALUE_END}"
        first, last = self.parts[0], self.parts[-1]
        # One that begins with a sign begins within a word.
        start = "" if isinstance(first, str) and not first[0].isalnum() else _START
        # Of one that is longer than the longest, what is known of it goes all the same.
        end = _END if isinstance(last, str) or last.least == last.most else ""
        return f"{start}{secret}{end}"

    def known(self) -> int:
        """Return how many letters in a row stand in or before each secret of this form."""
        return min(map(len, self.names)) if self.names else self._longest_literal()

    def _longest_literal(self) -> int:
        return max((len(part) for part in self.parts if isinstance(part, str)), default=0)

    def _any_name(self) -> str:
        return f"(?i:{'|'.join(map(re.escape, self.names))})"

    def _secret(self) -> str:
        return "".join(
            re.escape(part)
            if isinstance(part, str)
            else f"[{part.alphabet}]{{{part.least},{part.most}}}"
            for part in self.parts
        )


def without_vendor_secrets(text: str, suspected: Iterable[Form]) -> str:
    """Return *text* with a mark in place of each secret that has one of the forms *suspected*."""
    marks = sorted((start, -end, form.kind) for form in suspected for start, end in form.find(text))
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
    if form.known() < 2:
        raise ValueError(f"{FILE}, line {number}: nothing in it tells where to look: {line}")
    return form


@cache
def _compiled(form: Form) -> re.Pattern[str]:
    return re.compile(form.pattern())


def _is_value(text: str) -> bool:
    """Return whether this is no word, and no short number either."""
    digits = sum(letter.isdigit() for letter in text)
    return digits > 0 and (digits < len(text) or len(text) >= _LONG)

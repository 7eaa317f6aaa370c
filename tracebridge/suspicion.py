"""Which of many patterns may match a text, found for all of them in one pass over it. Pure.

What one of the patterns matches is always suspected; what is suspected need not match. So most
texts are done with at once, and of the others a few patterns have to be tried.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

import hyperscan

Key = TypeVar("Key", bound=Hashable)

# Longer repetitions take longer to build an engine of, and let hardly more texts go.
_MOST_REPEATED = 12
_CLASS = r"\[\^?(?:\\.|[^\]\\])+\]"
_WITHIN = rf"(?:{_CLASS}|\\.|\(\?P=\w+\)|[^()\[\\])+"
_TOKEN = re.compile(
    rf"\(\?<!\[(?P<not_behind>(?:\\.|[^\]\\])+)\]\)|\(\?<=(?P<behind>{_WITHIN})\)"
    rf"|(?P<ahead>\(\?[=!]{_WITHIN}\)|\\b)"
    rf"|(?P<name>\(\?P<\w+>)|(?P<letters>{_CLASS})|(?P<escape>\\.)"
    r"|\{(?P<least>\d+)(?:,\d*)?\}\??"
)
# What Python takes for spaces, digits or letters and the engine, which sees bytes, does not.
_MORE = r"\x1c-\x1f\x80-\xff"
# What matches these letters, too, where case does not matter: a long s, a kelvin, i's of Turkish.
_LETTERS = {"\u017f": "s", "\u212a": "K", "\u0130": "I", "\u0131": "i"}


class Suspicion(Generic[Key]):
    """May be used by several threads at once."""

    def __init__(self, patterns: Mapping[Key, str]) -> None:
        """Take patterns of Python's, without references to groups but in what looks ahead.

        They may look behind only where they begin, for something or for one letter not in a class.
        """
        self._keys = list(patterns)
        self._database = hyperscan.Database()
        self._database.compile(
            [widened(pattern).encode() for pattern in patterns.values()],
            ids=range(len(self._keys)),
            flags=hyperscan.HS_FLAG_PREFILTER | hyperscan.HS_FLAG_SINGLEMATCH,
        )
        self._of_thread = threading.local()

    def of(self, text: str) -> set[Key]:
        """Return the keys of the patterns that may match in *text*, and of all that do."""
        try:
            scratch = self._of_thread.scratch
        except AttributeError:
            scratch = self._of_thread.scratch = hyperscan.Scratch(self._database)
        found: list[int] = []
        self._database.scan(_encoded(text), _note, context=found, scratch=scratch)
        # What looks behind means the letters themselves.
        if (plain := folded(text)) != text:
            self._database.scan(_encoded(plain), _note, context=found, scratch=scratch)
        return {self._keys[number] for number in found}


def folded(text: str) -> str:
    """Return *text* with ASCII in place of what matches ASCII where case does not matter."""
    if not text.isascii():
        for letter, plain in _LETTERS.items():
            text = text.replace(letter, plain)
    return text


def widened(pattern: str) -> str:
    """Return a pattern of the engine's that matches wherever *pattern* does, if not only there."""
    return _TOKEN.sub(_widened, pattern)


def _widened(token: re.Match[str]) -> str:
    if token["not_behind"]:
        return f"(?:^|[^{token['not_behind']}])"
    if token["behind"]:
        return token["behind"]
    if token["ahead"]:
        return ""
    if token["name"]:
        return "(?:"
    if token["least"]:
        return f"{{{min(int(token['least']), _MOST_REPEATED)},}}"
    letters = token["letters"] or f"[{token[0]}]"
    if letters.startswith("[^") or letters == r"[\S]":
        # It excludes no letter that is several bytes.
        return f"(?:{letters}+)"
    if re.search(r"\\[swd]", letters):
        return f"(?:[{_MORE}{letters[1:]}+)"
    return token[0]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _note(number: int, _start: int, _end: int, _flags: int, found: object) -> None:
    found.append(number)  # type: ignore[attr-defined]  # the list of `of`

"""What a pattern matches is suspected, whatever letters a text is made of."""

from __future__ import annotations

import re
import threading

import pytest

from tracebridge.suspicion import Suspicion


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("abc", "xabcx"),
        ("a{2,4}b", "aab"),
        ("a{12}b", "a" * 12 + "b"),
        ("a{0,3}b", "b"),
        (r"\{a\}\[b\]", "{a}[b]"),
        # Look-arounds, also with repetitions, classes and references in them.
        (r"(?<![0-9a-z\\])key", "key"),
        (r"(?<![0-9a-z\\])key", "ékey"),
        (r"(?<![0-9a-z\\])key", "\u017fkey"),
        (r"(?<=;)\s?key", ";key"),
        (r"(?:(?<![0-9A-Za-z_\\])|(?<=\\[nrt]))key", r"\nkey"),
        (r"\bkey\b", "-key-"),
        (r"é\b", "é-"),
        (r"a(?=[^)\]]{1,9}\d)\S+", "ab1"),
        (r"a(?![\w-]{0,30} b)é", "aé"),
        (r"(?P<quote>['\"])(?:(?!(?P=quote))[^\n])+", "'ab"),
        # Spaces, digits and letters of Python's, some of them several bytes long.
        (r"a\sb", "a\u00a0b"),
        (r"a\sb", "a\x1cb"),
        (r"a\s{1,2}b", "a\u2028\u2028b"),
        (r"a\d{2}b", "a٣٣b"),
        (r"a[\w.-]{2}b", "aé.b"),
        (r"a\wb", "a中b"),
        ("a[^x]b", "aéb"),
        ("a[^x]b", "a😀b"),
        (r"a\Sb", "aéb"),
        ("a→b", "a→b"),
        # Letters that match others where case does not matter.
        ("(?i)task", "TA\u017f\u212a"),
        ("(?i:pin) x", "p\u0130n x"),
        ("(?i:pin) x", "p\u0131N x"),
        # Texts that are odd, in Python or in the engine.
        ("ab", "\0ab\0"),
        ("ab", "\udc80ab"),
        ("a[^x]b", "a\udc80b"),
        ("ab", "x" * 5_000_000 + "ab"),
    ],
)
def test_what_matches_is_suspected(pattern, text):
    """Though the engine sees bytes and knows no look-arounds."""
    assert re.search(pattern, text)
    assert Suspicion({"it": pattern, "another": "zzz"}).of(text) == {"it"}


def test_other_texts_are_not_suspected():
    """A pattern that says which letters it wants asks for them."""
    suspicion = Suspicion({1: "key-[0-9]{8}", 2: "(?i:name) ?="})
    assert suspicion.of("") == set()
    assert suspicion.of("key-1234567, a name and an é") == set()
    assert Suspicion({1: "(?<![a-z])sk-[0-9]"}).of("ask-1") == set()
    assert suspicion.of("Name=key-12345678") == {1, 2}


def test_threads_look_at_the_same_time():
    """Each at texts of its own."""
    suspicion = Suspicion({number: f"number {number}!" for number in range(8)})
    wrong = []

    def look(number):
        texts = ("x" * length * 50 + f"number {number}!" for length in range(300))
        wrong.extend(text for text in texts if suspicion.of(text) != {number})

    threads = [threading.Thread(target=look, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

"""What vendors give out goes by its form, in whatever way a tool shows it, in bounded time."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import pytest
import secret_examples
import test_scrub
from hypothesis import given, settings
from hypothesis import strategies as st

from tracebridge.scrub import (
    ASSIGNMENT,
    KEY_END,
    MOST_PASSES,
    RULES,
    _marked,
    _marked_assignment,
    _without_key_tails,
    scrub_text,
)
from tracebridge.vendor_secrets import _compiled, forms, parse_forms, without_vendor_secrets

EXAMPLES = list(secret_examples.examples())
# None was ever given out. In pieces, so that no scanner takes this file for a leak.
WELL_KNOWN = {
    "AWS": "AKIA" + "Z7Q2M4XW6TB3KD5N",
    "GitHub": "ghp_" + "q7Rk2ZpX9vLm4TnB8cWs1YdF6hJg3KaEu5Qo",
    "GitLab": "glpat-" + "x4Kq9_ZrTm2-Vb7LsWn1",
    "Slack": "xoxb-" + "204816326412-408163264128-" + "kQ3vZ8mXrT5wLp2nB7cYd9Fs",
    "Stripe": "sk_live_" + "9wQk3ZrXmT7vLp2nB5cYd8Fs",
    "OpenAI": "sk-proj-" + "a7Kq_Zr9" * 8 + "T3Blbk" + "FJ" + "m2-VbL5s" * 8,
    "Anthropic": "sk-ant-" + "api03-" + "k9_ZrTm2-Vb7" * 7 + "Qx4LsWn1p" + "AA",
    "npm": "npm_" + "Qo5uEaK3gJ6hFdY1sWc8BnT4mLv9XpZ2kR7q",
    "PyPI": "pypi-" + "AgEIcHlwaS5vcmc" + "Zr9Kq7_mT2vL-p5B" * 5,
    "Google": "AIza" + "SyD4k9ZrTm2_Vb7LsWn1Qx-8cYp3Fh5Jg6K",
}
SURROUNDINGS = ["{}", "see\n{}\nthere", "{}, and more", "a = f({});"]


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_every_vendors_secret_goes(surroundings):
    """Also where it is not alone on its line."""
    kept = [
        (form.kind, text)
        for form, text, secret in EXAMPLES
        if secret in scrub_text(surroundings.format(text))
    ]
    assert kept == []


def test_a_form_is_found_by_itself():
    """Not only because a more general rule takes it."""
    kept = [
        (form.kind, text)
        for form, text, secret in EXAMPLES
        if secret in without_vendor_secrets(text, forms())
    ]
    assert kept == []


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("secret", WELL_KNOWN.values(), ids=WELL_KNOWN.keys())
def test_those_that_everybody_has_are_in_the_table(secret, surroundings):
    """What stands around them stays."""
    text = surroundings.format(secret)
    scrubbed = without_vendor_secrets(text, forms())
    before, after = surroundings.format("\0").split("\0")
    assert scrubbed.startswith(f"{before}[")
    assert scrubbed.endswith(f" removed]{after}")
    assert secret not in scrubbed


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_they_go_from_json_in_json_too(depth):
    """Quotes are escaped there, and escaped again."""
    kept = []
    for form, text, secret in EXAMPLES:
        wrapped = f"first\n{text}\nlast"
        for _ in range(depth):
            wrapped = json.dumps({"stdout": wrapped})
        if secret in scrub_text(wrapped):
            kept.append((form.kind, text))
    assert kept == []


def test_scrubbing_twice_changes_nothing_more():
    """What is left of a secret is no secret to another rule."""
    for form, text, _ in EXAMPLES:
        once = scrub_text(text)
        assert scrub_text(once) == once, form.kind


def test_the_other_examples_around_one_change_nothing():
    """All in one text, where the place of one is near that of the next."""
    scrubbed = scrub_text("\n".join(text for _, text, _ in EXAMPLES))
    assert [form.kind for form, _, secret in EXAMPLES if secret in scrubbed] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "İstanbul datadog",
        "ß" * 50,
        "datadog: hello world",
        # A word, a number and a date of just the length.
        "linkedin: averylongaddress",
        "confluent = 1234567890123456",
        "linear, which is " + "a" * 32,
        # Longer and shorter than the form.
        "ghp_" + "a1" * 19,
        "ghp_" + "a1" * 17,
        "xghp_" + "a1" * 18,
        "[confluent-key removed], a1b2c3d4e5f6a7b8",
        "commit 0123456789abcdef0123456789abcdef01234567",
    ],
)
def test_what_holds_no_secret_stays(text):
    """Also where a letter is two in lower case."""
    assert without_vendor_secrets(text, forms()) == text


def test_of_two_that_overlap_nothing_stays():
    """The longer one is not cut where the other begins."""
    text = "rapidapi_key=abcde-ghp_" + "a1" * 18 + "-123"
    assert without_vendor_secrets(text, forms()) == "rapidapi_key=[rapidapi-key removed]"


def test_beginnings_without_end_take_no_time_without_end():
    """Each name and each beginning a thousand times over, in a process that has minutes for all."""
    script = (
        "from tracebridge.vendor_secrets import forms, without_vendor_secrets\n"
        "for form in forms():\n"
        "    for word in form.names or [part for part in form.parts if isinstance(part, str)]:\n"
        "        for text in (word * 1000, (word + '=') * 1000, (word + ' = aA1') * 500):\n"
        "            without_vendor_secrets(text, [form])\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=300, check=True)


def test_every_line_of_the_table_is_a_form_and_stands_there_once():
    """Also those that no text has asked for yet."""
    for form in forms():
        _compiled(form)
    assert len(forms()) > 200
    assert len({(form.names, form.parts) for form in forms()}) == len(forms())


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ghp_{A-Za-z0-9:36}", "line 2: not `kind  form`"),
        ("github-token  ghp_{A-Za-z0-9}", "line 2: not `kind  form`"),
        ("github-token  ghp_{A-Za-z0-9:36", "line 2: not `kind  form`"),
        ("some-webhook  " + "a" * 5000 + "{0-9:3", "line 2: not `kind  form`"),
        ("github-token  ghp_{[^a]:36}", "line 2: not `kind  form`"),
        ("github-token  ghp_{a-z:99999}", "line 2: not `kind  form`"),
        ("github-token  ghp_{a-z:36-20}", "line 2: more at least than at most"),
        ("some-token  {0-9a-f:40}", "line 2: nothing in it tells where to look"),
        ("some-token  @a|| {0-9a-f:40}", "line 2: nothing in it tells where to look"),
        ("github-token  @github", "line 2: not `kind  form`"),
        ("github-token  ghp_", "line 2: always the same text"),
    ],
)
def test_a_line_that_is_no_form_is_named(line, complaint):
    """With its number, for whoever adds one."""
    with pytest.raises(ValueError, match=r"^secret_forms\.txt, ") as raised:
        parse_forms(f"# ours\n{line}\n")
    assert complaint in str(raised.value)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(
    "line",
    [
        "ANTHROPIC_CUSTOM_HEADERS=X-Team: walrus-4711",
        "OTEL_EXPORTER_OTLP_HEADERS=x-team=walrus-4711,x-other=walrus-4712",
        "export GEMINI_CLI_CUSTOM_HEADERS='X-Team: walrus-4711'",
        '"ANTHROPIC_CUSTOM_HEADERS": "X-Team: walrus-4711"',
    ],
)
def test_variables_that_hold_headers_are_secret_whatever_the_header(line, depth):
    """As `env` shows them, and settings files."""
    text = f"A=1\n{line}\nB=2"
    for _ in range(depth):
        text = json.dumps({"stdout": text})
    scrubbed = scrub_text(text)
    assert "walrus" not in scrubbed
    assert "A=1" in scrubbed
    assert "B=2" in scrubbed


@pytest.mark.parametrize(
    "line",
    ["CORS_HEADERS = frozenset(names)", "X_HEADERS: Final = 3", "HOP_HEADERS = {'a': 1}"],
)
def test_code_about_headers_stays(line):
    """Where no header is given a value."""
    assert scrub_text(line) == line


# Spaces, digits and letters of Python's that are not ASCII, some of which match ASCII.
STRANGE = ["\u00a0", "\u2028", "\x1c", "\x0b", "\u0663", "é", "→", "\0", "\udc80", "😀"]
STRANGE += ["\u017f", "\u212a", "\u0130", "\u0131"]
WHOLE = [
    *test_scrub.test_secrets_go_by_what_is_said_of_them.pytestmark[0].args[1],
    *((key, key) for key in [*test_scrub.KEYS.values(), test_scrub.PEM, *test_scrub.LINES] if key),
    *((text, secret) for _, text, secret in EXAMPLES),
]
BETWEEN = [
    *(" = ", ": ", "'", '"', "\n", "\\n", " ", "=", ":", "@", "-----", "https://", "Bearer "),
    *("curl -u ", "--token ", "[secret removed]", "password", "secret_key", "db_pass", "token"),
    *("linkedin", "application key", "hunter2hunter2", "def f(key=None):", "1234567890123"),
    *("a_word_that_is_long_and_has_no_digit", *STRANGE),
]


@st.composite
def altered(draw):
    """Draw a text with a secret, whole or cut, escaped or not, with letters of other kinds."""
    text, _ = draw(st.sampled_from(WHOLE[:100]) | st.sampled_from(WHOLE))
    place = draw(st.integers(0, len(text)))
    strange = draw(st.sampled_from(STRANGE))
    letter = draw(st.sampled_from(text))
    ways = [
        text,
        text.upper(),
        json.dumps(text)[1:-1],
        text[place:],
        text[:place],
        text[:place] + strange + text[place:],
        text.replace(letter, strange),
    ]
    return draw(st.sampled_from(ways))


texts = st.lists(altered() | st.sampled_from(BETWEEN) | st.text(max_size=4), max_size=8)


def tried_in_full(text):
    """Scrub *text* with every rule and form, whether anything tells of it or not."""
    for _ in range(MOST_PASSES):
        before = text
        for kind, pattern in RULES:
            text = pattern.sub(partial(_marked, kind), text)
        text = without_vendor_secrets(text, forms())
        text = _without_key_tails(text, {KEY_END})
        text = ASSIGNMENT.sub(_marked_assignment, text)
        if text == before:
            break
    return text


@settings(max_examples=300, deadline=None)
@given(texts.map("".join))
def test_what_nothing_tells_of_is_not_there(text):
    """Trying only what is suspected finds as much as trying all there is."""
    assert scrub_text(text) == tried_in_full(text)


@pytest.mark.parametrize("strange", STRANGE, ids=ascii)
def test_letters_of_all_the_world_hide_no_secret(strange):
    """In place of spaces, and of letters that they match, in whatever case."""
    for text, _ in WHOLE[:100] + WHOLE[100::10]:
        for letter in " sSkKiI1":
            if letter in text:
                changed = text.replace(letter, strange)
                assert scrub_text(changed) == tried_in_full(changed)


def test_ids_and_names_are_left_alone_at_once():
    """What has no long piece and assigns nothing cannot hold a secret."""
    for text in ("Read", "claude-opus-5-5", "/work/a_file.py", "toolu_01", "", "Ünï.code"):
        assert scrub_text(text) == text

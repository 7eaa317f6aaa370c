"""What vendors give out goes by its form, in whatever way a tool shows it, in bounded time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import secret_examples

from tracebridge.scrub import scrub_text
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
        if secret in without_vendor_secrets(text, text.lower())
    ]
    assert kept == []


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("secret", WELL_KNOWN.values(), ids=WELL_KNOWN.keys())
def test_those_that_everybody_has_are_in_the_table(secret, surroundings):
    """What stands around them stays."""
    text = surroundings.format(secret)
    scrubbed = without_vendor_secrets(text, text.lower())
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
    assert without_vendor_secrets(text, text.lower()) == text


def test_of_two_that_overlap_nothing_stays():
    """The longer one is not cut where the other begins."""
    text = "rapidapi_key=abcde-ghp_" + "a1" * 18 + "-123"
    assert without_vendor_secrets(text, text.lower()) == "rapidapi_key=[rapidapi-key removed]"


def test_keywords_without_end_take_no_time_without_end():
    """Each keyword a thousand times over, in a process that has minutes for all of them."""
    script = (
        "from tracebridge.vendor_secrets import _forms_by_keyword, without_vendor_secrets\n"
        "for word in list(_forms_by_keyword()[0]):\n"
        "    for text in (word * 1000, (word + '=') * 1000, (word + ' = aA1') * 500):\n"
        "        without_vendor_secrets(text, text.lower())\n"
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

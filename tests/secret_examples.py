"""Examples of the secrets that `secret_forms.txt` describes, made by chance, the same each time."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator

from tracebridge.vendor_secrets import Form, Letters, forms

# How a value stands behind its name, in settings files and programs.
ASSIGNMENTS = (
    "{0}_KEY={1}",
    'export {0}="{1}"',
    "{0}.key: {1}",
    "'{0}' => '{1}'",
    '{{"{0}-key": "{1}"}}',
    'const {0}Key = "{1}"',
    "{0}_key := `{1}`",
    'put("{0}", "{1}")',
)
_PRINTABLE = string.digits + string.ascii_letters + string.punctuation


def secret(form: Form, chance: random.Random) -> str:
    while True:
        text = "".join(
            part if isinstance(part, str) else _letters(part, chance) for part in form.parts
        )
        # A form behind a name is only looked for where it is no word.
        if not form.names or (any(c.isdigit() for c in text) and any(c.isalpha() for c in text)):
            return text


def examples(each: int = 3, seed: int = 1) -> Iterator[tuple[Form, str, str]]:
    """Yield form, text and the secret in it, *each* times for every form."""
    chance = random.Random(seed)
    for form in forms():
        for _ in range(each):
            value = secret(form, chance)
            if not form.names:
                yield form, value, value
                continue
            name = chance.choice(form.names)
            name = chance.choice([name, name.upper(), name.title()])
            yield form, chance.choice(ASSIGNMENTS).format(name, value), value


def _letters(part: Letters, chance: random.Random) -> str:
    letters = re.findall(f"[{part.alphabet}]", _PRINTABLE)
    # The longest ones say no more than those of a usual length.
    length = chance.randint(part.least, min(part.most, part.least + 40))
    return "".join(chance.choices(letters, k=length))

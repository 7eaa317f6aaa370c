"""What a backend said, made fit for a message: short, on one line, without our keys."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 200


def excerpt(said: bytes, secrets: Iterable[str]) -> str:
    text = said[:4096].decode("utf-8", "replace")
    # Some backends repeat the key that they do not like.
    for secret in secrets:
        for part in (secret, secret.rpartition(" ")[2]):
            if len(part) > 3:
                text = text.replace(part, "***")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"

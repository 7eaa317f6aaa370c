"""Secrets out of texts, before anything is written. Pure.

Patterns of well-known keys and tokens, of private keys, of passwords in URLs, and of assignments
to names that say what they hold. What is taken out leaves a mark with its kind.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

from tracebridge.model import GatewayCall, Sighting

Record = TypeVar("Record")

# Kind and pattern; where a pattern has a group "secret", only that is taken out.
RULES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            "private-key",
            r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.{0,10000}?"
            r"(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)",
        ),
        ("api-key", r"\b(?:sk|pk|rk)[-_](?:[A-Za-z0-9]{1,12}[-_])*[A-Za-z0-9_-]{16,}"),
        ("aws-key", r"\b(?:AKIA|ASIA|AROA|AIDA)[0-9A-Z]{16}\b"),
        ("google-key", r"\bAIza[0-9A-Za-z_-]{30,}|\bya29\.[0-9A-Za-z_-]{20,}"),
        ("github-token", r"\b(?:gh[pousr]_[0-9A-Za-z]{20,}|github_pat_[0-9A-Za-z_]{20,})"),
        ("token", r"\b(?:glpat-|hf_|npm_|pypi-|dop_v1_|xox[abprs]-)[0-9A-Za-z_-]{16,}"),
        ("jwt", r"\beyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{4,}"),
        (
            "authorization",
            r"(?i)\b(?:bearer|basic|token)\s+(?P<secret>[0-9A-Za-z+/_.~=-]{12,})",
        ),
        (
            "authorization",
            r"(?i)\b(?:proxy-)?(?:authorization|x-api-key|x-goog-api-key|api-key)[\"']?\s*[:=]\s*"
            r"[\"']?(?:(?:bearer|basic|token)\s+)?(?P<secret>[^\s\"'\\,;]{4,})",
        ),
        (
            "password",
            r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'\\]{0,100}:(?P<secret>[^\s/@\"'\\]{1,200})@",
        ),
        (
            "secret",
            r"(?i)\b[A-Z0-9_.-]{0,60}(?:api_?key|access_?key|secret|token|passw(?:or)?d|passphrase|"
            r"credential)s?(?:_[A-Z0-9_]{1,40})?\\?[\"']?\s{0,3}[=:]\s{0,3}\\?[\"']?"
            r"(?P<secret>[^\s\"'\\,;(){}\[\]<>$]{6,})",
        ),
    )
)

# Names that carry "token" and are counts.
COUNTS = re.compile(r"^\d+$|^(?:true|false|null|None)$", re.IGNORECASE)


def scrub_text(text: str) -> str:
    """Return *text* with every secret that a rule knows replaced by a mark."""
    for kind, pattern in RULES:
        text = pattern.sub(partial(_marked, kind), text)
    return text


def scrub_sighting(sighting: Sighting) -> Sighting:
    return replace(sighting, part=_scrubbed(sighting.part))


def scrub_call(call: GatewayCall) -> GatewayCall:
    return replace(
        _scrubbed(call),
        request_headers={k: scrub_text(v) for k, v in call.request_headers.items()},
        response_headers={k: scrub_text(v) for k, v in call.response_headers.items()},
    )


def _scrubbed(record: Record) -> Record:
    changed: dict[str, Any] = {}
    for field in fields(record):  # type: ignore[arg-type]  # only records come here
        value = getattr(record, field.name)
        if isinstance(value, str):
            clean = scrub_text(value)
            if clean != value:
                changed[field.name] = clean
        elif field.name == "metadata":
            changed[field.name] = tuple((name, scrub_text(text)) for name, text in value)
    return replace(record, **changed) if changed else record  # type: ignore[type-var]  # as above


def _marked(kind: str, match: re.Match[str]) -> str:
    whole = match[0]
    if "secret" not in match.re.groupindex:
        return f"[{kind} removed]"
    if COUNTS.match(match["secret"]) or match["secret"].startswith("["):
        return whole
    start, end = match.span("secret")
    return f"{whole[: start - match.start()]}[{kind} removed]{whole[end - match.start() :]}"

"""Secrets out of texts, before anything is written. Pure.

Patterns of well-known keys and tokens, of private keys, of passwords in URLs and command lines,
and of assignments to names that say what they hold. What is taken out leaves a mark with its kind.
Every pattern runs in time linear in the text: each repetition is bounded, or eats what it passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, replace
from functools import cache, lru_cache, partial
from typing import Any, TypeAlias

from msgspec import structs

from tracebridge.model import GatewayCall, Part, Sighting
from tracebridge.suspicion import Suspicion, folded
from tracebridge.vendor_secrets import Form, forms, without_vendor_secrets

# Of the user's own; where one has a group "secret", only that is taken out.
Patterns: TypeAlias = Sequence[re.Pattern[str]]
Suspect: TypeAlias = re.Pattern[str] | Form
Suspects: TypeAlias = AbstractSet[Suspect]

# Where a word begins: text often comes as JSON, where a new line is a backslash and an n.
_START = r"(?:(?<![0-9A-Za-z_\\])|(?<=\\[nrt]))"
_PRIVATE_KEY = r"[A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
# Between the lines of a key: ends of lines, also escaped ones, and the numbers of a file viewer.
_BETWEEN = r"(?:\s|\\+[nrt]|\d{1,6}(?:\t|→|\\+t))"

# Kind and pattern. Where it has a group "secret", only that is taken out.
RULES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            "private-key",
            rf"-----BEGIN {_PRIVATE_KEY}(?:"
            rf"(?:[^-]|-(?!----)){{1,20000}}-{{5,6}}END {_PRIVATE_KEY}"
            # Without its end.
            rf"|(?:{_BETWEEN}{{0,8}}(?:[0-9A-Za-z+/=]{{16,}}|[A-Za-z-]{{3,20}}: [^\n\\]{{1,100}}))+"
            rf"(?:{_BETWEEN}{{1,8}}[0-9A-Za-z+/=]{{1,15}})?)",
        ),
        (
            "api-key",
            # Names of things may begin so too; keys have a digit or a long part without a break.
            rf"{_START}(?:sk|pk|rk|gsk)[-_](?=[0-9A-Za-z_-]{{0,100}}\d|[A-Za-z]{{20}})"
            r"[0-9A-Za-z_-]{16,}",
        ),
        (
            "aws-key",
            rf"{_START}(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA|A3T[A-Z0-9])[0-9A-Z]{{16}}\b",
        ),
        ("mailchimp-key", rf"{_START}[0-9a-f]{{32}}-us[0-9]{{1,2}}\b"),
        (
            "discord-token",
            # Only where three parts of just these lengths stand together.
            rf"{_START}[AMNO][0-9A-Za-z_-]{{23,25}}\.[0-9A-Za-z_-]{{6}}\.[0-9A-Za-z_-]{{27,40}}\b",
        ),
        (
            "google-key",
            rf"{_START}(?:AIza[0-9A-Za-z_-]{{30,}}|ya29\.[0-9A-Za-z_-]{{20,}}|GOCSPX-[0-9A-Za-z_-]{{20,}})",
        ),
        (
            "github-token",
            rf"{_START}(?:gh[pousr]_[0-9A-Za-z]{{20,}}|github_pat_[0-9A-Za-z_]{{20,}})",
        ),
        (
            "token",
            rf"{_START}(?:"
            r"(?:gl(?:pat|dt|rt|cbt|ptt|soat)-|xox[abceoprs]-|xapp-|pypi-|PMAK-|NRAK-|tskey-|pplx-|"
            r"xai-|ATATT3|hvs\.|dp\.(?:pt|st|ct)\.|AGE-SECRET-KEY-1)[0-9A-Za-z_=.-]{16,}"
            r"|(?:hf_|npm_|r8_|ntn_|figd_|lin_api_|whsec_|shp(?:at|ca|pa|ss)_|sbp_|dckr_pat_|nfp_|"
            r"gl(?:sa|c)_|rubygems_|d(?:op|oo|or)_v1_|sntrys_|pscale_tkn_|fw_)[0-9A-Za-z_-]{0,6}"
            r"[0-9A-Za-z]{20,}(?:_[0-9a-f]{8}\b|={1,2})?"
            r"|SG\.[0-9A-Za-z_-]{16,}\.[0-9A-Za-z_-]{16,}"
            r"|SK[0-9a-f]{32}\b|key-[0-9a-f]{32}\b|dapi[0-9a-f]{32}(?:-\d)?\b"
            r"|\d{8,10}:AA[0-9A-Za-z_-]{33}"
            r")",
        ),
        (
            "token",
            r"hooks\.slack\.com/services/(?P<secret>T[0-9A-Z]{4,20}/B[0-9A-Z]{4,20}/\w{8,40})",
        ),
        (
            "jwt",
            rf"{_START}eyJ[0-9A-Za-z_-]{{8,}}\.[0-9A-Za-z_-]{{8,}}(?:\.[0-9A-Za-z_-]*)?",
        ),
        (
            "headers",
            # A variable that holds headers: ANTHROPIC_CUSTOM_HEADERS, OTEL_EXPORTER_OTLP_HEADERS.
            rf"{_START}[A-Z][0-9A-Z_]{{2,60}}_HEADERS\\{{0,3}}[\"']?\s{{0,3}}[:=]\s{{0,3}}\\{{0,3}}[\"']?"
            r"(?P<secret>[A-Za-z][0-9A-Za-z-]{1,60}(?:=|: ?)[^\n\\\"'`]{1,2000})",
        ),
        (
            "authorization",
            rf"(?i){_START}(?:proxy-)?(?:authorization|x-api-key|x-goog-api-key|api-key)\\{{0,3}}"
            r"[\"']?\s{0,3}[:=]\s{0,3}\\{0,3}[\"']?(?:(?:bearer|basic|token|apikey|digest)\s{1,3})?"
            r"(?P<secret>[^\s\"'\\,;`]{4,})",
        ),
        (
            "authorization",
            # "Basic understanding" is none.
            rf"(?i){_START}(?:bearer|basic|token)\s{{1,3}}"
            r"(?P<secret>(?=[A-Za-z+/_.~=-]{0,100}\d|[A-Za-z+/_.~=-]{32})[0-9A-Za-z+/_.~=-]{12,})",
        ),
        (
            "cookie",
            r"(?i)\bcookie\\{0,3}[\"']?: ?\\{0,3}[\"']?(?P<secret>[\w.-]{1,80}=[^\"'\\\n]{4,})",
        ),
        (
            "password",
            rf"{_START}[A-Za-z][0-9A-Za-z+.-]{{1,20}}://[^\s/:@\"'\\]{{0,100}}:"
            r"(?P<secret>[^\s/@\"'\\]{1,200})@",
        ),
        (
            "password",
            r"\bcurl\b[^\n]{0,200}?\s(?:-u|--user)[ =]\\?[\"']?[^\s:\"'\\]{1,100}:"
            r"(?P<secret>[^\s\"'\\]{1,200})",
        ),
        (
            "password",
            r"\blogin\s{1,3}\S{1,100}\s{1,3}password\s{1,3}(?P<secret>[^\s\"'\\]{1,200})",
        ),
        (
            "secret",
            r"--[a-z0-9-]{0,30}(?:password|passwd|passphrase|secret|token|(?:api|access|secret)-?key)"
            r" \\?[\"']?(?P<secret>[^\s\"'\\$<-][^\s\"'\\]{3,})",
        ),
        (
            "secret",
            r"(?i)<[\w:.]{0,30}(?:password|secret|token|api_?key)>(?P<secret>[^<\s][^<\n]{3,500})</",
        ),
        (
            "secret",
            r"(?i)[?&][\w-]{0,30}(?:token|secret|password|passwd|api_?key|signature|sig)="
            r"(?P<secret>[^&\s\"'\\#]{3,})",
        ),
        (
            "password",
            r"(?i)(?<=;)\s?(?:password|pwd)=(?P<secret>[^;\s\"'\\]{3,})",
        ),
        # A key by a name that says no more than that, with a value that nobody would type.
        (
            "secret",
            r"[A-Z0-9]_KEY=\\?[\"']?(?P<secret>(?=[A-Za-z+/=_-]{0,40}\d)[0-9A-Za-z+/=_-]{16,})",
        ),
    )
)

# An assignment to a name that says what it holds, in the manner of any language.
_NAME = (
    r"(?:(?:api|access|account|subscription|signing|encryption|master|private|secret|auth)[_-]?key"
    r"|secret|token|passw(?:or)?d|passphrase|pwd|credential"
    r"|(?:db|user|admin|root|smtp|mail|ftp|ssh|mysql|redis|pg|proxy)_pass(?![wp]))"
)
_BEGINNING = (
    rf"(?P<name>{_NAME})s?"
    r"(?:_(?:key|base|value|hash|prod|production|dev|test|staging|live|old|new|b64|base64|\d{1,3})"
    r"){0,3}"
    r"(?P<between>\\{0,3}[\"'`]?\]?\??\s{0,3}(?:={1,3}>?|!={1,2}|:=?)\s{0,3})"
)
_QUOTED = (
    r"(?P<quote>\\{0,3}[\"'`])"
    # A quote that ends something is followed by what goes on after it.
    r"(?P<quoted>(?![\s)\]},;:+\\])(?:(?!(?P=quote))(?:\\[^\n]|[^\n\\])){3,2000})"
)
ASSIGNMENT = re.compile(rf"(?i){_BEGINNING}(?:{_QUOTED}|(?P<bare>[^\s\"'\\`]{{3,2000}}))")
# What assigns more than code, as `_marked_assignment` sees it.
_SECRET_ASSIGNMENT = (
    rf"(?i:{_BEGINNING}(?:{_QUOTED}|[^\s\"'\\`]{{0,2000}}\d))"
    r"|(?:KEY|SECRET|TOKEN|PASS|PWD|CREDENTIAL)\w{0,60}=[^\s\"'\\`]{3}"
)
# Looked for in lower case: the end of such a name where something is assigned, and the names that
# may begin so far before it. To look for these at once takes many times as long.
_ASSIGNED = re.compile(
    r"(?:key|secret|token|pass(?:w(?:or)?d|phrase)?|pwd|credential)"
    r"(?=s?(?:_[a-z0-9]{1,11}){0,3}\\{0,3}[\"'`]?\]?\??\s{0,3}[=!:])"
)
_LONGEST_BEGINNING = len("subscription_")
_NAMES = re.compile(_NAME)
# What stands for a secret and is none: a variable, a template, a mark (ours too), a type's name.
PLACEHOLDER = re.compile(
    r"(?i)[$<%{\[(*&]|your[_-]|x{3,}$|\.{3}"
    r"|(?:string|str|number|int|integer|bool|boolean|bytes|object|any|text|true|false|null|none|nil|"
    r"undefined|required|optional|hidden|password|secret|token|same-origin|include|omit|inherit|"
    r"bearer|basic)\b[\])},;|?]{0,4}(?:$|[\s=])"
)
NUMBER = re.compile(r"-?[\d.,_]{1,30}(?:[kKmM]|e\d{1,3})?[,;)\]}]{0,4}$")
# An expression of code: a name with a dot, a call or a subscript behind it.
EXPRESSION = re.compile(r"[A-Za-z_]\w{0,100}[?!]?(?:\.|->|::|[(\[<{])")
CALL = re.compile(r"[A-Za-z_][\w.]{0,100}(?:[(\[]$|\([^()]{0,200}\)|\[[^\[\]]{0,200}\])")
KEY_END = re.compile(rf"-{{5,6}}END {_PRIVATE_KEY}")
# What precedes the end of a private key, written backwards.
_BACKWARDS = r"(?:\s|[nrt]\\+|(?:\t|→|t\\+)\d{1,6})"
_LETTER = r"[0-9A-Za-z+/=](?!\\)"
KEY_TAIL = re.compile(
    rf"{_BACKWARDS}*+(?:{_LETTER}){{1,}}+(?:{_BACKWARDS}++(?:{_LETTER}){{16,}}+)*+"
)
KEY_TAIL_LENGTH = 8000
# A key that stood right behind another one has a beginning only once that one is gone.
MOST_PASSES = 8
SHORT = 128


def scrub_text(text: str, patterns: Patterns = ()) -> str:
    """Return *text* with every secret that a rule or one of *patterns* knows replaced by a mark."""
    for pattern in patterns:
        text = pattern.sub(partial(_marked, "secret"), text)
    return _short_scrubbed(text) if len(text) <= SHORT else _scrubbed(text)


# Ids and names come again and again.
@lru_cache(maxsize=4096)
def _short_scrubbed(text: str) -> str:
    return _scrubbed(text)


def _scrubbed(text: str) -> str:
    suspicion = _suspicion()
    for _ in range(MOST_PASSES):
        suspected = suspicion.of(text)
        before = text
        for step in _STEPS if suspected else ():
            scrubbed = step(text, suspected)
            if scrubbed != text:
                text, suspected = scrubbed, suspicion.of(scrubbed)
        if text == before:
            break
    return text


@cache
def _suspicion() -> Suspicion[Suspect]:
    patterns = [KEY_END, *(pattern for _, pattern in RULES)]
    return Suspicion(
        {pattern: pattern.pattern for pattern in patterns}
        | {ASSIGNMENT: _SECRET_ASSIGNMENT}
        | {form: form.sign() for form in forms()}
    )


def _without(kind: str, pattern: re.Pattern[str], text: str, suspected: Suspects) -> str:
    return pattern.sub(partial(_marked, kind), text) if pattern in suspected else text


def _without_forms(text: str, suspected: Suspects) -> str:
    return without_vendor_secrets(text, [each for each in suspected if isinstance(each, Form)])


def _without_key_tails(text: str, suspected: Suspects) -> str:
    """Take out private keys whose beginning was cut off."""
    pieces = []
    done = 0
    for end in KEY_END.finditer(text) if KEY_END in suspected else ():
        before = text[max(done, end.start() - KEY_TAIL_LENGTH) : end.start()]
        tail = KEY_TAIL.match(before[::-1])
        if tail is not None and len(tail[0].strip()) >= 16:
            pieces += [text[done : end.start() - tail.end()], "[private-key removed]"]
            done = end.end()
    return "".join([*pieces, text[done:]])


def _without_assigned(text: str, suspected: Suspects) -> str:
    """Do what replacing each match of ASSIGNMENT does, but try it only where it can begin."""
    pieces = []
    done = 0
    lower = folded(text).lower() if ASSIGNMENT in suspected else ""
    for assigned in _ASSIGNED.finditer(lower):
        first = max(done, assigned.start() - _LONGEST_BEGINNING)
        for name in _NAMES.finditer(lower, first, assigned.end()):
            if (match := ASSIGNMENT.match(text, name.start())) is not None:
                pieces += [text[done : match.start()], _marked_assignment(match)]
                done = match.end()
                break
    return "".join([*pieces, text[done:]]) if pieces else text


# What is tried where it is suspected, one after the other.
_STEPS: tuple[Callable[[str, Suspects], str], ...] = (
    *(partial(_without, kind, pattern) for kind, pattern in RULES),
    _without_forms,
    _without_key_tails,
    _without_assigned,
)


def scrub_sighting(sighting: Sighting, patterns: Patterns = ()) -> Sighting:
    part = sighting.part
    changed = _without_secrets(part, part.__struct_fields__, patterns)
    return structs.replace(sighting, part=structs.replace(part, **changed)) if changed else sighting


def scrub_call(call: GatewayCall, patterns: Patterns = ()) -> GatewayCall:
    return replace(
        call,
        **_without_secrets(call, (field.name for field in fields(call)), patterns),
        request_headers={k: scrub_text(v, patterns) for k, v in call.request_headers.items()},
        response_headers={k: scrub_text(v, patterns) for k, v in call.response_headers.items()},
    )


def _without_secrets(
    record: GatewayCall | Part, names: Iterable[str], patterns: Patterns
) -> dict[str, Any]:
    """Return those fields of a record that change when secrets are taken out."""
    changed: dict[str, Any] = {}
    for name in names:
        value = getattr(record, name)
        if isinstance(value, str):
            clean = scrub_text(value, patterns)
            if clean != value:
                changed[name] = clean
        elif name == "metadata":
            changed[name] = tuple((tag, scrub_text(text, patterns)) for tag, text in value)
    return changed


def _marked(kind: str, match: re.Match[str]) -> str:
    if "secret" not in match.re.groupindex:
        return f"[{kind} removed]"
    return match[0] if PLACEHOLDER.match(match["secret"]) else _replaced(match, "secret", kind)


def _marked_assignment(match: re.Match[str]) -> str:
    value = match["quoted"] or match["bare"]
    counted = match["name"].lower() == "token" and NUMBER.match(value)
    if PLACEHOLDER.match(value) or counted:
        return match[0]
    if match["quoted"] is not None:
        return _replaced(match, "quoted", "secret")
    if match["between"] == "=" and match["name"].isupper():
        # As in a .env file or a dump of an environment: what stands there is the value itself.
        code = CALL.match(value) is not None
    else:
        typed = len(value) < 6 or not any(character.isdigit() for character in value)
        code = typed or EXPRESSION.match(value) is not None
    return match[0] if code else _replaced(match, "bare", "secret")


def _replaced(match: re.Match[str], group: str, kind: str) -> str:
    start, end = (place - match.start() for place in match.span(group))
    return f"{match[0][:start]}[{kind} removed]{match[0][end:]}"

"""Secrets out of texts, before anything is written. Pure.

Patterns of well-known keys and tokens, of private keys, of passwords in URLs and command lines,
and of assignments to names that say what they hold. What is taken out leaves a mark with its kind.
Every pattern runs in time linear in the text: each repetition is bounded, or eats what it passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import lru_cache, partial
from typing import Any, TypeAlias, TypeVar

from tracebridge.model import GatewayCall, Sighting
from tracebridge.vendor_secrets import long_words, without_vendor_secrets

Record = TypeVar("Record")
# Of the user's own; where one has a group "secret", only that is taken out.
Patterns: TypeAlias = Sequence[re.Pattern[str]]

# Where a word begins: text often comes as JSON, where a new line is a backslash and an n.
_START = r"(?:(?<![0-9A-Za-z_\\])|(?<=\\[nrt]))"
_PRIVATE_KEY = r"[A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
# Between the lines of a key: ends of lines, also escaped ones, and the numbers of a file viewer.
_BETWEEN = r"(?:\s|\\+[nrt]|\d{1,6}(?:\t|→|\\+t))"

VENDOR_HINTS = (
    "glpat- gldt- glrt- glcbt- glptt- glsoat- xox xapp- pypi- pmak- nrak- tskey- pplx- xai- atatt3 "
    "hvs. dp.pt. dp.st. dp.ct. age-secret-key hf_ npm_ r8_ ntn_ figd_ lin_api_ whsec_ shpat_ shpca_ "
    "shppa_ shpss_ sbp_ dckr_pat_ nfp_ glsa_ glc_ rubygems_ dop_v1_ doo_v1_ dor_v1_ sntrys_ "
    "pscale_tkn_ fw_ sg. sk key- dapi :aa"
)
# Kind, what a text must hold in lower case to be worth the pattern, and the pattern. Where it has
# a group "secret", only that is taken out. If what it finds is always one piece without a break, its
# least length stands before the hints, and a text is searched only if it has a piece as long.
RULES: tuple[tuple[str, int, tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (kind, least, tuple(hints.split(" ")), re.compile(pattern))
    for kind, least, hints, pattern in (
        (
            "private-key",
            0,
            "private key",
            rf"-----BEGIN {_PRIVATE_KEY}(?:"
            rf"(?:[^-]|-(?!----)){{1,20000}}-{{5,6}}END {_PRIVATE_KEY}"
            # Without its end.
            rf"|(?:{_BETWEEN}{{0,8}}(?:[0-9A-Za-z+/=]{{16,}}|[A-Za-z-]{{3,20}}: [^\n\\]{{1,100}}))+"
            rf"(?:{_BETWEEN}{{1,8}}[0-9A-Za-z+/=]{{1,15}})?)",
        ),
        (
            "api-key",
            19,
            "sk- sk_ pk- pk_ rk- rk_",
            # Names of things may begin so too; keys have a digit or a long part without a break.
            rf"{_START}(?:sk|pk|rk|gsk)[-_](?=[0-9A-Za-z_-]{{0,100}}\d|[A-Za-z]{{20}})"
            r"[0-9A-Za-z_-]{16,}",
        ),
        (
            "aws-key",
            20,
            "akia asia aroa aida abia acca a3t",
            rf"{_START}(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA|A3T[A-Z0-9])[0-9A-Z]{{16}}\b",
        ),
        ("mailchimp-key", 36, "-us", rf"{_START}[0-9a-f]{{32}}-us[0-9]{{1,2}}\b"),
        (
            "discord-token",
            59,
            ".",
            # Only where three parts of just these lengths stand together.
            rf"{_START}[AMNO][0-9A-Za-z_-]{{23,25}}\.[0-9A-Za-z_-]{{6}}\.[0-9A-Za-z_-]{{27,40}}\b",
        ),
        (
            "google-key",
            25,
            "aiza ya29. gocspx-",
            rf"{_START}(?:AIza[0-9A-Za-z_-]{{30,}}|ya29\.[0-9A-Za-z_-]{{20,}}|GOCSPX-[0-9A-Za-z_-]{{20,}})",
        ),
        (
            "github-token",
            24,
            "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
            rf"{_START}(?:gh[pousr]_[0-9A-Za-z]{{20,}}|github_pat_[0-9A-Za-z_]{{20,}})",
        ),
        (
            "token",
            20,
            VENDOR_HINTS,
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
            0,
            "hooks.slack.com",
            r"hooks\.slack\.com/services/(?P<secret>T[0-9A-Z]{4,20}/B[0-9A-Z]{4,20}/\w{8,40})",
        ),
        (
            "jwt",
            20,
            "eyj",
            rf"{_START}eyJ[0-9A-Za-z_-]{{8,}}\.[0-9A-Za-z_-]{{8,}}(?:\.[0-9A-Za-z_-]*)?",
        ),
        (
            "headers",
            0,
            "_headers",
            # A variable that holds headers: ANTHROPIC_CUSTOM_HEADERS, OTEL_EXPORTER_OTLP_HEADERS.
            rf"{_START}[A-Z][0-9A-Z_]{{2,60}}_HEADERS\\{{0,3}}[\"']?\s{{0,3}}[:=]\s{{0,3}}\\{{0,3}}[\"']?"
            r"(?P<secret>[A-Za-z][0-9A-Za-z-]{1,60}(?:=|: ?)[^\n\\\"'`]{1,2000})",
        ),
        (
            "authorization",
            0,
            "authorization api-key",
            rf"(?i){_START}(?:proxy-)?(?:authorization|x-api-key|x-goog-api-key|api-key)\\{{0,3}}"
            r"[\"']?\s{0,3}[:=]\s{0,3}\\{0,3}[\"']?(?:(?:bearer|basic|token|apikey|digest)\s{1,3})?"
            r"(?P<secret>[^\s\"'\\,;`]{4,})",
        ),
        (
            "authorization",
            0,
            "bearer basic token",
            # "Basic understanding" is none.
            rf"(?i){_START}(?:bearer|basic|token)\s{{1,3}}"
            r"(?P<secret>(?=[A-Za-z+/_.~=-]{0,100}\d|[A-Za-z+/_.~=-]{32})[0-9A-Za-z+/_.~=-]{12,})",
        ),
        (
            "cookie",
            0,
            "cookie",
            r"(?i)\bcookie\\{0,3}[\"']?: ?\\{0,3}[\"']?(?P<secret>[\w.-]{1,80}=[^\"'\\\n]{4,})",
        ),
        (
            "password",
            0,
            "://",
            rf"{_START}[A-Za-z][0-9A-Za-z+.-]{{1,20}}://[^\s/:@\"'\\]{{0,100}}:"
            r"(?P<secret>[^\s/@\"'\\]{1,200})@",
        ),
        (
            "password",
            0,
            "curl",
            r"\bcurl\b[^\n]{0,200}?\s(?:-u|--user)[ =]\\?[\"']?[^\s:\"'\\]{1,100}:"
            r"(?P<secret>[^\s\"'\\]{1,200})",
        ),
        (
            "password",
            0,
            "login",
            r"\blogin\s{1,3}\S{1,100}\s{1,3}password\s{1,3}(?P<secret>[^\s\"'\\]{1,200})",
        ),
        (
            "secret",
            0,
            "--",
            r"--[a-z0-9-]{0,30}(?:password|passwd|passphrase|secret|token|(?:api|access|secret)-?key)"
            r" \\?[\"']?(?P<secret>[^\s\"'\\$<-][^\s\"'\\]{3,})",
        ),
        (
            "secret",
            0,
            "<",
            r"(?i)<[\w:.]{0,30}(?:password|secret|token|api_?key)>(?P<secret>[^<\s][^<\n]{3,500})</",
        ),
        (
            "secret",
            0,
            "?",
            r"(?i)[?&][\w-]{0,30}(?:token|secret|password|passwd|api_?key|signature|sig)="
            r"(?P<secret>[^&\s\"'\\#]{3,})",
        ),
        (
            "password",
            0,
            "password= pwd=",
            r"(?i)(?<=;)\s?(?:password|pwd)=(?P<secret>[^;\s\"'\\]{3,})",
        ),
        # A key by a name that says no more than that, with a value that nobody would type.
        (
            "secret",
            0,
            "_key=",
            r"[A-Z0-9]_KEY=\\?[\"']?(?P<secret>(?=[A-Za-z+/=_-]{0,40}\d)[0-9A-Za-z+/=_-]{16,})",
        ),
    )
)

# An assignment to a name that says what it holds, in the manner of any language.
ASSIGNMENT = re.compile(
    r"(?i)(?P<name>(?:api|access|account|subscription|signing|encryption|master|private|secret|auth)"
    r"[_-]?key|secret|token|passw(?:or)?d|passphrase|pwd|credential|"
    r"(?:db|user|admin|root|smtp|mail|ftp|ssh|mysql|redis|pg|proxy)_pass)s?"
    r"(?:_(?:key|base|value|hash|prod|production|dev|test|staging|live|old|new|b64|base64|\d{1,3})"
    r"){0,3}"
    r"(?P<between>\\{0,3}[\"'`]?\]?\??\s{0,3}(?:={1,3}>?|!={1,2}|:=?)\s{0,3})"
    r"(?:(?P<quote>\\{0,3}[\"'`])"
    # A quote that ends something is followed by what goes on after it.
    r"(?P<quoted>(?![\s)\]},;:+\\])(?:(?!(?P=quote))(?:\\[^\n]|[^\n\\])){3,2000})"
    r"|(?P<bare>[^\s\"'\\`]{3,2000}))"
)
ASSIGNMENT_HINTS = ("key", "secret", "token", "passw", "passphrase", "pwd", "credential", "_pass")
# What may follow such a hint where something is assigned, in lower case; and how far before the hint
# its name can begin.
ASSIGNS = re.compile(r"(?:or)?d?s?(?:_[a-z0-9]{1,11}){0,3}\\{0,3}[\"'`]?\]?\??\s{0,3}[=!:]")
LONGEST_BEGINNING = len("subscription_")
# Ids, names and paths: nothing is assigned, no line has an end, and no option has a value.
UNSUSPICIOUS = re.compile(r"[\w./@-]*")
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
    for _ in range(MOST_PASSES):
        scrubbed = _scrubbed_once(text)
        if scrubbed == text:
            break
        text = scrubbed
    return text


def _scrubbed_once(text: str) -> str:
    before, words = text, long_words(text)
    if not words and UNSUSPICIOUS.fullmatch(text):
        return text
    lower = text.lower()
    long_lower = b"\n".join(word for _, word in words).lower().decode()
    longest = max((len(word) for _, word in words), default=0)
    # No pattern is tried in vain: of most texts this leaves two or three.
    for kind, least, hints, pattern in RULES:
        if least > longest:
            continue
        for hint in hints:
            if hint in (long_lower if least else lower):
                text = pattern.sub(partial(_marked, kind), text)
                break
    text = without_vendor_secrets(text, lower, words if text == before else None)
    if "private key" in lower:
        text = _without_key_tails(text)
    return _without_assigned(text)


def _without_assigned(text: str) -> str:
    """Do what replacing each match of ASSIGNMENT does, but try it only where it can begin."""
    lower = text.lower()
    hints = sorted(
        {match.start() - len(hint) for hint in ASSIGNMENT_HINTS for match in _behind(hint, lower)}
    )
    if hints and len(lower) != len(text):
        # Some letters become two: then places in one are not places in the other.
        return ASSIGNMENT.sub(_marked_assignment, text)
    pieces = []
    done = 0
    for hint in hints:
        for start in range(max(done, hint - LONGEST_BEGINNING), hint + 1):
            if (match := ASSIGNMENT.match(text, start)) is not None:
                pieces += [text[done:start], _marked_assignment(match)]
                done = match.end()
                break
    return "".join([*pieces, text[done:]]) if pieces else text


def _behind(hint: str, lower: str) -> Iterator[re.Match[str]]:
    """Yield what stands behind each *hint* after which something may be assigned."""
    place = lower.find(hint)
    while place >= 0:
        if (match := ASSIGNS.match(lower, place + len(hint))) is not None:
            yield match
        place = lower.find(hint, place + 1)


def scrub_sighting(sighting: Sighting, patterns: Patterns = ()) -> Sighting:
    return replace(sighting, part=_without_secrets(sighting.part, patterns))


def scrub_call(call: GatewayCall, patterns: Patterns = ()) -> GatewayCall:
    return replace(
        _without_secrets(call, patterns),
        request_headers={k: scrub_text(v, patterns) for k, v in call.request_headers.items()},
        response_headers={k: scrub_text(v, patterns) for k, v in call.response_headers.items()},
    )


def _without_secrets(record: Record, patterns: Patterns) -> Record:
    changed: dict[str, Any] = {}
    for field in fields(record):  # type: ignore[arg-type]  # only records come here
        value = getattr(record, field.name)
        if isinstance(value, str):
            clean = scrub_text(value, patterns)
            if clean != value:
                changed[field.name] = clean
        elif field.name == "metadata":
            changed[field.name] = tuple((name, scrub_text(text, patterns)) for name, text in value)
    return replace(record, **changed) if changed else record  # type: ignore[type-var]  # as above


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


def _without_key_tails(text: str) -> str:
    """Take out private keys whose beginning was cut off."""
    pieces = []
    done = 0
    for end in KEY_END.finditer(text):
        before = text[max(done, end.start() - KEY_TAIL_LENGTH) : end.start()]
        tail = KEY_TAIL.match(before[::-1])
        if tail is not None and len(tail[0].strip()) >= 16:
            pieces += [text[done : end.start() - tail.end()], "[private-key removed]"]
            done = end.end()
    return "".join([*pieces, text[done:]])

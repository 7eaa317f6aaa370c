"""`X-Data-Respan-Params`: how Respan's gateway is told whose a request is and how to route it. Pure.

Base64 of a JSON object. What the client put there stays as it is; of two places where a parameter
stands Respan itself heeds the body before this header.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

HEADER = "X-Data-Respan-Params"
# What clients of before the change of name send.
LEGACY_HEADER = "X-Data-Keywordsai-Params"
# Many servers refuse a header field of more than 8 kB, and with it the request.
LONGEST = 6 * 1024


class NotMergedError(ValueError):
    """What a client sent cannot be added to; the text says why."""


def merged(sent: str | None, ours: Mapping[str, Any]) -> str:
    """Return *sent*, as the header has it, with what it does not say from *ours*.

    Raise NotMergedError where *sent* cannot be read, or the whole would be too long.
    """
    theirs = {} if sent is None else _decoded(sent)
    both = {**ours, **theirs}
    metadata = ours.get("metadata")
    if isinstance(metadata, dict) and isinstance(theirs.get("metadata"), dict):
        both["metadata"] = {**metadata, **theirs["metadata"]}
    try:
        text = json.dumps(both, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise NotMergedError("it holds what JSON has no form for") from error
    header = base64.b64encode(text.encode()).decode()
    if len(header) > LONGEST:
        raise NotMergedError(f"with what there is to add it would be longer than {LONGEST} bytes")
    return header


def _decoded(sent: str) -> dict[str, Any]:
    try:
        text = base64.b64decode(sent + "=" * (-len(sent) % 4), validate=True)
        document = json.loads(text)
    # UnicodeDecodeError and binascii.Error are ValueErrors.
    except (ValueError, RecursionError) as error:
        raise NotMergedError("it is no JSON in base64") from error
    if not isinstance(document, dict):
        raise NotMergedError("it is no JSON object")
    return document

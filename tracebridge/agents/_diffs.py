"""Unified diffs of what an agent says that it wrote, without their heads."""

from __future__ import annotations

import difflib


def diff_lines(old: str, new: str) -> list[str]:
    """Return the hunks of a unified diff, line by line."""
    before, after = old.splitlines(), new.splitlines()
    if before or not after:
        return list(difflib.unified_diff(before, after, lineterm=""))[2:]
    # A new file, which may be long: nothing to compare it with.
    count = "" if len(after) == 1 else f",{len(after)}"
    return [f"@@ -0,0 +1{count} @@", *(f"+{line}" for line in after)]

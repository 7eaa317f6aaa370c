"""What hook payloads and chat lines have in common: times, tools, edits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import orjson

from tracebridge.fields import count_of, dict_of, text_of
from tracebridge.model import FileEdit, Prompt

SLUG = "gemini-cli"
EDITING_TOOLS = frozenset({"write_file", "replace"})


def prompt(text: str, time_ns: int) -> Prompt:
    # Hook and chat file have no id in common for a prompt but its text.
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Prompt(key=key, text=text, origin="human", start_ns=time_ns)


def input_digest(name: str | None, tool_input: Any) -> str | None:
    if name is None:
        return None
    data = orjson.dumps([name, tool_input], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()[:16]


def exit_code_of(name: str | None, output: str | None) -> int | None:
    """Return the exit code that a shell command's output tells where it is not 0."""
    if name != "run_shell_command" or output is None:
        return None
    # Behind what the command printed, which may look like anything.
    found = re.findall(r"^Exit Code: (\d{1,5})$", output, re.MULTILINE)
    return int(found[-1]) if found else None


def file_edits(
    tool_key: str, name: str | None, tool_input: Any, display: Any, *, failed: bool
) -> Iterator[FileEdit]:
    """Yield the file edit of an editing tool, from what the user was shown of it."""
    shown = dict_of(display)
    if name not in EDITING_TOOLS or not (failed or shown):
        return
    counts = dict_of(shown.get("diffStat"))
    yield FileEdit(
        key=f"{tool_key}:0",
        tool_key=tool_key,
        path=text_of(dict_of(tool_input), "file_path") or text_of(shown, "filePath"),
        operation=None if failed else "create" if shown.get("isNewFile") is True else "update",
        lines_added=_sum(counts, "model_added_lines", "user_added_lines"),
        lines_removed=_sum(counts, "model_removed_lines", "user_removed_lines"),
        diff=text_of(shown, "fileDiff"),
        failed=failed,
    )


def _sum(counts: dict[str, Any], *names: str) -> int | None:
    known = [count for name in names if (count := count_of(counts, name)) is not None]
    return sum(known) if known else None

"""What hook payloads and transcript lines have in common: tools, edits, prompts, usage."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import orjson
from msgspec.structs import replace

from tracebridge.agents._diffs import diff_lines
from tracebridge.fields import as_json, count_of, dict_of, dicts_in, text_of, texts_in
from tracebridge.model import FileEdit, Prompt, ToolCall, Usage

SLUG = "claude-code"

EDITING_TOOLS = frozenset({"Write", "Edit", "MultiEdit", "NotebookEdit"})


def prompt(
    text: str, time_ns: int, *, origin: str | None = None, mid_turn: bool | None = None
) -> Prompt:
    if text.startswith("<task-notification>"):
        origin = "task_notification"
    elif text.startswith(("<command-name>", "<command-message>")):
        origin = "command"
    # Hook and transcript have no id in common for a prompt but its text.
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Prompt(key=key, text=text, origin=origin, start_ns=time_ns, mid_turn=mid_turn)


def tool_call(
    key: str,
    name: str | None,
    tool_input: Any,
    payload: dict[str, Any],
    *,
    start_ns: int | None = None,
    end_ns: int | None = None,
    duration_ns: int | None = None,
    output: str | None = None,
    error_type: str | None = None,
    error_message: str | None = None,
    exit_code: int | None = None,
) -> ToolCall:
    return ToolCall(
        key=key,
        name=name,
        start_ns=start_ns,
        end_ns=end_ns,
        duration_ns=duration_ns,
        input=as_json(tool_input),
        output=output,
        error_type=error_type,
        error_message=error_message,
        exit_code=exit_code,
        input_digest=input_digest(name, tool_input),
        mcp_server=text_of(dict_of(payload.get("mcp_server")), "name"),
    )


def file_edits(
    tool_id: str, name: str | None, tool_input: Any, response: Any, *, failed: bool
) -> Iterator[FileEdit]:
    """Yield the file edit of an editing tool, from its result or else from what was asked."""
    if name not in EDITING_TOOLS or not isinstance(tool_input, dict):
        return
    asked = tool_input
    edit = FileEdit(
        key=f"{tool_id}:0",
        tool_key=tool_id,
        path=text_of(asked, "file_path") or text_of(asked, "notebook_path"),
        failed=failed,
    )
    if failed:
        yield edit
        return
    result = dict_of(response)
    hunks = dicts_in(result.get("structuredPatch"))
    operation = text_of(result, "type") or ("update" if name != "Write" else None)
    if hunks:
        lines = [
            text for hunk in hunks for text in (_hunk_head(hunk), *texts_in(hunk.get("lines")))
        ]
    else:
        old = text_of(asked, "old_string") or ""
        new = text_of(asked, "new_string") or text_of(asked, "content") or ""
        new = new or text_of(asked, "new_source") or ""
        lines = diff_lines(old, new)
    yield replace(
        edit,
        operation=operation,
        lines_added=sum(line.startswith("+") for line in lines),
        lines_removed=sum(line.startswith("-") for line in lines),
        diff="\n".join(lines) or None,
    )


def _hunk_head(hunk: dict[str, Any]) -> str:
    old, new = (f"{hunk.get(s + 'Start')},{hunk.get(s + 'Lines')}" for s in ("old", "new"))
    return f"@@ -{old} +{new} @@"


def usage_of(usage: dict[str, Any]) -> Usage:
    read = count_of(usage, "cache_read_input_tokens")
    write = count_of(usage, "cache_creation_input_tokens")
    fresh = count_of(usage, "input_tokens")
    return Usage(
        input_tokens=None if fresh is None else fresh + (read or 0) + (write or 0),
        output_tokens=count_of(usage, "output_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=write,
        reasoning_tokens=count_of(dict_of(usage.get("output_tokens_details")), "thinking_tokens"),
    )


def tool_error_type(message: str) -> str:
    if exit_code_of(message) is not None:
        return "exit_nonzero"
    if message.startswith(("The user doesn't want", "Permission to use")):
        return "permission_denied"
    return "timeout" if "timed out" in message[:200] else "tool_error"


def exit_code_of(message: str) -> int | None:
    match = re.match(r"(?:Error: )?Exit code (\d{1,5})\b", message)
    return int(match[1]) if match else None


def output_of(response: Any) -> str | None:
    if isinstance(response, dict):
        # The whole file before the edit; the diff tells what matters.
        response = {name: value for name, value in response.items() if name != "originalFile"}
    return response if isinstance(response, str) or response is None else as_json(response)


def input_digest(name: str | None, tool_input: Any) -> str | None:
    if name is None:
        return None
    data = orjson.dumps([name, tool_input], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()[:16]


def content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(text_of(block, "text") or "" for block in dicts_in(content))

"""What hook payloads and rollout lines have in common: prompts, tool names, patches."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from tracebridge.fields import as_json, dict_of, dicts_in, text_of
from tracebridge.model import FileEdit, Prompt

SLUG = "codex-cli"

APPLY_PATCH = "apply_patch"
# Hooks call the shell so, whatever the model called it.
_SHELL_IN_HOOKS = "Bash"
_SHELL = "exec_command"
_MCP = "mcp__"
_OPERATIONS = {"Add": "create", "Update": "update", "Delete": "delete"}
_CHANGES = {"add": "create", "update": "update", "delete": "delete"}


def prompt(text: str, time_ns: int, *, mid_turn: bool | None = None) -> Prompt:
    # Hook and rollout have no id in common for a prompt but its text.
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Prompt(key=key, text=text, start_ns=time_ns, mid_turn=mid_turn)


def tool_name(name: str | None, namespace: str | None = None) -> str | None:
    """Return a tool's name as the model knows it from the one that hooks give it."""
    if name == _SHELL_IN_HOOKS:
        return _SHELL
    if name is not None and namespace is not None and namespace.startswith(_MCP):
        return f"{namespace}__{name}"
    # Hooks write namespace and name as one word.
    return name and re.sub(r"^(?:collaboration|multi_agent_v\d)(?=[a-z])", "", name)


def mcp_server(name: str | None) -> str | None:
    """Return the MCP server in a tool's name."""
    if name is None or not name.startswith(_MCP):
        return None
    return name.removeprefix(_MCP).partition("__")[0] or None


def mcp_output(result: Any) -> str | None:
    """Return what an MCP server answered, as text where it is text."""
    said = [text_of(part, "text") for part in dicts_in(dict_of(result).get("content"))]
    if said and None not in said:
        return "\n".join(text for text in said if text is not None)
    return as_json(result)


def patched_files(tool_key: str, patch: str, cwd: str | None) -> Iterator[FileEdit]:
    """Yield what a patch asks for, file by file."""
    edit: FileEdit | None = None
    lines: list[str] = []
    for line in [*patch.splitlines(), "*** End Patch"]:
        head = re.match(r"\*\*\* (Add|Update|Delete) File: (.+)", line)
        if head or line.startswith("*** End Patch"):
            if edit is not None:
                yield _with_lines(edit, lines)
            edit, lines = None, []
        if head:
            path = posixpath.normpath(posixpath.join(cwd or "", head[2].strip()))
            edit = FileEdit(
                key=f"{tool_key}:{path}",
                tool_key=tool_key,
                path=path,
                operation=_OPERATIONS[head[1]],
            )
        elif line.startswith(("+", "-", " ", "@@")):
            lines.append(line)


def changed_file(tool_key: str, path: str, change: dict[str, Any], *, failed: bool) -> FileEdit:
    """Return the file edit that a change to one file is, as an item tells it."""
    kind = text_of(change, "type") or ""
    edit = FileEdit(
        key=f"{tool_key}:{posixpath.normpath(path)}",
        tool_key=tool_key,
        path=text_of(change, "move_path") or path,
        operation=_CHANGES.get(kind),
        failed=failed,
    )
    if kind == "update":
        lines = (text_of(change, "unified_diff") or "").splitlines()
    else:
        content = (text_of(change, "content") or "").splitlines()
        sign, count = ("+", len(content)) if kind == "add" else ("-", len(content))
        head = f"@@ -0,0 +1,{count} @@" if kind == "add" else f"@@ -1,{count} +0,0 @@"
        lines = [head, *(sign + line for line in content)]
    edit = _with_lines(edit, lines)
    # What failed changed nothing.
    return replace(edit, lines_added=None, lines_removed=None) if failed else edit


def _with_lines(edit: FileEdit, lines: list[str]) -> FileEdit:
    if not lines:
        return edit
    return replace(
        edit,
        lines_added=sum(line.startswith("+") for line in lines),
        lines_removed=sum(line.startswith("-") for line in lines),
        diff="\n".join(lines),
    )

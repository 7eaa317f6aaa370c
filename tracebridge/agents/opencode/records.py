"""Messages and their parts, as the plugin and the database tell them alike. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tracebridge.agents._diffs import diff_lines
from tracebridge.fields import as_json, count_of, dict_of, dicts_in, text_of
from tracebridge.model import (
    Compaction,
    FileEdit,
    ModelCall,
    Outcome,
    Part,
    Prompt,
    Subagent,
    Thinking,
    ToolCall,
    TurnEnd,
    Usage,
)

SLUG = "opencode"
OPERATIONS = {"add": "create", "delete": "delete"}
EDITING_TOOLS = frozenset({"apply_patch", "edit", "multiedit", "patch", "write"})
# The store's integers have 64 bits, in nanoseconds.
LATEST_MS = 2**43
# Without a word of the user's why, OpenCode stops there.
REJECTED = "The user rejected permission to use this specific tool call."
# How a message ends that is no answer.
UNFINISHED = frozenset({"tool-calls", "unknown"})


def time_ns_of(times: dict[str, Any], name: str) -> int | None:
    """Return a time given in milliseconds since the epoch."""
    value = count_of(times, name)
    return None if value is None or value >= LATEST_MS else value * 1_000_000


def prompt_of(
    info: dict[str, Any], key: str, text: str | None, origin: str | None = None
) -> Prompt:
    created_ns = time_ns_of(dict_of(info.get("time")), "created")
    return Prompt(key=key, text=text, origin=origin, start_ns=created_ns)


def message_parts(
    info: dict[str, Any],
    key: str,
    subagent: str | None,
    text: str | None = None,
    trigger: str | None = None,
) -> Iterator[Part]:
    """Yield what an assistant message tells once it is over.

    *text* is what it said, *trigger* who wanted it if it is a summary, as far as they are known.
    """
    times = dict_of(info.get("time"))
    end_ns = time_ns_of(times, "completed")
    error = dict_of(info.get("error"))
    finish = text_of(info, "finish")
    error_type, message = _error_of(error)
    if finish == "unknown":
        error_type, message = "stream_cut", "the stream ended before the answer did"
    elif finish is None and end_ns is not None and not error:
        # What it was stands in an event alone; OpenCode compacts the session and goes on.
        error_type = "no_answer"
    is_summary = info.get("summary") is True
    data = dict_of(error.get("data"))
    headers = dict_of(data.get("responseHeaders"))
    yield ModelCall(
        key=key,
        request_id=text_of(headers, "request-id") or text_of(headers, "x-request-id"),
        model=text_of(info, "modelID"),
        provider=text_of(info, "providerID"),
        start_ns=time_ns_of(times, "created"),
        # The end of a call that asked for tools is told by them.
        end_ns=None if finish == "tool-calls" else end_ns,
        usage=_usage_of(dict_of(info.get("tokens"))) if finish not in {None, "unknown"} else None,
        stop_reason=finish if error_type is None else None,
        status_code=count_of(data, "statusCode"),
        error_type=error_type,
        error_message=message,
        output_text=text,
        purpose="compaction" if is_summary else None,
    )
    if is_summary and subagent is None and (end_ns is not None or error):
        yield Compaction(
            key=key,
            trigger=trigger,
            start_ns=time_ns_of(times, "created"),
            end_ns=end_ns,
            error_type=error_type,
        )
        if trigger != "manual":
            return
    if end_ns is None and not error:
        return
    outcome = outcome_of(error)
    if end_ns is None or (
        outcome is Outcome.COMPLETED and (finish is None or finish in UNFINISHED)
    ):
        return
    if subagent is not None:
        yield Subagent(key=subagent, end_ns=end_ns, output=text)
    else:
        failed = outcome is Outcome.FAILED
        yield TurnEnd(
            key=f"{'error' if error else 'answer'}:{key}",
            end_ns=end_ns,
            outcome=outcome,
            message=message if failed else None if is_summary else text,
            error_type=error_type if failed else None,
        )


def outcome_of(error: dict[str, Any]) -> Outcome:
    if not error:
        return Outcome.COMPLETED
    aborted = text_of(error, "name") == "MessageAbortedError"
    return Outcome.INTERRUPTED if aborted else Outcome.FAILED


def error_type_of(error: dict[str, Any]) -> str | None:
    return _error_of(error)[0]


def part_parts(part: dict[str, Any], key: str, message: str, owner: str | None) -> Iterator[Part]:
    """Yield what a part tells of the message it belongs to."""
    kind = text_of(part, "type")
    times = dict_of(part.get("time"))
    if kind == "reasoning" and "end" in times:
        yield Thinking(
            key=key,
            call_key=message,
            start_ns=time_ns_of(times, "start"),
            end_ns=time_ns_of(times, "end"),
            text=text_of(part, "text"),
            redacted=not part.get("text"),
        )
        yield ModelCall(key=message, blocks=(key,))
    elif kind == "text" and "end" in times and not part.get("synthetic"):
        yield ModelCall(key=message, output_text=text_of(part, "text") or None, blocks=(key,))
    elif kind == "tool":
        yield from _tool_parts(part, message, owner)


def _tool_parts(part: dict[str, Any], message: str, owner: str | None) -> Iterator[Part]:
    key = text_of(part, "callID")
    state = dict_of(part.get("state"))
    status = text_of(state, "status")
    if not key or status not in {"running", "completed", "error"}:
        return
    name = text_of(part, "tool")
    asked, metadata = dict_of(state.get("input")), dict_of(state.get("metadata"))
    times = dict_of(state.get("time"))
    start_ns, end_ns = time_ns_of(times, "start"), time_ns_of(times, "end")
    exit_code = count_of(metadata, "exit")
    error_type = error_message = None
    if status == "error":
        error_message = text_of(state, "error") or "failed"
        error_type = _tool_error_type(error_message, metadata)
    elif exit_code:
        error_type, error_message = "exit_nonzero", f"exit code {exit_code}"
    yield ToolCall(
        key=key,
        name=name,
        start_ns=start_ns,
        end_ns=end_ns if status != "running" else None,
        input=as_json(asked),
        output=text_of(state, "output"),
        error_type=error_type,
        error_message=error_message,
        exit_code=exit_code,
    )
    yield ModelCall(key=message, end_ns=start_ns, tool_call_ids=(key,), blocks=(key,))
    if owner is None and error_message == REJECTED and end_ns is not None:
        yield TurnEnd(key=f"rejected:{key}", end_ns=end_ns, outcome=Outcome.INTERRUPTED)
    if name in EDITING_TOOLS and status != "running":
        yield from _file_edits(key, asked, metadata, failed=status == "error")
    child = text_of(metadata, "sessionId")
    if name == "task" and child:
        yield Subagent(
            key=child,
            type=text_of(asked, "subagent_type"),
            description=text_of(asked, "description"),
            tool_key=key,
            parent_key=owner,
            start_ns=start_ns,
        )


def _file_edits(
    tool: str, asked: dict[str, Any], metadata: dict[str, Any], *, failed: bool
) -> Iterator[FileEdit]:
    asked_path = text_of(asked, "filePath")
    files = dicts_in(metadata.get("files"))
    change = dict_of(metadata.get("filediff"))
    if failed:
        yield FileEdit(key=f"{tool}:0", tool_key=tool, path=asked_path, failed=True)
    elif files:
        for index, file in enumerate(files):
            yield _edit(
                f"{tool}:{index}",
                text_of(file, "filePath"),
                OPERATIONS.get(text_of(file, "type") or "", "update"),
                text_of(file, "patch") or text_of(file, "diff"),
                (count_of(file, "additions"), count_of(file, "deletions")),
            )
    elif change or "diff" in metadata:
        yield _edit(
            f"{tool}:0",
            text_of(change, "file") or asked_path,
            "update",
            text_of(change, "patch") or text_of(metadata, "diff"),
            (count_of(change, "additions"), count_of(change, "deletions")),
        )
    else:
        created = metadata.get("exists") is False
        content = text_of(asked, "content")
        # What an overwritten file held before is told nowhere.
        known = created and content is not None
        lines = diff_lines("", content or "") if known else []
        yield _edit(
            f"{tool}:0",
            text_of(metadata, "filepath") or asked_path,
            "create" if created else "update",
            "\n".join(lines) if known else None,
            (len(lines) - 1 if lines else 0, 0) if known else (None, None),
        )


def _edit(
    key: str,
    path: str | None,
    operation: str,
    diff: str | None,
    counts: tuple[int | None, int | None],
) -> FileEdit:
    diff = _without_head(diff)
    if diff is not None and diff.startswith("@@"):
        # Of a file that goes, OpenCode also counts what stands behind its last line: nothing.
        begun = [line[:1] for line in diff.splitlines()]
        counts = (begun.count("+"), begun.count("-"))
    return FileEdit(
        key=key,
        tool_key=key.rpartition(":")[0],
        path=path,
        operation=operation,
        lines_added=counts[0],
        lines_removed=counts[1],
        diff=diff,
        failed=False,
    )


def _without_head(diff: str | None) -> str | None:
    """Return a patch from its first hunk on: what stands before repeats the path."""
    if diff is None:
        return None
    return diff[max(diff.find("@@"), 0) :].rstrip("\n") or None


def _usage_of(tokens: dict[str, Any]) -> Usage:
    cache = dict_of(tokens.get("cache"))
    read, write = count_of(cache, "read"), count_of(cache, "write")
    fresh, said = count_of(tokens, "input"), count_of(tokens, "output")
    reasoning = count_of(tokens, "reasoning")
    return Usage(
        input_tokens=None if fresh is None else fresh + (read or 0) + (write or 0),
        output_tokens=None if said is None else said + (reasoning or 0),
        cache_read_tokens=read,
        cache_write_tokens=write,
        reasoning_tokens=reasoning,
    )


def _error_of(error: dict[str, Any]) -> tuple[str | None, str | None]:
    if not error:
        return None, None
    data = dict_of(error.get("data"))
    message = text_of(data, "message")
    if outcome_of(error) is Outcome.INTERRUPTED:
        return "interrupted", message
    status = count_of(data, "statusCode")
    if status is not None:
        return str(status), message
    if (message or "").startswith("Cannot connect"):
        return "connection_error", message
    return text_of(error, "name") or "unknown", message


def _tool_error_type(message: str, metadata: dict[str, Any]) -> str:
    if metadata.get("interrupted") is True or message.startswith("Tool execution aborted"):
        return "interrupted"
    if "rejected permission" in message or "rule which prevents" in message:
        return "permission_denied"
    return "tool_error"

"""Make the bytes of a session, or of all that is old, go from this machine; say what cannot.

What goes: spool files, what the store knows, what waits in the outbox. What is left is said: what
sinks took, what they wrote to files of their own, and the agent's own transcript.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tracebridge.ids import root_span_id
from tracebridge.model import GatewayCall, HookEvent
from tracebridge.spool import Spool, SpoolFile
from tracebridge.store import Forgotten, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetReport:
    spool_files: int
    stored: Forgotten
    # Damaged stores that were set aside: nobody can say what they hold.
    unreadable: tuple[Path, ...]


def forget_session(home: Path, session_id: str) -> ForgetReport:
    """Forget what has this session id, of whatever agent. Raise StoreError or OSError."""

    def is_meant(file: SpoolFile) -> bool:
        match file.content:
            case HookEvent() as event:
                # Agents name it differently; whatever speaks of it goes.
                return session_id.encode() in event.payload
            case GatewayCall() as call:
                return call.identity is not None and call.identity.session_id == session_id
        # A file that cannot be understood may still be read by whoever finds it.
        return session_id.encode() in file.path.read_bytes()

    return _forget(home, is_meant, lambda store: store.forget_session(session_id))


def forget_before(home: Path, time_ns: int) -> ForgetReport:
    """Forget turns that ended, and events that came, before *time_ns*; delivered or not."""

    def is_meant(file: SpoolFile) -> bool:
        match file.content:
            case HookEvent() as event:
                return event.time_ns < time_ns
            case GatewayCall() as call:
                return call.end_ns < time_ns
        return file.path.lstat().st_mtime_ns < time_ns

    return _forget(home, is_meant, lambda store: store.forget_older(time_ns))


def report_lines(report: ForgetReport) -> list[str]:
    """Return what was deleted and what could not be, for people."""
    stored = report.stored
    lines = [
        f"forgotten here: {len(stored.trace_ids)} turns with {stored.spans} spans"
        f" ({stored.waiting} were waiting to be sent), {report.spool_files} spool files"
    ]
    if stored.sinks:
        lines.append(
            "not deleted: what these took before; delete there the traces below: "
            + ", ".join(stored.sinks)
        )
        lines += [f"  {_there(trace_id, stored.within)}" for trace_id in stored.trace_ids]
    lines += [f"not deleted, the agent's own: {path}" for path in stored.transcripts]
    lines += [f"not deleted, unreadable; remove it: {path}" for path in report.unreadable]
    return lines


def _there(trace_id: str, within: Mapping[str, str]) -> str:
    """Return where a turn is to be found at a backend."""
    if trace_id not in within:
        return trace_id
    return f"{trace_id}, there in {within[trace_id]} below {root_span_id(trace_id)}"


def _forget(
    home: Path, is_meant: Callable[[SpoolFile], bool], of_store: Callable[[Store], Forgotten]
) -> ForgetReport:
    spool = Spool(home)
    spool_files = 0
    for path, together in groupby(spool.all_files(), lambda file: file.path):
        files = list(together)
        others = [file for file in files if not is_meant(file)]
        if len(others) < len(files):
            spool_files += 1
            calls = [file.content for file in others if isinstance(file.content, GatewayCall)]
            # Elsewhere lies what was taken in already, or never written to its end.
            if calls and path.parent == spool.new:
                spool.write_calls(calls)
            spool.remove(files[0])
    with Store(home) as store:
        stored = of_store(store)
        # What is deleted stays readable in the file and its log until they are written anew.
        store.compact()
    return ForgetReport(
        spool_files=spool_files,
        stored=stored,
        unreadable=tuple(sorted(home.glob("store.damaged-*"))),
    )

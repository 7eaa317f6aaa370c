"""Which turns people ask for: by agent, session, project, time, or because something failed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from tracebridge import semconv
from tracebridge.ids import root_span_id
from tracebridge.model import Span, Status
from tracebridge.store import Store, TurnRow
from tracebridge.tree import folder

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is asked for; what is None does not matter."""

    agent: str | None = None
    # The session's id, or how it begins.
    session: str | None = None
    # The project's id, or its folder's name or path.
    project: str | None = None
    errors: bool = False
    since_ns: int = 0
    until_ns: int | None = None

    def takes(self, row: TurnRow, spans: Sequence[Span]) -> bool:
        """Say whether a turn is asked for, as far as it is known."""
        return (
            self.agent in (None, row.agent)
            and row.session_id.startswith(self.session or "")
            and row.start_ns >= self.since_ns
            and (self.until_ns is None or row.start_ns < self.until_ns)
            and (self.project is None or self._is_project(spans))
            and (not self.errors or any(span.status is Status.ERROR for span in spans))
        )

    def turns(self, store: Store, limit: int | None = None) -> Iterator[tuple[TurnRow, list[Span]]]:
        """Yield the turns asked for with their spans, the latest first."""
        found = 0
        for row in store.find_turns(
            agent=self.agent,
            session_prefix=self.session or "",
            since_ns=self.since_ns,
            until_ns=self.until_ns,
        ):
            if limit is not None and found >= limit:
                return
            spans = store.spans(row.trace_id)
            if self.takes(row, spans):
                found += 1
                yield row, spans

    def _is_project(self, spans: Sequence[Span]) -> bool:
        roots = (span for span in spans if span.span_id == root_span_id(span.trace_id))
        return any(
            self.project in (folder(root), root.attributes.get(semconv.CWD)) for root in roots
        )


def parse_time(text: str, now_ns: int | None = None) -> int:
    """Return the moment that *text* means: `2h`, `7d` ago, or a date like 2026-11-01.

    Raise ValueError saying how to write one.
    """
    ago = re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip())
    if ago is not None:
        now_ns = time.time_ns() if now_ns is None else now_ns
        return max(now_ns - int(ago[1]) * UNITS_S[ago[2]] * 1_000_000_000, 0)
    try:
        # Without a zone it is the time of the place where the user sits.
        return max(int(datetime.fromisoformat(text.strip()).timestamp() * 1e9), 0)
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{text[:40]!r} is no time; write 30m, 2h, 7d, 4w or a date like 2026-11-01"
        ) from None

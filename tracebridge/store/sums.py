"""What turns come to, remembered, so that `stats` need not read all spans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tracebridge.store.tables import Tables

# By what sums are grouped, and the kind of rows that have it; "turn" for those of a turn as a whole.
SUM_GROUPS = {
    "day": ("turn", "strftime('%Y-%m-%d', start_ns / 1000000000, 'unixepoch', 'localtime')"),
    "project": ("turn", "iif(name = '', '(none)', name)"),
    "customer": ("turn", "iif(coalesce(customer_id, '') = '', '(none)', customer_id)"),
    "agent": ("turn", "agent"),
    "session": ("turn", "session_id"),
    "model": ("model", "name"),
    "tool": ("tool", "name"),
    "": ("turn", "''"),
}


class Sums(Tables):
    def not_summed_up(self) -> list[str]:
        """Return the turns that are not summed up as they are, and those that go on."""
        rows = self._all(
            "SELECT trace_id FROM turns WHERE state = 'open' OR (revision >"
            " (SELECT value FROM counters WHERE name = 'summed') AND NOT EXISTS"
            " (SELECT 1 FROM turn_sums WHERE turn_sums.trace_id = turns.trace_id))"
        )
        return [trace_id for (trace_id,) in rows]

    def put_sums(self, trace_id: str, sums: Iterable[Mapping[str, Any]]) -> None:
        """Keep what a turn comes to, one row for each kind and name, until it changes."""
        rows = list(sums)
        columns = ("trace_id", *rows[0])
        marks = ", ".join("?" for _ in columns)
        self._db.executemany(
            f"INSERT OR REPLACE INTO turn_sums ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608  # names of our own columns
            [(trace_id, *row.values()) for row in rows],
        )

    def summed_up_to(self) -> int:
        """Return up to which revision all turns are known to be summed up."""
        return int(self._one("SELECT value FROM counters WHERE name = 'summed'")[0])

    def note_summed_up(self, revision: int) -> None:
        self._db.execute("UPDATE counters SET value = ? WHERE name = 'summed'", (revision,))

    def sums(
        self,
        by: str,
        columns: Sequence[str],
        *,
        agent: str | None = None,
        session_prefix: str = "",
        project: str | None = None,
        errors: bool = False,
        since_ns: int = 0,
        until_ns: int | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Return sums over turns by a key of SUM_GROUPS, as far as turns have been summed up."""
        kind, group = SUM_GROUPS[by]
        totals = ", ".join(f"sum({column})" for column in columns)
        rows = self._all(
            f"SELECT {group}, {totals} FROM turns JOIN turn_sums USING (trace_id)"  # noqa: S608  # as above
            " WHERE kind = ?1 AND (?2 IS NULL OR agent = ?2)"
            " AND substr(session_id, 1, length(?3)) = ?3"
            " AND (?4 IS NULL OR EXISTS (SELECT 1 FROM turn_sums AS whole"
            " WHERE whole.trace_id = turns.trace_id AND whole.kind = 'turn'"
            " AND ?4 IN (whole.name, whole.cwd)))"
            " AND has_errors >= ?5 AND start_ns >= ?6 AND (?7 IS NULL OR start_ns < ?7)"
            " GROUP BY 1",
            (kind, agent, session_prefix, project, int(errors), since_ns, until_ns),
        )
        return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}

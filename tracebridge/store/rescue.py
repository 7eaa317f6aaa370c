"""Rows out of a damaged store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tracebridge.store.database import StoreError
from tracebridge.store.tables import Tables


class Rescue(Tables):
    def take_over(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Put whole rows into one of our tables, as far as they fit; return how many did."""
        columns = [name for _, name, *_ in self._all(f"PRAGMA table_info({table})")]
        values = ", ".join("?" for _ in columns)
        taken = 0
        for row in rows:
            try:
                self._db.execute(
                    f"INSERT OR REPLACE INTO {table} VALUES ({values})",  # noqa: S608  # as above
                    [row[name] for name in columns],
                )
            except (StoreError, KeyError, IndexError):
                # A value that the table does not take, or a column that came later.
                continue
            taken += 1
        return taken

    def untell(self) -> None:
        """Take all told spans for untold, so that they are told once more."""
        for table in ("spans", "turns"):
            self._db.execute(f"UPDATE {table} SET told = 0")  # noqa: S608  # as above
        self._db.execute("UPDATE foreign_spans SET told_as = NULL")
        self._db.execute("DELETE FROM outbox WHERE refused IS NULL")

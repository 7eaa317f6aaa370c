"""Sessions: of which there is something to tell, which go to no sink, which are not recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tracebridge.store.database import BUSY_S, StoreError, is_locked, lock_file
from tracebridge.store.tables import Tables


class Sessions(Tables):
    @contextmanager
    def taking_in(self) -> Iterator[None]:
        """Be the only process that takes in and tells. Raise StoreError if another is for long."""
        path = self.path.with_name("intake.lock")
        with lock_file(path) as lock:
            deadline = time.monotonic() + BUSY_S
            while not is_locked(lock, wait=False):
                if time.monotonic() > deadline:
                    raise StoreError(f"{path}: another watcher holds it; end that and try again")
                time.sleep(0.01)
            yield

    def intakes(self) -> int:
        """Return a number that is another one once any process has taken something in."""
        return int(self._one("SELECT value FROM counters WHERE name = 'intake'")[0])

    def _count_intake(self) -> None:
        self._db.execute("UPDATE counters SET value = value + 1 WHERE name = 'intake'")

    def _unsettle(self, agent: str, session_id: str) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO unsettled_sessions VALUES (?, ?)", (agent, session_id)
        )

    def settle(self, agent: str, session_id: str) -> None:
        """Note that all that came in of a session is told; in one step with telling it."""
        self._db.execute(
            "DELETE FROM unsettled_sessions WHERE agent = ? AND session_id = ?", (agent, session_id)
        )

    def keep_local(self, agent: str, session_id: str, until_ns: int) -> None:
        """Note that turns of a session that began before *until_ns* go to no sink by themselves."""
        self._db.execute(
            "INSERT OR IGNORE INTO local_sessions VALUES (?, ?, ?)", (agent, session_id, until_ns)
        )

    def local_until(self, agent: str, session_id: str) -> int:
        """Return until when the turns of a session stay here; 0 if they go to the sinks."""
        row = self._maybe(
            "SELECT until_ns FROM local_sessions WHERE agent = ? AND session_id = ?",
            (agent, session_id),
        )
        return 0 if row is None else int(row[0])

    def open_sessions(self) -> list[tuple[str, str]]:
        """Return agent and id of the sessions of which not everything is told yet."""
        rows = self._all(
            "SELECT agent, session_id FROM unsettled_sessions"
            " UNION SELECT DISTINCT agent, session_id FROM turns WHERE told = 0"
            " UNION SELECT DISTINCT agent, session_id FROM calls"
            " WHERE trace_id IS NULL AND session_id IS NOT NULL"
        )
        return [(agent, session_id) for agent, session_id in rows]

    def session_of_turn(self, trace_id: str) -> tuple[str, str] | None:
        """Return agent and id of the session of a turn."""
        row = self._maybe("SELECT agent, session_id FROM turns WHERE trace_id = ?", (trace_id,))
        return None if row is None else (row[0], row[1])

    def sessions_around(
        self, start_ns: int, end_ns: int, most: int, session_id: str | None = None
    ) -> list[tuple[str, str]]:
        """Return the sessions that had a turn then, or those of this id, the latest first."""
        return self._all(
            "SELECT agent, session_id FROM turns WHERE CASE WHEN ?1 IS NULL"
            " THEN start_ns <= ?3 AND coalesce(end_ns, ?2) >= ?2 ELSE session_id = ?1 END"
            " GROUP BY agent, session_id ORDER BY max(start_ns) DESC LIMIT ?4",
            (session_id, start_ns, end_ns, most),
        )

    def untraced_sessions(self) -> list[tuple[str, str]]:
        rows = self._all("SELECT agent, session_id FROM untraced_sessions")
        return [(agent, session_id) for agent, session_id in rows]

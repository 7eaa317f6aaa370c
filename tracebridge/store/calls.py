"""Gateway calls, and which turns they are linked to."""

from __future__ import annotations

from collections import Counter

from tracebridge.codec import decode, encode
from tracebridge.model import (
    OWN_GATEWAY,
    SCRIPT_CALL,
    SIDE_CALL,
    Evidence,
    GatewayCall,
    Link,
)
from tracebridge.store.sessions import Sessions


class Calls(Sessions):
    def add_call(self, call: GatewayCall, taken_ns: int) -> bool:
        """Keep *call* and say whether it is new."""
        identity = call.identity
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO calls (call_id, agent, session_id, start_ns, taken_ns, body)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                call.call_id,
                identity.agent if identity is not None else None,
                identity.session_id if identity is not None else None,
                call.start_ns,
                taken_ns,
                encode(call),
            ),
        )
        if not cursor.rowcount:
            return False
        if identity is not None and identity.session_id is not None:
            self._unsettle(identity.agent, identity.session_id)
        self._count_intake()
        return True

    def calls(self, agent: str, session_id: str) -> list[GatewayCall]:
        """Return the calls of a session: those that name it, and those that its turns claim.

        Those that went out alone are not its any more.
        """
        rows = self._all(
            "SELECT body FROM calls WHERE call_id IN"
            " (SELECT call_id FROM calls WHERE agent = ?1 AND session_id = ?2 UNION"
            " SELECT call_id FROM calls WHERE trace_id IN"
            " (SELECT trace_id FROM turns WHERE agent = ?1 AND session_id = ?2))"
            " AND (evidence IS NOT NULL OR trace_id IS NULL)"
            " ORDER BY start_ns, call_id",
            (agent, session_id),
        )
        return [self._parsed(parse_call, body) for (body,) in rows]

    def inferred_calls(self, agent: str, session_id: str) -> list[tuple[GatewayCall, str]]:
        """Return the calls that were told although no key says whose they are, with the traces."""
        rows = self._all(
            "SELECT body, trace_id FROM calls WHERE agent = ?1 AND session_id = ?2"
            " AND trace_id IS NOT NULL AND (evidence IS NULL OR (evidence = ?3 AND trace_id IN"
            " (SELECT trace_id FROM turns WHERE agent = ?1 AND session_id = ?2 AND told = 1)))",
            (agent, session_id, Evidence.SESSION_WINDOW),
        )
        return [(self._parsed(parse_call, body), trace_id) for body, trace_id in rows]

    def unsettled_calls(self, agent: str, session_id: str) -> list[GatewayCall]:
        """Return the calls that name a session, but for those of settled turns: links may change."""
        rows = self._all(
            "SELECT body FROM calls WHERE agent = ? AND session_id = ? AND (trace_id IS NULL"
            " OR (evidence IS NOT NULL AND trace_id NOT IN (SELECT trace_id FROM settled_turns)))"
            " ORDER BY start_ns, call_id",
            (agent, session_id),
        )
        return [self._parsed(parse_call, body) for (body,) in rows]

    def calls_of_turn(self, trace_id: str) -> list[GatewayCall]:
        """Return the calls that are linked to a turn."""
        rows = self._all(
            "SELECT body FROM calls WHERE trace_id = ? AND evidence IS NOT NULL"
            " ORDER BY start_ns, call_id",
            (trace_id,),
        )
        return [self._parsed(parse_call, body) for (body,) in rows]

    def calls_without_turn(self) -> list[tuple[GatewayCall, int]]:
        """Return the calls that no turn claims, each with the time at which it came in."""
        rows = self._all(
            "SELECT body, taken_ns FROM calls WHERE trace_id IS NULL ORDER BY taken_ns"
        )
        return [(self._parsed(parse_call, body), taken_ns) for body, taken_ns in rows]

    def calls_since(self, start_ns: int) -> list[GatewayCall]:
        """Return the calls that began at *start_ns* or later."""
        rows = self._all(
            "SELECT body FROM calls WHERE start_ns >= ? ORDER BY start_ns", (start_ns,)
        )
        return [self._parsed(parse_call, body) for (body,) in rows]

    def calls_named(self, prefix: str) -> list[tuple[GatewayCall, str | None, str | None]]:
        """Return the calls whose id begins so, each with trace and evidence of its link."""
        rows = self._all(
            "SELECT body, trace_id, evidence FROM calls WHERE call_id >= ? AND call_id < ?",
            (prefix, f"{prefix}~"),
        )
        return [(self._parsed(parse_call, body), turn, how) for body, turn, how in rows]

    def lone_calls(self, since_ns: int, until_ns: int) -> list[tuple[GatewayCall, str, str]]:
        """Return the calls that began in a time and were told alone, with reason and trace.

        Those are calls of scripts, and what our gateway saw that no turn claims.
        """
        rows = self._all(
            "SELECT body, reason, trace_id FROM calls WHERE evidence IS NULL"
            " AND trace_id IS NOT NULL AND (reason = ? OR gateway = ?) AND start_ns BETWEEN ? AND ?",
            (SCRIPT_CALL, OWN_GATEWAY, since_ns, until_ns),
        )
        return [
            (self._parsed(parse_call, body), reason or "", trace) for body, reason, trace in rows
        ]

    def set_link(self, call_id: str, link: Link) -> None:
        self._db.execute(
            "UPDATE calls SET trace_id = ?, evidence = ?, reason = NULL WHERE call_id = ?",
            (link.trace_id, link.evidence, call_id),
        )

    def set_reason(self, call_id: str, reason: str, trace_id: str | None = None) -> None:
        """Say why no turn claims a call, and under which trace it went out alone."""
        self._db.execute(
            "UPDATE calls SET reason = ?, trace_id = ?, evidence = NULL WHERE call_id = ?",
            (reason, trace_id, call_id),
        )

    def link_counts(self) -> Counter[str]:
        """Return how many calls were linked by which evidence.

        Beside: "waiting", "orphan", "side" for those that have no turn to be linked to, and
        "script" for those that no agent made.
        """
        return sum(self.link_counts_by_gateway().values(), Counter())

    def link_counts_by_gateway(self) -> dict[str, Counter[str]]:
        """Return what `link_counts` does for the calls that each gateway saw."""
        counts: dict[str, Counter[str]] = {}
        # By the columns of an index, in its order: of a hundred thousand calls none is sorted.
        for gateway, evidence, reason, number, claimed in self._all(
            "SELECT coalesce(gateway, ''), evidence, reason, count(*), count(trace_id)"
            " FROM calls GROUP BY gateway, evidence, reason"
        ):
            fates = counts.setdefault(gateway, Counter())
            if evidence is not None:
                fates[evidence] += number
                continue
            fate = {SIDE_CALL: "side", SCRIPT_CALL: "script"}.get(reason, "orphan")
            # Nothing that is zero stays.
            fates += Counter({"waiting": number - claimed, fate: claimed})
        return {gateway: Counter(dict(sorted(fates.items()))) for gateway, fates in counts.items()}

    def orphan_reasons(self) -> dict[str, int]:
        return dict(
            self._all(
                "SELECT reason, count(*) FROM calls WHERE evidence IS NULL AND reason NOT IN (?, ?)"
                " GROUP BY reason",
                (SIDE_CALL, SCRIPT_CALL),
            )
        )

    def orphans_per_agent(self, since_ns: int = 0, until_ns: int | None = None) -> dict[str, int]:
        """Return how many calls of a time no turn claims, by the agent that they name."""
        return dict(
            self._all(
                "SELECT coalesce(agent, ''), count(*) FROM calls"
                " WHERE evidence IS NULL AND trace_id IS NOT NULL AND reason IS NOT ?3"
                " AND start_ns >= ?1 AND (?2 IS NULL OR start_ns < ?2) GROUP BY 1",
                (since_ns, until_ns, SCRIPT_CALL),
            )
        )


def parse_call(body: bytes) -> GatewayCall:
    return decode(body, GatewayCall)

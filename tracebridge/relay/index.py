"""What the replicas of a relay know together: whose a call is, and what waits for that.

Three things are kept, each for a time: the place in a turn's trace of each response id that a
watcher told of; the place that was given to each foreign trace, so that all of its spans, in
whatever batch and through whatever replica they come, go to the same one; and the foreign spans
that wait for their place. Whoever comes first has the word: a place never changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

# Longer than collectors queue in an outage of a night; 150 bytes a call.
REMEMBERED_SECONDS = 24 * 3600
# Of a replica that was killed, another one takes over what it was about to send.
CLAIM_SECONDS = 15


class IndexUnavailableError(Exception):
    """The index cannot be asked or written now; the message says why, without secrets."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the spans of a foreign trace belong; with empty ids, nowhere but where they are."""

    trace_id: str
    parent_span_id: str
    # By what it is known; in the words of `model.Evidence`.
    evidence: str

    def encode(self) -> str:
        return f"{self.trace_id} {self.parent_span_id} {self.evidence}"

    @classmethod
    def decode(cls, text: str) -> Place:
        trace_id, parent_span_id, evidence = text.split(" ")
        return cls(trace_id, parent_span_id, evidence)


# No turn claimed it in time.
NOWHERE = Place("", "", "")
# Spans of several turns lie in it, as where an agent traces a whole session: each call is placed by
# itself, and what belongs to none of them stays.
SEVERAL = Place("", "", "several")


@dataclass(frozen=True, slots=True)
class Held:
    """Spans of one foreign trace that wait for their place."""

    trace_id: str
    # Requests of one span each, by span id.
    spans: Mapping[str, bytes]
    # The response ids that would tell their place.
    response_ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Due:
    """Held spans that are to be sent now: their place is known, or their time has run out."""

    trace_id: str
    spans: Mapping[str, bytes]


class Index(Protocol):
    """What we expect of an index; every method may raise IndexUnavailableError."""

    async def find(
        self, trace_ids: Collection[str], response_ids: Collection[str]
    ) -> tuple[dict[str, Place], dict[str, Place]]:
        """Return the places that are known of foreign traces, and of response ids."""
        ...

    async def learn(self, calls: Mapping[str, Place], trace_ids: Collection[str]) -> None:
        """Take in what watchers told: places of response ids, and the traces that are theirs.

        What waits for one of them is due.
        """
        ...

    async def settle(self, places: Mapping[str, Place]) -> dict[str, Place]:
        """Give foreign traces their places, unless they have one; return those in force."""
        ...

    async def divide(self, trace_ids: Collection[str]) -> None:
        """Note that foreign traces have no place as a whole, whatever was settled before."""
        ...

    async def hold(self, held: Sequence[Held], seconds: float) -> None:
        """Keep spans until their place is known, or until so many seconds have passed.

        They are safe when this returns. The same span held again is held once.
        """
        ...

    async def due(self, most: int) -> list[Due]:
        """Return at most so many traces whose spans are to be sent, for this replica to send."""
        ...

    async def let_go(self, due: Due) -> None:
        """Forget held spans that were sent."""
        ...

    async def waiting(self) -> int:
        """Return how many foreign traces wait."""
        ...

    async def close(self) -> None: ...


def own_place(trace_id: str) -> Place:
    """Return the place of spans that already lie in a turn's trace."""
    return Place(trace_id, "", "traceparent")

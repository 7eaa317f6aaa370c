"""How long a client may keep us waiting, how much it may send, and how many there may be.

Nothing is timed while a model is at work: how long to wait for that is the agent's to say.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracebridge.gateways.framing import BadRequestError, BodyReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    # From the first byte of a request's head to its last.
    header_seconds: float = 30
    # Between two requests, and between two pieces of a request's body. Vendors' servers give up
    # sooner; an end that comes from us must not be the one that an agent stumbles over.
    idle_seconds: float = 900
    connect_seconds: float = 30
    # Open at a time, each with one to an upstream; fewer where the system allows fewer files.
    connections: int = 10_000
    # What one request's body may have; None: whatever the upstream takes.
    request_bytes: int | None = None


class LimitedBody:
    """A body that is refused once it is too large."""

    def __init__(self, body: BodyReader, limit: int, content_length: int | None) -> None:
        self._body = body
        self._limit = limit
        self._left = limit
        if (content_length or 0) > limit:
            raise self._too_large()

    @property
    def done(self) -> bool:
        return self._body.done

    def feed(self, data: bytes) -> tuple[int, list[bytes]]:
        used, content = self._body.feed(data)
        self._left -= sum(map(len, content))
        if self._left < 0:
            raise self._too_large()
        return used, content

    def _too_large(self) -> BadRequestError:
        return BadRequestError(f"a request may have {self._limit} bytes here", 413)


@dataclass(slots=True)
class Standstill:
    """Since when a client has been at the same place."""

    _at: object = None
    _since: float = 0

    def seconds(self, at: object, now: float) -> float:
        """Return for how long it has been *at* this place, as far as that was looked at."""
        if at != self._at:
            self._at, self._since = at, now
        return now - self._since

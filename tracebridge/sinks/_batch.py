"""What became of each span of a batch, where the backend only speaks of the batch.

A batch that is not taken as a whole is halved until the spans at fault stand alone. Spans that
were taken before are then sent again: same ids, same bytes, so backends keep one of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from tracebridge.sinks import OutboxSpan, Receipt

# What only a change of settings can mend is not asked for again every few seconds.
SETTINGS_RETRY_S = 60.0
# From 512 spans to a single one takes ten requests. This many without a step forward mean that it
# is not a matter of single spans.
_REQUESTS_IN_VAIN = 24
_REQUESTS_PER_BATCH = 100


class Verdict(Enum):
    TAKEN = auto()
    # Not now, whatever the batch holds.
    LATER = auto()
    # A part of the batch was refused, and the backend did not say which.
    REFUSED = auto()
    TOO_LARGE = auto()
    # The batch may be at fault, or all the settings. Only success with others tells which.
    SUSPECT = auto()
    # The batch may be at fault, or the backend.
    FAILED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the backend said to one request."""

    verdict: Verdict
    message: str = ""
    # How many spans of the batch were refused, where the backend counted them.
    refused: int = 0
    retry_after_s: float | None = None


class BatchSender:
    """Send batches by *post*, which makes one request and never raises."""

    def __init__(self, post: Callable[[Sequence[OutboxSpan]], Answer]) -> None:
        self._post = post
        # Proof that the settings are right: a backend that refuses *everything*, say for want of
        # a header, must not cost a single span.
        self._something_was_taken = False

    def send(self, spans: Sequence[OutboxSpan]) -> Receipt:
        acknowledged: list[str] = []
        refused: dict[str, str] = {}
        unclear: dict[str, Answer] = {}
        obstacle: Answer | None = None
        in_vain = 0
        look_elsewhere = False
        waiting = [list(spans)] if spans else []
        for _ in range(_REQUESTS_PER_BATCH):
            if not waiting:
                break
            # Where the first spans prove nothing, a part far from them may.
            part = waiting.pop(0 if look_elsewhere else -1)
            answer = self._post(part)
            if answer.verdict is Verdict.TAKEN:
                acknowledged += [span.span_id for span in part]
                self._something_was_taken = True
                in_vain, look_elsewhere = 0, False
            elif answer.verdict is Verdict.LATER:
                obstacle = answer
                break
            elif self._is_final(answer, part):
                refused |= dict.fromkeys((span.span_id for span in part), answer.message)
                in_vain = 0
            else:
                if len(part) > 1:
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
                else:
                    unclear[part[0].span_id] = answer
                    look_elsewhere = True
                in_vain += 1
                if in_vain == _REQUESTS_IN_VAIN:
                    obstacle = answer
                    break
        if self._something_was_taken:
            suspects = {i: a for i, a in unclear.items() if a.verdict is Verdict.SUSPECT}
            refused |= {span_id: answer.message for span_id, answer in suspects.items()}
            unclear = {i: a for i, a in unclear.items() if i not in suspects}
        obstacle = obstacle or next(iter(unclear.values()), None)
        return Receipt(
            acknowledged=tuple(acknowledged),
            refused=refused,
            error=obstacle.message if obstacle else None,
            retry_after_s=obstacle.retry_after_s if obstacle else None,
        )

    def _is_final(self, answer: Answer, part: Sequence[OutboxSpan]) -> bool:
        """Return whether *answer* settles that all of *part* is refused."""
        if answer.verdict is Verdict.REFUSED and answer.refused >= len(part):
            return True
        if len(part) > 1:
            return False
        if answer.verdict is Verdict.SUSPECT:
            return self._something_was_taken
        return answer.verdict in (Verdict.REFUSED, Verdict.TOO_LARGE)

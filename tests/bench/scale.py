"""From one developer to a hundred thousand: what arrives where, what it takes, what gives way first.

    python tests/bench/scale.py      prints the tables of docs/scale.md

A discrete simulation, second by second over the busiest hour of a day: turns end at random, each
sends its spans at once, and these queue before relay, Kafka, collector and backend in turn. Seeded:
equal input gives equal tables. What is measured comes from `make bench`, what is assumed is marked.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

SEED = 20261121
HOUR_S = 3600
# No part is planned for more than this share of what it can do in the busiest second.
HIGHEST_USE = 0.6
# Of an hour's turns at a place of work, by the hours of its day: two humps and lunch.
WORKDAY = (
    *(0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.6, 2.0, 6.0, 11.0, 12.0, 10.0),
    *(6.0, 9.0, 12.0, 11.0, 9.0, 5.0, 2.5, 1.2, 0.9, 0.6, 0.3, 0.2),
)


@dataclass(frozen=True, slots=True)
class Habits:
    """What one developer does; assumed, but for the sizes, which are those of recorded turns."""

    turns_per_day: float = 60
    # A turn of a dozen tool calls; few have hundreds.
    median_spans: float = 20
    spread: float = 0.9
    bytes_per_span: float = 3000
    # gzip of level 1 on spans with source text in them.
    compression: float = 3.8
    # Of all spans those that a central gateway tells of, and the relay has to place.
    foreign_share: float = 0.3


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of machine on the way, and what one of it does in a second."""

    name: str
    spans_per_s: float
    mb_per_s: float
    least: int
    usd_per_month: float
    origin: str


@dataclass(frozen=True, slots=True)
class Fleet:
    developers: int
    # Shares of the developers by how many hours their day begins later than the first one's.
    zones: tuple[tuple[int, float], ...]


HABITS = Habits()
# A core that takes both kinds: bytes of ours passed on, spans of others scrubbed and placed, with 20 kB
# of text a call; without texts it is three times as many.
RELAY_OURS_PER_S, RELAY_FOREIGN_PER_S = 180_000, 27_000
RELAY_PER_S = 1 / (
    (1 - HABITS.foreign_share) / RELAY_OURS_PER_S + HABITS.foreign_share / RELAY_FOREIGN_PER_S
)
VCPU_USD = 30.0
PARTS = (
    Part("relay, 1 core", RELAY_PER_S, math.inf, 2, VCPU_USD, "measured"),
    Part("Kafka, 1 broker, 3 copies", math.inf, 20, 3, 4 * VCPU_USD, "assumed"),
    Part("collector, 1 core", 15_000, math.inf, 2, VCPU_USD, "assumed"),
    Part("backend, 1 node of 4 cores", 5_000, math.inf, 2, 4 * VCPU_USD, "assumed"),
)
STORAGE_USD_PER_GB_MONTH = 0.023
DAYS_KEPT = 30
FLEETS = (
    Fleet(1_000, ((0, 1.0),)),
    Fleet(100_000, ((0, 0.4), (7, 0.4), (16, 0.2))),
)
# What happens in the busiest hour: from and to which second, which part, which share of it is left.
TROUBLES: dict[str, tuple[int, int, int, float | None] | None] = {
    "all is well": None,
    "one relay is gone for 5 minutes": (600, 900, 0, None),
    "the backend is gone for 30 minutes": (600, 2400, 3, 0.0),
}


@dataclass(slots=True)
class Hour:
    """What the busiest hour comes to."""

    spans: int
    busiest_second: int
    # By part: spans that wait at most, and how long the last of them does.
    longest_queue: list[float]
    longest_wait_s: list[float]
    drained_after_s: int | None


def busiest_share(fleet: Fleet) -> float:
    """Return which part of a day's turns ends in its busiest hour."""
    whole = sum(WORKDAY)
    return max(
        sum(share * WORKDAY[(hour - offset) % 24] / whole for offset, share in fleet.zones)
        for hour in range(24)
    )


def turns_ending(draw: random.Random, mean: float) -> int:
    """Return a number of the Poisson distribution."""
    if mean > 50:
        return max(round(draw.gauss(mean, math.sqrt(mean))), 0)
    limit, product, number = math.exp(-mean), draw.random(), 0
    while product > limit:
        product *= draw.random()
        number += 1
    return number


@cache
def arrivals(fleet: Fleet, habits: Habits = HABITS) -> list[int]:
    """Return how many spans are sent in each second of the busiest hour."""
    draw = random.Random(SEED)
    per_s = fleet.developers * habits.turns_per_day * busiest_share(fleet) / HOUR_S
    return [
        sum(
            max(2, round(draw.lognormvariate(math.log(habits.median_spans), habits.spread)))
            for _ in range(turns_ending(draw, per_s))
        )
        for _ in range(HOUR_S)
    ]


def capacity(part: Part, habits: Habits = HABITS) -> float:
    """Return the spans that one of it carries in a second."""
    compressed = habits.bytes_per_span / habits.compression
    return min(part.spans_per_s, part.mb_per_s * 1e6 / compressed)


def units(part: Part, busiest_second: float) -> int:
    return max(part.least, math.ceil(busiest_second / (HIGHEST_USE * capacity(part))))


@cache
def simulate(fleet: Fleet, trouble: tuple[int, int, int, float | None] | None) -> Hour:
    """Let the spans of the hour pass through all parts, one second at a time."""
    sent = arrivals(fleet)
    numbers = [units(part, max(sent)) for part in PARTS]
    hour = Hour(sum(sent), max(sent), [0.0] * len(PARTS), [0.0] * len(PARTS), None)
    queues = [0.0] * len(PARTS)
    second = 0
    while second < HOUR_S or sum(queues) > 0.5:
        flow = float(sent[second]) if second < HOUR_S else 0.0
        for at, part in enumerate(PARTS):
            left = 1.0
            if trouble and trouble[2] == at and trouble[0] <= second < trouble[1]:
                left = (numbers[at] - 1) / numbers[at] if trouble[3] is None else trouble[3]
            able = capacity(part) * numbers[at] * left
            queues[at] += flow
            flow = min(queues[at], able)
            queues[at] -= flow
            if queues[at] > hour.longest_queue[at]:
                hour.longest_queue[at] = queues[at]
                whole = capacity(part) * numbers[at]
                idle = trouble[1] - second if trouble and not left else 0
                hour.longest_wait_s[at] = max(hour.longest_wait_s[at], idle + queues[at] / whole)
        second += 1
        if trouble and second > trouble[1] and hour.drained_after_s is None and sum(queues) < 1:
            hour.drained_after_s = second - trouble[1]
    return hour


def load_table() -> Iterator[str]:
    yield "| developers | turns a day | spans a day | GB a day (compressed) | busiest hour | busiest second |"
    yield "|---:|---:|---:|---:|---:|---:|"
    for fleet in FLEETS:
        hour = simulate(fleet, None)
        turns = fleet.developers * HABITS.turns_per_day
        spans = hour.spans / busiest_share(fleet)
        size = spans * HABITS.bytes_per_span / 1e9
        yield (
            f"| {fleet.developers:,} | {turns:,.0f} | {spans / 1e6:,.1f} M | {size:,.0f}"
            f" ({size / HABITS.compression:,.0f}) | {hour.spans / HOUR_S:,.0f} spans/s"
            f" | {hour.busiest_second:,} spans/s |"
        )


def parts_table() -> Iterator[str]:
    heads = "".join(f" {fleet.developers:,} developers |" for fleet in FLEETS)
    yield f"| part | one carries | | enough for |{heads}"
    yield f"|---|---:|---|---:|{'---:|' * len(FLEETS)}"
    busiest = [simulate(fleet, None).busiest_second for fleet in FLEETS]
    # Of the largest fleet, whose busiest second is least a matter of chance.
    per_developer = busiest[-1] / FLEETS[-1].developers
    for part in sorted(PARTS, key=capacity):
        numbers = [units(part, second) for second in busiest]
        cells = "".join(
            f" {number}, at {second / (number * capacity(part)):.1%} |"
            for number, second in zip(numbers, busiest, strict=True)
        )
        developers = HIGHEST_USE * capacity(part) / per_developer
        yield (
            f"| {part.name} | {capacity(part):,.0f} spans/s | {part.origin}"
            f" | {round(developers, -3):,.0f} developers |{cells}"
        )


def troubles_table() -> Iterator[str]:
    yield "| in the busiest hour | developers | waiting at most | longest wait | in step again |"
    yield "|---|---:|---:|---:|---:|"
    for name, trouble in TROUBLES.items():
        for fleet in FLEETS:
            hour = simulate(fleet, trouble)
            waiting = max(hour.longest_queue)
            size = waiting * HABITS.bytes_per_span / HABITS.compression / 1e9
            again = f"{hour.drained_after_s} s" if (hour.drained_after_s or 0) > 1 else "at once"
            yield (
                f"| {name} | {fleet.developers:,} | {waiting:,.0f} spans, {size:,.2f} GB"
                f" | {max(hour.longest_wait_s):,.0f} s | {again} |"
            )


def cost_table() -> Iterator[str]:
    yield "| a month, in USD (assumed prices) |" + "".join(
        f" {fleet.developers:,} developers |" for fleet in FLEETS
    )
    yield f"|---|{'---:|' * len(FLEETS)}"
    sums = [0.0] * len(FLEETS)
    hours = [simulate(fleet, None) for fleet in FLEETS]
    for part in PARTS:
        costs = [units(part, hour.busiest_second) * part.usd_per_month for hour in hours]
        sums = [one + cost for one, cost in zip(sums, costs, strict=True)]
        yield f"| {part.name} |" + "".join(f" {cost:,.0f} |" for cost in costs)
    stored = []
    for fleet, hour in zip(FLEETS, hours, strict=True):
        spans = hour.spans / busiest_share(fleet) * DAYS_KEPT
        size = spans * HABITS.bytes_per_span / HABITS.compression / 1e9
        stored.append(size * STORAGE_USD_PER_GB_MONTH)
    yield f"| {DAYS_KEPT} days in an object store |" + "".join(f" {cost:,.0f} |" for cost in stored)
    sums = [one + cost for one, cost in zip(sums, stored, strict=True)]
    yield "| all, and for one developer |" + "".join(
        f" {one:,.0f}, {one / fleet.developers:.3f} |"
        for one, fleet in zip(sums, FLEETS, strict=True)
    )


def tables() -> list[str]:
    """Return the tables of the page, each as one text."""
    made = (load_table(), parts_table(), troubles_table(), cost_table())
    return ["\n".join(lines) for lines in made]


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(tables()) + "\n")

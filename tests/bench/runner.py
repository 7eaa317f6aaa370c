"""Time commands side by side: A B C A B C ..., so that a busy moment hits all of them alike."""

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    argv: Sequence[str]
    stdin: bytes = b""
    env: Mapping[str, str] = field(default_factory=dict)
    # The name of the command that this one is compared with.
    floor: str | None = None
    # Called, untimed, after each run.
    tidy: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """One row of the table of aims: what was measured, and what it should be."""

    what: str
    measured: float
    unit: str = "x"
    at_most: float | None = None
    at_least: float | None = None
    # See `interval`.
    between: tuple[float, float] | None = None

    @property
    def met(self) -> bool:
        return (self.at_most is None or self.measured <= self.at_most) and (
            self.at_least is None or self.measured >= self.at_least
        )

    @property
    def aim(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g} {self.unit}"
        return "stated" if self.at_least is None else f"≥ {self.at_least:g} {self.unit}"

    @property
    def verdict(self) -> str:
        if self.at_most is None and self.at_least is None:
            return ""
        aim = self.at_least if self.at_most is None else self.at_most
        if self.between and aim is not None and self.between[0] <= aim < self.between[1]:
            return "not settled"
        return "met" if self.met else "NOT met"

    def line(self) -> str:
        measured = f"{self.measured:10.2f} {self.unit:5}"
        between = f"[{self.between[0]:.3f}, {self.between[1]:.3f}] " if self.between else ""
        return f"{self.what:62} {measured} {self.aim:12} {between}{self.verdict}".rstrip()


def interval(values: Sequence[float], draws: int = 4000) -> tuple[float, float]:
    """Return between what the median of more such values lies, 19 times of 20: a bootstrap."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(draws))
    return medians[draws // 40], medians[-1 - draws // 40]


def tell(reaches: Sequence[Reach], details: object, path: Path | None) -> None:
    """Print how far each aim is reached, and write that and all else that was measured to *path*."""
    sys.stdout.write("".join(f"{reach.line()}\n" for reach in reaches))
    if path is not None:
        rows = [{**asdict(reach), "met": reach.met} for reach in reaches]
        document = {"reaches": rows, "details": details}
        path.write_text(json.dumps(document, indent=2, default=asdict) + "\n")


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    median_ms: float
    p95_ms: float
    min_ms: float
    floor: str | None
    # Medians; and the median of the ratios within one round, which a drifting machine bends less.
    ratio: float | None
    paired_ratio: float | None


def measure(
    commands: Sequence[Command], rounds: int, warm_up: int = 3, *, shuffled: bool = False
) -> list[Result]:
    """Run all in turn; *shuffled* where one may leave work behind that the next would meet."""
    order = list(commands)
    draw = random.Random(1)
    times: dict[str, list[float]] = {command.name: [] for command in commands}
    for number in range(warm_up + rounds):
        if shuffled:
            draw.shuffle(order)
        for command in order:
            elapsed = _run(command)
            if command.tidy:
                command.tidy()
            if number >= warm_up:
                times[command.name].append(elapsed)
    return [_result(command, times) for command in commands]


def table(results: Sequence[Result]) -> str:
    width = max(len(result.name) for result in results)
    lines = [f"{'command':{width}}  median ms    p95    min   ratio  paired  floor"]
    for result in results:
        ratios = "      -       -"
        if result.ratio is not None and result.paired_ratio is not None:
            ratios = f"{result.ratio:6.2f}x {result.paired_ratio:6.2f}x"
        lines.append(
            f"{result.name:{width}}  {result.median_ms:9.2f} {result.p95_ms:6.2f} "
            f"{result.min_ms:6.2f} {ratios}  {result.floor or ''}".rstrip()
        )
    return "\n".join(lines)


def _run(command: Command) -> float:
    """Return the milliseconds from start to exit, the way an agent runs a hook: through a pipe."""
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
    actions.append((os.POSIX_SPAWN_DUP2, null, 2))
    started = time.perf_counter_ns()
    pid = os.posix_spawnp(command.argv[0], list(command.argv), command.env, file_actions=actions)
    os.close(reader)
    try:
        rest = memoryview(command.stdin)
        while rest:
            rest = rest[os.write(writer, rest) :]
    except BrokenPipeError:
        pass
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    elapsed = time.perf_counter_ns() - started
    os.close(null)
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{command.name}: {command.argv} ended with {status}")
    return elapsed / 1e6


def _result(command: Command, times: Mapping[str, Sequence[float]]) -> Result:
    own = times[command.name]
    ratio = paired = None
    if command.floor:
        floor = times[command.floor]
        ratio = statistics.median(own) / statistics.median(floor)
        paired = statistics.median(a / b for a, b in zip(own, floor, strict=True))
    return Result(
        name=command.name,
        median_ms=statistics.median(own),
        p95_ms=sorted(own)[int(len(own) * 0.95)],
        min_ms=min(own),
        floor=command.floor,
        ratio=ratio,
        paired_ratio=paired,
    )

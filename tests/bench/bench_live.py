"""From the end of a gateway's response to its linked `chat` span at an OTLP receiver.

    python tests/bench/bench_live.py [--turns 5] [--tools 8] [--agents claude-code,codex-cli,...]

Real agents with our hooks, our gateway, a watcher and a receiver on loopback; the model is scripted.
Counted is from the moment at which the gateway had the last byte to the moment at which the receiver
has the span. The last call of a turn is told apart: it ends the turn, which may have to wait. The
floor is the moment at which the agent's own record of the call stands in its transcript, with an id
of the answer or of a tool call in it. Gemini CLI's has neither before its tools are done.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from runner import Reach, tell

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "real_agents")]

from judge import TAGS, running_watcher, wired_for  # noqa: E402  # needs the path above
from test_together import PLAYERS, Player  # noqa: E402

from tracebridge import semconv  # noqa: E402
from tracebridge.run import started_gateway  # noqa: E402
from tracebridge.testing.receiver import (  # noqa: E402
    Answer,
    ReceivedRequest,
    ReceivedSpan,
    Receiver,
)
from tracebridge.testing.scripted_model import Reply, Text, ToolUse  # noqa: E402

# Long enough for what is told early to be told before the turn's end.
COMMAND = "sleep 0.4"
PATIENCE_S = 120.0
FLOOR = "written by the agent"


class Transcripts(threading.Thread):
    """When each id first stood in a transcript, to a few milliseconds."""

    def __init__(self, home: Path, pattern: str) -> None:
        super().__init__(daemon=True)
        self._home, self._pattern = home, pattern
        self._seen: list[tuple[int, Path, int]] = []
        self._stopping = False

    def run(self) -> None:
        sizes: dict[Path, int] = {}
        while not self._stopping:
            for path in self._home.glob(self._pattern):
                size = path.stat().st_size
                if size != sizes.get(path):
                    sizes[path] = size
                    self._seen.append((time.time_ns(), path, size))
            time.sleep(0.003)

    def stop(self) -> None:
        self._stopping = True
        self.join()

    def written_ns(self, names: Sequence[str]) -> int | None:
        for at_ns, path, size in self._seen:
            said = path.read_bytes()[:size]
            if any(name.encode() in said for name in names):
                return at_ns
        return None


def script(player: Player, tools: int) -> list[Reply]:
    replies = []
    for number in range(tools):
        # Gemini CLI breaks off what calls the same tool with the same input again and again.
        asked = {player.argument: COMMAND, "description": f"wait a moment, {number}"}
        if player.kind.slug == "codex-cli":
            del asked["description"]
        replies.append(Reply([ToolUse(player.shell, asked)]))
    return [*replies, Reply([Text("Done.")])]


def latencies(player: Player, folder: Path, turns: int, tools: int) -> dict[str, list[float]]:
    """Return the milliseconds of the calls within turns, and of the last ones."""
    home = folder / "state"
    arrived: list[tuple[int, ReceivedSpan]] = []

    def note(request: ReceivedRequest) -> Answer:
        now_ns = time.time_ns()
        arrived.extend((now_ns, span) for span in request.spans)
        return Answer()

    prompts = [f"go on {number}" for number in range(turns)]
    with (
        Receiver() as receiver,
        player.kind.model({prompt: script(player, tools) for prompt in prompts}) as model,
    ):
        receiver.rule = note
        env = {
            **os.environ,
            "TRACEBRIDGE_HOME": str(home),
            "HOME": str(folder / "play" / "home"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        }
        upstream = [f"{player.kind.family}={model.url}"]
        transcripts = Transcripts(folder / "play" / "home", player.kind.transcripts)
        transcripts.start()
        with running_watcher(env), started_gateway(upstream, env) as url:
            stage = player.kind.stage(
                wired_for(player.kind, home),
                workdir=folder / "play",
                model=model,
                base_url=f"{url}{player.kind.path}",
                env={**TAGS, "TRACEBRIDGE_NO_WATCH": "1", "TRACEBRIDGE_HOME": str(home)},
                launcher=(),
            )
            for number, prompt in enumerate(prompts, start=1):
                finished = player.start(stage, prompt).finish()
                if finished.exit_code:
                    raise SystemExit(f"{player.kind.slug}: {finished.stderr[-500:]}")
                receiver.wait_for(lambda each, n=number: len(roots(each.spans)) == n, PATIENCE_S)
        names = {each.message_id: (each.message_id, *each.tool_use_ids) for each in model.calls()}
    transcripts.stop()
    found: dict[str, list[float]] = {FLOOR: [], "within a turn": [], "last of a turn": []}
    for root in roots([span for _, span in arrived]):
        calls = sorted(
            (
                (span.end_ns, at_ns, str(span.attributes.get(semconv.RESPONSE_ID)))
                for at_ns, span in arrived
                if span.trace_id == root.trace_id
                and span.attributes[semconv.SPAN_TYPE] == "llm"
                and semconv.LLM_PURPOSE not in span.attributes
            )
        )
        if not calls:
            # Only side calls.
            continue
        if not player.kind.transcripts.endswith(".db"):
            # A database has no lines to look for.
            written = [(transcripts.written_ns(names[name]), end_ns) for end_ns, _, name in calls]
            found[FLOOR] += [(at_ns - end_ns) / 1e6 for at_ns, end_ns in written if at_ns]
        *inner, last = [(at_ns - end_ns) / 1e6 for end_ns, at_ns, _ in calls]
        found["within a turn"] += inner
        found["last of a turn"].append(last)
    return found


def roots(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
    return [span for span in spans if span.attributes[semconv.SPAN_TYPE] == "turn"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tools", type=int, default=8)
    parser.add_argument("--agents", default=",".join(player.kind.slug for player in PLAYERS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    reaches = []
    details = {}
    for player in PLAYERS:
        slug = player.kind.slug
        if slug not in options.agents.split(","):
            continue
        with tempfile.TemporaryDirectory() as folder:
            details[slug] = latencies(player, Path(folder), options.turns, options.tools)
        for which, times in details[slug].items():
            if not times:
                continue
            p95 = sorted(times)[int(len(times) * 0.95)]
            told = f"{slug}, {which}"
            reaches.append(Reach(f"{told}: p50", statistics.median(times), "ms"))
            reaches.append(
                Reach(f"{told}: p95", p95, "ms", at_most=None if which == FLOOR else 250)
            )
    tell(reaches, details, options.json)


if __name__ == "__main__":
    main()

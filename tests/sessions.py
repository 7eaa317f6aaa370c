"""Made-up sessions for property tests: what really happened, and what each source tells of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from tracebridge.ids import trace_id
from tracebridge.model import (
    CallIdentity,
    GatewayCall,
    ModelCall,
    Outcome,
    Prompt,
    Sighting,
    Source,
    Subagent,
    Thinking,
    ToolCall,
    TurnEnd,
    Usage,
)

AGENT = "claude-code"
SECOND = 1_000_000_000


@dataclass
class Session:
    """One session: its sightings by source, its calls, and who made each call."""

    session_id: str
    hooks: list[Sighting] = field(default_factory=list)
    transcript: list[Sighting] = field(default_factory=list)
    calls: list[GatewayCall] = field(default_factory=list)
    # Call id to (turn key, subagent id).
    truth: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    @property
    def sightings(self) -> list[Sighting]:
        return self.hooks + self.transcript


class _Teller:
    def __init__(self, draw, number: int, *, hints: bool) -> None:
        self._draw = draw
        self._hints = hints
        self._now = (1_000 + number * 7) * SECOND
        self.session = Session(f"session-{number}")
        self._serial = 0

    def tell(self) -> Session:
        for number in range(self._draw(st.integers(1, 3))):
            self._turn(f"{self.session.session_id}-turn-{number}")
        return self.session

    def _tick(self) -> int:
        self._now += self._draw(st.integers(10, 3_000)) * 1_000_000
        return self._now

    def _key(self, kind: str) -> str:
        self._serial += 1
        return f"{kind}-{self.session.session_id}-{self._serial}"

    def _see(self, source, part, turn, subagent=None, *, as_turn=None) -> None:
        sighting = Sighting(
            agent=AGENT,
            session_id=self.session.session_id,
            source=source,
            time_ns=self._now,
            part=part,
            turn_key=as_turn or turn,
            subagent_id=None if isinstance(part, Subagent) else subagent,
        )
        where = self.session.hooks if source is Source.HOOK else self.session.transcript
        where.append(sighting)

    def _turn(self, turn: str) -> None:
        prompt = Prompt(key=f"prompt-{turn}", text=f"do {turn}", start_ns=self._tick())
        self._see(Source.HOOK, prompt, turn)
        self._see(Source.TRANSCRIPT, prompt, turn)
        for _ in range(self._draw(st.integers(1, 3))):
            tools = self._call(turn, None)
            for tool in tools:
                if self._draw(st.booleans()):
                    self._subagent(turn, tool)
        self._call(turn, None, last=True)
        end = self._tick()
        self._see(Source.HOOK, TurnEnd(key="stop", end_ns=end, outcome=Outcome.COMPLETED), turn)
        self._see(
            Source.TRANSCRIPT,
            TurnEnd(key=f"answer-{turn}", end_ns=end, outcome=Outcome.COMPLETED),
            turn,
        )

    def _subagent(self, turn: str, tool: str) -> None:
        agent = self._key("agent")
        self._see(Source.HOOK, Subagent(key=agent, type="helper", start_ns=self._tick()), turn)
        self._see(Source.TRANSCRIPT, Subagent(key=agent, tool_key=tool), turn)
        # Later hooks of a subagent may carry the id of whatever turn runs then.
        self._call(turn, agent, hook_turn=self._draw(st.sampled_from([turn, "another-turn"])))
        self._see(Source.HOOK, Subagent(key=agent, end_ns=self._tick()), turn)

    def _call(self, turn, subagent, *, last=False, hook_turn=None) -> list[str]:
        failures = self._draw(st.integers(0, 2)) if self._draw(st.booleans()) else 0
        for attempt in range(failures):
            self._attempt(turn, subagent, f"req-{self._key('failed')}", attempt + 1)
        response = self._key("msg")
        tools = [] if last else [self._key("tool") for _ in range(self._draw(st.integers(0, 2)))]
        start, end = self._tick(), self._tick()
        usage = Usage(input_tokens=self._serial * 10, output_tokens=self._serial)
        self._record(
            turn,
            subagent,
            start,
            end,
            response_id=response,
            usage=usage,
            tool_call_ids=tuple(tools),
        )
        call = ModelCall(
            key=response,
            response_id=response,
            start_ns=start,
            end_ns=end,
            usage=usage,
            tool_call_ids=tuple(tools) or None,
        )
        self._see(Source.TRANSCRIPT, call, turn, subagent)
        thinking = Thinking(key=f"{response}:0", call_key=response, start_ns=start, end_ns=end)
        self._see(Source.TRANSCRIPT, thinking, turn, subagent)
        for tool in tools:
            begun = ToolCall(key=tool, name="Read", start_ns=self._tick())
            done = ToolCall(key=tool, name="Read", end_ns=self._tick(), output="fine")
            for part in (begun, done):
                self._see(Source.HOOK, part, turn, subagent, as_turn=hook_turn)
                self._see(Source.TRANSCRIPT, part, turn, subagent)
        return tools

    def _attempt(self, turn, subagent, request, attempt) -> None:
        start, end = self._tick(), self._tick()
        self._record(turn, subagent, start, end, request_id=request, error_type="429")
        failed = ModelCall(
            key=request,
            request_id=request,
            start_ns=start,
            end_ns=end,
            error_type="429",
            attempt=attempt,
        )
        self._see(Source.TRANSCRIPT, failed, turn, subagent)

    def _record(self, turn, subagent, start, end, **known) -> None:
        call_id = self._key("call")
        identity = CallIdentity(
            agent=AGENT,
            session_id=self.session.session_id,
            turn_key=turn if self._hints else None,
            subagent_id=subagent,
        )
        self.session.calls.append(
            GatewayCall(
                call_id=call_id,
                gateway="tracebridge",
                method="POST",
                path="/v1/messages",
                start_ns=start,
                end_ns=end,
                identity=identity,
                **known,
            )
        )
        self.session.truth[call_id] = (turn, subagent)


@st.composite
def sessions(draw, *, number: int = 0, hints: bool | None = None) -> Session:
    """Return a session; *hints* says whether the agent tells the gateway its turn."""
    hints = draw(st.booleans()) if hints is None else hints
    return _Teller(draw, number, hints=hints).tell()


def trace_of(session: Session, turn_key: str) -> str:
    return trace_id(AGENT, session.session_id, turn_key)

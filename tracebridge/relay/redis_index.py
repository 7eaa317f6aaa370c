"""The index in Redis or Valkey, shared by all replicas.

    call:RESPONSE   the place of a response id           wait:RESPONSE   traces that wait for it
    trace:TRACE     the place of a foreign trace         held:TRACE      its spans that wait
    due             waiting traces by the time at which they are sent in any case
    claim:TRACE     which replica is sending them

Each step is one script, so that replicas never see half of another's; it is one server or a
primary with replicas, not a cluster. Times are those of the server, for replicas' clocks may
differ. What is held has no expiry, so that `noeviction` and the `volatile-*` policies keep it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from tracebridge.relay.index import (
    CLAIM_SECONDS,
    REMEMBERED_SECONDS,
    SEVERAL,
    Due,
    Held,
    IndexUnavailableError,
    Place,
    own_place,
)

PREFIX = "tracebridge:1:"
# A slow index must not hold up exporters for longer than they wait.
_TIMEOUT_SECONDS = 3
_SHARED = f"""
local P, REMEMBERED = '{PREFIX}', {REMEMBERED_SECONDS}
local function settle(trace, place)
  redis.call('SET', P .. 'trace:' .. trace, place, 'NX', 'EX', REMEMBERED)
  redis.call('ZADD', P .. 'due', 'XX', 0, trace)
end
-- What is no place, somebody else's or damaged, is as if it were not there.
local function place_at(key)
  local found = redis.pcall('GET', P .. key)
  return type(found) == 'string' and found:match('^%x* %x* [%w_]*$') or ''
end
"""
# ARGV: lines of keys. Returns lines of what stands under them, empty ones for nothing. As texts here
# and below, since packing and parsing hundreds of values costs a relay as much as their spans.
_FIND = """
local found = {}
for key in ARGV[1]:gmatch('[^\\n]+') do
  found[#found + 1] = place_at(key)
end
return table.concat(found, '\\n')
"""
# ARGV: lines of trace and place, lines of response and place.
_LEARN = """
for trace, place in ARGV[1]:gmatch('(%S+) ([^\\n]*)\\n') do settle(trace, place) end
for response, place in ARGV[2]:gmatch('(%S+) ([^\\n]*)\\n') do
  redis.call('SET', P .. 'call:' .. response, place, 'EX', REMEMBERED)
  for _, trace in ipairs(redis.call('SMEMBERS', P .. 'wait:' .. response)) do
    settle(trace, place)
  end
end
"""
# ARGV: lines of trace and place. Returns lines of the places in force.
_SETTLE = """
local found = {}
for trace, place in ARGV[1]:gmatch('(%S+) ([^\\n]*)\\n') do
  settle(trace, place)
  found[#found + 1] = place_at('trace:' .. trace)
end
return table.concat(found, '\\n')
"""
# ARGV: a place, traces.
_DIVIDE = """
for i = 2, #ARGV do
  redis.call('SET', P .. 'trace:' .. ARGV[i], ARGV[1], 'EX', REMEMBERED)
  redis.call('ZADD', P .. 'due', 'XX', 0, ARGV[i])
end
"""
# ARGV: trace, seconds, how many responses, these, pairs of span id and span.
_HOLD = """
local trace, seconds, responses = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
for i = responses + 4, #ARGV, 2 do
  redis.call('HSET', P .. 'held:' .. trace, ARGV[i], ARGV[i + 1])
end
redis.call('ZADD', P .. 'due', 'NX', redis.call('TIME')[1] + seconds, trace)
local known = redis.call('GET', P .. 'trace:' .. trace)
for i = 4, responses + 3 do
  redis.call('SADD', P .. 'wait:' .. ARGV[i], trace)
  redis.call('EXPIRE', P .. 'wait:' .. ARGV[i], seconds + REMEMBERED)
  known = known or redis.call('GET', P .. 'call:' .. ARGV[i])
end
-- It became known since it was looked for.
if known then settle(trace, known) end
"""
# ARGV: how many, seconds. Returns trace, its spans, trace, its spans, ...
_DUE = """
local now, found = redis.call('TIME')[1], {}
for _, trace in ipairs(redis.call('ZRANGEBYSCORE', P .. 'due', '-inf', now, 'LIMIT', 0, ARGV[1])) do
  if redis.call('SET', P .. 'claim:' .. trace, 1, 'NX', 'EX', ARGV[2]) then
    found[#found + 1] = trace
    found[#found + 1] = redis.call('HGETALL', P .. 'held:' .. trace)
  end
end
return found
"""
# ARGV: trace, span ids.
_LET_GO = """
for i = 2, #ARGV do redis.call('HDEL', P .. 'held:' .. ARGV[1], ARGV[i]) end
if redis.call('EXISTS', P .. 'held:' .. ARGV[1]) == 0 then
  redis.call('ZREM', P .. 'due', ARGV[1])
end
redis.call('DEL', P .. 'claim:' .. ARGV[1])
"""


class RedisIndex:
    def __init__(self, url: str) -> None:
        """Raise ValueError where *url* is none of Redis."""
        self._redis: Any = Redis.from_url(
            url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
        )
        self._scripts = {
            text: self._redis.register_script(_SHARED + text)
            for text in (_FIND, _LEARN, _SETTLE, _DIVIDE, _HOLD, _DUE, _LET_GO)
        }

    async def find(
        self, trace_ids: Collection[str], response_ids: Collection[str]
    ) -> tuple[dict[str, Place], dict[str, Place]]:
        keys = [f"trace:{each}" for each in trace_ids]
        keys += [f"call:{_short(each)}" for each in response_ids]
        if not keys:
            return {}, {}
        found = _places(await self._run(_FIND, "\n".join(keys)))
        traces = zip(trace_ids, found[: len(trace_ids)], strict=True)
        calls = zip(response_ids, found[len(trace_ids) :], strict=True)
        return (
            {name: place for name, place in traces if place is not None},
            {name: place for name, place in calls if place is not None},
        )

    async def learn(self, calls: Mapping[str, Place], trace_ids: Collection[str]) -> None:
        turns = [f"{each} {own_place(each).encode()}\n" for each in trace_ids]
        told = [f"{_short(each)} {place.encode()}\n" for each, place in calls.items()]
        await self._run(_LEARN, "".join(turns), "".join(told))

    async def settle(self, places: Mapping[str, Place]) -> dict[str, Place]:
        lines = [f"{trace} {place.encode()}\n" for trace, place in places.items()]
        found = _places(await self._run(_SETTLE, "".join(lines)))
        return {
            trace: known or place
            for (trace, place), known in zip(places.items(), found, strict=True)
        }

    async def divide(self, trace_ids: Collection[str]) -> None:
        await self._run(_DIVIDE, SEVERAL.encode(), *trace_ids)

    async def hold(self, held: Sequence[Held], seconds: float) -> None:
        for each in held:
            responses = [_short(response_id) for response_id in each.response_ids]
            spans: list[str | bytes] = [part for pair in each.spans.items() for part in pair]
            wait = math.ceil(seconds)
            await self._run(_HOLD, each.trace_id, wait, len(responses), *responses, *spans)

    async def due(self, most: int) -> list[Due]:
        found = await self._run(_DUE, most, CLAIM_SECONDS)
        return [
            Due(
                trace.decode(),
                {i.decode(): span for i, span in zip(*[iter(spans)] * 2, strict=True)},
            )
            for trace, spans in zip(*[iter(found)] * 2, strict=True)
        ]

    async def let_go(self, due: Due) -> None:
        await self._run(_LET_GO, due.trace_id, *due.spans)

    async def waiting(self) -> int:
        try:
            return cast("int", await self._redis.zcard(f"{PREFIX}due"))
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error

    async def close(self) -> None:
        await self._redis.aclose()

    async def _run(self, script: str, *arguments: str | bytes | int) -> Any:
        try:
            return await self._scripts[script](args=arguments)
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error


def _unavailable(error: Exception) -> IndexUnavailableError:
    # Only what the server itself says: other texts may name the address, and with it a password.
    reason = str(error)[:200] if isinstance(error, ResponseError) else type(error).__name__
    return IndexUnavailableError(f"Redis: {reason}")


def _short(response_id: str) -> str:
    """Return a key of fixed length, without meaning to Redis, whatever a response is called."""
    return hashlib.sha256(response_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _places(lines: bytes) -> list[Place | None]:
    return [Place.decode(line) if line else None for line in lines.decode().split("\n")]

"""What every index promises, shown on both: one in a file, one in a real Redis."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tracebridge.relay import local_index
from tracebridge.relay.index import (
    NOWHERE,
    SEVERAL,
    Held,
    Index,
    IndexUnavailableError,
    Place,
    own_place,
)
from tracebridge.relay.local_index import FILE, LocalIndex
from tracebridge.relay.redis_index import PREFIX, RedisIndex

HERE, THERE = Place("a" * 32, "b" * 16, "turn_id"), Place("c" * 32, "d" * 16, "response_id")
TRACE, OTHER = "1" * 32, "2" * 32
Test = Callable[[Index, Index], Coroutine[Any, Any, None]]


@pytest.fixture(params=["alone", "redis"])
def with_two(request, tmp_path) -> Callable[[Test], None]:
    """Run a test with two replicas' views of the same index."""

    def view() -> Index:
        if request.param == "alone":
            return LocalIndex(tmp_path / "home")
        return RedisIndex(request.getfixturevalue("redis").url)

    def run(test: Test) -> None:
        async def main() -> None:
            one, other = view(), view()
            try:
                await test(one, other)
            finally:
                await one.close()
                await other.close()

        asyncio.run(main())

    return run


def test_the_first_place_of_a_foreign_trace_stays(with_two):
    """Whatever another replica would have given it."""

    async def test(one: Index, other: Index) -> None:
        assert await one.settle({TRACE: HERE}) == {TRACE: HERE}
        assert await other.settle({TRACE: THERE, OTHER: NOWHERE}) == {TRACE: HERE, OTHER: NOWHERE}
        assert await one.find([OTHER, TRACE], []) == ({OTHER: NOWHERE, TRACE: HERE}, {})
        await other.divide([TRACE])
        assert await one.settle({TRACE: HERE}) == {TRACE: SEVERAL}

    with_two(test)


def test_what_a_watcher_told_is_found_by_its_response_id(with_two):
    """And that the trace is a turn's own."""

    async def test(one: Index, other: Index) -> None:
        await one.learn({"msg_1": HERE, "é": THERE}, ["a" * 32])
        traces, calls = await other.find(["a" * 32, TRACE], ["msg_1", "msg_2"])
        assert traces == {"a" * 32: own_place("a" * 32)}
        assert calls == {"msg_1": HERE}

    with_two(test)


def test_what_is_held_is_due_once_its_place_is_known(with_two):
    """For one replica alone, and until that has let it go."""

    async def test(one: Index, other: Index) -> None:
        await one.hold([Held(TRACE, {"s1": b"1"}, ["msg_1"]), Held(OTHER, {"s3": b"3"})], 600)
        await other.hold([Held(TRACE, {"s1": b"1", "s2": b"2"}, ["msg_1"])], 600)
        assert await other.waiting() == 2
        assert await one.due(10) == []
        await other.learn({"msg_1": HERE}, [])
        (due,) = await one.due(10)
        assert (due.trace_id, due.spans) == (TRACE, {"s1": b"1", "s2": b"2"})
        assert await other.due(10) == []
        # More of it comes while it is sent: that is due at once, to anybody.
        await other.hold([Held(TRACE, {"s4": b"4"})], 600)
        await one.let_go(due)
        (rest,) = await other.due(10)
        assert rest.spans == {"s4": b"4"}
        await other.let_go(rest)
        assert await one.waiting() == 1

    with_two(test)


def test_what_is_held_is_due_once_its_time_is_over(with_two):
    """Sent unplaced is better than never."""

    async def test(one: Index, other: Index) -> None:
        await one.hold([Held(TRACE, {"s1": b"1"}, ["msg_1"])], 0)
        (due,) = await other.due(10)
        assert due.spans == {"s1": b"1"}

    with_two(test)


def test_what_became_known_while_it_was_held_is_due(with_two):
    """Between looking and holding, another replica may have learned of it."""

    async def test(one: Index, other: Index) -> None:
        assert await one.find([TRACE], ["msg_1"]) == ({}, {})
        await other.learn({"msg_1": HERE}, [])
        await one.hold([Held(TRACE, {"s1": b"1"}, ["msg_1"])], 600)
        (due,) = await one.due(10)
        assert await one.find([due.trace_id], []) == ({TRACE: HERE}, {})

    with_two(test)


def test_a_large_trace_is_held_whole(with_two):
    """Thousands of spans, of some size."""

    async def test(one: Index, other: Index) -> None:
        spans = {f"{number:016x}": b"x" * 500 for number in range(5000)}
        await one.hold([Held(TRACE, spans)], 0)
        (due,) = await other.due(1)
        assert due.spans == spans
        await other.let_go(due)
        assert await one.waiting() == 0

    with_two(test)


def test_a_redis_that_is_away_says_so_without_its_password(redis):
    """Every step raises the one error that a relay expects."""

    async def main() -> None:
        index = RedisIndex(redis.url.replace("redis://", "redis://user:hunter2@"))
        redis.kill()
        try:
            for step in (
                index.find([TRACE], []),
                index.learn({"msg_1": HERE}, []),
                index.settle({TRACE: HERE}),
                index.divide([TRACE]),
                index.hold([Held(TRACE, {"s": b"1"})], 1),
                index.due(1),
                index.waiting(),
            ):
                with pytest.raises(IndexUnavailableError) as caught:
                    await step
                assert "Redis" in str(caught.value)
                assert "hunter2" not in str(caught.value)
        finally:
            await index.close()

    asyncio.run(main())


def test_what_others_wrote_into_redis_is_no_place(redis):
    """Damaged values are as if they were not there."""
    import redis as client

    async def main() -> None:
        index = RedisIndex(redis.url)
        assert await index.find([TRACE, OTHER, *more], []) == ({}, {})
        assert await index.settle({more[0]: HERE}) == {more[0]: HERE}
        await index.close()

    more = ["3" * 32, "4" * 32]

    with client.Redis.from_url(redis.url) as connection:
        connection.set(f"{PREFIX}trace:{TRACE}", b"\xff\xfe")
        connection.set(f"{PREFIX}trace:{OTHER}", b"one two three four")
        connection.set(f"{PREFIX}trace:{more[0]}", b"a b\nc d e")
        connection.rpush(f"{PREFIX}trace:{more[1]}", "a list")
    asyncio.run(main())


def test_the_file_of_a_relay_that_is_alone_is_its_own(tmp_path):
    """Nobody else can read what waits in it."""

    async def main() -> None:
        index = LocalIndex(tmp_path / "home")
        await index.hold([Held(TRACE, {"s": b"1"})], 1)
        await index.close()

    asyncio.run(main())
    mode = stat.S_IMODE((tmp_path / "home" / FILE).stat().st_mode)
    assert mode == 0o600
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_a_symlink_in_place_of_the_file_is_refused(tmp_path):
    """In a home that others can write to it would lead somewhere else."""
    target = tmp_path / "target"
    target.write_bytes(b"")
    home = tmp_path / "home"
    home.mkdir()
    (home / FILE).symlink_to(target)
    with pytest.raises(IndexUnavailableError, match=FILE):
        LocalIndex(home)


def test_what_waits_is_bounded(tmp_path, monkeypatch):
    """Then the senders are asked to keep what they have."""
    monkeypatch.setattr(local_index, "MOST_HELD_BYTES", 100_000)

    async def main() -> None:
        index = LocalIndex(tmp_path)
        try:
            await index.hold([Held(TRACE, {"s": b"x" * 200_000})], 0)
            with pytest.raises(IndexUnavailableError, match="wait for their turns"):
                await index.hold([Held(OTHER, {"s": b"x"})], 1)
            (due,) = await index.due(1)
            await index.let_go(due)
            await index.hold([Held(OTHER, {"s": b"x"})], 1)
        finally:
            await index.close()

    asyncio.run(main())

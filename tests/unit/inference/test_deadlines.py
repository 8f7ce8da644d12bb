"""Waits that end in time, and only because of their own limit."""

import asyncio

import pytest

from janus_inference.deadlines import Legs, Limit, LimitReached, TimeLimits, Waits
from janus_inference.model import Timeouts


def limit(seconds: float, leg: str = "idle") -> Limit:
    return Limit(asyncio.get_running_loop().time() + seconds, leg, seconds)


async def test_a_wait_that_reaches_its_limit_is_cancelled_and_names_the_leg() -> None:
    ended = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(LimitReached) as raised:
        await Waits().within(limit(0.01, "first_event"), wait())
    assert raised.value.limit.leg == "first_event"
    assert ended.is_set()
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_one_timer_serves_waits_that_follow_each_other() -> None:
    waits = Waits()
    for _ in range(20):
        assert await waits.within(limit(0.1), asyncio.sleep(0, "said")) == "said"
    # The others' times end meanwhile.
    assert await waits.within(limit(30), asyncio.sleep(0.15, "later")) == "later"
    with pytest.raises(LimitReached):
        await waits.within(limit(0.02), asyncio.Event().wait())
    assert await waits.within(limit(5), asyncio.sleep(0, "again")) == "again"
    waits.close()


async def test_a_shorter_limit_after_a_longer_one_holds() -> None:
    waits = Waits()
    await waits.within(limit(30), asyncio.sleep(0))
    async with asyncio.timeout(5):
        with pytest.raises(LimitReached):
            await waits.within(limit(0.01), asyncio.Event().wait())


async def test_time_between_two_waits_counts_for_neither() -> None:
    waits = Waits()
    await waits.within(limit(0.1), asyncio.sleep(0))
    await asyncio.sleep(0.15)
    assert await waits.within(limit(5), asyncio.sleep(0, "fine")) == "fine"


async def test_a_cancelled_caller_is_cancelled_and_not_timed_out() -> None:
    async def wait() -> None:
        await Waits().within(limit(5), asyncio.Event().wait())

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_the_wait_raises_comes_through() -> None:
    async def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        await Waits().within(limit(5), fail())


async def test_the_leg_that_ends_first_is_the_limit() -> None:
    limits = TimeLimits().of(Timeouts(first_event=5, total=3))
    assert (limits.idle, limits.total) == (30, 3)
    assert Legs(limits, None).first_event().leg == "total"
    assert Legs(limits, 1).first_event().leg == "call"
    assert Legs(TimeLimits(), None).first_event().leg == "first_event"
    assert Legs(TimeLimits(), None).idle().leg == "idle"
    assert 0 < Legs(limits, None).remaining <= 3

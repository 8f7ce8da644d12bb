"""Cleaning up is done to its end, whoever cancels meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from janus_kit.cancellation import finished


async def test_a_cancel_waits_for_the_end_and_is_raised() -> None:
    may_end, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await may_end.wait()
        done.set()

    task = asyncio.create_task(finished(work()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await finished(work())

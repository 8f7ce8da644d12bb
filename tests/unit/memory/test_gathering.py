"""A queue that bounds what waits, and hands out batches."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from janus_memory.gathering import Gathering


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 9), st.integers(10, 40))
def test_everything_arrives_once_and_in_order_in_bounded_batches(sizes: list[int], most: int, most_bytes: int) -> None:
    async def work() -> list[list[tuple[int, int]]]:
        queue: Gathering[tuple[int, int]] = Gathering(50)

        async def put() -> None:
            for place, size in enumerate(sizes):
                await queue.put((place, size), size)
            queue.close()

        putting = asyncio.create_task(put())
        batches = []
        while batch := await queue.take(most, most_bytes, 0.001):
            batches.append(batch)
        await putting
        return batches

    batches = asyncio.run(work())
    assert [item for batch in batches for item in batch] == list(enumerate(sizes))
    for batch in batches:
        assert len(batch) <= most
        assert len(batch) == 1 or sum(size for _, size in batch) <= most_bytes


async def test_who_puts_more_than_there_is_room_for_waits() -> None:
    queue: Gathering[str] = Gathering(10)
    await queue.put("a", 8)
    waiting = asyncio.create_task(queue.put("b", 8))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await queue.take(5, 10, 0) == ["a"]
    await waiting
    assert await queue.take(5, 10, 0) == ["b"]


async def test_an_item_larger_than_the_queue_goes_through_alone() -> None:
    queue: Gathering[str] = Gathering(10)
    await queue.put("huge", 1_000)
    assert await queue.take(5, 10, 60) == ["huge"]


async def test_a_batch_that_does_not_fill_goes_after_a_while() -> None:
    queue: Gathering[str] = Gathering(10)
    taking = asyncio.create_task(queue.take(5, 10, 0.001))
    await queue.put("a", 1)
    assert await taking == ["a"]

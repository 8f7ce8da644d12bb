"""Waiting for new entries of any number of Redis streams, over a few connections.

A blocking read occupies its connection, so one read waits for many streams: a
*lane* is a task with one read under way. Whoever gets entries asks again at
once and stays in its lane. Who comes new gets a lane of its own, up to a
number of them; beyond that the smallest lane is woken to take it along, by an
entry in a stream that only that lane reads: Redis ends short blocks no more
often than every 100 ms, so a lane cannot look often by itself. Keys of several
tenants in one read are fine for one Redis, not for a cluster.
"""

import asyncio
import uuid
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from janus_kit.redis import RedisClient

_MOST_LANES = 16
# Streams of a lane, while there may be another lane.
_FEW = 64
# Waits end at multiples of so long, so that those who look around after it do it together.
_GRID_S = 0.1
# Entries of a stream that are read at once.
_COUNT = 32
_WAKE_MS = 60_000


@dataclass(eq=False, slots=True)
class _Wish:
    """Somebody who waits for entries of a stream after a sequence, until a time of the loop's clock."""

    stream: str
    after: int
    until: float
    future: "asyncio.Future[Sequence[Any]]"

    def answer(self, entries: Sequence[Any]) -> None:
        if not self.future.done():
            self.future.set_result(entries)


@dataclass(eq=False, slots=True)
class _Lane:
    """What one read waits for. ``wake`` is its own stream, ``called`` and ``heard`` the last entries there."""

    wake: str
    wishes: dict[str, list[_Wish]] = field(default_factory=dict)
    called: int = 0
    heard: int = 0
    is_called: bool = False

    def end(self, now: float) -> None:
        """Let go of those whose time is over, and of those who left."""
        for stream, wishes in tuple(self.wishes.items()):
            for wish in wishes:
                if wish.until <= now:
                    wish.answer(())
            if left := [wish for wish in wishes if not wish.future.done()]:
                self.wishes[stream] = left
            else:
                del self.wishes[stream]

    def places(self) -> dict[str, str]:
        """Where to read on; whoever is further than others on its stream gets more than it needs."""
        own = {self.wake: f"{self.heard}-0"}
        return own | {stream: f"{min(wish.after for wish in wishes)}-0" for stream, wishes in self.wishes.items()}

    def take(self, found: Sequence[tuple[bytes, Sequence[Any]]]) -> None:
        """Hand out what was read."""
        for name, entries in found:
            stream = name.decode()
            if stream == self.wake:
                self.heard = int(entries[-1][0].partition(b"-")[0])
            for wish in self.wishes.pop(stream, ()):
                wish.answer(entries)


class ReplayWaiter:
    """``wait`` is for any number of callers; ``close`` ends what waits."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        # Lanes leave some connections for waking; to wait for one would look as if Redis were away.
        self._most = max(1, min(_MOST_LANES, client.connection_pool.max_connections // 2))
        self._name = f"janus:replay-waiter:{uuid.uuid4().hex}"
        self._number = 0
        self._new: deque[_Wish] = deque()
        self._lanes: set[_Lane] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_called = False

    async def wait(self, stream: str, after: int, seconds: float) -> Sequence[Any]:
        """Entries, some of them after a sequence: at once, or when they come; none when none do.

        It may take 0.1 s longer than it should. Raises what Redis raises.
        """
        loop = asyncio.get_running_loop()
        until = ((loop.time() + seconds) // _GRID_S + 1) * _GRID_S
        wish = _Wish(stream, after, until, loop.create_future())
        self._new.append(wish)
        self._call()
        return await wish.future

    async def close(self) -> None:
        """End every read."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _call(self) -> None:
        """Have those who are new read for; those of the same turn of the loop share a read."""
        if not self._is_called:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._called)

    def _called(self) -> None:
        self._is_called = False
        if not self._new:
            return
        if len(self._lanes) < self._most:
            self._number += 1
            lane = _Lane(f"{self._name}:{self._number}")
            self._lanes.add(lane)
            self._begin(self._read(lane), "replay-lane")
            return
        lane = min(self._lanes, key=lambda each: len(each.wishes))
        if not lane.is_called:
            lane.is_called = True
            lane.called += 1
            self._begin(self._wake(lane), "replay-wake")

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, lane: _Lane) -> None:
        """Read for those who wait, until nobody does."""
        clock = asyncio.get_running_loop().time
        try:
            while True:
                # Whoever was answered asks again in this turn.
                await asyncio.sleep(0)
                lane.is_called = False
                self._take(lane)
                lane.end(now := clock())
                if not lane.wishes:
                    return
                seconds = min(wish.until for wishes in lane.wishes.values() for wish in wishes) - now
                places: Any = lane.places()
                found: Any = await self._client.xread(places, count=_COUNT, block=int(seconds * 1000) + 1)
                lane.take(found or ())
        except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it is
            for wish in (wish for wishes in lane.wishes.values() for wish in wishes):
                if not wish.future.done():
                    wish.future.set_exception(error)
        finally:
            self._lanes.discard(lane)
            for wish in (wish for wishes in lane.wishes.values() for wish in wishes):
                wish.future.cancel()
            self._call()

    def _take(self, lane: _Lane) -> None:
        """Those who are new, as far as others should not rather have them."""
        everybody = len(self._new) + sum(len(each.wishes) for each in self._lanes)
        most = max(_FEW, -(-everybody // self._most))
        while self._new and len(lane.wishes) < most:
            wish = self._new.popleft()
            if not wish.future.done():
                lane.wishes.setdefault(wish.stream, []).append(wish)
        if self._new:
            self._call()

    async def _wake(self, lane: _Lane) -> None:
        # When that fails it looks all the same, as soon as its read is over.
        with suppress(RedisError, OSError, TimeoutError):
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.xadd(lane.wake, {"w": ""}, id=f"{lane.called}-0", maxlen=1, approximate=False)
                pipeline.pexpire(lane.wake, _WAKE_MS)
                await pipeline.execute()

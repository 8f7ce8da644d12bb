"""Waiting for new entries of any number of Redis streams, over a few connections.

A blocking read occupies its connection. One connection for each stream that is
followed would be a thousand after a reconnect, so every read waits for all
streams that want it at that moment: a *lane* is a task with one read under way.
What comes to want reading meanwhile gets a lane of its own, up to a number;
beyond that it waits for the next lane that comes round, which then looks more
often. Keys of several tenants in one read are fine for one Redis, not for a
cluster.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from janus_kit.redis import RedisClient

_MOST_LANES = 16
_SHORT_S = 0.02
# Entries of a stream that are read at once.
_COUNT = 32


@dataclass(eq=False, slots=True)
class _Wish:
    """Somebody who waits for entries of a stream after a sequence, until a time of the loop's clock."""

    stream: str
    after: int
    until: float
    future: "asyncio.Future[Sequence[Any]]"


class ReplayWaiter:
    """``wait`` is for any number of callers; ``close`` ends what waits."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._wishes: list[_Wish] = []
        self._lanes: set[asyncio.Task[None]] = set()
        self._is_called = False

    async def wait(self, stream: str, after: int, seconds: float) -> Sequence[Any]:
        """The entries beyond a sequence, at once or when they come; none when none do. Raises what Redis raises."""
        loop = asyncio.get_running_loop()
        wish = _Wish(stream, after, loop.time() + seconds, loop.create_future())
        self._wishes.append(wish)
        if not self._is_called:
            # Those that come in the same turn of the loop share a read.
            self._is_called = True
            loop.call_soon(self._open)
        return await wish.future

    async def close(self) -> None:
        """End every read."""
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)

    def _open(self) -> None:
        self._is_called = False
        if self._wishes and len(self._lanes) < _MOST_LANES:
            lane = asyncio.get_running_loop().create_task(self._lane(), name="replay-waiter")
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)

    async def _lane(self) -> None:
        """Read for those who wait, until nobody does."""
        clock = asyncio.get_running_loop().time
        mine: dict[str, _Wish] = {}
        try:
            while True:
                self._take(mine)
                now = clock()
                for wish in [each for each in mine.values() if each.future.done() or each.until <= now]:
                    del mine[wish.stream]
                    _answer(wish, ())
                if not mine:
                    return
                seconds = min(wish.until for wish in mine.values()) - now
                if len(self._lanes) >= _MOST_LANES:
                    seconds = min(seconds, _SHORT_S)
                streams: Any = {wish.stream: f"{wish.after}-0" for wish in mine.values()}
                found: Any = await self._client.xread(streams, count=_COUNT, block=max(1, round(seconds * 1000)))
                for name, entries in found or ():
                    _answer(mine.pop(name.decode()), entries)
        except (RedisError, OSError, TimeoutError) as error:
            for wish in mine.values():
                if not wish.future.done():
                    wish.future.set_exception(error)
        finally:
            for wish in mine.values():
                wish.future.cancel()

    def _take(self, mine: dict[str, _Wish]) -> None:
        """Everybody who waits for a lane; a stream that is read here already waits for another one."""
        left = []
        for wish in self._wishes:
            if wish.stream in mine:
                left.append(wish)
            elif not wish.future.done():
                mine[wish.stream] = wish
        self._wishes = left


def _answer(wish: _Wish, entries: Sequence[Any]) -> None:
    if not wish.future.done():
        wish.future.set_result(entries)

"""Questions of many callers, asked in few round trips.

A thousand readers that look after their generations at the same time would
each take a connection and a round trip. What is asked in the same turn of the
loop goes together, and while a few round trips are under way the rest waits
here and not for a connection: waiting for a connection would look like a store
that is away.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_AT_ONCE = 8


class Together(Generic[K, V]):
    """``ask`` answers up to ``most`` questions, in their order. ``close`` ends what is under way."""

    def __init__(self, ask: Callable[[Sequence[K]], Awaitable[Sequence[V]]], most: int) -> None:
        self._ask, self._most = ask, most
        self._waiting: deque[tuple[K, asyncio.Future[V]]] = deque()
        self._asking: set[asyncio.Task[None]] = set()
        self._is_called = False

    async def get(self, question: K) -> V:
        """Raises what asking raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V] = loop.create_future()
        self._waiting.append((question, future))
        if not self._is_called:
            self._is_called = True
            loop.call_soon(self._called)
        return await future

    async def close(self) -> None:
        """End what is under way."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    def _called(self) -> None:
        self._is_called = False
        while self._waiting and len(self._asking) < _AT_ONCE:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            # Some may have left meanwhile.
            if batch := [each for each in batch if not each[1].done()]:
                task = asyncio.create_task(self._asked(batch), name="together")
                self._asking.add(task)
                task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        self._called()

    async def _asked(self, batch: Sequence[tuple[K, "asyncio.Future[V]"]]) -> None:
        try:
            answers = await self._ask([question for question, _ in batch])
        except Exception as error:  # noqa: BLE001 - whoever asked is told, whatever it is
            # What waits behind it would fail as well, only later.
            behind, self._waiting = self._waiting, deque()
            for _, future in (*batch, *behind):
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        finally:
            for _, future in batch:
                future.cancel()

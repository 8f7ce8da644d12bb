"""A queue that is bounded by bytes and hands out batches."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Gathering(Generic[T]):
    """Items on their way from one task to another, in order.

    At most ``most_bytes`` wait, or one item that is larger; whoever puts more
    waits for the other task. One task puts, one takes.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._waiting: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._is_closed = False
        self._changed = asyncio.Event()
        self._enough = (1, 0)

    async def put(self, item: T, size: int) -> None:
        """Add an item of so many bytes, when there is room."""
        while self._waiting and self._bytes + size > self._most_bytes:
            self._changed.clear()
            await self._changed.wait()
        self._waiting.append((item, size))
        self._bytes += size
        most, most_bytes = self._enough
        if len(self._waiting) in {1, most} or self._bytes >= most_bytes:
            self._changed.set()

    def close(self) -> None:
        """Nothing comes any more."""
        self._is_closed = True
        self._changed.set()

    async def take(self, most: int, most_bytes: int, linger_s: float) -> list[T]:
        """The next items, at most so many and so large; none at the end.

        Waits for the first, and ``linger_s`` at most for those that make the
        batch full.
        """
        self._enough = most, most_bytes
        while not self._waiting and not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
        try:
            async with asyncio.timeout(linger_s):
                while len(self._waiting) < most and self._bytes < most_bytes and not self._is_closed:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        taken: list[T] = []
        size = 0
        while self._waiting and len(taken) < most and (not taken or size + self._waiting[0][1] <= most_bytes):
            item, of_item = self._waiting.popleft()
            taken.append(item)
            size += of_item
        self._bytes -= size
        self._changed.set()
        return taken

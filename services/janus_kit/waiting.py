"""Time limits that are fair to who answered while this process stood still."""

import asyncio
from types import TracebackType


class within:  # noqa: N801 - is used as a function is
    """``asyncio.timeout`` for short waits for others: raises TimeoutError after so many seconds.

    A process that was paused meets the end of the wait before what came meanwhile. So the seconds run in two halves:
    between them it looks.
    """

    __slots__ = ("_half_s", "_limit", "_timer")

    def __init__(self, seconds: float) -> None:
        self._half_s = seconds / 2

    async def __aenter__(self) -> None:
        self._limit = asyncio.timeout(None)
        await self._limit.__aenter__()
        self._timer = asyncio.get_running_loop().call_later(self._half_s, self._second_half)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, traceback)

    def _second_half(self) -> None:
        self._limit.reschedule(asyncio.get_running_loop().time() + self._half_s)

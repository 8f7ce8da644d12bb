"""Cancels that arrive: what a caller sees when work was cut short."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class cancel_wins:  # noqa: N801 - is used as a function is
    """A cancel that came within is raised whatever the work, cleaning up after it, failed with.

    Loops that go on after every failure would otherwise not hear of it and never end.
    """

    __slots__ = ("_before", "_task")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._before = self._task.cancelling() if self._task is not None else 0

    def __enter__(self) -> None:
        """Begun already: a cancel counts from when this was made."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.over(error)

    def over(self, error: BaseException | None) -> None:
        """Raise the cancel that came within, if one did, in place of the error."""
        if isinstance(error, Exception) and self._task is not None and self._task.cancelling() > self._before:
            raise asyncio.CancelledError from error


async def finished(work: Coroutine[Any, Any, None]) -> None:
    """Cleaning up that is done to its end, which must be near; a cancel that comes meanwhile is raised after it."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise

"""Cancels that arrive: what a caller sees when work was cut short."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def cancel_wins() -> Iterator[None]:
    """A cancel that came within is raised whatever the work, cleaning up after it, failed with.

    Loops that go on after every failure would otherwise not hear of it and never end.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    except Exception as error:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise


async def finished(work: Coroutine[Any, Any, None]) -> None:
    """Cleaning up that is done to its end, which must be near; a cancel that comes meanwhile is raised after it."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise

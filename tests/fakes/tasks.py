"""Background tasks of a test, ended with it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def running_tasks(*works: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Each runs until the block is left; one that failed fails the test."""
    tasks = [asyncio.create_task(work()) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended

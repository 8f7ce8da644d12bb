"""How long things take on a machine that stands still now and then."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.fakes.tasks import running_tasks

RanFor = Callable[[float, float], float]
_BEAT_S = 0.005


@asynccontextmanager
async def beating() -> AsyncIterator[RanFor]:
    """Seconds between two readings of ``time.perf_counter`` in which this loop ran: what stands still does not beat."""
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(time.perf_counter())
            await asyncio.sleep(_BEAT_S)

    def ran_for(first: float, last: float) -> float:
        return sum(first < each < last for each in beats) * _BEAT_S

    async with running_tasks(beat):
        yield ran_for

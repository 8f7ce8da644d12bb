"""What everything that kills at random shares: the order of the kills, and parts that stand again."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Sequence

from tests.conftest import StackThread
from tests.fakes.service_process import ServiceProcess

EVERYTHING = "everything"
_BACK_WITHIN_S = 120.0


def plan(seed: int, kills: int, parts: Sequence[str]) -> list[str]:
    """So many kills: all parts as often as each other, and everything at once for every twentieth."""
    dice = random.Random(f"kills {seed}")
    together = kills // 20
    single = [parts[number % len(parts)] for number in range(kills - together)]
    chosen = [*single, *[EVERYTHING] * together]
    dice.shuffle(chosen)
    return chosen


def counted(counter: Counter[str]) -> str:
    """A sum and what it is of."""
    parts = ", ".join(f"{name} {count}" for name, count in sorted(counter.items()) if count)
    return f"{counter.total()}" + (f" ({parts})" if parts else "")


async def kill_store(stack: StackThread, part: str) -> None:
    """Kill -9, and wait until another process is in its place."""
    killed = stack.kill(part)
    async with asyncio.timeout(_BACK_WITHIN_S):
        while stack.stack.process_ids[part] in (None, killed):  # noqa: ASYNC110 - in another thread
            await asyncio.sleep(0.02)


async def kill_service(process: ServiceProcess, meanwhile: Awaitable[None]) -> None:
    """Kill -9, and start it until it stands, as whoever keeps services running does."""
    end = time.monotonic() + _BACK_WITHIN_S
    while True:
        try:
            await process.again(meanwhile)
            return
        except (AssertionError, TimeoutError):
            # It found no Postgres to begin with.
            if time.monotonic() > end:
                raise
        meanwhile = asyncio.sleep(0.2)

"""Ends the generations whose owner is gone and that nobody reads: what they used must be on record all the same.

Every replica looks now and then at those whose owner has not renewed for some
time. Two that find the same one do what two of its readers would: one writes
its end, and both write the same record.
"""

import asyncio
import random
from collections.abc import Container

from janus_inference.ports import ReplayAway, ReplayStore
from janus_inference.resuming.settling import Key, Settling, break_off
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

EVERY_S = 5.0
# After its lease ran out; longer than its readers wait, who are to tell the end first.
OVERDUE_S = 3.0
_MOST = 100


class Sweeper:
    """``run`` is its task. It leaves ``mine`` alone, which this process works on: after a pause their leases are over
    for a moment."""

    def __init__(self, store: ReplayStore, settling: Settling, mine: Container[Key] = ()) -> None:
        self._store, self._settling, self._mine = store, settling, mine

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                found = await self.sweep()
            except ReplayAway:
                found = 0
            # Replicas that look at different times find different ones.
            await asyncio.sleep(0 if found == _MOST else EVERY_S * random.uniform(0.5, 1.0))  # noqa: S311

    async def sweep(self) -> int:
        """One look; how many were overdue. Raises ReplayAway."""
        overdue = await self._store.overdue(OVERDUE_S, _MOST)
        heads = await asyncio.gather(*(self._store.head(*key) for key in overdue))
        ended = []
        for key, head in zip(overdue, heads, strict=True):
            if key in self._mine or (head is not None and head.is_owned):
                continue
            if head is not None and not head.has_ended:
                try:
                    await break_off(self._store, self._settling, key, head)
                except ValueError:
                    # Another version wrote it; the others must come to their ends all the same.
                    _log.exception("generation_not_broken_off", generation_id=key[1])
            ended.append(key)
        await self._store.forget(ended)
        return len(ended)

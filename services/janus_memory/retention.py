"""The sweep: removes what is older than its space keeps it, and counts out what expired.

Any replica may sweep, one at a time a space, in batches that are a transaction
each: records, search and statistics are in step at any moment, and a sweep that
is killed goes on where it was. Vectors follow through the outbox. A window in
Redis is dropped before its turns are gone from the record, so a Redis that is
away postpones the turns and nothing else.
"""

import asyncio
from collections.abc import Awaitable, Callable

from janus_kit.errors import JanusError
from janus_kit.telemetry.logging import get_logger
from janus_memory.ports import Records, Transaction, Windows

BATCH = 200
"""Records of one transaction; the indexer and writers wait no longer than that takes."""

_log = get_logger(__name__)


class Sweep:
    """Sweeps every space, every ``every_s`` seconds."""

    def __init__(self, records: Records, windows: Windows, *, every_s: float) -> None:
        self._records = records
        self._windows = windows
        self._every_s = every_s

    async def run(self) -> None:
        """Work for ever; not at once, since a start has more urgent things to do."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.work()
            except JanusError as error:
                # Postgres is away, or busy; the next round will tell.
                _log.warning("sweep_waits", reason=error.reason, detail=error.message)

    async def work(self) -> int:
        """Sweep every space once; how many records were removed or counted out."""
        done = 0
        for tenant, space_no in await self._records.to_sweep():
            for step in (self._retire, self._memories, self._turns):
                try:
                    done += await self._all(tenant, space_no, step)
                except JanusError as error:
                    # A space, or Redis, that is in trouble keeps nobody else from being swept.
                    _log.warning("sweep_postponed", reason=error.reason, detail=error.message)
        return done

    async def _all(self, tenant: str, space_no: int, step: Callable[[Transaction, str, int], Awaitable[int]]) -> int:
        done = 0
        while True:
            async with self._records.transaction(tenant) as tx:
                count = await step(tx, tenant, space_no) if await tx.lock_sweeping(space_no) else 0
                if count:
                    await tx.enqueue(space_no)
            done += count
            if count < BATCH:
                return done

    async def _retire(self, tx: Transaction, tenant: str, space_no: int) -> int:
        return await tx.retire_expired(space_no, BATCH)

    async def _memories(self, tx: Transaction, tenant: str, space_no: int) -> int:
        await tx.lock_remembering(space_no)
        return await tx.remove_old_memories(space_no, BATCH)

    async def _turns(self, tx: Transaction, tenant: str, space_no: int) -> int:
        count, windows = await tx.remove_old_turns(space_no, BATCH)
        if windows:
            await self._windows.drop(tenant, windows)
        return count

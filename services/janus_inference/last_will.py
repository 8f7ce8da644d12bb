"""What a process's calls used is on record also when it is killed in the middle of them.

Every few seconds a process says what there would be to record of the calls
that are under way, were it gone now: an estimate from what was sent and heard.
Calls themselves wait for nothing and know nothing of it, so one that is begun
and killed between two times is missed. The others read the wills of those that
were not heard of for some time; a record that its process wrote itself stays.
"""

import asyncio
from collections.abc import Callable, Sequence

from janus_inference.ports import UsageRecord, WillStore
from janus_kit.errors import JanusError
from janus_kit.telemetry.logging import get_logger

_log = get_logger(__name__)

EVERY_S = 3.0
LEASE_S = 15.0


class LastWill:
    """The will of this process, named ``owner``; ``run`` is its task. Times in seconds."""

    def __init__(
        self,
        store: WillStore,
        underway: Callable[[], Sequence[UsageRecord]],
        owner: str,
        *,
        every_s: float = EVERY_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self._store, self._underway, self._owner = store, underway, owner
        self._every_s, self._lease_s = every_s, lease_s
        self._is_left = False

    async def run(self) -> None:
        """Renew the will, and carry out those of processes that are gone; for ever."""
        clock = asyncio.get_running_loop().time
        heard_since = renewed = clock()
        while True:
            await asyncio.sleep(self._every_s)
            if clock() - renewed >= self._lease_s:
                heard_since = clock()
            try:
                await self._renew()
                renewed = clock()
                # While Postgres was away nobody was heard of; those who live get the time to say so.
                if renewed - heard_since >= self._lease_s:
                    await self._carry_out()
            except JanusError as error:
                heard_since = clock()
                _log.debug("last_will_waits", reason=error.reason)

    async def withdraw(self) -> None:
        """The process ends, and all that its calls used is on record."""
        if self._is_left:
            try:
                await self._store.withdraw(self._owner)
            except JanusError as error:
                _log.warning("last_will_not_withdrawn", reason=error.reason)

    async def _renew(self) -> None:
        if records := self._underway():
            self._is_left = True
            await self._store.leave(self._owner, records, self._lease_s)
        elif self._is_left:
            await self._store.withdraw(self._owner)
            self._is_left = False

    async def _carry_out(self) -> None:
        for owner, count in await self._store.carry_out():
            _log.warning("owner_gone", owner=owner, calls=count)

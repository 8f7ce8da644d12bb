"""Which runs this process works on: heartbeats, claims, and news from the others.

All by the database's clock. What this process believes about its leases only
saves work; what keeps an owner that was fenced from writing is the epoch.
"""

import asyncio
from contextlib import suppress

from janus_kit.errors import JanusError
from janus_kit.telemetry.logging import get_logger
from janus_orchestration.children import ORPHANED
from janus_orchestration.executions import Executions
from janus_orchestration.ports import Leases

_log = get_logger(__name__)

_CLAIM_AT_ONCE = 32


class Ownership:
    """Background work of a replica. Times in seconds; see OrchestrationSettings."""

    def __init__(self, leases: Leases, executions: Executions, *, lease_s: float, poll_s: float) -> None:
        self._leases = leases
        self._executions = executions
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._look = asyncio.Event()
        self._absent: set[str] = set()
        executions.on_room = self.look_now

    def look_now(self) -> None:
        """Something may be free to claim."""
        self._look.set()

    async def keep(self) -> None:
        """Heartbeats of the runs that are worked on here."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            ids = self._executions.ids()
            if not ids:
                continue
            try:
                held = await self._leases.renew(self._executions.owner, ids, self._lease_s)
            except JanusError as error:
                _log.warning("heartbeat_failed", reason=error.reason)
                continue
            for run_id, is_cancelled in held.items():
                if is_cancelled:
                    self._executions.cancel(run_id, "")
            # A lease also ends a moment before its run's task does: gone twice is gone.
            absent = {run_id for run_id in ids if run_id not in held and self._executions.is_stored(run_id)}
            for run_id in absent & self._absent:
                self._executions.fence(run_id)
            self._absent = absent

    async def claim(self) -> None:
        """Take runs that nobody works on."""
        while True:
            try:
                async with asyncio.timeout(self._poll_s):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            try:
                await self._claim_once()
            except JanusError as error:
                _log.debug("claim_failed", reason=error.reason)
                await self._until_renewed()

    async def _until_renewed(self) -> None:
        """The database was away, and no lease was renewed: who lives comes before who claims."""
        is_back = False
        while not is_back:
            await asyncio.sleep(self._poll_s)
            with suppress(JanusError):
                await self._leases.renew(self._executions.owner, self._executions.ids(), self._lease_s)
                is_back = True
        await asyncio.sleep(self._lease_s / 3)

    async def _claim_once(self) -> None:
        room = min(self._executions.room, _CLAIM_AT_ONCE)
        if not room:
            return
        # After a pause of this process its own leases are over, and it works on their runs all the same.
        claims = await self._leases.claim(self._executions.owner, room, self._lease_s, self._executions.ids())
        if len(claims) == room:
            self._look.set()
        for claim in claims:
            # One that cannot be adopted now is claimable again when its lease ends.
            await self._executions.adopt(claim)

    async def hear(self) -> None:
        """What other replicas tell: a run is ready, is to be cancelled, is not waited for, or has an answer."""
        async for kind, run_id in self._leases.news():
            if kind == "cancel":
                self._executions.cancel(run_id, "")
            elif kind == "orphan":
                self._executions.cancel(run_id, ORPHANED)
            elif kind == "answer":
                self._executions.answered(run_id)
            else:
                self.look_now()

    async def let_go(self) -> None:
        """Give all leases up, for other replicas to take at once."""
        try:
            await self._leases.release(self._executions.owner)
        except JanusError as error:
            _log.warning("leases_not_released", reason=error.reason)

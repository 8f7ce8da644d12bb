"""Turns that memory is to forget: those of a run that was rolled back, of a thread that was deleted.

Which ones is written in the same transaction that takes them out of the
thread. Memory is told at once, and once more later: a write of these turns may
have been on its way when they were taken out, and has arrived by then.
"""

import asyncio
from collections.abc import Sequence

from janus_kit.auth.identity import acting_as
from janus_kit.errors import JanusError, NotFound, Unavailable
from janus_kit.telemetry.logging import get_logger
from janus_orchestration import identity
from janus_orchestration.model import MemoryScope
from janus_orchestration.ports import Memory, Outbox, Store

_log = get_logger(__name__)

FINAL_AFTER_S = 30.0
"""Longer than any write of turns to memory may take."""
_MOST_IDS = 256
_ATTEMPT_S = 10.0
_PAUSES_S = (0.05, 0.2)
_DUE_AT_ONCE = 16


class Removals:
    """Has memory forget. ``poll_s`` is the time between looks for what is due."""

    def __init__(self, store: Store, outbox: Outbox, memory: Memory, *, poll_s: float) -> None:
        self._store = store
        self._outbox = outbox
        self._memory = memory
        self._poll_s = poll_s

    async def forget(self, tenant: str, scope: MemoryScope, message_ids: Sequence[str], timeout_s: float) -> None:
        """Have these turns out now. Raises what keeps memory from it."""
        with acting_as(identity.of_run(tenant, "")):
            for start in range(0, len(message_ids), _MOST_IDS):
                try:
                    await self._forget_some(scope, message_ids[start : start + _MOST_IDS], timeout_s)
                except NotFound:
                    # The space is not there, so nothing of the thread is.
                    return

    async def _forget_some(self, scope: MemoryScope, message_ids: Sequence[str], timeout_s: float) -> None:
        for pause_s in _PAUSES_S:
            try:
                return await self._memory.forget(scope, message_ids, timeout_s)
            except Unavailable:
                # A part of memory that was slow once: somebody waits for this.
                await asyncio.sleep(pause_s)
        return await self._memory.forget(scope, message_ids, timeout_s)

    async def settle(self, tenant: str, removal_id: str, timeout_s: float = _ATTEMPT_S) -> None:
        """Do what was written down. Raises what keeps memory from it; it is tried again then."""
        async with self._store.tenant(tenant) as records:
            removal = await records.removal(removal_id)
        if removal is None:
            return
        scope = MemoryScope(removal.space, thread=removal.thread_id)
        await self.forget(tenant, scope, removal.message_ids, timeout_s)
        async with self._store.tenant(tenant) as records:
            await records.settle_removal(removal_id)

    async def work(self) -> None:
        """Do what is due, for as long as the process lives."""
        while True:
            try:
                due = await self._outbox.due_removals(_DUE_AT_ONCE, _ATTEMPT_S)
                for tenant, removal_id in due:
                    await self._settle_late(tenant, removal_id)
                if len(due) == _DUE_AT_ONCE:
                    continue
            except JanusError as error:
                _log.debug("memory_removals_wait", reason=error.reason)
            await asyncio.sleep(self._poll_s)

    async def _settle_late(self, tenant: str, removal_id: str) -> None:
        try:
            await self.settle(tenant, removal_id)
        except JanusError as error:
            # Postgres's back-off decides when it is tried again.
            _log.warning("memory_removal_failed", reason=error.reason, code=error.code)

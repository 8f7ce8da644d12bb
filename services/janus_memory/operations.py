"""Long-running operations, as their callers see them: get, watch, cancel."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from janus_kit.errors import NotFound
from janus_memory.idempotency import Request, once
from janus_memory.model import Operation
from janus_memory.ports import Operations, Records

# A watcher that was told nothing looks anyway: a notification can be lost.
_POLL_S = 2.0


class Wakeups:
    """Events of this process by operation id; an empty id stands for all of them."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watching(self, operation_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the operation is woken."""
        event = asyncio.Event()
        events = self._waiting.setdefault(operation_id, set())
        events.add(event)
        try:
            yield event
        finally:
            events.discard(event)
            if not events and self._waiting.get(operation_id) is events:
                del self._waiting[operation_id]

    def wake(self, operation_id: str) -> None:
        """Set the events of an operation and those of all; of every operation for an empty id."""
        for known in {operation_id, ""} if operation_id else list(self._waiting):
            for event in self._waiting.get(known, ()):
                event.set()


class Changes:
    """Passes on what Postgres tells of operations, to who waits for it in this process."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self.seen = Wakeups()
        """Anything that a watcher can see."""
        self.due = Wakeups()
        """It wants an owner, or its owner's attention."""

    async def run(self) -> None:
        """Listen for ever."""
        async for change in self._operations.changes():
            self.seen.wake(change.id)
            if change.due:
                self.due.wake(change.id)


class OperationCalls:
    """GetOperation, WatchOperation and CancelOperation."""

    def __init__(self, records: Records, changes: Changes) -> None:
        self._records = records
        self._changes = changes

    async def get(self, tenant: str, operation_id: str) -> Operation:
        """The operation as it is. Raises NotFound, also for another tenant's."""
        async with self._records.transaction(tenant) as tx:
            found = await tx.operation(operation_id)
        if found is None:
            raise NotFound("operation", operation_id)
        return found

    async def watch(self, tenant: str, operation_id: str) -> AsyncIterator[Operation]:
        """The operation at once and after every change; last as it ended. Raises NotFound."""
        seen = 0
        with self._changes.seen.watching(operation_id) as changed:
            while True:
                changed.clear()
                operation = await self.get(tenant, operation_id)
                if operation.change > seen:
                    seen = operation.change
                    yield operation
                if operation.ended_at is not None:
                    return
                await woken(changed, _POLL_S)

    async def cancel(self, tenant: str, operation_id: str, request: Request) -> Operation:
        """Ask it to stop. The operation as it is now; unchanged when it had ended. Raises NotFound."""
        async with self._records.transaction(tenant) as tx:

            async def work() -> Mapping[str, Any]:
                if await tx.ask_to_cancel(operation_id) is None:
                    raise NotFound("operation", operation_id)
                return {}

            # What came of it may hold a user's words, and is not kept a second time as an answer.
            await once(tx, request, work)
        return await self.get(tenant, operation_id)


async def woken(event: asyncio.Event, within_s: float) -> None:
    """Wait for an event, for so long at most."""
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        pass

"""The runner: works on long-running operations, on every replica.

An operation has one owner at a time, by a lease in Postgres that the owner
renews. An owner that dies is followed by another within seconds; one that is
cut off stops when its lease runs out, and whatever it writes after that is
refused, because owners are numbered. A handler may therefore be stopped
anywhere, and goes on from its cursor.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from janus_kit.errors import Aborted, DeadlineExceeded, Internal, JanusError, ResourceExhausted, Unavailable, is_late
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger
from janus_memory.model import Claim, Operation, OperationState
from janus_memory.operations import Changes, woken
from janus_memory.ports import Handler, Operations, Records, Transaction

T = TypeVar("T")

LEASE_S = 5.0
"""How long an operation whose owner died waits for another."""
GIVE_UP_AFTER = 5
"""Owners that died, or errors that nobody expected, without any progress between them."""
_RENEW_S = 1.5
_PATIENCE_S = 5.0
"""Without progress for so long, an operation waits for something and keeps no place from others."""
_MOST_WAITING = 16
_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 60.0
_GIVE_BACK_S = 2.0
# What another try may find different.
_NOT_NOW = (Unavailable, ResourceExhausted, DeadlineExceeded, Aborted)

_log = get_logger(__name__)


class _Lost(Exception):
    """The operation is another owner's now, or has ended."""


class _Asked(Exception):
    """Somebody asked for the operation to stop."""


class _Pace:
    """Whether an operation makes progress; ``stands`` is called when it has made none for a while."""

    def __init__(self, stands: Callable[[], None]) -> None:
        self._stands = stands
        self._timer: asyncio.TimerHandle | None = None
        self.progress()

    def progress(self) -> None:
        """It does."""
        self.end()
        self.works = True
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._stand)

    def end(self) -> None:
        """Nobody has to know any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _stand(self) -> None:
        self.works = False
        self._stands()


class OperationRunner:
    """Begins operations of the kinds that have a handler while fewer than ``at_once`` make progress.

    Besides those it owns some that wait: what waits for a part that hangs keeps
    others, of other tenants first, for some seconds only.
    """

    def __init__(
        self,
        records: Records,
        operations: Operations,
        changes: Changes,
        handlers: Mapping[str, Handler],
        *,
        at_once: int,
        poll_s: float,
    ) -> None:
        self._records = records
        self._operations = operations
        self._changes = changes
        self._handlers = handlers
        self._at_once = at_once
        self._poll_s = poll_s
        self._id = str(uuid4())
        # Ids and epochs.
        self._works_on: dict[str, int] = {}
        self._paces: set[_Pace] = set()
        self._has_moved = asyncio.Event()

    async def run(self) -> None:
        """Work for ever: at once when there is something new, and every ``poll_s`` seconds regardless."""
        waiting = False
        async with asyncio.TaskGroup() as group:
            with self._changes.due.watching("") as due:
                while True:
                    due.clear()
                    await self._room()
                    claim = None
                    try:
                        # After a pause of this process its own leases are over, and it works on all the same.
                        claim = await self._operations.claim(self._id, list(self._handlers), LEASE_S, self._works_on)
                        waiting = False
                    except JanusError as error:
                        # Postgres is away, or busy; the next round will tell.
                        if not waiting:
                            _log.warning("operations_wait", reason=error.reason, detail=error.message)
                        waiting = True
                    if claim is None:
                        await woken(due, self._poll_s)
                    else:
                        self._works_on[claim.id] = claim.epoch
                        pace = _Pace(self._has_moved.set)
                        self._paces.add(pace)
                        task = group.create_task(self._own(claim, pace))
                        task.add_done_callback(partial(self._left, pace))

    async def _room(self) -> None:
        """Return when another operation may be begun."""
        while (
            sum(pace.works for pace in self._paces) >= self._at_once
            or len(self._paces) >= self._at_once + _MOST_WAITING
        ):
            self._has_moved.clear()
            await self._has_moved.wait()

    def _left(self, pace: _Pace, _: "asyncio.Task[None]") -> None:
        pace.end()
        self._paces.discard(pace)
        self._has_moved.set()

    async def _own(self, claim: Claim, pace: _Pace) -> None:
        """Work on an operation until it ended, has to wait, or is ours no more. Never fails."""
        try:
            while True:
                try:
                    await self._settle(claim, await self._renewed(claim), pace)
                    break
                except _Asked:
                    pass  # Read again, it says so.
        except _Lost:
            _log.info("operation_lost", operation=claim.id)
        except JanusError as error:
            # The lease runs out, and whoever is there then goes on.
            _log.warning("operation_left", operation=claim.id, reason=error.reason, detail=error.message)
        except asyncio.CancelledError:
            await self._give_back(claim)
            raise
        finally:
            # It may be ours again, for another task.
            if self._works_on.get(claim.id) == claim.epoch:
                del self._works_on[claim.id]

    async def _settle(self, claim: Claim, operation: Operation, pace: _Pace) -> None:
        """One attempt, and what follows from how it ended."""
        try:
            await self._attempt(claim, operation, pace)
        except (_Lost, _Asked):
            raise
        except _NOT_NOW as error:
            what = error.part.split(":")[0] if isinstance(error, Unavailable) else ""
            how = "slow to answer" if is_late(error) else "not available"
            phase = f"waits for {what or 'a part'}, which is {how}"
            _log.warning("operation_waits", operation=claim.id, kind=operation.kind, reason=error.reason)
            await self._release(claim, operation.waits, error.retry_after or 0.0, phase, waits=1)
        except Exception:  # noqa: BLE001 - one operation's bug must not stop the others
            incident = new_id("inc")
            _log.exception("operation_failed", operation=claim.id, kind=operation.kind, incident_id=incident)
            await self._release(
                claim, operation.failures, 0.0, f"failed and is tried again; incident {incident}", failures=1
            )

    async def _attempt(self, claim: Claim, operation: Operation, pace: _Pace) -> None:
        handler = self._handlers[operation.kind]
        cancelled = operation.cancel_requested
        gives_up = operation.failures >= GIVE_UP_AFTER
        if (cancelled or gives_up) and await self._held(claim, handler.undo(claim.tenant, operation)):
            state = OperationState.CANCELLED if cancelled else OperationState.FAILED
            await self._end(claim, state, None, None if cancelled else _given_up(operation))
            return
        try:
            work = handler.run(claim.tenant, operation, _Saver(self._records, claim, pace))
            result = await self._held(claim, work, stoppable=not cancelled)
        except JanusError as error:
            if isinstance(error, (*_NOT_NOW, Internal)):
                raise
            if not await self._held(claim, handler.undo(claim.tenant, operation)):
                raise
            await self._end(claim, OperationState.FAILED, None, error)
        else:
            await self._end(claim, OperationState.SUCCEEDED, result, None)

    async def _held(self, claim: Claim, work: Coroutine[Any, Any, T], *, stoppable: bool = False) -> T:
        """Do a piece of work while renewing the lease; stop it when that fails for too long, or when asked to."""
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(work)
        ours_until = loop.time() + LEASE_S
        try:
            with self._changes.due.watching(claim.id) as due:
                while not task.done():
                    due.clear()
                    await _first_of(task, due, _RENEW_S)
                    asked_at = loop.time()
                    try:
                        async with asyncio.timeout_at(ours_until):
                            operation = await self._renewed(claim)
                    except JanusError:
                        if loop.time() >= ours_until:
                            raise _Lost from None
                        continue  # Postgres is away or busy, and the lease still runs.
                    except TimeoutError:
                        raise _Lost from None
                    ours_until = asked_at + LEASE_S
                    if stoppable and operation.cancel_requested and not task.done():
                        raise _Asked
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _renewed(self, claim: Claim) -> Operation:
        async with self._records.transaction(claim.tenant) as tx:
            operation = await tx.renew(claim, LEASE_S)
        if operation is None:
            raise _Lost
        return operation

    async def _end(
        self, claim: Claim, state: OperationState, result: Mapping[str, Any] | None, error: JanusError | None
    ) -> None:
        async with self._records.transaction(claim.tenant) as tx:
            if not await tx.end_operation(claim, state, result, error):
                raise _Lost
        reason = error.reason if error else ""
        _log.info("operation_ended", operation=claim.id, state=state.name.lower(), reason=reason)

    async def _release(
        self, claim: Claim, tries: int, at_least_s: float, phase: str, *, waits: int = 0, failures: int = 0
    ) -> None:
        delay = max(at_least_s, min(_FIRST_DELAY_S * 2 ** min(tries, 10), _LONGEST_DELAY_S))
        delay *= random.uniform(0.8, 1.2)  # noqa: S311 - spreads replicas, guards nothing
        async with self._records.transaction(claim.tenant) as tx:
            await tx.release_operation(claim, delay, phase, waits, failures)

    async def _give_back(self, claim: Claim) -> None:
        """This process ends: let another one go on at once."""
        try:
            async with asyncio.timeout(_GIVE_BACK_S), self._records.transaction(claim.tenant) as tx:
                await tx.release_operation(claim, 0.0, None)
        except (JanusError, TimeoutError):
            pass  # The lease runs out by itself.


class _Saver:
    """Implements ports.Progress for one owner."""

    def __init__(self, records: Records, claim: Claim, pace: _Pace) -> None:
        self._records = records
        self._claim = claim
        self._pace = pace

    async def save(
        self, cursor: Mapping[str, Any], *, done: int, total: int, phase: str, tx: Transaction | None = None
    ) -> None:
        if tx is None:
            async with self._records.transaction(self._claim.tenant) as own:
                await self.save(cursor, done=done, total=total, phase=phase, tx=own)
        elif not await tx.save_progress(self._claim, cursor, done, total, phase):
            raise _Lost
        else:
            self._pace.progress()


def _given_up(operation: Operation) -> Internal:
    incident = new_id("inc")
    _log.error("operation_gave_up", operation=operation.id, kind=operation.kind, incident_id=incident)
    return Internal(incident)


async def _first_of(task: asyncio.Task[Any], event: asyncio.Event, within_s: float) -> None:
    """Wait until the task is done or the event set, for so long at most."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()

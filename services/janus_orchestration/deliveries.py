"""Turns on their way to memory: at the end of a run, or later from the outbox.

The debt is in the same transaction as the messages, and memory takes every
write once by its request id, so nothing is lost and nothing stored twice. The
debts of one thread are paid in order of position. One that memory refuses for
what it is would never be paid: it is put aside, with the reason, and the
thread goes on.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from janus_kit.auth.identity import acting_as
from janus_kit.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    JanusError,
    NotFound,
    OutOfRange,
)
from janus_kit.telemetry.logging import get_logger
from janus_orchestration import identity, telemetry
from janus_orchestration.model import MemoryScope, StoreDebt, ThreadMessage
from janus_orchestration.ports import Memory, Outbox, Store

_log = get_logger(__name__)

_MOST_TURNS = 256
_MOST_BYTES = 2 * 1024 * 1024
_ATTEMPT_S = 10.0
_DUE_AT_ONCE = 16
_MOST_REASON_CHARS = 1_024
_FORGET_EVERY = 600

# What is wrong with the write itself. Credentials and versions are mended by
# an operator, and the debt is good then.
_REFUSALS = (InvalidArgument, FailedPrecondition, NotFound, AlreadyExists, OutOfRange, DataLoss)


class Delivered(NamedTuple):
    """What memory did without, and the debt that it was given but that is not paid."""

    degraded: tuple[str, ...] = ()
    unpaid: StoreDebt | None = None


class Deliveries:
    """Pays debts to memory. ``poll_s`` is the time between looks at the outbox."""

    def __init__(self, store: Store, outbox: Outbox, memory: Memory, *, poll_s: float) -> None:
        self._store = store
        self._outbox = outbox
        self._memory = memory
        self._poll_s = poll_s

    async def settle(self, tenant: str, thread_id: str, timeout_s: float) -> None:
        """Pay all of a thread's debts, in order.

        Raises what keeps memory from taking them for now; they stay in the
        outbox then. Debts that memory refuses are put aside.
        """
        delivered = await self.deliver(tenant, thread_id, timeout_s)
        if delivered.unpaid is not None:
            async with self._store.tenant(tenant) as records:
                await records.pay_debt(delivered.unpaid)

    async def deliver(
        self, tenant: str, thread_id: str, timeout_s: float, only: tuple[StoreDebt, list[ThreadMessage]] | None = None
    ) -> Delivered:
        """Pay a thread's debts as ``settle`` does, but for the last, which the caller's commit is to pay.

        ``only`` is the thread's only debt and its messages, where the caller knows that.
        """
        degraded: dict[str, None] = {}
        paid: StoreDebt | None = None
        while True:
            if only is not None:
                debt, messages = only
                debts, only = [debt], None
            else:
                async with self._store.tenant(tenant) as records:
                    if paid is not None:
                        await records.pay_debt(paid)
                    debts = await records.debts(thread_id)
                    if not debts:
                        return Delivered(tuple(degraded))
                    debt = debts[0]
                    count = debt.to_position - debt.from_position + 1
                    messages = await records.messages(thread_id, after=debt.from_position - 1, limit=count)
            try:
                degraded.update(dict.fromkeys(await self._deliver(tenant, debt, messages, timeout_s)))
            except JanusError as error:
                if not _is_refusal(error):
                    raise
                await self._put_aside(tenant, debt, error)
                degraded["memory"] = None
                paid = None
                continue
            if len(debts) == 1:
                return Delivered(tuple(degraded), debt)
            paid = debt

    async def _deliver(
        self, tenant: str, debt: StoreDebt, messages: Sequence[ThreadMessage], timeout_s: float
    ) -> list[str]:
        """Have memory take the turns of a debt; names of parts that it did without."""
        scope = MemoryScope(debt.space, debt.subject, debt.thread_id)
        degraded: list[str] = []
        with acting_as(identity.of_run(tenant, debt.subject)):
            for part in _parts(messages):
                request_id = f"{debt.run_id}:store:{part[0].position}-{part[-1].position}"
                stored = await self._memory.append(scope, part, request_id, timeout_s)
                degraded += stored.degraded
                if debt.extract:
                    await self._extract(scope, part, debt, timeout_s)
        return degraded

    async def _extract(
        self, scope: MemoryScope, part: Sequence[ThreadMessage], debt: StoreDebt, timeout_s: float
    ) -> None:
        """Have facts made of turns that memory has now. Where that is refused they stay turns."""
        ids = [item.message.id for item in part]
        request_id = f"{debt.run_id}:extract:{part[0].position}-{part[-1].position}"
        try:
            await self._memory.extract(scope, ids, request_id, timeout_s)
        except JanusError as error:
            if not _is_refusal(error):
                raise
            telemetry.extractions_refused.labels(error.code).inc()
            _log.warning("extraction_refused", run_id=debt.run_id, code=error.code, reason=error.reason)

    async def _put_aside(self, tenant: str, debt: StoreDebt, error: JanusError) -> None:
        telemetry.store_debts_dead.labels(error.code).inc()
        _log.error(
            "memory_refused_turns",
            tenant=tenant,
            thread_id=debt.thread_id,
            run_id=debt.run_id,
            from_position=debt.from_position,
            to_position=debt.to_position,
            code=error.code,
            reason=error.reason,
        )
        async with self._store.tenant(tenant) as records:
            await records.bury_debt(debt, f"{error.code}/{error.reason}: {error.message}"[:_MOST_REASON_CHARS])

    async def work(self) -> None:
        """Pay what the ends of runs could not, for as long as the process lives."""
        rounds = 0
        while True:
            try:
                due = await self._outbox.due(_DUE_AT_ONCE, _ATTEMPT_S)
                for tenant, thread_id in due:
                    await self._settle_late(tenant, thread_id)
                rounds += 1
                if rounds % _FORGET_EVERY == 1:
                    await self._outbox.forget_old_requests()
                if len(due) == _DUE_AT_ONCE:
                    continue
            except JanusError as error:
                _log.debug("memory_outbox_waits", reason=error.reason)
            await asyncio.sleep(self._poll_s)

    async def _settle_late(self, tenant: str, thread_id: str) -> None:
        try:
            await self.settle(tenant, thread_id, _ATTEMPT_S)
        except JanusError as error:
            # Postgres's back-off decides when it is tried again.
            _log.warning("memory_store_failed", reason=error.reason, code=error.code)
        else:
            telemetry.store_debts_paid.labels("later").inc()


def _is_refusal(error: JanusError) -> bool:
    """Whether the same write would be refused for ever."""
    return isinstance(error, _REFUSALS) or error.reason == "MESSAGE_TOO_LARGE"


def _parts(messages: Sequence[ThreadMessage]) -> Iterator[list[ThreadMessage]]:
    """As many messages as one write may have. Deterministic, so that a retry is the same write."""
    part: list[ThreadMessage] = []
    size = 0
    for message in messages:
        if part and (len(part) == _MOST_TURNS or size + len(message.message.wire) > _MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(message)
        size += len(message.message.wire)
    if part:
        yield part

"""Erase: a subject out of every store, read back.

Records go from Postgres in batches, each with a note of what has to follow
elsewhere. The moment in which Postgres has nothing left, and no writer of the
subject is at work, is the cut: what was written before it is erased, what comes
after it is not. Then the notes are worked off: windows, vectors, what others
cite. Every step can be done again, so whoever repeats the call after a crash
goes on where it ended; only what is gone everywhere is receipted.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

from janus_kit.clock import Clock
from janus_kit.errors import JanusError, Unavailable
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger
from janus_memory.erasure import EVERYWHERE, NOWHERE, Outside, Receipt, Target
from janus_memory.idempotency import Request, claimed
from janus_memory.model import Backend, Space, View
from janus_memory.parts import Parts
from janus_memory.ports import Receipts, Records, Transaction, VectorIndex, Windows
from janus_memory.spaces import Spaces

_BATCH = 500
_TRIES = 3
# A little more than an indexer's lease: a batch in flight has ended by then.
_LEASE_WAIT_S = 20.0
_PAUSE_S = 0.02
_LEFT_ALONE_S = 600.0
_LOOK_EVERY_S = 60.0

STORES = (
    "postgres.turn",
    "postgres.memory",
    "postgres.unit",
    "postgres.vector",
    "postgres.outbox",
    "postgres.thread",
    "postgres.block",
    "postgres.import",
    "postgres.request",
    "postgres.operation",
    "postgres.dead_letter",
    "postgres.extraction",
    "postgres.provenance",
    "redis.window",
)
"""Stores of every receipt; those of vector indexes come to them."""
_VECTORS: Mapping[int, str] = {Backend.PGVECTOR: "postgres.vector", Backend.CHROMA: "chroma"}

_log = get_logger(__name__)


class Erase:
    """Removes subjects."""

    def __init__(
        self,
        records: Records,
        windows: Windows,
        indexes: Mapping[int, VectorIndex],
        spaces: Spaces,
        receipts: Receipts,
        parts: Parts,
        clock: Clock,
    ) -> None:
        self._records = records
        self._windows = windows
        self._indexes = indexes
        self._spaces = spaces
        self._receipts = receipts
        self._parts = parts
        self._clock = clock

    async def run(self, tenant: str, subject: str, space_name: str, reason: str, request: Request) -> Receipt:
        """Erase a subject from a space, or from all where the name is empty.

        Raises NotFound for a space that is not there, and Unavailable naming
        the store that could not be cleaned or read: what was done stays done,
        and the same call goes on with the rest.
        """
        named = request if request.id else None
        async with self._records.transaction(tenant) as tx:
            answer = await claimed(tx, named) if named else None
            if answer:
                return _receipt(answer)
            target = Target(subject, await self._space_no(tx, space_name))
            await tx.begin_erasure(target)
        return await self._finish(tenant, target, reason, named)

    async def run_for_ever(self) -> None:
        """End erasures whose caller went away and did not come back."""
        while True:
            tenants: Sequence[str] = ()
            with _waits():
                tenants = await self._records.tenants_erasing(_LEFT_ALONE_S)
            for tenant in tenants:
                with _waits():
                    await self.resume(tenant, _LEFT_ALONE_S)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def resume(self, tenant: str, older_than_s: float) -> int:
        """End a tenant's erasures that were begun so long ago, as far as the stores are there; how many."""
        async with self._records.transaction(tenant) as tx:
            left = await tx.unfinished_erasures(older_than_s)
        ended = 0
        for target in left:
            with _waits():
                await self._finish(tenant, target, "", None)
                ended += 1
        return ended

    async def _finish(self, tenant: str, target: Target, reason: str, request: Request | None) -> Receipt:
        while True:
            await self._clean(tenant, target)
            async with self._records.transaction(tenant) as tx:
                receipt = await self._end(tx, target, reason, request)
            if receipt is not None:
                return receipt

    async def _space_no(self, tx: Transaction, name: str) -> int:
        if not name:
            return EVERYWHERE
        space = await self._spaces.for_read(tx, name)
        return space.number if space else NOWHERE

    async def _clean(self, tenant: str, target: Target) -> None:
        while not await self._cut(tenant, target):
            pass
        while True:
            async with self._records.transaction(tenant) as tx:
                uncited = await tx.uncite(target, _BATCH)
                await tx.tally(target, {"postgres.provenance": uncited})
            if uncited < _BATCH:
                break
        while await self._work_off(tenant, target):
            pass
        await self._take_out_forgotten(tenant, target)

    async def _cut(self, tenant: str, target: Target) -> bool:
        """Whether nothing was left and nobody wrote, at one moment. Removes some before, and what came meanwhile."""
        async with self._records.transaction(tenant) as tx:
            removed = await tx.erase_some(target, _BATCH)
            await tx.tally(target, removed)
        if _full(removed):
            return False
        async with self._records.transaction(tenant) as tx:
            await tx.keep_out_writers(target.subject)
            while removed := await tx.erase_some(target, _BATCH):
                await tx.tally(target, removed)
                if _full(removed):
                    # There is more than came meanwhile: writers need not wait for all of it.
                    return False
            return not any((await tx.left_of(target)).values())

    async def _work_off(self, tenant: str, target: Target) -> bool:
        """Remove some of what is noted from the other stores; whether there was any."""
        async with self._records.transaction(tenant) as tx:
            outside = await tx.outside(target, _BATCH)
            homes = await tx.homes(outside.space_no) if outside else []
        if outside is None:
            return False
        await self._wait_for_indexer(tenant, outside)
        # Each counted at once: the next store may be away.
        await self._tally(tenant, target, "redis.window", await self._close_windows(tenant, outside.windows))
        for home in homes:
            removed = await self._take_out(tenant, home, outside)
            await self._tally(tenant, target, _VECTORS[home.backend], removed)
        async with self._records.transaction(tenant) as tx:
            await tx.tally(target, {"postgres.outbox": await tx.settle(target.subject, outside)})
        return True

    async def _take_out_forgotten(self, tenant: str, target: Target) -> None:
        """Do for the indexer what it has yet to do: what was forgotten before bears nobody's name any more.

        Some of it may have been the subject's, so no receipt is true before it is out. It counts as
        removed by whoever forgot it, and the indexer's rows stay.
        """
        after = (0, 0)
        while True:
            async with self._records.transaction(tenant) as tx:
                outside = await tx.forgotten(target, after, _BATCH)
                homes = await tx.homes(outside.space_no) if outside else []
            if outside is None:
                return
            await self._wait_for_indexer(tenant, outside)
            for home in homes:
                await self._take_out(tenant, home, outside)
            after = (outside.space_no, outside.gone[-1])

    async def _tally(self, tenant: str, target: Target, store: str, removed: int) -> None:
        if removed:
            async with self._records.transaction(tenant) as tx:
                await tx.tally(target, {store: removed})

    async def _wait_for_indexer(self, tenant: str, outside: Outside) -> None:
        """Until no batch that may hold vectors of the units is in flight."""
        units = [*outside.gone, *outside.around]
        loop = asyncio.get_running_loop()
        end = loop.time() + _LEASE_WAIT_S
        while True:
            async with self._records.transaction(tenant) as tx:
                if not await tx.leased(outside.space_no, units):
                    return
            if loop.time() >= end:
                raise Unavailable("indexer", "an indexer is still at work on what is to be erased")
            await asyncio.sleep(_PAUSE_S)

    async def _close_windows(self, tenant: str, windows: Sequence[str]) -> int:
        removed = 0
        for _ in range(_TRIES):
            removed += await self._windows.erase(tenant, windows)
            if not await self._windows.kept(tenant, windows):
                return removed
        raise Unavailable("redis", "windows are there again after they were removed")

    async def _take_out(self, tenant: str, space: Space, outside: Outside) -> int:
        """Vectors out of an index, and read back; how many of the subject's there were."""
        part = space.backend.name.lower()
        index = self._indexes.get(space.backend)
        if index is None:
            raise Unavailable(part)
        try:
            removed = 0
            for _ in range(_TRIES):
                there = await _held(index, tenant, space, outside.gone)
                await index.delete(tenant, space, [*outside.gone, *outside.around])
                removed += there
                if not await _held(index, tenant, space, outside.gone):
                    self._parts.back(part)
                    return removed
        except Unavailable as error:
            self._parts.away(error.part)
            raise
        raise Unavailable(part, f"{part} still has vectors that were removed")

    async def _end(self, tx: Transaction, target: Target, reason: str, request: Request | None) -> Receipt | None:
        """The receipt; None when another erasure of the subject left more to do."""
        answer = await claimed(tx, request) if request else None
        if answer:
            return _receipt(answer)
        uncited = await tx.uncite(target, _BATCH)
        if uncited:
            await tx.tally(target, {"postgres.provenance": uncited})
        if uncited or await tx.outside(target, 1):
            return None
        removed = await tx.end_erasure(target)
        signer = await self._receipts.signer(tx)
        stores = dict.fromkeys([*STORES, *(_VECTORS[backend] for backend in self._indexes)], 0)
        receipt = signer.signed(Receipt(new_id("era"), self._clock.now(), {**stores, **removed}, reason))
        if request:
            await tx.answer_request(request.method, request.id, _answer(receipt))
        return receipt


@contextmanager
def _waits() -> Iterator[None]:
    """What is done for some goes on for the others when a store is away; the next round tries again."""
    try:
        yield
    except JanusError as error:
        _log.warning("erasure_waits", reason=error.reason, detail=error.message)


def _full(removed: Mapping[str, int]) -> bool:
    """Whether a batch came to its limit, so that more is likely."""
    return max(removed.values(), default=0) >= _BATCH


async def _held(index: VectorIndex, tenant: str, space: Space, units: Sequence[int]) -> int:
    return sum([len(await index.entries(tenant, space, view, units)) for view in View]) if units else 0


def _answer(receipt: Receipt) -> Mapping[str, Any]:
    return {
        **asdict(receipt),
        "erased_at": receipt.erased_at.isoformat(),
        "signature": receipt.signature.hex(),
    }


def _receipt(answer: Mapping[str, Any]) -> Receipt:
    return Receipt(
        **{
            **answer,
            "erased_at": datetime.fromisoformat(answer["erased_at"]),
            "signature": bytes.fromhex(answer["signature"]),
        }
    )

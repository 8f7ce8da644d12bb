"""The work of a Reindex: a space's vectors are built anew beside those that are searched.

While a generation is built, the indexer tells it of every row that it has
applied to the live one, in the transaction that finishes the row; so a target
that is slow or away holds nobody up, and nothing is lost. This work alone
writes to the generation in building: it goes through all units on record, then
through what changed meanwhile, always reading a unit as it is now. When nothing
is left and the comparison holds, one transaction makes it the live generation,
while no indexer is between its write and its word. The old one stays until
every recall that may still read it has ended.

What is under way is on record in `memory.rebuild` before it is read: whoever
goes on after a crash does it again, and an erasure waits for it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from janus_kit.clock import Clock
from janus_kit.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable, is_late
from janus_kit.telemetry.logging import get_logger
from janus_memory.generation import Generation, Phase, Waiting
from janus_memory.generation_checks import GenerationChecks
from janus_memory.model import Embeddable, Operation, Space, VectorRow
from janus_memory.parts import Parts
from janus_memory.ports import Embedders, Progress, Records, Transaction, VectorIndex
from janus_memory.vectors import Vectors

BATCH = 256
"""Units that are learnt at a time, as long as the index takes so many in time."""
LEASE_S = 15.0
"""How long an erasure waits for texts in the hands of a process that died."""
_APPLY_TIMEOUT_S = 12.0
# An index that does not take so few in time is as good as away.
_LEAST_BATCH = 16
# With so many left, and no more, the switch is made while the indexer stands still.
_LAST_UNITS = BATCH
_LAST_TIMEOUT_S = 5.0
_DROPPED = 1_000
_PAUSE_S = 0.2
_TRIES = 5
# A model that refuses more than one text in a hundred, or than so many, is refused itself.
_MOST_REFUSED = 100
_LEAST_AGREEMENT = 0.95

_log = get_logger(__name__)


class Rebuild:
    """Implements ports.Handler for operations that `Reindex` starts."""

    def __init__(
        self,
        records: Records,
        indexes: Mapping[int, VectorIndex],
        embedders: Embedders,
        parts: Parts,
        clock: Clock,
        *,
        retire_after_s: float,
    ) -> None:
        """``retire_after_s``: longer than any recall reads from the space as it found it."""
        self._records = records
        self._indexes = indexes
        self._vectors = Vectors(embedders, parts)
        self._checks = GenerationChecks(records, indexes, self._vectors, clock)
        self._retire_after_s = retire_after_s

    async def run(self, tenant: str, operation: Operation, progress: Progress) -> Mapping[str, Any]:
        space, beside = await self._found(tenant, operation)
        cursor = dict(operation.cursor)
        if "switched" not in cursor:
            if beside is None:
                raise FailedPrecondition("STATE_CONFLICT", "what was built is gone", {"state": "removed"})
            index = self._indexes.get(beside.backend)
            if index is None:
                raise Unavailable(beside.backend.name.lower())
            build = _Build(
                self._records, index, self._vectors, self._checks, tenant, space, beside.of(space), operation, progress
            )
            cursor = await build.run()
            space, beside = await self._found(tenant, operation)
        if beside is not None:
            done = cursor["queued"]
            await progress.save(cursor, done=done, total=done, phase="removing the old vectors")
            await asyncio.sleep(max(0.0, self._retire_after_s - beside.age_s))
            await self._let_indexers_end(tenant, space)
            await self._remove(tenant, space, beside)
        return dict(cursor["switched"])

    async def undo(self, tenant: str, operation: Operation) -> bool:
        space, beside = await self._found(tenant, operation)
        if "switched" in operation.cursor or (beside is not None and beside.phase is Phase.RETIRING):
            return False
        if beside is not None:
            await self._remove(tenant, space, beside)
        return True

    async def _let_indexers_end(self, tenant: str, space: Space) -> None:
        """Until none is left that may still write to the old generation: its vectors would outlive their records."""
        while True:
            async with self._records.transaction(tenant) as tx:
                if not await tx.indexing_before_switch(space.number):
                    return
            await asyncio.sleep(_PAUSE_S)

    async def _remove(self, tenant: str, space: Space, beside: Generation) -> None:
        """Take a generation that nobody searches out of its index and off the record."""
        index = self._indexes.get(beside.backend)
        # A backend that this server has no more has nothing that could be removed.
        if index is not None:
            await index.drop(tenant, beside.of(space))
        while True:
            async with self._records.transaction(tenant) as tx:
                # So that no indexer adds to the queue of a generation that it still saw.
                await tx.hold_generations(space.number)
                if not await tx.drop_waiting(space.number, _DROPPED):
                    await tx.end_generation(space.number, beside.operation_id)
                    return

    async def _found(self, tenant: str, operation: Operation) -> tuple[Space, Generation | None]:
        """The space, and the generation beside its live one if that is this operation's."""
        number = operation.arguments["space_no"]
        async with self._records.transaction(tenant) as tx:
            space = await tx.space_numbered(number)
            beside = await tx.generation(number)
        if space is None:
            raise NotFound("space", operation.arguments["space"])
        return space, beside if beside is not None and beside.operation_id == operation.id else None


class _Build:
    """One run of the building, up to the switch."""

    def __init__(
        self,
        records: Records,
        index: VectorIndex,
        vectors: Vectors,
        checks: GenerationChecks,
        tenant: str,
        live: Space,
        built: Space,
        operation: Operation,
        progress: Progress,
    ) -> None:
        self._records = records
        self._index = index
        self._vectors = vectors
        self._checks = checks
        self._tenant = tenant
        self._live = live
        self._built = built
        self._part = built.backend.name.lower()
        self._progress = progress
        self._cursor: dict[str, Any] = dict(operation.cursor)
        self._total = operation.total
        self._batch = BATCH
        # Units that the model refuses, and why; JSON has texts as keys only.
        self._refused = {int(unit): why for unit, why in self._cursor.get("refused", {}).items()}

    async def run(self) -> dict[str, Any]:
        """Make the new generation whole and the live one; the cursor from there on."""
        await self._copy()
        for _ in range(_TRIES):
            await self._catch_up()
            await self._make_whole()
            agreement = await self._checks.agreement(self._tenant, self._live, self._built, self._refused)
            if agreement is None or agreement >= _LEAST_AGREEMENT:
                while not await self._switch(agreement):
                    await self._catch_up()
                return self._cursor
        raise FailedPrecondition(
            "STATE_CONFLICT",
            "the new vectors do not find what the old ones find",
            {"state": "comparison_failed"},
            subject=f"space/{self._live.name}",
        )

    async def _copy(self) -> None:
        """Everything on record when it began; of what came later the indexer tells."""
        if "upto" not in self._cursor:
            async with self._records.transaction(self._tenant) as tx:
                extent = await tx.extent(self._built.number)
            self._total = extent.units
            self._cursor.update(after=0, upto=extent.last, queued=0)
        while True:
            # Before progress is saved: a part that is away is asked less and less often until there is some.
            await self._learn_next()
            if self._cursor["after"] >= self._cursor["upto"]:
                return
            async with self._records.transaction(self._tenant) as tx:
                upto, done = self._cursor["upto"], self._cursor["queued"]
                # The other half of a batch is for what is written meanwhile, which never ends.
                extent = await tx.queue_units(self._built.number, self._cursor["after"], upto, self._batch // 2)
                self._cursor.update(after=extent.last or upto, queued=done + extent.units)
                await self._save("copying", done, tx)

    async def _catch_up(self) -> None:
        await self._save("catching up", self._cursor["queued"])
        await self._drain()

    async def _make_whole(self) -> None:
        """Compare with the records until nothing is lacking or too much."""
        for _ in range(_TRIES):
            await self._save("comparing", self._cursor["queued"])
            wrong = await self._checks.remove_wrong(self._tenant, self._built, self._refused)
            await self._checks.remove_surplus(self._tenant, self._built)
            if not wrong:
                return
            _log.warning("rebuild_repairs", space_no=self._built.number, units=wrong)
            await self._drain()
        raise Unavailable(self._part, f"{self._part} does not keep what it is given")

    async def _switch(self, agreement: float | None) -> bool:
        """Make the new generation the live one, unless what is left takes too long for the indexer to stand still."""
        async with self._records.transaction(self._tenant) as tx:
            units = (await tx.extent(self._built.number)).units
        async with self._records.transaction(self._tenant) as tx:
            await tx.hold_generations(self._built.number)
            left = await self._waiting(_LAST_UNITS + 1)
            if len(left) > _LAST_UNITS:
                return False
            try:
                await self._learn(left, _LAST_TIMEOUT_S)
            except Unavailable as error:
                if not is_late(error):
                    raise
                return False
            await tx.switch(self._built.number, self._refused)
            self._cursor["switched"] = {
                "space": self._built.name,
                "backend": self._part,
                "embedding_model": self._built.model,
                "dimensions": self._built.dimensions,
                "units": units,
                "refused": len(self._refused),
                "agreement": None if agreement is None else round(agreement, 4),
            }
            # Last: whoever renews the lease waits for this row from here on.
            await self._save("switching", self._cursor["queued"], tx)
        _log.info("rebuild_switched", space_no=self._built.number, generation=self._built.generation)
        return True

    async def _drain(self) -> None:
        """Until less than a batch is left: nothing would be as long as somebody writes."""
        while await self._learn_next():
            pass

    async def _learn_next(self) -> bool:
        """Let what waits the longest be learnt, fewer at a time while the index is slow; whether that was a batch."""
        while True:
            waiting = await self._waiting(self._batch)
            try:
                await self._learn(waiting, _APPLY_TIMEOUT_S)
            except Unavailable as error:
                if not is_late(error) or len(waiting) <= _LEAST_BATCH:
                    raise
                self._batch = max(len(waiting) // 4, _LEAST_BATCH)
                _log.warning("rebuild_slows_down", space_no=self._built.number, part=error.part, batch=self._batch)
            else:
                is_full = len(waiting) == self._batch
                self._batch = min(2 * self._batch, BATCH)
                return is_full

    async def _waiting(self, limit: int) -> list[Waiting]:
        async with self._records.transaction(self._tenant) as tx:
            return await tx.waiting_units(self._built.number, limit)

    async def _learn(self, waiting: Sequence[Waiting], within_s: float) -> None:
        """Put units into the new generation as they are now, or take them out."""
        if not waiting:
            return
        number, ids = self._built.number, [each.id for each in waiting]
        units = list(dict.fromkeys(each.unit for each in waiting))
        part = "embedder"
        try:
            async with asyncio.timeout(within_s):
                async with self._records.transaction(self._tenant) as tx:
                    await tx.lease_waiting(number, ids, LEASE_S)
                # Read when that is committed: an erasure sees the lease, or was before.
                async with self._records.transaction(self._tenant) as tx:
                    found = await tx.embeddables(number, units)
                rows = await self._made(found)
                part = self._part
                there = {row.about.unit for row in rows}
                try:
                    await self._index.upsert(self._tenant, self._built, rows)
                finally:
                    # Also of a write that may have arrived although it failed.
                    async with self._records.transaction(self._tenant) as tx:
                        gone = {*await tx.tombstones(number, units)}
                    await self._index.delete(
                        self._tenant, self._built, [unit for unit in units if unit not in there or unit in gone]
                    )
                async with self._records.transaction(self._tenant) as tx:
                    await tx.learnt(number, ids)
        except TimeoutError as error:
            raise Unavailable(part) from error

    async def _made(self, found: Sequence[Embeddable]) -> list[VectorRow]:
        """Rows of units; those that the model refuses are noted and left out."""
        try:
            rows = await self._vectors.of(self._tenant, self._built, found)
        except InvalidArgument as error:
            if error.reason == "DIMENSION_MISMATCH":
                raise  # By the model, and not by this text.
            if len(found) > 1:
                middle = len(found) // 2
                return [*await self._made(found[:middle]), *await self._made(found[middle:])]
            self._refused[found[0].about.unit] = error.message
            if len(self._refused) > min(max(1, self._total // 100), _MOST_REFUSED):
                raise
            return []
        for each in found:
            self._refused.pop(each.about.unit, None)
        return rows

    async def _save(self, phase: str, done: int, tx: Transaction | None = None) -> None:
        self._cursor["refused"] = {str(unit): why for unit, why in self._refused.items()}
        await self._progress.save(self._cursor, done=done, total=self._total, phase=phase, tx=tx)

"""The indexer: applies the outbox to statistics and vectors.

At least once and idempotent: a row is leased, its unit is read as it is now,
its terms are counted once, its vectors are put in place of older ones, and the
row goes only after that. What is gone by then is taken out instead, so a
tombstone wins over any write that comes late. A part that is away postpones
rows without blame; a row that fails by its own fault is dead after so many
tries, with the reason. A batch that waits long for a part (Chroma, a model) is
left to go on by itself, and until it ends the spaces that need that part wait:
those that do not need it never do.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

from janus_kit.errors import JanusError, Unavailable, is_late
from janus_kit.telemetry.logging import get_logger
from janus_memory.model import LEXICAL_MODEL, Backend, Embeddable, IndexBatch, IndexTask, Space
from janus_memory.parts import Parts
from janus_memory.ports import Embedders, Records, UnusableEmbedding, VectorIndex
from janus_memory.vectors import Vectors

BATCH = 128
LEASE_S = 15.0
"""How long rows of a process that died wait for another."""
APPLY_TIMEOUT_S = 12.0
"""Less than the lease, so that nobody else begins while a batch still runs."""
DEAD_AFTER = 8
_PATIENCE_S = 0.5
"""How long all wait for a batch that waits for a part."""
_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_AWAY_DELAY_S = 1.0

_log = get_logger(__name__)


class _Busy(Unavailable):
    """Another batch uses the part."""


class Indexer:
    """Works off the outbox. Any number may run, on any replica; one begins one batch at a time."""

    def __init__(
        self,
        records: Records,
        indexes: Mapping[int, VectorIndex],
        embedders: Embedders,
        parts: Parts,
        *,
        poll_s: float,
    ) -> None:
        self._records = records
        self._indexes = indexes
        self._vectors = Vectors(embedders, parts)
        self._parts = parts
        self._poll_s = poll_s
        self._wake = asyncio.Event()
        self._id = str(uuid4())
        # One batch at a time uses a part. Leases of those at one or waiting for it, and spaces that were found
        # to need a part meanwhile.
        self._parts_in_use: dict[str, asyncio.Lock] = {}
        self._outside: set[str] = set()
        self._held_back: dict[str, set[tuple[str, int]]] = {}
        self._left: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Work for ever: at once when woken, and every ``poll_s`` seconds regardless."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen())
                waiting = False
                while True:
                    self._wake.clear()
                    try:
                        busy = await self.work(_PATIENCE_S)
                        waiting = False
                    except JanusError as error:
                        # Postgres is away, or busy; the next round will tell.
                        if not waiting:
                            _log.warning("indexer_waits", reason=error.reason, detail=error.message)
                        busy, waiting = False, True
                    if not busy:
                        await self._pause()
        finally:
            await _ended(*self._left)

    async def work(self, patience_s: float | None = None) -> bool:
        """Apply one batch, or leave it to ``run`` when it waits longer for a part. Whether there was one."""
        held_back = set().union(*self._held_back.values())
        batch = await self._records.claim(self._id, BATCH, LEASE_S, held_back)
        if batch is None:
            return False
        task = asyncio.create_task(self._apply(batch, batch.tasks), name="memory-index-batch")
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=patience_s)
                if not task.done() and batch.lease in self._outside:
                    self._leave(task)
                    return True
        except asyncio.CancelledError:
            await _ended(task)
            raise
        task.result()
        return True

    def _leave(self, task: asyncio.Task[None]) -> None:
        """Its rows are leased to it alone."""
        self._id = str(uuid4())
        self._left.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._left.discard(task)
            self._wake.set()
            error = None if task.cancelled() else task.exception()
            if isinstance(error, JanusError):
                # Postgres is away: the rows are claimed anew when their lease is over.
                _log.warning("indexer_waits", reason=error.reason, detail=error.message)
            elif error is not None:
                _log.error("indexer_failed", exc_info=error)

        task.add_done_callback(ended)

    @asynccontextmanager
    async def _alone_at(self, part: str | None, batch: IndexBatch) -> AsyncIterator[None]:
        """The use of a part for a batch, when those before it have ended. None is this process itself."""
        if part is None:
            yield
            return
        self._outside.add(batch.lease)
        try:
            async with self._parts_in_use.setdefault(part, asyncio.Lock()):
                yield
        finally:
            self._outside.discard(batch.lease)
            if self._held_back.pop(part, None):
                self._wake.set()

    def _require_free(self, part: str | None, batch: IndexBatch) -> None:
        """Raises _Busy while another batch uses the part."""
        if part in self._parts_in_use and self._parts_in_use[part].locked():
            self._held_back.setdefault(part, set()).add((batch.tenant, batch.space_no))
            raise _Busy(part)

    async def _listen(self) -> None:
        async for _ in self._records.wakeups():
            self._wake.set()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._poll_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _apply(self, batch: IndexBatch, tasks: Sequence[IndexTask]) -> None:
        """Apply tasks together; if they fail by their own fault, one by one."""
        try:
            async with asyncio.timeout(APPLY_TIMEOUT_S):
                await self._apply_together(batch, tasks)
        except _Busy as error:
            await self._postpone(batch, tasks, f"{error.part} is slow", 0)
        except Exception as error:
            if not isinstance(error, Unavailable | TimeoutError) or isinstance(error, UnusableEmbedding):
                await self._blame(batch, tasks, error)
                return
            part = error.part if isinstance(error, Unavailable) else "index"
            if part == "postgres":
                raise
            reason = f"{part} is {'slow' if is_late(error) else 'not available'}"
            await self._postpone(batch, tasks, reason, _AWAY_DELAY_S)

    async def _blame(self, batch: IndexBatch, tasks: Sequence[IndexTask], error: Exception) -> None:
        """Tasks failed by the fault of one of them, which is found by trying each by itself."""
        if len(tasks) > 1:
            for task in tasks:
                await self._apply(batch, [task])
            return
        reason = error.message if isinstance(error, JanusError) else type(error).__name__
        if not isinstance(error, JanusError):
            _log.error("indexer_failed", unit=tasks[0].unit, exc_info=error)
        delay = min(_FIRST_DELAY_S * 2 ** tasks[0].attempts, _LONGEST_DELAY_S)
        await self._postpone(batch, tasks, reason, delay, blame=True)

    async def _apply_together(self, batch: IndexBatch, tasks: Sequence[IndexTask]) -> None:
        async with self._records.transaction(batch.tenant) as tx:
            tasks = await tx.held_tasks(batch, [task.id for task in tasks])
            if not tasks:
                return
            # One that was written and forgotten since has two rows.
            units = list(dict.fromkeys(task.unit for task in tasks))
            await tx.count_terms(batch.space_no, [task for task in tasks if not task.counted])
            space = await tx.space_numbered(batch.space_no)
            found = await tx.embeddables(batch.space_no, units) if space else []
        if space is not None:
            present = {each.about.unit for each in found}
            index = self._indexes.get(space.backend)
            part = space.backend.name.lower()
            if index is None:
                raise Unavailable(part)
            # All wait for Postgres anyway.
            store = None if space.backend == Backend.PGVECTOR else part
            model = _model_asked(space, found)
            # What could not be put in now is not embedded: that may cost money. What is embedded waits for its turn.
            self._require_free(store, batch)
            self._require_free(model, batch)
            async with self._alone_at(model, batch):
                rows = await self._vectors.of(batch.tenant, space, found)
            async with self._alone_at(store, batch):
                try:
                    try:
                        await index.upsert(batch.tenant, space, rows)
                    finally:
                        # Also of a write that may have arrived although it failed.
                        gone = await self._gone_meanwhile(batch, present)
                        await index.delete(
                            batch.tenant, space, [unit for unit in units if unit not in present or unit in gone]
                        )
                except Unavailable as error:
                    self._parts.away(error.part)
                    raise
                self._parts.back(part)
        async with self._records.transaction(batch.tenant) as tx:
            switched = space is not None and await tx.live_generation(batch.space_no) != space.generation
            if not switched:
                held = await tx.held_tasks(batch, [task.id for task in tasks])
                await tx.finish_tasks(batch.space_no, [task.id for task in held])
        if switched:
            # The vectors went to a generation that nobody searches any more.
            await self._apply_together(batch, tasks)

    async def _gone_meanwhile(self, batch: IndexBatch, units: Collection[int]) -> set[int]:
        """Units that were erased while they were embedded: whoever holds their lease by now, they must not stay."""
        async with self._records.transaction(batch.tenant) as tx:
            return set(await tx.tombstones(batch.space_no, list(units)))

    async def _postpone(
        self, batch: IndexBatch, tasks: Sequence[IndexTask], error: str, delay: float, *, blame: bool = False
    ) -> None:
        delay *= random.uniform(0.8, 1.2)  # noqa: S311 - spreads replicas, guards nothing
        async with self._records.transaction(batch.tenant) as tx:
            ids = [task.id for task in await tx.held_tasks(batch, [task.id for task in tasks])]
            dead = await tx.postpone_tasks(batch.space_no, ids, delay, error, blame, DEAD_AFTER)
        if dead:
            _log.error("indexer_gave_up", rows=dead, reason=error)
        elif delay:
            _log.warning("indexer_postponed", rows=len(ids), reason=error, delay_s=round(delay, 1))


def _model_asked(space: Space, found: Sequence[Embeddable]) -> str | None:
    """The part that makes vectors for these; None where nobody is waited for. A local model is: it takes seconds."""
    if space.model == LEXICAL_MODEL or all(each.own(space.dimensions) for each in found):
        return None
    return f"embedder:{space.model}"


async def _ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""Reconcile: what is derived compared with the records, and repaired.

Runs while the service serves. What looks wrong is looked at again before it
counts, since a write may have come between the two readings; what the indexer
has yet to apply is left to it. Memory is bounded: a space is walked in pages of
units. A repair takes away what is wrong and has the indexer make it anew.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from janus_kit.errors import JanusError, NotFound, Unavailable
from janus_kit.telemetry.logging import get_logger
from janus_memory.comparing import different
from janus_memory.model import Space, View
from janus_memory.ports import Records, VectorIndex, Windows
from janus_memory.reconciliation import Findings

_PAGE = 500
_SPACES = 100
_THREADS = 100
"""Threads of a space whose windows are looked at, by chance."""
# A page of surplus is removed at a time, and the walk begun again: no index
# pages in order while it is changed.
_MOST_SURPLUS = 5_000
_LOOK_EVERY_S = 60.0

_log = get_logger(__name__)


@dataclass
class _Counts:
    units: int = 0
    missing: int = 0
    stale: int = 0
    surplus: int = 0
    away: list[str] = field(default_factory=list)


class Reconcile:
    """Compares and repairs."""

    def __init__(self, records: Records, windows: Windows, indexes: Mapping[int, VectorIndex]) -> None:
        self._records = records
        self._windows = windows
        self._indexes = indexes

    async def run_for_ever(self, every_s: float) -> None:
        """Compare each space every so many seconds; of several replicas one has the space's turn."""
        while True:
            try:
                for tenant, name in await self._records.due_spaces(every_s, _SPACES):
                    await self._in_turn(tenant, name, every_s)
            except JanusError as error:
                # A store is away: the next round goes on.
                _log.warning("reconciler_waits", reason=error.reason, detail=error.message)
            await asyncio.sleep(min(_LOOK_EVERY_S, every_s))

    async def everywhere(self, *, repair: bool = True) -> AsyncIterator[Findings]:
        """All spaces of all tenants."""
        after = ("", "")
        while found := await self._records.spaces_of_all(after, _SPACES):
            for tenant, name in found:
                yield await self.run(tenant, name, repair=repair)
            after = found[-1]

    async def tenant(self, tenant: str, *, repair: bool = True) -> AsyncIterator[Findings]:
        """All spaces of a tenant."""
        after = ""
        while True:
            async with self._records.transaction(tenant) as tx:
                found = await tx.spaces(after, _SPACES)
            for space in found:
                yield await self.run(tenant, space.name, repair=repair)
            if len(found) < _SPACES:
                return
            after = found[-1].name

    async def run(self, tenant: str, name: str, *, repair: bool = True) -> Findings:
        """One space: what was wrong, before the repair. Raises NotFound, and Unavailable("postgres")."""
        async with self._records.transaction(tenant) as tx:
            space = await tx.space(name)
            if space is None:
                raise NotFound("space", name)
            terms = await tx.wrong_terms(space.number)
            dead = await tx.dead_tasks(space.number)
            if terms and repair:
                await tx.correct_terms(space.number)
        counts = _Counts()
        await self._index(tenant, space, counts, repair)
        seen, wrong = await self._some_windows(tenant, space, counts, repair)
        return Findings(
            tenant=tenant,
            space=name,
            backend=space.backend.name.lower(),
            units=counts.units,
            missing=counts.missing,
            stale=counts.stale,
            surplus=counts.surplus,
            terms=terms,
            windows_seen=seen,
            windows=wrong,
            dead=dead,
            away=tuple(dict.fromkeys(counts.away)),
        )

    async def _in_turn(self, tenant: str, name: str, every_s: float) -> None:
        async with self._records.transaction(tenant) as tx:
            space = await tx.space(name)
            if space is None or not await tx.begin_reconciling(space.number, every_s):
                return
        findings = await self.run(tenant, name)
        if findings.wrong or findings.away:
            _log.warning(
                "reconciled",
                space_no=space.number,
                missing=findings.missing,
                stale=findings.stale,
                surplus=findings.surplus,
                terms=findings.terms,
                windows=findings.windows,
                dead=findings.dead,
                away=findings.away,
            )

    async def _index(self, tenant: str, space: Space, counts: _Counts, repair: bool) -> None:
        index = self._indexes.get(space.backend)
        part = space.backend.name.lower()
        try:
            if index is None:
                raise Unavailable(part)
            await self._walk_records(tenant, space, index, counts, repair)
            while await self._walk_index(tenant, space, index, counts, repair):
                pass
        except Unavailable as error:
            if error.part == "postgres" and part != "pgvector":
                raise
            counts.away.append(error.part)

    async def _walk_records(self, tenant: str, space: Space, index: VectorIndex, counts: _Counts, repair: bool) -> None:
        after = 0
        counts.units = 0
        while True:
            async with self._records.transaction(tenant) as tx:
                page = await tx.expected(space.number, after, _PAGE)
            if not page:
                return
            after = page[-1].entry.about.unit
            counts.units += len(page)
            suspects = await different(tenant, space, index, page)
            if not suspects:
                continue
            async with self._records.transaction(tenant) as tx:
                if await tx.live_generation(space.number) != space.generation:
                    # A rebuild has taken its place: what this one lacks is nobody's concern.
                    return
                again = await tx.expected_of(space.number, list(suspects))
            wrong = await different(tenant, space, index, again)
            missing = [unit for unit, lacking in wrong.items() if lacking]
            stale = [unit for unit, lacking in wrong.items() if not lacking]
            counts.missing += len(missing)
            counts.stale += len(stale)
            if repair and wrong:
                # Anew: an index may hold a unit twice, or a version that is too high.
                await index.delete(tenant, space, stale)
                async with self._records.transaction(tenant) as tx:
                    await tx.index_again(space.number, list(wrong))

    async def _walk_index(self, tenant: str, space: Space, index: VectorIndex, counts: _Counts, repair: bool) -> bool:
        """Look for units that are not on record; whether there are more than were removed."""
        surplus: set[int] = set()
        for view in View:
            async for page in index.pages(tenant, space, view):
                async with self._records.transaction(tenant) as tx:
                    unknown = await tx.unknown(space.number, page)
                if unknown:
                    surplus.update(each.about.unit for each in await index.entries(tenant, space, view, unknown))
                if repair and len(surplus) >= _MOST_SURPLUS:
                    break
        counts.surplus += len(surplus)
        if not repair or not surplus:
            return False
        await index.delete(tenant, space, sorted(surplus))
        return len(surplus) >= _MOST_SURPLUS

    async def _some_windows(self, tenant: str, space: Space, counts: _Counts, repair: bool) -> tuple[int, int]:
        """Windows looked at, and those that were wrong."""
        async with self._records.transaction(tenant) as tx:
            threads = await tx.some_threads(space.number, _THREADS)
        seen = wrong = 0
        try:
            for thread, incarnation in threads:
                held = await self._windows.held(tenant, incarnation)
                if held == []:
                    continue
                seen += 1
                async with self._records.transaction(tenant) as tx:
                    # What is in a window was on record before, unless the thread was erased from meanwhile.
                    right = await tx.turns_at(space, thread, [turn.position for turn in held or ()])
                    head = await tx.thread_head(space.number, thread)
                if held == right or head is None or head.incarnation != incarnation:
                    continue
                wrong += 1
                if repair:
                    await self._windows.drop(tenant, [incarnation])
        except Unavailable as error:
            if error.part == "postgres":
                raise
            counts.away.append(error.part)
        return seen, wrong

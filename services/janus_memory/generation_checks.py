"""Whether a generation that was built holds what it should, and what the live one finds."""

import math
from collections.abc import Collection, Mapping, Sequence

from janus_kit.clock import Clock
from janus_kit.errors import FailedPrecondition, JanusError
from janus_kit.telemetry.logging import get_logger
from janus_memory.comparing import cosine, different
from janus_memory.model import Embeddable, HardFilter, Scope, Space, View
from janus_memory.ports import Purpose, Records, VectorIndex
from janus_memory.vectors import Vectors

_PAGE = 500
_SAMPLE = 20
_TOP = 10
# What two ways to compute a similarity may differ by.
_TIE = 1e-4
# What a model may differ from itself by, as cosine.
_SAME_VECTOR = 0.99

_log = get_logger(__name__)


class GenerationChecks:
    """Looks at generations that nobody else writes to meanwhile."""

    def __init__(
        self,
        records: Records,
        indexes: Mapping[int, VectorIndex],
        vectors: Vectors,
        clock: Clock,
    ) -> None:
        self._records = records
        self._indexes = indexes
        self._vectors = vectors
        self._clock = clock

    async def remove_wrong(self, tenant: str, built: Space, refused: Collection[int]) -> int:
        """Take out what differs from the records, and have it learnt again; how many units.

        What is still to be learnt is not wrong, nor is what was ``refused``.
        """
        index, after, wrong = self._indexes[built.backend], 0, 0
        while True:
            async with self._records.transaction(tenant) as tx:
                page = await tx.expected(built.number, after, _PAGE)
            if not page:
                return wrong
            after = page[-1].entry.about.unit
            suspects = await different(tenant, built, index, page)
            if not suspects:
                continue
            async with self._records.transaction(tenant) as tx:
                again = await tx.expected_of(built.number, list(suspects))
                # Asked last: what has left the outbox meanwhile is there.
                left_out = await tx.queued(built.number, list(suspects)) | {*refused}
            again = [each for each in again if each.entry.about.unit not in left_out]
            found = list(await different(tenant, built, index, again))
            if found:
                await index.delete(tenant, built, found)
                async with self._records.transaction(tenant) as tx:
                    await tx.queue_again(built.number, found)
                wrong += len(found)

    async def remove_surplus(self, tenant: str, built: Space) -> None:
        """Take out what is not on record."""
        index = self._indexes[built.backend]
        surplus: set[int] = set()
        for view in View:
            async for page in index.pages(tenant, built, view):
                async with self._records.transaction(tenant) as tx:
                    surplus.update(await tx.unknown(built.number, page))
        if surplus:
            await index.delete(tenant, built, sorted(surplus))

    async def agreement(self, tenant: str, live: Space, built: Space, refused: Collection[int]) -> float | None:
        """How much of what the live generation finds the other one holds as well, as near to the query, 0 to 1.

        By a sample of the space's own texts, exactly. None where that says
        nothing: with another model, without records, or while the live one is
        away. Raises FailedPrecondition when vectors of the sample are not those
        that the model makes.
        """
        async with self._records.transaction(tenant) as tx:
            units = await tx.sample_units(built.number, _SAMPLE)
            sample = await tx.embeddables(built.number, [unit for unit in units if unit not in refused])
        if not sample:
            return None
        await self._check_vectors(tenant, built, sample)
        old = self._indexes.get(live.backend)
        if old is None or (live.model, live.dimensions) != (built.model, built.dimensions):
            return None
        texts = [each.texts[View.ALONE] for each in sample]
        shares: list[float] = []
        # Searched in the live one alone: how well a graph finds is no matter of what it holds.
        for query in await self._vectors.embedded(tenant, built, texts, Purpose.QUERY):
            try:
                shares.append(await self._share(tenant, old, live, built, query))
            except JanusError as error:
                _log.warning("generation_not_compared", reason=error.reason)
                return None
        return sum(shares) / len(shares)

    async def _check_vectors(self, tenant: str, built: Space, sample: Sequence[Embeddable]) -> None:
        held = await self._indexes[built.backend].vectors(tenant, built, [each.about.unit for each in sample])
        rows = await self._vectors.of(tenant, built, sample)
        right = {row.about.unit: row.vector for row in rows if row.view is View.ALONE}
        # One that is not held was forgotten since: that all are there has been looked at.
        if not all(same_direction(held[unit], right[unit]) for unit in held.keys() & right.keys()):
            raise FailedPrecondition(
                "STATE_CONFLICT",
                "the new index holds other vectors than it was given",
                {"state": "comparison_failed"},
                subject=f"space/{built.name}",
            )

    async def _share(self, tenant: str, old: VectorIndex, live: Space, built: Space, query: Sequence[float]) -> float:
        """Of what the live one finds, how much the other one holds, and as near to the query."""
        now = self._clock.now()
        where = HardFilter(Scope(built.name), (), now, None, now)
        found = (await old.search(tenant, live, [View.ALONE], query, where, _TOP, True))[View.ALONE]
        async with self._records.transaction(tenant) as tx:
            # The live one may hold what is gone, or what the other is yet to learn.
            units = [each.unit for each in found]
            settled = {each.entry.about.unit for each in await tx.expected_of(built.number, units) if not each.waiting}
            # Asked last, as above.
            settled -= await tx.queued(built.number, units)
        found = [each for each in found if each.unit in settled]
        held = await self._indexes[built.backend].vectors(tenant, built, [each.unit for each in found])
        equal = [each for each in found if each.unit in held and _near(cosine(query, held[each.unit]), each.similarity)]
        return len(equal) / len(found) if found else 1.0


def same_direction(held: Sequence[float], right: Sequence[float]) -> bool:
    """Whether a vector that is held is the one that was made, whatever its length; never when it is not finite."""
    if len(held) != len(right) or not all(map(math.isfinite, held)):
        return False
    if not any(held) or not any(right):
        return not any(held) and not any(right)
    return cosine(held, right) >= _SAME_VECTOR


def _near(left: float, right: float) -> bool:
    return abs(left - right) <= _TIE

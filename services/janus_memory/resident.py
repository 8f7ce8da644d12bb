"""Vectors of one space as a process holds them in memory, and their exact search.

The arithmetic of a scan is a fraction of a millisecond for ten thousand
vectors; fetching rows from Postgres's pages is the rest. Names of subjects,
agents and threads are held as hashes: what is found is read from the records
afterwards, under the same conditions and row-level security, so a stranger that
were let through here would not be let through there.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from janus_memory.model import HardFilter, Neighbour, View

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BOTH = 0
"""In place of a view, here and in Postgres: the row is of both."""
BLOCK = 2_048
"""Rows whose vectors lie in one array: what a change copies at most for each row that it takes out."""
NEVER_US = (1 << 63) - 1
"""A time after all others, as Postgres sends its infinity."""
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Equal vectors are equally similar, wherever they lie: sums of 32-bit numbers in another order differ by less.
_DECIMALS = 6


@dataclass(frozen=True, eq=False)
class Attributes:
    """What a search filters rows by, field by field, all in one order. Times are microseconds from 2000."""

    units: "NDArray[np.int64]"
    views: "NDArray[np.int64]"
    kinds: "NDArray[np.int64]"
    subjects: "NDArray[np.int64]"
    """Each name's ``hash``; likewise the next two."""
    agents: "NDArray[np.int64]"
    threads: "NDArray[np.int64]"
    recorded_at: "NDArray[np.int64]"
    superseded_at: "NDArray[np.int64]"
    """NEVER_US for what is current; likewise the ends of validity and life that there are none of."""
    valid_from: "NDArray[np.int64]"
    valid_to: "NDArray[np.int64]"
    expires_at: "NDArray[np.int64]"

    def only(self, chosen: "NDArray[np.bool_]") -> "Attributes":
        return Attributes(*(column[chosen] for column in self.columns()))

    def allowed(self, where: HardFilter) -> "NDArray[np.bool_]":
        """Which rows a filter allows, as ``sql.allowed`` does; it has no typed filter."""
        import numpy as np

        # Most conditions are of all rows or of none: the cheapest first would gain nothing.
        allowed = np.ones(len(self.units), bool)
        for name, column in (
            (where.scope.subject, self.subjects),
            (where.scope.agent, self.agents),
            (where.scope.thread, self.threads),
        ):
            if name:
                allowed &= column == hash(name)
        if where.kinds:
            allowed &= np.isin(self.kinds, [int(kind) for kind in where.kinds])
        if not where.whenever:
            at = _us(where.valid_at)
            allowed &= (self.valid_from <= at) & (self.valid_to > at)
        if not where.inactive:
            allowed &= self.expires_at > _us(where.now)
        if where.recorded_at is not None:
            known = _us(where.recorded_at)
            allowed &= self.recorded_at <= known
            if not where.inactive:
                allowed &= self.superseded_at > known
        elif not where.inactive:
            allowed &= self.superseded_at == NEVER_US
        return allowed

    def columns(self) -> "Iterator[NDArray[np.int64]]":
        return (getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, eq=False)
class Resident:
    """Rows of a space: a value, which a change makes another of."""

    attributes: Attributes
    blocks: "tuple[NDArray[np.float32], ...]"
    """The rows' vectors at length 1, in the rows' order, ``BLOCK`` of them at most in one array: (dimensions, rows).

    So a product goes through memory as it lies: less than half the time that (rows, dimensions) takes.
    """

    def __len__(self) -> int:
        return len(self.attributes.units)

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self) * row_size(len(self.blocks[0])) if self.blocks else 0

    def search(
        self, views: Sequence[View], aim: Sequence[float], where: HardFilter, limit: int
    ) -> dict[View, list[Neighbour]]:
        """In each view the nearest allowed units, best first, ties by lower unit; ``aim`` is of length 1."""
        import numpy as np

        target = np.asarray(aim, np.float32)
        alike = np.concatenate([target @ block for block in self.blocks]) if self.blocks else np.zeros(0)
        # As numbers of 64 bits: what is rounded has to be the same number for all that it is the same of.
        alike = np.round(alike.astype(float), _DECIMALS)
        allowed = self.attributes.allowed(where)
        shared = np.flatnonzero(allowed & (self.attributes.views == BOTH))
        of_both = self._nearest(alike, shared, limit)
        found = {}
        for view in views:
            own = np.flatnonzero(allowed & (self.attributes.views == view))
            # Of facts nothing is a view's own, and of turns next to nothing is shared.
            found[view] = self._nearest(alike, np.concatenate([shared, own]), limit) if len(own) else of_both
        return found

    def _nearest(self, alike: "NDArray[np.float64]", rows: "NDArray[np.int64]", limit: int) -> list[Neighbour]:
        import numpy as np

        found = alike[rows]
        if len(rows) > limit:
            least = np.partition(found, -limit)[-limit]
            rows, found = rows[found >= least], found[found >= least]
        units = self.attributes.units[rows]
        order = np.lexsort((units, -found))[:limit]
        return list(map(Neighbour, units[order].tolist(), found[order].tolist()))

    def without(self, units: Collection[int]) -> "Resident":
        """The same without some units: what is taken out is nowhere any more."""
        import numpy as np

        kept = ~np.isin(self.attributes.units, np.fromiter(units, np.int64, len(units)))
        if kept.all():
            return self
        blocks = []
        start = 0
        for block in self.blocks:
            rows = block.shape[1]
            chosen = kept[start : start + rows]
            blocks.append(block if chosen.all() else block[:, chosen])
            start += rows
        return Resident(self.attributes.only(kept), tuple(blocks))


def joined(parts: Sequence[Resident]) -> Resident:
    """The rows of all parts, of which there is one at least, one after the other."""
    import numpy as np

    columns = zip(*(part.attributes.columns() for part in parts), strict=True)
    attributes = Attributes(*map(np.concatenate, columns))
    return Resident(attributes, tuple(_packed([block for part in parts for block in part.blocks])))


def row_size(dimensions: int) -> int:
    """Bytes of a row in memory."""
    return 8 * len(fields(Attributes)) + 4 * dimensions


def _packed(blocks: "Sequence[NDArray[np.float32]]") -> "Iterator[NDArray[np.float32]]":
    """The same vectors in fewer arrays, where neighbours fit into one."""
    import numpy as np

    together: list[NDArray[np.float32]] = []
    for block in blocks:
        if together and sum(each.shape[1] for each in together) + block.shape[1] > BLOCK:
            yield together[0] if len(together) == 1 else np.concatenate(together, axis=1)
            together = []
        if block.shape[1]:
            together.append(block)
    if together:
        yield together[0] if len(together) == 1 else np.concatenate(together, axis=1)


def _us(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND

"""Candidates of a recall as columns: what is read, and computed of all of them at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Columns:
    """Units as recall scores them, field by field, all in one order.

    A recall has two thousand of them: an object each would take longer than ranking them.
    """

    units: "NDArray[np.int64]"
    turns: "NDArray[np.bool_]"
    """Who is a turn; the others are memories, without a thread's position and session."""
    threads: Sequence[str]
    positions: "NDArray[np.int64]"
    numbers: "NDArray[np.int64]"
    """A turn's session, by its number in the thread."""
    speakers: Sequence[str]
    occurred_at: "NDArray[np.datetime64]"
    """In UTC, to the microsecond."""
    importance: "NDArray[np.float64]"
    lengths: "NDArray[np.int64]"
    """Terms of each line, without the session's date."""
    hashes: "NDArray[np.uint32]"
    """The lines' hashed terms, one line after the other."""

    def __len__(self) -> int:
        return len(self.units)

    @cached_property
    def places(self) -> "NDArray[np.int64]":
        """Numbers that put a thread's turns in a row, far from those of any other; for turns alone."""
        return (self._of_threads << 40) + self.positions

    @cached_property
    def sessions(self) -> "NDArray[np.int64]":
        """Every candidate's session, numbered from 0; a memory is a session of its own."""
        import numpy as np

        keys = np.where(self.turns, (self._of_threads << 32) + self.numbers, -1 - self.units)
        return np.unique(keys, return_inverse=True)[1]

    def only(self, chosen: "NDArray[np.bool_]") -> "Columns":
        """Those that are chosen."""
        import numpy as np

        if chosen.all():
            return self
        rows = np.flatnonzero(chosen).tolist()
        return Columns(
            self.units[chosen],
            self.turns[chosen],
            [self.threads[row] for row in rows],
            self.positions[chosen],
            self.numbers[chosen],
            [self.speakers[row] for row in rows],
            self.occurred_at[chosen],
            self.importance[chosen],
            self.lengths[chosen],
            self.hashes[np.repeat(chosen, self.lengths)],
        )

    @cached_property
    def _of_threads(self) -> "NDArray[np.int64]":
        import numpy as np

        numbers = {thread: number for number, thread in enumerate(dict.fromkeys(self.threads))}
        return np.fromiter(map(numbers.__getitem__, self.threads), np.int64, len(self))


def joined(parts: Iterable[Columns]) -> Columns:
    """The candidates of all parts, one after the other."""
    import numpy as np

    some = [part for part in parts if len(part)]
    if len(some) < 2:
        return some[0] if some else nothing()
    columns: list[Any] = []
    for each in fields(Columns):
        found = [getattr(part, each.name) for part in some]
        columns.append(list(chain.from_iterable(found)) if isinstance(found[0], list) else np.concatenate(found))
    return Columns(*columns)


def nothing() -> Columns:
    """No candidates."""
    import numpy as np

    whole, real = np.zeros(0, np.int64), np.zeros(0)
    when, hashes = np.zeros(0, "datetime64[us]"), np.zeros(0, np.uint32)
    return Columns(whole, np.zeros(0, bool), [], whole, whole, [], when, real, whole, hashes)

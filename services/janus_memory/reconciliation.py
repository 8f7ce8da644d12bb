"""What a comparison of the stores talks about, and what it needs of a transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from janus_memory.model import Indexed, Space, Turn


class Entry(NamedTuple):
    """What a vector index holds of a unit, but for the vector."""

    about: Indexed
    version: int


class Expected(NamedTuple):
    """What it should hold. ``waiting``: the indexer has yet to put it there, or gave up."""

    entry: Entry
    waiting: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """What was wrong in one space, before the repair.

    ``missing``, ``stale`` and ``surplus`` are units that the vector index
    lacks, holds otherwise than they are on record, or holds though they are
    gone; ``terms`` are entries of the statistics; ``windows`` are those of
    ``windows_seen`` that differ from the record; ``dead`` are rows that the
    indexer gave up on, which stay. ``away``: parts that could not be looked at.
    """

    tenant: str
    space: str
    backend: str
    units: int = 0
    missing: int = 0
    stale: int = 0
    surplus: int = 0
    terms: int = 0
    windows_seen: int = 0
    windows: int = 0
    dead: int = 0
    away: tuple[str, ...] = ()

    @property
    def wrong(self) -> int:
        """Everything that was wrong."""
        return self.missing + self.stale + self.surplus + self.terms + self.windows + self.dead


class Reconciling(Protocol):
    """Statements of comparisons, of one tenant's transaction."""

    async def expected(self, space_no: int, after: int, limit: int) -> list[Expected]:
        """Units on record with a number above ``after``, by number."""
        ...

    async def expected_of(self, space_no: int, units: Sequence[int]) -> list[Expected]:
        """Those of the units that are on record."""
        ...

    async def unknown(self, space_no: int, units: Sequence[int]) -> list[int]:
        """Those of the units that are not on record, and that no erasure is at."""
        ...

    async def index_again(self, space_no: int, units: Sequence[int]) -> None:
        """Have the indexer make the units' vectors once more."""
        ...

    async def wrong_terms(self, space_no: int) -> int:
        """Entries of the statistics that differ from the units that were counted."""
        ...

    async def correct_terms(self, space_no: int) -> None:
        """Make the statistics what the units say, also while the indexer counts."""
        ...

    async def dead_tasks(self, space_no: int) -> int: ...

    async def some_threads(self, space_no: int, limit: int) -> list[tuple[str, str]]:
        """Threads by chance: id and incarnation."""
        ...

    async def turns_at(self, space: Space, thread: str, positions: Sequence[int]) -> list[Turn]: ...

    async def begin_reconciling(self, space_no: int, every_s: float) -> bool:
        """Take the space's turn; False when it was compared, or another replica took it, within that time."""
        ...

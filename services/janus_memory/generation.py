"""Generations of a space's vectors, and what rebuilding them needs of a transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple, Protocol

from janus_memory.model import Backend, Space


class Phase(IntEnum):
    """What becomes of a generation that is not the live one; the numbers are stored."""

    BUILDING = 1
    """It is to be the live one."""
    RETIRING = 2
    """It was, and is to be removed."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The generation of a space beside its live one.

    ``age_s`` is how long it is in its phase, by the database's clock.
    """

    number: int
    phase: Phase
    backend: Backend
    model: str
    dimensions: int
    operation_id: str
    age_s: float

    def of(self, space: Space) -> Space:
        """The space in the form that this generation gives it."""
        return replace(
            space,
            generation=self.number,
            backend=self.backend,
            model=self.model,
            dimensions=self.dimensions,
        )


class Target(NamedTuple):
    """What a rebuild is to come to."""

    backend: Backend
    model: str
    dimensions: int


class Extent(NamedTuple):
    """Units of a space: the highest number, and how many there are."""

    last: int
    units: int


class Waiting(NamedTuple):
    """A unit that the generation in building has yet to learn."""

    id: int
    unit: int


class Rebuilding(Protocol):
    """Statements of rebuilds, of one tenant's transaction."""

    async def begin_generation(self, space_no: int, target: Target, operation_id: str) -> Generation | None:
        """Begin to build one; from here on the indexer tells it what changes. None: the space has another."""
        ...

    async def generation(self, space_no: int) -> Generation | None:
        """The one beside the live one."""
        ...

    async def extent(self, space_no: int) -> Extent: ...

    async def queue_units(self, space_no: int, after: int, upto: int, limit: int) -> Extent:
        """Let units between two numbers be learnt, the lowest first; the last of them, and how many."""
        ...

    async def queue_again(self, space_no: int, units: Sequence[int]) -> None:
        """Let these units be learnt once more."""
        ...

    async def waiting_units(self, space_no: int, limit: int) -> list[Waiting]:
        """What is to be learnt next."""
        ...

    async def queued(self, space_no: int, units: Sequence[int]) -> set[int]:
        """Those of the units that are to be learnt."""
        ...

    async def lease_waiting(self, space_no: int, ids: Sequence[int], lease_s: float) -> None:
        """Say that their texts are in somebody's hands, so that an erasure waits; for the time before they are read."""
        ...

    async def learnt(self, space_no: int, ids: Sequence[int]) -> None: ...

    async def sample_units(self, space_no: int, count: int) -> list[int]:
        """So many units by chance, or fewer."""
        ...

    async def live_generation(self, space_no: int) -> int | None:
        """The number of the live generation, which stays so until the transaction ends."""
        ...

    async def indexing_before_switch(self, space_no: int) -> bool:
        """Whether an indexer may be at work that took the retiring generation for the live one."""
        ...

    async def hold_generations(self, space_no: int) -> None:
        """Nobody who asked for the live generation is at work from here on, until the transaction ends."""
        ...

    async def switch(self, space_no: int, refused: Mapping[int, str]) -> None:
        """Make the generation that was built the live one, and the live one the one to be removed.

        ``refused`` are units that could not be embedded, and why: they become
        dead letters. Those of the old generation are settled.
        """
        ...

    async def drop_waiting(self, space_no: int, limit: int) -> int:
        """Remove some of what is to be learnt; how many."""
        ...

    async def end_generation(self, space_no: int, operation_id: str) -> None:
        """Take the generation beside the live one off the record, if it is that operation's."""
        ...

"""What an erasure talks about, and what it needs of a transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from janus_memory.model import Space

EVERYWHERE = 0
"""The number that stands for every space of the tenant."""
NOWHERE = -1
"""The number of a space that has no record yet, so nothing in it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to erase, and in which space: its number, EVERYWHERE or NOWHERE."""

    subject: str
    space_no: int


@dataclass(frozen=True, slots=True)
class Outside:
    """What is gone from Postgres and still has to go elsewhere, of one space.

    ``gone``: units; ``around``: units of others whose vectors were made with
    text that is gone; ``windows``: incarnations of threads.
    """

    space_no: int
    gone: tuple[int, ...]
    around: tuple[int, ...]
    windows: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of an erasure. ``removed`` is by store; nothing remained in any of them."""

    id: str
    erased_at: datetime
    removed: Mapping[str, int]
    reason: str
    signature: bytes = b""
    key_id: str = ""


class Signer(Protocol):
    """One tenant's key."""

    def signed(self, receipt: Receipt) -> Receipt:
        """The receipt with its signature and the key's name."""
        ...


class Erasing(Protocol):
    """Statements of erasures, of one tenant's transaction."""

    async def begin_erasure(self, target: Target) -> None:
        """Put it on record, so that it is known until it has ended."""
        ...

    async def erase_some(self, target: Target, limit: int) -> Mapping[str, int]:
        """Remove up to so many turns, memories and units of one space, or else of other rows; how many by store.

        What has to go elsewhere is put on record with it. Empty: nothing was
        left. Erasures of one subject wait for each other's transactions.
        """
        ...

    async def keep_out_writers(self, subject: str) -> None:
        """Wait for writers of the subject; others wait until the transaction ends. First of all statements."""
        ...

    async def left_of(self, target: Target) -> Mapping[str, int]:
        """What Postgres has of the subject, by store."""
        ...

    async def uncite(self, target: Target, limit: int) -> int:
        """Drop what is gone from the sources of so many memories of others; of how many it was."""
        ...

    async def outside(self, target: Target, limit: int) -> Outside | None:
        """Some of what has to go elsewhere; None: nothing."""
        ...

    async def forgotten(self, target: Target, after: tuple[int, int], limit: int) -> Outside | None:
        """Units of one space, anybody's, that are gone and that the indexer has yet to take out; None: no more.

        ``after``: the space and the unit that the last ones ended with.
        """
        ...

    async def homes(self, space_no: int) -> list[Space]:
        """Every form of the space that its vectors may be in."""
        ...

    async def leased(self, space_no: int, units: Sequence[int]) -> bool:
        """Whether an indexer is at work on one of the units."""
        ...

    async def settle(self, subject: str, outside: Outside) -> int:
        """It has gone elsewhere. Removes outbox rows that were kept for it; how many. Indexes ``around`` again."""
        ...

    async def tally(self, target: Target, removed: Mapping[str, int]) -> None:
        """Add to what was removed so far."""
        ...

    async def end_erasure(self, target: Target) -> Mapping[str, int]:
        """Take it off the record; what it removed in all, by store."""
        ...

    async def unfinished_erasures(self, older_than_s: float) -> list[Target]: ...

    async def tombstones(self, space_no: int, units: Sequence[int]) -> list[int]:
        """Those of the units that are gone."""
        ...

    async def receipt_seed(self, fresh: bytes) -> bytes:
        """The tenant's signing key: 32 bytes; the fresh one if it had none."""
        ...

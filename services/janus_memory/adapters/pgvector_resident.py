"""Vectors of the spaces that are searched most, held in this process's memory.

A space that is searched often is loaded in the background, if there is room.
Every search of it asks Postgres first which units' vectors changed since (one
statement on an index that finds next to nothing) and reads those anew, so what
it answers is what a scan at that moment would have found. `memory.vector_change`
says it: a trigger writes there whatever changes a vector, in the same
transaction, and the snapshot of the last look tells which of its rows are new.

Between searches everything that is held is looked after every few seconds, so
that what was erased is not in memory for longer either.
"""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from janus_kit.errors import JanusError, ResourceExhausted
from janus_kit.libraries import library
from janus_kit.postgres import Database
from janus_kit.telemetry.logging import get_logger
from janus_memory import metrics
from janus_memory.model import HardFilter, Neighbour, Space, View
from janus_memory.resident import BLOCK, Attributes, Resident, joined, row_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOOK_EVERY_S = 5.0
"""How often everything that is held is looked after."""
_EARNED_BY = 3
"""Searches within _IDLE_S that a space is loaded after: loading costs about as much."""
_IDLE_S = 300.0
"""How long a space that is not searched stays, and how long its searches count."""
# Rows of vector_change are kept for five times as long.
_TRUSTED = timedelta(minutes=2)
_MOST_COUNTED = 10_000
_MOST_WANTED = 64
_MOST_HELD = 256
"""Spaces that are held: each is looked after every few seconds."""
# Bytes of a space up to which a search takes no more than a millisecond or two.
_AT_ONCE = 32 << 20
# Bytes that one search reads anew: as many searches as there are connections may do so at the same time.
_MOST_ANEW = 16 << 20
_PACKED = """string_agg(int8send(unit), '') AS units, string_agg(int8send(view), '') AS views,
    string_agg(int8send(kind), '') AS kinds, array_agg(subject) AS subjects, array_agg(agent) AS agents,
    array_agg(thread) AS threads, string_agg(timestamptz_send(recorded_at), '') AS recorded_at,
    string_agg(timestamptz_send(coalesce(superseded_at, 'infinity')), '') AS superseded_at,
    string_agg(timestamptz_send(coalesce(valid_from, '-infinity')), '') AS valid_from,
    string_agg(timestamptz_send(coalesce(valid_to, 'infinity')), '') AS valid_to,
    string_agg(timestamptz_send(coalesce(expires_at, 'infinity')), '') AS expires_at,
    string_agg(vector_send(embedding), '') AS vectors"""
_ROWS = "tenant = $1 AND space_no = $2 AND generation = $3"
_NOW = "SELECT pg_current_snapshot()::text, now(), (SELECT id FROM memory.vector_era WHERE tenant = $1)"
# $5 is one more than are of use.
_CHANGES = f"""{_NOW}, ARRAY(
        SELECT DISTINCT unnest(units) FROM memory.vector_change
        WHERE {_ROWS} AND xid >= pg_snapshot_xmin($4::text::pg_snapshot)
          AND NOT pg_visible_in_snapshot(xid, $4::text::pg_snapshot)
        LIMIT $5)"""  # noqa: S608 - constants

_log = get_logger(__name__)
_T = TypeVar("_T")
_Key = tuple[str, int, int]


@dataclass(frozen=True)
class _Held:
    """What was read of a space, and when: ``snapshot`` is Postgres's, ``read_at`` by its clock.

    In another ``era`` snapshots of this one mean nothing.
    """

    resident: Resident
    dimensions: int
    snapshot: str
    read_at: datetime
    era: UUID


class ResidentVectors:
    """Searches spaces in memory; ``run`` has to be running for it to hold any."""

    def __init__(self, database: Database, most_bytes: int) -> None:
        self._database = database
        self._most_bytes = most_bytes
        self._held: dict[_Key, _Held] = {}
        self._size = 0
        self._searched_at: dict[_Key, float] = {}
        # Searches of spaces that are not held, and when the first of them was.
        self._counted: dict[_Key, tuple[float, float]] = {}
        self._wanted: asyncio.Queue[tuple[str, Space]] = asyncio.Queue(_MOST_WANTED)

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return self._size

    async def search(
        self, tenant: str, space: Space, views: Sequence[View], aim: Sequence[float], where: HardFilter, limit: int
    ) -> dict[View, list[Neighbour]] | None:
        """The nearest of each view, as VectorIndex says; None when the space is not held.

        ``aim`` is of length 1 and ``where`` has no typed filter.
        """
        key = tenant, space.number, space.generation
        if key not in self._held:
            self._count(tenant, space)
            return None
        self._searched_at[key] = time.monotonic()
        held = await self._current(key)
        if held is None:
            return None
        return await _computed(held, partial(held.resident.search, views, aim, where, limit))

    async def run(self) -> None:
        """Work for ever: load what is wanted, and look after what is held."""
        await library("numpy")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look())
            while True:
                tenant, space = await self._wanted.get()
                try:
                    await self.load(tenant, space)
                except JanusError as error:
                    # Postgres is away, or busy: the space is scanned, and earns it anew.
                    _log.debug("vectors_not_loaded", reason=error.reason)
                except Exception as error:  # noqa: BLE001 - what is held goes on being looked after
                    _log.error("vectors_not_loaded", exc_info=error)
                    self._give_up(tenant, space)

    async def load(self, tenant: str, space: Space) -> None:
        """Hold a space's vectors, if it has some and there is room for them."""
        key = tenant, space.number, space.generation
        if key in self._held or len(self._held) >= _MOST_HELD:
            return
        began = time.monotonic()
        room = self._most_bytes - self.size
        async with self._database.tenant(tenant) as connection:
            await connection.execute("INSERT INTO memory.vector_era DEFAULT VALUES ON CONFLICT DO NOTHING")
            snapshot, read_at, era = await connection.fetchrow(_NOW, tenant)
            rows = await connection.fetchval(f"SELECT count(*) FROM memory.vector WHERE {_ROWS}", *key)  # noqa: S608 - constants
        if rows * row_size(space.dimensions) > room:
            self._give_up(tenant, space)
            return
        blocks: list[Resident] = []
        view, unit = -1, 0
        while True:
            # A transaction each: nothing is held up by how long it takes, and what changes
            # meanwhile is read anew by the first search.
            async with self._database.tenant(tenant, by_index=True) as connection:
                found = await connection.fetchrow(
                    f"""SELECT {_PACKED} FROM (
                            SELECT * FROM memory.vector WHERE {_ROWS} AND (view, unit) > ($4, $5)
                            ORDER BY view, unit LIMIT {BLOCK}) AS page""",  # noqa: S608 - constants
                    *key, view, unit,
                )  # fmt: skip
            if found["units"] is None:
                break
            block = await asyncio.to_thread(_resident, found, space.dimensions)
            blocks.append(block)
            room -= block.size
            if room < 0 or time.monotonic() - began > _TRUSTED.total_seconds():
                # It grew meanwhile, or what was read first is out of date by now.
                self._give_up(tenant, space)
                return
            view, unit = int(block.attributes.views[-1]), int(block.attributes.units[-1])
        if blocks:
            self._hold(key, _Held(joined(blocks), space.dimensions, snapshot, read_at, era))
            self._searched_at[key] = time.monotonic()

    def _hold(self, key: _Key, held: _Held | None) -> None:
        """Hold this of a space from now on; None: nothing."""
        before = self._held.pop(key, None)
        if before is not None:
            self._size -= before.resident.size
        if held is not None:
            self._held[key] = held
            self._size += held.resident.size
        metrics.resident_bytes.set(self._size)

    def _give_up(self, tenant: str, space: Space) -> None:
        """Have no search count for some minutes: to try took long enough."""
        self._counted[tenant, space.number, space.generation] = -math.inf, time.monotonic()

    def _count(self, tenant: str, space: Space) -> None:
        key = tenant, space.number, space.generation
        now = time.monotonic()
        times, since = self._counted.pop(key, (0.0, now))
        if now - since > _IDLE_S:
            times, since = 0.0, now
        has_room = self.size < self._most_bytes and len(self._held) < _MOST_HELD
        if times + 1 >= _EARNED_BY and has_room and not self._wanted.full():
            self._wanted.put_nowait((tenant, space))
            return
        if len(self._counted) >= _MOST_COUNTED:
            self._counted.clear()
        self._counted[key] = times + 1, since

    async def _current(self, key: _Key) -> _Held | None:
        """What is held of a space, as it is now; None when that is not to be had."""
        held = self._held[key]
        # Beyond that a scan takes less.
        most = min(max(len(held.resident) // 4, BLOCK), _MOST_ANEW // row_size(held.dimensions))
        async with self._database.tenant(key[0]) as connection:
            snapshot, read_at, era, units = await connection.fetchrow(_CHANGES, *key, held.snapshot, most + 1)
            resident: Resident | None = held.resident
            if era != held.era or read_at - held.read_at > _TRUSTED:
                # What changed may be forgotten.
                resident = None
            elif len(units) > most:
                resident = None
            elif units:
                # Not all at once: to decode it would hold up everybody else.
                found = [
                    await connection.fetchrow(
                        f"""SELECT {_PACKED} FROM memory.vector
                            WHERE {_ROWS} AND view BETWEEN 0 AND 2 AND unit = ANY($4)""",  # noqa: S608 - constants
                        *key, units[start : start + BLOCK],
                    )
                    for start in range(0, len(units), BLOCK)
                ]  # fmt: skip
                resident = await _computed(held, partial(_changed, held, units, found))
        now = None
        if resident is not None and self.size - held.resident.size + resident.size <= self._most_bytes:
            now = replace(held, resident=resident, snapshot=snapshot, read_at=read_at)
        # Another search may have been faster; this one is answered by what it read itself.
        if self._held.get(key) is held:
            self._hold(key, now)
        return now

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for key in list(self._held):
                if time.monotonic() - self._searched_at[key] > _IDLE_S:
                    self._hold(key, None)
                try:
                    if key in self._held:
                        await self._current(key)
                except ResourceExhausted:
                    pass  # No connection is free: searches look for themselves, and would all be scans without it.
                except JanusError:
                    # Without Postgres nobody knows what should not be in memory any more.
                    self._hold(key, None)
                except Exception as error:  # noqa: BLE001 - likewise, and the others are looked after
                    _log.error("vectors_not_looked_after", exc_info=error)
                    self._hold(key, None)
            self._searched_at = {key: at for key, at in self._searched_at.items() if key in self._held}


async def _computed(held: _Held, work: Callable[[], _T]) -> _T:
    """What takes time in proportion to what is held: on a thread where that is long."""
    if held.resident.size <= _AT_ONCE:
        return work()
    return await asyncio.to_thread(work)


def _changed(held: _Held, units: Collection[int], found: Sequence[Any]) -> Resident:
    new = (_resident(row, held.dimensions) for row in found if row["units"] is not None)
    return joined([held.resident.without(units), *new])


def _resident(row: Any, dimensions: int) -> Resident:
    """The one row of a statement of _PACKED."""
    import numpy as np

    def integers(name: str) -> "NDArray[np.int64]":
        return np.frombuffer(row[name], ">i8").astype(np.int64)

    def hashes(name: str) -> "NDArray[np.int64]":
        return np.fromiter(map(hash, row[name]), np.int64, len(row[name]))

    sent = np.frombuffer(row["vectors"], ">f4").reshape(-1, dimensions + 1)
    return Resident(
        Attributes(
            units=integers("units"),
            views=integers("views"),
            kinds=integers("kinds"),
            subjects=hashes("subjects"),
            agents=hashes("agents"),
            threads=hashes("threads"),
            recorded_at=integers("recorded_at"),
            superseded_at=integers("superseded_at"),
            valid_from=integers("valid_from"),
            valid_to=integers("valid_to"),
            expires_at=integers("expires_at"),
        ),
        # Before its numbers stand how many there are, in four bytes.
        tuple(
            np.ascontiguousarray(sent[start : start + BLOCK, 1:].T, np.float32) for start in range(0, len(sent), BLOCK)
        ),
    )

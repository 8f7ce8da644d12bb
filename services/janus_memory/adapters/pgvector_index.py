"""Vectors in Postgres: scanned, and beyond some 20,000 of a space searched through a graph.

A scan reads all vectors of the tenant's space and view through the primary
key: exact, and up to that size faster than a filtered HNSW index, which finds a
small tenant's rows only by luck. Of a larger space `PgvectorGraph` moves row by
row into the graph of the tenant's partition. A search of such a space asks the
graph and scans what is not in it yet; when a filter leaves it short of answers,
it scans everything. So no row is lost while rows move, nor to a filter.

Vectors are stored at length 1, so that the inner product, the cheapest distance
to compute, is the cosine. A vector that is equal in both views is stored once.
The tenant is named in every condition, though row-level security adds it: only
so is the partition known when a statement is planned.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from math import sqrt
from operator import mul
from struct import pack
from typing import Any

from janus_kit.postgres import Connection, Database
from janus_memory.adapters.pgvector_resident import ResidentVectors
from janus_memory.adapters.sql import INDEXED_COLUMNS, Bound, allowed, indexed_of, rows_of
from janus_memory.model import HardFilter, Neighbour, Space, VectorRow, View
from janus_memory.reconciliation import Entry
from janus_memory.resident import BOTH

_PAGE = 1_000

MAX_BATCH = 256
"""Vectors of one statement: some MiB at most."""
# Below what a stored number of 32 bits can tell apart.
_AS_GOOD_AS_ONE = 1e-9

GRAPH_DIMENSIONS = (256, 384, 512, 768, 1024, 1536)
"""Dimensions that there are graphs for; spaces of others are scanned at any size."""
# As wide as a search of the graph begins: beyond the most that recall asks for.
_EF_SEARCH = 400
# Rows that a search walks past when a filter refuses them, before all are scanned instead.
_MAX_WALK = 20_000
_WALKING = f"""SELECT set_config('hnsw.iterative_scan', 'strict_order', true),
                      set_config('hnsw.ef_search', '{_EF_SEARCH}', true),
                      set_config('hnsw.max_scan_tuples', '{_MAX_WALK}', true),
                      set_config('enable_sort', 'off', true)"""
_NOT_GRAPHED = " AND NOT EXISTS (SELECT FROM memory.space WHERE number = $2 AND graphed = $3)"
_LOOSE = " AND NOT graph"
_MOST_NOTED = 10_000
# A page is filled from its end: of rows written one after the other, the later are at the lower addresses.
# Read from the last to the first, they come in the order in which a processor fetches memory ahead, and
# waiting for memory is most of what a scan does.
_BACKWARDS = " ORDER BY unit DESC OFFSET 0"


class PgvectorIndex:
    """Implements ports.VectorIndex."""

    def __init__(self, database: Database, resident: ResidentVectors | None = None) -> None:
        """``resident``: where searches are answered from memory, if they can be."""
        self._database = database
        self._resident = resident
        # Spaces with many vectors of their own in each view, to search the next time accordingly.
        self._apart: set[tuple[int, int]] = set()

    async def upsert(self, tenant: str, space: Space, rows: Sequence[VectorRow]) -> None:
        if not rows:
            return
        placed = _placed(rows)
        async with self._database.tenant(tenant) as connection:
            for start in range(0, len(placed), MAX_BATCH):
                await _put(connection, tenant, space, placed[start : start + MAX_BATCH])

    async def delete(self, tenant: str, space: Space, units: Sequence[int]) -> None:
        if not units:
            return
        async with self._database.tenant(tenant) as connection:
            await connection.execute(
                """DELETE FROM memory.vector WHERE tenant = $1 AND space_no = $2 AND generation = $3
                     AND view BETWEEN 0 AND 2 AND unit = ANY($4::bigint[])""",
                tenant, space.number, space.generation, list(units),
            )  # fmt: skip

    async def search(
        self,
        tenant: str,
        space: Space,
        views: Sequence[View],
        vector: Sequence[float],
        where: HardFilter,
        limit: int,
        exact: bool,
    ) -> dict[View, list[Neighbour]]:
        aim = unit_length(vector)
        if self._resident is not None and not exact and where.filter is None:
            found = await self._resident.search(tenant, space, views, aim, where, limit)
            if found is not None:
                return found
        search = _Search(self._database, tenant, space, aim, where, limit)
        # What a filter allows is read by the key, however large the space is.
        if exact or space.dimensions not in GRAPH_DIMENSIONS or where.filter is not None:
            return await self._scan(search, space, views)
        found = await self._scan(search, space, views, _NOT_GRAPHED)
        if any(found.values()) or not await search.graphed():
            return found
        return await search.walk(views)

    async def _scan(
        self, search: "_Search", space: Space, views: Sequence[View], condition: str = ""
    ) -> dict[View, list[Neighbour]]:
        key = space.number, space.generation
        found = await search.scan(views, condition, at_once=key in self._apart)
        if search.is_long:
            if len(self._apart) >= _MOST_NOTED:
                self._apart.clear()
            self._apart.add(key)
        return found

    async def entries(self, tenant: str, space: Space, view: View, units: Sequence[int]) -> list[Entry]:
        async with self._database.tenant(tenant) as connection:
            rows = await connection.fetch(
                f"""SELECT {INDEXED_COLUMNS}, version FROM memory.vector
                    WHERE tenant = $1 AND space_no = $2 AND generation = $3 AND view IN (0, $4)
                      AND unit = ANY($5::bigint[])""",  # noqa: S608 - constant columns
                tenant, space.number, space.generation, int(view), list(units),
            )  # fmt: skip
        return [Entry(indexed_of(row), row["version"]) for row in rows]

    async def pages(self, tenant: str, space: Space, view: View) -> AsyncIterator[list[int]]:
        after = -1
        part = """(SELECT unit FROM memory.vector
                   WHERE tenant = $1 AND space_no = $2 AND generation = $3 AND view = {} AND unit > $4
                   ORDER BY unit LIMIT $5)"""
        both = " UNION ALL ".join(part.format(place) for place in (BOTH, int(view)))
        while True:
            async with self._database.tenant(tenant) as connection:
                rows = await connection.fetch(
                    f"SELECT unit FROM ({both}) AS page ORDER BY unit LIMIT $5",  # noqa: S608 - constants
                    tenant, space.number, space.generation, after, _PAGE,
                )  # fmt: skip
            if not rows:
                return
            yield [row["unit"] for row in rows]
            after = rows[-1]["unit"]

    async def vectors(self, tenant: str, space: Space, units: Sequence[int]) -> dict[int, list[float]]:
        async with self._database.tenant(tenant) as connection:
            rows = await connection.fetch(
                """SELECT unit, embedding::real[] AS embedding FROM memory.vector
                   WHERE tenant = $1 AND space_no = $2 AND generation = $3 AND view IN (0, $4)
                     AND unit = ANY($5::bigint[])""",
                tenant, space.number, space.generation, int(View.ALONE), list(units),
            )  # fmt: skip
        return {row["unit"]: row["embedding"] for row in rows}

    async def drop(self, tenant: str, space: Space) -> None:
        while True:
            async with self._database.tenant(tenant) as connection:
                status = await connection.execute(
                    """DELETE FROM memory.vector v USING (
                           SELECT view, unit FROM memory.vector
                           WHERE tenant = $1 AND space_no = $2 AND generation = $3 LIMIT $4) AS next
                       WHERE v.tenant = $1 AND v.space_no = $2 AND v.generation = $3
                         AND v.view = next.view AND v.unit = next.unit""",
                    tenant, space.number, space.generation, _PAGE,
                )  # fmt: skip
            if status == "DELETE 0":
                return

    async def ping(self) -> None:
        await self._database.ping()


class _Search:
    """One search, the ways it can be done."""

    def __init__(
        self, database: Database, tenant: str, space: Space, aim: list[float], where: HardFilter, limit: int
    ) -> None:
        self._database = database
        self._tenant = tenant
        self._space = space
        self._aim = aim
        self._where = where
        self._limit = limit
        # A filter looks for its units in its own ways first.
        self._is_by_key = where.filter is None
        self.is_long = False
        """Whether a scan found as much as it may in a view's own vectors, of which there may be many more."""

    async def graphed(self) -> bool:
        """Whether the space is in the graph, or on its way there."""
        async with self._database.tenant(self._tenant) as connection:
            return bool(
                await connection.fetchval(
                    "SELECT graphed = generation FROM memory.space WHERE number = $1", self._space.number
                )
            )

    async def scan(
        self, views: Sequence[View], condition: str = "", *, at_once: bool = True
    ) -> dict[View, list[Neighbour]]:
        """Compare with every row that the condition admits. ``at_once``: with each view on a connection of its own."""

        async def nearest(places: Sequence[int]) -> dict[int, list[Neighbour]]:
            async with self._database.tenant(self._tenant, by_index=self._is_by_key) as connection:
                await connection.once(_binary_vectors)
                return await self._scan(connection, places, condition)

        first, *others = map(int, views)
        # A scan keeps one core busy: two views that are both by themselves are scanned side by side.
        # Where they share their vectors, that would only be two transactions in place of one.
        together = ((BOTH, first), *((other,) for other in others)) if at_once else ((BOTH, first, *others),)
        parts = await _all_of(nearest(places) for places in together)
        found = {place: neighbours for part in parts for place, neighbours in part.items()}
        self.is_long = any(len(found[other]) >= self._limit for other in others)
        # Each part is in order as it is.
        both = found[BOTH]
        alone = {view: found[int(view)] for view in views}
        return {view: self._best(both, own) if both and own else both or own for view, own in alone.items()}

    async def walk(self, views: Sequence[View]) -> dict[View, list[Neighbour]]:
        """Follow the graph, scan what is not in it; scan everything where that finds too few."""
        found = dict(zip(views, await _all_of(map(self._walk, views)), strict=True))
        short = [view for view in views if len(found[view]) < self._limit]
        return {**found, **await self.scan(short)} if short else found

    async def _walk(self, view: View) -> list[Neighbour]:
        bound, conditions = self._conditions()
        size = self._space.dimensions
        async with self._database.tenant(self._tenant, by_index=self._is_by_key) as connection:
            await connection.once(_binary_vectors)
            loose = await self._scan(connection, (BOTH, int(view)), _LOOSE)
            # Sorting all rows would look cheaper than the graph, and not be.
            await connection.execute(_WALKING)
            rows = await connection.fetch(
                f"""SELECT unit, -(embedding::vector({size}) <#> $4::vector({size}))
                    FROM memory.vector
                    WHERE {conditions} AND view IN ({BOTH}, {int(view)}) AND graph AND dimensions = {size}
                    ORDER BY embedding::vector({size}) <#> $4::vector({size}) LIMIT $5""",  # noqa: S608 - placeholders and constants
                *bound.values,
            )
        return self._best(*loose.values(), [Neighbour(unit, similarity) for unit, similarity in rows])

    async def _scan(self, connection: Connection, places: Sequence[int], condition: str) -> dict[int, list[Neighbour]]:
        bound, conditions = self._conditions()
        parts = (
            f"""(SELECT * FROM (
                     SELECT view, unit, -(embedding <#> $4::vector) AS similarity FROM memory.vector
                     WHERE {conditions}{condition} AND view = {place}{_BACKWARDS if self._is_by_key else ""}) AS scanned
                 ORDER BY similarity DESC, unit LIMIT $5)"""  # noqa: S608 - placeholders and constants
            for place in places
        )
        rows = await connection.fetch(" UNION ALL ".join(parts), *bound.values)
        found: dict[int, list[Neighbour]] = {place: [] for place in places}
        for place, unit, similarity in rows:
            found[place].append(Neighbour(unit, similarity))
        return found

    def _conditions(self) -> tuple[Bound, str]:
        """Every statement's parameters: $1 to $5, and those of the filter after them."""
        bound = Bound(self._tenant, self._space.number, self._space.generation, _packed(self._aim), self._limit)
        chosen = allowed(self._where, bound)
        if self._where.filter is not None:
            # Units know all that filters ask for. Chosen first, the few of a narrow
            # filter are read by the key and the others not at all.
            chosen = f" AND unit = ANY(ARRAY(SELECT unit FROM memory.unit WHERE space_no = $2{chosen}))"  # noqa: S608 - placeholders and constants
        return bound, f"tenant = $1 AND space_no = $2 AND generation = $3{chosen}"

    def _best(self, *parts: list[Neighbour]) -> list[Neighbour]:
        found = [neighbour for part in parts for neighbour in part]
        # A unit that was moved between two statements may have been seen by both.
        distinct = {neighbour.unit: neighbour for neighbour in found}.values()
        return sorted(distinct, key=lambda each: (-each.similarity, each.unit))[: self._limit]


async def _all_of(works: Iterable[Awaitable[Any]]) -> list[Any]:
    """Results of what runs side by side; the first failure once all have ended."""
    first, *others = works
    if not others:
        return [await first]
    results = await asyncio.gather(first, *others, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


async def _put(connection: Connection, tenant: str, space: Space, placed: Sequence[tuple[int, VectorRow]]) -> None:
    bound = Bound(space.number, space.generation, space.dimensions, tenant)
    rows = [row for _, row in placed]
    await connection.once(_binary_vectors)
    new = rows_of(
        bound,
        embedding=("vector", [_packed(row.vector) for row in rows]),
        view=("smallint", [view for view, _ in placed]),
        unit=("bigint", [row.about.unit for row in rows]),
        version=("bigint", [row.version for row in rows]),
        kind=("smallint", [int(row.about.kind) for row in rows]),
        subject=("text", [row.about.subject for row in rows]),
        agent=("text", [row.about.agent for row in rows]),
        thread=("text", [row.about.thread for row in rows]),
        recorded_at=("timestamptz", [row.about.recorded_at for row in rows]),
        superseded_at=("timestamptz", [row.about.superseded_at for row in rows]),
        valid_from=("timestamptz", [row.about.valid_from for row in rows]),
        valid_to=("timestamptz", [row.about.valid_to for row in rows]),
        expires_at=("timestamptz", [row.about.expires_at for row in rows]),
    )
    await connection.execute(
        f"""INSERT INTO memory.vector AS v (space_no, generation, view, unit, version, kind, subject, agent,
                thread, recorded_at, superseded_at, valid_from, valid_to, expires_at, dimensions,
                embedding)
            SELECT $1, $2, view, unit, version, kind, subject, agent,
                   thread, recorded_at, superseded_at, valid_from, valid_to, expires_at, $3, embedding
            FROM {new}
            WHERE NOT EXISTS (SELECT FROM memory.tombstone t WHERE t.space_no = $1 AND t.unit = r.unit)
              AND NOT EXISTS (SELECT FROM memory.vector o
                              WHERE o.tenant = $4 AND o.space_no = $1 AND o.generation = $2
                                AND o.view BETWEEN 0 AND 2 AND o.unit = r.unit AND o.version > r.version)
            ON CONFLICT (tenant, space_no, generation, view, unit) DO UPDATE
            SET version = excluded.version, kind = excluded.kind, subject = excluded.subject,
                agent = excluded.agent, thread = excluded.thread,
                recorded_at = excluded.recorded_at, superseded_at = excluded.superseded_at,
                valid_from = excluded.valid_from, valid_to = excluded.valid_to,
                expires_at = excluded.expires_at, embedding = excluded.embedding
            WHERE v.version <= excluded.version""",  # noqa: S608 - placeholders and constants
        *bound.values,
    )
    # A unit is there by view or for both, never either way.
    await connection.execute(
        """DELETE FROM memory.vector v USING unnest($4::bigint[], $5::bigint[], $6::boolean[]) AS n
               (unit, version, shared)
           WHERE v.tenant = $1 AND v.space_no = $2 AND v.generation = $3 AND v.unit = n.unit
             AND v.version <= n.version AND v.view = ANY(CASE WHEN n.shared THEN '{1,2}'::smallint[]
                                                              ELSE '{0}'::smallint[] END)""",
        tenant, space.number, space.generation, [row.about.unit for row in rows],
        [row.version for row in rows], [view == BOTH for view, _ in placed],
    )  # fmt: skip


def _placed(rows: Sequence[VectorRow]) -> list[tuple[int, VectorRow]]:
    """Rows with their number of view; one for both where the two of a unit are equal."""
    by_unit: dict[int, dict[View, VectorRow]] = {}
    for row in rows:
        by_unit.setdefault(row.about.unit, {})[row.view] = row
    placed: list[tuple[int, VectorRow]] = []
    for by_view in by_unit.values():
        chosen = list(by_view.values())
        if len(chosen) == len(View) and list(chosen[0].vector) == list(chosen[1].vector):
            placed.append((BOTH, chosen[0]))
        else:
            placed.extend((int(row.view), row) for row in chosen)
    return placed


async def _binary_vectors(connection: Connection) -> None:
    """Have vectors sent as they are packed. Of a list the driver looks at each number: ten times as much work."""
    schema = await connection.fetchval(
        "SELECT nspname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = 'vector'::regtype"
    )
    await connection.set_type_codec("vector", schema=schema, encoder=bytes, decoder=bytes, format="binary")


def _packed(vector: Sequence[float]) -> bytes:
    """At length 1, as Postgres receives it: how many numbers, two bytes of nothing, the numbers."""
    return pack(f">HH{len(vector)}f", len(vector), 0, *unit_length(vector))


def unit_length(vector: Sequence[float]) -> list[float]:
    """The vector at length 1; a zero vector stays, and is similar to nothing."""
    square = sum(map(mul, vector, vector))
    if not square or abs(square - 1) < _AS_GOOD_AS_ONE:
        return list(vector)
    norm = sqrt(square)
    return [value / norm for value in vector]

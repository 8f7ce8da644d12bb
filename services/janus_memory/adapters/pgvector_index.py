"""Vectors in Postgres, searched exhaustively.

A search reads all vectors of the tenant's space and view, through the primary
key: exact, and up to some 20,000 vectors faster than a filtered HNSW index,
which finds a small tenant's rows only by luck. Vectors are stored at length 1,
so that the inner product, the cheapest distance to compute, is the cosine. Larger spaces stay exact and
get slower in proportion; HNSW by hash partition with iterative scans is for
them and is not built yet.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import accumulate
from math import sqrt
from operator import mul

from janus_kit.postgres import Database
from janus_memory.adapters.by_view import by_view
from janus_memory.adapters.sql import INDEXED_COLUMNS, Bound, allowed, indexed_of, rows_of
from janus_memory.model import HardFilter, Neighbour, Space, VectorRow, View
from janus_memory.reconciliation import Entry

_PAGE = 1_000

MAX_BATCH = 256
"""Vectors of one statement: some MiB at most."""
# Below what a stored number of 32 bits can tell apart.
_AS_GOOD_AS_ONE = 1e-9


class PgvectorIndex:
    """Implements ports.VectorIndex."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def upsert(self, tenant: str, space: Space, rows: Sequence[VectorRow]) -> None:
        if not rows:
            return
        for start in range(0, len(rows), MAX_BATCH):
            await self._upsert(tenant, space, rows[start : start + MAX_BATCH])

    async def _upsert(self, tenant: str, space: Space, rows: Sequence[VectorRow]) -> None:
        bound = Bound(space.number, space.generation, space.dimensions)
        # A record without neighbours has one vector in both views: it is sent once.
        distinct = {id(row.vector): row.vector for row in rows}
        ends = dict(zip(distinct, accumulate(map(len, distinct.values())), strict=True))
        numbers = bound([number for vector in distinct.values() for number in unit_length(vector)])
        new = rows_of(
            bound,
            # Where its vector ends among the numbers of all vectors, and how long it is.
            ends=("integer", [ends[id(row.vector)] for row in rows]),
            length=("integer", [len(row.vector) for row in rows]),
            view=("smallint", [int(row.view) for row in rows]),
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
        async with self._database.tenant(tenant) as connection:
            await connection.execute(
                f"""INSERT INTO memory.vector AS v (space_no, generation, view, unit, version, kind, subject, agent,
                        thread, recorded_at, superseded_at, valid_from, valid_to, expires_at, dimensions,
                        embedding)
                    SELECT $1, $2, view, unit, version, kind, subject, agent,
                           thread, recorded_at, superseded_at, valid_from, valid_to, expires_at, $3,
                           (({numbers}::real[])[ends - length + 1 : ends])::vector
                    FROM {new}
                    WHERE NOT EXISTS (SELECT FROM memory.tombstone t WHERE t.space_no = $1 AND t.unit = r.unit)
                    ON CONFLICT (tenant, space_no, generation, view, unit) DO UPDATE
                    SET version = excluded.version, kind = excluded.kind, subject = excluded.subject,
                        agent = excluded.agent, thread = excluded.thread,
                        recorded_at = excluded.recorded_at, superseded_at = excluded.superseded_at,
                        valid_from = excluded.valid_from, valid_to = excluded.valid_to,
                        expires_at = excluded.expires_at, embedding = excluded.embedding
                    WHERE v.version <= excluded.version""",  # noqa: S608 - placeholders and constants
                *bound.values,
            )

    async def delete(self, tenant: str, space: Space, units: Sequence[int]) -> None:
        if not units:
            return
        async with self._database.tenant(tenant) as connection:
            await connection.execute(
                """DELETE FROM memory.vector
                   WHERE space_no = $1 AND generation = $2 AND view = ANY($3::smallint[])
                     AND unit = ANY($4::bigint[])""",
                space.number, space.generation, list(map(int, View)), list(units),
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

        async def nearest(view: View) -> list[Neighbour]:
            bound = Bound(space.number, space.generation, int(view), aim, limit)
            async with self._database.tenant(tenant) as connection:
                rows = await connection.fetch(
                    f"""SELECT unit, -(embedding <#> $4::real[]::vector) AS similarity
                        FROM memory.vector
                        WHERE space_no = $1 AND generation = $2 AND view = $3{allowed(where, bound)}
                        ORDER BY similarity DESC, unit LIMIT $5""",  # noqa: S608 - placeholders and constants
                    *bound.values,
                )
            return [Neighbour(row["unit"], row["similarity"]) for row in rows]

        # A scan keeps one core busy: views are scanned side by side.
        results = await asyncio.gather(*map(nearest, views), return_exceptions=True)
        return by_view(views, results)

    async def entries(self, tenant: str, space: Space, view: View, units: Sequence[int]) -> list[Entry]:
        async with self._database.tenant(tenant) as connection:
            rows = await connection.fetch(
                f"""SELECT {INDEXED_COLUMNS}, version FROM memory.vector
                    WHERE space_no = $1 AND generation = $2 AND view = $3 AND unit = ANY($4::bigint[])""",  # noqa: S608 - constant columns
                space.number, space.generation, int(view), list(units),
            )  # fmt: skip
        return [Entry(indexed_of(row), row["version"]) for row in rows]

    async def pages(self, tenant: str, space: Space, view: View) -> AsyncIterator[list[int]]:
        after = -1
        while True:
            async with self._database.tenant(tenant) as connection:
                rows = await connection.fetch(
                    """SELECT unit FROM memory.vector
                       WHERE space_no = $1 AND generation = $2 AND view = $3 AND unit > $4 ORDER BY unit LIMIT $5""",
                    space.number, space.generation, int(view), after, _PAGE,
                )  # fmt: skip
            if not rows:
                return
            yield [row["unit"] for row in rows]
            after = rows[-1]["unit"]

    async def vectors(self, tenant: str, space: Space, units: Sequence[int]) -> dict[int, list[float]]:
        async with self._database.tenant(tenant) as connection:
            rows = await connection.fetch(
                """SELECT unit, embedding::real[] AS embedding FROM memory.vector
                   WHERE space_no = $1 AND generation = $2 AND view = $3 AND unit = ANY($4::bigint[])""",
                space.number, space.generation, int(View.ALONE), list(units),
            )  # fmt: skip
        return {row["unit"]: row["embedding"] for row in rows}

    async def ping(self) -> None:
        await self._database.ping()


def unit_length(vector: Sequence[float]) -> list[float]:
    """The vector at length 1; a zero vector stays, and is similar to nothing."""
    square = sum(map(mul, vector, vector))
    if not square or abs(square - 1) < _AS_GOOD_AS_ONE:
        return list(vector)
    norm = sqrt(square)
    return [value / norm for value in vector]

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
from math import sqrt

from janus_kit.postgres import Database
from janus_memory.adapters.by_view import by_view
from janus_memory.adapters.sql import INDEXED_COLUMNS, Bound, allowed, indexed_of
from janus_memory.model import HardFilter, Neighbour, Space, VectorRow, View
from janus_memory.reconciliation import Entry

_PAGE = 1_000


class PgvectorIndex:
    """Implements ports.VectorIndex."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def upsert(self, tenant: str, space: Space, rows: Sequence[VectorRow]) -> None:
        if not rows:
            return
        async with self._database.tenant(tenant) as connection:
            await connection.executemany(
                """INSERT INTO memory.vector AS v (space_no, generation, view, unit, version, kind, subject, agent,
                       thread, recorded_at, superseded_at, valid_from, valid_to, expires_at, dimensions,
                       embedding)
                   SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16::real[]::vector
                   WHERE NOT EXISTS (SELECT FROM memory.tombstone WHERE space_no = $1 AND unit = $4)
                   ON CONFLICT (tenant, space_no, generation, view, unit) DO UPDATE
                   SET version = excluded.version, kind = excluded.kind, subject = excluded.subject,
                       agent = excluded.agent, thread = excluded.thread,
                       recorded_at = excluded.recorded_at, superseded_at = excluded.superseded_at,
                       valid_from = excluded.valid_from, valid_to = excluded.valid_to,
                       expires_at = excluded.expires_at, embedding = excluded.embedding
                   WHERE v.version <= excluded.version""",
                [
                    (
                        space.number, space.generation, int(row.view), row.about.unit, row.version, int(row.about.kind),
                        row.about.subject, row.about.agent, row.about.thread, row.about.recorded_at,
                        row.about.superseded_at, row.about.valid_from, row.about.valid_to,
                        row.about.expires_at, space.dimensions, unit_length(row.vector),
                    )
                    for row in rows
                ],
            )  # fmt: skip

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

    async def ping(self) -> None:
        await self._database.ping()


def unit_length(vector: Sequence[float]) -> list[float]:
    """The vector at length 1; a zero vector stays, and is similar to nothing."""
    norm = sqrt(sum(value * value for value in vector))
    return [value / norm for value in vector] if norm else list(vector)

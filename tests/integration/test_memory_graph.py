"""Spaces too large to be scanned: searched through a graph that is filled in the background."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from tests.fakes.memory_service import eventually
from tests.fakes.patience import patient_postgres

from janus_kit.migrations import migrate
from janus_kit.postgres import Database, database
from janus_memory.adapters.pgvector_graph import PgvectorGraph
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.graph import GraphKeeper
from janus_memory.model import (
    Backend,
    HardFilter,
    Indexed,
    Kind,
    Neighbour,
    Scope,
    Space,
    SpaceDraft,
    VectorRow,
    View,
    Weights,
)

NOW = datetime(2024, 6, 1, tzinfo=UTC)
EVERYTHING = HardFilter(Scope(), (), NOW, None, NOW)
DIMENSIONS = 256
SIZE = 600
SCANNED = 200


@dataclass
class Large:
    """A space beyond what is scanned, with its vectors, and what works on it."""

    pool: Database
    owner: asyncpg.Connection
    index: PgvectorIndex
    graph: PgvectorGraph
    tenant: str
    space: Space
    rows: list[VectorRow]

    async def put(self, rows: list[VectorRow]) -> None:
        await self.index.upsert(self.tenant, self.space, rows)

    async def nearest(
        self, vector: list[float], where: HardFilter = EVERYTHING, *, limit: int = 20, exact: bool = False
    ) -> dict[View, list[Neighbour]]:
        return await self.index.search(self.tenant, self.space, list(View), vector, where, limit, exact)

    async def recall(self, where: HardFilter = EVERYTHING, queries: int = 10) -> float:
        """The share of the exact answers that a search finds, over both views."""
        found = wanted = 0
        for row in random.Random(3).sample(self.rows, queries):
            vector = [value + 0.01 for value in row.vector]
            exact, plain = await self.nearest(vector, where, exact=True), await self.nearest(vector, where)
            for view in View:
                best = {neighbour.unit for neighbour in exact[view]}
                wanted += len(best)
                found += len(best & {neighbour.unit for neighbour in plain[view]})
        return found / wanted

    async def in_graph(self) -> tuple[int, int]:
        row = await self.owner.fetchrow(
            "SELECT count(*) FILTER (WHERE graph), count(*) FROM memory.vector WHERE tenant = $1", self.tenant
        )
        return row[0], row[1]


def clustered(size: int, seed: int, first: int = 1) -> list[VectorRow]:
    """Vectors near one of twelve centres: every third unit differs by view; every hundredth is of Bob."""
    generator = random.Random(seed)
    centres = [[generator.gauss(0, 1) for _ in range(DIMENSIONS)] for _ in range(12)]

    def near() -> list[float]:
        return [value + generator.gauss(0, 0.3) for value in generator.choice(centres)]

    rows = []
    for unit in range(first, first + size):
        about = Indexed(unit, Kind.TURN, "bob" if unit % 100 == 0 else "", "", "", NOW - timedelta(days=1))
        alone = near()
        before = near() if unit % 3 == 0 else alone
        rows += [VectorRow(about, View.ALONE, 1, alone), VectorRow(about, View.BEFORE, 1, before)]
    return rows


@pytest.fixture
async def large(postgres_url: str) -> AsyncIterator[Large]:
    settings = patient_postgres(postgres_url)
    await migrate(settings, ["janus_memory"])
    owner = await asyncpg.connect(postgres_url)
    async with database(settings, application="test") as pool:
        await owner.execute("TRUNCATE memory.vector, memory.space, memory.statistics")
        async with PostgresRecords(pool).transaction("ann") as tx:
            draft = SpaceDraft("s", Backend.PGVECTOR, "m", DIMENSIONS, Weights(), "")
            space = await tx.add_space(draft)
        await owner.execute("INSERT INTO memory.statistics VALUES ('ann', $1, $2, 0)", space.number, SIZE)
        opened = Large(pool, owner, PgvectorIndex(pool), PgvectorGraph(pool, SCANNED), "ann", space, clustered(SIZE, 7))
        await opened.put(opened.rows)
        yield opened
    await owner.close()


async def test_a_large_space_is_searched_through_its_graph(large: Large) -> None:
    assert await GraphKeeper(large.graph).work() == SIZE + SIZE // 3
    assert await large.in_graph() == (SIZE + SIZE // 3, SIZE + SIZE // 3)
    assert await large.recall() >= 0.95

    async def used() -> bool:
        # Its connection tells what it used when it is used again.
        await large.nearest(list(large.rows[0].vector))
        query = """SELECT sum(idx_scan) FROM pg_stat_user_indexes
                   WHERE indexrelname LIKE 'vector_%_embedding_%' AND schemaname = 'memory'"""
        return bool(await large.owner.fetchval(query))

    await eventually(used)


async def test_a_space_on_its_way_into_the_graph_misses_nothing(large: Large) -> None:
    assert await large.graph.admit("ann", large.space.number)
    inside, all_of_it = await large.in_graph()
    assert 0 < inside < all_of_it
    assert await large.recall() >= 0.95


async def test_what_is_new_is_found_at_once_and_moved_later(large: Large) -> None:
    keeper = GraphKeeper(large.graph)
    await keeper.work()
    new = clustered(3, 99, first=SIZE + 1)
    await large.put(new)
    for row in new[::2]:
        found = await large.nearest(list(row.vector), limit=1)
        assert found[View.ALONE][0].unit == row.about.unit
    assert await keeper.work() == 4
    assert await keeper.work() == 0


async def test_what_is_taken_out_is_gone_from_the_graph(large: Large) -> None:
    await GraphKeeper(large.graph).work()
    vector = list(large.rows[0].vector)
    await large.index.delete("ann", large.space, [1])
    found = await large.nearest(vector)
    assert all(neighbour.unit != 1 for neighbours in found.values() for neighbour in neighbours)


@pytest.mark.parametrize(
    "where",
    [
        replace(EVERYTHING, scope=Scope(subject="bob")),
        replace(EVERYTHING, scope=Scope(subject="nobody")),
        replace(EVERYTHING, kinds=(Kind.FACT,)),
    ],
)
async def test_a_filter_loses_no_row_of_a_large_space(large: Large, where: HardFilter) -> None:
    await GraphKeeper(large.graph).work()
    vector = list(large.rows[0].vector)
    assert await large.nearest(vector, where) == await large.nearest(vector, where, exact=True)


async def test_exact_scans_a_large_space_too(large: Large) -> None:
    vector = list(large.rows[0].vector)
    before = await large.nearest(vector, exact=True)
    await GraphKeeper(large.graph).work()
    assert await large.nearest(vector, exact=True) == before


async def test_another_tenant_and_a_smaller_space_share_a_graph_and_see_their_own(large: Large) -> None:
    await GraphKeeper(large.graph).work()
    async with PostgresRecords(large.pool).transaction("ann") as tx:
        small = await tx.add_space(SpaceDraft("small", Backend.PGVECTOR, "m", DIMENSIONS, Weights(), ""))
    rows = clustered(10, 5)
    await large.index.upsert("ann", small, rows)
    found = await large.index.search("ann", small, list(View), list(rows[0].vector), EVERYTHING, 20, False)
    assert {neighbour.unit for neighbour in found[View.ALONE]} == set(range(1, 11))
    foreign = await large.index.search("bob", large.space, list(View), list(rows[0].vector), EVERYTHING, 20, False)
    assert not any(foreign.values())


async def test_small_spaces_and_those_without_a_graph_of_their_dimensions_stay_out(large: Large) -> None:
    assert await PgvectorGraph(large.pool, SIZE).outgrown() == []
    await large.owner.execute("UPDATE memory.statistics SET units = units + 10 * $1", SIZE)
    assert await PgvectorGraph(large.pool, SIZE).admit("ann", large.space.number) == 0
    await large.owner.execute("UPDATE memory.space SET dimensions = 255")
    assert await large.graph.admit("ann", large.space.number) == 0
    assert await large.in_graph() == (0, SIZE + SIZE // 3)


async def test_one_at_a_time_works_on_a_space(large: Large) -> None:
    async with large.pool.tenant("ann") as connection:
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('janus.memory.graph', $1))", large.space.number
        )
        assert await large.graph.admit("ann", large.space.number) == 0
    moved = await asyncio.gather(*(GraphKeeper(large.graph).work() for _ in range(2)))
    assert sum(moved) == SIZE + SIZE // 3

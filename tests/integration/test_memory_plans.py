"""What recall reads, and how: what it needs, not all there is, also of a tenant newer than the statistics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from tests.bench.memory_load import Corpus, fill
from tests.fakes.patience import patient_postgres

from janus_kit.migrations import migrate
from janus_kit.postgres import Database, database
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresTransaction
from janus_memory.model import HardFilter, Kind, Scope, Space, View

NOW = datetime(2030, 1, 1, tzinfo=UTC)
EVERYTHING = HardFilter(Scope(), (), NOW, None, NOW)
SIZE = 1_000
SPANS = [(f"talk-{thread}", first, first + 4) for thread in range(5) for first in (10, 50, 90, 130)]
# Since this connection last told the statistics.
_ROWS = """SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int FROM pg_stat_xact_user_tables
           WHERE schemaname = 'memory' AND relname IN ('unit', 'turn', 'memory')"""

Read = Callable[[PostgresTransaction], Awaitable[Any]]


class Newcomer:
    """A tenant with turns and memories, who came after the last ANALYZE."""

    def __init__(self, pool: Database, spaces: dict[str, Space]) -> None:
        self.pool = pool
        self.spaces = spaces

    async def units(self, tenant: str) -> list[int]:
        async with self.pool.tenant(tenant) as connection:
            rows = await connection.fetch("SELECT unit FROM memory.unit WHERE tenant = $1 ORDER BY unit", tenant)
        return [row["unit"] for row in rows]

    async def rows_read(self, tenant: str, read: Read) -> tuple[Any, int]:
        """What a read gives, and how many rows it fetched from tables for that."""
        async with self.pool.tenant(tenant) as connection:
            before = await connection.fetchval(_ROWS)
            found = await read(PostgresTransaction(connection))
            return found, await connection.fetchval(_ROWS) - before


async def _fill(url: str) -> None:
    await migrate(patient_postgres(url), ["janus_memory"])
    owner = await asyncpg.connect(url)
    try:
        for table in ("unit", "turn", "memory"):
            await owner.execute(f"ALTER TABLE memory.{table} SET (autovacuum_enabled = false)")
        await fill(owner, Corpus(1), ["turns", "turns-too"], SIZE, turns=True)
        await fill(owner, Corpus(2), ["memories"], SIZE, turns=False)
        await owner.execute("ANALYZE")
        await fill(owner, Corpus(3), ["new-turns"], SIZE, turns=True)
        await fill(owner, Corpus(4), ["new-memories"], SIZE, turns=False)
    finally:
        await owner.close()


@pytest.fixture(scope="module")
def filled(postgres_url: str) -> str:
    asyncio.run(_fill(postgres_url))
    return postgres_url


@pytest.fixture
async def newcomer(filled: str) -> AsyncIterator[Newcomer]:
    async with database(patient_postgres(filled), application="test") as pool:
        spaces = {}
        for tenant in ("memories", "new-turns", "new-memories"):
            async with pool.tenant(tenant) as connection:
                space = await PostgresTransaction(connection).space("default")
                assert space
                spaces[tenant] = space
        yield Newcomer(pool, spaces)


async def test_turns_around_others_are_read_by_their_positions(newcomer: Newcomer) -> None:
    number = newcomer.spaces["new-turns"].number
    found, read = await newcomer.rows_read("new-turns", lambda tx: tx.around(number, SPANS, EVERYTHING))
    assert len(found) == read == 100
    found, read = await newcomer.rows_read("new-turns", lambda tx: tx.turns_around(number, SPANS, EVERYTHING, 10_000))
    assert (len(found), read) == (100, 200)


@pytest.mark.parametrize("tenant", ["new-turns", "new-memories"])
async def test_hits_are_read_by_their_units(newcomer: Newcomer, tenant: str) -> None:
    space = newcomer.spaces[tenant]
    units = (await newcomer.units(tenant))[::100]
    ways = {
        "new-turns": lambda tx: tx.records(space, units, []),
        "new-memories": lambda tx: tx.records(space, [], units),
    }
    found, read = await newcomer.rows_read(tenant, ways[tenant])
    assert (sorted(found), read) == (units, 2 * len(units))


@pytest.mark.parametrize("count", [3, 200])
async def test_candidates_are_read_by_their_units(newcomer: Newcomer, count: int) -> None:
    number = newcomer.spaces["new-turns"].number
    units = (await newcomer.units("new-turns"))[:: SIZE // count]
    found, read = await newcomer.rows_read("new-turns", lambda tx: tx.candidates(number, units, EVERYTHING))
    assert len(found) == read == len(units)


class Explaining:
    """A connection, and how it gets the rows that it is asked for."""

    def __init__(self, connection: Any, plans: list[str]) -> None:
        self._connection = connection
        self._plans = plans

    async def once(self, prepare: Any) -> None:
        await self._connection.once(prepare)

    async def fetch(self, sql: str, *values: Any) -> Sequence[Any]:
        self._plans += [row[0] for row in await self._connection.fetch(f"EXPLAIN {sql}", *values)]
        return await self._connection.fetch(sql, *values)  # type: ignore[no-any-return]


@pytest.mark.parametrize("tenant", ["memories", "new-memories"])
@pytest.mark.parametrize("where", [EVERYTHING, replace(EVERYTHING, kinds=(Kind.FACT,))])
@pytest.mark.parametrize("exact", [True, False])
async def test_a_scan_goes_backwards_through_the_key(
    newcomer: Newcomer, monkeypatch: pytest.MonkeyPatch, tenant: str, where: HardFilter, exact: bool
) -> None:
    pool, plans = newcomer.pool, []
    tenant_of_pool = pool.tenant

    @asynccontextmanager
    async def explained(tenant: str, **options: bool) -> AsyncIterator[Any]:
        async with tenant_of_pool(tenant, **options) as connection:
            yield Explaining(connection, plans)

    monkeypatch.setattr(pool, "tenant", explained)
    vector = Corpus(5).questions(1)[0].vector
    await PgvectorIndex(pool).search(tenant, newcomer.spaces[tenant], list(View), vector, where, 200, exact)
    reads = [line.strip().removeprefix("->").strip() for line in plans if "on vector_" in line]
    # One each for what is of both views, and of either.
    assert len(reads) == len(View) + 1
    assert all(line.startswith("Index Scan Backward using vector_") and "_pkey" in line for line in reads)

"""Vectors held in memory: whatever happens to those in Postgres, a search finds what a scan would."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg
import pytest
from tests.fakes.memory_service import Memory, eventually, texts
from tests.fakes.patience import patient_postgres

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import scope_pb2
from janus_kit.migrations import migrate
from janus_kit.postgres import Connection, Database, database
from janus_memory import metrics
from janus_memory.adapters import pgvector_resident
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.pgvector_resident import ResidentVectors
from janus_memory.adapters.postgres_records import PostgresRecords
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
from janus_memory.resident import BLOCK, Resident

NOW = datetime(2024, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
EVERYTHING = HardFilter(Scope(), (), NOW, None, NOW)
DIMENSIONS = 8
RYW = scope_pb2.CONSISTENCY_READ_YOUR_WRITES


@dataclass
class Bench:
    """A space that is held in memory, and its vectors in Postgres."""

    pool: Database
    owner: asyncpg.Connection
    resident: ResidentVectors
    index: PgvectorIndex
    space: Space

    async def held(self, vector: list[float], where: HardFilter = EVERYTHING, limit: int = 20) -> list[list[Neighbour]]:
        """What memory answers, by view."""
        found = await self.resident.search("ann", self.space, list(View), unit(vector), where, limit)
        assert found is not None
        return [found[view] for view in View]

    async def scanned(
        self, vector: list[float], where: HardFilter = EVERYTHING, limit: int = 20
    ) -> list[list[Neighbour]]:
        """What Postgres answers, by view."""
        index = PgvectorIndex(self.pool)
        found = await index.search("ann", self.space, list(View), vector, where, limit, True)
        return [found[view] for view in View]


def unit(vector: list[float]) -> list[float]:
    length = sum(value * value for value in vector) ** 0.5
    return [value / length for value in vector] if length else vector


@pytest.fixture
async def bench(postgres_url: str) -> AsyncIterator[Bench]:
    settings = patient_postgres(postgres_url)
    await migrate(settings, ["janus_memory"])
    owner = await asyncpg.connect(postgres_url)
    async with database(settings, application="test") as pool:
        async with PostgresRecords(pool).transaction("ann") as tx:
            draft = SpaceDraft(f"s{uuid.uuid4().hex[:8]}", Backend.PGVECTOR, "m", DIMENSIONS, Weights(), "")
            space = await tx.add_space(draft)
        resident = ResidentVectors(pool, 1 << 24)
        yield Bench(pool, owner, resident, PgvectorIndex(pool, resident), space)
    await owner.close()


def rows(generator: random.Random, units: list[int], version: int = 1) -> list[VectorRow]:
    """Vectors of few values, so that many are equal; of every third unit another one for each view."""
    made = []
    for each in units:

        def some(times: list[datetime | None]) -> datetime | None:
            return generator.choice(times)

        about = Indexed(
            each,
            generator.choice(list(Kind)),
            generator.choice(["", "ann", "bob"]),
            generator.choice(["", "helper"]),
            generator.choice(["", "t1", "t2"]),
            NOW - generator.randrange(9) * DAY,
            valid_from=some([None, None, NOW - DAY, NOW, NOW + DAY]),
            valid_to=some([None, None, NOW, NOW + DAY]),
            expires_at=some([None, None, NOW, NOW + DAY]),
            superseded_at=some([None, None, None, NOW - DAY, NOW]),
        )
        alone, before = ([float(generator.randint(-1, 1)) for _ in range(DIMENSIONS)] for _ in range(2))
        made.append(VectorRow(about, View.ALONE, version, alone))
        made.append(VectorRow(about, View.BEFORE, version, before if each % 3 == 0 else alone))
    return made


def some_filter(generator: random.Random) -> HardFilter:
    scope = Scope(
        "",
        generator.choice(["", "", "ann", "nobody"]),
        generator.choice(["", "", "helper"]),
        generator.choice(["", "", "t1"]),
    )
    kinds = tuple(generator.sample(list(Kind), generator.choice([0, 0, 1, 2])))
    at, now = (NOW + generator.choice([-1, 0, 1]) * DAY for _ in range(2))
    return HardFilter(scope, kinds, at, generator.choice([None, None, NOW - DAY, NOW]), now)


def same(held: list[list[Neighbour]], scanned: list[list[Neighbour]]) -> None:
    """Equal answers; of what is as near as the last, which are left out is for each to say: they round differently."""
    for ours, theirs in zip(held, scanned, strict=True):
        assert [each.similarity for each in ours] == pytest.approx([each.similarity for each in theirs], abs=2e-6)
        assert ours == sorted(ours, key=lambda each: (-each.similarity, each.unit))
        last = ours[-1].similarity + 2e-6 if ours else 0.0
        known = dict(theirs)
        for each in ours:
            assert each.similarity <= last or each.similarity == pytest.approx(known[each.unit], abs=2e-6)


@pytest.mark.parametrize("seed", range(4))
async def test_memory_and_a_scan_give_the_same_answers_whatever_changes(bench: Bench, seed: int) -> None:
    generator = random.Random(seed)
    known = list(range(1, 2 * BLOCK))
    await bench.index.upsert("ann", bench.space, rows(generator, known))
    await bench.resident.load("ann", bench.space)
    for version in range(2, 22):
        match generator.choice(["new", "new", "again", "gone", "many gone"]):
            case "new":
                fresh = list(range(known[-1] + 1, known[-1] + generator.choice([2, 100])))
                known += fresh
                await bench.index.upsert("ann", bench.space, rows(generator, fresh, version))
            case "again":
                await bench.index.upsert("ann", bench.space, rows(generator, generator.sample(known, 20), version))
            case "gone":
                await bench.index.delete("ann", bench.space, generator.sample(known, 3))
            case _:
                await bench.index.delete("ann", bench.space, generator.sample(known, 300))
        for _ in range(3):
            vector = [float(generator.randint(-1, 1)) for _ in range(DIMENSIONS)]
            where, limit = some_filter(generator), generator.choice([1, 20, 500])
            same(await bench.held(vector, where, limit), await bench.scanned(vector, where, limit))
    assert bench.resident.size == sum(held.resident.size for held in bench.resident._held.values()) > 0


async def test_many_changes_are_read_in_several_statements(bench: Bench) -> None:
    generator = random.Random(12)
    count, changed = 9 * BLOCK, 2 * BLOCK + 7
    await bench.owner.execute(
        """INSERT INTO memory.vector (tenant, space_no, view, unit, version, kind, dimensions, subject, agent, thread,
               recorded_at, embedding)
           SELECT 'ann', $1, 0, unit, 1, 1, $2, '', '', '', $3, array_fill(1::real, ARRAY[$2::integer])::vector
           FROM generate_series(1, $4::integer) AS unit""",
        bench.space.number, DIMENSIONS, NOW - DAY, count,
    )  # fmt: skip
    await bench.resident.load("ann", bench.space)
    await bench.index.upsert("ann", bench.space, rows(generator, list(range(1, changed)), 2))
    for _ in range(3):
        vector = [float(generator.randint(-1, 1)) for _ in range(DIMENSIONS)]
        same(await bench.held(vector, limit=changed), await bench.scanned(vector, limit=changed))
    # Of more than that a scan takes less.
    await bench.owner.execute("UPDATE memory.vector SET version = 3 WHERE space_no = $1", bench.space.number)
    found = await bench.resident.search("ann", bench.space, list(View), unit(vector), EVERYTHING, 9)
    assert found is None
    assert bench.resident.size == 0


async def test_what_commits_late_is_found_after_it_and_not_before(bench: Bench) -> None:
    generator = random.Random(5)
    await bench.index.upsert("ann", bench.space, rows(generator, list(range(1, 20))))
    await bench.resident.load("ann", bench.space)
    aim = [1.0] * DIMENSIONS
    late = await asyncpg.connect(bench.pool._settings.url.get_secret_value())
    insert = """INSERT INTO memory.vector (tenant, space_no, view, unit, version, kind, dimensions, subject, agent,
                    thread, recorded_at, embedding)
                VALUES ('ann', $1, 0, $2, 1, 1, $3, '', '', '', $4, array_fill(1::real, ARRAY[$3::integer])::vector)"""
    try:
        async with late.transaction():
            await late.execute(insert, bench.space.number, 901, DIMENSIONS, NOW - DAY)
            # A younger transaction is seen before the older one.
            await bench.owner.execute(insert, bench.space.number, 902, DIMENSIONS, NOW - DAY)
            assert {each.unit for each in (await bench.held(aim))[0]} >= {902}
            assert 901 not in {each.unit for each in (await bench.held(aim))[0]}
        for _ in range(2):
            assert {each.unit for each in (await bench.held(aim))[0]} >= {901, 902}
        # And what is not committed never was.
        with pytest.raises(ZeroDivisionError):
            async with late.transaction():
                await late.execute("DELETE FROM memory.vector WHERE unit = 901 AND space_no = $1", bench.space.number)
                raise ZeroDivisionError
        same(await bench.held(aim), await bench.scanned(aim))
    finally:
        await late.close()


async def test_a_space_is_loaded_when_it_is_searched_often_and_let_go_when_it_is_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector_resident, "LOOK_EVERY_S", 0.02)
    await bench.index.upsert("ann", bench.space, rows(random.Random(6), list(range(1, 20))))
    aim = [1.0] * DIMENSIONS

    async def search() -> None:
        await bench.index.search("ann", bench.space, list(View), aim, EVERYTHING, 10, False)

    keeping = asyncio.create_task(bench.resident.run())
    try:
        await search()
        await search()
        assert bench.resident._wanted.empty()
        assert bench.resident.size == 0
        await search()

        async def loaded() -> bool:
            return bench.resident.size > 0

        await eventually(loaded)
        same(await bench.held(aim), await bench.scanned(aim))
        await bench.index.delete("ann", bench.space, [1, 2, 3])
        size = bench.resident.size

        async def smaller() -> bool:
            return 0 < bench.resident.size < size

        # Nobody searches meanwhile.
        await eventually(smaller)
        monkeypatch.setattr(pgvector_resident, "_IDLE_S", 0.0)

        async def gone() -> bool:
            return bench.resident.size == 0

        await eventually(gone)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_without_postgres_nothing_is_held(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgvector_resident, "LOOK_EVERY_S", 0.02)
    await bench.index.upsert("ann", bench.space, rows(random.Random(7), list(range(1, 20))))
    await bench.resident.load("ann", bench.space)
    assert bench.resident.size > 0
    keeping = asyncio.create_task(bench.resident.run())
    try:
        await bench.pool.close()

        async def gone() -> bool:
            return bench.resident.size == 0

        await eventually(gone)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_there_is_a_limit_to_what_is_held(bench: Bench) -> None:
    few, many = list(range(1, 11)), list(range(11, 60))
    small = ResidentVectors(bench.pool, 3_000)
    await bench.index.upsert("ann", bench.space, rows(random.Random(8), few))
    await small.load("ann", bench.space)
    assert 0 < small.size <= 3_000
    await bench.index.upsert("ann", bench.space, rows(random.Random(8), many))
    # It has outgrown its room: the search is a scan's.
    aim = [1.0] * DIMENSIONS
    assert await small.search("ann", bench.space, list(View), unit(aim), EVERYTHING, 10) is None
    assert small.size == 0
    await small.load("ann", bench.space)
    assert small.size == 0
    # And nobody counts it again at every third search.
    for _ in range(9):
        await small.search("ann", bench.space, list(View), unit(aim), EVERYTHING, 10)
    assert small._wanted.empty()


async def test_a_space_that_grows_while_it_is_loaded_stays_within_the_limit(bench: Bench) -> None:
    generator = random.Random(13)
    await bench.index.upsert("ann", bench.space, rows(generator, list(range(1, 11))))
    pages = []

    class Growing:
        """A database in which more is written after the rows were counted."""

        @asynccontextmanager
        async def tenant(self, tenant: str, **options: bool) -> AsyncIterator[Connection]:
            pages.append(options)
            if len(pages) == 2:
                await bench.index.upsert("ann", bench.space, rows(generator, list(range(11, 60))))
            async with bench.pool.tenant(tenant, **options) as connection:
                yield connection

    small = ResidentVectors(cast(Database, Growing()), 3_000)
    await small.load("ann", bench.space)
    assert len(pages) == 2
    assert small.size == 0


async def test_there_is_a_limit_to_how_many_spaces_are_held(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgvector_resident, "_MOST_HELD", 1)
    async with PostgresRecords(bench.pool).transaction("ann") as tx:
        draft = SpaceDraft(f"s{uuid.uuid4().hex[:8]}", Backend.PGVECTOR, "m", DIMENSIONS, Weights(), "")
        other = await tx.add_space(draft)
    for space in (bench.space, other):
        await bench.index.upsert("ann", space, rows(random.Random(14), [1, 2]))
        await bench.resident.load("ann", space)
    for _ in range(9):
        await bench.index.search("ann", other, list(View), [1.0] * DIMENSIONS, EVERYTHING, 9, False)
    assert [number for _, number, _ in bench.resident._held] == [bench.space.number]
    assert bench.resident._wanted.empty()


async def test_a_space_that_cannot_be_read_keeps_no_other_from_being_loaded_and_looked_after(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector_resident, "LOOK_EVERY_S", 0.02)
    async with PostgresRecords(bench.pool).transaction("ann") as tx:
        draft = SpaceDraft(f"s{uuid.uuid4().hex[:8]}", Backend.PGVECTOR, "m", DIMENSIONS + 1, Weights(), "")
        odd = await tx.add_space(draft)
    read = pgvector_resident._resident

    def broken(row: Any, dimensions: int) -> Resident:
        if dimensions == odd.dimensions:
            raise MemoryError
        return read(row, dimensions)

    async def search(space: Space) -> None:
        for _ in range(3):
            aim = [1.0] * space.dimensions
            await bench.index.search("ann", space, list(View), aim, EVERYTHING, 9, False)

    await bench.index.upsert("ann", bench.space, rows(random.Random(15), list(range(1, 20))))
    about = rows(random.Random(15), [1])[0].about
    await bench.index.upsert("ann", odd, [VectorRow(about, View.ALONE, 1, [1.0] * odd.dimensions)])
    await bench.resident.load("ann", odd)
    held = bench.resident.size
    assert held > 0
    keeping = asyncio.create_task(bench.resident.run())
    try:
        monkeypatch.setattr(pgvector_resident, "_resident", broken)
        await bench.index.upsert("ann", odd, [VectorRow(about, View.ALONE, 2, [-1.0] * odd.dimensions)])

        async def gone() -> bool:
            return bench.resident.size == 0

        # Nobody knows what it is by now.
        await eventually(gone)
        await search(odd)
        await search(bench.space)

        async def loaded() -> bool:
            return bench.resident.size > 0

        await eventually(loaded)
        assert [number for _, number, _ in bench.resident._held] == [bench.space.number]
        # Nor is it tried at every third search.
        await search(odd)
        assert bench.resident._wanted.empty()
        assert not keeping.done()
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_what_was_looked_at_too_long_ago_is_not_trusted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.index.upsert("ann", bench.space, rows(random.Random(9), list(range(1, 20))))
    await bench.resident.load("ann", bench.space)
    monkeypatch.setattr(pgvector_resident, "_TRUSTED", timedelta(0))
    # As if the process had stood still for so long that the changes are forgotten.
    await bench.owner.execute("DELETE FROM memory.vector_change")
    assert await bench.resident.search("ann", bench.space, list(View), [1.0] * DIMENSIONS, EVERYTHING, 9) is None
    assert bench.resident.size == 0


async def test_what_was_held_before_postgres_crashed_is_not_trusted(bench: Bench) -> None:
    unlogged = "SELECT bool_and(relpersistence = 'u') FROM pg_class WHERE relname IN ('vector_era', 'vector_change')"
    assert await bench.owner.fetchval(unlogged)
    await bench.index.upsert("ann", bench.space, rows(random.Random(9), list(range(1, 20))))
    await bench.resident.load("ann", bench.space)
    # What recovery does to unlogged tables.
    await bench.owner.execute("TRUNCATE memory.vector_era, memory.vector_change")
    aim = [1.0] * DIMENSIONS
    assert await bench.resident.search("ann", bench.space, list(View), unit(aim), EVERYTHING, 9) is None
    assert bench.resident.size == 0
    await bench.resident.load("ann", bench.space)
    same(await bench.held(aim), await bench.scanned(aim))


async def test_a_change_is_as_old_as_its_statement(bench: Bench) -> None:
    # A transaction's time is that of its beginning: of one that took long, changes would be forgotten at once.
    async with bench.owner.transaction():
        await bench.owner.execute(
            """INSERT INTO memory.vector (tenant, space_no, view, unit, version, kind, dimensions, subject, agent,
                   thread, recorded_at, embedding)
               VALUES ('ann', $1, 0, 1, 1, 1, 2, '', '', '', now(), '[1,0]')""",
            bench.space.number,
        )
        assert await bench.owner.fetchval(
            "SELECT created_at > now() FROM memory.vector_change WHERE space_no = $1", bench.space.number
        )


async def test_changes_are_forgotten_when_nobody_can_ask_for_them_any_more(bench: Bench) -> None:
    records = PostgresRecords(bench.pool)
    await bench.index.upsert("ann", bench.space, rows(random.Random(10), [1]))
    await records.forget_vector_changes()
    counted = "SELECT count(*) FROM memory.vector_change WHERE space_no = $1"
    assert await bench.owner.fetchval(counted, bench.space.number) > 0
    await bench.owner.execute("UPDATE memory.vector_change SET created_at = now() - interval '11 minutes'")
    assert await records.forget_vector_changes() > 0
    assert await bench.owner.fetchval(counted, bench.space.number) == 0


async def test_vectors_of_one_tenant_are_no_other_tenants(bench: Bench) -> None:
    await bench.index.upsert("ann", bench.space, rows(random.Random(11), [1, 2]))
    await bench.resident.load("ann", bench.space)
    aim = [1.0] * DIMENSIONS
    assert await bench.resident.search("bob", bench.space, list(View), unit(aim), EVERYTHING, 9) is None
    await bench.resident.load("bob", bench.space)
    assert await bench.resident.search("bob", bench.space, list(View), unit(aim), EVERYTHING, 9) is None


async def test_a_much_searched_space_answers_with_what_is_true_now(memory: Memory) -> None:
    ann = memory.caller()
    for place in ("pond", "river", "lake"):
        await ann.remember(f"the heron stands at the {place}", scope={"subject": "ann"}, consistency=RYW)
    before = metrics.resident_bytes._value.get()

    async def held() -> bool:
        await ann.recall("where does the heron stand")
        return bool(metrics.resident_bytes._value.get() > before)

    await eventually(held, 30)
    done = await ann.remember("the heron stands at the weir", scope={"subject": "bob"}, consistency=RYW)
    assert "the heron stands at the weir" in texts(await ann.recall("where does the heron stand"))
    assert texts(await ann.recall("where does the heron stand", scope={"subject": "bob"})) == [
        "the heron stands at the weir"
    ]
    await ann.call("ForgetMemory", pb.ForgetMemoryRequest(memory_id=done.memory_ids[0]))
    found = texts(await ann.recall("where does the heron stand"))
    assert len(found) == 3
    assert "the heron stands at the weir" not in found

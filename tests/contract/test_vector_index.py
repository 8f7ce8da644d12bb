"""What every vector index promises: the same answers from pgvector, in Postgres and in memory, and from Chroma."""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.fakes.patience import patient_postgres

from janus_kit.migrations import migrate
from janus_kit.postgres import Connection, Database, database
from janus_memory.adapters.chroma_index import ChromaIndex
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.pgvector_resident import ResidentVectors
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.model import (
    Backend,
    HardFilter,
    Indexed,
    Kind,
    Lexicon,
    Neighbour,
    Scope,
    Space,
    SpaceDraft,
    VectorRow,
    View,
    Weights,
)
from janus_memory.ports import VectorIndex
from janus_memory.reconciliation import Entry

NOW = datetime(2024, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
DIMENSIONS = 8
EVERYTHING = HardFilter(Scope(), (), NOW, None, NOW)


class Backends:
    """Both indexes, and spaces made in the database that one of them lives in."""

    def __init__(self, pool: Database, records: PostgresRecords, indexes: dict[str, VectorIndex]) -> None:
        self.pool = pool
        self.records = records
        self.indexes = indexes

    async def space(self, tenant: str) -> Space:
        async with self.records.transaction(tenant) as tx:
            return await tx.add_space(
                SpaceDraft(f"s{uuid.uuid4().hex[:8]}", Backend.PGVECTOR, "m", DIMENSIONS, Weights(), "")
            )


class InMemory(PgvectorIndex):
    """Searches in memory whatever can be searched there."""

    def __init__(self, pool: Database) -> None:
        self.held = ResidentVectors(pool, 1 << 20)
        super().__init__(pool, self.held)

    async def upsert(self, tenant: str, space: Space, rows: Sequence[VectorRow]) -> None:
        await super().upsert(tenant, space, rows)
        # The first time; what comes later is read by the searches.
        await self.held.load(tenant, space)


@pytest.fixture
async def backends(postgres_url: str, chroma_url: str) -> AsyncIterator[Backends]:
    settings = patient_postgres(postgres_url)
    await migrate(settings, ["janus_memory"])
    async with database(settings, application="test") as pool:
        records = PostgresRecords(pool)
        chroma = ChromaIndex(chroma_url, records, timeout_s=20)
        yield Backends(pool, records, {"pgvector": PgvectorIndex(pool), "memory": InMemory(pool), "chroma": chroma})
        await chroma.close()


@pytest.fixture(params=["pgvector", "memory", "chroma"])
def index(request: pytest.FixtureRequest, backends: Backends) -> VectorIndex:
    return backends.indexes[request.param]


def about(unit: int, **fields: object) -> Indexed:
    plain = Indexed(unit, Kind.TURN, "", "", "", NOW - DAY)
    return replace(plain, **fields)  # type: ignore[arg-type]


def row(unit: int, vector: list[float], view: View = View.ALONE, version: int = 1, **fields: object) -> VectorRow:
    return VectorRow(about(unit, **fields), view, version, vector)


def pointing(*values: float) -> list[float]:
    return [*values, *[0.0] * (DIMENSIONS - len(values))]


async def found(
    index: VectorIndex,
    tenant: str,
    space: Space,
    vector: list[float],
    where: HardFilter = EVERYTHING,
    view: View = View.ALONE,
    limit: int = 10,
    exact: bool = False,
) -> list[Neighbour]:
    return (await index.search(tenant, space, [view], vector, where, limit, exact))[view]


def units(neighbours: list[Neighbour]) -> list[int]:
    return [neighbour.unit for neighbour in neighbours]


async def test_the_nearest_come_first_with_their_cosine(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    await index.upsert(
        "ann", space, [row(1, pointing(1, 1)), row(2, pointing(3, 0)), row(3, pointing(0, -1)), row(4, pointing(-1))]
    )
    neighbours = await found(index, "ann", space, pointing(2, 0))
    assert units(neighbours) == [2, 1, 3, 4]
    assert [n.similarity for n in neighbours] == pytest.approx([1.0, 2**-0.5, 0.0, -1.0], abs=1e-5)


async def test_views_are_searched_apart(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    await index.upsert("ann", space, [row(1, pointing(1)), row(2, pointing(1), View.BEFORE)])
    both = await index.search("ann", space, list(View), pointing(1), EVERYTHING, 10, False)
    assert {view: units(neighbours) for view, neighbours in both.items()} == {View.ALONE: [1], View.BEFORE: [2]}


async def test_views_may_become_equal_and_differ_again(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    for version, (alone, before) in enumerate([((1, 0), (0, 1)), ((1, 1), (1, 1)), ((0, 1), (1, 0))], 1):
        pair = [
            row(1, pointing(*alone), version=version),
            row(1, pointing(*before), View.BEFORE, version=version),
        ]
        await index.upsert("ann", space, pair)
        for view, vector in ((View.ALONE, alone), (View.BEFORE, before)):
            [neighbour] = await found(index, "ann", space, pointing(*vector), view=view)
            assert neighbour.similarity == pytest.approx(1.0, abs=1e-5)
    late = [row(1, pointing(1, 1), version=2), row(1, pointing(1, 1), View.BEFORE, version=2)]
    await index.upsert("ann", space, late)
    [neighbour] = await found(index, "ann", space, pointing(0, 1))
    assert neighbour.similarity == pytest.approx(1.0, abs=1e-5)
    await index.delete("ann", space, [1])
    assert not any((await index.search("ann", space, list(View), pointing(1), EVERYTHING, 10, True)).values())


async def test_putting_twice_is_putting_once(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    for _ in range(2):
        await index.upsert("ann", space, [row(1, pointing(1)), row(2, pointing(0, 1))])
    assert units(await found(index, "ann", space, pointing(1))) == [1, 2]


async def test_a_higher_version_replaces_everything_of_the_lower(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    await index.upsert("ann", space, [row(1, pointing(1), subject="bob", expires_at=NOW + DAY)])
    await index.upsert("ann", space, [row(1, pointing(0, 1), version=2)])
    [neighbour] = await found(index, "ann", space, pointing(0, 1))
    assert neighbour.similarity == pytest.approx(1.0, abs=1e-5)
    late = replace(EVERYTHING, now=NOW + 2 * DAY)
    assert units(await found(index, "ann", space, pointing(0, 1), late)) == [1]
    only_bob = replace(EVERYTHING, scope=Scope(subject="bob"))
    assert units(await found(index, "ann", space, pointing(0, 1), only_bob)) == []


async def test_a_lower_version_comes_too_late(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    await index.upsert("ann", space, [row(1, pointing(1), version=3)])
    await index.upsert("ann", space, [row(1, pointing(0, 1), version=2)])
    [neighbour] = await found(index, "ann", space, pointing(1))
    assert neighbour.similarity == pytest.approx(1.0, abs=1e-5)


async def test_what_is_taken_out_is_gone_from_every_view(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    await index.upsert("ann", space, [row(1, pointing(1)), row(1, pointing(1), View.BEFORE), row(2, pointing(1))])
    for _ in range(2):
        await index.delete("ann", space, [1, 99, 1])
    assert units(await found(index, "ann", space, pointing(1))) == [2]
    assert units(await found(index, "ann", space, pointing(1), view=View.BEFORE)) == []


async def test_another_tenant_and_another_space_see_nothing(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    other = await backends.space("ann")
    await index.upsert("ann", space, [row(1, pointing(1))])
    assert units(await found(index, "bob", space, pointing(1))) == []
    assert units(await found(index, "ann", other, pointing(1))) == []


async def test_an_empty_index_finds_nothing(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    assert await found(index, "ann", space, pointing(1)) == []
    assert await found(index, "ann", space, pointing(1), exact=True) == []


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (EVERYTHING, {1, 2, 3, 5, 7}),
        (replace(EVERYTHING, scope=Scope(subject="bob")), {1}),
        (replace(EVERYTHING, scope=Scope(agent="helper")), {2}),
        (replace(EVERYTHING, scope=Scope(thread="talk")), {3}),
        (replace(EVERYTHING, scope=Scope(subject="bob", agent="helper")), set()),
        (replace(EVERYTHING, kinds=(Kind.FACT, Kind.EVENT)), {2, 5}),
        (replace(EVERYTHING, valid_at=NOW - 5 * DAY), {1, 2, 3, 4, 5, 7}),
        (replace(EVERYTHING, valid_at=NOW + 5 * DAY), {1, 2, 3, 6, 7}),
        (replace(EVERYTHING, now=NOW + 5 * DAY), {1, 2, 3, 5}),
        (replace(EVERYTHING, recorded_at=NOW - 2 * DAY), {8}),
        (replace(EVERYTHING, recorded_at=NOW), {1, 2, 3, 5, 7}),
    ],
)
async def test_only_allowed_units_are_found(
    index: VectorIndex, backends: Backends, where: HardFilter, expected: set[int]
) -> None:
    space = await backends.space("ann")
    rows = [
        row(1, pointing(1), subject="bob"),
        row(2, pointing(1), agent="helper", kind=Kind.FACT),
        row(3, pointing(1), thread="talk"),
        row(4, pointing(1), valid_to=NOW),
        row(5, pointing(1), valid_to=NOW + DAY, kind=Kind.EVENT),
        row(6, pointing(1), valid_from=NOW + DAY),
        row(7, pointing(1), expires_at=NOW + DAY),
        row(8, pointing(1), recorded_at=NOW - 9 * DAY, superseded_at=NOW - DAY),
    ]
    await index.upsert("ann", space, rows)
    assert set(units(await found(index, "ann", space, pointing(1), where))) == expected


async def test_a_filter_leaves_room_for_the_allowed(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    near = [row(unit, pointing(1, 0.01 * unit)) for unit in range(1, 101)]
    far = [row(unit, pointing(0, 1), subject="bob") for unit in range(101, 106)]
    await index.upsert("ann", space, near + far)
    only_bob = replace(EVERYTHING, scope=Scope(subject="bob"))
    assert units(await found(index, "ann", space, pointing(1), only_bob, limit=5)) == [101, 102, 103, 104, 105]


async def test_what_has_expired_leaves_room_for_what_has_not(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    near = [row(unit, pointing(1, 0.01 * unit), expires_at=NOW - DAY) for unit in range(1, 201)]
    far = [row(unit, pointing(0, 1)) for unit in range(201, 206)]
    await index.upsert("ann", space, near + far)
    assert units(await found(index, "ann", space, pointing(1), limit=5)) == [201, 202, 203, 204, 205]


async def test_a_zero_vector_is_similar_to_nothing(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    await index.upsert("ann", space, [row(1, pointing(1)), row(2, pointing(0.0))])
    neighbours = await found(index, "ann", space, pointing(1))
    assert units(neighbours) == [1, 2]
    assert neighbours[1].similarity == pytest.approx(0.0, abs=1e-5)


async def test_both_backends_give_the_same_answers(backends: Backends) -> None:
    generator = random.Random(7)
    space = await backends.space("ann")
    rows = [
        row(
            unit,
            [generator.gauss(0, 1) for _ in range(DIMENSIONS)],
            subject=generator.choice(["", "bob", "eve"]),
            kind=generator.choice([Kind.TURN, Kind.FACT]),
            expires_at=generator.choice([None, NOW - DAY, NOW + DAY]),
        )
        for unit in range(1, 601)
    ]
    for index in backends.indexes.values():
        await index.upsert("ann", space, rows)
    for where in (EVERYTHING, HardFilter(Scope(subject="eve"), (Kind.FACT,), NOW, None, NOW)):
        for _ in range(5):
            query = [generator.gauss(0, 1) for _ in range(DIMENSIONS)]
            answers = [
                await found(index, "ann", space, query, where, limit=50, exact=True)
                for index in backends.indexes.values()
            ]
            assert units(answers[0]) == units(answers[1])
            similarities = [[n.similarity for n in answer] for answer in answers]
            assert similarities[0] == pytest.approx(similarities[1], abs=1e-5)


async def test_the_exact_nearest_are_those_of_a_plain_sort_also_where_they_are_as_near(backends: Backends) -> None:
    generator = random.Random(11)
    space = await backends.space("ann")
    few = [[generator.gauss(0, 1) for _ in range(DIMENSIONS)] for _ in range(5)]
    vectors = {unit: [*generator.choice(few)] for unit in generator.sample(range(1, 2_000), 400)}
    for vector in list(vectors.values())[::3]:
        vector[0] += generator.choice([1e-3, 1e-6])
    vectors[2_000] = pointing(0.0)
    rows = [row(unit, vector, subject="bob" if unit % 4 else "eve") for unit, vector in vectors.items()]
    index = backends.indexes["pgvector"]
    await index.upsert("ann", space, rows)
    for where, allowed in (
        (EVERYTHING, set(vectors)),
        (replace(EVERYTHING, scope=Scope(subject="eve")), {unit for unit in vectors if unit % 4 == 0}),
    ):
        for query in few:
            every = await found(index, "ann", space, query, where, limit=len(vectors), exact=True)
            assert set(units(every)) == allowed
            assert every == sorted(every, key=lambda each: (-each.similarity, each.unit))
            assert {n.unit: n.similarity for n in every} == pytest.approx(
                {unit: _cosine(query, vectors[unit]) for unit in allowed}, abs=1e-5
            )
            for limit in (1, 7, 60):
                assert await found(index, "ann", space, query, where, limit=limit, exact=True) == every[:limit]


def _cosine(one: list[float], other: list[float]) -> float:
    norm = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / norm if norm else 0.0


async def test_a_dropped_collection_is_begun_again(backends: Backends, chroma_url: str) -> None:
    import chromadb

    index = backends.indexes["chroma"]
    space = await backends.space("ann")
    await index.upsert("ann", space, [row(1, pointing(1))])
    client = await chromadb.AsyncHttpClient(host="127.0.0.1", port=int(chroma_url.rpartition(":")[2]))
    for collection in await client.list_collections(limit=1000):
        await client.delete_collection(collection.name)
    assert units(await found(index, "ann", space, pointing(1))) == []
    await index.upsert("ann", space, [row(2, pointing(1))])
    assert units(await found(index, "ann", space, pointing(1))) == [2]


async def test_a_vector_that_is_too_long_to_reckon_with_costs_the_others_nothing(
    index: VectorIndex, backends: Backends
) -> None:
    space = await backends.space("ann")
    await index.upsert("ann", space, [row(unit, pointing(1, unit / 100)) for unit in range(1, 61)])
    # None such is let in any more.
    await index.upsert("ann", space, [row(61, [1e19] * DIMENSIONS)])
    # Chroma's graph has it only once something is taken out of it.
    await index.delete("ann", space, list(range(1, 51)))
    assert set(units(await found(index, "ann", space, pointing(1), limit=200))) - {61} == set(range(51, 61))


async def test_what_an_index_holds_can_be_compared_with_the_records(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    bounded = row(
        3, pointing(1), subject="bob", agent="helper", thread="talk", kind=Kind.FACT,
        valid_from=NOW - DAY, valid_to=NOW + DAY, expires_at=NOW + 2 * DAY, superseded_at=NOW, version=7,
    )  # fmt: skip
    await index.upsert("ann", space, [row(1, pointing(1)), row(2, pointing(1), view=View.BEFORE), bounded])
    entries = {entry.about.unit: entry for entry in await index.entries("ann", space, View.ALONE, [1, 2, 3, 4])}
    assert entries == {1: Entry(about(1), 1), 3: Entry(bounded.about, 7)}
    assert [entry.about.unit for entry in await index.entries("ann", space, View.BEFORE, [1, 2, 3])] == [2]
    assert await index.entries("ann", space, View.ALONE, []) == []
    assert await index.entries("bob", space, View.ALONE, [1, 2, 3]) == []


async def test_everything_that_an_index_holds_is_paged_through(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    other = await backends.space("ann")
    await index.upsert("ann", space, [row(unit, pointing(1)) for unit in range(1, 2_301)])
    await index.upsert("ann", space, [row(2_301, pointing(1), expires_at=NOW)])
    await index.upsert("ann", other, [row(5_000, pointing(1))])
    pages = [page async for page in index.pages("ann", space, View.ALONE)]
    assert len(pages) > 2
    assert sorted(unit for page in pages for unit in page) == list(range(1, 2_302))
    assert [page async for page in index.pages("ann", space, View.BEFORE)] == []
    assert [page async for page in index.pages("bob", space, View.ALONE)] == []


async def test_vectors_can_be_read_back(index: VectorIndex, backends: Backends) -> None:
    space = await backends.space("ann")
    rows = [row(1, pointing(1)), row(2, pointing(0, 1), expires_at=NOW + DAY), row(2, pointing(0, 0, 1), View.BEFORE)]
    await index.upsert("ann", space, rows)
    assert await index.vectors("ann", space, [1, 2, 3]) == {1: pointing(1), 2: pointing(0, 1)}
    assert await index.vectors("bob", space, [1, 2]) == {}


async def test_views_that_share_their_vectors_are_searched_in_one_transaction(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = PgvectorIndex(pool := backends.pool)
    began = 0
    tenant_of_pool = pool.tenant

    def counted(tenant: str, **options: bool) -> AbstractAsyncContextManager[Connection]:
        nonlocal began
        began += 1
        return tenant_of_pool(tenant, **options)

    monkeypatch.setattr(pool, "tenant", counted)

    async def searched(space: Space) -> tuple[dict[View, list[int]], int]:
        before = began
        nearest = await index.search("ann", space, list(View), pointing(1), EVERYTHING, 2, True)
        return {view: units(neighbours) for view, neighbours in nearest.items()}, began - before

    shared, apart = await backends.space("ann"), await backends.space("ann")
    for unit in (1, 2, 3):
        alone, before = pointing(1, unit), pointing(unit, 1)
        await index.upsert("ann", shared, [row(unit, alone), row(unit, alone, View.BEFORE)])
        await index.upsert("ann", apart, [row(unit, alone), row(unit, before, View.BEFORE)])
    # What a view has of its own is known once it was searched.
    assert [await searched(shared) for _ in range(2)] == [({View.ALONE: [1, 2], View.BEFORE: [1, 2]}, 1)] * 2
    own = {View.ALONE: [1, 2], View.BEFORE: [3, 2]}
    assert [await searched(apart) for _ in range(3)] == [(own, 1), (own, 2), (own, 2)]


async def test_a_space_comes_with_its_statistics(backends: Backends) -> None:
    space = await backends.space("ann")
    async with backends.pool.tenant("ann") as connection:
        await connection.execute(
            "INSERT INTO memory.statistics (space_no, units, tokens) VALUES ($1, 7, 70)", space.number
        )
        await connection.execute(
            "INSERT INTO memory.lexicon (space_no, term, units) VALUES ($1, 'cat', 3), ($1, 'dog', 2)", space.number
        )
    for asked in (["cat", "fox"], [], ["fox"]):
        async with backends.records.transaction("ann") as tx:
            both = await tx.space_with_lexicon(space.name, asked)
            assert both == (space, await tx.lexicon(space.number, asked))
    async with backends.records.transaction("bob") as tx:
        assert await tx.space_with_lexicon(space.name, ["cat"]) is None
    empty = await backends.space("ann")
    async with backends.records.transaction("ann") as tx:
        assert await tx.space_with_lexicon(empty.name, ["cat"]) == (empty, Lexicon(0, 0, {}))

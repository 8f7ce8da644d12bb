"""Reindex: a space's vectors are built anew, elsewhere or by another model, while it is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import asyncpg
import pytest
from tests.fakes.memory_service import Caller, Memory, eventually, refused, running, said
from tests.fakes.patience import patient_postgres

from janus_api.common.v1 import operation_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, space_pb2
from janus_kit.clock import SystemClock
from janus_kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from janus_kit.postgres import database
from janus_kit.redis import redis as redis_client
from janus_kit.rpc_errors import from_status
from janus_kit.settings import RedisSettings
from janus_memory import rebuild
from janus_memory.adapters.chroma_index import ChromaIndex
from janus_memory.adapters.lexical_embedder import LexicalEmbedder
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.adapters.redis_windows import RedisWindows
from janus_memory.dead_letters import Replay
from janus_memory.indexer import DEAD_AFTER, Indexer
from janus_memory.model import Backend, Operation, Space, VectorRow, View
from janus_memory.parts import Parts
from janus_memory.ports import Embedder, Purpose, VectorIndex
from janus_memory.rebuild import Rebuild
from janus_memory.reconcile import Reconcile

PGVECTOR, CHROMA = space_pb2.VECTOR_BACKEND_PGVECTOR, space_pb2.VECTOR_BACKEND_CHROMA
QUERIES = ("the heron stands in the pond", "who eats fish", "number 7 of the bridge", "flies away")


@dataclass
class Troubled:
    """The built-in embedder, until it is told otherwise; `poison` is refused, `before` runs before each answer."""

    away: bool = False
    poison: str = "\x00"
    before: Callable[[], Awaitable[None]] | None = None

    def named(self, model: str) -> Embedder:
        return self

    async def embed(self, texts: Sequence[str], dimensions: int, purpose: Purpose) -> list[list[float]]:
        if self.before is not None:
            await self.before()
        if self.away:
            raise Unavailable("embedder")
        if any(self.poison in text for text in texts):
            raise InvalidArgument("embedding", "the model refuses this text")
        return await LexicalEmbedder().embed(texts, dimensions, purpose)


class Slow:
    """An index that does not end in time where it is given more than ``most`` units."""

    def __init__(self, index: VectorIndex, most: int) -> None:
        self._index = index
        self._most = most
        self.waits = 0

    async def upsert(self, tenant: str, space: Space, rows: Sequence[VectorRow]) -> None:
        if len({row.about.unit for row in rows}) > self._most:
            self.waits += 1
            await asyncio.Event().wait()
        await self._index.upsert(tenant, space, rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)


class Died(Exception):
    """The process that did the work is gone."""


@dataclass
class Steps:
    """Progress that outlives a handler, which dies at its ``dies_at``-th step."""

    operation: Operation
    dies_at: int = 0
    saved: int = 0
    phases: list[str] = field(default_factory=list)

    async def save(self, cursor: Mapping[str, Any], *, done: int, total: int, phase: str, tx: Any = None) -> None:
        self.saved += 1
        if self.saved == self.dies_at:
            raise Died
        self.phases.append(phase)
        object.__setattr__(self.operation, "cursor", dict(cursor))
        object.__setattr__(self.operation, "total", total)


@dataclass
class Bench:
    """The service without a runner, a tenant, and the work to be driven by hand."""

    postgres_url: str
    redis_url: str
    memory: Memory
    ann: Caller
    owner: asyncpg.Connection
    records: PostgresRecords
    indexes: dict[int, VectorIndex]
    embedders: Troubled
    reconcile: Reconcile
    rebuild: Rebuild

    async def fill(self, backend: int = PGVECTOR, dimensions: int = 0) -> None:
        """A space with turns and memories: some changed, some forgotten, some not for ever."""
        space = space_pb2.Space(name="default", backend=backend, dimensions=dimensions)
        await self.ann.call("PutSpace", pb.PutSpaceRequest(space=space))
        fact = record_pb2.MEMORY_KIND_FACT
        done = await self.ann.remember(
            "herons eat fish",
            "frogs eat flies",
            record_pb2.Memory(kind=fact, text="the key is under the stone", expires_at={"seconds": 4_000_000_000}),
            record_pb2.Memory(kind=fact, text="bob swims", scope={"subject": "bob"}),
        )
        changed = record_pb2.Memory(id=done.memory_ids[0], text="herons eat frogs")
        await self.ann.call("UpdateMemory", pb.UpdateMemoryRequest(memory=changed, update_mask={"paths": ["text"]}))
        await self.ann.call("ForgetMemory", pb.ForgetMemoryRequest(memory_id=done.memory_ids[1]))
        await self.ann.append("talk", *[said(f"number {n} of the bridge", "Ann") for n in range(150)])
        await self.ann.append("talk", said("the heron stands in the pond", "Bob"), said("it flies away", "Ann"))
        await self.ann.indexed()

    async def reindex(self, **fields: Any) -> operation_pb2.Operation:
        return (await self.ann.call("Reindex", pb.ReindexRequest(**fields))).operation

    async def taken(self, name: str) -> Operation:
        async with self.records.transaction(self.ann.tenant) as tx:
            operation = await tx.operation(name)
        assert operation is not None
        return operation

    async def work(self, operation: Operation, dies_at: int = 0) -> Mapping[str, Any]:
        return await self.rebuild.run(self.ann.tenant, operation, Steps(operation, dies_at))

    async def space(self) -> Space:
        async with self.records.transaction(self.ann.tenant) as tx:
            space = await tx.space("default")
        assert space is not None
        return space

    async def count(self, table: str, condition: str = "true") -> int:
        statement = f"SELECT count(*) FROM memory.{table} WHERE tenant = $1 AND {condition}"
        return int(await self.owner.fetchval(statement, self.ann.tenant))

    async def held(self, space: Space) -> set[int]:
        """Units that a generation holds."""
        index = self.indexes[space.backend]
        return {unit for view in View async for page in index.pages(self.ann.tenant, space, view) for unit in page}

    async def answers(self) -> list[list[tuple[str, float]]]:
        found = []
        for query in QUERIES:
            answer = await self.ann.recall(query, exact=True, limit=20)
            assert not answer.degraded
            found.append([(hit.turn.message.id or hit.memory.id, hit.score) for hit in answer.hits])
        return found

    async def assert_whole(self) -> None:
        """The live generation is exactly what is on record, and nothing else is left of any."""
        await self.ann.indexed()
        findings = await self.reconcile.run(self.ann.tenant, "default", repair=False)
        assert (findings.wrong, findings.away) == (0, ())
        live = (await self.space()).generation if (await self.space()).backend is Backend.PGVECTOR else 0
        assert await self.count("vector", f"generation <> {live}") == 0
        assert (await self.count("generation"), await self.count("rebuild")) == (0, 0)


@pytest.fixture
async def bench(
    request: pytest.FixtureRequest, postgres_url: str, redis_url: str, chroma_url: str
) -> AsyncIterator[Bench]:
    indexer = getattr(request, "param", True)
    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(
            running(postgres_url, redis_url, chroma_url=chroma_url, operations=False, indexer=indexer)
        )
        pool = await stack.enter_async_context(database(patient_postgres(postgres_url), application="test"))
        client = await stack.enter_async_context(redis_client(RedisSettings(url=redis_url)))
        owner = await asyncpg.connect(postgres_url)
        stack.push_async_callback(owner.close)
        records = PostgresRecords(pool)
        chroma = ChromaIndex(chroma_url, records, timeout_s=20)
        stack.push_async_callback(chroma.close)
        indexes: dict[int, VectorIndex] = {Backend.PGVECTOR: PgvectorIndex(pool), Backend.CHROMA: chroma}
        embedders = Troubled()
        yield Bench(
            postgres_url,
            redis_url,
            memory,
            memory.caller(),
            owner,
            records,
            indexes,
            embedders,
            Reconcile(records, RedisWindows(client, length=400, ttl_s=60), indexes),
            Rebuild(records, indexes, embedders, Parts(), SystemClock(), retire_after_s=0.0),
        )


@pytest.mark.parametrize(("first", "then"), [(PGVECTOR, CHROMA), (CHROMA, PGVECTOR), (PGVECTOR, PGVECTOR)])
async def test_a_space_moves_to_another_backend_and_answers_the_same(bench: Bench, first: int, then: int) -> None:
    await bench.fill(first)
    before, old = await bench.answers(), await bench.space()
    operation = await bench.reindex(backend=then)
    assert (operation.kind, operation.state) == ("reindex", operation_pb2.OPERATION_STATE_PENDING)
    result = await bench.work(await bench.taken(operation.id))
    assert result == {
        "space": "default", "backend": Backend(then).name.lower(), "embedding_model": "janus/lexical-v1",
        "dimensions": 384, "units": await bench.count("unit"), "refused": 0, "agreement": 1.0,
    }  # fmt: skip
    after = await bench.answers()
    assert [[name for name, _ in each] for each in after] == [[name for name, _ in each] for each in before]
    for new, were in zip(after, before, strict=True):
        assert [score for _, score in new] == pytest.approx([score for _, score in were], abs=1e-4)
    space = await bench.space()
    assert (space.backend, space.version, space.generation) == (Backend(then), old.version + 1, old.generation + 1)
    await bench.assert_whole()
    assert await bench.held(old) == set()


async def test_other_dimensions_are_learnt_from_the_texts_also_where_vectors_were_given(bench: Bench) -> None:
    await bench.fill()
    fact = record_pb2.MEMORY_KIND_FACT
    await bench.ann.remember(record_pb2.Memory(kind=fact, text="zebras graze", embedding=[1.0] * 384))
    # Longer than the space's once it is rebuilt: read as it waits, and as it is indexed.
    operation = await bench.taken((await bench.reindex(dimensions=96)).id)
    result = await bench.work(operation)
    assert (result["dimensions"], result["agreement"]) == (96, None)
    space = await bench.space()
    assert space.dimensions == 96
    hit = (await bench.ann.recall("zebra grazing", limit=1, exact=True)).hits[0]
    assert hit.memory.text == "zebras graze"
    await bench.assert_whole()


async def test_what_stays_unsaid_stays_as_it_is(bench: Bench) -> None:
    await bench.fill(PGVECTOR, dimensions=128)
    await bench.work(await bench.taken((await bench.reindex(backend=CHROMA)).id))
    space = await bench.space()
    assert (space.backend, space.model, space.dimensions) == (Backend.CHROMA, "janus/lexical-v1", 128)
    await bench.work(await bench.taken((await bench.reindex(embedding_model="janus/lexical-v1")).id))
    space = await bench.space()
    assert (space.backend, space.dimensions) == (Backend.CHROMA, 384)


async def test_an_empty_space_is_rebuilt_at_once(bench: Bench) -> None:
    result = await bench.work(await bench.taken((await bench.reindex(backend=CHROMA)).id))
    assert (result["units"], result["agreement"]) == (0, None)
    await bench.ann.remember("the first")
    await bench.assert_whole()


async def test_whatever_step_it_dies_at_it_is_done_in_the_end(bench: Bench) -> None:
    await bench.fill()
    dies_at, died, phases = 1, 0, set()
    while True:
        operation = await bench.taken((await bench.reindex()).id)
        try:
            await bench.work(operation, dies_at)
        except Died:
            died += 1
            # Something is written while nobody works on it.
            await bench.ann.remember(f"memory {died}")
            await bench.ann.indexed()
            steps = Steps(operation)
            await bench.rebuild.run(bench.ann.tenant, operation, steps)
            phases.update(steps.phases)
        else:
            break
        finally:
            await bench.owner.execute(
                "UPDATE memory.operation SET state = 3, ended_at = now() WHERE tenant = $1", bench.ann.tenant
            )
        await bench.assert_whole()
        dies_at += 1
    assert died >= 6
    assert phases == {"copying", "catching up", "comparing", "switching", "removing the old vectors"}


async def test_a_rebuild_ends_although_somebody_writes_whenever_it_looks(bench: Bench) -> None:
    await bench.fill()
    operation = await bench.taken((await bench.reindex(backend=CHROMA)).id)
    steps, written = Steps(operation), 0

    async def write() -> None:
        nonlocal written
        # Not while it compares, nor from there to the switch: the indexer stands still then.
        if steps.phases[-1] != "comparing":
            written += 1
            await bench.ann.remember(f"memory {written} of the meantime")
            await bench.ann.indexed()

    bench.embedders.before = write
    async with asyncio.timeout(120):
        await bench.rebuild.run(bench.ann.tenant, operation, steps)
    assert written >= 3
    await bench.assert_whole()


async def test_an_index_that_is_slow_is_given_less_at_a_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.fill()
    monkeypatch.setattr(rebuild, "_APPLY_TIMEOUT_S", 3.0)
    slow = Slow(bench.indexes[Backend.CHROMA], most=100)
    bench.indexes[Backend.CHROMA] = cast(VectorIndex, slow)
    await bench.work(await bench.taken((await bench.reindex(backend=CHROMA)).id))
    assert slow.waits >= 1
    await bench.assert_whole()


async def test_what_is_written_while_nobody_works_is_learnt(bench: Bench) -> None:
    await bench.fill()
    operation = await bench.taken((await bench.reindex(backend=CHROMA)).id)
    with pytest.raises(Died):
        await bench.work(operation, dies_at=2)
    # One that was copied already goes as well.
    swimmer = (await bench.ann.recall("bob swims", limit=1, exact=True)).hits[0].memory
    await bench.ann.call("ForgetMemory", pb.ForgetMemoryRequest(memory_id=swimmer.id))
    done = await bench.ann.remember("wolves howl", "owls hoot")
    await bench.ann.append("talk", "a late word about the bridge")
    await bench.ann.call("ForgetMemory", pb.ForgetMemoryRequest(memory_id=done.memory_ids[1]))
    changed = record_pb2.Memory(id=done.memory_ids[0], text="wolves run")
    await bench.ann.call("UpdateMemory", pb.UpdateMemoryRequest(memory=changed, update_mask={"paths": ["text"]}))
    await bench.ann.indexed()
    assert (await bench.ann.recall("wolves", limit=1)).hits[0].memory.text == "wolves run"
    assert await bench.count("rebuild") >= 5
    with pytest.raises(Died):
        # A second batch, then catching up; the comparison, which would repair it, is not reached.
        await bench.work(operation, dies_at=3)
    assert await bench.count("rebuild") == 0
    space = await bench.space()
    async with bench.records.transaction(bench.ann.tenant) as tx:
        beside = await tx.generation(space.number)
    assert beside is not None
    on_record = await bench.owner.fetch("SELECT unit FROM memory.unit WHERE tenant = $1", bench.ann.tenant)
    assert await bench.held(beside.of(space)) == {row["unit"] for row in on_record}
    await bench.work(operation)
    await bench.assert_whole()
    assert (await bench.ann.recall("wolves", limit=1, exact=True)).hits[0].memory.text == "wolves run"


@pytest.mark.parametrize("bench", [False], indirect=True, ids=["without an indexer"])
async def test_a_batch_in_flight_at_the_switch_is_applied_to_what_is_searched_then(bench: Bench) -> None:
    await bench.owner.execute("DELETE FROM memory.outbox WHERE tenant <> $1", bench.ann.tenant)
    embedders = Troubled()
    indexer = Indexer(bench.records, bench.indexes, embedders, Parts(), poll_s=60)

    async def index() -> None:
        while await indexer.work():
            pass

    await bench.ann.remember("the heron")
    await index()
    operation = await bench.taken((await bench.reindex()).id)
    with pytest.raises(Died):
        await bench.work(operation, dies_at=2)
    # After what the copying reaches, and told by the indexer alone.
    await bench.ann.remember("the pond")
    work = asyncio.create_task(bench.work(operation))

    async def switched() -> bool:
        return (await bench.space()).generation == 2

    async def switch_first() -> None:
        embedders.before = None
        await eventually(switched)
        await asyncio.wait([work], timeout=0.5)

    embedders.before = switch_first
    try:
        await index()
        # Nor is what it wrote to the old generation left behind.
        await work
    finally:
        work.cancel()
    assert await bench.count("outbox") == 0
    assert len(await bench.held(await bench.space())) == 2
    await bench.assert_whole()


async def test_a_target_that_is_away_holds_up_no_write_and_no_recall(bench: Bench) -> None:
    await bench.fill()
    operation = await bench.taken((await bench.reindex(dimensions=64)).id)
    bench.embedders.away = True
    with pytest.raises(Unavailable):
        await bench.work(operation)
    await bench.ann.remember("wolves howl")
    await bench.ann.indexed()
    assert (await bench.ann.recall("wolves", limit=1)).hits[0].memory.text == "wolves howl"
    bench.embedders.away = False
    await bench.work(operation)
    await bench.assert_whole()


async def test_a_cancelled_rebuild_leaves_the_space_as_it_was(bench: Bench) -> None:
    await bench.fill()
    before = await bench.space()
    operation = await bench.taken((await bench.reindex(backend=CHROMA)).id)
    with pytest.raises(Died):
        await bench.work(operation, dies_at=4)
    async with bench.records.transaction(bench.ann.tenant) as tx:
        beside = await tx.generation(before.number)
    assert beside is not None
    assert await bench.held(beside.of(before))
    for _ in range(2):
        assert await bench.rebuild.undo(bench.ann.tenant, operation)
    assert await bench.held(beside.of(before)) == set()
    assert await bench.space() == before
    await bench.assert_whole()
    # A number is never used again: what comes late for the one that was given up meets no other.
    await bench.reindex(backend=CHROMA)
    async with bench.records.transaction(bench.ann.tenant) as tx:
        following = await tx.generation(before.number)
    assert following is not None
    assert following.number == beside.number + 1


async def test_a_rebuild_that_has_switched_is_not_undone(bench: Bench) -> None:
    await bench.fill()
    operation = await bench.taken((await bench.reindex(backend=CHROMA)).id)
    with pytest.raises(Died):
        # The step after the switch.
        await bench.work(operation, dies_at=await _steps_to_switch(bench, operation) + 1)
    assert not await bench.rebuild.undo(bench.ann.tenant, operation)
    assert (await bench.space()).backend is Backend.CHROMA
    await bench.work(operation)
    assert not await bench.rebuild.undo(bench.ann.tenant, operation)
    await bench.assert_whole()


async def _steps_to_switch(bench: Bench, operation: Operation) -> int:
    """How many steps a rebuild of as many records takes until it switches."""
    batches = -(-await bench.count("unit") // 128)
    return batches + len(("catching up", "comparing", "switching"))


async def test_an_erasure_during_a_rebuild_reaches_what_is_built(bench: Bench) -> None:
    await bench.fill()
    operation = await bench.taken((await bench.reindex(backend=CHROMA)).id)
    with pytest.raises(Died):
        await bench.work(operation, dies_at=4)
    space = await bench.space()
    async with bench.records.transaction(bench.ann.tenant) as tx:
        beside = await tx.generation(space.number)
    assert beside is not None
    rows = await bench.owner.fetch(
        "SELECT unit FROM memory.unit WHERE tenant = $1 AND subject = 'bob'", bench.ann.tenant
    )
    bobs = {row["unit"] for row in rows}
    assert bobs <= await bench.held(beside.of(space))
    receipt = (await bench.ann.call("Erase", pb.EraseRequest(scope={"subject": "bob"}))).receipt
    assert {count.store: count.removed for count in receipt.counts}["chroma"] == 2 * len(bobs)
    assert not bobs & await bench.held(beside.of(space))
    await bench.work(operation)
    await bench.assert_whole()


async def test_an_index_that_loses_what_it_was_given_is_made_whole_before_the_switch(bench: Bench) -> None:
    await bench.fill()
    operation = await bench.taken((await bench.reindex()).id)
    with pytest.raises(Died):
        await bench.work(operation, dies_at=4)
    await bench.owner.execute(
        "DELETE FROM memory.vector WHERE tenant = $1 AND generation = 2 AND unit % 3 = 0", bench.ann.tenant
    )
    await bench.owner.execute(
        "UPDATE memory.vector SET unit = -unit WHERE tenant = $1 AND generation = 2 AND unit % 3 = 1", bench.ann.tenant
    )
    await bench.work(operation)
    await bench.assert_whole()


async def test_vectors_that_are_not_the_models_end_in_no_switch(bench: Bench) -> None:
    await bench.fill()
    operation = await bench.taken((await bench.reindex()).id)
    with pytest.raises(Died):
        await bench.work(operation, dies_at=4)
    await bench.owner.execute(
        "UPDATE memory.vector SET embedding = array_fill(1::real, ARRAY[384])::vector "
        "WHERE tenant = $1 AND generation = 2",
        bench.ann.tenant,
    )
    with pytest.raises(FailedPrecondition) as raised:
        await bench.work(operation)
    assert raised.value.metadata == {"state": "comparison_failed"}
    assert (await bench.space()).generation == 1


async def test_texts_that_the_new_model_refuses_become_dead_letters_that_can_be_replayed(bench: Bench) -> None:
    await bench.fill()
    await bench.ann.remember("poison", scope={"subject": "eve"})
    await bench.ann.indexed()
    bench.embedders.poison = "poison"
    result = await bench.work(await bench.taken((await bench.reindex(dimensions=64)).id))
    assert result["refused"] == 1
    replay = Replay(bench.records)
    [letters] = await replay.reasons(bench.ann.tenant)
    assert (letters.space, letters.rows, "refuses" in letters.reason) == ("default", 1, True)
    assert letters in await replay.reasons()
    with pytest.raises(NotFound):
        await replay.run(bench.ann.tenant, "another")
    assert await replay.run("nobody") == 0
    assert await replay.run(bench.ann.tenant, "default") == 1
    assert await replay.reasons(bench.ann.tenant) == []
    await bench.assert_whole()


async def test_a_model_that_refuses_much_is_refused(bench: Bench) -> None:
    await bench.fill()
    bench.embedders.poison = "bridge"
    with pytest.raises(InvalidArgument):
        await bench.work(await bench.taken((await bench.reindex(dimensions=64)).id))
    assert (await bench.space()).dimensions == 384


async def test_dead_letters_of_the_old_generation_are_settled_by_the_new(bench: Bench) -> None:
    await bench.fill()
    await bench.owner.execute(
        """INSERT INTO memory.outbox (tenant, space_no, unit, counted, attempts, error, dead_at)
           SELECT tenant, space_no, min(unit), true, $2, 'the old model refused it', now()
           FROM memory.unit WHERE tenant = $1 GROUP BY 1, 2""",
        bench.ann.tenant, DEAD_AFTER,
    )  # fmt: skip
    await bench.work(await bench.taken((await bench.reindex(dimensions=64)).id))
    assert await bench.count("outbox") == 0
    await bench.assert_whole()


async def test_a_space_is_rebuilt_by_one_at_a_time_and_a_repeated_request_is_the_same(bench: Bench) -> None:
    await bench.fill()
    first = await bench.reindex(backend=CHROMA, request_id="r1")
    error = await refused(bench.reindex(backend=CHROMA))
    assert isinstance(error, FailedPrecondition)
    assert (error.reason, error.metadata) == ("STATE_CONFLICT", {"state": "rebuilding"})
    assert (await bench.reindex(backend=CHROMA, request_id="r1")).id == first.id
    assert isinstance(await refused(bench.reindex(backend=PGVECTOR, request_id="r1")), AlreadyExists)
    await bench.work(await bench.taken(first.id))
    assert (await bench.reindex(backend=CHROMA)).id != first.id


async def test_bad_input_is_named_and_begins_nothing(bench: Bench) -> None:
    await bench.fill()
    bad = {"space": "a b", "backend": 9, "embedding_model": "m" * 257, "dimensions": 4097, "request_id": "?"}
    error = await refused(bench.reindex(**bad))
    assert isinstance(error, InvalidArgument)
    assert {each.field for each in error.violations} == set(bad)
    error = await refused(bench.reindex(space="nowhere"))
    assert isinstance(error, NotFound)
    assert error.message == "space 'nowhere' was not found"
    error = await refused(bench.reindex(embedding_model="onnx/none"))
    assert isinstance(error, InvalidArgument)
    assert [each.field for each in error.violations] == ["embedding_model"]
    async with running(bench.postgres_url, bench.redis_url, operations=False) as plain:
        call = Caller(plain.stub, bench.ann.tenant).call("Reindex", pb.ReindexRequest(backend=CHROMA))
        assert (await refused(call)).metadata == {"state": "chroma_not_configured"}
    assert await bench.count("generation") == await bench.count("operation") == 0


async def test_another_tenants_space_is_not_found(bench: Bench) -> None:
    await bench.ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="hers")))
    bob = bench.memory.caller()
    assert isinstance(await refused(bob.call("Reindex", pb.ReindexRequest(space="hers"))), NotFound)


async def test_over_the_wire_it_is_watched_to_its_end_or_cancelled(bench: Bench) -> None:
    await bench.fill()
    async with running(bench.postgres_url, bench.redis_url, indexer=False, retire_after_s=0.2) as other:
        ann = Caller(other.stub, bench.ann.tenant)
        operation = await bench.reindex(dimensions=64)
        request = pb.WatchOperationRequest(operation_id=operation.id)
        events = [each async for each in ann.stub.WatchOperation(request, metadata=ann.metadata, timeout=30)]
        assert events[-1].ended.state == operation_pb2.OPERATION_STATE_SUCCEEDED, from_status(events[-1].ended.error)
        assert events[-1].ended.done == events[-1].ended.total == await bench.count("unit")
        await bench.assert_whole()
        # Chroma is not configured there: it waits, and is cancelled.
        operation = await bench.reindex(backend=CHROMA)

        async def waits() -> bool:
            answer = await ann.call("GetOperation", pb.GetOperationRequest(operation_id=operation.id))
            return "chroma" in answer.operation.phase

        await eventually(waits)
        await ann.call("CancelOperation", pb.CancelOperationRequest(operation_id=operation.id))

        async def ended() -> bool:
            answer = await ann.call("GetOperation", pb.GetOperationRequest(operation_id=operation.id))
            return bool(answer.operation.state == operation_pb2.OPERATION_STATE_CANCELLED)

        await eventually(ended)
        await bench.assert_whole()
        assert (await bench.space()).backend is Backend.PGVECTOR

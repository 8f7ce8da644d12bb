"""The outbox and the indexer: at least once, idempotent, and it never gives a row up quietly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

import asyncpg
import grpc
import pytest
from tests.fakes.memory_service import Memory, eventually, running, said, texts
from tests.fakes.patience import patient_postgres

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, scope_pb2
from janus_kit.errors import InvalidArgument, Unavailable
from janus_kit.postgres import Database, database
from janus_memory import indexer as indexer_module
from janus_memory.adapters.lexical_embedder import LexicalEmbedder
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.indexer import DEAD_AFTER, Indexer, _model_asked
from janus_memory.model import (
    LEXICAL_MODEL,
    Backend,
    Embeddable,
    Indexed,
    Kind,
    Space,
    SpaceDraft,
    VectorRow,
    Weights,
)
from janus_memory.parts import Parts
from janus_memory.ports import Embedder, Purpose, UnusableEmbedding, VectorIndex

RYW = scope_pb2.CONSISTENCY_READ_YOUR_WRITES


@dataclass
class Hanging:
    """A model that does not answer before it is told to."""

    model: str = "hanging/model"
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0
    most_at_once: int = 0
    _now: int = 0

    async def embed(self, texts: Sequence[str], dimensions: int, purpose: Purpose) -> list[list[float]]:
        self.calls, self._now = self.calls + 1, self._now + 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await self.answers.wait()
            return await LexicalEmbedder().embed(texts, dimensions, purpose)
        finally:
            self._now -= 1


@dataclass
class Troubled:
    """The built-in embedder, until it is told to fail; `poison` fails for a text that holds it, and
    what holds `overflow` gets a vector of numbers whose squares are too large."""

    away: bool = False
    poison: str = "\x00"
    overflow: str = "\x00"
    unusable: str = "\x00"
    model: str = "janus/lexical-v1"
    calls: list[int] = field(default_factory=list)
    hanging: Hanging = field(default_factory=lambda: Hanging())

    def named(self, model: str) -> Embedder:
        return self.hanging if model == self.hanging.model else self

    async def embed(self, texts: Sequence[str], dimensions: int, purpose: Purpose) -> list[list[float]]:
        self.calls.append(len(texts))
        if self.away:
            raise Unavailable("embedder")
        if any(self.unusable in text for text in texts):
            raise UnusableEmbedding("the embedding model gave an answer that makes no sense")
        if any(self.poison in text for text in texts):
            raise InvalidArgument("embedding", "the model refuses this text")
        made = await LexicalEmbedder().embed(texts, dimensions, purpose)
        return [[1e18] * dimensions if self.overflow in text else each for text, each in zip(texts, made, strict=True)]


@dataclass
class Bench:
    """The service without an indexer of its own, and one to be driven step by step."""

    memory: Memory
    pool: Database
    owner: asyncpg.Connection
    embedders: Troubled
    indexer: Indexer

    async def drain(self) -> None:
        while await self.indexer.work():
            pass

    def another(self, poll_s: float = 0.2) -> Indexer:
        indexes = {Backend.PGVECTOR: PgvectorIndex(self.pool)}
        return Indexer(PostgresRecords(self.pool), indexes, self.embedders, Parts(), poll_s=poll_s)

    async def count(self, table: str, tenant: str) -> int:
        return int(await self.owner.fetchval(f"SELECT count(*) FROM memory.{table} WHERE tenant = $1", tenant))

    async def vectors(self, tenant: str) -> int:
        """Vectors of both views; one that is equal in both is stored once."""
        query = "SELECT coalesce(sum(CASE view WHEN 0 THEN 2 ELSE 1 END), 0) FROM memory.vector WHERE tenant = $1"
        return int(await self.owner.fetchval(query, tenant))

    async def make_due(self) -> None:
        await self.owner.execute("UPDATE memory.outbox SET available_at = now() - interval '1 s'")


@pytest.fixture
async def bench(postgres_url: str, redis_url: str) -> AsyncIterator[Bench]:
    async with (
        running(postgres_url, redis_url, indexer=False) as memory,
        database(patient_postgres(postgres_url), application="test") as pool,
    ):
        owner = await asyncpg.connect(postgres_url)
        await owner.execute("DELETE FROM memory.outbox")
        embedders = Troubled()
        indexer = Indexer(
            PostgresRecords(pool), {Backend.PGVECTOR: PgvectorIndex(pool)}, embedders, Parts(), poll_s=0.2
        )
        try:
            yield Bench(memory, pool, owner, embedders, indexer)
        finally:
            await owner.close()


async def test_every_record_is_indexed_in_both_views_and_counted(bench: Bench) -> None:
    ann = bench.memory.caller()
    await ann.append("talk", said("the heron", "Ann"), said("the pond", "Bob"))
    await ann.remember("herons eat fish")
    assert await bench.count("outbox", ann.tenant) == 3
    await bench.drain()
    assert await bench.count("outbox", ann.tenant) == 0
    assert await bench.vectors(ann.tenant) == 6
    assert await bench.owner.fetchval("SELECT units FROM memory.statistics WHERE tenant = $1", ann.tenant) == 3
    heron = "SELECT units FROM memory.lexicon WHERE tenant = $1 AND term = 'heron'"
    assert await bench.owner.fetchval(heron, ann.tenant) == 2


async def test_a_token_of_more_than_a_recall_compares_by_itself_says_so(bench: Bench) -> None:
    ann = bench.memory.caller()
    few = await ann.remember("the heron")
    recalled = await ann.recall("the heron", consistency_token=few.consistency_token)
    assert list(recalled.degraded) == []
    for start in range(0, 520, 65):
        many = await ann.remember(*(f"fact {number}" for number in range(start, start + 65)))
    recalled = await ann.recall("fact 519", consistency_token=many.consistency_token)
    assert list(recalled.degraded) == ["index"]
    assert texts(recalled)[0] == "fact 519"
    await bench.drain()
    recalled = await ann.recall("fact 519", consistency_token=many.consistency_token)
    assert list(recalled.degraded) == []


async def test_a_local_model_is_waited_for_like_any_other(bench: Bench) -> None:
    async with PostgresRecords(bench.pool).transaction("ann") as tx:
        local, lexical = [
            await tx.add_space(SpaceDraft(f"s-{model}", Backend.PGVECTOR, model, 8, Weights(), ""))
            for model in ("onnx/minilm", LEXICAL_MODEL)
        ]
    about = Indexed(1, Kind.FACT, "", "", "", datetime.now(UTC))
    text, vector = (Embeddable(about, 1, {}, embedding) for embedding in ((), (1.0,) * 8))
    assert _model_asked(local, [vector, text]) == "embedder:onnx/minilm"
    assert _model_asked(local, [vector]) is None
    assert _model_asked(lexical, [text]) is None


async def test_applying_a_row_again_changes_nothing(bench: Bench) -> None:
    ann = bench.memory.caller()
    await ann.append("talk", "the heron")
    row = await bench.owner.fetchrow("SELECT * FROM memory.outbox WHERE tenant = $1", ann.tenant)
    await bench.drain()
    before = await bench.owner.fetch(
        "SELECT unit, view, embedding::text FROM memory.vector WHERE tenant = $1", ann.tenant
    )
    await bench.owner.execute(
        "INSERT INTO memory.outbox (tenant, space_no, unit, counted) VALUES ($1, $2, $3, true)",
        ann.tenant, row["space_no"], row["unit"],
    )  # fmt: skip
    await bench.drain()
    after = await bench.owner.fetch(
        "SELECT unit, view, embedding::text FROM memory.vector WHERE tenant = $1", ann.tenant
    )
    assert before == after
    assert await bench.owner.fetchval("SELECT units FROM memory.statistics WHERE tenant = $1", ann.tenant) == 1


async def test_a_tombstone_wins_over_a_late_write(bench: Bench) -> None:
    ann = bench.memory.caller()
    await ann.append("talk", "the heron", "the pond")
    await bench.drain()
    unit = await bench.owner.fetchrow(
        "SELECT unit, space_no FROM memory.unit WHERE tenant = $1 AND position = 1", ann.tenant
    )
    for statement in ("tombstone (tenant, space_no, unit)", "outbox (tenant, space_no, unit)"):
        await bench.owner.execute(
            f"INSERT INTO memory.{statement} VALUES ($1, $2, $3)", ann.tenant, unit["space_no"], unit["unit"]
        )
    await bench.drain()
    assert await bench.vectors(ann.tenant) == 2
    left = await bench.owner.fetch("SELECT DISTINCT unit FROM memory.vector WHERE tenant = $1", ann.tenant)
    assert unit["unit"] not in {row["unit"] for row in left}


async def test_an_embedder_that_is_away_costs_nothing_but_time(bench: Bench) -> None:
    ann = bench.memory.caller()
    await ann.append("talk", "the heron")
    bench.embedders.away = True
    for _ in range(DEAD_AFTER + 2):
        await bench.make_due()
        await bench.drain()
    row = await bench.owner.fetchrow("SELECT * FROM memory.outbox WHERE tenant = $1", ann.tenant)
    assert (row["attempts"], row["dead_at"]) == (0, None)
    assert "embedder" in row["error"]
    # Its terms count already, and they count once.
    assert await bench.owner.fetchval("SELECT units FROM memory.statistics WHERE tenant = $1", ann.tenant) == 1
    bench.embedders.away = False
    await bench.make_due()
    await bench.drain()
    assert await bench.vectors(ann.tenant) == 2
    assert await bench.owner.fetchval("SELECT units FROM memory.statistics WHERE tenant = $1", ann.tenant) == 1


async def test_a_row_that_always_fails_is_dead_with_its_reason_and_stops_nobody(bench: Bench) -> None:
    ann = bench.memory.caller()
    bench.embedders.poison = "poison"
    await ann.append("talk", said("poison"))
    await ann.append("other", "the heron", "the pond")
    for _ in range(DEAD_AFTER):
        await bench.make_due()
        await bench.drain()
    rows = await bench.owner.fetch("SELECT * FROM memory.outbox WHERE tenant = $1", ann.tenant)
    assert len(rows) == 1
    assert rows[0]["dead_at"] is not None
    assert "refuses this text" in rows[0]["error"]
    assert await bench.vectors(ann.tenant) == 4
    assert not await bench.indexer.work()


async def test_a_text_that_a_model_cannot_embed_is_dead_and_the_model_is_not_away(bench: Bench) -> None:
    ann = bench.memory.caller()
    bench.embedders.unusable = "poison"
    await ann.append("talk", "poison")
    await ann.append("other", "the heron")
    for _ in range(DEAD_AFTER):
        await bench.make_due()
        await bench.drain()
    rows = await bench.owner.fetch("SELECT * FROM memory.outbox WHERE tenant = $1", ann.tenant)
    assert [row["dead_at"] is not None for row in rows] == [True]
    assert "makes no sense" in rows[0]["error"]
    assert await bench.vectors(ann.tenant) == 2


async def test_a_vector_of_a_model_that_no_index_can_compare_costs_that_text_alone(bench: Bench) -> None:
    ann = bench.memory.caller()
    bench.embedders.overflow = "unbounded"
    await ann.remember("the heron", "an unbounded text", "…")
    await bench.drain()
    # The one without words is at zero, which is as it should be.
    assert await bench.vectors(ann.tenant) == 4
    error = await bench.owner.fetchval("SELECT error FROM memory.outbox WHERE tenant = $1", ann.tenant)
    assert error == "embedding: the model gave a vector that cannot be compared"


async def test_a_space_is_worked_on_by_one_at_a_time(bench: Bench) -> None:
    ann = bench.memory.caller()
    for i in range(40):
        await ann.append("talk", f"turn {i}")
    records = PostgresRecords(bench.pool)
    batches = await asyncio.gather(*(records.claim(str(uuid4()), 10, 30) for _ in range(6)))
    mine = [batch for batch in batches if batch is not None and batch.tenant == ann.tenant]
    assert len(mine) == 1
    assert await records.claim(str(uuid4()), 10, 30) is None


async def test_a_batch_is_no_larger_than_asked_however_much_is_waiting(bench: Bench) -> None:
    ann = bench.memory.caller()
    for part in range(4):
        await ann.remember(*(f"fact {part} {n}" for n in range(100)))
    batch = await PostgresRecords(bench.pool).claim(str(uuid4()), 30, 15)
    assert batch is not None
    assert len(batch.tasks) == 30
    assert await bench.owner.fetchval("SELECT count(*) FROM memory.outbox WHERE lease IS NOT NULL") == 30


async def test_rows_of_a_worker_that_died_are_taken_over(bench: Bench) -> None:
    ann = bench.memory.caller()
    await ann.append("talk", "the heron")
    batch = await PostgresRecords(bench.pool).claim(str(uuid4()), 10, 30)
    assert batch is not None
    assert not await bench.indexer.work()
    await bench.owner.execute("UPDATE memory.outbox SET leased_until = now() - interval '1 s'")
    await bench.drain()
    assert await bench.vectors(ann.tenant) == 2


async def test_a_worker_goes_on_with_what_it_left_when_postgres_was_away(bench: Bench) -> None:
    ann = bench.memory.caller()
    await ann.append("talk", "the heron")
    records = PostgresRecords(bench.pool)
    worker = str(uuid4())
    first = await records.claim(worker, 10, 30)
    assert first is not None
    assert await records.claim(worker, 10, 30) == first


async def test_a_worker_that_lost_its_lease_finishes_nothing(bench: Bench) -> None:
    ann = bench.memory.caller()
    await ann.append("talk", "the heron")
    records = PostgresRecords(bench.pool)
    batch = await records.claim(str(uuid4()), 10, 30)
    assert batch is not None
    await bench.owner.execute("UPDATE memory.outbox SET lease = $1", uuid4())
    async with records.transaction(ann.tenant) as tx:
        assert await tx.held_tasks(batch, [task.id for task in batch.tasks]) == []


async def test_two_indexers_share_the_work_without_doing_it_twice(bench: Bench) -> None:
    callers = [bench.memory.caller() for _ in range(4)]
    for caller in callers:
        await caller.append("talk", *[f"turn {i} of the heron" for i in range(30)])

    async def drain(indexer: Indexer) -> None:
        for _ in range(40):
            await indexer.work()

    await asyncio.gather(drain(bench.indexer), drain(bench.another()))
    await bench.drain()
    for caller in callers:
        assert await bench.vectors(caller.tenant) == 60
        counted = await bench.owner.fetchval("SELECT units FROM memory.statistics WHERE tenant = $1", caller.tenant)
        assert counted == 30


async def test_a_recall_with_a_token_sees_what_is_not_indexed(bench: Bench) -> None:
    ann = bench.memory.caller()
    await ann.append("talk", *[f"filler number {i}" for i in range(20)])
    await bench.drain()
    done = await ann.append("talk", "the dentist appointment moved")
    assert not done.searchable
    answer = await ann.recall("dentsit", consistency_token=done.consistency_token)
    assert answer.hits[0].turn.message.parts[0].text == "the dentist appointment moved"
    space = (await ann.call("GetSpace", pb.GetSpaceRequest())).space
    assert space.index_backlog == 1


async def test_a_recall_with_a_token_finds_what_it_can_without_a_model(bench: Bench) -> None:
    ann = bench.memory.caller()
    await ann.append("talk", "filler")
    await bench.drain()
    dimensions = (await ann.call("GetSpace", pb.GetSpaceRequest())).space.dimensions

    def fact(text: str, *numbers: float) -> record_pb2.Memory:
        embedding = [*numbers, *[0.0] * (dimensions - 2)] if numbers else []
        return record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text=text, embedding=embedding)

    await ann.remember(fact("indexed", 1.0, 0.1))
    await bench.drain()
    # Nobody makes vectors of this one.
    await bench.owner.execute("UPDATE memory.space SET model = 'gone/model' WHERE tenant = $1", ann.tenant)
    done = await ann.remember(fact("has a vector", 1.0, 0.0), fact("has none"))
    asked = [1.0, *[0.0] * (dimensions - 1)]
    answer = await ann.recall("zzz", query_embedding=asked, consistency_token=done.consistency_token)
    assert texts(answer)[:2] == ["has a vector", "indexed"]
    assert list(answer.degraded) == ["embedder"]


async def test_read_your_writes_says_so_when_it_could_not(bench: Bench) -> None:
    ann = bench.memory.caller()
    request = pb.AppendMessagesRequest(scope=scope_pb2.Scope(thread="t"), turns=[said("x")], consistency=RYW)
    done = None
    while done is None:
        # It answers shortly before the deadline: too late where the machine stands still at that moment.
        with suppress(grpc.aio.AioRpcError):
            done = await ann.stub.AppendMessages(request, metadata=ann.metadata, timeout=3)
    assert not done.searchable


async def test_read_your_writes_counts_what_the_write_itself_took(bench: Bench, postgres_url: str) -> None:
    ann = bench.memory.caller()
    await ann.append("t", "first")
    owner = await asyncpg.connect(postgres_url)
    held = owner.transaction()
    await held.start()
    await owner.execute("SELECT FROM memory.thread WHERE tenant = $1 FOR UPDATE", ann.tenant)
    request = pb.AppendMessagesRequest(scope=scope_pb2.Scope(thread="t"), turns=[said("x")], consistency=RYW)
    writing = asyncio.ensure_future(ann.stub.AppendMessages(request, metadata=ann.metadata, timeout=4))
    await asyncio.wait({writing}, timeout=2)
    assert not writing.done()
    await held.rollback()
    await owner.close()
    assert not (await writing).searchable


@asynccontextmanager
async def at_work(indexer: Indexer) -> AsyncIterator[None]:
    task = asyncio.create_task(indexer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_a_model_that_hangs_holds_up_its_own_spaces_alone(bench: Bench) -> None:
    hanging = bench.embedders.hanging
    slow = [bench.memory.caller() for _ in range(5)]
    for caller in slow:
        await caller.append("talk", "the heron")
        await bench.owner.execute("UPDATE memory.space SET model = $1 WHERE tenant = $2", hanging.model, caller.tenant)

    async def indexed(*tenants: str) -> bool:
        return not any([await bench.count("outbox", tenant) for tenant in tenants])

    async with at_work(bench.another()):
        await eventually(lambda: asyncio.sleep(0, hanging.calls > 0))
        for _ in range(5):
            ann = bench.memory.caller()
            await ann.append("talk", "the pond")
            await eventually(partial(indexed, ann.tenant))
        assert [await bench.vectors(caller.tenant) for caller in slow] == [0] * 5
        assert (hanging.calls, hanging.most_at_once) == (1, 1)
        hanging.answers.set()
        await eventually(partial(indexed, *(caller.tenant for caller in slow)))
    assert [await bench.vectors(caller.tenant) for caller in slow] == [2] * 5
    assert hanging.most_at_once == 1


async def test_a_space_that_asks_no_model_does_not_wait_for_one(bench: Bench) -> None:
    hanging = bench.embedders.hanging
    ann, bob = bench.memory.caller(), bench.memory.caller()
    await ann.append("talk", "the heron")
    said_before = await bob.append("talk", "the heron")
    await bench.drain()
    await bench.owner.execute("UPDATE memory.space SET model = $1", hanging.model)
    dimensions = (await bob.call("GetSpace", pb.GetSpaceRequest())).space.dimensions

    async def indexed() -> bool:
        return await bench.count("outbox", bob.tenant) == 0

    await ann.append("talk", "the pond")
    async with at_work(bench.another()):
        await eventually(lambda: asyncio.sleep(0, hanging.calls > 0))
        own = record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text="an otter", embedding=[1.0] * dimensions)
        await bob.remember(own)
        await eventually(indexed)
        assert await bench.count("outbox", ann.tenant) == 1
        forget = pb.ForgetMessagesRequest(
            scope=scope_pb2.Scope(thread="talk"), message_ids=list(said_before.message_ids)
        )
        await bob.call("ForgetMessages", forget)
        await eventually(indexed)
        assert await bench.vectors(bob.tenant) == 2
    assert hanging.calls == 1


class SlowIndex(PgvectorIndex):
    """An index elsewhere that takes its time."""

    async def upsert(self, tenant: str, space: Space, rows: Sequence[VectorRow]) -> None:
        await asyncio.sleep(0.1)
        await super().upsert(tenant, space, rows)


async def test_what_was_embedded_waits_for_its_turn_and_is_embedded_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer_module, "_PATIENCE_S", 0.05)
    hanging = bench.embedders.hanging
    ann, bob = bench.memory.caller(), bench.memory.caller()
    for caller in (ann, bob):
        await caller.append("talk", "the heron")
    await bench.drain()
    await bench.owner.execute("UPDATE memory.space SET backend = 2")
    await bench.owner.execute("UPDATE memory.space SET model = $1 WHERE tenant = $2", hanging.model, ann.tenant)
    indexes: dict[int, VectorIndex] = {
        Backend.PGVECTOR: PgvectorIndex(bench.pool),
        Backend.CHROMA: SlowIndex(bench.pool),
    }
    indexer = Indexer(PostgresRecords(bench.pool), indexes, bench.embedders, Parts(), poll_s=0.01)
    store = asyncio.Lock()
    indexer._parts_in_use["chroma"] = store

    async def indexed() -> bool:
        return await bench.count("outbox", ann.tenant) == 0

    async def others() -> None:
        """The index is never without somebody who wants it."""
        while True:
            await bob.append("talk", "the pond")

    await ann.append("talk", "the otter")
    async with at_work(indexer):
        await eventually(lambda: asyncio.sleep(0, hanging.calls > 0))
        writing = asyncio.create_task(others())
        await eventually(lambda: asyncio.sleep(0, store.locked()))
        hanging.answers.set()
        await eventually(indexed)
        writing.cancel()
        await asyncio.wait([writing])
    assert hanging.calls == 1


class HangingIndex(PgvectorIndex):
    """An index elsewhere that does not answer."""

    async def upsert(self, tenant: str, space: Space, rows: Sequence[VectorRow]) -> None:
        await asyncio.Event().wait()


async def test_nothing_is_embedded_for_an_index_that_hangs(bench: Bench) -> None:
    callers = [bench.memory.caller() for _ in range(4)]
    for caller in callers:
        await caller.append("talk", "the heron")
        await bench.owner.execute("UPDATE memory.space SET backend = 2 WHERE tenant = $1", caller.tenant)
    indexes: dict[int, VectorIndex] = {
        Backend.PGVECTOR: PgvectorIndex(bench.pool),
        Backend.CHROMA: HangingIndex(bench.pool),
    }
    indexer = Indexer(PostgresRecords(bench.pool), indexes, bench.embedders, Parts(), poll_s=0.05)

    async def held_back() -> bool:
        query = "SELECT count(*) FROM memory.outbox WHERE error LIKE 'chroma is slow'"
        return int(await bench.owner.fetchval(query)) == 3

    async with at_work(indexer):
        await eventually(held_back)
        await eventually(lambda: asyncio.sleep(0, bool(indexer._held_back)))
        assert bench.embedders.calls == [1]


async def test_what_hangs_ends_with_the_indexer(bench: Bench) -> None:
    hanging = bench.embedders.hanging
    ann, bob = bench.memory.caller(), bench.memory.caller()
    await ann.append("talk", "the heron")
    await bench.owner.execute("UPDATE memory.space SET model = $1 WHERE tenant = $2", hanging.model, ann.tenant)

    async def gone_on() -> bool:
        return hanging.calls > 0 and await bench.count("outbox", bob.tenant) == 0

    async with at_work(bench.another()):
        await eventually(lambda: asyncio.sleep(0, hanging.calls > 0))
        await bob.append("talk", "the pond")
        await eventually(gone_on)
        assert hanging._now == 1
    assert hanging._now == 0
    # What it had begun is another's when its lease is over.
    hanging.answers.set()
    await bench.owner.execute("UPDATE memory.outbox SET leased_until = now() - interval '1 s'")
    await bench.drain()
    assert await bench.vectors(ann.tenant) == 2


async def test_spaces_that_are_held_back_are_not_claimed(bench: Bench) -> None:
    ann, bob = bench.memory.caller(), bench.memory.caller()
    await ann.append("talk", "the heron")
    await bob.append("talk", "the pond")
    spaces = {
        row["tenant"]: row["space_no"] for row in await bench.owner.fetch("SELECT tenant, space_no FROM memory.outbox")
    }
    records = PostgresRecords(bench.pool)
    first = await records.claim(str(uuid4()), 10, 30, {(ann.tenant, spaces[ann.tenant])})
    assert first is not None
    assert first.tenant == bob.tenant
    assert await records.claim(str(uuid4()), 10, 30, {(ann.tenant, spaces[ann.tenant])}) is None
    second = await records.claim(str(uuid4()), 10, 30)
    assert second is not None
    assert second.tenant == ann.tenant


async def test_a_new_write_wakes_the_indexer(bench: Bench) -> None:
    ann = bench.memory.caller()
    # It would look again only in a minute.
    async with at_work(bench.another(poll_s=60)):
        for i in range(3):
            await ann.append("talk", f"turn {i}")

            async def done() -> bool:
                return await bench.count("outbox", ann.tenant) == 0

            await eventually(done)


async def test_a_dead_row_keeps_nobody_waiting(bench: Bench) -> None:
    ann = bench.memory.caller()
    done = await ann.append("talk", "the heron")
    await bench.owner.execute("UPDATE memory.outbox SET dead_at = now() WHERE tenant = $1", ann.tenant)
    answer = await ann.recall("heron", consistency_token=done.consistency_token)
    assert len(answer.hits) == 1
    assert not answer.degraded


async def test_stored_answers_are_forgotten_after_a_day(bench: Bench) -> None:
    ann = bench.memory.caller()
    await ann.append("talk", "one", request_id="r1")
    await ann.append("talk", "two", request_id="r2")
    await bench.owner.execute(
        "UPDATE memory.request SET created_at = now() - interval '25 hours' WHERE tenant = $1 AND id = 'r1'",
        ann.tenant,
    )
    # A day later the id may be used again, whether the old answer was removed or not.
    await ann.append("talk", "three", request_id="r1")
    await bench.owner.execute(
        "UPDATE memory.request SET created_at = now() - interval '25 hours' WHERE tenant = $1 AND id = 'r2'",
        ann.tenant,
    )
    await PostgresRecords(bench.pool).forget_requests()
    rows = await bench.owner.fetch("SELECT id FROM memory.request WHERE tenant = $1", ann.tenant)
    assert [row["id"] for row in rows] == ["r1"]

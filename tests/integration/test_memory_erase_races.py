"""Erase while others are at work: an indexer with vectors in its hands, stores that are away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc
import pytest
from tests.fakes.memory_service import Caller, Memory, eventually, refused, running, said
from tests.fakes.patience import patient_postgres
from tests.fakes.tcp_proxy import TcpProxy
from tests.fakes.traces import traces

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, scope_pb2, space_pb2
from janus_kit.errors import Unavailable
from janus_kit.postgres import Database, database
from janus_memory.adapters.chroma_index import ChromaIndex
from janus_memory.adapters.lexical_embedder import LexicalEmbedder
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.indexer import Indexer
from janus_memory.model import Backend
from janus_memory.parts import Parts
from janus_memory.ports import Embedder, Purpose

PGVECTOR, CHROMA = space_pb2.VECTOR_BACKEND_PGVECTOR, space_pb2.VECTOR_BACKEND_CHROMA


@dataclass
class Paused:
    """The built-in embedder, which gives its vectors back when it is told to."""

    holds: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def named(self, model: str) -> Embedder:
        return self

    async def embed(self, texts: Sequence[str], dimensions: int, purpose: Purpose) -> list[list[float]]:
        vectors = await LexicalEmbedder().embed(texts, dimensions, purpose)
        self.holds.set()
        await self.go_on.wait()
        return vectors


@dataclass
class Bench:
    """The service without an indexer, and one that stands still with vectors in its hands."""

    desk: Caller
    pool: Database
    owner: asyncpg.Connection
    embedder: Paused
    indexer: Indexer

    async def vectors(self) -> int:
        return int(await self.owner.fetchval("SELECT count(*) FROM memory.vector WHERE tenant = $1", self.desk.tenant))

    async def tombstones(self) -> int:
        return int(
            await self.owner.fetchval("SELECT count(*) FROM memory.tombstone WHERE tenant = $1", self.desk.tenant)
        )


@pytest.fixture
async def bench(postgres_url: str, redis_url: str, chroma_url: str) -> AsyncIterator[Bench]:
    async with (
        running(postgres_url, redis_url, chroma_url=chroma_url, indexer=False) as memory,
        database(patient_postgres(postgres_url), application="test") as pool,
    ):
        owner = await asyncpg.connect(postgres_url)
        await owner.execute("DELETE FROM memory.outbox")
        vectors = ChromaIndex(chroma_url, PostgresRecords(pool), timeout_s=10)
        embedder = Paused()
        indexes = {Backend.PGVECTOR: PgvectorIndex(pool), Backend.CHROMA: vectors}
        indexer = Indexer(PostgresRecords(pool), indexes, embedder, Parts(), poll_s=0.2)
        try:
            yield Bench(memory.caller(), pool, owner, embedder, indexer)
        finally:
            await vectors.close()
            await owner.close()


async def erase(desk: Caller, subject: str) -> pb.EraseReceipt:
    return (await desk.call("Erase", pb.EraseRequest(scope=scope_pb2.Scope(subject=subject)))).receipt


@pytest.mark.parametrize("backend", [PGVECTOR, CHROMA])
async def test_vectors_in_an_indexers_hands_do_not_come_after_the_receipt(
    bench: Bench, backend: int, postgres_url: str, redis_url: str, chroma_url: str
) -> None:
    await bench.desk.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="default", backend=backend)))
    await bench.desk.append("talk", said("the heron"), scope={"subject": "ann-in-hands"})
    working = asyncio.create_task(bench.indexer.work())
    await bench.embedder.holds.wait()
    erasing = asyncio.create_task(erase(bench.desk, "ann-in-hands"))

    async def gone() -> bool:
        return await bench.tombstones() == 1

    await eventually(gone)
    # It has every chance to end, and does not while the vectors may still come.
    await asyncio.wait({erasing}, timeout=0.3)
    assert not erasing.done()
    bench.embedder.go_on.set()
    await working
    await erasing
    assert await traces(postgres_url, redis_url, chroma_url, "ann-in-hands") == []


@pytest.mark.parametrize("backend", [PGVECTOR, CHROMA])
async def test_an_indexer_that_lost_its_lease_takes_back_what_it_puts_too_late(
    bench: Bench, backend: int, postgres_url: str, redis_url: str, chroma_url: str
) -> None:
    await bench.desk.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="default", backend=backend)))
    await bench.desk.append("talk", said("the heron"), scope={"subject": "ann-too-late"})
    working = asyncio.create_task(bench.indexer.work())
    await bench.embedder.holds.wait()
    await bench.owner.execute("UPDATE memory.outbox SET leased_until = now() - interval '1 s'")
    await erase(bench.desk, "ann-too-late")
    bench.embedder.go_on.set()
    await working
    assert await traces(postgres_url, redis_url, chroma_url, "ann-too-late") == []


@pytest.mark.parametrize("backend", [PGVECTOR, CHROMA])
async def test_what_was_forgotten_before_and_is_not_taken_out_yet_goes_before_the_receipt(
    bench: Bench, backend: int, postgres_url: str, redis_url: str, chroma_url: str
) -> None:
    bench.embedder.go_on.set()
    await bench.desk.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="default", backend=backend)))
    texts = [record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text=f"heron {number}") for number in range(3)]
    kept = await bench.desk.remember(*texts, scope={"subject": "ann-forgotten"})
    await bench.desk.remember("the crane", scope={"subject": "bob-stays"})
    while await bench.indexer.work():
        pass
    for memory_id in kept.memory_ids:
        await bench.desk.call("ForgetMemory", pb.ForgetMemoryRequest(memory_id=memory_id, purge=True))
    assert await traces(postgres_url, redis_url, chroma_url, "ann-forgotten") != []
    await erase(bench.desk, "ann-forgotten")
    assert await traces(postgres_url, redis_url, chroma_url, "ann-forgotten") == []
    assert await traces(postgres_url, redis_url, chroma_url, "bob-stays") != []


async def test_rows_that_wait_or_failed_go_with_what_they_are_about(bench: Bench) -> None:
    await bench.desk.append("talk", "one", "two", scope={"subject": "ann"})
    await bench.desk.append("talk", "three", scope={"subject": "bob"})
    await bench.owner.execute(
        """UPDATE memory.outbox SET dead_at = now(), error = 'refused'
           WHERE id = (SELECT min(id) FROM memory.outbox WHERE tenant = $1)""",
        bench.desk.tenant,
    )
    counts = {count.store: count.removed for count in (await erase(bench.desk, "ann")).counts}
    assert counts["postgres.outbox"] == 2
    left = await bench.owner.fetch("SELECT error FROM memory.outbox WHERE tenant = $1", bench.desk.tenant)
    # Of the other's turn: its own row, which will embed it without what was before it.
    assert [row["error"] for row in left] == [""]


@pytest.fixture
def redis(redis_url: str) -> Iterator[TcpProxy]:
    proxy = TcpProxy.to(redis_url)
    yield proxy
    proxy.close()


@pytest.fixture
def chroma(chroma_url: str) -> Iterator[TcpProxy]:
    proxy = TcpProxy.to(chroma_url)
    yield proxy
    proxy.close()


@pytest.fixture
async def memory(
    postgres_url: str, redis_url: str, chroma_url: str, redis: TcpProxy, chroma: TcpProxy
) -> AsyncIterator[Memory]:
    async with running(
        postgres_url, redis.through(redis_url), chroma_url=chroma.through(chroma_url), chroma_timeout_s=1.0
    ) as service:
        yield service


@pytest.mark.parametrize("away", ["redis", "chroma"])
async def test_nothing_is_receipted_while_a_store_is_away(
    memory: Memory, redis: TcpProxy, chroma: TcpProxy, away: str, postgres_url: str, redis_url: str, chroma_url: str
) -> None:
    desk, subject = memory.caller(), f"ann-without-{away}"
    await desk.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="default", backend=CHROMA)))
    await desk.append("talk", "the heron", scope={"subject": subject})
    await desk.append("talk", "the pond", scope={"subject": "bob"})
    await desk.indexed()
    proxy = redis if away == "redis" else chroma
    proxy.cut()
    request = pb.EraseRequest(scope=scope_pb2.Scope(subject=subject), request_id="e1")
    error = await refused(desk.call("Erase", request))
    assert isinstance(error, Unavailable)
    assert error.metadata["part"] == away
    # What it could do is done, and is in the receipt that the repeated call gets.
    assert [turn.position for turn in (await desk.window("talk")).turns] == [2]
    proxy.mend()

    async def again() -> bool:
        try:
            receipts.append((await desk.call("Erase", request)).receipt)
        except grpc.aio.AioRpcError:  # its connections come back in their own time
            return False
        return True

    receipts: list[pb.EraseReceipt] = []
    await eventually(again)
    counts = {count.store: count.removed for count in receipts[0].counts}
    assert (counts["postgres.turn"], counts["redis.window"], counts["chroma"]) == (1, 1, 2)
    assert await traces(postgres_url, redis_url, chroma_url, subject) == []


async def test_an_erasure_that_was_left_alone_is_ended_by_the_service(
    memory: Memory,
    redis: TcpProxy,
    chroma: TcpProxy,
    postgres_url: str,
    redis_url: str,
    chroma_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from janus_kit.clock import SystemClock
    from janus_kit.redis import redis as redis_client
    from janus_kit.settings import RedisSettings
    from janus_memory import erase as erasing
    from janus_memory.adapters.receipt_keys import ReceiptKeys
    from janus_memory.adapters.redis_windows import RedisWindows
    from janus_memory.erase import Erase
    from janus_memory.erasure import EVERYWHERE, Target

    desk, subject = memory.caller(), "ann-left-alone"
    await desk.append("talk", "the heron", scope={"subject": subject})
    await desk.indexed()
    redis.cut()
    await refused(desk.call("Erase", pb.EraseRequest(scope=scope_pb2.Scope(subject=subject))))
    async with (
        database(patient_postgres(postgres_url), application="test") as pool,
        redis_client(RedisSettings(url=redis_url)) as client,
    ):
        records = PostgresRecords(pool)
        assert desk.tenant in await records.tenants_erasing(0)
        another = Erase(
            records,
            RedisWindows(client, length=10, ttl_s=60),
            {Backend.PGVECTOR: PgvectorIndex(pool)},
            None,  # type: ignore[arg-type]  # spaces are known by now
            ReceiptKeys(None),
            Parts(),
            SystemClock(),
        )
        # Those that wait for a store are no reason to leave others alone.
        stuck = [f"{number}-{desk.tenant}" for number in range(5)]
        for tenant in stuck:
            async with records.transaction(tenant) as tx:
                await tx.begin_erasure(Target("bob", EVERYWHERE))
        monkeypatch.setattr(erasing, "_LEFT_ALONE_S", 0.0)
        finish = Erase._finish

        async def finishing(self: Erase, tenant: str, *rest: Any) -> Any:
            if tenant in stuck:
                raise Unavailable("chroma")
            return await finish(self, tenant, *rest)

        monkeypatch.setattr(Erase, "_finish", finishing)

        async def ended() -> bool:
            return desk.tenant not in await records.tenants_erasing(0)

        task = asyncio.create_task(another.run_for_ever())
        try:
            await eventually(ended)
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert set(stuck) <= set(await records.tenants_erasing(0))
    assert await traces(postgres_url, redis_url, chroma_url, subject) == []

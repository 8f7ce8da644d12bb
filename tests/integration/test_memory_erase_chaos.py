"""The service is killed while people write and are erased; then every store is searched for them.

``CHAOS_SEED`` and ``CHAOS_KILLS`` make it another run, or a longer one.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import uuid4

import asyncpg
import grpc
import pytest
from tests.fakes.memory_process import MemoryProcess
from tests.fakes.memory_service import Caller, texts
from tests.fakes.patience import patient_postgres
from tests.fakes.traces import traces

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import scope_pb2, space_pb2
from janus_kit.postgres import database
from janus_kit.redis import redis as redis_client
from janus_kit.settings import RedisSettings
from janus_memory.adapters.chroma_index import ChromaIndex
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.adapters.redis_windows import RedisWindows
from janus_memory.model import Backend
from janus_memory.reconcile import Reconcile

T = TypeVar("T")

SEED = int(os.environ.get("CHAOS_SEED", "5"))
KILLS = int(os.environ.get("CHAOS_KILLS", "2"))
SPACES = {"default": space_pb2.VECTOR_BACKEND_PGVECTOR, "far": space_pb2.VECTOR_BACKEND_CHROMA}
_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}


@dataclass
class Person:
    """A subject whose id and word are nowhere else, and what of it was acknowledged."""

    subject: str = field(default_factory=lambda: f"p{uuid4().hex[:12]}x0")
    word: str = field(default_factory=lambda: f"w{uuid4().hex[:12]}x0")
    turns: list[tuple[str, str]] = field(default_factory=list)
    memories: list[str] = field(default_factory=list)


@dataclass
class World:
    """The service, its one tenant, and who is in it."""

    process: MemoryProcess
    tenant: str
    dice: random.Random

    async def until_done(self, call: Callable[[Caller], Awaitable[T]]) -> T:
        """What a client does whose server died: the same request again, until it is answered."""
        async with asyncio.timeout(60):
            while True:
                try:
                    return await call(self.process.caller(self.tenant))
                except grpc.aio.AioRpcError as error:
                    if error.code() not in _LOST:
                        raise
                await asyncio.sleep(0.02)

    async def write(self, person: Person) -> None:
        """A few turns among others' and a memory, each with a request id."""
        space, thread = self.dice.choice(list(SPACES)), self.dice.choice(["one", "two", person.subject])
        said = [f"{person.word} turn {len(person.turns) + i}" for i in range(self.dice.randint(1, 6))]
        where = {"space": space, "subject": person.subject}
        request_id = uuid4().hex
        await self.until_done(lambda desk: desk.append(thread, *said, scope=where, request_id=request_id))
        person.turns += [(f"{space} {thread}", text) for text in said]
        text = f"{person.word} fact {len(person.memories)}"
        await self.until_done(lambda desk: desk.remember(text, scope=where, request_id=f"m{request_id}"))
        person.memories.append(text)
        await self.until_done(lambda desk: desk.window(thread, scope={"space": space}))

    async def erase(self, person: Person) -> None:
        request = pb.EraseRequest(scope=scope_pb2.Scope(subject=person.subject), request_id=uuid4().hex)
        receipt = (await self.until_done(lambda desk: desk.call("Erase", request))).receipt
        removed = {count.store: count.removed for count in receipt.counts}
        assert removed["postgres.turn"] == len(person.turns)
        assert removed["postgres.memory"] == len(person.memories)
        assert not any(count.remaining for count in receipt.counts)


@pytest.fixture
async def world(postgres_url: str, redis_url: str, chroma_url: str) -> AsyncIterator[World]:
    process = await MemoryProcess(postgres_url, redis_url, chroma_url).start()
    try:
        made = World(process, f"t{uuid4().hex[:12]}", random.Random(SEED))
        for name, backend in SPACES.items():
            space = space_pb2.Space(name=name, backend=backend)
            await process.caller(made.tenant).call("PutSpace", pb.PutSpaceRequest(space=space))
        yield made
    finally:
        await process.stop()


async def test_nothing_erased_returns_and_nothing_else_is_lost(
    world: World, postgres_url: str, redis_url: str, chroma_url: str
) -> None:
    erased: list[Person] = []
    people = [Person() for _ in range(3)]
    for number in range(KILLS):
        leaving = Person()
        for _ in range(4):
            await asyncio.gather(*(world.write(person) for person in [*people, leaving]))
        # Others go on writing while one is erased and the service dies in the middle of it.
        async with asyncio.TaskGroup() as group:
            group.create_task(world.erase(leaving))
            for person in people:
                group.create_task(world.write(person))
            await asyncio.sleep(world.dice.uniform(0.0, 0.12))
            await world.process.again(meanwhile=leases_run_out(postgres_url))
        erased.append(leaving)
        for word in (leaving.word, leaving.subject):
            assert await traces(postgres_url, redis_url, chroma_url, word) == [], f"seed {SEED}, kill {number}"
    await all_agree(world, postgres_url, redis_url, chroma_url)
    desk = world.process.caller(world.tenant)
    gone = [person.word for person in erased]
    for space in SPACES:
        for thread in ("one", "two"):
            shown = texts(await desk.window(thread, scope={"space": space}, max_messages=1_000, max_tokens=1_000_000))
            expected = [text for person in people for at, text in person.turns if at == f"{space} {thread}"]
            assert sorted(shown) == sorted(expected), f"seed {SEED}"
        for word in (*gone, "turn fact"):
            found = texts(await desk.recall(word, scope={"space": space}, limit=200, exact=True))
            assert not any(other in text for text in found for other in gone), f"seed {SEED}"
    for person in people:
        found = [
            text
            for space in SPACES
            for text in texts(await desk.recall(person.word, scope={"space": space}, limit=200, kinds=[2]))
        ]
        assert set(person.memories) <= set(found), f"seed {SEED}"
    for word in gone:
        assert await traces(postgres_url, redis_url, chroma_url, word) == [], f"seed {SEED}"


async def leases_run_out(postgres_url: str) -> None:
    """What 15 seconds do to the leases of an indexer that is dead."""
    owner = await asyncpg.connect(postgres_url)
    try:
        await owner.execute("UPDATE memory.outbox SET leased_until = now() - interval '1 s' WHERE lease IS NOT NULL")
    finally:
        await owner.close()


async def all_agree(world: World, postgres_url: str, redis_url: str, chroma_url: str) -> None:
    """After one repair at most, records, vectors, statistics and windows say the same."""
    async with (
        database(patient_postgres(postgres_url), application="test") as pool,
        redis_client(RedisSettings(url=redis_url)) as client,
    ):
        chroma = ChromaIndex(chroma_url, PostgresRecords(pool), timeout_s=10)
        indexes = {Backend.PGVECTOR: PgvectorIndex(pool), Backend.CHROMA: chroma}
        reconcile = Reconcile(PostgresRecords(pool), RedisWindows(client, length=400, ttl_s=60), indexes)
        try:
            for repair in (True, False):
                for space in SPACES:
                    await world.process.caller(world.tenant).indexed(space)
                found = [findings async for findings in reconcile.tenant(world.tenant, repair=repair)]
            assert [findings for findings in found if findings.wrong or findings.away] == [], f"seed {SEED}"
        finally:
            await chroma.close()

"""Retention and expiry: what is too old goes everywhere, and what is left stays as it was."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tests.fakes.memory_service import Caller, Memory, eventually, refused, running, said, texts
from tests.fakes.memory_statistics import CURRENT, counted, kept
from tests.fakes.patience import patient_postgres

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, space_pb2
from janus_kit.errors import NotFound, Unavailable
from janus_kit.postgres import Database, database
from janus_kit.redis import redis as redis_client
from janus_kit.settings import RedisSettings
from janus_memory.adapters.inference_embedder import KnownEmbedders
from janus_memory.adapters.lexical_embedder import LexicalEmbedder
from janus_memory.adapters.onnx_embedder import OnnxModels
from janus_memory.adapters.pgvector_index import PgvectorIndex
from janus_memory.adapters.postgres_records import PostgresRecords
from janus_memory.adapters.redis_windows import RedisWindows
from janus_memory.indexer import Indexer
from janus_memory.model import Backend
from janus_memory.parts import Parts
from janus_memory.ports import VectorIndex
from janus_memory.retention import BATCH, Sweep

DAY = timedelta(days=1)
FACT = record_pb2.MEMORY_KIND_FACT


class TroubledWindows(RedisWindows):
    """The windows, until Redis is said to be away."""

    away = False

    async def drop(self, tenant: str, incarnations: object) -> None:
        if self.away:
            raise Unavailable("redis")
        await super().drop(tenant, incarnations)  # type: ignore[arg-type]


@dataclass
class Bench:
    """The service without background work of its own, and a sweep and an indexer that run when told to."""

    memory: Memory
    owner: asyncpg.Connection
    windows: TroubledWindows
    sweep: Sweep
    indexer: Indexer

    async def age(self, tenant: str, table: str, condition: str, by: timedelta = 10 * DAY) -> None:
        """Record rows, and their units, earlier than they were."""
        await self.owner.execute(
            f"UPDATE memory.{table} SET recorded_at = recorded_at - $2::interval WHERE tenant = $1 AND {condition}",
            tenant, by,
        )  # fmt: skip

    async def age_turns(self, tenant: str, upto: int) -> None:
        await self.age(tenant, "turn", f"position <= {upto}")
        await self.age(tenant, "unit", f"kind = 1 AND position <= {upto}")

    async def index(self) -> None:
        while await self.indexer.work():
            pass

    async def count(self, table: str, tenant: str) -> int:
        return int(await self.owner.fetchval(f"SELECT count(*) FROM memory.{table} WHERE tenant = $1", tenant))

    async def statistics_are_exact(self, tenant: str) -> None:
        assert await kept(self.owner, tenant) == await counted(self.owner, tenant, CURRENT)


@pytest.fixture
async def bench(postgres_url: str, redis_url: str) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(running(postgres_url, redis_url, indexer=False, sweep_every_s=3_600))
        pool: Database = await stack.enter_async_context(database(patient_postgres(postgres_url), application="test"))
        client = await stack.enter_async_context(redis_client(RedisSettings(url=redis_url), application="test"))
        owner = await asyncpg.connect(postgres_url)
        stack.push_async_callback(owner.close)
        records, windows = PostgresRecords(pool), TroubledWindows(client, length=400, ttl_s=600)
        indexes: dict[int, VectorIndex] = {Backend.PGVECTOR: PgvectorIndex(pool)}
        indexer = Indexer(
            records, indexes, KnownEmbedders(LexicalEmbedder(), OnnxModels(None, 0), None, 5), Parts(), poll_s=1
        )
        yield Bench(memory, owner, windows, Sweep(records, windows, every_s=1), indexer)


@pytest.fixture
def ann(bench: Bench) -> Caller:
    return bench.memory.caller()


async def keep(ann: Caller, days: int | None, name: str = "default") -> space_pb2.Space:
    retention = None if days is None else Duration(seconds=days * 86_400)
    space = space_pb2.Space(name=name, retention=retention)
    return (await ann.call("PutSpace", pb.PutSpaceRequest(space=space))).space  # type: ignore[no-any-return]


async def test_a_retention_is_kept_and_can_be_taken_back(ann: Caller) -> None:
    made = space_pb2.Space(name="s", retention=Duration(seconds=90, nanos=1_000))
    request = pb.PutSpaceRequest(space=made, request_id="r")
    space = (await ann.call("PutSpace", request)).space
    assert space.retention == made.retention
    assert (await ann.call("PutSpace", request)).space == space
    assert (await ann.call("GetSpace", pb.GetSpaceRequest(name="s"))).space.retention == made.retention
    assert not (await keep(ann, None, "s")).HasField("retention")
    assert (await keep(ann, 3_652_500, "s")).retention.seconds == 315_576_000_000


async def test_old_turns_go_everywhere_and_the_rest_stays_in_place(bench: Bench, ann: Caller) -> None:
    await keep(ann, 7)
    await ann.append("talk", *[f"heron number {n}" for n in range(1, 7)])
    await ann.append("other", "heron elsewhere")
    await bench.index()
    assert len((await ann.window("talk")).turns) == 6
    await bench.age_turns(ann.tenant, 4)
    await bench.owner.execute(
        "UPDATE memory.turn SET recorded_at = now() WHERE tenant = $1 AND thread = 'other'", ann.tenant
    )
    await bench.owner.execute(
        "UPDATE memory.unit SET recorded_at = now() WHERE tenant = $1 AND thread = 'other'", ann.tenant
    )
    key = await bench.owner.fetchval(
        "SELECT incarnation FROM memory.thread WHERE tenant = $1 AND id = 'talk'", ann.tenant
    )
    assert await bench.windows.newest(ann.tenant, key.hex, 6, 6)
    assert await bench.sweep.work() == 4
    assert await bench.windows.newest(ann.tenant, key.hex, 6, 6) == []
    for _ in range(2):
        window = await ann.window("talk")
        assert [turn.position for turn in window.turns] == [5, 6]
        assert window.omitted == 0
        assert sorted(texts(await ann.recall("heron number"))) == [
            "heron elsewhere", "heron number 5", "heron number 6",
        ]  # fmt: skip
        await bench.index()
    assert await bench.count("vector", ann.tenant) == 4
    await bench.statistics_are_exact(ann.tenant)
    done = await ann.append("talk", "the seventh")
    assert done.first_position == 7
    assert [turn.position for turn in (await ann.window("talk", max_messages=2)).turns] == [6, 7]
    assert (await ann.window("talk", max_messages=2)).omitted == 1


async def test_no_vector_is_left_that_was_made_with_a_removed_turn(bench: Bench, ann: Caller) -> None:
    await keep(ann, 7)
    await ann.append("talk", "the heron", "the pond")
    await ann.append("alone", "the pond")
    await bench.index()
    await bench.age_turns(ann.tenant, 1)
    for table in ("turn", "unit"):
        await bench.age(ann.tenant, table, "thread = 'alone'", -10 * DAY)
    await bench.sweep.work()
    await bench.index()
    vectors = await bench.owner.fetch(
        """SELECT embedding::text FROM memory.vector WHERE tenant = $1 AND view IN (0, 2)""", ann.tenant
    )
    assert len(vectors) == 2
    assert len({row["embedding"] for row in vectors}) == 1


async def test_a_result_whose_call_is_gone_is_not_shown(bench: Bench, ann: Caller) -> None:
    await keep(ann, 7)
    call = record_pb2.Turn(message=content.Message(role=content.ROLE_ASSISTANT))
    call.message.parts.add().tool_call.CopyFrom(content.ToolCall(call_id="c1", name="clock", arguments_json="{}"))
    result = record_pb2.Turn(message=content.Message(role=content.ROLE_TOOL))
    result.message.parts.add().tool_result.CopyFrom(content.ToolResult(call_id="c1", parts=[content.Part(text="noon")]))
    await ann.append("talk", call, result, "thanks")
    await bench.age_turns(ann.tenant, 1)
    await bench.sweep.work()
    window = await ann.window("talk")
    assert [turn.position for turn in window.turns] == [3]
    assert window.omitted == 1


async def test_old_memories_go_and_versions_that_are_young_enough_stay(bench: Bench, ann: Caller) -> None:
    await keep(ann, 7)
    await ann.remember(
        *[record_pb2.Memory(id=name, kind=FACT, text=f"the code {name}") for name in ("old", "changed", "new", "gone")]
    )
    await ann.call("ForgetMemory", pb.ForgetMemoryRequest(memory_id="gone"))
    await bench.index()
    await bench.age(ann.tenant, "memory", "id <> 'new'")
    await bench.age(ann.tenant, "unit", "record_id <> 'new'")
    mask = pb.UpdateMemoryRequest(memory=record_pb2.Memory(id="changed", text="the code changed anew"))
    mask.update_mask.paths.append("text")
    await ann.call("UpdateMemory", mask)
    await bench.sweep.work()
    await bench.index()
    assert sorted(texts(await ann.recall("code"))) == ["the code changed anew", "the code new"]
    for name in ("old", "gone"):
        for method, request in (
            ("GetMemory", pb.GetMemoryRequest(memory_id=name)),
            ("GetHistory", pb.GetHistoryRequest(memory_id=name)),
        ):
            assert isinstance(await refused(ann.call(method, request)), NotFound)
    [left] = (await ann.call("GetHistory", pb.GetHistoryRequest(memory_id="changed"))).versions
    assert left.memory.version == 2
    assert await bench.count("vector", ann.tenant) == 2
    await bench.statistics_are_exact(ann.tenant)


async def test_only_spaces_with_a_retention_lose_anything(bench: Bench, ann: Caller) -> None:
    bob = bench.memory.caller()
    await keep(ann, 7, "short")
    for caller, space in ((ann, "short"), (ann, "default"), (bob, "default")):
        await caller.append("talk", "the heron", scope={"space": space})
        await caller.remember("herons fish", scope={"space": space})
        await bench.age(caller.tenant, "turn", "recorded_at > now() - interval '1 day'")
        await bench.age(caller.tenant, "memory", "recorded_at > now() - interval '1 day'")
        await bench.age(caller.tenant, "unit", "recorded_at > now() - interval '1 day'")
    await bench.sweep.work()
    assert texts(await ann.recall("heron", scope={"space": "short"})) == []
    for caller in (ann, bob):
        assert len((await caller.recall("heron")).hits) == 2
        assert len((await caller.window("talk")).turns) == 1


async def test_more_than_a_batch_goes_in_one_sweep(bench: Bench, ann: Caller) -> None:
    await keep(ann, 7)
    await ann.append("talk", *["x"] * 250)
    await ann.append("talk", said("the last"))
    await bench.age_turns(ann.tenant, 250)
    assert await bench.sweep.work() == 250 > BATCH
    assert texts(await ann.window("talk")) == ["the last"]


async def test_while_redis_is_away_turns_stay_and_memories_go(bench: Bench, ann: Caller) -> None:
    await keep(ann, 7)
    await ann.append("talk", "the heron")
    await ann.remember("herons fish")
    await bench.age_turns(ann.tenant, 1)
    await bench.age(ann.tenant, "memory", "true")
    bench.windows.away = True
    await bench.sweep.work()
    assert texts(await ann.recall("heron")) == ["the heron"]
    assert len((await ann.window("talk")).turns) == 1
    bench.windows.away = False
    await bench.sweep.work()
    assert len((await ann.window("talk")).turns) == 0


async def test_expired_memories_no_longer_count(bench: Bench, ann: Caller) -> None:
    soon = record_pb2.Memory(kind=FACT, text="the gate is open", id="gate")
    soon.expires_at.GetCurrentTime()
    await ann.remember(soon, "the gate is green")
    await bench.index()
    await bench.sweep.work()
    await bench.statistics_are_exact(ann.tenant)
    gate = "SELECT units FROM memory.lexicon WHERE tenant = $1 AND term = 'gat'"
    assert await bench.owner.fetchval(gate, ann.tenant) == 1
    soon.ClearField("expires_at")
    await ann.remember(soon)
    await bench.index()
    assert await bench.owner.fetchval(gate, ann.tenant) == 2
    await bench.statistics_are_exact(ann.tenant)


async def test_the_service_sweeps_by_itself(postgres_url: str, redis_url: str) -> None:
    async with running(postgres_url, redis_url, sweep_every_s=0.05) as memory:
        ann = memory.caller()
        space = space_pb2.Space(name="s", retention=Duration(nanos=1_000))
        await ann.call("PutSpace", pb.PutSpaceRequest(space=space))
        await ann.append("talk", "the heron", scope={"space": "s"})

        async def gone() -> bool:
            return not (await ann.window("talk", scope={"space": "s"})).turns

        await eventually(gone)


async def test_statistics_are_exact_after_changes_at_the_same_time(
    bench: Bench, postgres_url: str, redis_url: str
) -> None:
    async with running(postgres_url, redis_url, sweep_every_s=0.02, indexer_poll_s=0.02) as memory:
        ann = memory.caller()
        names = [f"m{n}" for n in range(12)]
        refusals: set[grpc.StatusCode] = set()
        await ann.remember(*[record_pb2.Memory(id=name, kind=FACT, text=f"heron {name}") for name in names])

        async def work(seed: int) -> None:
            chosen = random.Random(seed)
            for turn in range(12):
                name = chosen.choice(names)
                text = f"heron {name} by {seed} at {turn}"
                expires = chosen.choice([None, Timestamp(seconds=1)])
                update = pb.UpdateMemoryRequest(memory=record_pb2.Memory(id=name, text=text, expires_at=expires))
                update.update_mask.paths.extend(["text", "expires_at"])
                again = record_pb2.Memory(id=name, kind=FACT, text=text)
                gone = pb.ForgetMemoryRequest(memory_id=name, purge=turn % 2 == 0)
                try:
                    match chosen.randrange(4):
                        case 0:
                            await ann.call("ForgetMemory", gone)
                        case 1:
                            await ann.remember(again, f"pond {seed}.{turn}")
                        case 2:
                            await ann.append(f"talk-{seed}", text)
                        case _:
                            await ann.call("UpdateMemory", update)
                except grpc.aio.AioRpcError as error:
                    refusals.add(error.code())

        await asyncio.gather(*map(work, range(6)))
        # Somebody else was first; nothing else went wrong.
        assert refusals <= {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS}
        await ann.indexed()
        await bench.sweep.work()
        await bench.statistics_are_exact(ann.tenant)

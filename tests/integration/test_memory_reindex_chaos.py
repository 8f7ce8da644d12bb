"""A replica is killed, again and again, while it rebuilds a space that is read and written through another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import asyncpg
from tests.fakes.memory_service import Caller, MemoryProcess, running
from tests.fakes.patience import patient_postgres

from janus_api.common.v1 import operation_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import space_pb2
from janus_kit.rpc_errors import from_status
from janus_kit.settings import RedisSettings
from janus_memory.settings import MemorySettings
from janus_memory.verify import verify

PHASES = ["copying", "catching up", "comparing", "switching", "removing the old vectors"]
PGVECTOR, CHROMA = space_pb2.VECTOR_BACKEND_PGVECTOR, space_pb2.VECTOR_BACKEND_CHROMA


@asynccontextmanager
async def used(ann: Caller) -> AsyncIterator[list[str]]:
    """A writer and a reader that never rest, and fail at the first error or empty answer; the texts acknowledged."""
    written: list[str] = []

    async def write() -> None:
        while True:
            text = f"the crane number {len(written)} arrives"
            done = await ann.remember(text)
            written.append(text)
            if len(written) % 5 == 0:
                await ann.call("ForgetMemory", pb.ForgetMemoryRequest(memory_id=done.memory_ids[0]))
                written[-1] = ""
            await asyncio.sleep(0.05)

    async def read() -> None:
        while True:
            answer = await ann.recall("the heron stands in the pond", limit=5)
            assert answer.hits
            assert not answer.degraded
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(write()), asyncio.create_task(read())]
    try:
        yield written
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def killed_in(
    phases: Sequence[str], ann: Caller, operation_id: str, victim: MemoryProcess, owner: asyncpg.Connection
) -> operation_pb2.Operation:
    """Kill the worker once in each phase, or as soon after it as that is seen; the operation at its end."""
    left = list(phases)
    request = pb.WatchOperationRequest(operation_id=operation_id)
    async for event in ann.stub.WatchOperation(request, metadata=ann.metadata, timeout=60):
        if event.WhichOneof("event") == "ended":
            assert not left, f"never killed in {left}"
            ended: operation_pb2.Operation = event.ended
            return ended
        phase = event.progress.phase
        if left and phase in PHASES and PHASES.index(phase) >= PHASES.index(left[0]):
            del left[0]
            victim.kill()
            # The lease would run out by itself, in five seconds, and later each time.
            await owner.execute(
                "UPDATE memory.operation SET leased_until = now() - interval '1 minute' WHERE id = $1", operation_id
            )
            await victim.start()
    raise AssertionError("the stream ended without an end")


async def test_a_rebuild_survives_kills_and_nobody_notices(postgres_url: str, redis_url: str, chroma_url: str) -> None:
    async with AsyncExitStack() as stack:
        settings = {"chroma_url": chroma_url, "retire_after_s": 2.0}
        memory = await stack.enter_async_context(running(postgres_url, redis_url, operations=False, **settings))
        owner = await asyncpg.connect(postgres_url)
        stack.push_async_callback(owner.close)
        victim = MemoryProcess(postgres_url, redis_url, indexer=False, summariser=False, **settings)
        stack.push_async_callback(victim.stop)
        await victim.start()
        ann = memory.caller()
        await ann.call("PutSpace", pb.PutSpaceRequest(space=space_pb2.Space(name="default", backend=PGVECTOR)))
        for thread in range(3):
            await ann.append(f"t{thread}", *[f"turn {n} of the bridge" for n in range(99)], "the heron in the pond")
        await ann.indexed()
        async with used(ann) as written:
            operation = (await ann.call("Reindex", pb.ReindexRequest(backend=CHROMA))).operation
            ended = await killed_in(
                ["copying", "comparing", "removing the old vectors"], ann, operation.id, victim, owner
            )
        assert ended.state == operation_pb2.OPERATION_STATE_SUCCEEDED, from_status(ended.error)
        await ann.indexed()
        space = (await ann.call("GetSpace", pb.GetSpaceRequest())).space
        assert space.backend == CHROMA
        kept = [text for text in written if text]
        assert kept
        found = await owner.fetch(
            "SELECT text FROM memory.memory WHERE tenant = $1 AND superseded_at IS NULL", ann.tenant
        )
        assert {*kept} <= {row["text"] for row in found}
        stores = MemorySettings(chroma_url=chroma_url)
        compared = verify(
            stores,
            postgres=patient_postgres(postgres_url),
            redis=RedisSettings(url=redis_url),
            tenant=ann.tenant,
            repair=False,
        )
        [findings] = [each async for each in compared]
        assert (findings.wrong, findings.away) == (0, ())
        for table in ("generation", "rebuild", "vector"):
            assert await owner.fetchval(f"SELECT count(*) FROM memory.{table} WHERE tenant = $1", ann.tenant) == 0

"""Memory without Redis, Chroma or Postgres: degraded or down, and back without a restart."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.fakes.memory_service import Memory, eventually, refused, running, said, texts
from tests.fakes.tcp_proxy import TcpProxy

from janus_api.common.v1 import status_service_pb2 as status_pb
from janus_api.common.v1 import status_service_pb2_grpc as status_rpc
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import recall_pb2, scope_pb2, space_pb2
from janus_kit.channel import connect
from janus_kit.errors import Unavailable
from janus_memory.indexer import APPLY_TIMEOUT_S

RYW = scope_pb2.CONSISTENCY_READ_YOUR_WRITES
SERVICE = "janus.memory.v1.MemoryService"


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[TcpProxy]:
    proxy = TcpProxy.to(postgres_url)
    yield proxy
    proxy.close()


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


class SilentServer:
    """Accepts connections and never answers."""

    def __init__(self) -> None:
        # The system accepts for it, into the backlog.
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def silent() -> Iterator[SilentServer]:
    server = SilentServer()
    yield server
    server.close()


async def health(memory: Memory) -> int:
    async with connect(memory.host.address or "") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
    return int(answer.status)


async def part(memory: Memory, name: str) -> Any:
    async with connect(memory.host.address or "") as channel:
        answer = await status_rpc.StatusServiceStub(channel).GetStatus(status_pb.GetStatusRequest())
    service = next(each for each in answer.services if each.service == SERVICE)
    return next(each for each in service.parts if each.name == name)


async def test_without_redis_writes_are_acknowledged_and_windows_come_from_postgres(
    postgres_url: str, redis_url: str, redis: TcpProxy
) -> None:
    async with running(postgres_url, redis.through(redis_url)) as memory:
        ann = memory.caller()
        await ann.append("talk", "one", "two")
        assert not (await ann.window("talk")).degraded
        redis.cut()
        done = await ann.append("talk", "three")
        assert list(done.degraded) == ["redis"]
        window = await ann.window("talk")
        assert texts(window) == ["one", "two", "three"]
        assert list(window.degraded) == ["redis"]

        async def noticed() -> bool:
            return not (await part(memory, "redis")).available

        await eventually(noticed)
        assert await health(memory) == health_pb2.HealthCheckResponse.SERVING
        assert "postgres" in (await part(memory, "redis")).detail
        redis.mend()

        async def back() -> bool:
            return not (await ann.window("talk")).degraded

        await eventually(back)
        await ann.append("talk", "four")
        assert texts(await ann.window("talk")) == ["one", "two", "three", "four"]


async def test_a_cache_that_missed_appends_is_never_believed(
    postgres_url: str, redis_url: str, redis: TcpProxy
) -> None:
    async with (
        running(postgres_url, redis.through(redis_url)) as cut_off,
        running(postgres_url, redis_url) as healthy,
    ):
        ann = healthy.caller()
        same = cut_off.caller(ann.tenant)
        await ann.append("talk", "one", "two")
        redis.cut()
        # This replica cannot tell Redis; the other one still reads it.
        await same.append("talk", "three")
        assert texts(await ann.window("talk")) == ["one", "two", "three"]
        await same.append("talk", "four")
        await ann.append("talk", "five")
        window = await ann.window("talk")
        assert texts(window) == ["one", "two", "three", "four", "five"]
        assert not window.degraded
        assert texts(await ann.window("talk", max_messages=2)) == ["four", "five"]


async def test_a_lost_cache_is_rebuilt(postgres_url: str, redis_url: str) -> None:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(redis_url)
    async with running(postgres_url, redis_url) as memory:
        ann = memory.caller()
        await ann.append("talk", "one", "two")
        await client.flushdb()
        window = await ann.window("talk")
        assert (texts(window), list(window.degraded)) == (["one", "two"], [])
        assert await client.keys("*") != []
        for key in await client.keys("*"):
            await client.zadd(key, {b"rubbish": 2, b"\x01\x00": 1})
        assert texts(await ann.window("talk")) == ["one", "two"]
    await client.aclose()


async def test_without_chroma_recall_is_lexical_and_catches_up(
    postgres_url: str, redis_url: str, chroma_url: str, chroma: TcpProxy
) -> None:
    address = chroma.through(chroma_url)
    async with running(postgres_url, redis_url, chroma_url=address, chroma_timeout_s=2) as memory:
        ann = memory.caller()
        space = space_pb2.Space(name="s", backend=space_pb2.VECTOR_BACKEND_CHROMA)
        await ann.call("PutSpace", pb.PutSpaceRequest(space=space))
        await ann.remember("the heron", scope={"space": "s"}, consistency=RYW)
        chroma.cut()
        await ann.append("talk", said("the pond"), scope={"space": "s"})
        answer = await ann.recall("heron in the pond", scope={"space": "s"})
        assert list(answer.degraded) == ["chroma"]
        assert set(texts(answer)) == {"the heron", "the pond"}
        done = await ann.remember("the reeds", scope={"space": "s"})
        assert "chroma" in done.degraded
        assert not done.searchable

        async def noticed() -> bool:
            return not (await part(memory, "chroma")).available

        await eventually(noticed)
        assert await health(memory) == health_pb2.HealthCheckResponse.SERVING
        chroma.mend()
        await ann.indexed("s")
        answer = await ann.recall("ponds reedss", scope={"space": "s"}, explain=True)
        assert not answer.degraded
        found = dict(zip(texts(answer), answer.hits, strict=True))
        for text in ("the pond", "the reeds"):
            dense = next(detail for detail in found[text].details if detail.leg == "dense_turn")
            assert dense.raw > 0.1, text


async def test_a_chroma_that_never_answers_does_not_cost_a_recall_its_deadline(
    postgres_url: str, redis_url: str, silent: SilentServer
) -> None:
    async with running(postgres_url, redis_url, chroma_url=silent.url) as memory:
        ann = memory.caller()
        space = space_pb2.Space(name="s", backend=space_pb2.VECTOR_BACKEND_CHROMA)
        await ann.call("PutSpace", pb.PutSpaceRequest(space=space))
        await ann.append("talk", said("the pond"), scope={"space": "s"})
        request = recall_pb2.RecallRequest(scope=scope_pb2.Scope(space="s"), query="pond")
        for _ in range(3):
            answer = await ann.stub.Recall(request, metadata=ann.metadata, timeout=1)
            assert (texts(answer), list(answer.degraded)) == (["the pond"], ["chroma"])


async def test_without_postgres_calls_are_unavailable_and_say_which_part(
    postgres_url: str, redis_url: str, postgres: TcpProxy
) -> None:
    # Migrated over a straight connection first.
    async with running(postgres_url, redis_url):
        pass
    async with running(postgres.through(postgres_url), redis_url) as memory:
        ann = memory.caller()
        await ann.append("talk", "one")
        postgres.cut()
        for call in (
            ann.append("talk", "two"),
            ann.remember("x"),
            ann.recall("x"),
            ann.window("talk"),
            ann.call("GetSpace", pb.GetSpaceRequest(name="default")),
        ):
            error = await refused(call)
            assert isinstance(error, Unavailable)
            assert error.metadata["part"] == "postgres"
            assert error.retry_after is not None

        async def down() -> bool:
            return await health(memory) == health_pb2.HealthCheckResponse.NOT_SERVING

        await eventually(down)
        postgres.mend()

        async def up() -> bool:
            return await health(memory) == health_pb2.HealthCheckResponse.SERVING

        await eventually(up)
        done = await ann.append("talk", "two", consistency=RYW)
        assert (done.last_position, done.searchable) == (2, True)


async def test_a_chroma_that_hangs_holds_up_no_space_of_postgres(
    postgres_url: str, redis_url: str, silent: SilentServer
) -> None:
    async with running(postgres_url, redis_url, chroma_url=silent.url, chroma_timeout_s=30) as memory:
        hung = [memory.caller() for _ in range(8)]
        for caller in hung:
            space = space_pb2.Space(name="s", backend=space_pb2.VECTOR_BACKEND_CHROMA)
            await caller.call("PutSpace", pb.PutSpaceRequest(space=space))
            await caller.append("talk", "the heron", scope={"space": "s"})
        began = time.monotonic()
        for _ in range(8):
            done = await memory.caller().append("talk", "the pond", consistency=RYW)
            assert done.searchable
        # One batch of a Chroma space is not given up before.
        assert time.monotonic() - began < APPLY_TIMEOUT_S
        for caller in hung:
            stored = await caller.call("GetSpace", pb.GetSpaceRequest(name="s"))
            assert stored.space.index_backlog == 1


async def test_nothing_acknowledged_is_lost_when_everything_dies(own_stack: Any) -> None:
    addresses = own_stack.addresses
    kept: list[str] = []
    async with running(addresses.postgres_url, addresses.redis_url, chroma_url=addresses.chroma_url) as memory:
        ann = memory.caller()
        space = space_pb2.Space(name="s", backend=space_pb2.VECTOR_BACKEND_CHROMA)
        await ann.call("PutSpace", pb.PutSpaceRequest(space=space))
        for i in range(5):
            kept.append(f"turn {i}")
            await ann.append("talk", kept[-1], scope={"space": "s"}, request_id=f"r{i}")
        killed = {name: own_stack.kill(name) for name in ("redis", "chroma", "postgres")}

        async def served() -> bool:
            # A Postgres whose main process is dead answers for a moment more.
            now = own_stack.stack.process_ids
            if any(now[name] in (None, pid) for name, pid in killed.items()):
                return False
            try:
                again = await ann.append("talk", "turn 4", scope={"space": "s"}, request_id="r4")
            except grpc.aio.AioRpcError as error:
                return error.code() is not grpc.StatusCode.UNAVAILABLE
            return bool(again.last_position == 5)

        await eventually(served, 40)
        assert texts(await ann.window("talk", scope={"space": "s"})) == kept

        async def whole() -> bool:
            answer = await ann.recall("turn", scope={"space": "s"})
            return not answer.degraded and set(texts(answer)) == set(kept)

        await eventually(whole, 40)

"""The real memory service on a port of its own, for tests; nothing in it is fake."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc
import pytest
from tests.fakes.patience import patient_postgres
from tests.fakes.service_process import ServiceProcess

from janus_api.content.v1 import message_pb2 as content
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import memory_service_pb2_grpc as rpc
from janus_api.memory.v1 import recall_pb2, record_pb2, scope_pb2
from janus_kit.channel import connect
from janus_kit.errors import JanusError
from janus_kit.migrations import migrate
from janus_kit.rpc_errors import from_rpc
from janus_kit.server import Host, serve
from janus_kit.settings import RedisSettings, ServerSettings
from janus_memory.app import mount
from janus_memory.settings import MemorySettings


@dataclass
class Caller:
    """A client of one tenant, with short ways to say common things."""

    stub: Any
    tenant: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("janus-tenant", self.tenant),)

    async def append(self, thread: str, *turns: record_pb2.Turn | str, **fields: Any) -> pb.AppendMessagesResponse:
        given = [turn if isinstance(turn, record_pb2.Turn) else said(turn) for turn in turns]
        where = scope_pb2.Scope(thread=thread, **fields.pop("scope", {}))
        request = pb.AppendMessagesRequest(scope=where, turns=given, **fields)
        return await self.stub.AppendMessages(request, metadata=self.metadata, timeout=20)

    async def window(self, thread: str, **fields: Any) -> pb.GetWindowResponse:
        where = scope_pb2.Scope(thread=thread, **fields.pop("scope", {}))
        request = pb.GetWindowRequest(scope=where, **fields)
        return await self.stub.GetWindow(request, metadata=self.metadata, timeout=20)

    async def remember(self, *memories: record_pb2.Memory | str, **fields: Any) -> pb.RememberResponse:
        given = [
            memory
            if isinstance(memory, record_pb2.Memory)
            else record_pb2.Memory(kind=record_pb2.MEMORY_KIND_FACT, text=memory)
            for memory in memories
        ]
        where = scope_pb2.Scope(**fields.pop("scope", {}))
        request = pb.RememberRequest(scope=where, memories=given, **fields)
        return await self.stub.Remember(request, metadata=self.metadata, timeout=20)

    async def recall(self, query: str, **fields: Any) -> recall_pb2.RecallResponse:
        where = scope_pb2.Scope(**fields.pop("scope", {}))
        request = recall_pb2.RecallRequest(scope=where, query=query, **fields)
        return await self.stub.Recall(request, metadata=self.metadata, timeout=20)

    async def call(self, method: str, request: Any) -> Any:
        return await getattr(self.stub, method)(request, metadata=self.metadata, timeout=20)

    async def indexed(self, space: str = "default") -> None:
        """Wait until nothing of the space is left to index."""

        async def done() -> bool:
            answer = await self.call("GetSpace", pb.GetSpaceRequest(name=space))
            return bool(answer.space.index_backlog == 0)

        await eventually(done)


@dataclass
class Memory:
    """The service while it runs."""

    host: Host
    stub: Any

    def caller(self, tenant: str | None = None) -> Caller:
        """A client of a tenant; a new tenant unless told."""
        return Caller(self.stub, tenant or f"t{uuid.uuid4().hex[:12]}")


@asynccontextmanager
async def running(postgres_url: str, redis_url: str, **settings: Any) -> AsyncIterator[Memory]:
    """Migrate the database and serve memory over it."""
    postgres = patient_postgres(postgres_url)
    await migrate(postgres, ["janus_memory"])
    options = MemorySettings(**{"indexer_poll_s": 0.2, **settings})
    async with (
        mount(options, postgres=postgres, redis=RedisSettings(url=redis_url)) as mounted,
        serve(
            [mounted], ServerSettings(listen="127.0.0.1:0", drain_s=0.2, lame_duck_s=0, health_interval_s=0.2)
        ) as host,
    ):
        channel = connect(host.address or "")
        try:
            # A first attempt that a busy machine answers late would fail the test's first call.
            await asyncio.wait_for(channel.channel_ready(), 20)
            yield Memory(host, rpc.MemoryServiceStub(channel))
        finally:
            await channel.close()


class MemoryProcess(ServiceProcess):
    """``python -m janus_memory`` and clients of it."""

    def __init__(self, postgres_url: str, redis_url: str, **settings: Any) -> None:
        environ = {f"JANUS_MEMORY__{name.upper()}": str(value) for name, value in settings.items()}
        super().__init__("janus_memory", postgres_url, redis_url, {"JANUS_SERVER__DRAIN_S": "1", **environ})

    async def answer(self) -> Any:
        await self.caller("probe").call("ListSpaces", pb.ListSpacesRequest())

    def caller(self, tenant: str) -> Caller:
        return Caller(rpc.MemoryServiceStub(self._channel), tenant)


def said(text: str, name: str = "", at: datetime | None = None, id: str = "") -> record_pb2.Turn:  # noqa: A002
    """A user's turn."""
    turn = record_pb2.Turn(
        message=content.Message(role=content.ROLE_USER, name=name, id=id, parts=[content.Part(text=text)])
    )
    if at is not None:
        turn.occurred_at.FromDatetime(at)
    return turn


def texts(answer: pb.GetWindowResponse | recall_pb2.RecallResponse) -> list[str]:
    """What the turns or memories of an answer say."""
    if isinstance(answer, pb.GetWindowResponse):
        return [turn.message.parts[0].text for turn in answer.turns]
    return [
        hit.turn.message.parts[0].text if hit.WhichOneof("record") == "turn" else hit.memory.text for hit in answer.hits
    ]


async def refused(call: Awaitable[Any]) -> JanusError:
    """The typed error that a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc(raised.value)


async def eventually(check: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> None:
    """Wait until something holds; for what happens in the background."""
    async with asyncio.timeout(within_s):
        while not await check():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.02)

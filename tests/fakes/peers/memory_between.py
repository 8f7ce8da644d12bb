"""The real memory service behind one that holds writes of turns: before they are done, or before they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from tests.fakes.peers.inference_peer import PeerHealth

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import memory_service_pb2_grpc as rpc
from janus_api.memory.v1 import recall_pb2


class MemoryBetween(rpc.MemoryServiceServicer):
    """Passes calls on. A write that is held is done in the end, also when nobody waits for it any more."""

    def __init__(self, stub: Any) -> None:
        self.target = ""
        self.arrived = asyncio.Event()
        self.may_do = asyncio.Event()
        self.may_do.set()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.writing: set[asyncio.Task[Any]] = set()
        self._stub = stub

    async def AppendMessages(self, request: pb.AppendMessagesRequest, context: Any) -> pb.AppendMessagesResponse:
        task = asyncio.create_task(self._append(request, context.invocation_metadata()))
        self.writing.add(task)
        self.arrived.set()
        return await asyncio.shield(task)

    async def _append(self, request: pb.AppendMessagesRequest, metadata: Any) -> pb.AppendMessagesResponse:
        await self.may_do.wait()
        answer = await self._stub.AppendMessages(request, metadata=_own(metadata), timeout=20)
        await self.may_answer.wait()
        return answer

    async def ForgetMessages(self, request: pb.ForgetMessagesRequest, context: Any) -> pb.ForgetMessagesResponse:
        return await self._stub.ForgetMessages(request, metadata=_own(context.invocation_metadata()), timeout=20)

    async def Recall(self, request: recall_pb2.RecallRequest, context: Any) -> recall_pb2.RecallResponse:
        return await self._stub.Recall(request, metadata=_own(context.invocation_metadata()), timeout=20)


def _own(metadata: Any) -> list[tuple[str, str]]:
    return [(key, value) for key, value in metadata if key.startswith("janus-")]


@asynccontextmanager
async def memory_between(stub: Any) -> AsyncIterator[MemoryBetween]:
    """Serve it before the real one; `target` says where."""
    between = MemoryBetween(stub)
    server = grpc.aio.server()
    rpc.add_MemoryServiceServicer_to_server(between, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(PeerHealth(), server)
    between.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield between
    finally:
        between.may_do.set()
        between.may_answer.set()
        await asyncio.gather(*between.writing, return_exceptions=True)
        await server.stop(0)

"""A memory service whose searches the test answers itself, when it wants to.

It is another process boundary by contract (MemoryService over gRPC): a run can
be held in the middle of a tool for as long as a test likes.
"""

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
from janus_api.memory.v1 import recall_pb2, record_pb2, space_pb2


class Search:
    """One Recall, waiting for the test."""

    def __init__(self, request: recall_pb2.RecallRequest) -> None:
        self.request = request
        self.closed = asyncio.Event()
        self._answer: asyncio.Future[recall_pb2.RecallResponse] = asyncio.get_running_loop().create_future()

    def find(self, *texts: str) -> None:
        """Answer with facts."""
        response = recall_pb2.RecallResponse()
        for place, text in enumerate(texts):
            fact = record_pb2.Memory(id=f"mem_{place}", kind=record_pb2.MEMORY_KIND_FACT, text=text)
            response.hits.add(memory=fact)
        self._answer.set_result(response)

    async def answer(self) -> recall_pb2.RecallResponse:
        return await self._answer


class MemoryPeer(rpc.MemoryServiceServicer):
    """Hands every search to the test; remembers once a request id; notes what is appended, and refuses the first."""

    def __init__(self) -> None:
        self.target = ""
        self.appended: list[pb.AppendMessagesRequest] = []
        self.refuses = 0
        """So many of what is appended."""
        self.remembered: dict[str, pb.RememberRequest] = {}
        self._arrived: asyncio.Queue[Search] = asyncio.Queue()

    async def search(self) -> Search:
        """The next search that arrives."""
        async with asyncio.timeout(15):
            return await self._arrived.get()

    @property
    def others_wait(self) -> bool:
        """Whether more searches are here than the test has taken."""
        return not self._arrived.empty()

    async def GetSpace(self, request: pb.GetSpaceRequest, context: Any) -> pb.GetSpaceResponse:
        """Every space is there."""
        return pb.GetSpaceResponse(space=space_pb2.Space(name=request.name))

    async def Recall(self, request: recall_pb2.RecallRequest, context: Any) -> recall_pb2.RecallResponse:
        search = Search(request)
        self._arrived.put_nowait(search)
        try:
            return await search.answer()
        finally:
            search.closed.set()

    async def AppendMessages(self, request: pb.AppendMessagesRequest, context: Any) -> pb.AppendMessagesResponse:
        self.appended.append(request)
        if len(self.appended) <= self.refuses:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return pb.AppendMessagesResponse()

    async def Remember(self, request: pb.RememberRequest, context: Any) -> pb.RememberResponse:
        self.remembered[request.request_id] = request
        return pb.RememberResponse(memory_ids=["mem_new"], consistency_token="t")


@asynccontextmanager
async def memory_peer() -> AsyncIterator[MemoryPeer]:
    """Serve a peer; `target` says where."""
    peer = MemoryPeer()
    server = grpc.aio.server()
    rpc.add_MemoryServiceServicer_to_server(peer, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(PeerHealth(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    peer.target = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield peer
    finally:
        await server.stop(0)

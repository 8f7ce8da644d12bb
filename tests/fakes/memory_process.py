"""The memory service as a process of its own, which can be killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fakes.memory_service import Caller
from tests.fakes.service_process import ServiceProcess

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import memory_service_pb2_grpc as rpc


class MemoryProcess(ServiceProcess):
    """``python -m janus_memory`` and a client of it."""

    def __init__(self, postgres_url: str, redis_url: str, chroma_url: str, log: Path | None = None) -> None:
        super().__init__(
            "janus_memory",
            postgres_url,
            redis_url,
            {"JANUS_CHROMA_URL": chroma_url, "JANUS_MEMORY__INDEXER_POLL_S": "0.2"},
            log,
        )

    def caller(self, tenant: str) -> Caller:
        """A client of a tenant, of the process as it is now."""
        assert self._channel is not None
        return Caller(rpc.MemoryServiceStub(self._channel), tenant)

    async def answer(self) -> Any:
        return await self.caller("probe").call("GetSpace", pb.GetSpaceRequest(name="default"))

"""Calls to the memory service."""

from __future__ import annotations

from collections.abc import Iterator

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2
from janus_app import calls
from janus_app.client import Mesh


class Calls(calls.Calls):
    """The memory service of a mesh."""

    def __init__(self, mesh: Mesh, tenant: str, timeout: float) -> None:
        super().__init__(mesh.memory, tenant, timeout)

    def history(self, memory_id: str) -> Iterator[record_pb2.MemoryVersion]:
        """All versions, page by page."""
        token = ""
        while True:
            page = self.unary("GetHistory", pb.GetHistoryRequest(memory_id=memory_id, page_token=token))
            yield from page.versions
            token = page.next_page_token
            if not token:
                return

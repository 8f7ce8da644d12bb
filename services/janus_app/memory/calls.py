"""Calls to the memory service as one tenant, each with a deadline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2
from janus_app.client import Mesh


class Calls:
    """The stub with what every call carries."""

    def __init__(self, mesh: Mesh, tenant: str, timeout: float) -> None:
        self._stub: Any = mesh.memory
        self._metadata = [("janus-tenant", tenant)] if tenant else []
        self._timeout = timeout

    def unary(self, method: str, request: Any) -> Any:
        """An answer. Raises grpc.RpcError."""
        return getattr(self._stub, method)(request, timeout=self._timeout, metadata=self._metadata)

    def stream(self, method: str, request: Any) -> Any:
        """A call whose answers are iterated."""
        return getattr(self._stub, method)(request, timeout=self._timeout, metadata=self._metadata)

    def send(self, method: str, requests: Iterable[Any]) -> Any:
        """The answer to a stream of requests."""
        return getattr(self._stub, method)(iter(requests), timeout=self._timeout, metadata=self._metadata)

    def history(self, memory_id: str) -> Iterator[record_pb2.MemoryVersion]:
        """All versions, page by page."""
        token = ""
        while True:
            page = self.unary("GetHistory", pb.GetHistoryRequest(memory_id=memory_id, page_token=token))
            yield from page.versions
            token = page.next_page_token
            if not token:
                return

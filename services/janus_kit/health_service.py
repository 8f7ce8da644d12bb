"""``grpc.health.v1.Health``: the monitor's states in the words of load balancers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc as rpc

from janus_kit.errors import NotFound
from janus_kit.health import HealthMonitor, State

SERVICE = "grpc.health.v1.Health"


class HealthServicer(rpc.HealthServicer):  # type: ignore[misc]  # the package has no types
    """Degraded is SERVING: the service does its job, only poorer."""

    def __init__(self, monitor: HealthMonitor) -> None:
        self._monitor = monitor

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not self._monitor.knows(request.service):
            raise NotFound("service", request.service)
        # The others make it poorer, and may be slow to say so.
        await self._monitor.refresh(request.service, required=True)
        return pb.HealthCheckResponse(status=self._status(request.service))

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The state now and after every change; ends when the server drains."""
        changed = asyncio.Event()
        stop_listening = self._monitor.on_change(changed.set)
        try:
            last = None
            while True:
                changed.clear()
                status = self._status(request.service)
                if status != last:
                    yield pb.HealthCheckResponse(status=status)
                    last = status
                if self._monitor.is_draining:
                    return
                await changed.wait()
        finally:
            stop_listening()

    def _status(self, service: str) -> int:
        if not self._monitor.knows(service):
            return int(pb.HealthCheckResponse.SERVICE_UNKNOWN)
        if self._monitor.state(service) is State.NOT_SERVING:
            return int(pb.HealthCheckResponse.NOT_SERVING)
        return int(pb.HealthCheckResponse.SERVING)


def register(server: grpc.aio.Server, monitor: HealthMonitor) -> None:
    """Put the servicer on a server."""
    rpc.add_HealthServicer_to_server(HealthServicer(monitor), server)

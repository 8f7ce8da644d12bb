"""Liveness and readiness, from what the mesh itself says about its dependencies."""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from fastapi import APIRouter, Request
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from janus_api.common.v1 import status_service_pb2 as pb
from janus_api.common.v1 import status_service_pb2_grpc as rpc
from janus_kit.rpc_errors import from_rpc

INFERENCE = "janus.inference.v1.InferenceService"

READY, DEGRADED, NOT_READY = "ready", "degraded", "not_ready"
_STATES = {
    pb.SERVICE_STATE_SERVING: READY,
    pb.SERVICE_STATE_DEGRADED: DEGRADED,
    pb.SERVICE_STATE_NOT_SERVING: NOT_READY,
}
_WORST = (READY, DEGRADED, NOT_READY)


class PartReport(BaseModel):
    """A dependency of a service."""

    name: str
    available: bool
    required: bool
    detail: str = Field(description="Why it is away, and what the service does meanwhile.")


class ServiceReport(BaseModel):
    """A service of the mesh."""

    service: str
    status: str
    parts: list[PartReport]


class TargetReport(BaseModel):
    """A process of the mesh."""

    target: str
    status: str
    required: bool = Field(description="Whether the edge is of no use without it.")
    detail: str
    services: list[ServiceReport]


class Readiness(BaseModel):
    """Whether requests can be answered: `ready`, `degraded` (both 200) or `not_ready` (503)."""

    status: str
    targets: list[TargetReport]


class Liveness(BaseModel):
    """The process turns."""

    status: str


class Mesh:
    """The processes that the edge looks at; the first target is the one it calls."""

    def __init__(self, target: str, channels: Mapping[str, grpc.aio.Channel], timeout_s: float) -> None:
        self._target = target
        self._channels = channels
        self._timeout_s = timeout_s

    async def readiness(self) -> Readiness:
        """Ask every process; never raises for one that is away."""
        reports = await asyncio.gather(*(self._report(target) for target in self._channels))
        overall = READY
        for report in reports:
            # What no route of the edge calls can make it poorer, not useless.
            counted = report.status if report.required else min(report.status, DEGRADED, key=_WORST.index)
            overall = max(overall, counted, key=_WORST.index)
        return Readiness(status=overall, targets=reports)

    async def _report(self, target: str) -> TargetReport:
        required = target == self._target
        channel = self._channels[target]
        try:
            services, healthy = await asyncio.gather(
                self._services(channel), self._serves_inference(channel, asked=required)
            )
        except grpc.aio.AioRpcError as error:
            return TargetReport(
                target=target,
                status=NOT_READY,
                required=required,
                detail=from_rpc(error, part="the process").message,
                services=[],
            )
        status = max((service.status for service in services), default=READY, key=_WORST.index)
        if not healthy:
            status = NOT_READY
        detail = "" if healthy else f"{INFERENCE} is not serving"
        return TargetReport(target=target, status=status, required=required, detail=detail, services=services)

    async def _services(self, channel: grpc.aio.Channel) -> list[ServiceReport]:
        stub: Any = rpc.StatusServiceStub(channel)
        answer: pb.GetStatusResponse = await stub.GetStatus(pb.GetStatusRequest(), timeout=self._timeout_s)
        return [
            ServiceReport(
                service=service.service,
                status=_STATES.get(service.state, NOT_READY),
                parts=[
                    PartReport(
                        name=part.name,
                        available=part.available,
                        required=part.required,
                        detail=part.detail,
                    )
                    for part in service.parts
                ],
            )
            for service in answer.services
        ]

    async def _serves_inference(self, channel: grpc.aio.Channel, *, asked: bool) -> bool:
        """What load balancers go by: it also knows that a process is draining."""
        if not asked:
            return True
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=INFERENCE), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


router = APIRouter(tags=["Operations"])


@router.get("/livez", summary="Whether the process turns", response_model=Liveness)
async def livez() -> Response:
    """Always 200 while the event loop turns. Says nothing about dependencies."""
    return JSONResponse({"status": "live"})


@router.get(
    "/readyz",
    summary="Whether requests can be answered",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "A required part is away, or the edge is draining."}},
)
async def readyz(request: Request) -> Response:
    """Asks the mesh, which checks its real dependencies.

    200 with `ready`, or `degraded` when a part is away that the mesh can do without.
    """
    if request.app.state.draining:
        return JSONResponse({"status": NOT_READY, "targets": []}, 503)
    mesh: Mesh = request.app.state.mesh
    readiness = await mesh.readiness()
    return JSONResponse(readiness.model_dump(), 503 if readiness.status == NOT_READY else 200)

"""``janus.common.v1.StatusService``: the monitor's findings in full, for people."""

from datetime import datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from janus_api.common.v1 import status_service_pb2 as pb
from janus_api.common.v1 import status_service_pb2_grpc as rpc
from janus_kit.health import HealthMonitor, PartReport, State

SERVICE = "janus.common.v1.StatusService"

_STATES = {
    State.SERVING: pb.SERVICE_STATE_SERVING,
    State.DEGRADED: pb.SERVICE_STATE_DEGRADED,
    State.NOT_SERVING: pb.SERVICE_STATE_NOT_SERVING,
}


class StatusServicer(rpc.StatusServiceServicer):
    """gRPC face of the health monitor."""

    def __init__(self, monitor: HealthMonitor, *, version: str, started_at: datetime) -> None:
        self._monitor = monitor
        self._version = version
        self._started_at = Timestamp()
        self._started_at.FromDatetime(started_at)

    async def GetStatus(  # noqa: N802
        self, request: pb.GetStatusRequest, context: Any
    ) -> pb.GetStatusResponse:
        await self._monitor.refresh()
        return pb.GetStatusResponse(
            version=self._version,
            started_at=self._started_at,
            services=[
                pb.ServiceStatus(
                    service=service,
                    state=_STATES[self._monitor.state(service)],
                    parts=[_part_status(report) for report in self._monitor.reports(service)],
                )
                for service in self._monitor.services
                if service != SERVICE
            ],
        )


def _part_status(report: PartReport) -> pb.PartStatus:
    latency = Duration()
    latency.FromNanoseconds(round(report.seconds * 1e9))
    return pb.PartStatus(
        name=report.part.name,
        available=report.available,
        required=report.part.required,
        detail=report.detail,
        latency=latency,
    )

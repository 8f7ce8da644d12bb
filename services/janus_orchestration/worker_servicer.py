"""gRPC face of tool workers: decode, delegate, encode. No decisions here."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from janus_api.tools.v1 import tool_worker_service_pb2 as pb
from janus_api.tools.v1 import tool_worker_service_pb2_grpc as rpc
from janus_kit.auth.identity import current_identity
from janus_kit.errors import DeadlineExceeded, InvalidArgument, JanusError
from janus_orchestration.dispatching import Answer, Report
from janus_orchestration.wire import workers as wire
from janus_orchestration.worker_session import Session
from janus_orchestration.worker_sessions import WorkerSessions

SERVICE = "janus.tools.v1.ToolWorkerService"
Context = grpc.aio.ServicerContext[Any, Any]

_FIRST_MESSAGE_S = 10.0


class ToolWorkerServicer(rpc.ToolWorkerServiceServicer):
    """Workers that dial in."""

    def __init__(self, sessions: WorkerSessions) -> None:
        self._sessions = sessions

    async def Connect(
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: Context
    ) -> AsyncIterator[pb.ConnectResponse]:
        registration = wire.registration_from(await _first(request_iterator))
        limits = self._sessions.limits
        encoder = wire.Encoder(limits.heartbeat_s, limits.lease_s)
        async with self._sessions.connected(current_identity().tenant, registration) as session:
            reading = asyncio.create_task(self._read(request_iterator, session), name=f"worker-reads-{session.id}")
            try:
                async with aclosing(session.told()) as telling:  # type: ignore[type-var]
                    async for told in telling:
                        yield encoder.told_to(told)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[pb.ConnectRequest], session: Session) -> None:
        """What the worker says, until it says no more."""
        try:
            async for message in requests:
                session.heard()
                await self._hear(wire.said_from(message), session)
                session.heard()
        except JanusError as error:
            session.end(error)
        finally:
            session.end(None)

    async def _hear(self, said: wire.Said, session: Session) -> None:
        match said:
            case Answer():
                await session.complete(said)
            case Report():
                session.report(said)
            case wire.Heartbeat(calls):
                await self._sessions.heartbeat(session, calls)
            case wire.MoreCredits(more):
                session.add_credits(more)
            case wire.Draining():
                await self._sessions.stop_calls(session, None)


async def _first(requests: AsyncIterator[pb.ConnectRequest]) -> pb.ConnectRequest:
    try:
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            async for message in requests:
                return message
    except TimeoutError:
        raise DeadlineExceeded("register", "the worker did not register in time") from None
    raise InvalidArgument("register", "must be the first message")

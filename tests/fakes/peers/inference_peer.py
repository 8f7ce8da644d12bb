"""An inference service whose model the test itself plays: every call waits for its next word.

It is another process boundary by contract (InferenceService over gRPC), so a
test can pause, break off, fail or fall silent at exactly the event it wants.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from janus_api.content.v1 import message_pb2 as content
from janus_api.content.v1 import usage_pb2
from janus_api.inference.v1 import event_pb2, model_pb2, request_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_kit.errors import JanusError, NotFound
from janus_kit.rpc_errors import from_status, to_status, to_trailers


class Call:
    """One model call, played by the test."""

    def __init__(self, prompt: request_pb2.Prompt) -> None:
        self.prompt = prompt
        self.closed = asyncio.Event()
        self.closed_at = 0.0
        self._parts = 0
        self._script: asyncio.Queue[event_pb2.GenerationEvent | JanusError | None] = asyncio.Queue()

    def start(self) -> None:
        started = event_pb2.GenerationStarted(generation_id="gen_1", provider="peer", model="played", attempt=1)
        self._script.put_nowait(event_pb2.GenerationEvent(started=started))

    def text(self, *pieces: str) -> None:
        for piece in pieces:
            delta = event_pb2.TextDelta(part_index=0, text=piece)
            self._script.put_nowait(event_pb2.GenerationEvent(text_delta=delta))

    def tool(self, call_id: str, name: str, arguments: str = "{}") -> None:
        """Ask for a tool, in a part of its own."""
        self._parts += 1
        call = content.ToolCall(call_id=call_id, name=name, arguments_json=arguments)
        whole = event_pb2.ToolCallCompleted(part_index=self._parts, call=call, valid_json=True)
        self.send(event_pb2.GenerationEvent(tool_call_completed=whole))

    def tools(self, *calls: tuple[str, ...]) -> None:
        """A whole answer that asks for tools and says nothing else."""
        self.start()
        for call in calls:
            self.tool(*call)
        self.finish(event_pb2.FINISH_REASON_TOOL_CALLS)

    def send(self, event: event_pb2.GenerationEvent) -> None:
        self._script.put_nowait(event)

    def finish(self, reason: event_pb2.FinishReason.ValueType = event_pb2.FINISH_REASON_STOP) -> None:
        usage = usage_pb2.Usage(input_uncached_tokens=10, output_tokens=5, source=usage_pb2.USAGE_SOURCE_REPORTED)
        finished = event_pb2.GenerationFinished(reason=reason, usage=usage)
        self._script.put_nowait(event_pb2.GenerationEvent(finished=finished))
        self._script.put_nowait(None)

    def fail(self, error: JanusError, *, partial: bool = True) -> None:
        """End in a `failed` event, as after the first semantic event."""
        failed = event_pb2.GenerationFailed(status=to_status(error), retryable=True, partial=partial)
        self._script.put_nowait(event_pb2.GenerationEvent(failed=failed))
        self._script.put_nowait(None)

    def refuse(self, error: JanusError) -> None:
        """End the call with a gRPC status."""
        self._script.put_nowait(error)

    def cut(self) -> None:
        """End the stream without saying how it ended."""
        self._script.put_nowait(None)

    def answer(self, *pieces: str) -> None:
        """A whole answer."""
        self.start()
        self.text(*pieces)
        self.finish()

    async def next(self) -> event_pb2.GenerationEvent | JanusError | None:
        return await self._script.get()


class InferencePeer(rpc.InferenceServiceServicer):
    """Hands every call to the test."""

    def __init__(self) -> None:
        self.target = ""
        self.calls: list[Call] = []
        self._arrived: asyncio.Queue[Call] = asyncio.Queue()
        self.speaking: set[asyncio.Task[None]] = set()
        self.always: tuple[str, ...] | None = None
        """What every call is answered at once, when set."""
        self.unknown: set[str] = set()
        """Models that are not there; all others are."""

    async def call(self) -> Call:
        """The next call that arrives."""
        async with asyncio.timeout(15):
            return await self._arrived.get()

    async def call_within(self, seconds: float) -> Call:
        """The next call that arrives, with more patience."""
        async with asyncio.timeout(seconds):
            return await self._arrived.get()

    async def any_call(self) -> Call:
        """The next call, however long it takes to come."""
        return await self._arrived.get()

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        if request.name in self.unknown:
            code, details, trailers = to_trailers(NotFound("model", request.name))
            await context.abort(code, details, trailers)
        return pb.GetModelResponse(model=model_pb2.Model(name=request.name, kind=model_pb2.MODEL_KIND_GENERATIVE))

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        call = Call(request.prompt)
        self.calls.append(call)
        if self.always is not None:
            call.answer(*self.always)
        self._arrived.put_nowait(call)
        sequence = 0
        try:
            while (event := await call.next()) is not None:
                if isinstance(event, JanusError):
                    code, details, trailers = to_trailers(event)
                    await context.abort(code, details, trailers)
                sequence += 1
                event.sequence = sequence
                yield pb.StreamGenerateResponse(event=event)
        finally:
            call.closed_at = time.perf_counter()
            call.closed.set()


class PeerHealth(health_pb2_grpc.HealthServicer):
    """Always well."""

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


@asynccontextmanager
async def inference_peer(address: str = "127.0.0.1:0") -> AsyncIterator[InferencePeer]:
    """Serve a peer; `target` says where."""
    peer = InferencePeer()
    server = grpc.aio.server()
    rpc.add_InferenceServiceServicer_to_server(peer, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(PeerHealth(), server)
    port = server.add_insecure_port(address)
    peer.target = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield peer
    finally:
        await server.stop(0)


def reason_of(wire: status_pb2.Status) -> str:
    """The ErrorInfo reason of a status."""
    return from_status(wire).reason

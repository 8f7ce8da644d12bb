"""The memory service as what a run recalls from and stores to."""

from collections.abc import Sequence
from datetime import timedelta

import grpc

from janus_api.content.v1 import message_pb2
from janus_api.memory.v1 import filter_pb2, recall_pb2, record_pb2, scope_pb2
from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import memory_service_pb2_grpc as rpc
from janus_kit.clock import Clock
from janus_kit.errors import DeadlineExceeded, NotFound, Unavailable
from janus_kit.rpc_errors import from_rpc
from janus_orchestration.model import MemoryScope, NewMemory, Recalled, ThreadMessage
from janus_orchestration.ports import Stored
from janus_orchestration.wire.events import hit_from

_TOOLS = filter_pb2.Comparison(field=filter_pb2.Field(path="role"), value=filter_pb2.Value(text="tool"))
_BUT_TOOLS = filter_pb2.Filter(**{"not": filter_pb2.Filter(compare=_TOOLS)})  # type: ignore[arg-type]

_MOST_WINDOW_MESSAGES = 1_000
_MOST_WINDOW_TOKENS = 1_000_000


class MemoryClient:
    """Recalls and appends over a channel to the memory service."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock) -> None:
        self._stub = rpc.MemoryServiceStub(channel)
        self._clock = clock

    async def recall(
        self, scope: MemoryScope, query: str, limit: int, timeout_s: float, *, with_tools: bool = True
    ) -> Recalled:
        began = self._clock.monotonic()
        others = None if with_tools else _BUT_TOOLS
        request = recall_pb2.RecallRequest(scope=_scope_to(scope), query=query, limit=limit, filter=others)
        try:
            response = await self._stub.Recall(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, part="memory") from error
        return Recalled(
            # A call of a tool, or its result, has no words that a prompt could show.
            tuple(hit for hit in map(hit_from, response.hits) if hit.text.strip()),
            tuple(response.degraded),
            timedelta(seconds=self._clock.monotonic() - began),
        )

    async def summary(self, scope: MemoryScope, shown: int, timeout_s: float) -> str:
        # The messages themselves are the thread's; asked for is what they leave out.
        request = pb.GetWindowRequest(
            scope=scope_pb2.Scope(space=scope.space, thread=scope.thread),
            max_messages=min(max(shown, 1), _MOST_WINDOW_MESSAGES),
            max_tokens=_MOST_WINDOW_TOKENS,
        )
        try:
            response = await self._stub.GetWindow(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, part="memory") from error
        return str(response.summary)

    async def remember(self, scope: MemoryScope, memory: NewMemory, request_id: str, timeout_s: float) -> str:
        source = record_pb2.Provenance(message_id=memory.message_id, origin=record_pb2.ORIGIN_MODEL)
        item = record_pb2.Memory(
            kind=record_pb2.MemoryKind.Value(f"MEMORY_KIND_{memory.kind.upper()}"),
            text=memory.text,
            importance=memory.importance,
            provenance=[source],
        )
        request = pb.RememberRequest(scope=_scope_to(scope), memories=[item], request_id=request_id)
        try:
            response = await self._stub.Remember(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, part="memory") from error
        return str(response.memory_ids[0])

    async def append(
        self, scope: MemoryScope, messages: Sequence[ThreadMessage], request_id: str, timeout_s: float
    ) -> Stored:
        request = pb.AppendMessagesRequest(
            scope=_scope_to(scope), turns=[_turn_to(item) for item in messages], request_id=request_id
        )
        try:
            response = await self._stub.AppendMessages(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, part="memory") from error
        return Stored(tuple(response.degraded))

    async def extract(self, scope: MemoryScope, message_ids: Sequence[str], request_id: str, timeout_s: float) -> None:
        # All of the thread is meant, whoever spoke.
        where = scope_pb2.Scope(space=scope.space, thread=scope.thread)
        request = pb.ExtractRequest(scope=where, message_ids=message_ids, request_id=request_id)
        try:
            await self._stub.Extract(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, part="memory") from error

    async def forget(self, scope: MemoryScope, message_ids: Sequence[str], timeout_s: float) -> None:
        request = pb.ForgetMessagesRequest(
            scope=scope_pb2.Scope(space=scope.space, thread=scope.thread), message_ids=message_ids
        )
        try:
            await self._stub.ForgetMessages(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, part="memory") from error

    async def has_space(self, name: str, timeout_s: float) -> bool:
        try:
            await self._stub.GetSpace(pb.GetSpaceRequest(name=name), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            match from_rpc(error, part="memory"):
                case NotFound():
                    return False
                case DeadlineExceeded():
                    raise Unavailable("memory", "the memory service does not answer") from error
                case other:
                    raise other from error
        return True


def _turn_to(item: ThreadMessage) -> record_pb2.Turn:
    message = message_pb2.Message.FromString(item.message.wire)
    return record_pb2.Turn(message=message, occurred_at=message.created_at)


def _scope_to(scope: MemoryScope) -> scope_pb2.Scope:
    return scope_pb2.Scope(space=scope.space, subject=scope.subject, thread=scope.thread)

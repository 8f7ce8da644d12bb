"""A tool worker that the test itself plays, message by message, over the real wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from janus_api.content.v1 import message_pb2 as content
from janus_api.tools.v1 import tool_worker_service_pb2 as pb
from janus_api.tools.v1 import tool_worker_service_pb2_grpc as rpc
from janus_kit.channel import connect

SCHEMA = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False})


def tool(name: str = "count", **fields: Any) -> pb.Tool:
    return pb.Tool(
        **{"name": name, "parameters_schema_json": SCHEMA, "side_effect": pb.SIDE_EFFECT_IDEMPOTENT, **fields}
    )


class Worker:
    """One stream. Everything that the server says is kept in ``told``."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.told: list[pb.ConnectResponse] = []

    async def say(self, **message: Any) -> None:
        await self.call.write(pb.ConnectRequest(**message))

    async def register(self, *tools: pb.Tool, worker_id: str = "w1", credits: int = 8) -> None:  # noqa: A002
        await self.say(register=pb.Register(worker_id=worker_id, tools=tools or [tool()], credits=credits))
        assert await self.next() == "registered"

    async def next(self) -> str:
        """What the server says next."""
        async with asyncio.timeout(15):
            response = await self.call.read()
        if response is grpc.aio.EOF:
            return "end"
        self.told.append(response)
        assert response.sequence == len(self.told)
        return str(response.WhichOneof("message"))

    async def given(self) -> pb.Call:
        """The next call."""
        assert await self.next() == "call", self.told[-1]
        return self.told[-1].call

    async def dropped(self) -> pb.CancelCall:
        assert await self.next() == "cancel", self.told[-1]
        return self.told[-1].cancel

    async def closed(self) -> Any:
        """The status with which the stream ends, after nothing but a drain."""
        while (kind := await self.next()) == "drain":
            pass
        assert kind == "closed", self.told[-1]
        assert await self.next() == "end"
        return self.told[-1].closed.status

    async def answer(self, call: pb.Call | str, *texts: str, **fields: Any) -> None:
        call_id = call if isinstance(call, str) else call.call_id
        result = content.ToolResult(parts=[content.Part(text=text) for text in texts], **fields)
        await self.say(completed=pb.CallCompleted(call_id=call_id, result=result))

    async def beat(self, *call_ids: str) -> list[str]:
        """A heartbeat, and the calls that the server says are here; a stream may have lived long enough meanwhile."""
        await self.say(heartbeat=pb.Heartbeat(call_ids=call_ids))
        while (kind := await self.next()) == "drain":
            pass
        assert kind == "heartbeat", self.told[-1]
        return list(self.told[-1].heartbeat.call_ids)

    def cut(self) -> None:
        self.call.cancel()


@asynccontextmanager
async def dialled(address: str, tenant: str) -> AsyncIterator[Worker]:
    """A worker of a tenant that has yet to register."""
    channel = connect(address)
    call = rpc.ToolWorkerServiceStub(channel).Connect(metadata=(("janus-tenant", tenant),))
    try:
        yield Worker(call)
    finally:
        call.cancel()
        await channel.close()


@asynccontextmanager
async def worker(address: str, tenant: str, *tools: pb.Tool, **options: Any) -> AsyncIterator[Worker]:
    """A registered worker."""
    async with dialled(address, tenant) as made:
        await made.register(*tools, **options)
        yield made

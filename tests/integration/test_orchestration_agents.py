"""An agent is put only with a model and a space that are there, as the services say that have them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from tests.fakes.memory_service import running as running_memory
from tests.fakes.orchestration_service import Caller, running
from tests.fakes.peers.inference_peer import inference_peer
from tests.fakes.providers.inference_service import running as running_inference

from janus_api.memory.v1 import memory_service_pb2 as memory_pb
from janus_api.memory.v1 import space_pb2
from janus_api.orchestration.v1 import agent_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_kit.errors import InvalidArgument, JanusError, Unavailable
from janus_kit.rpc_errors import from_rpc


class Silent(grpc.GenericRpcHandler):
    """Takes every call and answers none."""

    def service(self, handler_call_details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._wait)

    async def _wait(self, request: bytes, context: Any) -> None:
        await asyncio.Event().wait()


@asynccontextmanager
async def silence() -> AsyncIterator[str]:
    """Where nothing is answered."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Silent(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def of(space: str) -> agent_pb2.MemoryPolicy:
    return agent_pb2.MemoryPolicy(space=space)


async def refused(ann: Caller, model: str = "", space: str = "") -> JanusError:
    """How an agent is refused; it is not there afterwards."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await ann.agent(model=model, memory=of(space))
    assert not (await ann.call("ListAgents", pb.ListAgentsRequest())).agents
    return from_rpc(raised.value)


async def test_a_model_is_one_that_may_be_asked_for_an_answer(own_url: str, redis_url: str) -> None:
    aliases = {"fast": {"targets": ["openai/fake"]}, "vectors": {"targets": ["compatible/fake-embed"]}}
    async with (
        running_inference(own_url, redis_url, aliases=aliases) as inference,
        running(own_url, redis_url, inference_target=inference.address) as service,
    ):
        ann = service.caller()
        for model in ("noalias", "nope/x", "openai/", "compatible/unlisted", "compatible/fake-embed", "vectors"):
            error = await refused(ann, model)
            assert isinstance(error, InvalidArgument)
            assert [violation.field for violation in error.violations] == ["agent.model"]
        known = ("", "default", "fast", "scripted/rehearsal", "compatible/fake", "openai/not-listed")
        for version, model in enumerate(known, 1):
            assert (await ann.agent(model=model)).version == version


async def test_a_space_is_one_of_the_tenants(own_url: str, redis_url: str) -> None:
    async with (
        running_memory(own_url, redis_url) as memory,
        running(own_url, redis_url, memory_target=memory.host.address) as service,
    ):
        ann, bob = service.caller(), service.caller()
        notes = memory_pb.PutSpaceRequest(space=space_pb2.Space(name="notes"))
        await memory.caller(bob.tenant).call("PutSpace", notes)
        error = await refused(ann, space="notes")
        assert isinstance(error, InvalidArgument)
        assert [violation.field for violation in error.violations] == ["agent.memory.space"]
        assert (await bob.agent(memory=of("notes"))).version == 1
        await memory.caller(ann.tenant).call("PutSpace", notes)
        assert (await ann.agent(memory=of("notes"))).version == 1


async def test_all_that_is_not_there_is_named_at_once(own_url: str, redis_url: str) -> None:
    async with (
        inference_peer() as inference,
        running_memory(own_url, redis_url) as memory,
        running(own_url, redis_url, inference_target=inference.target, memory_target=memory.host.address) as service,
    ):
        inference.unknown.add("nope")
        error = await refused(service.caller(), "nope", "nowhere")
        assert isinstance(error, InvalidArgument)
        assert [violation.field for violation in error.violations] == ["agent.model", "agent.memory.space"]


async def test_nothing_is_stored_while_nobody_can_say(own_url: str, redis_url: str) -> None:
    async with running(own_url, redis_url) as service:
        ann = service.caller()
        for part, model, space in (("inference", "fast", ""), ("memory", "", "notes")):
            error = await refused(ann, model, space)
            assert isinstance(error, Unavailable)
            assert error.metadata["part"] == part
        assert (await ann.agent(memory=of("default"))).version == 1, "what is always there is not asked for"


async def test_a_service_that_does_not_answer_is_not_waited_for_long(own_url: str, redis_url: str) -> None:
    async with (
        silence() as target,
        running(own_url, redis_url, inference_target=target, memory_target=target, peers_are_there=False) as service,
    ):
        for model, space in (("fast", ""), ("", "notes")):
            error = await refused(service.caller(), model, space)
            assert isinstance(error, Unavailable)
            assert "does not answer" in error.message

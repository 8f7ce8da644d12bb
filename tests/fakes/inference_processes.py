"""Replicas of the inference service as processes of their own, over one wire-format provider."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from tests.fakes.patience import patient_postgres
from tests.fakes.providers import openai_wire
from tests.fakes.providers.http_server import WireServer, serving
from tests.fakes.service_process import ServiceProcess

from janus_api.inference.v1 import event_pb2, request_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_kit.migrations import migrate

Event = event_pb2.GenerationEvent


class InferenceProcess(ServiceProcess):
    """``python -m janus_inference`` and a client of it."""

    def __init__(
        self, postgres_url: str, redis_url: str, provider_url: str, log: Path | None = None, **settings: Any
    ) -> None:
        compatible = {"kind": "openai_compatible", "base_url": f"{provider_url}/v1"}
        environ = {
            "JANUS_SERVER__DRAIN_S": "0.5",
            "JANUS_INFERENCE__PROVIDERS": json.dumps({"compatible": compatible}),
            **{f"JANUS_INFERENCE__{name.upper()}": str(value) for name, value in settings.items()},
        }
        super().__init__("janus_inference", postgres_url, redis_url, environ, log)

    @property
    def stub(self) -> rpc.InferenceServiceStub:
        assert self._channel is not None
        return rpc.InferenceServiceStub(self._channel)

    async def answer(self) -> Any:
        return await self.stub.ListModels(pb.ListModelsRequest(), timeout=1)

    def generate(self, prompt: request_pb2.Prompt, **options: Any) -> Any:
        return self.stub.StreamGenerate(pb.StreamGenerateRequest(prompt=prompt), **options)

    def resume(self, generation_id: str, after: int, **options: Any) -> Any:
        request = pb.ResumeGenerateRequest(generation_id=generation_id, after_sequence=after)
        return self.stub.ResumeGenerate(request, **options)


@asynccontextmanager
async def inference_processes(
    count: int, postgres_url: str, redis_url: str
) -> AsyncIterator[tuple[list[InferenceProcess], WireServer]]:
    """So many replicas over the same stores, and the provider that they ask as `compatible`."""
    await migrate(patient_postgres(postgres_url), ["janus_inference"])
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(serving(openai_wire.application))
        replicas = [InferenceProcess(postgres_url, redis_url, wire.url) for _ in range(count)]
        for replica in replicas:
            stack.push_async_callback(replica.stop)
        await asyncio.gather(*(replica.start() for replica in replicas))
        yield replicas, wire


async def events_of(call: Any, count: int | None = None) -> list[Event]:
    """So many events of a call, or all to its end."""
    found: list[Event] = []
    while len(found) != count and (response := await call.read()) is not grpc.aio.EOF:
        found.append(response.event)
    return found

"""Replicas of the inference service as processes of their own, over one wire-format provider."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from pydantic import SecretStr
from tests.fakes.providers import openai_wire
from tests.fakes.providers.http_server import WireServer, serving

from janus_api.inference.v1 import event_pb2, request_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_kit.channel import connect
from janus_kit.migrations import migrate
from janus_kit.settings import PostgresSettings

Event = event_pb2.GenerationEvent


class InferenceProcess:
    """``python -m janus_inference`` and a client of it."""

    def __init__(self, postgres_url: str, redis_url: str, provider_url: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        compatible = {"kind": "openai_compatible", "base_url": f"{provider_url}/v1"}
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("JANUS_")},
            "JANUS_POSTGRES_URL": postgres_url,
            "JANUS_REDIS_URL": redis_url,
            "JANUS_SERVER__LISTEN": self.address,
            "JANUS_SERVER__DRAIN_S": "0.5",
            "JANUS_SERVER__LAME_DUCK_S": "0",
            "JANUS_INFERENCE__PROVIDERS": json.dumps({"compatible": compatible}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.aio.Channel | None = None

    @property
    def stub(self) -> rpc.InferenceServiceStub:
        assert self._channel is not None
        return rpc.InferenceServiceStub(self._channel)

    async def start(self) -> InferenceProcess:
        # To start a process takes no time; to wait for it is done below.
        self._process = subprocess.Popen([sys.executable, "-m", "janus_inference"], env=self._environ)  # noqa: ASYNC220
        self._channel = connect(self.address)
        async with asyncio.timeout(30):
            while True:
                try:
                    await self.stub.ListModels(pb.ListModelsRequest(), timeout=1)
                    return self
                except grpc.aio.AioRpcError:
                    assert self._process.poll() is None, "the process has ended"
                    await asyncio.sleep(0.05)

    def generate(self, prompt: request_pb2.Prompt, **options: Any) -> Any:
        return self.stub.StreamGenerate(pb.StreamGenerateRequest(prompt=prompt), **options)

    def resume(self, generation_id: str, after: int, **options: Any) -> Any:
        request = pb.ResumeGenerateRequest(generation_id=generation_id, after_sequence=after)
        return self.stub.ResumeGenerate(request, **options)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    async def stop(self) -> None:
        if self._channel is not None:
            await self._channel.close()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            await asyncio.to_thread(self._process.wait)


@asynccontextmanager
async def inference_processes(
    count: int, postgres_url: str, redis_url: str
) -> AsyncIterator[tuple[list[InferenceProcess], WireServer]]:
    """So many replicas over the same stores, and the provider that they ask as `compatible`."""
    await migrate(PostgresSettings(url=SecretStr(postgres_url)), ["janus_inference"])
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

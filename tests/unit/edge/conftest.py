"""The real edge over HTTP, before an inference service that plays what a test wants."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx2
import pytest

from janus_api.inference.v1 import event_pb2, model_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_edge.app import server
from janus_edge.settings import EdgeSettings
from janus_kit.errors import NotFound
from janus_kit.mount import Mount, Part
from janus_kit.server import serve
from janus_kit.settings import ServerSettings

SERVICE = "janus.inference.v1.InferenceService"


@dataclass
class Played(rpc.InferenceServiceServicer):
    """An inference service over real gRPC whose answers are given by the test."""

    answer: Callable[[Any], Any] = lambda prompt: pb.GenerateResponse()
    events: Callable[[Any], AsyncIterator[event_pb2.GenerationEvent]] | None = None
    models: list[model_pb2.Model] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    time_remaining: float | None = None
    called: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def _note(self, request: Any, context: Any) -> None:
        self.prompts.append(getattr(request, "prompt", None))
        self.metadata = dict(context.invocation_metadata())
        self.time_remaining = context.time_remaining()
        self.called.set()

    async def Generate(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        try:
            found = self.answer(request.prompt)
            return await found if asyncio.iscoroutine(found) else found
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._note(request, context)
        assert self.events is not None
        try:
            number = 0
            async for event in self.events(request.prompt):
                number += 1
                event.sequence = number
                yield pb.StreamGenerateResponse(event=event)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def ListModels(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        start = int(request.page_token or 0)
        rest = start + 2 < len(self.models)
        return pb.ListModelsResponse(
            models=self.models[start : start + 2], next_page_token=str(start + 2) if rest else ""
        )

    async def GetModel(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        for model in self.models:
            if model.name == request.name:
                return pb.GetModelResponse(model=model)
        raise NotFound("model", request.name)


@dataclass
class Parts:
    """Parts of the played service, away or not."""

    away: set[str] = field(default_factory=set)

    def part(self, name: str, *, required: bool) -> Part:
        async def check() -> None:
            if name in self.away:
                raise ConnectionError(name)

        return Part(name, required, check, when_away="answers come without it")


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
async def inference() -> Played:
    return Played()


@pytest.fixture
async def target(inference: Played, parts: Parts) -> AsyncIterator[str]:
    def register(host: grpc.aio.Server) -> None:
        rpc.add_InferenceServiceServicer_to_server(inference, host)  # type: ignore[no-untyped-call]

    mount = Mount(
        "inference",
        register,
        (SERVICE,),
        (parts.part("postgres", required=True), parts.part("redis", required=False)),
    )
    async with serve([mount], ServerSettings(listen="127.0.0.1:0", drain_s=0)) as host:
        assert host.address is not None
        yield host.address


@pytest.fixture
def settings() -> EdgeSettings:
    return EdgeSettings(listen="127.0.0.1:0", max_body_bytes=64 * 1024, drain_s=1)


@pytest.fixture
async def edge(target: str, settings: EdgeSettings) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        server(settings, target) as running,
        httpx2.AsyncClient(base_url=running.url, trust_env=False, verify=False, timeout=20) as client,
    ):
        yield client


def _events(*texts: str) -> list[event_pb2.GenerationEvent]:
    deltas = [event_pb2.GenerationEvent(text_delta=event_pb2.TextDelta(part_index=0, text=text)) for text in texts]
    started = event_pb2.GenerationStarted(generation_id="gen_1", provider="scripted", model="echo", attempt=1)
    finished = event_pb2.GenerationFinished(reason=event_pb2.FINISH_REASON_STOP)
    finished.usage.input_uncached_tokens = 3
    finished.usage.cache_read_tokens = 2
    finished.usage.output_tokens = 5
    finished.usage.reasoning_tokens = 1
    return [
        event_pb2.GenerationEvent(started=started),
        *deltas,
        event_pb2.GenerationEvent(finished=finished),
    ]


@pytest.fixture
def answering() -> Callable[..., list[event_pb2.GenerationEvent]]:
    """The events of a whole answer that says these texts."""
    return _events


@pytest.fixture
def playing() -> Callable[..., Callable[[Any], AsyncIterator[Any]]]:
    """Turns a list of events, exceptions and awaitable stops into what `Played.events` wants."""

    def play(*steps: Any) -> Callable[[Any], AsyncIterator[Any]]:
        async def events(prompt: Any) -> AsyncIterator[Any]:
            for step in steps:
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step

        return events

    return play

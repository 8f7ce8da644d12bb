"""The gRPC face of inference: decode, delegate, encode. No decisions here."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_api.inference.v1 import model_pb2
from janus_inference.catalogue import Catalogue, Entry, Kind
from janus_inference.decode import inputs_from, prompt_from
from janus_inference.embedding import Embedding
from janus_inference.encode import answer_to, embedded_to, entry_to, event_to
from janus_inference.generation import Generation
from janus_inference.standing import Standings
from janus_kit.errors import Unimplemented
from janus_kit.interceptors.context import remaining_seconds

SERVICE = "janus.inference.v1.InferenceService"
Context = grpc.aio.ServicerContext[Any, Any]

_KINDS = {
    model_pb2.MODEL_KIND_GENERATIVE: Kind.GENERATIVE,
    model_pb2.MODEL_KIND_EMBEDDING: Kind.EMBEDDING,
    model_pb2.MODEL_KIND_ALIAS: Kind.ALIAS,
}


class InferenceServicer(rpc.InferenceServiceServicer):
    """Every RPC of InferenceService."""

    def __init__(
        self, generation: Generation, embedding: Embedding, catalogue: Catalogue, standings: Standings
    ) -> None:
        self._generation = generation
        self._embedding = embedding
        self._catalogue = catalogue
        self._standings = standings

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        answer = await self._generation.answer(prompt_from(request.prompt), remaining=remaining_seconds())
        return answer_to(answer)

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        events = self._generation.run(prompt_from(request.prompt), remaining=remaining_seconds())
        async with aclosing(events):
            async for event in events:
                yield pb.StreamGenerateResponse(event=event_to(event))

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        made = await self._embedding.embed(
            request.model,
            inputs_from(request),
            dimensions=request.dimensions if request.HasField("dimensions") else None,
            labels=dict(request.labels),
            remaining=remaining_seconds(),
        )
        return embedded_to(made)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        page = self._catalogue.page(request.page_size, request.page_token, _KINDS.get(request.kind))
        return pb.ListModelsResponse(
            models=[self._model(entry) for entry in page.entries], next_page_token=page.next_token
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=self._model(self._catalogue.get(request.name)))

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        raise _unbuilt("CountTokens")

    def ResumeGenerate(
        self, request: pb.ResumeGenerateRequest, context: Context
    ) -> AsyncIterator[pb.ResumeGenerateResponse]:
        raise _unbuilt("ResumeGenerate")

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:
        raise _unbuilt("GetUsage")

    def _model(self, entry: Entry) -> model_pb2.Model:
        return entry_to(entry, healthy=self._catalogue.is_healthy(entry, self._standings))


def _unbuilt(method: str) -> Unimplemented:
    return Unimplemented(
        message=f"{method} is not implemented in this version", metadata={"method": f"{SERVICE}/{method}"}
    )

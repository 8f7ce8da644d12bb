"""The gRPC face of inference: decode, delegate, encode. No decisions here."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_api.inference.v1 import model_pb2, request_pb2
from janus_inference.catalogue import Catalogue, Entry
from janus_inference.decode import inputs_from, kind_from, prompt_from, purpose_from, resume_from
from janus_inference.encode import answer_to, embedded_to, entry_to, event_to, streamed_to
from janus_inference.engine import Engine
from janus_inference.inference import Inference
from janus_inference.model import Caller
from janus_inference.resuming import Resumables
from janus_inference.settings import InferenceSettings
from janus_inference.telemetry import told
from janus_inference.usage_report import UsageReport
from janus_inference.usage_wire import usage_page_to, usage_query_from
from janus_kit.auth.identity import current_identity
from janus_kit.interceptors.context import remaining_seconds

SERVICE = "janus.inference.v1.InferenceService"
Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(rpc.InferenceServiceServicer):
    """Every RPC of InferenceService."""

    def __init__(
        self, engine: Engine[InferenceSettings, Inference], resumables: Resumables, report: UsageReport
    ) -> None:
        self._engine = engine
        self._resumables = resumables
        self._report = report

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        with self._engine.use() as inference:
            answer = await inference.generation.answer(
                prompt_from(request.prompt), _caller(), remaining=remaining_seconds(), digest=_digest(request.prompt)
            )
        return answer_to(answer)

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        keep = self._engine.use()
        with keep as inference:
            events = inference.generation.run(
                prompt_from(request.prompt),
                _caller(),
                remaining=remaining_seconds(),
                digest=_digest(request.prompt),
                keep=keep,
            )
            event = None
            async with aclosing(events):
                async for event in events:
                    yield streamed_to(event)
        told(event)

    async def ResumeGenerate(
        self, request: pb.ResumeGenerateRequest, context: Context
    ) -> AsyncIterator[pb.ResumeGenerateResponse]:
        generation_id, after = resume_from(request)
        event = None
        async with aclosing(self._resumables.follow(_caller(), generation_id, after)) as events:
            async for event in events:
                yield pb.ResumeGenerateResponse(event=event_to(event))
        told(event)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        with self._engine.use() as inference:
            made = await inference.embedding.embed(
                request.model,
                inputs_from(request),
                caller=_caller(),
                purpose=purpose_from(request),
                dimensions=request.dimensions if request.HasField("dimensions") else None,
                labels=dict(request.labels),
                remaining=remaining_seconds(),
            )
        return embedded_to(made)

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        with self._engine.use() as inference:
            counted = await inference.counting.count(prompt_from(request.prompt), remaining=remaining_seconds())
        return pb.CountTokensResponse(input_tokens=counted.tokens, exact=counted.exact)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        catalogue = self._engine.current.catalogue
        page = catalogue.page(request.page_size, request.page_token, kind_from(request))
        return pb.ListModelsResponse(
            models=[_model(catalogue, entry) for entry in page.entries], next_page_token=page.next_token
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        catalogue = self._engine.current.catalogue
        return pb.GetModelResponse(model=_model(catalogue, catalogue.get(request.name)))

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:
        page = await self._report.page(_caller().tenant, usage_query_from(request))
        return usage_page_to(page)


def _caller() -> Caller:
    identity = current_identity()
    return Caller(identity.tenant, identity.subject)


def _digest(prompt: request_pb2.Prompt) -> bytes:
    """Stands for the body of a request that must not be done twice."""
    if not prompt.request_id:
        return b""
    return hashlib.sha256(prompt.SerializeToString(deterministic=True)).digest()


def _model(catalogue: Catalogue, entry: Entry) -> model_pb2.Model:
    return entry_to(entry, catalogue.health(entry))

"""Embedding through the inference service: its Embed RPC, spoken over a real channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest
from tests.fakes.memory_service import Caller, Memory, eventually, refused, running, texts

from janus_api.common.v1 import operation_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_api.memory.v1 import memory_service_pb2 as memory_pb
from janus_api.memory.v1 import scope_pb2, space_pb2
from janus_kit.errors import InvalidArgument, Unavailable
from janus_kit.rpc_errors import from_status, to_trailers
from janus_memory.adapters.inference_embedder import KnownEmbedders
from janus_memory.adapters.lexical_embedder import LexicalEmbedder, vector
from janus_memory.adapters.onnx_embedder import OnnxModels
from janus_memory.model import LEXICAL_MODEL
from janus_memory.ports import Purpose

MODEL = "openai/text-embedding-3-small"


class Inference(rpc.InferenceServiceServicer):
    """Answers Embed as the inference service does; vectors are the built-in ones, 32 long by default."""

    def __init__(self) -> None:
        self.requests: list[tuple[pb.EmbedRequest, dict[str, Any]]] = []
        self.away = False
        self.models = {MODEL}
        self.nonsense: list[list[float]] | None = None

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        self.requests.append((request, dict(context.invocation_metadata())))
        error: Exception | None = None
        if self.away:
            error = Unavailable("", reason="PROVIDER_UNAVAILABLE", metadata={"provider": "openai"})
        elif request.model not in self.models:
            error = InvalidArgument("model", "must be configured", reason="MODEL_NOT_FOUND")
        if error is not None:
            code, text, trailers = to_trailers(error)  # type: ignore[arg-type]
            context.set_trailing_metadata(trailers)
            await context.abort(code, text)
        made = self.nonsense or [vector(text, request.dimensions or 32) for text in request.inputs]
        return pb.EmbedResponse(vectors=[pb.Vector(values=values) for values in made], model=MODEL)


class Served:
    """The service and its address."""

    def __init__(self, servicer: Inference, target: str) -> None:
        self.servicer = servicer
        self.target = target


@pytest.fixture
async def inference() -> AsyncIterator[Served]:
    server = grpc.aio.server()
    servicer = Inference()
    rpc.add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Served(servicer, f"127.0.0.1:{port}")
    finally:
        await server.stop(0)


@pytest.fixture
async def embedders(inference: Served) -> AsyncIterator[KnownEmbedders]:
    async with grpc.aio.insecure_channel(inference.target) as channel:
        yield KnownEmbedders(LexicalEmbedder(), OnnxModels(None, 0), rpc.InferenceServiceStub(channel), 5)


@pytest.fixture
async def memory(postgres_url: str, redis_url: str, inference: Served) -> AsyncIterator[Memory]:
    async with running(postgres_url, redis_url, inference_target=inference.target) as service:
        yield service


async def test_a_vector_a_text_in_order_whatever_the_batch(embedders: KnownEmbedders, inference: Served) -> None:
    given = [f"text {i}" for i in range(300)]
    vectors = await embedders.named(MODEL).embed(given, 0, Purpose.DOCUMENT)
    assert vectors[299] == pytest.approx(vector("text 299", 32), abs=1e-6)
    assert len(vectors) == 300
    assert len(inference.servicer.requests) == 2


async def test_dimensions_and_purpose_travel(embedders: KnownEmbedders, inference: Served) -> None:
    [made] = await embedders.named(MODEL).embed(["x"], 8, Purpose.QUERY)
    [(request, _)] = inference.servicer.requests
    assert (len(made), request.dimensions, request.purpose) == (8, 8, pb.EMBED_PURPOSE_QUERY)


async def test_an_unknown_model_is_bad_input(embedders: KnownEmbedders) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await embedders.named("no/such").embed(["x"], 0, Purpose.DOCUMENT)
    assert raised.value.reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("nonsense", [[[float("nan")] * 4], [[1.0], [2.0]], [[]] * 3])
async def test_an_answer_that_makes_no_sense_is_not_believed(
    embedders: KnownEmbedders, inference: Served, nonsense: list[list[float]]
) -> None:
    inference.servicer.nonsense = nonsense
    with pytest.raises(Unavailable) as raised:
        await embedders.named(MODEL).embed(["x"], 0, Purpose.DOCUMENT)
    assert raised.value.part == "embedder"


async def test_a_space_of_a_model_is_indexed_and_searched_with_it(memory: Memory, inference: Served) -> None:
    ann = memory.caller()
    made = space_pb2.Space(name="s", embedding_model=MODEL)
    space = (await ann.call("PutSpace", memory_pb.PutSpaceRequest(space=made))).space
    assert space.dimensions == 32
    await ann.remember("the heron", scope={"space": "s"}, consistency=scope_pb2.CONSISTENCY_READ_YOUR_WRITES)
    answer = await ann.recall("herons", scope={"space": "s"}, explain=True)
    assert (texts(answer), list(answer.degraded)) == (["the heron"], [])
    assert answer.embedding_model == MODEL
    weights = {detail.leg: detail.weight for detail in answer.hits[0].details}
    assert weights["dense_turn"] == pytest.approx(0.6)
    # The indexer asks on behalf of the tenant whose text it is.
    assert {metadata["janus-tenant"] for _, metadata in inference.servicer.requests} == {ann.tenant}


@pytest.mark.parametrize("trouble", [{"away": True}, {"models": set()}], ids=["away", "not configured"])
async def test_without_its_model_a_space_is_searched_by_words_and_catches_up(
    memory: Memory, inference: Served, trouble: dict[str, Any], postgres_url: str
) -> None:
    ann = memory.caller()
    well = {name: getattr(inference.servicer, name) for name in trouble}
    made = space_pb2.Space(name="s", embedding_model=MODEL)
    await ann.call("PutSpace", memory_pb.PutSpaceRequest(space=made))
    vars(inference.servicer).update(trouble)
    await ann.remember("the heron", scope={"space": "s"})
    answer = await ann.recall("heron", scope={"space": "s"})
    assert (texts(answer), list(answer.degraded)) == (["the heron"], ["embedder"])
    assert "embedder" in (await ann.remember("the pond", scope={"space": "s"})).degraded
    # However long it lasts, no text is given up on.
    owner = await asyncpg.connect(postgres_url)

    async def tried() -> bool:
        return bool(
            await owner.fetchval("SELECT bool_and(error <> '') FROM memory.outbox WHERE tenant = $1", ann.tenant)
        )

    try:
        await eventually(tried)
        assert await owner.fetchval("SELECT sum(attempts) FROM memory.outbox WHERE tenant = $1", ann.tenant) == 0
    finally:
        await owner.close()
    vars(inference.servicer).update(well)
    await ann.indexed("s")

    async def back() -> bool:
        return not (await ann.recall("heron", scope={"space": "s"})).degraded

    await eventually(back)


async def test_a_model_that_is_not_configured_makes_no_space(memory: Memory) -> None:
    ann = memory.caller()
    made = space_pb2.Space(name="s", embedding_model="no/such")
    error = await refused(ann.call("PutSpace", memory_pb.PutSpaceRequest(space=made)))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == ["space.embedding_model"]


async def test_a_model_gives_the_dimensions_that_a_space_asks_for(memory: Memory) -> None:
    ann = memory.caller()
    made = space_pb2.Space(name="s", embedding_model=MODEL, dimensions=12)
    space = (await ann.call("PutSpace", memory_pb.PutSpaceRequest(space=made))).space
    assert space.dimensions == 12


async def rebuilt(ann: Caller, **fields: Any) -> operation_pb2.Operation:
    """A rebuild that has ended."""
    operation = (await ann.call("Reindex", memory_pb.ReindexRequest(**fields))).operation
    request = memory_pb.WatchOperationRequest(operation_id=operation.id)
    events = [event async for event in ann.stub.WatchOperation(request, metadata=ann.metadata, timeout=30)]
    ended: operation_pb2.Operation = events[-1].ended
    return ended


async def test_a_space_changes_its_model_and_changes_back(postgres_url: str, redis_url: str, inference: Served) -> None:
    async with running(postgres_url, redis_url, inference_target=inference.target, retire_after_s=0.2) as memory:
        ann = memory.caller()
        await ann.append("talk", *[f"turn {n} of the bridge" for n in range(140)])
        await ann.remember("the heron", consistency=scope_pb2.CONSISTENCY_READ_YOUR_WRITES)
        error = await refused(ann.call("Reindex", memory_pb.ReindexRequest(embedding_model="no/such")))
        assert isinstance(error, InvalidArgument)
        assert [violation.field for violation in error.violations] == ["embedding_model"]
        # Once with the model that it has: then what both generations find is compared too.
        for model, dimensions in ((MODEL, 32), (MODEL, 32), (LEXICAL_MODEL, 384)):
            ended = await rebuilt(ann, embedding_model=model)
            assert ended.state == operation_pb2.OPERATION_STATE_SUCCEEDED, from_status(ended.error)
            space = (await ann.call("GetSpace", memory_pb.GetSpaceRequest())).space
            assert (space.embedding_model, space.dimensions) == (model, dimensions)
            answer = await ann.recall("herons", limit=1, exact=True)
            assert (texts(answer), list(answer.degraded), answer.embedding_model) == (["the heron"], [], model)
        assert {metadata["janus-tenant"] for _, metadata in inference.servicer.requests} == {ann.tenant}


@pytest.mark.parametrize("trouble", [{"away": True}, {"models": set()}], ids=["away", "not configured"])
async def test_a_rebuild_waits_for_a_model_that_went_away(
    postgres_url: str, redis_url: str, inference: Served, trouble: dict[str, Any]
) -> None:
    well = {name: getattr(inference.servicer, name) for name in trouble}
    async with running(postgres_url, redis_url, inference_target=inference.target, retire_after_s=0.2) as memory:
        ann = memory.caller()
        await ann.remember("the heron")
        operation = (await ann.call("Reindex", memory_pb.ReindexRequest(embedding_model=MODEL))).operation
        vars(inference.servicer).update(trouble)
        request = memory_pb.WatchOperationRequest(operation_id=operation.id)
        last = ""
        async for event in ann.stub.WatchOperation(request, metadata=ann.metadata, timeout=30):
            if "embedder" in event.progress.phase:
                vars(inference.servicer).update(well)
            last = operation_pb2.OperationState.Name(event.ended.state)
        assert last == "OPERATION_STATE_SUCCEEDED"

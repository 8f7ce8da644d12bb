"""Embedding models of the inference service, and embedders by name."""

import math
from collections.abc import Mapping, Sequence

import grpc

from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_kit.errors import InvalidArgument, JanusError, Unavailable
from janus_kit.rpc_errors import from_rpc
from janus_memory.adapters.onnx_embedder import OnnxModels
from janus_memory.model import LEXICAL_MODEL, ONNX_PREFIX
from janus_memory.ports import Embedder, Purpose, UnusableEmbedding

_BATCH = 256
_MAX_CHARS = 32_768
_PURPOSES: Mapping[Purpose, pb.EmbedPurpose.ValueType] = {
    Purpose.DOCUMENT: pb.EMBED_PURPOSE_DOCUMENT,
    Purpose.QUERY: pb.EMBED_PURPOSE_QUERY,
}


class InferenceEmbedder:
    """One model of the inference service, asked through its Embed RPC.

    The caller's tenant, deadline and trace travel on with the call.
    """

    def __init__(self, stub: "rpc.InferenceServiceAsyncStub", model: str, timeout_s: float) -> None:
        self._stub = stub
        self._model = model
        self._timeout_s = timeout_s

    async def embed(self, texts: Sequence[str], dimensions: int, purpose: Purpose) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _BATCH):
            vectors.extend(await self._batch(texts[start : start + _BATCH], dimensions, purpose))
        return vectors

    async def _batch(self, texts: Sequence[str], dimensions: int, purpose: Purpose) -> list[list[float]]:
        request = pb.EmbedRequest(
            model=self._model,
            # A model refuses an empty text; a space is similar to nothing either.
            inputs=[text[:_MAX_CHARS] or " " for text in texts],
            dimensions=dimensions or None,
            purpose=_PURPOSES[purpose],
        )
        try:
            response = await self._stub.Embed(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _translated(from_rpc(error, part="inference")) from error
        vectors = [list(vector.values) for vector in response.vectors]
        whole = len(vectors) == len(texts) and all(all(map(math.isfinite, vector)) for vector in vectors)
        if not whole or len({len(vector) for vector in vectors}) > 1:
            raise UnusableEmbedding("the embedding model gave an answer that makes no sense")
        return vectors


class KnownEmbedders:
    """Implements ports.Embedders: the built-in one, local folders, and models of the inference service."""

    def __init__(
        self,
        built_in: Embedder,
        local: OnnxModels,
        stub: "rpc.InferenceServiceAsyncStub | None",
        timeout_s: float,
    ) -> None:
        self._built_in = built_in
        self._local = local
        self._stub = stub
        self._timeout_s = timeout_s

    def named(self, model: str) -> Embedder:
        if model == LEXICAL_MODEL:
            return self._built_in
        if model.startswith(ONNX_PREFIX):
            return self._local.named(model)
        if self._stub is None:
            raise Unavailable("embedder", "no inference service is configured for embedding")
        return InferenceEmbedder(self._stub, model, self._timeout_s)


def _translated(error: JanusError) -> JanusError:
    """Input that is refused stays so, under our own field; all else means: not now."""
    if isinstance(error, InvalidArgument) and error.reason == "MODEL_NOT_FOUND":
        return InvalidArgument(
            "space.embedding_model",
            "must be a configured embedding model",
            reason="MODEL_NOT_FOUND",
            metadata=error.metadata,
        )
    if isinstance(error, InvalidArgument):
        return InvalidArgument(
            "space.embedding_model", f"was refused by the model: {error.message}", reason=error.reason
        )
    if error.metadata.get("answer") == "unusable":
        return UnusableEmbedding(f"the embedding model cannot embed the text: {error.message}")
    return Unavailable(
        "embedder",
        f"the embedding model is not available: {error.message}",
        retry_after=error.retry_after or 1.0,
    )

"""The use case: texts to vectors."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from janus_inference.events import Usage
from janus_inference.ports import Embedder
from janus_inference.provider_errors import ProviderFailure, broken, timed_out
from janus_inference.routing import Routes, Target
from janus_inference.standing import Standings
from janus_inference.telemetry import Attempt
from janus_inference.validation import validate_embedding
from janus_kit.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors in the order of the inputs."""

    vectors: tuple[Sequence[float], ...]
    target: Target
    usage: Usage


class Embedding:
    """Asks embedding models."""

    def __init__(self, embedders: Mapping[str, Embedder], routes: Routes, total_s: float, standings: Standings) -> None:
        self._embedders = embedders
        self._routes = routes
        self._total_s = total_s
        self._standings = standings

    async def embed(
        self,
        model: str,
        inputs: list[str],
        *,
        dimensions: int | None = None,
        labels: Mapping[str, str],
        remaining: float | None = None,
    ) -> Embedded:
        """One vector an input, all of one length. Raises JanusError."""
        validate_embedding(model, inputs, dimensions, labels)
        target = self._routes.embedding(model)
        embedder = self._embedders.get(target.provider)
        if embedder is None:
            raise InvalidArgument(
                "model",
                f"provider '{target.provider}' has no embeddings",
                reason="MODEL_NOT_FOUND",
                metadata={"model": target.name},
            )
        limit = self._total_s if remaining is None else min(self._total_s, remaining)
        with Attempt("embeddings", target.provider, target.model) as attempt:
            try:
                async with asyncio.timeout(limit) as timeout:
                    made = await embedder.embed(target.model, inputs, dimensions)
                self._check(made.values, len(inputs), target)
            except TimeoutError:
                if not timeout.expired():
                    raise
                failure = timed_out(target.provider, "total", limit)
            except ProviderFailure as raised:
                failure = raised
            except asyncio.CancelledError:
                attempt.cancelling()
                raise
            else:
                attempt.succeeded(made.usage)
                self._standings.succeeded(target.provider)
                return Embedded(made.values, target, made.usage)
            attempt.failed(failure.outcome)
            self._standings.failed(target.provider, failure)
            raise failure.error from None

    @staticmethod
    def _check(vectors: tuple[Sequence[float], ...], wanted: int, target: Target) -> None:
        """A vector that is missing or not finite would poison an index silently."""
        if len(vectors) != wanted or len({len(vector) for vector in vectors}) != 1 or not vectors[0]:
            raise broken(target.provider, "the vectors do not fit the inputs")
        if not all(math.isfinite(number) for vector in vectors for number in vector):
            raise broken(target.provider, "a vector holds a number that is not finite")

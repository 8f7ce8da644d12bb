"""All that inference can do under one version of its settings."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from janus_inference.catalogue import Catalogue
from janus_inference.counting import Counting
from janus_inference.embedding import Embedding
from janus_inference.generation import Generation
from janus_inference.settings import InferenceSettings


@dataclass(frozen=True)
class Inference:
    """The use cases that depend on settings; an ``engine.Build``."""

    settings: InferenceSettings
    generation: Generation
    embedding: Embedding
    counting: Counting
    catalogue: Catalogue
    release: Callable[[], Awaitable[None]]
    warm: Callable[[], Awaitable[None]]

    async def close(self) -> None:
        """Close what no other build holds."""
        await self.embedding.close()
        await self.release()

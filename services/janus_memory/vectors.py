"""Vectors of units, made by a space's model."""

from collections.abc import Sequence

from janus_kit.auth.identity import Identity, acting_as
from janus_kit.errors import InvalidArgument, Unavailable
from janus_memory.model import Embeddable, Space, VectorRow, View, has_direction
from janus_memory.parts import Parts
from janus_memory.ports import Embedders, Purpose, UnusableEmbedding


class Vectors:
    """Makes the rows of an index."""

    def __init__(self, embedders: Embedders, parts: Parts) -> None:
        self._embedders = embedders
        self._parts = parts

    async def of(self, tenant: str, space: Space, found: Sequence[Embeddable]) -> list[VectorRow]:
        """A row a unit and view, by the space's model; a caller's own vector where it has the space's length.

        Raises Unavailable, also for a model that nobody serves now, and
        InvalidArgument when the model refuses a text or gives vectors of
        another length, or such as no index can compare.
        """
        own = {each.about.unit: each.own(space.dimensions) for each in found}
        rows = [
            VectorRow(each.about, view, each.version, vector)
            for each in found
            if (vector := own[each.about.unit])
            for view in View
        ]
        wanted = [(each, view) for each in found if not own[each.about.unit] for view in View]
        if not wanted:
            return rows
        # A text whose two views are equal is embedded once.
        distinct = list(dict.fromkeys(each.texts[view] for each, view in wanted))
        vectors = dict(zip(distinct, await self.embedded(tenant, space, distinct, Purpose.DOCUMENT), strict=True))
        rows.extend(VectorRow(each.about, view, each.version, vectors[each.texts[view]]) for each, view in wanted)
        return rows

    async def embedded(
        self, tenant: str, space: Space, texts: Sequence[str], purpose: Purpose
    ) -> Sequence[Sequence[float]]:
        """A vector a text, on the tenant's behalf. Raises as `of` does."""
        part = f"embedder:{space.model}"
        try:
            with acting_as(Identity(tenant, "janus-memory", frozenset({"inference.use"}))):
                made = await self._embedders.named(space.model).embed(texts, space.dimensions, purpose)
        except UnusableEmbedding:
            # Of these texts; the model may be well.
            raise
        except Unavailable:
            self._parts.away(part)
            raise
        except InvalidArgument as error:
            if error.reason != "MODEL_NOT_FOUND":
                raise
            # A model that was there when the space took it is missing from a configuration; no text is to blame.
            self._parts.away(part)
            raise Unavailable("embedder", f"model '{space.model}' is not configured") from error
        self._parts.back(part)
        if len(made) != len(texts) or any(len(vector) != space.dimensions for vector in made):
            raise InvalidArgument(
                "embedding",
                f"the model gave vectors of another length than the space's {space.dimensions}",
                reason="DIMENSION_MISMATCH",
            )
        # Zero is what a text without words comes to.
        if any(any(vector) and not has_direction(vector) for vector in made):
            raise InvalidArgument("embedding", "the model gave a vector that cannot be compared")
        return made

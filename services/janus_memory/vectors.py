"""Vectors of units, made by a space's model."""

from collections.abc import Sequence

from janus_kit.auth.identity import Identity, acting_as
from janus_kit.errors import InvalidArgument, Unavailable
from janus_memory.model import Embeddable, Space, VectorRow, View
from janus_memory.parts import Parts
from janus_memory.ports import Embedders, Purpose


class Vectors:
    """Makes the rows of an index."""

    def __init__(self, embedders: Embedders, parts: Parts) -> None:
        self._embedders = embedders
        self._parts = parts

    async def of(self, tenant: str, space: Space, found: Sequence[Embeddable]) -> list[VectorRow]:
        """A row a unit and view, by the space's model; a caller's own vector where it has the space's length.

        Raises Unavailable, and InvalidArgument when the model refuses a text or
        gives vectors of another length.
        """
        part = f"embedder:{space.model}"
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
        try:
            with acting_as(Identity(tenant, "janus-memory", frozenset({"inference.use"}))):
                made = await self._embedders.named(space.model).embed(distinct, space.dimensions, Purpose.DOCUMENT)
        except Unavailable:
            self._parts.away(part)
            raise
        self._parts.back(part)
        wrong = next((vector for vector in made if len(vector) != space.dimensions), None)
        if wrong is not None or len(made) != len(distinct):
            raise InvalidArgument(
                "embedding",
                f"the model gave vectors of another length than the space's {space.dimensions}",
                reason="DIMENSION_MISMATCH",
            )
        vectors = dict(zip(distinct, made, strict=True))
        rows.extend(VectorRow(each.about, view, each.version, vectors[each.texts[view]]) for each, view in wanted)
        return rows

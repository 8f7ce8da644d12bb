"""Spaces: where records are searched together, and with what vectors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from janus_kit.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from janus_memory.idempotency import Request, once
from janus_memory.model import DEFAULT_SPACE, LEXICAL_MODEL, Backend, Space, SpaceDraft, Weights
from janus_memory.parts import Parts
from janus_memory.ports import Embedders, Purpose, Records, Transaction

LEXICAL_DIMENSIONS = 384
MAX_DIMENSIONS = 4096


@dataclass(frozen=True)
class SpaceDefaults:
    """What a space is made with when its maker does not say. ``backends``: those this server has."""

    backend: Backend
    model: str
    dimensions: int
    backends: frozenset[Backend]

    def draft(self, name: str) -> SpaceDraft:
        """A space of that name and nothing else said."""
        return SpaceDraft(name, self.backend, self.model, self.dimensions, Weights(), "")


class Spaces:
    """PutSpace, GetSpace, ListSpaces; and the space of every other call."""

    def __init__(self, records: Records, embedders: Embedders, defaults: SpaceDefaults) -> None:
        self._records = records
        self._embedders = embedders
        self._defaults = defaults

    @property
    def default_model(self) -> str:
        """The model of a `default` space that has no record yet."""
        return self._defaults.model

    async def for_write(self, tx: Transaction, name: str) -> Space:
        """The space to write to; `default` is made on first use. Raises NotFound."""
        space = await tx.space(name)
        if space is None:
            if name != DEFAULT_SPACE:
                raise NotFound("space", name)
            space = await tx.add_space(await self._completed(self._defaults.draft(name)))
        return space

    async def for_read(self, tx: Transaction, name: str) -> Space | None:
        """The space to read from; None for a `default` without a record yet. Raises NotFound."""
        space = await tx.space(name)
        if space is None and name != DEFAULT_SPACE:
            raise NotFound("space", name)
        return space

    async def completed(self, draft: SpaceDraft) -> SpaceDraft:
        """A draft with nothing left open, of a backend and model that are there; may ask the model."""
        return await self._completed(draft)

    async def get(self, tenant: str, name: str) -> Space:
        """One space with its backlog. Raises NotFound."""
        async with self._records.transaction(tenant) as tx:
            space = await self.for_write(tx, name)
            return replace(space, backlog=await tx.backlog(space.number))

    async def page(self, tenant: str, after: str, limit: int) -> tuple[list[Space], str]:
        """Spaces by name after one, and the name to go on after; empty at the end."""
        async with self._records.transaction(tenant) as tx:
            await self.for_write(tx, DEFAULT_SPACE)
            found = await tx.spaces(after, limit + 1)
            page = [replace(space, backlog=await tx.backlog(space.number)) for space in found[:limit]]
        return page, page[-1].name if len(found) > limit else ""

    async def put(self, tenant: str, draft: SpaceDraft, expected_version: int, request: Request) -> Space:
        """Make a space, or change what can be changed of one.

        Raises FailedPrecondition / STATE_CONFLICT when backend, model or
        dimensions would change, Aborted / VERSION_MISMATCH when another writer
        was first.
        """
        # Asking a model for its dimensions is a call over the network: before the
        # transaction, and only for a space that is to be made.
        async with self._records.transaction(tenant) as tx:
            existing = await tx.space(draft.name)
        complete = None if existing else await self._completed(draft)
        async with self._records.transaction(tenant) as tx:

            async def work() -> Mapping[str, Any]:
                current = await tx.lock_space(draft.name)
                if current is None and draft.name == DEFAULT_SPACE and expected_version:
                    current = await self.for_write(tx, DEFAULT_SPACE)
                version = current.version if current else 0
                if expected_version and expected_version != version:
                    raise Aborted(
                        "VERSION_MISMATCH",
                        f"space '{draft.name}' is at version {version}, not {expected_version}",
                        {"current_version": str(version)},
                    )
                if current is None:
                    assert complete is not None
                    return _answer(await tx.add_space(complete))
                self._must_stay(current, draft)
                return _answer(await tx.change_space(draft))

            answer, _ = await once(tx, request, work)
        return _space(answer)

    async def _completed(self, draft: SpaceDraft) -> SpaceDraft:
        """A draft with nothing left open, of a backend and model that are there."""
        backend = draft.backend or self._defaults.backend
        if backend not in self._defaults.backends:
            raise FailedPrecondition(
                "STATE_CONFLICT",
                f"this server has no {backend.name.lower()} configured",
                {"state": f"{backend.name.lower()}_not_configured"},
                subject=f"space/{draft.name}",
            )
        model = draft.model or self._defaults.model
        dimensions = draft.dimensions
        if not draft.model and not dimensions:
            dimensions = self._defaults.dimensions
        if model == LEXICAL_MODEL:
            return replace(draft, backend=backend, model=model, dimensions=dimensions or LEXICAL_DIMENSIONS)
        try:
            [probe] = await self._embedders.named(model).embed(["dimensions"], dimensions, Purpose.DOCUMENT)
        except Unavailable as away:
            if not model.startswith("onnx/"):
                raise
            # It is in this process: it will not come back by itself.
            raise InvalidArgument(
                "space.embedding_model", away.message, reason="MODEL_NOT_FOUND", metadata={"model": model}
            ) from away
        if dimensions and len(probe) != dimensions:
            raise InvalidArgument(
                "space.dimensions",
                f"must be the model's, which is {len(probe)}",
                reason="DIMENSION_MISMATCH",
                metadata={"expected": str(len(probe)), "actual": str(dimensions)},
            )
        if len(probe) > MAX_DIMENSIONS:
            raise InvalidArgument("space.embedding_model", f"must have at most {MAX_DIMENSIONS} dimensions")
        return replace(draft, backend=backend, model=model, dimensions=len(probe))

    @staticmethod
    def _must_stay(current: Space, draft: SpaceDraft) -> None:
        changes = (
            ("backend", draft.backend is not None and draft.backend is not current.backend),
            ("embedding_model", bool(draft.model) and draft.model != current.model),
            ("dimensions", bool(draft.dimensions) and draft.dimensions != current.dimensions),
        )
        for what, changed in changes:
            if changed:
                raise FailedPrecondition(
                    "STATE_CONFLICT",
                    f"{what} of space '{current.name}' can only be changed by Reindex",
                    {"state": "exists", "field": f"space.{what}"},
                    subject=f"space/{current.name}",
                )


def away_for(space: Space, parts: Parts) -> list[str]:
    """Parts that a space's index needs and that were away when last asked."""
    found = ["chroma"] if space.backend is Backend.CHROMA and parts.is_away("chroma") else []
    return [*found, "embedder"] if parts.is_away(f"embedder:{space.model}") else found


def _answer(space: Space) -> Mapping[str, Any]:
    weights = {name: getattr(space.weights, name) for name in Weights.__slots__}
    return {
        "name": space.name,
        "number": space.number,
        "incarnation": space.incarnation,
        "backend": int(space.backend),
        "model": space.model,
        "dimensions": space.dimensions,
        "weights": {name: value for name, value in weights.items() if value is not None},
        "description": space.description,
        "version": space.version,
        "created_at": space.created_at.isoformat(),
        "generation": space.generation,
        "retention": None if space.retention is None else space.retention // timedelta(microseconds=1),
    }


def _space(answer: Mapping[str, Any]) -> Space:
    return Space(
        **{
            **answer,
            "backend": Backend(answer["backend"]),
            "weights": Weights(**answer["weights"]),
            "created_at": datetime.fromisoformat(answer["created_at"]),
            "retention": _retention(answer.get("retention")),
        }
    )


def _retention(microseconds: int | None) -> timedelta | None:
    return None if microseconds is None else timedelta(microseconds=microseconds)

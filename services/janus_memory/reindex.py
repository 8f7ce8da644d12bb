"""Reindex: start to rebuild a space's vectors, with another model or on another backend if asked."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from janus_kit.errors import Aborted, FailedPrecondition, FieldViolation, InvalidArgument, NotFound
from janus_kit.ids import new_id
from janus_memory.generation import Target
from janus_memory.idempotency import Request, once
from janus_memory.model import Backend, Operation, Space, SpaceDraft
from janus_memory.ports import Records
from janus_memory.spaces import Spaces

KIND = "reindex"


class Wish(NamedTuple):
    """What a rebuild is asked to change. No backend, an empty model: as it is. Dimensions 0: the model's."""

    space: str
    backend: Backend | None
    model: str
    dimensions: int


class Reindex:
    """Starts rebuilds."""

    def __init__(self, records: Records, spaces: Spaces) -> None:
        self._records = records
        self._spaces = spaces

    async def start(self, tenant: str, subject: str, wish: Wish, request: Request) -> Operation:
        """The operation that rebuilds the space; ``subject`` is who asks.

        Raises NotFound, InvalidArgument for a model or dimensions that are not
        to be had, FailedPrecondition / STATE_CONFLICT for a backend that is not
        or while the space is being rebuilt already, and Aborted when a rebuild
        ended meanwhile: "as it is" is no longer what it was.
        """
        async with self._records.transaction(tenant) as tx:
            space = await self._spaces.for_write(tx, wish.space)
            answered = bool(request.id) and await tx.answered_request(request.method, request.id) is not None
        # Asking a model is a call over the network: before the transaction, and not for an answer that is there.
        target = None if answered else await self._target(space, wish)
        async with self._records.transaction(tenant) as tx:

            async def work() -> Mapping[str, Any]:
                # One that was answered a moment ago may be forgotten by now.
                chosen = target or await self._target(space, wish)
                current = await tx.lock_space(space.name)
                if current is None or current.generation != space.generation:
                    raise Aborted(
                        "VERSION_MISMATCH",
                        f"space '{space.name}' was rebuilt meanwhile",
                        {"current_version": str(current.version if current else 0)},
                    )
                operation_id = new_id("op")
                if await tx.begin_generation(space.number, chosen, operation_id) is None:
                    raise FailedPrecondition(
                        "STATE_CONFLICT",
                        f"space '{space.name}' is being rebuilt",
                        {"state": "rebuilding"},
                        subject=f"space/{space.name}",
                    )
                arguments = {"space": space.name, "space_no": space.number}
                await tx.add_operation(operation_id, KIND, arguments, subject)
                return {"operation": operation_id}

            answer, _ = await once(tx, request, work)
            operation = await tx.operation(answer["operation"])
        if operation is None:
            raise NotFound("operation", answer["operation"])
        return operation

    async def _target(self, space: Space, wish: Wish) -> Target:
        # A model that stays keeps its dimensions too, also where it could have others.
        dimensions = wish.dimensions or (0 if wish.model else space.dimensions)
        draft = SpaceDraft(
            name=space.name,
            backend=wish.backend or space.backend,
            model=wish.model or space.model,
            dimensions=dimensions,
            weights=space.weights,
            description=space.description,
        )
        try:
            whole = await self._spaces.completed(draft)
        except InvalidArgument as error:
            # Reindex has the fields of a space without the space around them.
            raise InvalidArgument.of(
                [FieldViolation(each.field.removeprefix("space."), each.rule) for each in error.violations],
                reason=error.reason,
                metadata=error.metadata,
            ) from error
        assert whole.backend is not None
        return Target(whole.backend, whole.model, whole.dimensions)

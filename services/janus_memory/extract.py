"""Extract: start to turn turns of a thread into memories with a model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from janus_kit.errors import InvalidArgument, NotFound, Unavailable
from janus_kit.ids import new_id
from janus_memory.extraction import KIND
from janus_memory.idempotency import Request, once
from janus_memory.model import Operation, Scope
from janus_memory.ports import Records
from janus_memory.spaces import Spaces


class Wish(NamedTuple):
    """What is to be read. No ids: all of the thread since it was last read. Empty model: the server's."""

    scope: Scope
    message_ids: Sequence[str]
    model: str
    guidance: str


class Extract:
    """Starts extractions."""

    def __init__(self, records: Records, spaces: Spaces, default_model: str, *, inference: bool) -> None:
        """``inference``: whether there is a service of models at all."""
        self._records = records
        self._spaces = spaces
        self._default_model = default_model
        self._inference = inference

    async def start(self, tenant: str, subject: str, wish: Wish, request: Request) -> Operation:
        """The operation that reads the turns; ``subject`` is who asks.

        Raises NotFound for a space, or a turn of the thread, that is not there,
        InvalidArgument when no model is named, and Unavailable("inference")
        when there is none to ask.
        """
        model = wish.model or self._default_model
        if not model:
            raise InvalidArgument("model", "must be named, as this server has none of its own for it")
        if not self._inference:
            raise Unavailable("inference", "no inference service is configured")
        async with self._records.transaction(tenant) as tx:
            space = await self._spaces.for_write(tx, wish.scope.space)
            only = None
            after = await tx.extracted_upto(space.number, wish.scope)
            if wish.message_ids:
                found = await tx.positions_of(space.number, wish.scope, wish.message_ids)
                absent = next((each for each in wish.message_ids if each not in found), None)
                if absent is not None:
                    raise NotFound("message", absent)
                only, after = sorted(found.values()), 0
            extent = await tx.extent_of(space.number, wish.scope, after, only)
            subjects = sorted({*extent.subjects, wish.scope.subject} - {""})
            # An erasure of any of them comes before what follows, or finds it.
            await tx.hold_subjects(subjects)

            async def work() -> Mapping[str, Any]:
                arguments = {
                    "scope": asdict(wish.scope),
                    "space_no": space.number,
                    "only": only,
                    "upto": extent.upto,
                    "turns": extent.turns,
                    "model": model,
                    "guidance": wish.guidance,
                }
                operation_id = new_id("op")
                await tx.add_operation(operation_id, KIND, arguments, subject, subjects)
                return {"operation": operation_id}

            answer, _ = await once(tx, request, work)
            operation = await tx.operation(answer["operation"])
        if operation is None:
            raise NotFound("operation", answer["operation"])
        return operation

"""ForgetMessages: turns out of a thread, in one transaction."""

from collections.abc import Mapping, Sequence
from typing import Any

from janus_kit.errors import Unavailable
from janus_memory.idempotency import Request, once
from janus_memory.model import Scope
from janus_memory.parts import Parts
from janus_memory.ports import Records, Windows
from janus_memory.spaces import Spaces


class ForgetTurns:
    """Removes turns that somebody names; their age is the sweep's."""

    def __init__(self, records: Records, windows: Windows, spaces: Spaces, parts: Parts) -> None:
        self._records = records
        self._windows = windows
        self._spaces = spaces
        self._parts = parts

    async def run(self, tenant: str, scope: Scope, ids: Sequence[str], request: Request) -> int:
        """How many were there. Raises NotFound for a space, Unavailable when Redis may still show them.

        The window is dropped before the record forgets: nobody is told that
        turns are gone which a window still has.
        """
        async with self._records.transaction(tenant) as tx:
            space = await self._spaces.for_read(tx, scope.space)

            async def work() -> Mapping[str, Any]:
                if space is None:
                    return {"removed": 0}
                removed, windows = await tx.remove_turns(space.number, scope.thread, ids)
                if removed:
                    await self._drop(tenant, windows)
                    await tx.enqueue(space.number)
                return {"removed": removed}

            answer, _ = await once(tx, request, work)
        return int(answer["removed"])

    async def _drop(self, tenant: str, windows: Sequence[str]) -> None:
        try:
            await self._windows.drop(tenant, windows)
        except Unavailable as away:
            self._parts.away(away.part)
            raise
        self._parts.back("redis")

"""Memories after they were remembered: read, list, change, forget, and their history."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from janus_kit.errors import Aborted, NotFound
from janus_memory.consistency import token
from janus_memory.idempotency import Request, once
from janus_memory.model import Cause, Change, HardFilter, Memory, MemoryVersion
from janus_memory.ports import Records
from janus_memory.spaces import Spaces
from janus_memory.versions import change_memory, hold


class Mark(NamedTuple):
    """Where a list goes on: what was on record at ``as_of``, after a version."""

    as_of: datetime
    recorded_at: datetime
    id: str


@dataclass(frozen=True)
class Updated:
    """A new version, as it was when it was made; of one that was removed since, id and number are what is left."""

    id: str
    number: int
    version: MemoryVersion | None
    token: str


class Lifecycle:
    """GetMemory, ListMemories, UpdateMemory, ForgetMemory, GetHistory."""

    def __init__(self, records: Records, spaces: Spaces) -> None:
        self._records = records
        self._spaces = spaces

    async def get(self, tenant: str, memory_id: str) -> Memory:
        """The last version of a memory. Raises NotFound, also for a forgotten one."""
        async with self._records.transaction(tenant) as tx:
            latest = await tx.latest_version(memory_id)
        if latest is None or latest.change is Change.FORGOTTEN:
            raise NotFound("memory", memory_id)
        return latest.memory

    async def page(
        self, tenant: str, where: HardFilter, after: Mark | None, limit: int
    ) -> tuple[list[Memory], Mark | None]:
        """Allowed versions, newest first, and where to go on; None at the end.

        All pages show what was on record when the first was asked for: a change
        in between moves no memory from a page to come to one that has passed.
        """
        async with self._records.transaction(tenant) as tx:
            space = await self._spaces.for_read(tx, where.scope.space)
            if space is None:
                return [], None
            as_of = after.as_of if after else await tx.remembered_at(space.number)
        # Writers wait for no more than the moment above.
        async with self._records.transaction(tenant) as tx:
            found, more = await tx.listed(
                space, replace(where, recorded_at=as_of), after and (after.recorded_at, after.id), limit
            )
        return list(found), Mark(as_of, found[-1].recorded_at, found[-1].id) if more else None

    async def update(
        self,
        tenant: str,
        memory_id: str,
        values: Mapping[str, Any],
        expected_version: int,
        cause: Cause,
        request: Request,
    ) -> Updated:
        """Make a new version with other values of some of Memory's fields.

        Raises NotFound, Aborted / VERSION_MISMATCH, and what ``change_memory`` raises.
        """
        async with self._records.transaction(tenant) as tx:

            async def work() -> Mapping[str, Any]:
                held = await hold(tx, memory_id)
                if held is None or held.latest.change is Change.FORGOTTEN:
                    raise NotFound("memory", memory_id)
                current = held.latest.memory
                if expected_version and expected_version != current.version:
                    raise Aborted(
                        "VERSION_MISMATCH",
                        f"memory '{memory_id}' is at version {current.version}, not {expected_version}",
                        {"current_version": str(current.version)},
                    )
                made = await change_memory(tx, held, Change.UPDATED, replace(current, **values), cause)
                number = held.space.number
                return {"version": made.memory.version, "space": number, "outbox": await tx.enqueue(number)}

            answer, _ = await once(tx, request, work)
            version = await tx.version(memory_id, answer["version"])
        if version is not None:
            # As it was answered: whatever took its place since, it was the current one.
            version = replace(version, memory=replace(version.memory, superseded_at=None))
        return Updated(memory_id, answer["version"], version, token(answer["space"], answer["outbox"]))

    async def forget(self, tenant: str, memory_id: str, purge: bool, cause: Cause, request: Request) -> datetime:
        """Take a memory out of every search; the time from when no search finds it. Raises NotFound.

        One that is forgotten already stays so; ``purge`` still removes what it said.
        """
        async with self._records.transaction(tenant) as tx:

            async def work() -> Mapping[str, Any]:
                held = await hold(tx, memory_id)
                if held is None:
                    raise NotFound("memory", memory_id)
                last = held.latest
                if last.change is not Change.FORGOTTEN:
                    last = await change_memory(tx, held, Change.FORGOTTEN, last.memory, cause)
                if purge and not last.purged:
                    await tx.purge_versions(memory_id)
                await tx.enqueue(held.space.number)
                return {"forgotten_at": last.memory.recorded_at.isoformat()}

            answer, _ = await once(tx, request, work)
        return datetime.fromisoformat(answer["forgotten_at"])

    async def history(self, tenant: str, memory_id: str, after: int, limit: int) -> tuple[list[MemoryVersion], int]:
        """Versions after a number, oldest first, and the number to go on after; 0 at the end. Raises NotFound."""
        async with self._records.transaction(tenant) as tx:
            found, more = await tx.versions(memory_id, after, limit)
            if not found and await tx.latest_version(memory_id) is None:
                raise NotFound("memory", memory_id)
        return found, found[-1].memory.version if more else 0

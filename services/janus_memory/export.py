"""Export: everything of a scope, as it was at one moment.

Read page by page in one transaction that sees what was there when it began, so
that the export is consistent however long its reader takes. Such a transaction
holds a database connection: few run at the same time, and a reader that stops
reading loses it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from janus_kit.errors import DeadlineExceeded, NotFound, ResourceExhausted, Unavailable
from janus_memory.model import Block, MemoryVersion, Scope, Space, Turn, has_direction
from janus_memory.ports import Records, Snapshot, VectorIndex
from janus_memory.spaces import Spaces

AT_ONCE = 2
"""Exports of a process at the same time."""
PATIENCE_S = 45.0
"""How long a reader may take for a page; Postgres ends an idle transaction after 60 s."""
_RETRY_S = 5.0

Record: TypeAlias = Space | Turn | MemoryVersion | Block


@dataclass(frozen=True)
class ExportQuery:
    """What to export. ``history``: superseded versions too; ``vectors``: memories with their vectors."""

    scope: Scope
    history: bool
    vectors: bool


class Export:
    """Reads whole scopes. ``indexes`` by backend; see Backend."""

    def __init__(self, records: Records, indexes: Mapping[int, VectorIndex], spaces: Spaces) -> None:
        self._records = records
        self._indexes = indexes
        self._spaces = spaces
        self._free = asyncio.Semaphore(AT_ONCE)

    async def run(self, tenant: str, query: ExportQuery) -> AsyncGenerator[Record, None]:
        """The space; its turns by thread and position; current memories by id; superseded ones by id
        and version; blocks by name.

        Raises NotFound for a space that is not there, ResourceExhausted when
        too many exports run, DeadlineExceeded when nobody reads.
        """
        if self._free.locked():
            raise ResourceExhausted(
                "OVERLOADED",
                "too many exports are running",
                retry_after=_RETRY_S,
                quota=("exports", f"{AT_ONCE} at the same time"),
            )
        async with self._free:
            async with self._records.transaction(tenant) as tx:
                # Makes `default`, which a snapshot cannot.
                await self._spaces.for_write(tx, query.scope.space)
            is_late = False
            try:
                async with self._records.snapshot(tenant) as snapshot:
                    space = await snapshot.space(query.scope.space)
                    if space is None:
                        raise NotFound("space", query.scope.space)
                    yield space
                    async for page in self._pages(tenant, snapshot, space, query):
                        began = asyncio.get_running_loop().time()
                        for record in page:
                            yield record
                        is_late = asyncio.get_running_loop().time() - began > PATIENCE_S
                        if is_late:
                            break
            except Unavailable:
                # Postgres may have ended the transaction first.
                if not is_late:
                    raise
            if is_late:
                raise DeadlineExceeded("reader", f"the export was not read for {PATIENCE_S:.0f} s")

    async def _pages(
        self, tenant: str, snapshot: Snapshot, space: Space, query: ExportQuery
    ) -> AsyncIterator[Sequence[Record]]:
        thread, position = "", 0
        while turns := await snapshot.turns_after(space, query.scope, thread, position):
            yield turns
            thread, position = turns[-1].scope.thread, turns[-1].position
        after = ""
        while found := await snapshot.memories_after(space, query.scope, after):
            yield await self._with_vectors(tenant, snapshot, space, found) if query.vectors else _without_vectors(found)
            after = found[-1].memory.id
        after, number = "", 0
        while query.history and (versions := await snapshot.superseded_after(space, query.scope, after, number)):
            yield _with_sound_vectors(versions) if query.vectors else _without_vectors(versions)
            after, number = versions[-1].memory.id, versions[-1].memory.version
        place = ("", "", "")
        while blocks := await snapshot.blocks_after(space, query.scope, place):
            yield blocks
            place = blocks[-1].name, blocks[-1].scope.subject, blocks[-1].scope.agent

    async def _with_vectors(
        self, tenant: str, snapshot: Snapshot, space: Space, versions: Sequence[MemoryVersion]
    ) -> list[MemoryVersion]:
        """The vector that came with a memory, else the one that the space's model made of it; none while it waits."""
        units = await snapshot.units_of(space, [each.memory.id for each in versions if not each.embedding])
        made: Mapping[int, Sequence[float]] = {}
        if units:
            index = self._indexes.get(space.backend)
            if index is None:
                raise Unavailable(space.backend.name.lower())
            made = await index.vectors(tenant, space, list(units.values()))
        return _with_sound_vectors(
            [
                each if each.embedding else replace(each, embedding=tuple(made.get(units.get(each.memory.id, 0), ())))
                for each in versions
            ]
        )


def _with_sound_vectors(versions: Sequence[MemoryVersion]) -> list[MemoryVersion]:
    """Without those that an import would refuse: a text without words is at zero, and is so when embedded again."""
    return [each if has_direction(each.embedding) else replace(each, embedding=()) for each in versions]


def _without_vectors(versions: Sequence[MemoryVersion]) -> list[MemoryVersion]:
    return [replace(version, embedding=()) for version in versions]

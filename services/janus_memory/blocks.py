"""Core memory: small named texts, changed by compare-and-set."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from janus_kit.errors import Aborted, NotFound
from janus_memory.idempotency import Request, once
from janus_memory.model import Block, Scope
from janus_memory.ports import Records
from janus_memory.spaces import Spaces


class Blocks:
    """PutBlock, GetBlock, ListBlocks. A block is of exactly one space, subject and agent."""

    def __init__(self, records: Records, spaces: Spaces) -> None:
        self._records = records
        self._spaces = spaces

    async def put(self, tenant: str, block: Block, expected_version: int, request: Request) -> Block:
        """Make (0) or change a block. Raises Aborted / VERSION_MISMATCH when another writer was first."""
        async with self._records.transaction(tenant) as tx:
            space = await self._spaces.for_write(tx, block.scope.space)

            async def work() -> Mapping[str, Any]:
                stored = await tx.put_block(space, block, expected_version)
                if stored is None or stored.updated_at is None:
                    there = await tx.block(space, block.scope, block.name)
                    version = there.version if there else 0
                    raise Aborted(
                        "VERSION_MISMATCH",
                        f"block '{block.name}' is at version {version}, not {expected_version}",
                        {"current_version": str(version)},
                    )
                return {"version": stored.version, "updated_at": stored.updated_at.isoformat()}

            answer, _ = await once(tx, request, work)
        # What it says came with the request, now as then.
        return replace(block, version=answer["version"], updated_at=datetime.fromisoformat(answer["updated_at"]))

    async def get(self, tenant: str, scope: Scope, name: str) -> Block:
        """The block of exactly that scope. Raises NotFound."""
        async with self._records.transaction(tenant) as tx:
            space = await self._spaces.for_read(tx, scope.space)
            found = await tx.block(space, scope, name) if space else None
        if found is None:
            raise NotFound("block", name)
        return found

    async def page(
        self, tenant: str, scope: Scope, after: tuple[str, str, str], limit: int
    ) -> tuple[list[Block], tuple[str, str, str] | None]:
        """Blocks by name, subject and agent after those, and what to go on after; None at the end."""
        async with self._records.transaction(tenant) as tx:
            space = await self._spaces.for_read(tx, scope.space)
            found, more = await tx.blocks(space, scope, after, limit) if space else ([], False)
        last = found[-1] if more else None
        return found, (last.name, last.scope.subject, last.scope.agent) if last else None

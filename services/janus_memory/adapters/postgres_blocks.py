"""Blocks of core memory in Postgres."""

from typing import Any

from janus_kit.postgres import Connection
from janus_memory.adapters.paging import page
from janus_memory.model import Block, Scope, Space

COLUMNS = "name, subject, agent, version, text, size_limit, description, updated_at"


class BlockStatements:
    """Blocks, of one tenant's transaction."""

    _connection: Connection

    async def block(self, space: Space, scope: Scope, name: str) -> Block | None:
        row = await self._connection.fetchrow(
            f"""SELECT {COLUMNS} FROM memory.block
                WHERE space_no = $1 AND name = $2 AND subject = $3 AND agent = $4""",  # noqa: S608 - constant columns
            space.number, name, scope.subject, scope.agent,
        )  # fmt: skip
        return block_of(row, space.name) if row else None

    async def put_block(self, space: Space, block: Block, expected_version: int) -> Block | None:
        values = (
            space.number, block.name, block.scope.subject, block.scope.agent, block.text, block.size_limit,
            block.description,
        )  # fmt: skip
        if not expected_version:
            row = await self._connection.fetchrow(
                f"""INSERT INTO memory.block (space_no, name, subject, agent, text, size_limit, description,
                                              updated_at, version)
                    VALUES ($1, $2, $3, $4, $5, $6, $7, coalesce($8, now()), greatest($9::bigint, 1))
                    ON CONFLICT DO NOTHING RETURNING {COLUMNS}""",  # noqa: S608 - constant columns
                *values,
                block.updated_at,
                block.version,
            )
        else:
            row = await self._connection.fetchrow(
                f"""UPDATE memory.block SET text = $5, size_limit = $6, description = $7,
                           version = version + 1, updated_at = now()
                    WHERE space_no = $1 AND name = $2 AND subject = $3 AND agent = $4 AND version = $8
                    RETURNING {COLUMNS}""",  # noqa: S608 - constant columns
                *values,
                expected_version,
            )
        return block_of(row, space.name) if row else None

    async def blocks(
        self, space: Space, scope: Scope, after: tuple[str, str, str], limit: int
    ) -> tuple[list[Block], bool]:
        rows, more = await page(
            self._connection,
            limit,
            f"""SELECT {COLUMNS}, octet_length(text) + octet_length(description) AS size FROM memory.block
                WHERE space_no = $1 AND ($2 = '' OR subject = $2) AND ($3 = '' OR agent = $3)
                  AND (name COLLATE "C", subject COLLATE "C", agent COLLATE "C") > ($4, $5, $6)
                ORDER BY name COLLATE "C", subject COLLATE "C", agent COLLATE "C" LIMIT $7""",  # noqa: S608 - constant columns
            space.number, scope.subject, scope.agent, *after, limit + 1,
        )  # fmt: skip
        return [block_of(row, space.name) for row in rows], more


def block_of(row: Any, space: str) -> Block:
    return Block(
        scope=Scope(space, row["subject"], row["agent"]),
        name=row["name"],
        text=row["text"],
        size_limit=row["size_limit"],
        description=row["description"],
        version=row["version"],
        updated_at=row["updated_at"],
    )

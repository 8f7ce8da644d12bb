"""Reading a tenant's records from Postgres as they were at one moment."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from janus_kit.postgres import Connection
from janus_memory.adapters.postgres_blocks import COLUMNS as BLOCK_COLUMNS
from janus_memory.adapters.postgres_blocks import block_of
from janus_memory.adapters.postgres_spaces import SpaceStatements
from janus_memory.adapters.sql import TURN_COLUMNS, VERSION_COLUMNS, turn_of, version_of
from janus_memory.model import Block, MemoryVersion, Scope, Space, Turn

_PAGE = 500
_PAGE_BYTES = 2 * 1024 * 1024
_IN_SCOPE = "($2 = '' OR r.subject = $2) AND ($3 = '' OR r.agent = $3) AND ($4 = '' OR r.thread = $4)"
PORTABLE_COLUMNS = f"{VERSION_COLUMNS}, m.embedding"


class PostgresSnapshot(SpaceStatements):
    """Implements ports.Snapshot within a transaction that sees one moment.

    A page is at most 500 rows, and ends with the row that takes it over 2 MiB.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def turns_after(self, space: Space, scope: Scope, thread: str, position: int) -> list[Turn]:
        rows = await self._page(
            f"""SELECT t.space_no, {TURN_COLUMNS}, octet_length(t.content) + octet_length(t.text) AS bytes
                FROM memory.turn t""",  # noqa: S608 - constant columns
            "(r.thread, r.position) > ($5, $6::bigint)",
            "r.thread, r.position",
            space,
            scope,
            thread,
            position,
        )
        return [turn_of(row, space.name) for row in rows]

    async def memories_after(self, space: Space, scope: Scope, after: str) -> list[MemoryVersion]:
        rows = await self._page(
            f"""SELECT m.space_no, {PORTABLE_COLUMNS}, octet_length(m.text) AS bytes FROM memory.memory m
                WHERE m.superseded_at IS NULL""",  # noqa: S608 - constant columns
            "r.id > $5",
            "r.id",
            space,
            scope,
            after,
        )
        return [portable_of(row, space.name) for row in rows]

    async def units_of(self, space: Space, ids: Sequence[str]) -> dict[str, int]:
        rows = await self._connection.fetch(
            """SELECT record_id, unit FROM memory.unit
               WHERE space_no = $1 AND kind > 1 AND superseded_at IS NULL AND record_id = ANY($2::text[])""",
            space.number, list(ids),
        )  # fmt: skip
        return {row["record_id"]: row["unit"] for row in rows}

    async def superseded_after(self, space: Space, scope: Scope, after: str, number: int) -> list[MemoryVersion]:
        rows = await self._page(
            f"""SELECT m.space_no, {PORTABLE_COLUMNS}, octet_length(m.text) AS bytes FROM memory.memory m
                WHERE m.superseded_at IS NOT NULL""",  # noqa: S608 - constant columns
            "(r.id, r.version) > ($5, $6::bigint)",
            "r.id, r.version",
            space,
            scope,
            after,
            number,
        )
        return [portable_of(row, space.name) for row in rows]

    async def blocks_after(self, space: Space, scope: Scope, after: tuple[str, str, str]) -> list[Block]:
        rows = await self._page(
            f"""SELECT space_no, {BLOCK_COLUMNS}, '' AS thread, octet_length(text) AS bytes FROM memory.block""",  # noqa: S608 - constant columns
            "(r.name, r.subject, r.agent) > ($5, $6, $7)",
            "r.name, r.subject, r.agent",
            space,
            scope,
            *after,
        )
        return [block_of(row, space.name) for row in rows]

    async def _page(self, rows: str, after: str, order: str, space: Space, scope: Scope, *place: Any) -> Sequence[Any]:
        """The next of ``rows``, which are named `r`; ``place`` are $5 and on."""
        found: Sequence[Any] = await self._connection.fetch(
            f"""SELECT * FROM (
                    SELECT r.*, sum(r.bytes) OVER (ORDER BY {order}) - r.bytes AS before
                    FROM ({rows}) r
                    WHERE r.space_no = $1 AND {_IN_SCOPE} AND {after}
                    ORDER BY {order} LIMIT {_PAGE}) page
                WHERE before < {_PAGE_BYTES}""",  # noqa: S608 - placeholders and constants
            space.number, scope.subject, scope.agent, scope.thread, *place,
        )  # fmt: skip
        return found


def portable_of(row: Any, space: str) -> MemoryVersion:
    """A row of PORTABLE_COLUMNS."""
    return replace(version_of(row, space), embedding=tuple(row["embedding"] or ()))

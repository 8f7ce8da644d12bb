"""Versions and lists of memories in Postgres."""

from collections.abc import Sequence
from datetime import datetime

from janus_kit.postgres import Connection
from janus_memory.adapters.paging import page
from janus_memory.adapters.sql import VERSION_COLUMNS, Bound, allowed, memory_of, version_of
from janus_memory.model import HardFilter, Memory, MemoryVersion, Space

_SIZE = "octet_length(m.text) + octet_length(m.provenance_json) + octet_length(m.metadata_json) AS size"


class HistoryStatements:
    """What was and is on record, of one tenant's transaction."""

    _connection: Connection

    async def versions(self, memory_id: str, after: int, limit: int) -> tuple[list[MemoryVersion], bool]:
        rows, more = await page(
            self._connection,
            limit,
            f"""SELECT {VERSION_COLUMNS}, s.name AS space, {_SIZE} FROM memory.memory m
                JOIN memory.space s ON s.number = m.space_no
                WHERE m.id = $1 AND m.version > $2 ORDER BY m.version""",  # noqa: S608 - constant columns
            memory_id,
            after,
        )
        return [version_of(row, row["space"]) for row in rows], more

    async def version(self, memory_id: str, number: int) -> MemoryVersion | None:
        found, _ = await self.versions(memory_id, number - 1, 1)
        return found[0] if found and found[0].memory.version == number else None

    async def remembered_at(self, space_no: int) -> datetime:
        # With the lock of writers in hand nothing is on its way that is recorded earlier.
        await self._connection.execute(
            "SELECT pg_advisory_xact_lock_shared(hashtextextended('janus.memory.remember', $1))", space_no
        )
        at: datetime = await self._connection.fetchval("SELECT clock_timestamp()")
        return at

    async def listed(
        self, space: Space, where: HardFilter, after: tuple[datetime, str] | None, limit: int
    ) -> tuple[Sequence[Memory], bool]:
        bound = Bound(space.number, limit + 1)
        conditions = allowed(where, bound)
        if after is not None:
            conditions += f" AND (recorded_at, record_id) < ({bound(after[0])}::timestamptz, {bound(after[1])}::text)"
        rows, more = await page(
            self._connection,
            limit,
            f"""SELECT * FROM (
                    SELECT record_id, version AS unit_version FROM memory.unit
                    WHERE space_no = $1 AND kind > 1{conditions}
                    ORDER BY recorded_at DESC, record_id DESC LIMIT $2
                ) u
                CROSS JOIN LATERAL (
                    SELECT {VERSION_COLUMNS}, {_SIZE} FROM memory.memory m
                    WHERE m.id = u.record_id AND m.version = u.unit_version
                    OFFSET 0) AS m
                ORDER BY recorded_at DESC, record_id DESC""",  # noqa: S608 - placeholders and constants
            *bound.values,
        )
        return [memory_of(row, space.name) for row in rows], more

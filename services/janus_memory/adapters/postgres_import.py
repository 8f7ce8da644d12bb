"""Records that come from elsewhere, in Postgres."""

from collections.abc import Sequence
from uuid import UUID

from janus_memory.adapters.postgres_export import PORTABLE_COLUMNS, portable_of
from janus_memory.adapters.postgres_memories import MemoryStatements
from janus_memory.adapters.sql import Bound
from janus_memory.model import Document, MemoryVersion, Space
from janus_memory.ports import KnownVersion


class ImportStatements(MemoryStatements):
    """Imports of one tenant's transaction: pieces that wait, and what is stored of them."""

    async def versions_of(self, space: Space, ids: Sequence[str]) -> list[KnownVersion]:
        rows = await self._connection.fetch(
            f"SELECT {PORTABLE_COLUMNS}, m.space_no = $1 AS here FROM memory.memory m WHERE m.id = ANY($2::text[])",  # noqa: S608 - constant columns
            space.number, list(ids),
        )  # fmt: skip
        return [KnownVersion(portable_of(row, space.name), row["here"]) for row in rows]

    async def put_versions(
        self, space_no: int, versions: Sequence[MemoryVersion], documents: Sequence[Document]
    ) -> None:
        await self._insert_versions(space_no, versions)
        if documents:
            await self._add_documents(Bound(space_no), documents, versions[0].memory.recorded_at)

    async def add_import_part(self, import_id: str, number: int, records: bytes) -> None:
        await self._connection.execute(
            "INSERT INTO memory.import_part (import, number, records) VALUES ($1, $2, $3)",
            UUID(import_id), number, records,
        )  # fmt: skip

    async def import_part(self, import_id: str, number: int) -> bytes | None:
        records: bytes | None = await self._connection.fetchval(
            "SELECT records FROM memory.import_part WHERE import = $1 AND number = $2", UUID(import_id), number
        )
        return records

    async def drop_import(self, import_id: str) -> None:
        await self._connection.execute("DELETE FROM memory.import_part WHERE import = $1", UUID(import_id))

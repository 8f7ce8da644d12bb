"""Memories in Postgres."""

from collections.abc import Sequence

from janus_kit.postgres import Connection
from janus_memory.adapters.postgres_turns import TurnStatements
from janus_memory.model import Document, NewMemory
from janus_memory.ports import KnownMemory


class MemoryStatements(TurnStatements):
    """Memories by version, of one tenant's transaction."""

    _connection: Connection

    async def lock_remembering(self, space_no: int) -> None:
        # Two writers of one text must not both find it absent; a lock by space is
        # simpler than a lost race on the unique index, and is held for milliseconds.
        await self._connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('janus.memory.remember', $1))", space_no
        )

    async def known_memories(self, space_no: int, ids: Sequence[str], digests: Sequence[bytes]) -> list[KnownMemory]:
        rows = await self._connection.fetch(
            """SELECT id, version, digest, expires_at, space_no = $1 AS here FROM memory.memory
               WHERE superseded_at IS NULL
                 AND (id = ANY($2::text[]) OR (space_no = $1 AND digest = ANY($3::bytea[])))""",
            space_no, list(ids), list(digests),
        )  # fmt: skip
        # In another space the same text is another memory: only its id is taken.
        return [
            KnownMemory(row["id"], row["version"], row["digest"] if row["here"] else b"", row["expires_at"])
            for row in rows
        ]

    async def add_memories(
        self,
        space_no: int,
        memories: Sequence[tuple[NewMemory, int]],
        documents: Sequence[Document],
        changed_by: str,
    ) -> None:
        again = [memory.id for memory, version in memories if version > 1]
        if again:
            await self._supersede(space_no, again)
        await self._connection.executemany(
            """INSERT INTO memory.memory (id, version, space_no, kind, text, subject, agent, thread,
                   predicate, provenance_json, valid_from, valid_to, expires_at, importance,
                   metadata_json, embedding, digest, changed_by)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)""",
            [
                (
                    memory.id, version, space_no, int(memory.kind), memory.text, memory.scope.subject,
                    memory.scope.agent, memory.scope.thread, memory.predicate, memory.provenance_json,
                    memory.valid_from, memory.valid_to, memory.expires_at, memory.importance,
                    memory.metadata_json, list(memory.embedding) or None, memory.digest, changed_by,
                )
                for memory, version in memories
            ],
        )  # fmt: skip
        now = await self._connection.fetchval("SELECT now()")
        await self._add_documents(space_no, documents, now)

    async def _supersede(self, space_no: int, ids: Sequence[str]) -> None:
        await self._connection.execute(
            "UPDATE memory.memory SET superseded_at = now() WHERE superseded_at IS NULL AND id = ANY($1::text[])",
            list(ids),
        )
        # The old units go through the outbox as well, so that the vector index
        # learns that they are history.
        await self._connection.execute(
            """WITH old AS (
                   UPDATE memory.unit SET superseded_at = now()
                   WHERE space_no = $1 AND kind > 1 AND superseded_at IS NULL AND record_id = ANY($2::text[])
                   RETURNING unit
               )
               INSERT INTO memory.outbox (space_no, unit, counted) SELECT $1, unit, true FROM old""",
            space_no, list(ids),
        )  # fmt: skip

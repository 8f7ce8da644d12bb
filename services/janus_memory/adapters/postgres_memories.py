"""Memories in Postgres: remembering, changing and forgetting."""

from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import accumulate

from janus_kit.postgres import Connection
from janus_memory.adapters.postgres_turns import TurnStatements
from janus_memory.adapters.postgres_units import UnitStatements
from janus_memory.adapters.sql import VERSION_COLUMNS, Bound, rows_of, version_of
from janus_memory.model import Cause, Change, Document, Memory, MemoryVersion, NewMemory
from janus_memory.ports import KnownMemory


class MemoryStatements(TurnStatements, UnitStatements):
    """Memories by version, of one tenant's transaction."""

    _connection: Connection

    async def lock_remembering(self, space_no: int, subjects: Collection[str] = ()) -> datetime:
        # Two writers of one text must not both find it absent; a lock by space is
        # simpler than a lost race on the unique index, and is held for milliseconds.
        # The time is read with the lock in hand, so times on record follow it: each part of the statement
        # has its row from the one before.
        at: datetime = await self._connection.fetchval(
            """WITH subjects AS MATERIALIZED (
                   SELECT count(pg_advisory_xact_lock_shared(
                       memory.subject_key(current_setting('janus.tenant'), subject))::text)
                   FROM unnest($2::text[]) AS subject
               ), held AS MATERIALIZED (
                   SELECT pg_advisory_xact_lock(hashtextextended('janus.memory.remember', $1))::text FROM subjects
               )
               SELECT clock_timestamp() FROM held""",
            space_no, _distinct(subjects),
        )  # fmt: skip
        return at

    async def hold_subjects(self, subjects: Collection[str]) -> None:
        await self._connection.execute(
            """SELECT pg_advisory_xact_lock_shared(memory.subject_key(current_setting('janus.tenant'), subject))
               FROM unnest($1::text[]) AS subject""",
            _distinct(subjects),
        )

    async def known_memories(self, space_no: int, ids: Sequence[str], digests: Sequence[bytes]) -> list[KnownMemory]:
        bound = Bound(space_no, list(digests))
        of_id = """(SELECT DISTINCT ON (id) id, version, digest, expires_at, recorded_at,
                           superseded_at IS NULL AS current, space_no = $1 AS here
                    FROM memory.memory WHERE id = ANY({}::text[]) ORDER BY id, version DESC)
                   UNION """
        rows = await self._connection.fetch(
            f"""{of_id.format(bound(list(ids))) if ids else ""}
               SELECT id, version, digest, expires_at, recorded_at, true AS current, true AS here
               FROM memory.memory WHERE superseded_at IS NULL AND space_no = $1 AND digest = ANY($2::bytea[])""",  # noqa: S608 - constants
            *bound.values,
        )
        return [KnownMemory(**row) for row in rows]

    async def add_memories(
        self,
        space_no: int,
        memories: Sequence[tuple[NewMemory, int]],
        documents: Sequence[Document],
        cause: Cause,
        at: datetime,
    ) -> None:
        again = [memory.id for memory, version in memories if version > 1]
        if again:
            await self._supersede(space_no, again, at)
        bound = Bound(space_no)
        inserted = _versions(
            bound,
            [
                MemoryVersion(
                    _recorded(memory, version, at),
                    Change.CREATED if version == 1 else Change.UPDATED,
                    cause,
                    embedding=memory.embedding,
                    digest=memory.digest,
                )
                for memory, version in memories
            ],
        )
        await self._add_documents(bound, documents, at, inserted)

    async def _insert_versions(self, space_no: int, versions: Sequence[MemoryVersion]) -> None:
        bound = Bound(space_no)
        await self._connection.execute(_versions(bound, versions), *bound.values)

    async def latest_version(self, memory_id: str) -> MemoryVersion | None:
        row = await self._connection.fetchrow(
            f"""SELECT {VERSION_COLUMNS}, s.name AS space FROM memory.memory m
                JOIN memory.space s ON s.number = m.space_no
                WHERE m.id = $1 ORDER BY m.version DESC LIMIT 1""",  # noqa: S608 - constant columns
            memory_id,
        )
        return version_of(row, row["space"]) if row else None

    async def add_version(
        self, space_no: int, version: MemoryVersion, digest: bytes, document: Document | None, *, same_text: bool
    ) -> None:
        memory, cause = version.memory, version.cause
        await self._supersede(space_no, [memory.id], memory.recorded_at)
        await self._connection.execute(
            """INSERT INTO memory.memory (id, version, space_no, kind, text, subject, agent, thread,
                   predicate, provenance_json, valid_from, valid_to, expires_at, importance,
                   metadata_json, embedding, digest, changed_by, recorded_at, superseded_at, change,
                   message_id, reason)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,
                   (SELECT embedding FROM memory.memory WHERE $16 AND id = $1 AND version = $2::bigint - 1),
                   $17, $18, $19, $20, $21, $22, $23)""",
            memory.id, memory.version, space_no, int(memory.kind), memory.text, memory.scope.subject,
            memory.scope.agent, memory.scope.thread, memory.predicate, memory.provenance_json,
            memory.valid_from, memory.valid_to, memory.expires_at, memory.importance,
            memory.metadata_json, same_text, digest, cause.changed_by, memory.recorded_at,
            memory.superseded_at, int(version.change), cause.message_id, cause.reason,
        )  # fmt: skip
        if document is not None:
            await self._add_documents(Bound(space_no), [document], memory.recorded_at)

    async def remove_from_search(self, space_no: int, memory_id: str) -> None:
        rows = await self._connection.fetch(
            "SELECT unit FROM memory.unit WHERE space_no = $1 AND kind > 1 AND record_id = $2", space_no, memory_id
        )
        await self._remove_units(space_no, [row["unit"] for row in rows])

    async def purge_versions(self, memory_id: str) -> None:
        # The last version says why it was forgotten, in words written for that.
        await self._connection.execute(
            """UPDATE memory.memory m
               SET text = '', subject = '', agent = '', thread = '', predicate = '', provenance_json = '[]',
                   valid_from = NULL, valid_to = NULL, expires_at = NULL, importance = 0.5, metadata_json = '',
                   embedding = NULL, digest = '', message_id = '', purged = true,
                   reason = CASE WHEN version = (SELECT max(version) FROM memory.memory WHERE id = $1)
                                 THEN reason ELSE '' END
               WHERE id = $1""",
            memory_id,
        )

    async def _supersede(self, space_no: int, ids: Sequence[str], at: datetime) -> None:
        await self._connection.execute(
            "UPDATE memory.memory SET superseded_at = $2 WHERE superseded_at IS NULL AND id = ANY($1::text[])",
            list(ids), at,
        )  # fmt: skip
        rows = await self._connection.fetch(
            """WITH held AS (
                   SELECT unit, retired FROM memory.unit
                   WHERE space_no = $1 AND kind > 1 AND superseded_at IS NULL AND record_id = ANY($2::text[])
                   ORDER BY unit FOR UPDATE
               )
               UPDATE memory.unit u SET superseded_at = $3, retired = true FROM held
               WHERE u.space_no = $1 AND u.unit = held.unit RETURNING u.unit, held.retired AS already""",
            space_no, list(ids), at,
        )  # fmt: skip
        await self._uncount(space_no, [row["unit"] for row in rows if not row["already"]])
        # The old units go through the outbox as well, so that the vector index
        # learns that they are history.
        await self._enqueue_units(space_no, [row["unit"] for row in rows])


def _versions(bound: Bound, versions: Sequence[MemoryVersion]) -> str:
    """An INSERT of versions into the space that is the first parameter."""
    memories = [version.memory for version in versions]
    numbers = bound([number for version in versions for number in version.embedding])
    rows = rows_of(
        bound,
        id=("text", [memory.id for memory in memories]),
        version=("bigint", [memory.version for memory in memories]),
        kind=("smallint", [int(memory.kind) for memory in memories]),
        text=("text", [memory.text for memory in memories]),
        subject=("text", [memory.scope.subject for memory in memories]),
        agent=("text", [memory.scope.agent for memory in memories]),
        thread=("text", [memory.scope.thread for memory in memories]),
        predicate=("text", [memory.predicate for memory in memories]),
        provenance_json=("text", [memory.provenance_json for memory in memories]),
        valid_from=("timestamptz", [memory.valid_from for memory in memories]),
        valid_to=("timestamptz", [memory.valid_to for memory in memories]),
        expires_at=("timestamptz", [memory.expires_at for memory in memories]),
        importance=("double precision", [memory.importance for memory in memories]),
        metadata_json=("text", [memory.metadata_json for memory in memories]),
        recorded_at=("timestamptz", [memory.recorded_at for memory in memories]),
        superseded_at=("timestamptz", [memory.superseded_at for memory in memories]),
        digest=("bytea", [version.digest for version in versions]),
        change=("smallint", [int(version.change) for version in versions]),
        changed_by=("text", [version.cause.changed_by for version in versions]),
        message_id=("text", [version.cause.message_id for version in versions]),
        reason=("text", [version.cause.reason for version in versions]),
        purged=("boolean", [version.purged for version in versions]),
        # Where its vector ends among the numbers of all vectors, and how long it is.
        ends=("integer", list(accumulate(len(version.embedding) for version in versions))),
        length=("integer", [len(version.embedding) for version in versions]),
    )
    return f"""INSERT INTO memory.memory (space_no, id, version, kind, text, subject, agent, thread, predicate,
                provenance_json, valid_from, valid_to, expires_at, importance, metadata_json, recorded_at,
                superseded_at, digest, change, changed_by, message_id, reason, purged, embedding)
            SELECT $1, id, version, kind, text, subject, agent, thread, predicate,
                   provenance_json, valid_from, valid_to, expires_at, importance, metadata_json, recorded_at,
                   superseded_at, digest, change, changed_by, message_id, reason, purged,
                   CASE WHEN length > 0 THEN ({numbers}::real[])[ends - length + 1 : ends] END
            FROM {rows}"""  # noqa: S608 - placeholders and constants


def _distinct(subjects: Collection[str]) -> list[str]:
    """In one order for everybody who locks them."""
    return sorted({*subjects} - {""})


def _recorded(memory: NewMemory, version: int, now: datetime) -> Memory:
    return Memory(
        id=memory.id,
        version=version,
        kind=memory.kind,
        text=memory.text,
        scope=memory.scope,
        predicate=memory.predicate,
        provenance_json=memory.provenance_json,
        valid_from=memory.valid_from,
        valid_to=memory.valid_to,
        expires_at=memory.expires_at,
        importance=memory.importance,
        metadata_json=memory.metadata_json,
        recorded_at=now,
        superseded_at=None,
    )

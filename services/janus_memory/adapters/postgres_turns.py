"""Threads and turns in Postgres."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from janus_kit.postgres import Connection
from janus_memory.adapters.sql import TURN_COLUMNS, Bound, rows_of, turn_of
from janus_memory.model import Document, NewTurn, Scope, Space, ThreadHead, Turn
from janus_memory.ports import KnownTurn

CHANNEL = "janus_memory_outbox"
"""Where the indexer hears that there is something for it."""


class TurnStatements:
    """Threads and their turns, of one tenant's transaction."""

    _connection: Connection
    _last_outbox: int
    _has_told: bool

    async def lock_thread(self, space_no: int, thread: str, subject: str = "") -> ThreadHead:
        row = await self._connection.fetchrow(
            """WITH held AS MATERIALIZED (
                   SELECT CASE WHEN $3::text <> '' THEN pg_advisory_xact_lock_shared(
                       memory.subject_key(current_setting('janus.tenant'), $3))::text END
               )
               INSERT INTO memory.thread AS t (space_no, id) SELECT $1, $2 FROM held
               ON CONFLICT (tenant, space_no, id) DO UPDATE SET last_position = t.last_position
               RETURNING incarnation, last_position, session, last_occurred_at, removed,
                         clock_timestamp() AS read_at""",
            space_no, thread, subject,
        )  # fmt: skip
        return _head(row)

    async def thread_head(self, space_no: int, thread: str) -> ThreadHead | None:
        row = await self._connection.fetchrow(
            """SELECT incarnation, last_position, session, last_occurred_at, removed, clock_timestamp() AS read_at
               FROM memory.thread WHERE space_no = $1 AND id = $2""",
            space_no, thread,
        )  # fmt: skip
        return _head(row) if row else None

    async def known_turns(self, space_no: int, thread: str, ids: Sequence[str]) -> dict[str, KnownTurn]:
        rows = await self._connection.fetch(
            """SELECT id, position, digest FROM memory.turn
               WHERE space_no = $1 AND thread = $2 AND id = ANY($3::text[])""",
            space_no, thread, list(ids),
        )  # fmt: skip
        return {row["id"]: KnownTurn(row["position"], row["digest"]) for row in rows}

    async def add_turns(
        self, space: Space, head: ThreadHead, turns: Sequence[NewTurn], placed: Sequence[Document]
    ) -> list[Turn]:
        stored = [_stored(turn, document, head.read_at) for turn, document in zip(turns, placed, strict=True)]
        await self.put_turns(space.number, stored, turns, placed)
        return stored

    async def put_turns(
        self, space_no: int, stored: Sequence[Turn], turns: Sequence[NewTurn], placed: Sequence[Document]
    ) -> None:
        await self._connection.executemany(
            """INSERT INTO memory.turn (space_no, thread, position, id, subject, agent, role, speaker,
                   content, text, tokens, calls, results, session, occurred_at, recorded_at,
                   metadata_json, digest)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)""",
            [
                (
                    space_no, turn.scope.thread, turn.position, turn.id, turn.scope.subject,
                    turn.scope.agent, int(new.role), turn.speaker, turn.content, turn.text, turn.tokens,
                    list(turn.calls), list(turn.results), turn.session, turn.occurred_at,
                    turn.recorded_at, turn.metadata_json, new.digest,
                )
                for turn, new in zip(stored, turns, strict=True)
            ],
        )  # fmt: skip
        bound = Bound(
            space_no, stored[0].scope.thread, stored[-1].position, stored[-1].session,
            stored[-1].occurred_at, len(stored),
        )  # fmt: skip
        moved = """UPDATE memory.thread SET last_position = $3, session = $4, last_occurred_at = $5,
                          removed = removed + $3 - last_position - $6
                   WHERE space_no = $1 AND id = $2"""
        await self._add_documents(bound, placed, stored[0].recorded_at, moved)

    async def turns(self, space: Space, scope: Scope, below: int, limit: int) -> list[Turn]:
        rows = await self._connection.fetch(
            f"""SELECT {TURN_COLUMNS} FROM memory.turn t
                WHERE t.space_no = $1 AND t.thread = $2 AND t.position < $3
                  AND ($4 = '' OR t.subject = $4) AND ($5 = '' OR t.agent = $5)
                ORDER BY t.position DESC LIMIT $6""",  # noqa: S608 - constant columns
            space.number, scope.thread, below, scope.subject, scope.agent, limit,
        )  # fmt: skip
        return [turn_of(row, space.name) for row in reversed(rows)]

    async def count_turns(self, space: Space, scope: Scope) -> int:
        count = await self._connection.fetchval(
            """SELECT count(*) FROM memory.turn WHERE space_no = $1 AND thread = $2
                 AND ($3 = '' OR subject = $3) AND ($4 = '' OR agent = $4)""",
            space.number, scope.thread, scope.subject, scope.agent,
        )  # fmt: skip
        return int(count)

    async def answered(self, space_no: int, thread: str, calls: Sequence[str]) -> set[str]:
        rows = await self._connection.fetch(
            """SELECT DISTINCT call FROM memory.turn, unnest(results) AS call
               WHERE space_no = $1 AND thread = $2 AND call = ANY($3::text[])""",
            space_no, thread, list(calls),
        )  # fmt: skip
        return {row["call"] for row in rows}

    async def _add_documents(
        self, bound: Bound, documents: Sequence[Document], recorded_at: datetime, record: str = ""
    ) -> None:
        """Search documents and their outbox rows, in one statement; recorded then unless they say otherwise.

        ``record`` is the write that they are of, which goes with them; its parameters are ``bound``, the
        first of them the space's number. The indexer is told when the transaction commits, and only then.
        """
        rows = rows_of(
            bound,
            kind=("smallint", [int(each.kind) for each in documents]),
            record_id=("text", [each.record_id for each in documents]),
            version=("bigint", [each.version for each in documents]),
            subject=("text", [each.scope.subject for each in documents]),
            agent=("text", [each.scope.agent for each in documents]),
            thread=("text", [each.scope.thread for each in documents]),
            position=("bigint", [each.position for each in documents]),
            session=("integer", [each.session for each in documents]),
            speaker=("text", [each.speaker for each in documents]),
            occurred_at=("timestamptz", [each.occurred_at for each in documents]),
            recorded_at=("timestamptz", [each.recorded_at or recorded_at for each in documents]),
            superseded_at=("timestamptz", [each.superseded_at for each in documents]),
            valid_from=("timestamptz", [each.valid_from for each in documents]),
            valid_to=("timestamptz", [each.valid_to for each in documents]),
            expires_at=("timestamptz", [each.expires_at for each in documents]),
            importance=("double precision", [each.importance for each in documents]),
            metadata=("text", [each.metadata_json for each in documents]),
            terms=("text", [" ".join(each.lexemes) for each in documents]),
            bag=("bytea", [each.bag for each in documents]),
            role=("smallint", [each.role for each in documents]),
            predicate=("text", [each.predicate for each in documents]),
        )
        self._last_outbox = await self._connection.fetchval(
            f"""WITH {f"record AS ({record}), " if record else ""}new AS (
                    INSERT INTO memory.unit (space_no, kind, record_id, version, subject, agent, thread,
                        position, session, speaker, occurred_at, recorded_at, superseded_at, valid_from,
                        valid_to, expires_at, importance, metadata, terms, bag, role, predicate)
                    SELECT $1, kind, record_id, version, subject, agent, thread,
                           position, session, speaker, occurred_at, recorded_at, superseded_at, valid_from,
                           valid_to, expires_at, importance, nullif(metadata, '')::jsonb,
                           array_to_tsvector(string_to_array(terms, ' ')), bag, role, predicate
                    FROM {rows}
                    RETURNING unit
                ), queued AS (
                    INSERT INTO memory.outbox (space_no, unit) SELECT $1, unit FROM new ORDER BY unit
                    RETURNING id
                )
                SELECT max(id), pg_notify('{CHANNEL}', '') FROM queued""",  # noqa: S608 - placeholders and constants
            *bound.values,
        )
        self._has_told = True


def _head(row: Any) -> ThreadHead:
    return ThreadHead(
        incarnation=row["incarnation"].hex,
        last_position=row["last_position"],
        session=row["session"],
        last_occurred_at=row["last_occurred_at"],
        read_at=row["read_at"],
        removed=row["removed"],
    )


def _stored(turn: NewTurn, document: Document, recorded_at: datetime) -> Turn:
    assert turn.occurred_at is not None
    return Turn(
        id=turn.id,
        scope=turn.scope,
        speaker=turn.speaker,
        text=turn.text,
        content=turn.content,
        tokens=turn.tokens,
        calls=turn.calls,
        results=turn.results,
        position=document.position,
        session=document.session,
        occurred_at=turn.occurred_at,
        recorded_at=recorded_at,
        metadata_json=turn.metadata_json,
    )

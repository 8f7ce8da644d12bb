"""Turns as extractions read them, how far they are, and answers that could not be used, in Postgres."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from janus_kit.postgres import Connection
from janus_memory.extraction import DeadAnswer, Extent, Source
from janus_memory.model import Role, Scope

_ITS = "space_no = $1 AND thread = $2 AND ($3 = '' OR subject = $3) AND ($4 = '' OR agent = $4)"
_SOURCE = (
    "position, id, role, speaker, subject, cardinality(results) > 0 AS answers, occurred_at, recorded_at,"
    " left(text, {}) AS text"
)


class ExtractionStatements:
    """Implements extraction.Extracting."""

    _connection: Connection

    async def positions_of(self, space_no: int, asked: Scope, ids: Sequence[str]) -> Mapping[str, int]:
        rows = await self._connection.fetch(
            f"SELECT id, position FROM memory.turn WHERE {_ITS} AND id = ANY($5::text[])",  # noqa: S608 - constants
            *_asked(space_no, asked), list(ids),
        )  # fmt: skip
        return {row["id"]: row["position"] for row in rows}

    async def extent_of(self, space_no: int, asked: Scope, after: int, only: Sequence[int] | None) -> Extent:
        row = await self._connection.fetchrow(
            f"""SELECT count(*) AS turns, array_agg(DISTINCT subject) AS subjects, coalesce(max(position), 0) AS upto
                FROM memory.turn
                WHERE {_ITS} AND position > $5 AND ($6::bigint[] IS NULL OR position = ANY($6))""",  # noqa: S608 - constants
            *_asked(space_no, asked), after, only,
        )  # fmt: skip
        return Extent(row["turns"], [subject for subject in row["subjects"] or () if subject], row["upto"])

    async def sources(
        self, space_no: int, asked: Scope, after: int, upto: int, only: Sequence[int] | None, limit: int, max_chars: int
    ) -> list[Source]:
        rows = await self._connection.fetch(
            f"""SELECT {_SOURCE.format("$9")} FROM memory.turn
                WHERE {_ITS} AND position > $5 AND position <= $6 AND ($7::bigint[] IS NULL OR position = ANY($7))
                ORDER BY position LIMIT $8""",  # noqa: S608 - constants
            *_asked(space_no, asked), after, upto, only, limit, max_chars,
        )  # fmt: skip
        return [_source(row) for row in rows]

    async def sources_before(self, space_no: int, asked: Scope, below: int, limit: int, max_chars: int) -> list[Source]:
        rows = await self._connection.fetch(
            f"""SELECT {_SOURCE.format("$7")} FROM memory.turn WHERE {_ITS} AND position < $5
                ORDER BY position DESC LIMIT $6""",  # noqa: S608 - constants
            *_asked(space_no, asked), below, limit, max_chars,
        )  # fmt: skip
        return [_source(row) for row in reversed(rows)]

    async def extracted_upto(self, space_no: int, asked: Scope) -> int:
        upto: int | None = await self._connection.fetchval(
            """SELECT upto FROM memory.extraction
               WHERE space_no = $1 AND thread = $2 AND subject = $3 AND agent = $4""",
            *_asked(space_no, asked),
        )
        return upto or 0

    async def move_extracted(self, space_no: int, asked: Scope, was: int, upto: int) -> bool:
        if was:
            status = await self._connection.execute(
                """UPDATE memory.extraction SET upto = $5
                   WHERE space_no = $1 AND thread = $2 AND subject = $3 AND agent = $4 AND upto = $6""",
                *_asked(space_no, asked), upto, was,
            )  # fmt: skip
        else:
            # Not for a thread that went meanwhile: its next turns are others.
            status = await self._connection.execute(
                """INSERT INTO memory.extraction (space_no, thread, subject, agent, upto)
                   SELECT space_no, id, $3, $4, $5 FROM memory.thread WHERE space_no = $1 AND id = $2 FOR KEY SHARE
                   ON CONFLICT DO NOTHING""",
                *_asked(space_no, asked), upto,
            )  # fmt: skip
        return bool(status.endswith(" 1"))

    async def add_dead_letter(self, space_no: int, letter: DeadAnswer) -> None:
        await self._connection.execute(
            """INSERT INTO memory.dead_letter (space_no, subjects, arguments, requested_by, reason, answer, recorded_at)
               VALUES ($1, $2, $3::jsonb, $4, $5, $6, $7)""",
            space_no, list(letter.subjects), json.dumps(letter.arguments), letter.requested_by,
            letter.reason, letter.answer, letter.recorded_at,
        )  # fmt: skip

    async def take_dead_answers(self, space_no: int) -> list[DeadAnswer]:
        # Before any row, as whoever writes about these subjects does: an erasure waits for what becomes of them.
        held = await self._connection.fetchval(
            """WITH held AS MATERIALIZED (
                   SELECT subject, pg_advisory_xact_lock_shared(
                       memory.subject_key(current_setting('janus.tenant'), subject))
                   FROM (SELECT DISTINCT unnest(subjects) AS subject FROM memory.dead_letter
                         WHERE $1 = 0 OR space_no = $1 ORDER BY subject) s
               )
               SELECT coalesce(array_agg(subject), '{}') FROM held""",
            space_no,
        )
        rows = await self._connection.fetch(
            """DELETE FROM memory.dead_letter WHERE ($1 = 0 OR space_no = $1) AND subjects <@ $2::text[]
               RETURNING subjects, arguments, requested_by""",
            space_no, held,
        )  # fmt: skip
        return [DeadAnswer(row["subjects"], json.loads(row["arguments"]), row["requested_by"]) for row in rows]


def _asked(space_no: int, asked: Scope) -> tuple[Any, ...]:
    return space_no, asked.thread, asked.subject, asked.agent


def _source(row: Any) -> Source:
    return Source(**{**row, "role": Role(row["role"])})

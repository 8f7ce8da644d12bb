"""The outbox in Postgres, as the indexer of one tenant's rows uses it."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from janus_kit.postgres import Connection
from janus_memory.adapters.postgres_turns import CHANNEL
from janus_memory.adapters.postgres_units import UnitStatements
from janus_memory.adapters.sql import indexed_of
from janus_memory.model import Embeddable, IndexBatch, IndexTask, Kind, View
from janus_memory.text import date_text, line

EMBEDDED_CHARS = 8_000
"""Characters of a record that are embedded; models read no further."""
REACH_BEFORE = 2
"""Turns before a turn that are embedded with it, of the same session."""


class OutboxStatements(UnitStatements):
    """Outbox rows and what they ask for, of one tenant's transaction."""

    _connection: Connection
    _last_outbox: int
    _has_told: bool

    async def enqueue(self, space_no: int) -> int:
        if not self._last_outbox:
            last = await self._connection.fetchval(
                "SELECT coalesce(max(id), 0) FROM memory.outbox WHERE space_no = $1", space_no
            )
            return int(last)
        if not self._has_told:
            await self._connection.execute("SELECT pg_notify($1, '')", CHANNEL)
        return self._last_outbox

    async def unindexed(self, space_no: int, upto: int) -> list[int]:
        rows = await self._connection.fetch(
            """SELECT DISTINCT unit FROM memory.outbox
               WHERE space_no = $1 AND id <= $2 AND dead_at IS NULL ORDER BY unit""",
            space_no, upto,
        )  # fmt: skip
        return [row["unit"] for row in rows]

    async def held_tasks(self, batch: IndexBatch, ids: Sequence[int]) -> list[IndexTask]:
        rows = await self._connection.fetch(
            """SELECT id, unit, attempts, counted FROM memory.outbox
               WHERE space_no = $1 AND id = ANY($2::bigint[]) AND lease = $3 ORDER BY id FOR UPDATE""",
            batch.space_no, list(ids), UUID(batch.lease),
        )  # fmt: skip
        return [IndexTask(row["id"], row["unit"], row["attempts"], row["counted"]) for row in rows]

    async def count_terms(self, space_no: int, tasks: Sequence[IndexTask]) -> None:
        if not tasks:
            return
        await self._tally(space_no, [task.unit for task in tasks], 1)
        await self._connection.execute(
            "UPDATE memory.outbox SET counted = true WHERE space_no = $1 AND id = ANY($2::bigint[])",
            space_no, [task.id for task in tasks],
        )  # fmt: skip

    async def finish_tasks(self, space_no: int, ids: Sequence[int]) -> None:
        # What the live generation has learnt, one in building has yet to.
        await self._connection.execute(
            """WITH finished AS (
                   DELETE FROM memory.outbox WHERE space_no = $1 AND id = ANY($2::bigint[]) RETURNING unit
               )
               INSERT INTO memory.rebuild (space_no, unit) SELECT $1, unit FROM finished
               WHERE EXISTS (SELECT FROM memory.generation WHERE space_no = $1 AND phase = 1)""",
            space_no, list(ids),
        )  # fmt: skip

    async def postpone_tasks(
        self, space_no: int, ids: Sequence[int], delay_s: float, error: str, blame: bool, dead_after: int
    ) -> int:
        rows = await self._connection.fetch(
            """UPDATE memory.outbox
               SET lease = NULL, leased_until = NULL, error = left($4, 1000),
                   available_at = now() + make_interval(secs => $3::double precision),
                   attempts = attempts + $5::integer,
                   dead_at = CASE WHEN $5 = 1 AND attempts + 1 >= $6::integer THEN now() END
               WHERE space_no = $1 AND id = ANY($2::bigint[]) RETURNING dead_at""",
            space_no, list(ids), delay_s, error, int(blame), dead_after,
        )  # fmt: skip
        return sum(row["dead_at"] is not None for row in rows)

    async def embeddables(self, space_no: int, units: Sequence[int]) -> list[Embeddable]:
        rows = await self._connection.fetch(
            f"""SELECT u.unit, u.kind, u.subject, u.agent, u.thread, u.recorded_at, u.valid_from,
                       u.valid_to, u.expires_at, u.superseded_at, u.version, u.occurred_at, u.speaker,
                       left(coalesce(t.text, m.text), {EMBEDDED_CHARS}) AS text, m.embedding
                FROM memory.unit u
                LEFT JOIN LATERAL (
                    SELECT text FROM memory.turn
                    WHERE u.kind = 1 AND space_no = u.space_no AND thread = u.thread AND position = u.position
                    OFFSET 0) AS t ON true
                LEFT JOIN LATERAL (
                    SELECT text, embedding FROM memory.memory
                    WHERE u.kind > 1 AND id = u.record_id AND version = u.version
                    OFFSET 0) AS m ON true
                WHERE u.space_no = $1 AND u.unit = ANY($2::bigint[])
                  AND NOT EXISTS (SELECT FROM memory.tombstone d
                                  WHERE d.space_no = u.space_no AND d.unit = u.unit)
                ORDER BY u.unit""",  # noqa: S608 - a constant
            space_no, list(units),
        )  # fmt: skip
        earlier: dict[int, list[str]] = {}
        for row in await self._connection.fetch(
            f"""SELECT u.unit, t.speaker, left(t.text, {EMBEDDED_CHARS}) AS text
                FROM memory.unit u
                CROSS JOIN LATERAL (
                    SELECT position, speaker, text FROM memory.turn
                    WHERE space_no = u.space_no AND thread = u.thread
                      AND position BETWEEN u.position - {REACH_BEFORE} AND u.position - 1 AND session = u.session
                    OFFSET 0) AS t
                WHERE u.space_no = $1 AND u.kind = 1 AND u.unit = ANY($2::bigint[])
                ORDER BY u.unit, t.position""",  # noqa: S608 - constants
            space_no, list(units),
        ):  # fmt: skip
            earlier.setdefault(row["unit"], []).append(line(row["speaker"], row["text"]))
        return [_embeddable(row, earlier.get(row["unit"], [])) for row in rows if row["text"] is not None]


def _embeddable(row: Any, before: Sequence[str]) -> Embeddable:
    kind = Kind(row["kind"])
    alone = line(row["speaker"], row["text"])
    texts = {View.ALONE: alone, View.BEFORE: alone}
    if kind is Kind.TURN:
        date = f"({date_text(row['occurred_at'])})"
        together = "\n".join([*before, alone])
        texts = {View.ALONE: f"{date} {alone}", View.BEFORE: f"{date} {together}"}
    return Embeddable(
        about=indexed_of(row),
        version=row["version"],
        texts=texts,
        embedding=tuple(row["embedding"] or ()),
    )

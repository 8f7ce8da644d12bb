"""What a space's retention removes, and what expires, in Postgres."""

from collections.abc import Sequence
from typing import Any

from janus_kit.postgres import Connection
from janus_memory.adapters.postgres_memories import MemoryStatements
from janus_memory.adapters.postgres_outbox import REACH_BEFORE

# A longer retention, or none, would reach beyond what Postgres calls a time.
_OLD = "recorded_at < now() - (SELECT least(retention, interval '1000 years') FROM memory.space WHERE number = $1)"


class RetentionStatements(MemoryStatements):
    """Records that come to their end, of one tenant's transaction."""

    _connection: Connection

    async def lock_sweeping(self, space_no: int) -> bool:
        return bool(
            await self._connection.fetchval(
                "SELECT pg_try_advisory_xact_lock(hashtextextended('janus.memory.sweep', $1))", space_no
            )
        )

    async def retire_expired(self, space_no: int, limit: int) -> int:
        rows = await self._connection.fetch(
            """WITH held AS (
                   SELECT unit FROM memory.unit
                   WHERE space_no = $1 AND NOT retired AND (superseded_at IS NOT NULL OR expires_at <= now())
                   ORDER BY unit LIMIT $2 FOR UPDATE
               )
               UPDATE memory.unit u SET retired = true FROM held
               WHERE u.space_no = $1 AND u.unit = held.unit RETURNING u.unit""",
            space_no, limit,
        )  # fmt: skip
        await self._uncount(space_no, [row["unit"] for row in rows])
        return len(rows)

    async def remove_old_memories(self, space_no: int, limit: int) -> int:
        rows = await self._connection.fetch(
            f"""WITH gone AS (
                    DELETE FROM memory.memory WHERE (id, version) IN (
                        SELECT id, version FROM memory.memory WHERE space_no = $1 AND {_OLD}
                        ORDER BY recorded_at LIMIT $2)
                    RETURNING id, version
                )
                SELECT u.unit FROM gone LEFT JOIN LATERAL (
                    SELECT unit FROM memory.unit
                    WHERE space_no = $1 AND kind > 1 AND record_id = gone.id AND version = gone.version
                    OFFSET 0) AS u ON true""",  # noqa: S608 - constants
            space_no, limit,
        )  # fmt: skip
        await self._remove_units(space_no, [row["unit"] for row in rows if row["unit"] is not None])
        return len(rows)

    async def remove_old_turns(self, space_no: int, limit: int) -> tuple[int, Sequence[str]]:
        await self._connection.execute(
            f"DELETE FROM memory.dead_letter WHERE space_no = $1 AND {_OLD}",  # noqa: S608 - a constant
            space_no,
        )
        rows = await self._connection.fetch(
            f"""SELECT unit, thread, position FROM memory.unit
                WHERE space_no = $1 AND kind = 1 AND {_OLD} ORDER BY recorded_at LIMIT $2""",  # noqa: S608 - constants
            space_no, limit,
        )  # fmt: skip
        return await self._remove_turns(space_no, rows)

    async def remove_turns(self, space_no: int, thread: str, ids: Sequence[str]) -> tuple[int, Sequence[str]]:
        # Held before the turns are looked for: a writer of the thread has ended, or waits.
        await self._connection.execute(
            "SELECT FROM memory.thread WHERE space_no = $1 AND id = $2 FOR UPDATE", space_no, thread
        )
        rows = await self._connection.fetch(
            """SELECT u.unit, u.thread, u.position FROM memory.turn t
               JOIN memory.unit u ON u.tenant = t.tenant AND u.space_no = t.space_no AND u.kind = 1
                    AND u.thread = t.thread AND u.position = t.position
               WHERE t.space_no = $1 AND t.thread = $2 AND t.id = ANY($3::text[])""",
            space_no, thread, list(ids),
        )  # fmt: skip
        return await self._remove_turns(space_no, rows)

    async def _remove_turns(self, space_no: int, rows: Sequence[Any]) -> tuple[int, Sequence[str]]:
        """Turns, by their units; how many, and the incarnations whose windows had them."""
        if not rows:
            return 0, ()
        threads = [row["thread"] for row in rows]
        positions = [row["position"] for row in rows]
        # The next incarnation's window begins empty; who still fills the old one fills nobody's.
        heads = await self._connection.fetch(
            """SELECT id, incarnation FROM memory.thread
               WHERE space_no = $1 AND id = ANY($2::text[]) ORDER BY id FOR UPDATE""",
            space_no, threads,
        )  # fmt: skip
        await self._connection.execute(
            """WITH gone AS (
                   DELETE FROM memory.turn t USING unnest($2::text[], $3::bigint[]) AS r (thread, position)
                   WHERE t.space_no = $1 AND t.thread = r.thread AND t.position = r.position
                   RETURNING t.thread
               )
               UPDATE memory.thread t SET removed = t.removed + g.count, incarnation = gen_random_uuid()
               FROM (SELECT thread, count(*) FROM gone GROUP BY thread) g
               WHERE t.space_no = $1 AND t.id = g.thread""",
            space_no, threads, positions,
        )  # fmt: skip
        await self._remove_units(space_no, [row["unit"] for row in rows])
        # Vectors of the turns after them were made with their text.
        after = await self._connection.fetch(
            f"""SELECT DISTINCT u.unit
                FROM unnest($2::text[], $3::bigint[]) AS r (in_thread, at)
                CROSS JOIN LATERAL (
                    SELECT unit FROM memory.unit
                    WHERE space_no = $1 AND kind = 1 AND thread = r.in_thread
                      AND position BETWEEN r.at + 1 AND r.at + {REACH_BEFORE}
                    OFFSET 0) AS u""",  # noqa: S608 - a constant
            space_no, threads, positions,
        )  # fmt: skip
        await self._enqueue_units(space_no, [row["unit"] for row in after])
        return len(rows), [row["incarnation"].hex for row in heads]

"""Summaries of threads in Postgres, and what they are made of."""

from uuid import UUID

from janus_kit.postgres import Connection
from janus_memory.model import Role, Said, Summary, SummaryTask


class SummaryStatements:
    """Summaries of one tenant's transaction."""

    _connection: Connection

    async def summary(self, space_no: int, thread: str, incarnation: str) -> Summary | None:
        row = await self._connection.fetchrow(
            """SELECT text, upto FROM memory.summary
               WHERE space_no = $1 AND thread = $2 AND incarnation = $3 AND upto > 0""",
            space_no, thread, UUID(incarnation),
        )  # fmt: skip
        return Summary(row["text"], row["upto"]) if row else None

    async def claim_summary(self, space_no: int, thread: str, lease: str, lease_s: float) -> SummaryTask | None:
        # The share lock makes this wait for, and see, an erasure of the thread.
        row = await self._connection.fetchrow(
            """WITH grown AS (
                   SELECT incarnation, last_position FROM memory.thread
                   WHERE space_no = $1 AND id = $2 FOR KEY SHARE
               )
               INSERT INTO memory.summary AS s (space_no, thread, incarnation, lease, available_at)
               SELECT $1, $2, incarnation, $3, now() + make_interval(secs => $4) FROM grown
               ON CONFLICT (tenant, space_no, thread) DO UPDATE
               SET lease = excluded.lease, available_at = excluded.available_at, incarnation = excluded.incarnation,
                   upto = CASE WHEN s.incarnation = excluded.incarnation THEN s.upto ELSE 0 END,
                   text = CASE WHEN s.incarnation = excluded.incarnation THEN s.text ELSE '' END,
                   attempts = CASE WHEN s.incarnation = excluded.incarnation THEN s.attempts ELSE 0 END
               WHERE s.available_at <= now() OR s.incarnation <> excluded.incarnation
               RETURNING upto, text, attempts, (SELECT last_position FROM grown) AS last_position""",
            space_no, thread, UUID(lease), lease_s,
        )  # fmt: skip
        if row is None:
            return None
        return SummaryTask(lease, row["last_position"], Summary(row["text"], row["upto"]), row["attempts"])

    async def said(self, space_no: int, thread: str, after: int, upto: int, limit: int, max_chars: int) -> list[Said]:
        rows = await self._connection.fetch(
            """SELECT position, role, speaker, left(text, $6) AS text, occurred_at FROM memory.turn
               WHERE space_no = $1 AND thread = $2 AND position > $3 AND position <= $4
               ORDER BY position LIMIT $5""",
            space_no, thread, after, upto, limit, max_chars,
        )  # fmt: skip
        return [
            Said(row["position"], Role(row["role"]), row["speaker"], row["text"], row["occurred_at"]) for row in rows
        ]

    async def put_summary(self, space_no: int, thread: str, lease: str, summary: Summary, attempts: int) -> bool:
        status = await self._connection.execute(
            """UPDATE memory.summary
               SET text = $4, upto = $5, attempts = $6, lease = NULL, available_at = now(), updated_at = now()
               WHERE space_no = $1 AND thread = $2 AND lease = $3""",
            space_no, thread, UUID(lease), summary.text, summary.upto, attempts,
        )  # fmt: skip
        return bool(status == "UPDATE 1")

    async def postpone_summary(self, space_no: int, thread: str, lease: str, delay_s: float) -> None:
        await self._connection.execute(
            """UPDATE memory.summary
               SET attempts = attempts + 1, lease = NULL, available_at = now() + make_interval(secs => $4)
               WHERE space_no = $1 AND thread = $2 AND lease = $3""",
            space_no, thread, UUID(lease), delay_s,
        )  # fmt: skip


async def grown_threads(worker: Connection, turns: int, limit: int) -> list[tuple[str, int, str]]:
    """(tenant, space, thread) with at least so many turns that no summary covers and nobody works on."""
    rows = await worker.fetch(
        """SELECT tenant, space_no, id FROM memory.thread t
           WHERE last_position >= $1
             AND NOT EXISTS (SELECT FROM memory.summary s
                             WHERE s.tenant = t.tenant AND s.space_no = t.space_no AND s.thread = t.id
                               AND s.incarnation = t.incarnation
                               AND (t.last_position - s.upto < $1 OR s.available_at > now()))
           LIMIT $2""",
        turns, limit,
    )  # fmt: skip
    return [(row["tenant"], row["space_no"], row["id"]) for row in rows]

"""Rows of the outbox that the indexer gave up on, in Postgres."""

from janus_kit.postgres import Connection
from janus_memory.adapters.postgres_outbox import CHANNEL
from janus_memory.ports import DeadLetters


class DeadLetterStatements:
    """Dead letters, of one tenant's transaction."""

    _connection: Connection

    async def dead_letters(self, space_no: int) -> list[DeadLetters]:
        rows = await self._connection.fetch(
            """SELECT s.name, o.error, count(*) AS rows, min(o.dead_at) AS oldest
               FROM memory.outbox o JOIN memory.space s ON s.number = o.space_no
               WHERE o.dead_at IS NOT NULL AND ($1 = 0 OR o.space_no = $1)
               GROUP BY s.name, o.error ORDER BY rows DESC, s.name, o.error""",
            space_no,
        )
        return [DeadLetters("", row["name"], row["error"], row["rows"], row["oldest"]) for row in rows]

    async def replay_dead(self, space_no: int) -> int:
        status = await self._connection.execute(
            """UPDATE memory.outbox SET dead_at = NULL, attempts = 0, error = '', available_at = now()
               WHERE dead_at IS NOT NULL AND ($1 = 0 OR space_no = $1)""",
            space_no,
        )
        await self._connection.execute("SELECT pg_notify($1, '')", CHANNEL)
        return int(status.split()[-1])

"""What indexing and extractions gave up on, in Postgres."""

from janus_kit.postgres import Connection
from janus_memory.adapters.postgres_turns import CHANNEL
from janus_memory.ports import DeadLetters


class DeadLetterStatements:
    """Dead letters, of one tenant's transaction."""

    _connection: Connection

    async def dead_letters(self, space_no: int) -> list[DeadLetters]:
        rows = await self._connection.fetch(
            """SELECT s.name, d.reason, count(*) AS rows, min(d.dead_at) AS oldest
               FROM (
                   SELECT space_no, error AS reason, dead_at FROM memory.outbox WHERE dead_at IS NOT NULL
                   UNION ALL
                   SELECT space_no, 'extraction: ' || reason, dead_at FROM memory.dead_letter
               ) d JOIN memory.space s ON s.number = d.space_no
               WHERE $1 = 0 OR d.space_no = $1
               GROUP BY s.name, d.reason ORDER BY rows DESC, s.name, d.reason""",
            space_no,
        )
        return [DeadLetters("", row["name"], row["reason"], row["rows"], row["oldest"]) for row in rows]

    async def replay_dead(self, space_no: int) -> int:
        status = await self._connection.execute(
            """UPDATE memory.outbox SET dead_at = NULL, attempts = 0, error = '', available_at = now()
               WHERE dead_at IS NOT NULL AND ($1 = 0 OR space_no = $1)""",
            space_no,
        )
        await self._connection.execute("SELECT pg_notify($1, '')", CHANNEL)
        return int(status.split()[-1])

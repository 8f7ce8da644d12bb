"""Leases and the outbox's timetable: what works across tenants, as ``janus_worker``."""

from collections.abc import AsyncIterator, Sequence

from janus_kit.postgres import Database
from janus_orchestration.adapters.postgres_runs import ANSWER_CHANNEL, CANCEL_CHANNEL, ORPHAN_CHANNEL, READY_CHANNEL
from janus_orchestration.model import Claim


class PostgresLeases:
    """Who works on which run, by the database's clock."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def renew(self, owner: str, run_ids: Sequence[str], lease_s: float) -> dict[str, bool]:
        # By itself: an owner that is stopped in the middle of it must not keep others from its runs.
        found = await self._database.worker_statement(
            "UPDATE orchestration.run_lease SET expires_at = clock_timestamp() + make_interval(secs => $3) "
            "WHERE run_id = ANY($2::text[]) AND owner = $1 RETURNING run_id, cancel",
            owner,
            list(run_ids),
            lease_s,
        )
        return {row["run_id"]: row["cancel"] for row in found}

    async def claim(self, owner: str, limit: int, lease_s: float, works_on: Sequence[str] = ()) -> list[Claim]:
        async with self._database.worker() as connection:
            found = await connection.fetch(
                "WITH free AS (SELECT run_id, owner AS owner_before FROM orchestration.run_lease "
                "WHERE expires_at < clock_timestamp() AND (owner IS DISTINCT FROM $1 OR run_id <> ALL($4::text[])) "
                "ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED) "
                "UPDATE orchestration.run_lease l SET owner = $1, epoch = l.epoch + 1, "
                "expires_at = clock_timestamp() + make_interval(secs => $3) FROM free "
                "WHERE l.run_id = free.run_id RETURNING l.run_id, l.tenant, l.epoch, l.orphaned, free.owner_before",
                owner,
                limit,
                lease_s,
                list(works_on),
            )
        return [
            Claim(row["tenant"], row["run_id"], row["epoch"], row["owner_before"] is not None, row["orphaned"])
            for row in found
        ]

    async def release(self, owner: str) -> None:
        async with self._database.worker() as connection:
            # Nobody's, not a dead one's: whoever takes a run next takes nothing over.
            await connection.execute(
                "UPDATE orchestration.run_lease SET owner = NULL, expires_at = '-infinity' WHERE owner = $1", owner
            )
            await connection.execute("SELECT pg_notify($1, '')", READY_CHANNEL)

    async def orphaned(self, limit: int) -> list[tuple[str, str]]:
        async with self._database.worker() as connection:
            found = await connection.fetch(
                "SELECT tenant, run_id FROM orchestration.run_lease WHERE orphaned AND NOT cancel LIMIT $1", limit
            )
        return [(row["tenant"], row["run_id"]) for row in found]

    async def news(self) -> AsyncIterator[tuple[str, str]]:
        names = {
            READY_CHANNEL: "ready",
            CANCEL_CHANNEL: "cancel",
            ORPHAN_CHANNEL: "orphan",
            ANSWER_CHANNEL: "answer",
        }
        async for channel, payload in self._database.listen(*names):
            yield names.get(channel, ""), payload


class PostgresOutbox:
    """Threads that owe memory their turns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, limit: int, lease_s: float) -> list[tuple[str, str]]:
        async with self._database.worker() as connection:
            found = await connection.fetch(
                # Back-off: twice as long after every attempt, up to five minutes.
                "WITH due AS (SELECT tenant, thread_id, from_position FROM orchestration.memory_outbox "
                "WHERE dead_at IS NULL AND next_attempt < clock_timestamp() "
                "ORDER BY next_attempt LIMIT $1 FOR UPDATE SKIP LOCKED) "
                "UPDATE orchestration.memory_outbox o SET attempts = o.attempts + 1, next_attempt = "
                "clock_timestamp() + make_interval(secs => least($2 * power(2, o.attempts), 300)) FROM due "
                "WHERE o.tenant = due.tenant AND o.thread_id = due.thread_id "
                "AND o.from_position = due.from_position RETURNING o.tenant, o.thread_id",
                limit,
                lease_s,
            )
        return list(dict.fromkeys((row["tenant"], row["thread_id"]) for row in found))

    async def due_removals(self, limit: int, lease_s: float) -> list[tuple[str, str]]:
        async with self._database.worker() as connection:
            found = await connection.fetch(
                "WITH due AS (SELECT tenant, id FROM orchestration.memory_removal "
                "WHERE next_attempt < clock_timestamp() ORDER BY next_attempt LIMIT $1 FOR UPDATE SKIP LOCKED) "
                "UPDATE orchestration.memory_removal r SET attempts = r.attempts + 1, next_attempt = "
                "clock_timestamp() + make_interval(secs => least($2 * power(2, least(r.attempts, 16)), 300)) FROM due "
                "WHERE r.tenant = due.tenant AND r.id = due.id RETURNING r.tenant, r.id",
                limit,
                lease_s,
            )
        return [(row["tenant"], row["id"]) for row in found]

    async def forget_old_requests(self) -> None:
        async with self._database.worker() as connection:
            await connection.execute("DELETE FROM orchestration.request WHERE created_at < now() - interval '24 hours'")

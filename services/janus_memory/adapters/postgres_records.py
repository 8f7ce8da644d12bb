"""The records in Postgres: transactions of a tenant, and the outbox across tenants."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from uuid import UUID

from janus_kit.postgres import Connection, Database
from janus_memory.adapters.postgres_blocks import BlockStatements
from janus_memory.adapters.postgres_dead_letters import DeadLetterStatements
from janus_memory.adapters.postgres_export import PostgresSnapshot
from janus_memory.adapters.postgres_extraction import ExtractionStatements
from janus_memory.adapters.postgres_history import HistoryStatements
from janus_memory.adapters.postgres_import import ImportStatements
from janus_memory.adapters.postgres_operations import OperationStatements
from janus_memory.adapters.postgres_outbox import OutboxStatements
from janus_memory.adapters.postgres_reconciliation import ReconciliationStatements
from janus_memory.adapters.postgres_retention import RetentionStatements
from janus_memory.adapters.postgres_search import SearchStatements
from janus_memory.adapters.postgres_summaries import SummaryStatements, grown_threads
from janus_memory.adapters.postgres_turns import CHANNEL
from janus_memory.model import Backlog, IndexBatch, IndexTask
from janus_memory.ports import Snapshot, Transaction


class PostgresTransaction(
    ReconciliationStatements,
    RetentionStatements,
    ImportStatements,
    HistoryStatements,
    BlockStatements,
    SearchStatements,
    OutboxStatements,
    OperationStatements,
    SummaryStatements,
    DeadLetterStatements,
    ExtractionStatements,
):
    """One transaction of one tenant; row-level security is bound to that tenant."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last_outbox = 0
        self._has_told = False


class PostgresRecords:
    """Implements ports.Records."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def transaction(self, tenant: str) -> AsyncIterator[Transaction]:
        async with self._database.tenant(tenant) as connection:
            yield PostgresTransaction(connection)

    @asynccontextmanager
    async def snapshot(self, tenant: str) -> AsyncIterator[Snapshot]:
        async with self._database.tenant(tenant, snapshot=True) as connection:
            # Pages are read in the order of an index. A planner without statistics would
            # read and sort all that is left for each of them.
            await connection.execute("SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off")
            yield PostgresSnapshot(connection)

    async def claim(
        self, worker: str, limit: int, lease_s: float, held_back: Collection[tuple[str, int]] = ()
    ) -> IndexBatch | None:
        lease = UUID(worker)
        async with self._database.worker() as connection:
            # NOT IN makes a hash of the others once. A planner that last saw the outbox empty would
            # look through all of them anew for every row of NOT EXISTS.
            due = await connection.fetchrow(
                """SELECT tenant, space_no FROM memory.outbox
                   WHERE dead_at IS NULL AND available_at <= now()
                     AND (tenant, space_no) NOT IN (
                       SELECT tenant, space_no FROM memory.outbox
                       WHERE lease IS NOT NULL AND lease <> $1 AND leased_until >= now()
                       UNION ALL SELECT * FROM unnest($2::text[], $3::bigint[]))
                   ORDER BY available_at, id LIMIT 1 FOR UPDATE SKIP LOCKED""",
                lease, [tenant for tenant, _ in held_back], [space_no for _, space_no in held_back],
            )  # fmt: skip
            if due is None:
                return None
            # One worker a space, so that what is written later is applied later;
            # the lock covers the moment in which two could both see no lease.
            alone = await connection.fetchval(
                "SELECT pg_try_advisory_xact_lock(hashtextextended('janus.memory.index', $1))",
                due["space_no"],
            )
            if not alone:
                return None
            # ARRAY(…) is evaluated once. A planner without statistics runs IN (…) anew for
            # every row of the table, and each run locks rows that the others skipped.
            rows = await connection.fetch(
                """UPDATE memory.outbox SET lease = $3, leased_until = now() + make_interval(secs => $4)
                   WHERE tenant = $1 AND space_no = $2 AND id = ANY(ARRAY(
                       SELECT id FROM memory.outbox
                       WHERE tenant = $1 AND space_no = $2 AND dead_at IS NULL AND available_at <= now()
                         AND NOT EXISTS (SELECT FROM memory.outbox
                                         WHERE tenant = $1 AND space_no = $2
                                           AND lease IS NOT NULL AND lease <> $3
                                           AND leased_until >= now())
                       ORDER BY id LIMIT $5 FOR UPDATE SKIP LOCKED))
                   RETURNING id, unit, attempts, counted""",
                due["tenant"], due["space_no"], lease, lease_s, limit,
            )  # fmt: skip
        if not rows:
            return None
        tasks = sorted(
            (IndexTask(row["id"], row["unit"], row["attempts"], row["counted"]) for row in rows),
            key=lambda task: task.id,
        )
        return IndexBatch(due["tenant"], due["space_no"], worker, tuple(tasks))

    async def grown_threads(self, turns: int, limit: int) -> list[tuple[str, int, str]]:
        async with self._database.worker() as connection:
            return await grown_threads(connection, turns, limit)

    async def backlog(self) -> Backlog:
        async with self._database.worker() as connection:
            row = await connection.fetchrow(
                """SELECT count(*) FILTER (WHERE dead_at IS NULL) AS waiting,
                          count(*) FILTER (WHERE dead_at IS NOT NULL) AS dead,
                          coalesce(extract(epoch FROM now() - min(created_at) FILTER (WHERE dead_at IS NULL)), 0)
                              AS oldest,
                          (SELECT count(*) FROM memory.dead_letter) AS unusable
                   FROM memory.outbox"""
            )
        return Backlog(row["waiting"], max(float(row["oldest"]), 0.0), row["dead"], row["unusable"])

    async def tenants_with_dead_letters(self) -> list[str]:
        async with self._database.worker() as connection:
            rows = await connection.fetch(
                """SELECT tenant FROM memory.outbox WHERE dead_at IS NOT NULL
                   UNION SELECT tenant FROM memory.dead_letter ORDER BY tenant"""
            )
        return [row["tenant"] for row in rows]

    async def to_sweep(self) -> list[tuple[str, int]]:
        async with self._database.worker() as connection:
            rows = await connection.fetch(
                """SELECT tenant, number FROM memory.space WHERE retention IS NOT NULL
                   UNION
                   SELECT tenant, space_no FROM memory.unit
                   WHERE NOT retired AND (superseded_at IS NOT NULL OR expires_at <= now())"""
            )
        return [(row["tenant"], row["number"]) for row in rows]

    async def forget_requests(self) -> int:
        async with self._database.worker() as connection:
            status = await connection.execute(
                "DELETE FROM memory.request WHERE created_at < now() - interval '24 hours'"
            )
        return int(status.split()[-1])

    async def due_spaces(self, every_s: float, limit: int) -> list[tuple[str, str]]:
        async with self._database.worker() as connection:
            rows = await connection.fetch(
                """SELECT tenant, name FROM memory.space
                   WHERE reconciled_at <= now() - make_interval(secs => $1::double precision)
                   ORDER BY reconciled_at LIMIT $2""",
                every_s, limit,
            )  # fmt: skip
        return [(row["tenant"], row["name"]) for row in rows]

    async def spaces_of_all(self, after: tuple[str, str], limit: int) -> list[tuple[str, str]]:
        async with self._database.worker() as connection:
            rows = await connection.fetch(
                """SELECT tenant, name FROM memory.space WHERE (tenant, name) > ($1, $2)
                   ORDER BY tenant, name LIMIT $3""",
                *after, limit,
            )  # fmt: skip
        return [(row["tenant"], row["name"]) for row in rows]

    async def tenants_erasing(self, older_than_s: float) -> list[str]:
        async with self._database.worker() as connection:
            rows = await connection.fetch(
                # In no order: those that wait for a store must not be all that is ever looked at.
                """SELECT tenant FROM memory.erasure
                   WHERE started_at < now() - make_interval(secs => $1::double precision)
                   GROUP BY tenant ORDER BY random() LIMIT 100""",
                older_than_s,
            )
        return [row["tenant"] for row in rows]

    async def forget_imports(self) -> int:
        async with self._database.worker() as connection:
            status = await connection.execute(
                "DELETE FROM memory.import_part WHERE created_at < now() - interval '25 hours'"
            )
        return int(status.split()[-1])

    async def forget_vector_changes(self) -> int:
        async with self._database.worker() as connection:
            status = await connection.execute(
                "DELETE FROM memory.vector_change WHERE created_at < now() - interval '10 minutes'"
            )
        return int(status.split()[-1])

    async def wakeups(self) -> AsyncIterator[None]:
        async for _ in self._database.listen(CHANNEL):
            yield None

    async def ping(self) -> None:
        await self._database.ping()

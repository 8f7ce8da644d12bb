"""Webhooks and their outbox in Postgres."""

from collections.abc import AsyncIterator, Mapping

from janus_kit.postgres import Database
from janus_kit.postgres_batch import Batch
from janus_orchestration.adapters import rows
from janus_orchestration.webhook import DeliveryClaim, Letter, Webhook, WebhookDelivery

CHANNEL = "janus_orchestration_webhooks"

_COLUMNS = "name, version, url, events, agents"
_KEY = "tenant = $1 AND webhook = $2 AND run_id = $3 AND sequence = $4"
_HELD = f"{_KEY} AND attempts = $5 AND dead_at IS NULL"


class PostgresWebhooks:
    """Part of ``PostgresRecords``: one tenant's webhooks."""

    _connection: Batch
    _tenant: str

    async def lock_webhooks(self) -> int:
        await self._connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"webhooks\n{self._tenant}"
        )
        count: int = await self._connection.fetchval(
            "SELECT count(*) FROM orchestration.webhook WHERE tenant = $1", self._tenant
        )
        return count

    async def webhook(self, name: str) -> Webhook | None:
        row = await self._connection.fetchrow(
            f"SELECT {_COLUMNS} FROM orchestration.webhook WHERE tenant = $1 AND name = $2",  # noqa: S608
            self._tenant,
            name,
        )
        return None if row is None else _webhook_from(row)

    async def webhooks(self, after: str, limit: int) -> list[Webhook]:
        found = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM orchestration.webhook "  # noqa: S608 - constants only
            'WHERE tenant = $1 AND name COLLATE "C" > $2 ORDER BY name COLLATE "C" LIMIT $3',
            self._tenant,
            after,
            limit,
        )
        return [_webhook_from(row) for row in found]

    async def put_webhook(self, webhook: Webhook) -> None:
        await self._connection.execute(
            "INSERT INTO orchestration.webhook AS w (tenant, name, version, url, events, agents, secret) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (tenant, name) DO UPDATE SET "
            "version = excluded.version, url = excluded.url, events = excluded.events, agents = excluded.agents, "
            "not_before = '-infinity', "
            "secret = CASE WHEN $7 = ''::bytea THEN w.secret ELSE $7 END, "
            "previous_secret = CASE WHEN $7 IN (''::bytea, w.secret) THEN w.previous_secret ELSE w.secret END, "
            "previous_until = CASE WHEN $7 IN (''::bytea, w.secret) THEN w.previous_until "
            "ELSE clock_timestamp() + interval '24 hours' END",
            self._tenant,
            webhook.name,
            webhook.version,
            webhook.url,
            list(webhook.events),
            list(webhook.agents),
            webhook.secret,
        )

    async def delete_webhook(self, name: str) -> bool:
        await self._connection.execute(
            "DELETE FROM orchestration.webhook_delivery WHERE tenant = $1 AND webhook = $2", self._tenant, name
        )
        status: str = await self._connection.execute(
            "DELETE FROM orchestration.webhook WHERE tenant = $1 AND name = $2", self._tenant, name
        )
        return status.endswith(" 1")

    async def deliveries(
        self, webhook: str, dead_only: bool, after: tuple[str, str, int], limit: int
    ) -> list[WebhookDelivery]:
        found = await self._connection.fetch(
            "SELECT webhook, run_id, sequence, kind, created_at, attempts, error, "
            "CASE WHEN dead_at IS NULL THEN next_attempt END AS next_attempt FROM orchestration.webhook_delivery "
            "WHERE tenant = $1 AND (webhook, run_id, sequence) > ($4, $5, $6) AND ($2 = '' OR webhook = $2) "
            "AND (NOT $3 OR dead_at IS NOT NULL) ORDER BY webhook, run_id, sequence LIMIT $7",
            self._tenant,
            webhook,
            dead_only,
            *after,
            limit,
        )
        return [WebhookDelivery(**row) for row in found]

    async def retry_deliveries(self, webhook: str, only: tuple[str, int] | None) -> int:
        run_id, sequence = only or (None, None)
        status: str = await self._connection.execute(
            "UPDATE orchestration.webhook_delivery SET attempts = 0, next_attempt = clock_timestamp(), dead_at = NULL "
            "WHERE tenant = $1 AND webhook = $2 "
            "AND CASE WHEN $3::text IS NULL THEN dead_at IS NOT NULL ELSE run_id = $3 AND sequence = $4 END",
            self._tenant,
            webhook,
            run_id,
            sequence,
        )
        await self._connection.execute(
            "UPDATE orchestration.webhook SET not_before = '-infinity' WHERE tenant = $1 AND name = $2",
            self._tenant,
            webhook,
        )
        await self._connection.execute("SELECT pg_notify($1, '')", CHANNEL)
        return int(status.split()[-1])

    async def letter(self, claim: DeliveryClaim) -> Letter | None:
        row = await self._connection.fetchrow(
            "SELECT w.url, w.secret, CASE WHEN w.previous_until > clock_timestamp() THEN w.previous_secret END "
            "AS previous_secret, e.kind, e.content, r.thread_id, r.agent, r.agent_version, r.options "
            "FROM orchestration.webhook w "
            "JOIN orchestration.event e ON e.tenant = w.tenant AND e.run_id = $3 AND e.sequence = $4 "
            "JOIN orchestration.run r ON r.tenant = w.tenant AND r.id = $3 "
            "WHERE w.tenant = $1 AND w.name = $2",
            *claim[:4],
        )
        if row is None:
            return None
        return Letter(
            url=row["url"],
            secrets=tuple(secret for secret in (row["secret"], row["previous_secret"]) if secret),
            kind=row["kind"],
            event=row["content"],
            thread_id=row["thread_id"],
            agent=row["agent"],
            agent_version=row["agent_version"],
            labels=rows.options_from(row["options"]).labels,
        )

    async def settle_delivery(self, claim: DeliveryClaim) -> None:
        await self._connection.execute(f"DELETE FROM orchestration.webhook_delivery WHERE {_HELD}", *claim)  # noqa: S608

    async def postpone_delivery(self, claim: DeliveryClaim, delay_s: float, hold_s: float, error: str) -> None:
        await self._connection.execute(
            "UPDATE orchestration.webhook_delivery "  # noqa: S608 - constants only
            f"SET next_attempt = clock_timestamp() + make_interval(secs => $6), error = $7 WHERE {_HELD}",
            *claim,
            delay_s,
            error,
        )
        if hold_s:
            await self._connection.execute(
                "UPDATE orchestration.webhook SET not_before = "
                "greatest(not_before, clock_timestamp() + make_interval(secs => $3)) WHERE tenant = $1 AND name = $2",
                claim.tenant,
                claim.webhook,
                hold_s,
            )

    async def bury_delivery(self, claim: DeliveryClaim, error: str) -> None:
        await self._connection.execute(
            f"UPDATE orchestration.webhook_delivery SET dead_at = clock_timestamp(), error = $6 WHERE {_HELD}",  # noqa: S608
            *claim,
            error,
        )


def _webhook_from(row: rows.Row) -> Webhook:
    return Webhook(row["name"], row["url"], tuple(row["events"]), tuple(row["agents"]), row["version"])


class PostgresDeliveryQueue:
    """What is due, as ``janus_worker``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(
        self, limit: int, per_webhook: int, busy: Mapping[tuple[str, str], int], lease_s: float
    ) -> list[DeliveryClaim]:
        async with self._database.worker() as connection:
            found = await connection.fetch(
                # From webhook to webhook through the index, so that a long queue of one is not read for the others.
                "WITH RECURSIVE receiver AS ("
                "(SELECT tenant, webhook FROM orchestration.webhook_delivery WHERE dead_at IS NULL "
                "ORDER BY tenant, webhook LIMIT 1) UNION ALL "
                "(SELECT n.tenant, n.webhook FROM receiver r CROSS JOIN LATERAL ("
                "SELECT tenant, webhook FROM orchestration.webhook_delivery WHERE dead_at IS NULL "
                "AND (tenant, webhook) > (r.tenant, r.webhook) ORDER BY tenant, webhook LIMIT 1) n)), "
                "due AS (SELECT d.tenant, d.webhook, d.run_id, d.sequence FROM receiver r "
                "LEFT JOIN unnest($3::text[], $4::text[], $5::integer[]) AS busy (tenant, webhook, count) "
                "ON busy.tenant = r.tenant AND busy.webhook = r.webhook "
                "LEFT JOIN orchestration.webhook w ON w.tenant = r.tenant AND w.name = r.webhook "
                "CROSS JOIN LATERAL (SELECT * FROM orchestration.webhook_delivery d "
                "WHERE d.tenant = r.tenant AND d.webhook = r.webhook AND d.dead_at IS NULL "
                "AND d.next_attempt <= now() ORDER BY d.next_attempt "
                "LIMIT greatest($2 - coalesce(busy.count, 0), 0) FOR UPDATE SKIP LOCKED) d "
                "WHERE w.not_before IS NULL OR w.not_before <= now() ORDER BY d.next_attempt LIMIT $1) "
                "UPDATE orchestration.webhook_delivery d SET attempts = d.attempts + 1, "
                "next_attempt = clock_timestamp() + make_interval(secs => $6) FROM due "
                "WHERE d.tenant = due.tenant AND d.webhook = due.webhook "
                "AND d.run_id = due.run_id AND d.sequence = due.sequence "
                "RETURNING d.tenant, d.webhook, d.run_id, d.sequence, d.attempts",
                limit,
                per_webhook,
                [tenant for tenant, _ in busy],
                [webhook for _, webhook in busy],
                list(busy.values()),
                lease_s,
            )
        return [DeliveryClaim(*row) for row in found]

    async def news(self) -> AsyncIterator[None]:
        async for _ in self._database.listen(CHANNEL):
            yield

    async def forget_dead(self) -> None:
        async with self._database.worker() as connection:
            await connection.execute(
                "DELETE FROM orchestration.webhook_delivery WHERE dead_at < now() - interval '30 days'"
            )

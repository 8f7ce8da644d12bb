"""What the owner of a run writes: state, steps, events, debts to memory.

The callers lock the run's row and compare its epoch first, in the same
transaction, so that nothing of a fenced owner gets through.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from janus_kit.postgres import Database
from janus_kit.postgres_batch import Batch
from janus_orchestration.adapters import rows
from janus_orchestration.adapters.postgres_pending import PostgresPending
from janus_orchestration.adapters.postgres_runs import PostgresRuns
from janus_orchestration.adapters.postgres_schedules import PostgresSchedules
from janus_orchestration.adapters.postgres_threads import PostgresConversations
from janus_orchestration.adapters.postgres_tools import DROPPED_CHANNEL, OPEN_CHANNEL
from janus_orchestration.adapters.postgres_webhooks import CHANNEL as WEBHOOKS_CHANNEL
from janus_orchestration.adapters.postgres_webhooks import PostgresWebhooks
from janus_orchestration.model import Recorded, Removal, Run, Step, StoreDebt
from janus_orchestration.ports import Records
from janus_orchestration.webhook import KINDS

_ADD_EVENTS = (
    "INSERT INTO orchestration.event (tenant, run_id, sequence, epoch, kind, terminal, content) "
    "SELECT $1, $2, * FROM unnest($3::bigint[], $4::bigint[], $5::text[], $6::boolean[], $7::bytea[])"
)
# Whoever writes events tells the webhooks that want them.
_TELL = (
    "INSERT INTO orchestration.webhook_delivery (tenant, webhook, run_id, sequence, kind) "  # noqa: S608 - constants only
    "SELECT $1, w.name, $2, said.sequence, said.kind FROM unnest($3::bigint[], $4::text[]) AS said (sequence, kind) "
    "JOIN orchestration.webhook w ON w.tenant = $1 AND said.kind = ANY(w.events) "
    "WHERE w.agents = '{}' OR $5::text = ANY(w.agents) "
    f"ON CONFLICT DO NOTHING RETURNING pg_notify('{WEBHOOKS_CHANNEL}', '')"
)

# Positions are given again after a rollback: another debt may begin at the same one.
_THIS_DEBT = "tenant = $1 AND thread_id = $2 AND from_position = $3 AND to_position = $4 AND run_id = $5"


class PostgresJournal:
    """Part of ``PostgresRecords``: the journal of one tenant's runs."""

    _connection: Batch
    _tenant: str

    async def take(self, run_id: str, epoch: int, *, is_takeover: bool) -> Run | None:
        row = await self._connection.fetchrow(
            "UPDATE orchestration.run SET epoch = $3, "  # noqa: S608 - constants only
            "takeovers = takeovers + $4::int "
            "WHERE tenant = $1 AND id = $2 AND epoch < $3 AND ended_at IS NULL "
            f"RETURNING {rows.RUN_COLUMNS}",
            self._tenant,
            run_id,
            epoch,
            int(is_takeover),
        )
        return None if row is None else rows.run_from(row)

    async def write_run(self, run: Run) -> None:
        await self._connection.later(
            "UPDATE orchestration.run SET state = $3, revision = $4, last_sequence = $5, started_at = $6, "
            "ended_at = $7, usage = $8, finish_reason = $9, error = $10, waited_s = $12, waiting_since = $13, "
            # Meanwhile more may have been reserved, but by a run that waits from now on.
            "reserved_sequence = CASE WHEN $13::timestamptz IS NULL THEN greatest(reserved_sequence, $11) ELSE $11 END "
            "WHERE tenant = $1 AND id = $2",
            self._tenant,
            run.id,
            run.state.value,
            run.revision,
            run.last_sequence,
            run.started_at,
            run.ended_at,
            rows.usage_to(run.usage),
            run.finish_reason,
            run.error or None,
            run.reserved_sequence,
            run.waited.total_seconds(),
            run.waiting_since,
        )

    async def put_steps(self, run_id: str, steps: Sequence[Step]) -> None:
        await self._connection.later(
            "INSERT INTO orchestration.step (tenant, run_id, index, kind, attempts, after_epoch, after_sequence, "
            "started_at, ended_at, usage, error, summary) SELECT $1, $2, index, kind, attempts, epoch, sequence, "
            # The driver looks up what it does not know of itself, as an array of jsonb.
            "started_at, ended_at, usage::jsonb, error, summary FROM unnest($3::integer[], $4::text[], "
            "$5::integer[], $6::bigint[], $7::bigint[], $8::timestamptz[], $9::timestamptz[], $10::text[], "
            "$11::bytea[], $12::text[]) AS step "
            "(index, kind, attempts, epoch, sequence, started_at, ended_at, usage, error, summary) "
            "ON CONFLICT (tenant, run_id, index) DO UPDATE SET kind = excluded.kind, attempts = excluded.attempts, "
            "ended_at = excluded.ended_at, usage = excluded.usage, error = excluded.error, "
            "summary = excluded.summary",
            self._tenant,
            run_id,
            [step.index for step in steps],
            [step.kind.value for step in steps],
            [step.attempts for step in steps],
            [step.after.epoch for step in steps],
            [step.after.sequence for step in steps],
            [step.started_at for step in steps],
            [step.ended_at for step in steps],
            [rows.usage_to(step.usage) for step in steps],
            [step.error or None for step in steps],
            [step.summary for step in steps],
        )

    async def steps(self, run_id: str) -> list[Step]:
        found = await self._connection.fetch(
            "SELECT index, kind, attempts, after_epoch, after_sequence, started_at, ended_at, usage, error, summary "
            "FROM orchestration.step WHERE tenant = $1 AND run_id = $2 ORDER BY index",
            self._tenant,
            run_id,
        )
        return [rows.step_from(row) for row in found]

    async def drop_calls(self, run_id: str, steps: Sequence[int]) -> None:
        await self._connection.execute(
            "WITH dropped AS (DELETE FROM orchestration.tool_dispatch WHERE tenant = $1 AND run_id = $2 "
            "AND step = ANY($3::integer[]) RETURNING run_id, step, attempt, state) "
            "SELECT pg_notify($4, concat_ws(':', run_id, step, attempt)) FROM dropped WHERE state = 'claimed'",
            self._tenant,
            run_id,
            list(steps),
            DROPPED_CHANNEL,
        )

    async def hold_calls(self, run_id: str, steps: Sequence[int]) -> None:
        # Calls are claimed before their deadline only.
        await self._connection.later(
            "UPDATE orchestration.tool_dispatch SET deadline = least(deadline, clock_timestamp()) "
            "WHERE tenant = $1 AND run_id = $2 AND step = ANY($3::integer[])",
            self._tenant,
            run_id,
            list(steps),
        )

    async def reopen_calls(self, run_id: str, again: Sequence[tuple[int, float]]) -> None:
        # A new place in the queue: until now the call has waited for a person, not for a worker.
        reopened = await self._connection.fetch(
            "WITH reopened AS (UPDATE orchestration.tool_dispatch d SET state = 'open', attempt = attempt + 1, "
            "opened_at = clock_timestamp(), deadline = clock_timestamp() + make_interval(secs => again.timeout_s), "
            "worker = NULL, worker_id = '', reports = 0, progress = NULL, progress_message = '' "
            "FROM unnest($3::integer[], $4::float8[]) AS again (step, timeout_s) "
            "WHERE d.tenant = $1 AND d.run_id = $2 AND d.step = again.step AND d.state IN ('claimed', 'open') "
            "RETURNING d.step, d.attempt) "
            "SELECT pg_notify($5, concat_ws(':', $2::text, step, attempt - 1)) FROM reopened",
            self._tenant,
            run_id,
            [step for step, _ in again],
            [timeout_s for _, timeout_s in again],
            DROPPED_CHANNEL,
        )
        if reopened:
            await self._connection.execute("SELECT pg_notify($1, $2)", OPEN_CHANNEL, self._tenant)

    async def add_events(self, run: Run, events: Sequence[Recorded]) -> None:
        await self._connection.later(
            _ADD_EVENTS,
            self._tenant,
            run.id,
            [event.cursor.sequence for event in events],
            [event.cursor.epoch for event in events],
            [event.kind for event in events],
            [event.terminal for event in events],
            [event.wire for event in events],
        )
        # Most events are nobody's but the run's watchers'.
        if told := [event for event in events if event.kind in KINDS]:
            await self._connection.later(
                _TELL,
                self._tenant,
                run.id,
                [event.cursor.sequence for event in told],
                [event.kind for event in told],
                run.agent,
            )

    async def events(self, run_id: str, first: int, last: int, limit: int) -> list[Recorded]:
        found = await self._connection.fetch(
            "SELECT sequence, epoch, kind, terminal, content FROM orchestration.event "
            "WHERE tenant = $1 AND run_id = $2 AND sequence BETWEEN $3 AND $4 ORDER BY sequence LIMIT $5",
            self._tenant,
            run_id,
            first,
            last,
            limit,
        )
        return [rows.event_from(row) for row in found]

    async def events_of_kind(self, run_id: str, kind: str, *, after: int = 0) -> list[Recorded]:
        found = await self._connection.fetch(
            "SELECT sequence, epoch, kind, terminal, content FROM orchestration.event "
            "WHERE tenant = $1 AND run_id = $2 AND kind = $3 AND sequence > $4 ORDER BY sequence",
            self._tenant,
            run_id,
            kind,
            after,
        )
        return [rows.event_from(row) for row in found]

    async def set_epoch_start(self, run_id: str, epoch: int, first_sequence: int) -> None:
        # An owner that kept clear of what might have been sent, and then said nothing, has no
        # sequences: the next one may begin before.
        await self._connection.execute(
            "WITH silent AS (UPDATE orchestration.run_epoch SET first_sequence = $4 "
            "WHERE tenant = $1 AND run_id = $2 AND epoch < $3 AND first_sequence > $4) "
            "INSERT INTO orchestration.run_epoch (tenant, run_id, epoch, first_sequence) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT DO NOTHING",
            self._tenant,
            run_id,
            epoch,
            first_sequence,
        )

    async def epoch_starts(self, run_id: str) -> list[tuple[int, int]]:
        found = await self._connection.fetch(
            "SELECT epoch, first_sequence FROM orchestration.run_epoch WHERE tenant = $1 AND run_id = $2 "
            "ORDER BY epoch",
            self._tenant,
            run_id,
        )
        return [(1, 1), *((row["epoch"], row["first_sequence"]) for row in found)]

    async def epoch_starts_of(self, run_ids: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        found = await self._connection.fetch(
            "SELECT run_id, epoch, first_sequence FROM orchestration.run_epoch "
            "WHERE tenant = $1 AND run_id = ANY($2::text[]) ORDER BY epoch",
            self._tenant,
            list(run_ids),
        )
        starts = {run_id: [(1, 1)] for run_id in run_ids}
        for row in found:
            starts[row["run_id"]].append((row["epoch"], row["first_sequence"]))
        return starts

    async def mark_stream_broken(self, run_id: str, epoch: int) -> bool:
        status: str = await self._connection.execute(
            "UPDATE orchestration.run SET stream_broken = true WHERE tenant = $1 AND id = $2 AND epoch = $3",
            self._tenant,
            run_id,
            epoch,
        )
        return status.endswith(" 1")

    async def reserve(self, run_id: str, epoch: int, sequence: int) -> bool:
        status: str = await self._connection.execute(
            "UPDATE orchestration.run SET reserved_sequence = greatest(reserved_sequence, $4) "
            "WHERE tenant = $1 AND id = $2 AND epoch = $3",
            self._tenant,
            run_id,
            epoch,
            sequence,
        )
        return status.endswith(" 1")

    async def release_lease(self, run_id: str) -> None:
        await self._connection.later(
            "DELETE FROM orchestration.run_lease WHERE tenant = $1 AND run_id = $2", self._tenant, run_id
        )

    async def add_debt(self, debt: StoreDebt, delay_s: float) -> None:
        await self._connection.later(
            "INSERT INTO orchestration.memory_outbox "
            "(tenant, thread_id, from_position, to_position, run_id, space, extract, next_attempt) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, clock_timestamp() + make_interval(secs => $8)) ON CONFLICT DO NOTHING",
            self._tenant,
            debt.thread_id,
            debt.from_position,
            debt.to_position,
            debt.run_id,
            debt.space,
            debt.extract,
            delay_s,
        )

    async def debts(self, thread_id: str, *, as_before: bool = False) -> list[StoreDebt]:
        fetch = self._connection.fetch_as_before if as_before else self._connection.fetch
        found = await fetch(
            "SELECT thread_id, from_position, to_position, run_id, space, extract, subject "
            "FROM orchestration.memory_outbox o "
            "JOIN orchestration.thread t ON t.tenant = o.tenant AND t.id = o.thread_id "
            "WHERE o.tenant = $1 AND thread_id = $2 AND dead_at IS NULL ORDER BY from_position",
            self._tenant,
            thread_id,
        )
        return [rows.debt_from(row) for row in found]

    async def pay_debt(self, debt: StoreDebt) -> None:
        await self._connection.later(
            f"DELETE FROM orchestration.memory_outbox WHERE {_THIS_DEBT}",  # noqa: S608 - a constant
            self._tenant,
            debt.thread_id,
            debt.from_position,
            debt.to_position,
            debt.run_id,
        )

    async def bury_debt(self, debt: StoreDebt, reason: str) -> None:
        await self._connection.execute(
            f"UPDATE orchestration.memory_outbox SET dead_at = clock_timestamp(), reason = $6 WHERE {_THIS_DEBT}",  # noqa: S608
            self._tenant,
            debt.thread_id,
            debt.from_position,
            debt.to_position,
            debt.run_id,
            reason.replace("\x00", "\ufffd"),
        )

    async def add_removal(self, removal: Removal, *, final_after_s: float) -> None:
        await self._connection.later(
            "INSERT INTO orchestration.memory_removal "
            "(tenant, id, thread_id, space, message_ids, next_attempt, final_at) VALUES ($1, $2, $3, $4, $5, "
            "clock_timestamp(), clock_timestamp() + make_interval(secs => $6))",
            self._tenant,
            removal.id,
            removal.thread_id,
            removal.space,
            list(removal.message_ids),
            final_after_s,
        )

    async def removal(self, removal_id: str) -> Removal | None:
        row = await self._connection.fetchrow(
            "SELECT id, thread_id, space, message_ids, attempts FROM orchestration.memory_removal "
            "WHERE tenant = $1 AND id = $2",
            self._tenant,
            removal_id,
        )
        return None if row is None else rows.removal_from(row)

    async def settle_removal(self, removal_id: str) -> None:
        await self._connection.execute(
            "WITH ended AS (DELETE FROM orchestration.memory_removal "
            "WHERE tenant = $1 AND id = $2 AND final_at <= clock_timestamp()) "
            "UPDATE orchestration.memory_removal SET next_attempt = final_at "
            "WHERE tenant = $1 AND id = $2 AND final_at > clock_timestamp()",
            self._tenant,
            removal_id,
        )


class PostgresRecords(
    PostgresConversations, PostgresRuns, PostgresJournal, PostgresPending, PostgresSchedules, PostgresWebhooks
):
    """All records of one tenant, in one transaction."""

    def __init__(self, connection: Batch, tenant: str) -> None:
        self._connection = connection
        self._tenant = tenant


class PostgresStore:
    """The records' transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def tenant(self, tenant: str) -> AsyncIterator[Records]:
        async with self._database.tenant(tenant) as connection:
            batch = Batch(connection, "orchestration")
            yield PostgresRecords(batch, tenant)
            await batch.send()

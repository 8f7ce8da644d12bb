"""Runs, and the answers to writes with a request id, in Postgres."""

from collections.abc import Collection
from datetime import datetime

from janus_kit.errors import AlreadyExists
from janus_kit.postgres import literal
from janus_kit.postgres_batch import Batch
from janus_orchestration.adapters import rows
from janus_orchestration.model import Ancestor, Message, Run, RunState, Thread, ThreadMessage
from janus_orchestration.ports import Stale
from janus_orchestration.state import TERMINAL

READY_CHANNEL = "janus_orchestration_ready"
CANCEL_CHANNEL = "janus_orchestration_cancel"
ANSWER_CHANNEL = "janus_orchestration_answer"
ORPHAN_CHANNEL = "janus_orchestration_orphan"


class PostgresRuns:
    """Part of ``PostgresRecords``: one tenant's runs, as callers see and start them."""

    _connection: Batch
    _tenant: str

    async def add_run(self, run: Run, *, has_turn: bool, owner: str | None = None, lease_s: float = 0.0) -> None:
        await self._connection.later(
            "INSERT INTO orchestration.run (tenant, id, thread_id, agent, agent_version, state, options, subject, "
            "cancel_on_disconnect, parent_run, epoch, last_sequence, reserved_sequence, created_at, started_at) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
            self._tenant,
            run.id,
            run.thread_id,
            run.agent,
            run.agent_version,
            run.state.value,
            rows.options_to(run.options),
            run.subject,
            run.cancel_on_disconnect,
            run.parent_run or None,
            run.epoch,
            run.last_sequence,
            run.reserved_sequence,
            run.created_at,
            run.started_at,
        )
        if not has_turn:
            return
        await self._connection.later(
            "INSERT INTO orchestration.run_lease (run_id, tenant, owner, epoch, expires_at) "
            "VALUES ($2, $1, $3, $4, clock_timestamp() + make_interval(secs => $5))",
            self._tenant,
            run.id,
            owner,
            run.epoch,
            lease_s if owner else 0.0,
        )
        if owner is None:
            await self._connection.execute("SELECT pg_notify($1, '')", READY_CHANNEL)

    async def end_turn(self, thread_id: str, run_id: str, following: str = "") -> None:
        await self._connection.execute(
            "WITH ended AS (DELETE FROM orchestration.run_lease WHERE tenant = $1 AND run_id = $3), "
            "next AS (SELECT id, epoch FROM orchestration.run r WHERE tenant = $1 AND thread_id = $2 "
            "AND state = 'queued' AND id <> $3 AND EXISTS (SELECT 1 FROM orchestration.thread t "
            "WHERE t.tenant = $1 AND t.id = $2 AND t.active_run = $3) "
            "ORDER BY id = $4 DESC, enqueued LIMIT 1 FOR UPDATE OF r), "
            "turn AS (UPDATE orchestration.thread SET active_run = (SELECT id FROM next) "
            "WHERE tenant = $1 AND id = $2 AND active_run = $3), "
            "lease AS (INSERT INTO orchestration.run_lease (run_id, tenant, epoch, expires_at) "
            "SELECT id, $1, epoch, clock_timestamp() FROM next RETURNING run_id) "
            "SELECT pg_notify($5, '') FROM lease",
            self._tenant,
            thread_id,
            run_id,
            following,
            READY_CHANNEL,
            # Those that wait for their turn; one that follows may have been added a moment ago.
            apart=() if following else ("run",),
        )

    async def lineage(self, run_id: str) -> list[Ancestor]:
        found = await self._connection.fetch(
            "WITH RECURSIVE line AS ("
            "SELECT id, thread_id, agent, parent_run, 0 AS up FROM orchestration.run WHERE tenant = $1 AND id = $2 "
            "UNION ALL SELECT r.id, r.thread_id, r.agent, r.parent_run, line.up + 1 FROM line "
            "JOIN orchestration.run r ON r.tenant = $1 AND r.id = line.parent_run"
            ") SELECT id, thread_id, agent FROM line ORDER BY up",
            self._tenant,
            run_id,
        )
        return [Ancestor(row["id"], row["thread_id"], row["agent"]) for row in found]

    async def run(self, run_id: str) -> Run | None:
        return await self._run(run_id, "")

    async def lock_run(self, run_id: str) -> Run | None:
        return await self._run(run_id, " FOR UPDATE")

    async def lock_thread_and_run(self, thread_id: str, run_id: str) -> tuple[Thread | None, Run | None]:
        # Postgres reads the run for each row of the thread, which it has locked by then.
        row = await self._connection.fetchrow(
            f"WITH thread AS MATERIALIZED (SELECT {rows.THREAD_COLUMNS} FROM orchestration.thread "  # noqa: S608
            "WHERE tenant = $1 AND id = $2 FOR UPDATE) SELECT thread.*, run.* FROM thread LEFT JOIN LATERAL "
            f"(SELECT {rows.RUN_COLUMNS} FROM orchestration.run WHERE tenant = $1 AND id = $3 FOR UPDATE) run ON true",
            self._tenant,
            thread_id,
            run_id,
        )
        if row is None:
            return None, await self.lock_run(run_id)
        thread, run = rows.parts(row, rows.THREAD_COLUMNS, rows.RUN_COLUMNS)
        return rows.thread_from(thread), None if run["id"] is None else rows.run_from(run)

    async def _run(self, run_id: str, lock: str) -> Run | None:
        row = await self._connection.fetchrow(
            f"SELECT {rows.RUN_COLUMNS} FROM orchestration.run WHERE tenant = $1 AND id = $2{lock}",  # noqa: S608
            self._tenant,
            run_id,
        )
        return None if row is None else rows.run_from(row)

    def expect(self, run: Run, thread: Thread | None) -> None:
        known = ("NULL", 0, 0) if thread is None else (literal(thread.id), thread.last_position, thread.memory_position)
        values = (literal(self._tenant), literal(run.id), run.epoch, run.revision, literal(run.state.value), *known)
        statement = f"SELECT orchestration.expect({', '.join(map(str, values))}) OFFSET 1"
        self._connection.ahead(statement, JN001=lambda: Stale(run.id))

    async def waiting_runs(self, thread_id: str, *, besides: str) -> int:
        count: int = await self._connection.fetchval(
            "SELECT count(*) FROM orchestration.run "
            "WHERE tenant = $1 AND thread_id = $2 AND state = 'queued' AND id <> $3",
            self._tenant,
            thread_id,
            besides,
        )
        return count

    async def lock_queued(self, thread_id: str) -> list[Run]:
        found = await self._connection.fetch(
            f"SELECT {rows.RUN_COLUMNS} FROM orchestration.run "  # noqa: S608 - constants only
            "WHERE tenant = $1 AND thread_id = $2 AND state = 'queued' ORDER BY enqueued FOR UPDATE",
            self._tenant,
            thread_id,
        )
        return [rows.run_from(row) for row in found]

    async def runs(
        self, thread_id: str, states: Collection[RunState], after: tuple[datetime, str] | None, limit: int
    ) -> list[Run]:
        values: list[object] = [self._tenant, limit]
        where = ["tenant = $1"]
        if thread_id:
            values.append(thread_id)
            where.append(f"thread_id = ${len(values)}")
        if states:
            values.append([each.value for each in states])
            where.append(f"state = ANY(${len(values)}::text[])")
            if TERMINAL.isdisjoint(states):
                # For the index of those that go on.
                where.append("ended_at IS NULL")
        if after is not None:
            values += after
            where.append(f"(created_at, id) < (${len(values) - 1}, ${len(values)})")
        found = await self._connection.fetch(
            f"SELECT {rows.RUN_COLUMNS} FROM orchestration.run WHERE {' AND '.join(where)} "  # noqa: S608
            "ORDER BY created_at DESC, id DESC LIMIT $2",
            *values,
        )
        return [rows.run_from(row) for row in found]

    async def take_waiting_messages(self, run_id: str) -> list[Message]:
        found = await self._connection.fetch(
            "DELETE FROM orchestration.message WHERE tenant = $1 "  # noqa: S608 - constants only
            "AND run_id = $2 AND position IS NULL "
            f"RETURNING {rows.MESSAGE_COLUMNS}, ordinal",
            self._tenant,
            run_id,
        )
        return [rows.message_from(row).message for row in sorted(found, key=lambda row: int(row["ordinal"]))]

    async def messages_of(self, run_id: str) -> list[ThreadMessage]:
        found = await self._connection.fetch(
            f"SELECT {rows.MESSAGE_COLUMNS} FROM orchestration.message "  # noqa: S608 - constants only
            "WHERE tenant = $1 AND run_id = $2 AND position IS NOT NULL ORDER BY position",
            self._tenant,
            run_id,
        )
        return [rows.message_from(row) for row in found]

    async def request_cancel(self, run_id: str, reason: str, state: RunState, *, rolls_back: bool) -> None:
        await self._connection.execute(
            "WITH lease AS (UPDATE orchestration.run_lease SET cancel = true WHERE tenant = $1 AND run_id = $2) "
            "UPDATE orchestration.run SET state = $3, cancel_reason = coalesce(cancel_reason, $4), "
            "rolls_back = rolls_back OR $5 WHERE tenant = $1 AND id = $2",
            self._tenant,
            run_id,
            state.value,
            reason,
            rolls_back,
        )

    async def notify_cancel(self, run_id: str) -> None:
        # A run's id is made by the server and says nothing about its tenant.
        await self._connection.execute("SELECT pg_notify($1, $2)", CANCEL_CHANNEL, run_id)

    async def answered(self, method: str, request_id: str, body_hash: bytes, response: bytes) -> bytes | None:
        # A second call with the same id waits here until the first commits or fails.
        row = await self._connection.fetchrow(
            "INSERT INTO orchestration.request AS r (tenant, method, request_id, body_hash, response) "
            "VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant, method, request_id) DO UPDATE "
            "SET body_hash = excluded.body_hash, response = excluded.response, created_at = now() "
            "WHERE r.created_at < now() - interval '24 hours' RETURNING 1",
            self._tenant,
            method,
            request_id,
            body_hash,
            response,
        )
        if row is not None:
            return None
        stored = await self._connection.fetchrow(
            "SELECT body_hash, response FROM orchestration.request "
            "WHERE tenant = $1 AND method = $2 AND request_id = $3",
            self._tenant,
            method,
            request_id,
        )
        if stored["body_hash"] != body_hash:
            raise AlreadyExists(
                "REQUEST_ID_REUSED",
                f"request id '{request_id}' was used with another body",
                "request",
                request_id,
            )
        answer: bytes = stored["response"]
        return answer

    async def set_answer(self, method: str, request_id: str, response: bytes) -> None:
        await self._connection.later(
            "UPDATE orchestration.request SET response = $4 WHERE tenant = $1 AND method = $2 AND request_id = $3",
            self._tenant,
            method,
            request_id,
            response,
        )

"""What runs wait for, in Postgres, and the leases of runs that wait."""

from collections.abc import Sequence

from janus_kit.postgres_batch import Batch
from janus_orchestration.adapters import rows
from janus_orchestration.adapters.postgres_runs import ANSWER_CHANNEL, ORPHAN_CHANNEL, READY_CHANNEL
from janus_orchestration.events import ToolCallCompleted
from janus_orchestration.model import Pending, PendingKind, StepKind, Verdict


class PostgresPending:
    """Part of ``PostgresRecords``: what one tenant's runs wait for."""

    _connection: Batch
    _tenant: str

    async def add_pending(self, run_id: str, pending: Sequence[Pending]) -> None:
        await self._connection.later(
            "INSERT INTO orchestration.pending (tenant, run_id, id, step, kind, call_id, tool, arguments, "
            "arguments_sha256, is_retry, text, schema, expires_at, on_expiry, child_run) "
            "SELECT $1, $2, * FROM unnest($3::text[], $4::integer[], $5::text[], $6::text[], $7::text[], $8::text[], "
            "$9::bytea[], $10::boolean[], $11::text[], $12::text[], $13::timestamptz[], $14::text[], $15::text[])",
            self._tenant,
            run_id,
            [each.id for each in pending],
            [each.step for each in pending],
            [each.kind.value for each in pending],
            [each.call.call_id for each in pending],
            [each.call.name for each in pending],
            [each.call.arguments_json for each in pending],
            [each.arguments_sha256 for each in pending],
            [each.is_retry for each in pending],
            [each.text for each in pending],
            [each.schema_json for each in pending],
            [each.expires_at for each in pending],
            [each.on_expiry.value for each in pending],
            [each.child_run or None for each in pending],
        )

    async def pending(self, run_id: str, after_step: int) -> list[Pending]:
        found = await self._connection.fetch(
            f"SELECT {rows.PENDING_COLUMNS} FROM orchestration.pending "  # noqa: S608 - constants only
            "WHERE tenant = $1 AND run_id = $2 AND step > $3 ORDER BY step, expires_at, id",
            self._tenant,
            run_id,
            after_step,
        )
        return [rows.pending_from(row) for row in found]

    async def awaited(self, run_ids: Sequence[str], most_bytes: int) -> dict[str, list[Pending]]:
        found = await self._connection.fetch(
            f"SELECT run_id, {rows.PENDING_COLUMNS} FROM (SELECT *, sum(octet_length(arguments) "  # noqa: S608
            "+ octet_length(schema)) OVER (ORDER BY run_id DESC, step, id) AS so_far FROM orchestration.pending "
            "WHERE tenant = $1 AND run_id = ANY($2::text[]) AND verdict IS NULL AND expires_at > clock_timestamp()"
            ") open WHERE so_far - octet_length(arguments) - octet_length(schema) <= $3 ORDER BY run_id, step, id",
            self._tenant,
            list(run_ids),
            most_bytes,
        )
        by_run: dict[str, list[Pending]] = {}
        for row in found:
            by_run.setdefault(row["run_id"], []).append(rows.pending_from(row))
        return by_run

    async def find_pending(self, run_id: str, kind: PendingKind, name: str) -> Pending | None:
        # A model may use the id of a call again in a later answer.
        row = await self._connection.fetchrow(
            f"SELECT {rows.PENDING_COLUMNS} FROM orchestration.pending "  # noqa: S608 - constants only
            "WHERE tenant = $1 AND run_id = $2 AND kind = $3 AND CASE kind WHEN 'tool' THEN call_id ELSE id END = $4 "
            "ORDER BY step DESC LIMIT 1",
            self._tenant,
            run_id,
            kind.value,
            name,
        )
        return None if row is None else rows.pending_from(row)

    async def answer_pending(self, run_id: str, pending_id: str, verdict: Verdict, answer: bytes, by: str) -> None:
        await self._connection.later(
            "UPDATE orchestration.pending SET verdict = $4, answer = $5, answered_by = $6, "
            "answered_at = clock_timestamp() WHERE tenant = $1 AND run_id = $2 AND id = $3 AND verdict IS NULL",
            self._tenant,
            run_id,
            pending_id,
            verdict.value,
            answer,
            by,
        )

    async def bytes_of(self, run_id: str, turn: Sequence[str]) -> int:
        size: int = await self._connection.fetchval(
            "SELECT (SELECT coalesce(sum(octet_length(content)), 0) FROM orchestration.message "
            "WHERE tenant = $1 AND run_id = ANY($6::text[])) + (SELECT coalesce(sum(octet_length(answer)), 0) "
            "FROM orchestration.pending WHERE tenant = $1 AND run_id = $2 AND kind = $3 AND NOT is_taken) "
            "+ (SELECT coalesce(sum(octet_length(content)), 0) FROM orchestration.event "
            "WHERE tenant = $1 AND run_id = $2 AND kind = $4 AND sequence > (SELECT coalesce(max(after_sequence), 0) "
            "FROM orchestration.step WHERE tenant = $1 AND run_id = $2 AND kind = $5))",
            self._tenant,
            run_id,
            PendingKind.TOOL.value,
            ToolCallCompleted.kind,
            StepKind.MODEL_CALL.value,
            list(turn),
        )
        return int(size)

    async def expire_pending(self, run_id: str) -> None:
        await self._connection.later(
            "UPDATE orchestration.pending SET verdict = on_expiry "
            "WHERE tenant = $1 AND run_id = $2 AND verdict IS NULL AND expires_at <= clock_timestamp()",
            self._tenant,
            run_id,
        )

    async def take_pending(self, run_id: str, ids: Sequence[str]) -> None:
        await self._connection.later(
            "UPDATE orchestration.pending SET is_taken = true "
            "WHERE tenant = $1 AND run_id = $2 AND id = ANY($3::text[])",
            self._tenant,
            run_id,
            list(ids),
        )

    async def tell_asker(self, run_id: str) -> None:
        asker = await self._lock_asker(run_id)
        if asker is None:
            return
        await self._connection.later(
            "UPDATE orchestration.pending SET verdict = 'answered', answered_at = clock_timestamp() "
            "WHERE tenant = $1 AND run_id = $2 AND child_run = $3 AND verdict IS NULL",
            self._tenant,
            asker,
            run_id,
        )
        await self.wake(asker)

    async def pass_question(self, run_id: str, child_run: str) -> None:
        asker = await self._lock_asker(run_id)
        if asker is not None:
            await self._connection.later(
                "UPDATE orchestration.pending SET child_run = $4 WHERE tenant = $1 AND run_id = $2 AND child_run = $3",
                self._tenant,
                asker,
                run_id,
                child_run,
            )

    async def _lock_asker(self, run_id: str) -> str | None:
        """The run that waits for this one. It is locked after those below it, by everybody."""
        asker: str | None = await self._connection.fetchval(
            "SELECT id FROM orchestration.run WHERE tenant = $1 AND id = (SELECT run_id FROM orchestration.pending "
            "WHERE tenant = $1 AND child_run = $2) FOR UPDATE",
            self._tenant,
            run_id,
        )
        return asker

    async def orphan(self, run_id: str, *, all_of_them: bool) -> None:
        # Who works on one is told; one that nobody works on is there to be claimed, and ends then.
        await self._connection.execute(
            "WITH orphan AS (UPDATE orchestration.run_lease l SET orphaned = true, "
            "expires_at = CASE WHEN l.owner IS NULL THEN '-infinity' ELSE l.expires_at END "
            "FROM orchestration.pending p WHERE p.tenant = $1 AND p.run_id = $2 AND (p.is_taken OR $3) "
            "AND l.tenant = $1 AND l.run_id = p.child_run AND NOT l.orphaned RETURNING l.run_id, l.owner) "
            "SELECT pg_notify(CASE WHEN owner IS NULL THEN $4 ELSE $5 END, run_id) FROM orphan",
            self._tenant,
            run_id,
            all_of_them,
            READY_CHANNEL,
            ORPHAN_CHANNEL,
        )

    async def let_go(self, run_id: str, epoch: int) -> None:
        # Whoever claimed the run meanwhile keeps the lease.
        status: str = await self._connection.execute(
            "UPDATE orchestration.run_lease SET owner = NULL, expires_at = coalesce((SELECT "
            "min(CASE WHEN verdict IS NULL THEN expires_at ELSE '-infinity' END) FROM orchestration.pending "
            "WHERE tenant = $1 AND run_id = $2 AND NOT is_taken), '-infinity') "
            "WHERE tenant = $1 AND run_id = $2 AND epoch = $3 AND owner IS NOT NULL",
            self._tenant,
            run_id,
            epoch,
        )
        if status.endswith(" 1"):
            await self._connection.execute("SELECT pg_notify($1, '')", READY_CHANNEL)

    async def wake(self, run_id: str) -> None:
        status: str = await self._connection.execute(
            "UPDATE orchestration.run_lease SET expires_at = '-infinity' "
            "WHERE tenant = $1 AND run_id = $2 AND owner IS NULL",
            self._tenant,
            run_id,
        )
        if status.endswith(" 1"):
            await self._connection.execute("SELECT pg_notify($1, '')", READY_CHANNEL)
        else:
            await self._connection.execute("SELECT pg_notify($1, $2)", ANSWER_CHANNEL, run_id)

"""Long-running operations in Postgres: of a tenant's transaction, and across tenants."""

import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from janus_kit.errors import JanusError
from janus_kit.postgres import Connection, Database
from janus_kit.rpc_errors import to_status
from janus_memory.model import Claim, Operation, OperationState
from janus_memory.ports import OperationChange

CHANGED = "janus_memory_operation_changed"
DUE = "janus_memory_operation_due"
_COLUMNS = (
    "id, kind, state, arguments, cursor, done, total, phase, error, result_json, requested_by, cancel_requested,"
    " change, waits, failures, created_at, updated_at, ended_at"
)
_CHANGED = "change = change + 1, updated_at = clock_timestamp()"
# The time of a transaction that waited for its row may be long past.
_OURS = "id = $1 AND epoch = $2 AND ended_at IS NULL"


class OperationStatements:
    """Operations of one tenant's transaction."""

    _connection: Connection

    async def add_operation(
        self,
        operation_id: str,
        kind: str,
        arguments: Mapping[str, Any],
        requested_by: str,
        subjects: Sequence[str] = (),
    ) -> Operation:
        row = await self._connection.fetchrow(
            f"""INSERT INTO memory.operation (id, kind, arguments, requested_by, subjects)
                VALUES ($1, $2, $3::jsonb, $4, $5) RETURNING {_COLUMNS}""",  # noqa: S608 - constant columns
            operation_id, kind, json.dumps(arguments), requested_by, list(subjects),
        )  # fmt: skip
        await self._tell(DUE, operation_id)
        return _operation(row)

    async def operation(self, operation_id: str) -> Operation | None:
        row = await self._connection.fetchrow(
            f"SELECT {_COLUMNS} FROM memory.operation WHERE id = $1",  # noqa: S608 - constant columns
            operation_id,
        )
        return _operation(row) if row else None

    async def ask_to_cancel(self, operation_id: str) -> Operation | None:
        asked = await self._connection.fetchrow(
            f"""UPDATE memory.operation SET cancel_requested = true, available_at = now()
                WHERE id = $1 AND ended_at IS NULL RETURNING {_COLUMNS}""",  # noqa: S608 - constant columns
            operation_id,
        )
        if asked is None:
            return await self.operation(operation_id)
        await self._tell(DUE, operation_id)
        return _operation(asked)

    async def renew(self, claim: Claim, lease_s: float) -> Operation | None:
        row = await self._connection.fetchrow(
            f"""UPDATE memory.operation SET leased_until = clock_timestamp() + make_interval(secs => $3)
                WHERE {_OURS} RETURNING {_COLUMNS}""",  # noqa: S608 - constants
            claim.id, claim.epoch, lease_s,
        )  # fmt: skip
        return _operation(row) if row else None

    async def save_progress(self, claim: Claim, cursor: Mapping[str, Any], done: int, total: int, phase: str) -> bool:
        return await self._change(
            f"""UPDATE memory.operation
                SET cursor = $3::jsonb, done = $4, total = $5, phase = $6, waits = 0, failures = 0, {_CHANGED}
                WHERE {_OURS} RETURNING id""",  # noqa: S608 - constants
            claim, json.dumps(cursor), done, total, phase,
        )  # fmt: skip

    async def end_operation(
        self, claim: Claim, state: OperationState, result: Mapping[str, Any] | None, error: JanusError | None
    ) -> bool:
        return await self._change(
            f"""UPDATE memory.operation
                SET state = $3, result_json = $4, error = $5, lease = NULL, leased_until = NULL,
                    ended_at = clock_timestamp(), {_CHANGED}
                WHERE {_OURS} RETURNING id""",  # noqa: S608 - constants
            claim, int(state), "" if result is None else json.dumps(result, ensure_ascii=False),
            to_status(error).SerializeToString(deterministic=True) if error else b"",
        )  # fmt: skip

    async def release_operation(
        self, claim: Claim, delay_s: float, phase: str | None, waits: int = 0, failures: int = 0
    ) -> bool:
        return await self._change(
            f"""UPDATE memory.operation
                SET lease = NULL, leased_until = NULL, phase = coalesce($4, phase), waits = waits + $5,
                    failures = failures + $6, {_CHANGED},
                    available_at = clock_timestamp() + make_interval(secs => $3)
                WHERE {_OURS} RETURNING id""",  # noqa: S608 - constants
            claim, delay_s, phase, waits, failures,
        )  # fmt: skip

    async def _change(self, statement: str, claim: Claim, *values: Any) -> bool:
        changed = await self._connection.fetchval(statement, claim.id, claim.epoch, *values)
        if changed is None:
            return False
        await self._tell(CHANGED, claim.id)
        return True

    async def _tell(self, channel: str, operation_id: str) -> None:
        # Delivered when the transaction commits, and only then.
        await self._connection.execute("SELECT pg_notify($1, $2)", channel, operation_id)


class PostgresOperations:
    """Implements ports.Operations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(
        self, worker: str, kinds: Sequence[str], lease_s: float, works_on: Collection[str] = ()
    ) -> Claim | None:
        async with self._database.worker() as connection:
            row = await connection.fetchrow(
                f"""WITH running AS (
                       SELECT tenant, count(*) AS many FROM memory.operation
                       WHERE ended_at IS NULL AND leased_until >= now() GROUP BY tenant
                   ), due AS (
                       SELECT o.tenant, o.id FROM memory.operation o LEFT JOIN running r USING (tenant)
                       WHERE o.ended_at IS NULL AND o.available_at <= now() AND o.kind = ANY($2::text[])
                         AND (o.lease IS DISTINCT FROM $1 OR o.id <> ALL($4::text[]))
                         AND (o.lease IS NULL
                              OR o.leased_until < now() - make_interval(secs => o.failures * o.failures))
                       ORDER BY coalesce(r.many, 0), o.available_at, o.id LIMIT 1
                       FOR UPDATE OF o SKIP LOCKED
                   )
                   UPDATE memory.operation o
                   SET state = {int(OperationState.RUNNING)}, lease = $1, epoch = o.epoch + 1,
                       leased_until = clock_timestamp() + make_interval(secs => $3),
                       failures = o.failures + (o.lease IS NOT NULL AND o.lease <> $1)::integer, {_CHANGED}
                   FROM due WHERE o.tenant = due.tenant AND o.id = due.id
                   RETURNING o.tenant, o.id, o.epoch""",  # noqa: S608 - constants
                UUID(worker), list(kinds), lease_s, list(works_on),
            )  # fmt: skip
            if row is None:
                return None
            await connection.execute("SELECT pg_notify($1, $2)", CHANGED, row["id"])
        return Claim(row["tenant"], row["id"], row["epoch"])

    async def forget_ended(self) -> int:
        async with self._database.worker() as connection:
            status = await connection.execute(
                "DELETE FROM memory.operation WHERE ended_at < now() - interval '30 days'"
            )
        return int(status.split()[-1])

    async def changes(self) -> AsyncIterator[OperationChange]:
        async for channel, operation_id in self._database.listen(CHANGED, DUE):
            # Without a channel it listens again, and may have missed anything.
            yield OperationChange(operation_id, due=channel != CHANGED)


def _operation(row: Any) -> Operation:
    return Operation(
        id=row["id"],
        kind=row["kind"],
        state=OperationState(row["state"]),
        arguments=json.loads(row["arguments"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        ended_at=row["ended_at"],
        cursor=json.loads(row["cursor"]),
        done=row["done"],
        total=row["total"],
        phase=row["phase"],
        error=row["error"],
        result_json=row["result_json"],
        requested_by=row["requested_by"],
        cancel_requested=row["cancel_requested"],
        change=row["change"],
        waits=row["waits"],
        failures=row["failures"],
    )

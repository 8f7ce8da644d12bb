"""Tools of workers and their calls in Postgres: both sides of a dispatch, and the news between them."""

import json
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from janus_kit.errors import ResourceExhausted
from janus_kit.postgres import Connection, Database
from janus_orchestration.adapters import rows
from janus_orchestration.dispatching import (
    Answer,
    CallId,
    CallKey,
    ClaimedCall,
    Dispatch,
    DispatchState,
    NewDispatch,
    News,
    NewsKind,
    OpenCall,
    Progress,
    Registration,
    Report,
    Standing,
)
from janus_orchestration.model import Tool
from janus_orchestration.worker_ports import Assign

OPEN_CHANNEL = "janus_tool_open"
MOVED_CHANNEL = "janus_tool_moved"
DROPPED_CHANNEL = "janus_tool_dropped"

_KINDS = {OPEN_CHANNEL: NewsKind.OPEN, MOVED_CHANNEL: NewsKind.MOVED, DROPPED_CHANNEL: NewsKind.DROPPED}
_MOST_TOOLS = 4_096
# Rows of workers that are long gone say nothing any more.
_FORGET_AFTER_S = 3_600

_CLAIMED = (
    "d.run_id, d.step, d.attempt, d.worker, d.tool, d.arguments, d.thread_id, d.subject, d.traceparent, d.deadline, "
    "extract(epoch FROM d.deadline - clock_timestamp())::float8 AS left_s, "
    "extract(epoch FROM clock_timestamp() - d.opened_at)::float8 AS waited_s"
)
_LOOK = (
    "SELECT d.run_id, d.step, d.state, d.attempt, d.worker, d.worker_id, d.reports, d.progress, d.progress_message, "
    "d.result, extract(epoch FROM d.deadline - clock_timestamp())::float8 AS left_s, "
    "w.is_connected, coalesce(w.lease_until > clock_timestamp(), false) AS is_leased, "
    "d.state = 'open' AND EXISTS (SELECT 1 FROM orchestration.tool_worker t WHERE t.tenant = d.tenant "
    "AND t.takes_calls AND t.is_connected AND t.lease_until > clock_timestamp() AND d.tool = ANY(t.tools)) "
    "AS has_takers "
    "FROM unnest($2::text[], $3::integer[]) AS wanted (run_id, step) "
    "JOIN orchestration.tool_dispatch d ON d.tenant = $1 AND d.run_id = wanted.run_id AND d.step = wanted.step "
    "LEFT JOIN orchestration.tool_worker w ON w.tenant = d.tenant AND w.id = d.worker"
)


class PostgresDispatches:
    """The owner's side."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tools(self, tenant: str, names: Collection[str]) -> list[Tool]:
        async with self._database.tenant(tenant) as connection:
            found = await connection.fetch(
                "SELECT name, description, schema, side_effect, timeout_s FROM orchestration.tool "
                "WHERE tenant = $1 AND name = ANY($2::text[])",
                tenant,
                list(names),
            )
        return [rows.tool_from(row) for row in found]

    async def dispatch(self, tenant: str, call: NewDispatch) -> Dispatch | None:
        async with self._database.tenant(tenant) as connection:
            # The run's row is locked, so that no owner which was fenced puts a call up.
            status: str = await connection.execute(
                "INSERT INTO orchestration.tool_dispatch (tenant, run_id, step, tool, arguments, thread_id, subject, "
                "traceparent, deadline) SELECT r.tenant, r.id, $4, $5, $6, $7, $8, $9, "
                "clock_timestamp() + make_interval(secs => $10) FROM orchestration.run r "
                "WHERE r.tenant = $1 AND r.id = $2 AND r.epoch = $3 AND r.ended_at IS NULL FOR SHARE "
                "ON CONFLICT DO NOTHING",
                tenant,
                call.key.run_id,
                call.epoch,
                call.key.step,
                call.tool,
                call.arguments_json,
                call.thread_id,
                call.subject,
                call.traceparent,
                call.timeout_s,
            )
            if status.endswith(" 1"):
                await _notify(connection, OPEN_CHANNEL, tenant)
            return (await _look(connection, tenant, [call.key])).get(call.key)

    async def look(self, tenant: str, keys: Collection[CallKey]) -> dict[CallKey, Dispatch]:
        async with self._database.tenant(tenant) as connection:
            return await _look(connection, tenant, keys)

    async def resend(self, tenant: str, key: CallKey, lost: Dispatch) -> None:
        async with self._database.tenant(tenant) as connection:
            status: str = await connection.execute(
                "UPDATE orchestration.tool_dispatch SET state = 'open', attempt = attempt + 1, "
                "worker = NULL, worker_id = '' "
                "WHERE tenant = $1 AND run_id = $2 AND step = $3 AND state = 'claimed' AND attempt = $4 "
                "AND worker = $5",
                tenant,
                key.run_id,
                key.step,
                lost.attempt,
                lost.worker,
            )
            if status.endswith(" 1"):
                await _notify(connection, OPEN_CHANNEL, tenant)

    async def withdraw(self, tenant: str, key: CallKey) -> bool:
        async with self._database.tenant(tenant) as connection:
            status: str = await connection.execute(
                "UPDATE orchestration.tool_dispatch SET state = 'withdrawn' "
                "WHERE tenant = $1 AND run_id = $2 AND step = $3 AND state IN ('open', 'withdrawn')",
                tenant,
                key.run_id,
                key.step,
            )
        return status.endswith(" 1")


class PostgresWorkers:
    """The workers' side. Tools that nobody has offered or listed for ``retention_s`` are forgotten."""

    def __init__(self, database: Database, *, retention_s: float) -> None:
        self._database = database
        self._retention_s = retention_s

    async def register(self, tenant: str, worker: str, registration: Registration, lease_s: float) -> Sequence[int]:
        names = [tool.name for tool in registration.tools]
        async with self._database.tenant(tenant) as connection:
            # One at a time: two workers that disagree must not both find nobody.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"tools\n{tenant}")
            known = await connection.fetch(
                "SELECT t.name, t.description, t.schema, t.side_effect, t.timeout_s, "
                "EXISTS (SELECT 1 FROM orchestration.tool_worker w WHERE w.tenant = t.tenant AND w.takes_calls "
                "AND w.is_connected AND w.lease_until > clock_timestamp() AND t.name = ANY(w.tools)) AS is_offered "
                "FROM orchestration.tool t WHERE t.tenant = $1 AND t.name = ANY($2::text[])",
                tenant,
                names,
            )
            offered = {row["name"]: rows.tool_from(row) for row in known if row["is_offered"]}
            conflicts = [
                place
                for place, tool in enumerate(registration.tools)
                if tool.name in offered and not _agree(tool, offered[tool.name])
            ]
            if conflicts:
                return conflicts
            await self._forget_tools(connection, tenant)
            await self._put_tools(connection, tenant, registration.tools)
            await connection.execute(
                "INSERT INTO orchestration.tool_worker (tenant, id, worker_id, tools, lease_until) "
                "VALUES ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5))",
                tenant,
                worker,
                registration.worker_id,
                names,
                lease_s,
            )
        return ()

    async def _forget_tools(self, connection: Connection, tenant: str) -> None:
        """Those that nobody has offered for long, or lists; they are counted against the tenant."""
        await connection.execute(
            "DELETE FROM orchestration.tool t WHERE t.tenant = $1 "
            "AND t.seen_at < clock_timestamp() - make_interval(secs => $2) "
            "AND NOT EXISTS (SELECT 1 FROM orchestration.tool_worker w WHERE w.tenant = $1 AND w.is_connected "
            "AND w.lease_until > clock_timestamp() AND t.name = ANY(w.tools)) "
            "AND NOT EXISTS (SELECT 1 FROM orchestration.agent a JOIN orchestration.agent_version v "
            "ON v.tenant = a.tenant AND v.name = a.name AND v.version = a.version WHERE a.tenant = $1 "
            "AND v.spec->'tools' @> jsonb_build_array(jsonb_build_object('name', t.name)))",
            tenant,
            self._retention_s,
        )

    async def _put_tools(self, connection: Connection, tenant: str, tools: Sequence[Tool]) -> None:
        await connection.execute(
            "INSERT INTO orchestration.tool (tenant, name, description, schema, side_effect, timeout_s, seen_at) "
            "SELECT $1, *, clock_timestamp() FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::float8[]) "
            "ON CONFLICT (tenant, name) DO UPDATE SET description = excluded.description, schema = excluded.schema, "
            "side_effect = excluded.side_effect, timeout_s = excluded.timeout_s, seen_at = excluded.seen_at",
            tenant,
            [tool.name for tool in tools],
            [tool.description for tool in tools],
            [tool.schema_json for tool in tools],
            [tool.side_effect.value for tool in tools],
            [tool.timeout.total_seconds() for tool in tools],
        )
        count: int = await connection.fetchval("SELECT count(*) FROM orchestration.tool WHERE tenant = $1", tenant)
        if count > _MOST_TOOLS:
            raise ResourceExhausted(
                "QUOTA_EXCEEDED",
                "the tenant has too many tools",
                {"limit": str(_MOST_TOOLS)},
                quota=("tools of a tenant", f"{_MOST_TOOLS} names"),
            )

    async def stop_calls(self, tenant: str, worker: str) -> None:
        async with self._database.tenant(tenant) as connection:
            await connection.execute(
                "UPDATE orchestration.tool_worker SET takes_calls = false WHERE tenant = $1 AND id = $2", tenant, worker
            )

    async def leave(self, tenant: str, worker: str, unsent: Collection[CallId], *, is_awaited: bool) -> None:
        async with self._database.tenant(tenant) as connection:
            await connection.execute(
                "UPDATE orchestration.tool_worker SET takes_calls = false, is_connected = $3 "
                "WHERE tenant = $1 AND id = $2",
                tenant,
                worker,
                is_awaited,
            )
            found = await connection.fetch(
                "UPDATE orchestration.tool_dispatch d SET state = 'open', worker = NULL, worker_id = '' "
                "FROM unnest($3::text[], $4::integer[], $5::integer[]) AS unsent (run_id, step, attempt) "
                "WHERE d.tenant = $1 AND d.worker = $2 AND d.state = 'claimed' AND d.run_id = unsent.run_id "
                "AND d.step = unsent.step AND d.attempt = unsent.attempt RETURNING 1",
                tenant,
                worker,
                *_columns(unsent),
            )
            if found:
                await _notify(connection, OPEN_CHANNEL, tenant)
            # Owners decide what becomes of the others.
            await connection.execute(
                "SELECT pg_notify($3, run_id || ':' || step) FROM orchestration.tool_dispatch "
                "WHERE tenant = $1 AND worker = $2 AND state = 'claimed'",
                tenant,
                worker,
                MOVED_CHANNEL,
            )

    async def claim(self, tenant: str, tools: Collection[str], limit: int, assign: Assign) -> list[ClaimedCall]:
        async with self._database.tenant(tenant) as connection:
            found = await connection.fetch(
                "SELECT run_id, step, tool FROM orchestration.tool_dispatch WHERE tenant = $1 AND state = 'open' "
                "AND tool = ANY($2::text[]) AND deadline > clock_timestamp() ORDER BY opened_at LIMIT $3 "
                "FOR UPDATE SKIP LOCKED",
                tenant,
                list(tools),
                limit,
            )
            given = assign([OpenCall(CallKey(row["run_id"], row["step"]), row["tool"]) for row in found])
            if not given:
                return []
            claimed = await connection.fetch(
                "WITH claimed AS (UPDATE orchestration.tool_dispatch d SET state = 'claimed', worker = w.id, "  # noqa: S608
                "worker_id = w.worker_id FROM unnest($2::text[], $3::integer[], $4::text[]) AS given "
                "(run_id, step, worker) JOIN orchestration.tool_worker w ON w.tenant = $1 AND w.id = given.worker "
                "WHERE d.tenant = $1 AND d.run_id = given.run_id AND d.step = given.step RETURNING d.*) "
                f"SELECT {_CLAIMED}, pg_notify($5, d.run_id || ':' || d.step) FROM claimed d ORDER BY d.opened_at",
                tenant,
                [key.run_id for key in given],
                [key.step for key in given],
                list(given.values()),
                MOVED_CHANNEL,
            )
        return [_claimed(row) for row in claimed]

    async def reopen(self, tenant: str, workers: Collection[str], known: Collection[CallId]) -> None:
        async with self._database.tenant(tenant) as connection:
            await connection.execute(
                "UPDATE orchestration.tool_dispatch d SET state = 'open', worker = NULL, worker_id = '' "
                "WHERE d.tenant = $1 AND d.worker = ANY($2::text[]) AND d.state = 'claimed' AND NOT EXISTS ("
                "SELECT 1 FROM unnest($3::text[], $4::integer[], $5::integer[]) AS known (run_id, step, attempt) "
                "WHERE known.run_id = d.run_id AND known.step = d.step AND known.attempt = d.attempt)",
                tenant,
                list(workers),
                *_columns(known),
            )

    async def take_back(self, tenant: str, worker: str, worker_id: str, calls: Collection[CallId]) -> list[ClaimedCall]:
        async with self._database.tenant(tenant) as connection:
            found = await connection.fetch(
                "WITH taken AS (UPDATE orchestration.tool_dispatch d SET worker = $2 "  # noqa: S608 - constants only
                "FROM unnest($4::text[], $5::integer[], $6::integer[]) AS told (run_id, step, attempt) "
                "WHERE d.tenant = $1 AND d.worker_id = $3 AND d.state = 'claimed' AND d.run_id = told.run_id "
                "AND d.step = told.step AND d.attempt = told.attempt RETURNING d.*) "
                f"SELECT {_CLAIMED}, pg_notify($7, d.run_id || ':' || d.step) FROM taken d",
                tenant,
                worker,
                worker_id,
                *_columns(calls),
                MOVED_CHANNEL,
            )
        return [_claimed(row) for row in found]

    async def write(self, tenant: str, worker: str, answers: Sequence[Answer], reports: Sequence[Report]) -> None:
        async with self._database.tenant(tenant) as connection:
            if reports:
                await connection.execute(
                    "WITH said AS (UPDATE orchestration.tool_dispatch d SET reports = reports + 1, "
                    "progress = said.fraction, progress_message = said.message "
                    "FROM unnest($3::text[], $4::integer[], $5::integer[], $6::float8[], $7::text[]) "
                    "AS said (run_id, step, attempt, fraction, message) "
                    "WHERE d.tenant = $1 AND d.worker = $2 AND d.state = 'claimed' AND d.run_id = said.run_id "
                    "AND d.step = said.step AND d.attempt = said.attempt RETURNING d.run_id, d.step) "
                    "SELECT pg_notify($8, run_id || ':' || step) FROM said",
                    tenant,
                    worker,
                    *_columns([report.call_id for report in reports]),
                    [report.fraction for report in reports],
                    [report.message for report in reports],
                    MOVED_CHANNEL,
                )
            if answers:
                await connection.execute(
                    "WITH said AS (UPDATE orchestration.tool_dispatch d SET state = 'answered', result = said.result "
                    "FROM unnest($3::text[], $4::integer[], $5::integer[], $6::bytea[]) "
                    "AS said (run_id, step, attempt, result) "
                    "WHERE d.tenant = $1 AND d.worker = $2 AND d.state = 'claimed' AND d.run_id = said.run_id "
                    "AND d.step = said.step AND d.attempt = said.attempt RETURNING d.run_id, d.step) "
                    "SELECT pg_notify($7, run_id || ':' || step) FROM said",
                    tenant,
                    worker,
                    *_columns([answer.call_id for answer in answers]),
                    [answer.result for answer in answers],
                    MOVED_CHANNEL,
                )

    async def renew(self, workers: Collection[str], lease_s: float) -> set[tuple[str, CallId]]:
        async with self._database.worker() as connection:
            await connection.execute(
                "UPDATE orchestration.tool_worker SET lease_until = clock_timestamp() + make_interval(secs => $2) "
                "WHERE id = ANY($1::text[])",
                list(workers),
                lease_s,
            )
            await connection.execute(
                "DELETE FROM orchestration.tool_worker "
                "WHERE lease_until < clock_timestamp() - make_interval(secs => $1)",
                _FORGET_AFTER_S,
            )
            found = await connection.fetch(
                "SELECT worker, run_id, step, attempt FROM orchestration.tool_dispatch "
                "WHERE worker = ANY($1::text[]) AND state = 'claimed'",
                list(workers),
            )
        return {(row["worker"], _call_id(row)) for row in found}

    async def news(self) -> AsyncIterator[News]:
        async for channel, payload in self._database.listen(*_KINDS):
            yield News(_KINDS.get(channel, NewsKind.MISSED), payload)


async def _look(connection: Connection, tenant: str, keys: Collection[CallKey]) -> dict[CallKey, Dispatch]:
    found = await connection.fetch(_LOOK, tenant, [key.run_id for key in keys], [key.step for key in keys])
    return {CallKey(row["run_id"], row["step"]): _dispatch(row) for row in found}


async def _notify(connection: Connection, channel: str, payload: str) -> None:
    await connection.execute("SELECT pg_notify($1, $2)", channel, payload)


def _columns(calls: Collection[CallId]) -> tuple[list[str], list[int], list[int]]:
    return [call.key.run_id for call in calls], [call.key.step for call in calls], [call.attempt for call in calls]


def _call_id(row: Any) -> CallId:
    return CallId(CallKey(row["run_id"], row["step"]), row["attempt"])


def _dispatch(row: Any) -> Dispatch:
    standing = Standing.LOST
    if row["is_leased"]:
        standing = Standing.CONNECTED if row["is_connected"] else Standing.GONE
    progress = None
    if row["reports"]:
        progress = Progress(row["reports"], row["progress"], row["progress_message"])
    return Dispatch(
        state=DispatchState(row["state"]),
        attempt=row["attempt"],
        left_s=row["left_s"],
        has_takers=row["has_takers"],
        worker=row["worker"] or "",
        worker_id=row["worker_id"],
        standing=standing,
        progress=progress,
        result=row["result"] or b"",
    )


def _claimed(row: Any) -> ClaimedCall:
    return ClaimedCall(
        call_id=_call_id(row),
        worker=row["worker"],
        tool=row["tool"],
        arguments_json=row["arguments"],
        thread_id=row["thread_id"],
        subject=row["subject"],
        traceparent=row["traceparent"],
        deadline=row["deadline"],
        left_s=row["left_s"],
        waited_s=row["waited_s"],
    )


def _agree(one: Tool, other: Tool) -> bool:
    """Two workers' tools of one name: the same schema, however it is written, and the same side effect."""
    return one.side_effect is other.side_effect and _parsed(one.schema_json) == _parsed(other.schema_json)


def _parsed(schema: str) -> Any:
    return json.loads(schema) if schema else None

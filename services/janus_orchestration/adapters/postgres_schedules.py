"""Schedules in Postgres, and their timetable across tenants."""

from datetime import datetime

from janus_kit.postgres import Database
from janus_kit.postgres_batch import Batch
from janus_orchestration.adapters.rows import Row
from janus_orchestration.timetable import CatchUp, Schedule, ScheduleSpec

_COLUMNS = (
    "name, version, cron, time_zone, agent, thread_id, message, catch_up, catch_up_window, paused, subject, put_by, "
    "next_run_at, last_run_at, last_run_id, last_error"
)


class PostgresSchedules:
    """Part of ``PostgresRecords``: one tenant's schedules."""

    _connection: Batch
    _tenant: str

    async def now(self) -> datetime:
        moment: datetime = await self._connection.fetchval("SELECT clock_timestamp()")
        return moment

    async def lock_schedule(self, name: str) -> Schedule | None:
        # The row of a schedule that is not there cannot be locked; a lock by name can.
        await self._connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"schedule\n{self._tenant}\n{name}"
        )
        return await self._schedule(name, " FOR UPDATE")

    async def hold_schedule(self, name: str) -> Schedule | None:
        return await self._schedule(name, " FOR UPDATE SKIP LOCKED")

    async def schedule(self, name: str) -> Schedule | None:
        return await self._schedule(name, "")

    async def _schedule(self, name: str, lock: str) -> Schedule | None:
        row = await self._connection.fetchrow(
            f"SELECT {_COLUMNS} FROM orchestration.schedule WHERE tenant = $1 AND name = $2{lock}",  # noqa: S608
            self._tenant,
            name,
        )
        return None if row is None else _schedule_from(row)

    async def schedules(self, after: str, limit: int) -> list[Schedule]:
        found = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM orchestration.schedule "  # noqa: S608 - constants only
            'WHERE tenant = $1 AND name COLLATE "C" > $2 ORDER BY name COLLATE "C" LIMIT $3',
            self._tenant,
            after,
            limit,
        )
        return [_schedule_from(row) for row in found]

    async def put_schedule(self, schedule: Schedule) -> None:
        spec = schedule.spec
        await self._connection.execute(
            "INSERT INTO orchestration.schedule (tenant, name, version, cron, time_zone, agent, thread_id, message, "
            "catch_up, catch_up_window, paused, subject, put_by, next_run_at, look_at) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, "
            "coalesce($14, 'infinity'::timestamptz)) "
            "ON CONFLICT (tenant, name) DO UPDATE SET version = excluded.version, cron = excluded.cron, "
            "time_zone = excluded.time_zone, agent = excluded.agent, thread_id = excluded.thread_id, "
            "message = excluded.message, catch_up = excluded.catch_up, catch_up_window = excluded.catch_up_window, "
            "paused = excluded.paused, subject = excluded.subject, put_by = excluded.put_by, "
            "next_run_at = excluded.next_run_at, look_at = excluded.look_at",
            self._tenant,
            spec.name,
            schedule.version,
            spec.cron,
            spec.time_zone,
            spec.agent,
            spec.thread_id,
            spec.message,
            spec.catch_up.value if spec.catch_up else None,
            spec.catch_up_window,
            spec.paused,
            spec.subject,
            schedule.put_by,
            schedule.next_run_at,
        )

    async def delete_schedule(self, name: str) -> bool:
        status: str = await self._connection.execute(
            "DELETE FROM orchestration.schedule WHERE tenant = $1 AND name = $2", self._tenant, name
        )
        return status.endswith(" 1")

    async def add_occurrence(self, name: str, due_at: datetime, run_id: str) -> bool:
        status: str = await self._connection.execute(
            "INSERT INTO orchestration.schedule_run (tenant, schedule, due_at, run_id) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT DO NOTHING",
            self._tenant,
            name,
            due_at,
            run_id,
        )
        return status.endswith(" 1")

    async def move_schedule(self, name: str, next_run_at: datetime | None, run_id: str, error: bytes | None) -> None:
        await self._connection.execute(
            # What is being caught up is started one a second, not all in the same moment.
            "UPDATE orchestration.schedule SET next_run_at = $3, look_at = CASE WHEN $3::timestamptz IS NULL "
            "THEN 'infinity' ELSE greatest($3, clock_timestamp() + interval '1 second') END, "
            "last_run_at = CASE WHEN $4 = '' THEN last_run_at ELSE clock_timestamp() END, "
            "last_run_id = CASE WHEN $4 = '' THEN last_run_id ELSE $4 END, "
            "last_error = CASE WHEN $4 = '' THEN coalesce($5, last_error) END "
            "WHERE tenant = $1 AND name = $2",
            self._tenant,
            name,
            next_run_at,
            run_id,
            error,
        )


def _schedule_from(row: Row) -> Schedule:
    spec = ScheduleSpec(
        name=row["name"],
        cron=row["cron"],
        time_zone=row["time_zone"],
        agent=row["agent"],
        thread_id=row["thread_id"],
        message=row["message"],
        catch_up=CatchUp(row["catch_up"]) if row["catch_up"] else None,
        catch_up_window=row["catch_up_window"],
        paused=row["paused"],
        subject=row["subject"],
    )
    return Schedule(
        spec,
        row["version"],
        row["put_by"],
        row["next_run_at"],
        row["last_run_at"],
        row["last_run_id"],
        row["last_error"] or b"",
    )


class PostgresTimetable:
    """Which schedules are due, as ``janus_worker``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, limit: int, lease_s: float) -> list[tuple[str, str]]:
        async with self._database.worker() as connection:
            found = await connection.fetch(
                "WITH due AS (SELECT tenant, name FROM orchestration.schedule WHERE look_at <= now() "
                "ORDER BY look_at LIMIT $1 FOR UPDATE SKIP LOCKED) "
                "UPDATE orchestration.schedule s SET look_at = clock_timestamp() + make_interval(secs => $2) "
                "FROM due WHERE s.tenant = due.tenant AND s.name = due.name RETURNING s.tenant, s.name",
                limit,
                lease_s,
            )
        return [(row["tenant"], row["name"]) for row in found]

    async def forget_old(self) -> None:
        async with self._database.worker() as connection:
            # The longest window is 30 days.
            await connection.execute(
                "DELETE FROM orchestration.schedule_run WHERE created_at < now() - interval '31 days'"
            )

"""Schedules: put, list, delete. Runs are started by ``schedule_runner``."""

from datetime import datetime

from janus_kit.auth.identity import Identity
from janus_kit.errors import Aborted, InvalidArgument, NotFound
from janus_kit.validate import Violations
from janus_orchestration.agents import DEFAULT_AGENT
from janus_orchestration.idempotency import Once, once
from janus_orchestration.ports import Records, Store
from janus_orchestration.timetable import Schedule, ScheduleSpec, next_time


class Schedules:
    """The schedules of all tenants."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(
        self, caller: Identity, spec: ScheduleSpec, expected_version: int, key: Once[Schedule]
    ) -> Schedule | bytes:
        """Store a schedule; its runs act for the caller.

        Raises Aborted / VERSION_MISMATCH when ``expected_version`` (0: any) is
        not the current one, InvalidArgument for an agent or a thread that is
        not there and for an expression that never comes due.
        """
        async with self._store.tenant(caller.tenant) as records:

            async def work() -> Schedule:
                current = await records.lock_schedule(spec.name)
                version = current.version if current is not None else 0
                if expected_version and expected_version != version:
                    raise Aborted(
                        "VERSION_MISMATCH",
                        f"schedule '{spec.name}' is at version {version}",
                        {"current_version": str(version)},
                    )
                await _require_parts(records, spec)
                due = _first_time(spec, current, await records.now())
                schedule = Schedule(spec, version + 1, caller.subject, due)
                await records.put_schedule(schedule)
                return await records.schedule(spec.name) or schedule

            return await once(records, key, work)

    async def page(self, tenant: str, after: str, size: int) -> tuple[list[Schedule], bool]:
        """Schedules by name, and whether there are more."""
        async with self._store.tenant(tenant) as records:
            found = await records.schedules(after, size + 1)
        return found[:size], len(found) > size

    async def delete(self, tenant: str, name: str, key: Once[None]) -> bytes | None:
        """Take a schedule out; runs that it started go on. Raises NotFound."""
        async with self._store.tenant(tenant) as records:

            async def work() -> None:
                if not await records.delete_schedule(name):
                    raise NotFound("schedule", name)

            return await once(records, key, work)


async def _require_parts(records: Records, spec: ScheduleSpec) -> None:
    check = Violations()
    if spec.agent != DEFAULT_AGENT:
        check.require(await records.agent(spec.agent) is not None, "schedule.agent", "must be an agent that exists")
    if spec.thread_id:
        thread = await records.thread(spec.thread_id)
        check.require(thread is not None, "schedule.thread_id", "must be a thread that exists")
    check.done()


def _first_time(spec: ScheduleSpec, current: Schedule | None, now: datetime) -> datetime | None:
    """When the schedule is due; what is still to be caught up stays so while its times are the same."""
    due = next_time(spec.cron, spec.time_zone, now)
    if due is None:
        raise InvalidArgument("schedule.cron", "must come due within 50 years")
    if spec.paused:
        return None
    if current is not None and _times(current.spec) == _times(spec) and current.next_run_at is not None:
        return current.next_run_at
    return due


def _times(spec: ScheduleSpec) -> tuple[str, str]:
    return spec.cron, spec.time_zone

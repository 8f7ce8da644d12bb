"""Starts the runs of schedules: every due time once, on whichever replica looks first.

A run, the mark of its due time and the schedule's next time are one
transaction that holds the schedule's row, so a replica that dies leaves all of
it done or nothing. The clock is the database's, which all replicas share.
"""

import asyncio
from datetime import timedelta

from janus_kit.auth.identity import Identity
from janus_kit.errors import Aborted, DeadlineExceeded, JanusError, ResourceExhausted, Unavailable
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger
from janus_orchestration import telemetry
from janus_orchestration.model import RunOptions, Thread
from janus_orchestration.ports import EventCodec, MessageCodec, Records, Store, Timetable
from janus_orchestration.runs import Asking, Runs
from janus_orchestration.timetable import Decision, Schedule, decide

_log = get_logger(__name__)

_DUE_AT_ONCE = 32
_LEASE_S = 5.0
_FORGET_EVERY = 600
# What another look may find different.
_NOT_NOW = (Unavailable, ResourceExhausted, DeadlineExceeded, Aborted)
_NOBODY: frozenset[str] = frozenset()


class _Refused(Exception):
    """A run cannot be started for a due time, now or later."""

    def __init__(self, version: int, decision: Decision, error: JanusError) -> None:
        super().__init__(error.reason)
        self.version = version
        self.decision = decision
        self.error = error


class ScheduleRunner:
    """Background work of a replica. Times in seconds; see OrchestrationSettings."""

    def __init__(
        self,
        store: Store,
        timetable: Timetable,
        runs: Runs,
        codec: EventCodec,
        messages: MessageCodec,
        *,
        poll_s: float,
        grace_s: float,
    ) -> None:
        self._store = store
        self._timetable = timetable
        self._runs = runs
        self._codec = codec
        self._messages = messages
        self._poll_s = poll_s
        self._grace = timedelta(seconds=grace_s)

    async def work(self) -> None:
        """Start what is due, for as long as the process lives."""
        rounds = 0
        while True:
            try:
                due = await self._timetable.due(_DUE_AT_ONCE, _LEASE_S)
                for tenant, name in due:
                    await self._look(tenant, name)
                rounds += 1
                if rounds % _FORGET_EVERY == 1:
                    await self._timetable.forget_old()
                if len(due) == _DUE_AT_ONCE:
                    continue
            except JanusError as error:
                _log.debug("schedules_wait", reason=error.reason)
            await asyncio.sleep(self._poll_s)

    async def _look(self, tenant: str, name: str) -> None:
        """Never fails: what cannot be done now is looked at again when the lease ends."""
        try:
            try:
                await self._decide(tenant, name)
            except _Refused as refused:
                # What the attempt wrote is undone by now.
                await self._decide(tenant, name, refused)
        except _NOT_NOW as error:
            _log.warning("schedule_waits", tenant=tenant, schedule=name, reason=error.reason)
        except Exception:  # noqa: BLE001 - one schedule's fault must not stop the others
            incident = new_id("inc")
            _log.exception("schedule_broke", tenant=tenant, schedule=name, incident_id=incident)

    async def _decide(self, tenant: str, name: str, refused: _Refused | None = None) -> None:
        async with self._store.tenant(tenant) as records:
            schedule = await records.hold_schedule(name)
            if schedule is None:
                return
            now = await records.now()
            decision = decide(schedule, now, self._grace)
            is_refused = refused is not None and (refused.version, refused.decision.fires) == (
                schedule.version,
                decision.fires,
            )
            run_id = ""
            if decision.fires is not None and not is_refused:
                run_id = new_id("run")
                if await records.add_occurrence(name, decision.fires, run_id):
                    await self._start(records, tenant, schedule, decision, run_id)
                else:
                    run_id = ""  # Started before the schedule was put anew.
            error = self._codec.failure(refused.error).status if refused is not None and is_refused else None
            await records.move_schedule(name, decision.then, run_id, error)
        if decision.missed:
            _count(tenant, name, "missed")
        if is_refused and refused is not None:
            _count(tenant, name, "refused", reason=refused.error.reason)
        if run_id and decision.fires is not None:
            telemetry.runs_started.inc()
            telemetry.schedule_lateness.observe((now - decision.fires).total_seconds())
            _count(tenant, name, "started", run_id=run_id)

    async def _start(self, records: Records, tenant: str, schedule: Schedule, decision: Decision, run_id: str) -> None:
        spec = schedule.spec
        now = await records.now()
        thread_id = spec.thread_id
        if not thread_id:
            thread_id = new_id("thr")
            await records.add_thread(Thread(thread_id, spec.agent, spec.subject, "", "", now, now))
        asking = Asking(
            method="",
            thread_id=thread_id,
            agent=spec.agent,
            messages=(self._messages.fresh(spec.message, now),),
            options=RunOptions(labels=(("schedule", spec.name),)),
            request_id="",
            body_hash=b"",
        )
        try:
            await self._runs.enqueue(records, Identity(tenant, schedule.put_by, _NOBODY), run_id, asking)
        except _NOT_NOW:
            raise
        except JanusError as error:
            raise _Refused(schedule.version, decision, error) from error


def _count(tenant: str, name: str, outcome: str, **details: str) -> None:
    telemetry.schedule_runs.labels(outcome).inc()
    log = _log.info if outcome == "started" else _log.warning
    log(f"schedule_{outcome}", tenant=tenant, schedule=name, **details)

"""The runs that this process works on, each in a task of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from janus_kit.auth.identity import acting_as
from janus_kit.clock import Clock
from janus_kit.errors import Aborted, Internal, JanusError
from janus_kit.ids import new_id
from janus_kit.interceptors.context import deadline_scope
from janus_kit.telemetry.logging import bound, get_logger
from janus_orchestration import identity, telemetry
from janus_orchestration.children import ORPHANED
from janus_orchestration.event_log import RunLog
from janus_orchestration.interrupt import Interrupt, Leaving
from janus_orchestration.journal import Journal
from janus_orchestration.model import (
    Agent,
    Budgets,
    Claim,
    Cursor,
    Recorded,
    Run,
    RunState,
    Step,
    Thread,
    ThreadMessage,
)
from janus_orchestration.ports import EventCodec, EventStream, Fenced, Store, StreamAway
from janus_orchestration.replay import cursor_of
from janus_orchestration.state import is_terminal
from janus_orchestration.turn import Helpers, Turn, TurnLimits
from janus_orchestration.watch import Hub, Subscription

_log = get_logger(__name__)

_CLOSE_S = 1.0
_STUCK_S = 300.0


@dataclass(frozen=True)
class ExecutionLimits:
    """See OrchestrationSettings; times in seconds."""

    max_runs: int
    max_takeovers: int
    stream_retry_s: float
    turn: TurnLimits


@dataclass(eq=False)
class Execution:
    """The work on one run under one epoch."""

    tenant: str
    journal: Journal
    interrupt: Interrupt
    turn: Turn
    task: asyncio.Task[None] | None = None
    # False once nothing is left but to close: there is nothing to stop then.
    is_working: bool = True

    def stop(self) -> None:
        if self.task is not None and self.is_working:
            self.task.cancel()


class Executions:
    """Starts, adopts and stops the work on runs. ``owner`` names this process in leases."""

    def __init__(
        self,
        owner: str,
        *,
        store: Store,
        stream: EventStream,
        hub: Hub,
        codec: EventCodec,
        clock: Clock,
        helpers: Helpers,
        limits: ExecutionLimits,
    ) -> None:
        self.owner = owner
        # Called when there is room again: what could not be claimed meanwhile may wait.
        self.on_room: Callable[[], None] = lambda: None
        self._store = store
        self._stream = stream
        self._hub = hub
        self._codec = codec
        self._clock = clock
        self._helpers = helpers
        self._limits = limits
        self._running: dict[str, Execution] = {}
        self._is_open = True

    @property
    def room(self) -> int:
        """How many more runs may be worked on here."""
        return max(0, self._limits.max_runs - len(self._running)) if self._is_open else 0

    def stuck(self) -> int:
        """Runs that make no progress."""
        return sum(execution.journal.log.idle_s > _STUCK_S for execution in self._running.values())

    def ids(self) -> list[str]:
        return list(self._running)

    def is_stored(self, run_id: str) -> bool:
        """Whether a run that is worked on here must have a lease; while it is being stored it may not have one yet."""
        execution = self._running.get(run_id)
        return execution is not None and execution.journal.is_stored

    def epoch(self, run_id: str) -> int | None:
        """Under which epoch a run is worked on here; another owner may have it under a newer one."""
        execution = self._running.get(run_id)
        return execution.journal.run.epoch if execution is not None else None

    async def start(
        self,
        tenant: str,
        run: Run,
        thread: Thread,
        agent: Agent,
        steps: Sequence[Step],
        history: Sequence[ThreadMessage],
    ) -> tuple[Execution, Subscription]:
        """Work on a run that is about to be stored, with the steps that begin now.

        Memory and the model take their time, so they are asked meanwhile. Nothing is said or written before
        ``stored``; if nothing comes of it, the execution is to be stopped. Returns a subscription from the very first
        event.
        """
        execution = self._prepare(
            tenant, run, thread, agent, steps, Cursor(run.epoch, run.last_sequence), False, history
        )
        # Before anything can be said, so that nothing has to be replayed.
        subscription = self._hub.subscribe(tenant, run.id)
        await execution.journal.hold()
        self._launch(execution, execution.turn.work)
        try:
            # Asking comes before storing: a turn of the loop for the run's task, and one for the call that it makes.
            for _ in range(2):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            execution.stop()
            raise
        return execution, subscription

    def stored(self, execution: Execution, events: Sequence[Recorded]) -> None:
        """A run that was started is durable, with its first events."""
        # It may have been stopped meanwhile, and the run be another owner's: even this process's, under its next epoch.
        if self._running.get(execution.journal.run.id) is execution:
            execution.journal.stored(events)

    async def adopt(self, claim: Claim) -> None:
        """Go on with a run that was claimed: from its journal, under its new epoch.

        It waited for its turn or for somebody, or its owner died.
        """
        await self._drop(claim.run_id)
        async with self._store.tenant(claim.tenant) as records:
            run = await records.take(claim.run_id, claim.epoch, is_takeover=claim.is_takeover)
            if run is None:
                ended = await records.run(claim.run_id)
                if ended is None or is_terminal(ended.state):
                    await records.release_lease(claim.run_id)
                return
            thread = await records.thread(run.thread_id)
            agent = await records.agent_version(run.agent, run.agent_version)
            steps = await records.steps(run.id)
            starts = await records.epoch_starts(run.id)
        if thread is None or agent is None:
            _log.error("run_without_thread_or_agent", run_id=run.id)
            return
        opened = await self._open_stream(claim.tenant, run)
        if opened is None:
            return
        base, is_open = opened
        execution = self._prepare(claim.tenant, run, thread, agent, steps, cursor_of(starts, base), is_open, None)
        work: Callable[[], Awaitable[None]] = execution.turn.work
        if run.cancel_on_disconnect and (claim.is_takeover or run.state is RunState.RUNNING):
            # Its owner is gone, and with it the stream that it was to be bound to.
            execution.interrupt.cancel("the client's stream was cut")
        if claim.is_orphan:
            execution.interrupt.cancel(ORPHANED)
        if claim.is_takeover:
            telemetry.run_recovered.labels("owner_lost").inc()
            _log.info("run_taken_over", run_id=run.id, epoch=run.epoch, takeovers=run.takeovers)
            if run.takeovers > self._limits.max_takeovers:
                _log.error("run_gives_up", run_id=run.id, takeovers=run.takeovers)
                work = lambda: execution.turn.fail(_given_up(run))  # noqa: E731
        self._launch(execution, work)

    async def _open_stream(self, tenant: str, run: Run) -> tuple[int, bool] | None:
        """The sequence to go on after, and whether the stream is ours; None when we are fenced.

        When the stream may have lost events that were sent, the run goes on
        beyond all that can have been.
        """
        known = run.last_sequence
        otherwise = known if run.state is RunState.QUEUED else max(known, run.reserved_sequence)
        if run.stream_broken:
            known = otherwise
        try:
            opened = await self._stream.open(tenant, run.id, run.epoch, known=known, otherwise=otherwise)
        except StreamAway:
            return otherwise, False
        except Fenced:
            return None
        return opened.base, True

    def _prepare(
        self,
        tenant: str,
        run: Run,
        thread: Thread,
        agent: Agent,
        steps: Sequence[Step],
        base: Cursor,
        is_open: bool,
        history: Sequence[ThreadMessage] | None,
    ) -> Execution:
        interrupt = Interrupt()
        feed = self._hub.open_local(tenant, run.id, base.sequence)
        log = RunLog(
            tenant,
            run,
            feed,
            base=base,
            is_open=is_open,
            store=self._store,
            stream=self._stream,
            codec=self._codec,
            clock=self._clock,
            retry_s=self._limits.stream_retry_s,
            on_fenced=lambda: self.fence(run.id),
        )
        journal = Journal(
            tenant,
            run,
            thread,
            steps,
            log,
            store=self._store,
            clock=self._clock,
            children=self._helpers.children,
            extracts=agent.spec.memory.extract,
            starts_epoch=run.epoch > 1,
        )
        turn = Turn(
            journal,
            agent.spec,
            interrupt,
            self._helpers,
            replace(
                self._limits.turn,
                wall_time_s=wall_time(self._limits.turn.wall_time_s, agent.spec.budgets, run.options.budgets),
            ),
            history,
        )
        return Execution(tenant, journal, interrupt, turn)

    def _launch(self, execution: Execution, work: Callable[[], Awaitable[None]]) -> None:
        run = execution.journal.run
        self._running[run.id] = execution
        if not self._is_open:
            execution.interrupt.leave()
        execution.task = asyncio.create_task(self._execute(execution, work), name=f"run-{run.id}")
        # However the task ends, even when it is cancelled before its first step.
        execution.task.add_done_callback(lambda _: self._ended(execution))

    async def _execute(self, execution: Execution, work: Callable[[], Awaitable[None]]) -> None:
        run = execution.journal.run
        telemetry.runs_in_flight.inc()
        try:
            # The run outlives the call that started it, and is bound by no deadline but its own.
            with (
                deadline_scope(None),
                acting_as(identity.of_run(execution.tenant, run.subject)),
                bound(run_id=run.id, tenant=execution.tenant),
            ):
                await self._guarded(execution, work)
                state = execution.journal.run.state.value
                _log.info("run_ended" if execution.journal.is_over else "run_let_go", state=state, epoch=run.epoch)
        finally:
            telemetry.runs_in_flight.dec()
            if execution.journal.is_over:
                outcome = execution.journal.run.state.value
                telemetry.runs_finished.labels(telemetry.WORKFLOW, outcome).inc()
            execution.is_working = False
            await execution.journal.log.close(_CLOSE_S)

    def _ended(self, execution: Execution) -> None:
        run_id = execution.journal.run.id
        execution.journal.log.stop()
        self._hub.close_local(execution.tenant, run_id)
        was_full = not self.room
        del self._running[run_id]
        # Whoever follows in the thread is told of by the end's commit.
        if was_full:
            self.on_room()

    async def _guarded(self, execution: Execution, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Fenced:
            _log.warning("run_lost_to_another_owner")
        except Leaving:
            await self._hand_over(execution)
        except Exception:  # noqa: BLE001 - whatever it was, the run must end and say so
            incident = new_id("inc")
            _log.exception("run_broke", incident_id=incident)
            with suppress(Fenced):
                await execution.turn.fail(Internal(incident))

    async def _hand_over(self, execution: Execution) -> None:
        """Let another process go on at once, from the journal."""
        run = execution.journal.run
        await execution.journal.until_stored()
        try:
            async with self._store.tenant(execution.tenant) as records:
                await records.let_go(run.id, run.epoch)
        except JanusError as error:
            # It goes with all leases of this process, in a moment.
            _log.warning("lease_not_released", reason=error.reason)

    def cancel(self, run_id: str, reason: str) -> bool:
        """Stop a run that is worked on here, at once; False when it is not."""
        execution = self._running.get(run_id)
        if execution is None:
            return False
        execution.interrupt.cancel(reason)
        return True

    def answered(self, run_id: str) -> None:
        """Something that a run waits for was answered while it is worked on, maybe here."""
        execution = self._running.get(run_id)
        if execution is not None:
            execution.turn.answered()

    def fence(self, run_id: str) -> None:
        """Another owner has the run: drop everything."""
        execution = self._running.get(run_id)
        if execution is not None:
            execution.stop()

    async def _drop(self, run_id: str) -> None:
        """End the work on a run whose lease ran out while we had it."""
        execution = self._running.get(run_id)
        if execution is not None and execution.task is not None:
            execution.stop()
            await asyncio.wait([execution.task])

    async def drain(self) -> None:
        """Take no more runs, and wait for those that are worked on."""
        self._is_open = False
        for execution in self._running.values():
            execution.interrupt.leave()
        while tasks := [e.task for e in self._running.values() if e.task is not None and not e.task.done()]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Stop working; what has not ended is for other replicas."""
        self._is_open = False
        tasks = [e.task for e in self._running.values() if e.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _given_up(run: Run) -> JanusError:
    times = run.takeovers
    text = f"{times} processes died or froze while they worked on the run, so no other one is given it"
    return Aborted("RUN_GIVEN_UP", text, {"takeovers": str(times)})


def wall_time(server_s: float, agent: Budgets | None, run: Budgets | None) -> float:
    """The shortest of what the server, the agent and the run allow, in seconds."""
    limits = [b.max_wall_time.total_seconds() for b in (agent, run) if b is not None and b.max_wall_time]
    return min([server_s, *limits])

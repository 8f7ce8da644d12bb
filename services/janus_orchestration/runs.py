"""Runs as callers see them: start, get, watch, cancel."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime

from janus_kit.auth.identity import Identity
from janus_kit.clock import Clock
from janus_kit.errors import FailedPrecondition, JanusError, NotFound, ResourceExhausted
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger
from janus_orchestration import state, telemetry
from janus_orchestration.agents import DEFAULT_AGENT, agent_or_default
from janus_orchestration.conversation import MOST_HISTORY, MOST_HISTORY_BYTES
from janus_orchestration.double_texting import Way, make_way
from janus_orchestration.event_log import FIRST_RESERVE
from janus_orchestration.events import Event, MessageCommitted, RunCancelled, RunQueued, RunStarted
from janus_orchestration.executions import Execution, Executions
from janus_orchestration.idempotency import Once, once
from janus_orchestration.model import (
    MOST_BYTES,
    Agent,
    Cursor,
    DoubleTexting,
    Message,
    Pending,
    Recorded,
    Run,
    RunOptions,
    RunState,
    Step,
    StepKind,
    Thread,
    ThreadMessage,
)
from janus_orchestration.ports import EventCodec, Records, Store, message_taken
from janus_orchestration.replay import BEFORE_ALL, Replay, cursor_of
from janus_orchestration.threads import first_within
from janus_orchestration.watch import Batch, Hub, Subscription

_log = get_logger(__name__)


@dataclass(frozen=True)
class Asking:
    """What a run is asked to do. ``body_hash`` is of the request, for its ``request_id``."""

    method: str
    thread_id: str
    agent: str
    messages: tuple[Message, ...]
    options: RunOptions
    request_id: str
    body_hash: bytes
    cancel_on_disconnect: bool = False


@dataclass(frozen=True)
class Started:
    """A run that is durable. ``subscription`` has it from its first event, when it is worked on here."""

    run_id: str
    subscription: Subscription | None = None


@dataclass(frozen=True)
class RunDetails:
    """A run, the place of its newest event, what it waits for, its steps and what it said."""

    run: Run
    last: Cursor
    waiting_for: Sequence[Pending] = ()
    steps: Sequence[Step] = ()
    output: Sequence[ThreadMessage] = ()


@dataclass(frozen=True)
class _Planned:
    """A run that is not stored yet: its thread without it and with it, and what was said there, where that is known."""

    run: Run
    before: Thread
    thread: Thread
    history: list[ThreadMessage]
    agent: Agent
    steps: list[Step]
    events: list[Event]
    way: Way

    @property
    def has_turn(self) -> bool:
        return not self.before.active_run

    @property
    def starts_here(self) -> bool:
        return self.run.state is RunState.RUNNING

    @property
    def conversation(self) -> list[ThreadMessage]:
        """What was said, and what the run is asked."""
        first = self.before.last_position + 1
        asked = [ThreadMessage(message, place, self.run.id) for place, message in enumerate(self.way.messages, first)]
        return [*self.history, *asked]


class Runs:
    """The runs of all tenants."""

    def __init__(
        self,
        store: Store,
        executions: Executions,
        hub: Hub,
        replay: Replay,
        codec: EventCodec,
        clock: Clock,
        *,
        lease_s: float,
        max_queued: int,
    ) -> None:
        self._store = store
        self._executions = executions
        self._hub = hub
        self._replay = replay
        self._codec = codec
        self._clock = clock
        self._lease_s = lease_s
        self._max_queued = max_queued

    # -- start -----------------------------------------------------------------------

    async def start(self, caller: Identity, asking: Asking) -> Started:
        """Make a run durable, and begin to work on it here if its turn has come.

        Raises NotFound for thread or agent, FailedPrecondition when the agent
        refuses a second message, ResourceExhausted when too many wait.
        """
        run_id = new_id("run")
        execution: Execution | None = None
        subscription: Subscription | None = None
        try:
            async with self._store.tenant(caller.tenant) as records:
                if asking.request_id:
                    known = await records.answered(asking.method, asking.request_id, asking.body_hash, run_id.encode())
                    if known is not None:
                        return Started(known.decode())
                planned = await self._plan(records, caller, run_id, asking, may_start=True)
                if planned.starts_here:
                    # While it is being stored.
                    execution, subscription = await self._executions.start(
                        caller.tenant, planned.run, planned.thread, planned.agent, planned.steps, planned.conversation
                    )
                recorded = await self._add(records, planned)
        except BaseException:
            # It is not durable, or nobody knows whether it is; then it is found when its lease ends.
            if execution is not None:
                execution.stop()
            raise
        telemetry.runs_started.inc()
        if planned.way.stopping:
            self._executions.cancel(planned.way.stopping, planned.way.reason)
        if execution is not None:
            self._executions.stored(execution, recorded)
        return Started(run_id, subscription)

    async def enqueue(self, records: Records, caller: Identity, run_id: str, asking: Asking) -> None:
        """Make a run durable in the transaction of ``records``, for whichever replica claims it first.

        Raises as ``start`` does.
        """
        await self._add(records, await self._plan(records, caller, run_id, asking, may_start=False))

    async def _plan(
        self, records: Records, caller: Identity, run_id: str, asking: Asking, *, may_start: bool
    ) -> _Planned:
        """What a run is to be; stops what is before it, as its agent's policy has it. Locks its thread."""
        thread, agent, history = await records.lock_thread_for(
            asking.thread_id, asking.agent, DEFAULT_AGENT, limit=MOST_HISTORY, most_bytes=MOST_HISTORY_BYTES
        )
        if thread is None:
            raise NotFound("thread", asking.thread_id)
        name = asking.agent or thread.agent or DEFAULT_AGENT
        if agent is None:
            # The default may be yet to be made.
            agent = await agent_or_default(records, name, self._clock)
        if agent is None:
            raise NotFound("agent", name)
        was_free = not thread.active_run
        way = await make_way(records, thread, agent.spec.double_texting, asking.messages, self._stop)
        thread = way.thread
        ahead = await self._ahead(records, thread, agent) if thread.active_run else 0
        now = self._clock.now()
        starts_here = may_start and not ahead and self._executions.room > 0
        if starts_here and not was_free:
            # Those that were before it have made way.
            history = await records.messages(
                thread.id,
                after=thread.last_position + 1,
                limit=MOST_HISTORY,
                descending=True,
                most_bytes=MOST_HISTORY_BYTES,
            )
            history.reverse()
        events: list[Event] = [RunQueued(thread.id, ahead)]
        if starts_here:
            _require_new(way.messages, history)
            events.append(RunStarted(thread.id, name, agent.version))
            events += [
                MessageCommitted(message, position)
                for position, message in enumerate(way.messages, thread.last_position + 1)
            ]
        run = Run(
            id=run_id,
            thread_id=thread.id,
            agent=name,
            agent_version=agent.version,
            state=state.advance(RunState.QUEUED, state.Trigger.START) if starts_here else RunState.QUEUED,
            options=asking.options,
            subject=caller.subject,
            epoch=1,
            revision=0,
            last_sequence=len(events),
            reserved_sequence=FIRST_RESERVE,
            created_at=now,
            cancel_on_disconnect=asking.cancel_on_disconnect,
            started_at=now if starts_here else None,
        )
        after = thread
        if not thread.active_run:
            position = thread.last_position + len(way.messages) if starts_here else thread.last_position
            updated_at = now if starts_here else thread.updated_at
            after = replace(thread, active_run=run_id, last_position=position, updated_at=updated_at)
        steps = _first_steps(run, agent) if starts_here else []
        return _Planned(run, thread, after, history, agent, steps, events, way)

    async def _add(self, records: Records, planned: _Planned) -> list[Recorded]:
        """Store a run, what it is asked, and its first events, which are returned."""
        run = planned.run
        recorded = [self._recorded(run, Cursor(1, place), event) for place, event in enumerate(planned.events, 1)]
        owner = self._executions.owner if planned.starts_here else None
        await records.add_run(run, has_turn=planned.has_turn, owner=owner, lease_s=self._lease_s)
        await records.add_events(run, recorded)
        if planned.starts_here:
            if planned.steps:
                await records.put_steps(run.id, planned.steps)
            await records.commit_messages(planned.before, planned.way.messages, run_id=run.id, is_output=False)
        else:
            await records.add_waiting_messages(run, planned.way.messages, is_output=False)
        if planned.has_turn:
            await records.write_thread(planned.thread)
        return recorded

    async def _ahead(self, records: Records, thread: Thread, agent: Agent) -> int:
        """How many runs are before a new one. Raises when the agent or the queue takes no more."""
        if agent.spec.double_texting is DoubleTexting.REJECT:
            active = await records.run(thread.active_run)
            raise FailedPrecondition(
                "STATE_CONFLICT",
                "a run of the thread is going on, and its agent refuses a second message meanwhile",
                {"state": active.state.value.upper() if active is not None else ""},
                subject=f"thread/{thread.id}",
            )
        waiting = await records.waiting_runs(thread.id, besides=thread.active_run)
        if waiting >= self._max_queued:
            raise ResourceExhausted(
                "OVERLOADED",
                "too many runs of the thread are waiting",
                retry_after=1.0,
                quota=(f"thread/{thread.id}", f"{self._max_queued} waiting runs"),
            )
        return waiting + 1

    def _recorded(self, run: Run, cursor: Cursor, event: Event) -> Recorded:
        wire = self._codec.encode(run.id, cursor, self._clock.now(), event)
        return Recorded(cursor, event.kind, wire, durable=True, terminal=event.terminal)

    # -- follow ----------------------------------------------------------------------

    def leave(self, tenant: str, started: Started) -> None:
        """Nobody here follows the run that was started."""
        if started.subscription is not None:
            self._hub.unsubscribe(tenant, started.run_id, started.subscription)

    def follow(self, tenant: str, started: Started) -> AsyncIterator[Batch]:
        """All events of a run that was just started, or started by an earlier try."""
        return self._hub.follow(tenant, started.run_id, Cursor(), started.subscription)

    async def watch(self, tenant: str, run_id: str, after: Cursor) -> AsyncIterator[Batch]:
        """The events after a cursor, then live ones, to the terminal one.

        Raises NotFound, and OutOfRange for a cursor that never was.
        """
        run = await self._get(tenant, run_id)
        await self._replay.require_cursor(tenant, run, after, self._published(tenant, run))
        if after not in BEFORE_ALL:
            telemetry.run_resumes.labels("ended" if state.is_terminal(run.state) else "live").inc()
        if state.is_terminal(run.state):
            past = self._replay.pages(tenant, run_id, after)
            async with aclosing(past):  # type: ignore[type-var]
                async for page in past:
                    yield Batch(0.0, page)
            return
        following = self._hub.follow(tenant, run_id, after)
        async with aclosing(following):  # type: ignore[type-var]
            async for batch in following:
                yield batch

    # -- get and cancel --------------------------------------------------------------

    async def get(self, tenant: str, run_id: str) -> RunDetails:
        """A run with its steps. Raises NotFound."""
        async with self._store.tenant(tenant) as records:
            run = await records.run(run_id)
            if run is None:
                raise NotFound("run", run_id)
            steps = await records.steps(run_id)
            waiting_for = (await _waiting_for(records, run)).get(run_id, [])
            made = [item for item in await records.messages_of(run_id) if item.is_output]
            room = MOST_BYTES - sum(len(each.call.arguments_json) + len(each.schema_json) for each in waiting_for)
            output = first_within(reversed(made), room)[::-1]
        if len(output) == 1 and len(output[0].message.wire) > room:
            output = []
        return RunDetails(run, await self._last(tenant, run), waiting_for, steps, output)

    async def brief(self, tenant: str, run_id: str) -> RunDetails:
        """A run without its steps. Raises NotFound."""
        async with self._store.tenant(tenant) as records:
            run = await records.run(run_id)
            if run is None:
                raise NotFound("run", run_id)
            waiting_for = await _waiting_for(records, run)
        return RunDetails(run, await self._last(tenant, run), waiting_for.get(run_id, ()))

    async def described(self, records: Records, tenant: str, run: Run) -> RunDetails:
        """A run as it is in this transaction, for the answer to a write."""
        published = self._published(tenant, run)
        starts = await records.epoch_starts(run.id)
        last = cursor_of(starts, max(run.last_sequence, published or 0))
        waiting_for = await _waiting_for(records, run)
        return RunDetails(run, last, waiting_for.get(run.id, ()))

    async def page(
        self, tenant: str, thread_id: str, states: Collection[RunState], after: tuple[datetime, str] | None, size: int
    ) -> tuple[list[RunDetails], bool]:
        """Runs, newest first, with the place of their newest durable event; and whether there are more."""
        async with self._store.tenant(tenant) as records:
            found = await records.runs(thread_id, states, after, size + 1)
            starts = await records.epoch_starts_of([run.id for run in found])
            waiting_for = await _waiting_for(records, *found[:size])
        page = [
            RunDetails(run, cursor_of(starts[run.id], run.last_sequence), waiting_for.get(run.id, ()))
            for run in found[:size]
        ]
        return page, len(found) > size

    async def cancel(self, tenant: str, run_id: str, reason: str, key: Once[RunDetails]) -> RunDetails | bytes:
        """Ask a run to stop, wherever it is worked on. One that has ended is answered as it is."""
        async with self._store.tenant(tenant) as records:

            async def work() -> RunDetails:
                return await self.described(records, tenant, await self._cancel(records, run_id, reason))

            result = await once(records, key, work)
        if isinstance(result, RunDetails) and result.run.state is RunState.CANCELLING:
            self._executions.cancel(run_id, reason)
        return result

    async def abandon(self, tenant: str, run_id: str, reason: str) -> None:
        """Cancel a run whose client went away: here at once, then durably wherever it is."""
        self._executions.cancel(run_id, reason)
        try:
            async with self._store.tenant(tenant) as records:
                await self._cancel(records, run_id, reason)
        except JanusError as error:
            # An owner that is left cancels by itself; one that dies leaves the mark of the run.
            _log.warning("abandon_not_journalled", reason=error.reason)

    async def _cancel(self, records: Records, run_id: str, reason: str) -> Run:
        found = await records.run(run_id)
        # A thread is always locked before its run.
        thread = await records.lock_thread(found.thread_id) if found is not None else None
        run = await records.lock_run(run_id)
        if run is None or thread is None:
            raise NotFound("run", run_id)
        return await self._stop(records, run, reason, False)

    async def _stop(self, records: Records, run: Run, reason: str, rolls_back: bool) -> Run:
        """Ask a run to stop; it and its thread must be locked. With ``rolls_back`` its messages go with its end."""
        if state.is_terminal(run.state):
            return run
        after = state.advance(run.state, state.Trigger.REQUEST_CANCEL)
        if after is RunState.CANCELLED:
            return await self._cancel_queued(records, run, reason)
        await records.request_cancel(run.id, reason, after, rolls_back=rolls_back)
        await records.notify_cancel(run.id)
        # It can only end now, and those that it asked need not wait for that.
        await records.orphan(run.id, all_of_them=True)
        if run.state in state.WAITING:
            # Nobody works on it: whoever claims it ends it.
            await records.wake(run.id)
        return replace(run, state=after, cancel_reason=run.cancel_reason or reason)

    async def _cancel_queued(self, records: Records, run: Run, reason: str) -> Run:
        """Nobody works on it: it ends here and now."""
        last = run.last_sequence + 1
        ended = replace(
            run,
            state=RunState.CANCELLED,
            ended_at=self._clock.now(),
            last_sequence=last,
            cancel_reason=reason,
        )
        event = self._recorded(run, Cursor(run.epoch, last), RunCancelled(reason, None))
        await records.write_run(ended)
        await records.add_events(run, [event])
        if run.epoch > 1:
            await records.set_epoch_start(run.id, run.epoch, last)
        if run.parent_run:
            await records.tell_asker(run.id)
        await records.end_turn(run.thread_id, run.id)
        telemetry.runs_finished.labels(telemetry.WORKFLOW, ended.state.value).inc()
        return ended

    async def _get(self, tenant: str, run_id: str) -> Run:
        async with self._store.tenant(tenant) as records:
            run = await records.run(run_id)
        if run is None:
            raise NotFound("run", run_id)
        return run

    async def _last(self, tenant: str, run: Run) -> Cursor:
        return await self._replay.newest_cursor(tenant, run, self._published(tenant, run))

    def _published(self, tenant: str, run: Run) -> int | None:
        """The newest sequence of a run that is worked on here, and that no other owner has taken meanwhile."""
        if self._executions.epoch(run.id) != run.epoch:
            return None
        return self._hub.published(tenant, run.id)


def _require_new(messages: Sequence[Message], history: Sequence[ThreadMessage]) -> None:
    """Raise AlreadyExists for a message that is there: the store finds it too, but the model would be asked by then."""
    present = {item.message.id for item in history}
    if taken := [message.id for message in messages if message.id in present]:
        raise message_taken(taken)


def _first_steps(run: Run, agent: Agent) -> list[Step]:
    """The model call, when nothing comes before it that is to be journalled: the start's commit has it then."""
    memory = agent.spec.memory
    if memory.recall_limit or memory.summarize or agent.spec.budgets or run.options.budgets:
        return []
    model = run.options.model or agent.spec.model
    return [Step(1, StepKind.MODEL_CALL, 1, Cursor(run.epoch, run.last_sequence), run.created_at, summary=model)]


async def _waiting_for(records: Records, *runs: Run) -> dict[str, list[Pending]]:
    """By run. Also what a run will wait for when the other calls of its answer have ended."""
    may_wait = [run.id for run in runs if run.state is RunState.RUNNING or run.state in state.WAITING]
    return await records.awaited(may_wait, 2 * MOST_BYTES) if may_wait else {}

"""The journal of a run, as its owner writes it.

Every change goes through ``commit``: one transaction that first locks the run
and compares its epoch, so that an owner which was fenced writes nothing. A
commit whose answer was lost is found by its revision and not applied twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from janus_kit.clock import Clock
from janus_kit.ids import new_id
from janus_orchestration import state, telemetry
from janus_orchestration.agent_tools import ASK
from janus_orchestration.children import Children
from janus_orchestration.event_log import RunLog
from janus_orchestration.events import Event
from janus_orchestration.interrupt import CancelRequested
from janus_orchestration.model import (
    Ancestor,
    Budgets,
    Message,
    Pending,
    PendingKind,
    Recorded,
    Removal,
    Run,
    RunState,
    Step,
    StepKind,
    StoreDebt,
    Thread,
    ThreadMessage,
    Usage,
)
from janus_orchestration.outage import waited_out
from janus_orchestration.ports import Fenced, Records, Stale, Store
from janus_orchestration.removals import FINAL_AFTER_S
from janus_orchestration.state import Trigger

T = TypeVar("T")


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    usage: Usage | None = None
    error: bytes = b""


@dataclass(frozen=True)
class Changes:
    """What one commit writes."""

    trigger: Trigger | None = None
    steps: tuple[Step, ...] = ()
    # An answer that joins the thread only together with the results of its tool calls.
    waits: Message | None = None
    # What waited, all of it, joins the thread now: the run's input, or such an answer.
    joins: tuple[Message, ...] = ()
    # What joins the thread after it.
    outputs: tuple[Message, ...] = ()
    # All that these runs have put into the thread, and what waits, goes; memory
    # is to forget what it may have of it in the space `owes`.
    takes_back: tuple[str, ...] = ()
    # What the run waits for from now on, and the ids of what it goes on with.
    asks: tuple[Pending, ...] = ()
    takes: tuple[str, ...] = ()
    # Steps whose calls a person lets run once more, and for how many seconds.
    retries: tuple[tuple[int, float], ...] = ()
    # What runs that are brought in with this may use.
    left: Budgets | None = None
    # The agent that goes on in the thread, and its run.
    hands_over: tuple[str, str] | None = None
    finish_reason: int | None = None
    events: tuple[Event, ...] = ()
    # The space that memory is to have the thread's turns in; empty when they are
    # not stored. None: not to be decided now.
    owes: str | None = None
    owes_after_s: float = 0.0
    # A debt that memory was given.
    pays: StoreDebt | None = None
    ending: Ending | None = None


class Journal:
    """One run under one epoch."""

    def __init__(
        self,
        tenant: str,
        run: Run,
        thread: Thread,
        steps: Sequence[Step],
        log: RunLog,
        *,
        store: Store,
        clock: Clock,
        children: Children,
        extracts: bool,
        starts_epoch: bool,
    ) -> None:
        self.tenant = tenant
        self.run = run
        self.thread = thread
        self.steps = {step.index: step for step in steps}
        self.log = log
        self._store = store
        self._clock = clock
        self._children = children
        # Whether memory is to turn what it is owed into facts.
        self._extracts = extracts
        # The first commit of a new epoch says where it begins.
        self._starts_epoch = starts_epoch
        # The only debt to memory that the thread has, where that is known.
        self.owed: StoreDebt | None = None
        # What is said gets its place neither within a commit nor after the last one.
        self._order = asyncio.Lock()
        self.is_stored = True

    @property
    def is_over(self) -> bool:
        return state.is_terminal(self.run.state)

    @property
    def is_waiting(self) -> bool:
        return self.run.state in state.WAITING

    @property
    def worked(self) -> timedelta:
        """Since the run started, without the times in which it waited for people."""
        run = self.run
        if run.started_at is None:
            return timedelta()
        return max(timedelta(), (run.waiting_since or self._clock.now()) - run.started_at - run.waited)

    def step(self, kind: StepKind) -> Step | None:
        """The newest step of a kind."""
        return next((s for s in sorted(self.steps.values(), key=_index, reverse=True) if s.kind is kind), None)

    def begun(self, kind: StepKind) -> Step:
        """A step that begins now: a new one, or another attempt at one that was cut."""
        cut = self.step(kind)
        if cut is not None and cut.ended_at is None:
            return replace(cut, attempts=cut.attempts + 1)
        index = max(self.steps, default=0) + 1
        return Step(index, kind, 1, self.log.last, self._clock.now())

    def tried(self, index: int, attempt: int) -> None:
        """A try of a step has begun; its number is journalled with the step's next change."""
        self.steps[index] = replace(self.steps[index], attempts=attempt)

    def ended(self, step: Step, *, summary: str = "", usage: Usage | None = None, error: bytes = b"") -> Step:
        """The step as it ends now."""
        now = self._clock.now()
        telemetry.step_duration.labels(step.kind.value).observe(max(0.0, (now - step.started_at).total_seconds()))
        return replace(step, ended_at=now, summary=summary or step.summary, usage=usage or step.usage, error=error)

    def open_steps(self, *, usage: Usage | None = None, error: bytes = b"") -> tuple[Step, ...]:
        """Steps that are under way, as they end with the run; ``usage`` is of the model call among them."""
        return tuple(
            self.ended(step, usage=usage if step.kind is StepKind.MODEL_CALL else None, error=error)
            for step in self.steps.values()
            if step.ended_at is None
        )

    def with_steps(self, *changed: Step) -> list[Step]:
        """All steps as they will be with these."""
        return list({**self.steps, **{step.index: step for step in changed}}.values())

    async def hold(self) -> None:
        """The run is being stored. Until it is, nothing is said of it or written."""
        self.is_stored = False
        await self._order.acquire()

    def stored(self, events: Sequence[Recorded]) -> None:
        """The run that was held is durable, and with it its first events."""
        self.is_stored = True
        self.log.publish(events)
        self._order.release()

    async def until_stored(self) -> None:
        """Wait for what is being written."""
        async with self._order:
            pass

    async def say(self, event: Event, *, keep: bool) -> None:
        """Send an event now; one that is to be kept is journalled with the next commit."""
        async with self._order:
            await self.log.say(event, keep=keep)

    async def say_beside(self, event: Event) -> None:
        """Send and keep an event of something beside the steps; not when the run has ended or waits."""
        async with self._order:
            if not self.is_over and not self.is_waiting:
                await self.log.say(event, keep=True)

    async def read(self, work: Callable[[Records], Awaitable[T]]) -> T:
        """Read in a transaction; waits for Postgres however long it is away."""

        async def reading() -> T:
            async with self._store.tenant(self.tenant) as records:
                return await work(records)

        return await waited_out(reading)

    async def lineage(self) -> list[Ancestor]:
        """This run, and those above it."""
        run = self.run
        if not run.parent_run:
            return [Ancestor(run.id, run.thread_id, run.agent)]
        return await self.read(lambda records: records.lineage(run.id))

    async def turn(self) -> list[str]:
        """The runs that this turn of the thread had so far, this one last: each handed over to the next."""
        return [each.run_id for each in reversed(await self.lineage()) if each.thread_id == self.run.thread_id]

    async def messages_of(self, run_id: str) -> list[ThreadMessage]:
        """What a run was asked and has committed."""
        return await self.read(lambda records: records.messages_of(run_id))

    async def pending(self, after_step: int) -> list[Pending]:
        """What was asked because of later steps; what is due by now is decided first. Raises Fenced."""

        async def deciding(records: Records) -> list[Pending]:
            held = await records.lock_run(self.run.id)
            if held is None or held.epoch != self.run.epoch:
                raise Fenced(self.run.id)
            await records.expire_pending(self.run.id)
            return await records.pending(self.run.id, after_step)

        return await self.read(deciding)

    async def commit(self, changes: Changes) -> None:
        """Write the changes and send their events; waits for Postgres however long it is away.

        Raises Fenced when a newer owner has the run, CancelRequested when a
        cancel came first.
        """
        async with self._order:
            await self.log.flushed()
            drafts = self.log.draft(changes.events)
            recorded = [*self.log.notes, *drafts]
            self.run, self.thread = await waited_out(lambda: self._write(changes, recorded))
            self._starts_epoch = False
            self.log.notes.clear()
            self.steps.update((step.index, step) for step in changes.steps)
            self.log.publish(drafts)

    async def _write(self, changes: Changes, recorded: list[Recorded]) -> tuple[Run, Thread]:
        """The run and its thread as they are then."""
        touches_thread = bool(
            changes.ending is not None or changes.joins or changes.outputs or changes.owes is not None
        )
        if self.run.state is RunState.RUNNING:
            # What nobody else has touched need not be read.
            with suppress(Stale):
                async with self._store.tenant(self.tenant) as records:
                    known = self.thread if touches_thread else None
                    records.expect(self.run, known)
                    return await self._put(records, self.run, known, changes, recorded)
        async with self._store.tenant(self.tenant) as records:
            thread, held = await self._lock(records, with_thread=touches_thread)
            if held is None or held.epoch != self.run.epoch:
                raise Fenced(self.run.id)
            if held.revision == self.run.revision + 1:
                return held, thread or self.thread
            if state.is_terminal(held.state):
                # Cancelled by somebody while it waited.
                raise Fenced(self.run.id)
            return await self._put(records, held, thread, changes, recorded)

    async def _put(
        self, records: Records, held: Run, thread: Thread | None, changes: Changes, recorded: list[Recorded]
    ) -> tuple[Run, Thread]:
        """Write to a run, and to its thread where that is to change; both are locked, and as given."""
        ends = changes.ending is not None
        now = self._clock.now()
        run = self._changed(held, changes, recorded, now)
        await records.write_run(run)
        if changes.steps:
            await records.put_steps(run.id, changes.steps)
        if settled := [step.index for step in changes.steps if _is_settled_call(step)]:
            await records.drop_calls(run.id, settled)
        if changes.waits is not None:
            await records.add_waiting_messages(run, [changes.waits], is_output=True)
        if changes.asks:
            await records.add_pending(run.id, changes.asks)
        for pending in changes.asks:
            if pending.kind is PendingKind.AGENT:
                await self._children.ask(records, run, self.thread.subject, pending, changes.left)
        if held_back := [each.step for each in changes.asks if each.is_retry]:
            await records.hold_calls(run.id, held_back)
        if changes.retries:
            await records.reopen_calls(run.id, changes.retries)
        if changes.takes:
            await records.take_pending(run.id, changes.takes)
        if self._has_asked and (ends or changes.takes):
            await records.orphan(run.id, all_of_them=ends)
        owed = None
        if thread is not None:
            thread, owed = await self._write_thread(records, thread, run, changes, now)
        if changes.pays is not None:
            await records.pay_debt(changes.pays)
        if recorded:
            await records.add_events(run, recorded)
        if self._starts_epoch:
            # Nothing of this epoch was said before its first commit.
            first = recorded[0].cursor.sequence if recorded else self.log.last.sequence + 1
            await records.set_epoch_start(run.id, run.epoch, first)
        if ends:
            await self._pass_on(records, run, changes)
        elif run.state in state.WAITING:
            await records.let_go(run.id, run.epoch)
        elif owed is not None:
            debts = await records.debts(run.thread_id, as_before=True)
            self.owed = owed if all(debt == owed for debt in debts) else None
        return run, thread or self.thread

    async def _lock(self, records: Records, *, with_thread: bool) -> tuple[Thread | None, Run | None]:
        if with_thread:
            return await records.lock_thread_and_run(self.run.thread_id, self.run.id)
        return None, await records.lock_run(self.run.id)

    async def _pass_on(self, records: Records, run: Run, changes: Changes) -> None:
        """What comes after the run."""
        following = ""
        if changes.hands_over is not None:
            agent, following = changes.hands_over
            await self._children.hand_over(records, run, self.thread, following, agent, changes.left)
        elif run.parent_run:
            await records.tell_asker(run.id)
        await records.end_turn(run.thread_id, run.id, following)

    @property
    def _has_asked(self) -> bool:
        """Whether other agents may be at work for the run."""
        return any(step.kind is StepKind.TOOL_CALL and step.summary == ASK for step in self.steps.values())

    def _changed(self, held: Run, changes: Changes, recorded: list[Recorded], now: datetime) -> Run:
        """The run after the changes, by the state machine."""
        after = held.state
        if after is RunState.CANCELLING and changes.trigger is not Trigger.CONFIRM_CANCEL:
            raise CancelRequested(held.cancel_reason or "")
        if changes.trigger is Trigger.CONFIRM_CANCEL:
            if held.rolls_back and not changes.takes_back:
                # Asked for while the run was ending without it.
                raise CancelRequested(held.cancel_reason or "")
            # The asker may be this process itself, which asks and confirms at once.
            after = state.advance(after, Trigger.REQUEST_CANCEL)
        if changes.trigger is not None:
            after = state.advance(after, changes.trigger)
        last = max([held.last_sequence, *(event.cursor.sequence for event in recorded)])
        changed: dict[str, Any] = {"state": after, "revision": held.revision + 1, "last_sequence": last}
        if changes.finish_reason is not None:
            changed["finish_reason"] = changes.finish_reason
        if changes.trigger is Trigger.START:
            changed["started_at"] = now
        if after in state.WAITING and held.state not in state.WAITING:
            # Nothing more is said by this owner, so the next one knows where to go on.
            changed |= {"waiting_since": now, "reserved_sequence": max(last, self.log.last.sequence)}
        if changes.trigger is Trigger.RESUME and held.waiting_since is not None:
            waited = max(timedelta(), now - held.waiting_since)
            changed |= {"waited": held.waited + waited, "waiting_since": None}
        if changes.ending is not None:
            changed |= {"ended_at": now, "usage": changes.ending.usage, "error": changes.ending.error}
        return replace(held, **changed)

    async def _write_thread(
        self, records: Records, thread: Thread, run: Run, changes: Changes, now: datetime
    ) -> tuple[Thread, StoreDebt | None]:
        """What the thread becomes, and what memory is owed with that."""
        if changes.takes_back:
            await self._take_back(records, thread, changes, now)
            return thread, None
        before, debt = thread, None
        if changes.joins:
            await records.commit_waiting_messages(run, thread)
            thread = replace(thread, last_position=thread.last_position + len(changes.joins), updated_at=now)
        if changes.outputs:
            await records.commit_messages(thread, changes.outputs, run_id=run.id, is_output=True)
            thread = replace(thread, last_position=thread.last_position + len(changes.outputs), updated_at=now)
        if changes.owes is not None:
            debt = self._debt(thread, changes.owes)
            thread = replace(thread, memory_position=max(thread.memory_position, thread.last_position))
        if debt is not None:
            await records.add_debt(debt, changes.owes_after_s)
        if thread != before:
            await records.write_thread(thread)
        return thread, debt

    async def _take_back(self, records: Records, thread: Thread, changes: Changes, now: datetime) -> None:
        gone = await records.take_back(changes.takes_back, thread, now)
        if changes.owes and gone and gone[0].position <= thread.memory_position:
            ids = tuple(item.message.id for item in gone)
            removal = Removal(new_id("rem"), thread.id, changes.owes, ids)
            await records.add_removal(removal, final_after_s=FINAL_AFTER_S)

    def _debt(self, thread: Thread, space: str) -> StoreDebt | None:
        """What memory does not have of the thread; nothing when turns are not stored."""
        if not space or thread.last_position <= thread.memory_position:
            return None
        first, last = thread.memory_position + 1, thread.last_position
        return StoreDebt(thread.id, first, last, self.run.id, space, self._extracts, thread.subject)


def _is_settled_call(step: Step) -> bool:
    return step.kind in state.CALLS and step.ended_at is not None


def _index(step: Step) -> int:
    return step.index

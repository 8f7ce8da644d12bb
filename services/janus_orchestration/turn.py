"""One turn of an agent: recall, model, store, and how it ends.

What to do next comes from the journal alone, so the same code begins a turn
and goes on with one whose owner died.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from janus_kit.clock import Clock
from janus_kit.errors import DeadlineExceeded, InvalidArgument, JanusError, NotFound, Unimplemented
from janus_kit.telemetry.logging import get_logger
from janus_orchestration import prompt as prompts
from janus_orchestration import telemetry
from janus_orchestration.deliveries import Deliveries
from janus_orchestration.events import (
    AttemptRestarted,
    Event,
    MemoryRecalled,
    MessageCommitted,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
)
from janus_orchestration.interrupt import CancelRequested, Interrupt, WallTimeSpent
from janus_orchestration.journal import Changes, Ending, Journal
from janus_orchestration.model import (
    MOST_BYTES,
    AgentSpec,
    Failure,
    MemoryScope,
    Message,
    Recalled,
    RecallScope,
    RunState,
    Step,
    StepKind,
    ThreadMessage,
    Usage,
)
from janus_orchestration.model_call import ModelCall, ModelFailed
from janus_orchestration.ports import EventCodec, Memory, Model
from janus_orchestration.state import Trigger, next_step

_log = get_logger(__name__)

MOST_HISTORY = 200
# What a run was asked, at most 4 MiB, and as much of what was before as a prompt may have.
MOST_HISTORY_BYTES = 2 * MOST_BYTES
_MOST_QUERY_CHARS = 8_192
_MOST_HITS = 200
_MOST_SPARE_HITS = 32
# Of all hits together: they travel in one event.
_MOST_RECALLED_BYTES = 1024 * 1024
# A debt is left alone by the outbox while the end of its run tries to pay it.
_OUTBOX_DELAY_S = 15.0


@dataclass(frozen=True)
class TurnLimits:
    """Times in seconds; see OrchestrationSettings."""

    wall_time_s: float
    recall_timeout_s: float
    store_timeout_s: float
    inference_wait_s: float


class Turn:
    """Works on one run until it has ended. ``history`` is the thread, newest last, where it is known."""

    def __init__(
        self,
        journal: Journal,
        spec: AgentSpec,
        interrupt: Interrupt,
        *,
        model: Model,
        memory: Memory,
        deliveries: Deliveries,
        codec: EventCodec,
        clock: Clock,
        limits: TurnLimits,
        history: Sequence[ThreadMessage] | None = None,
    ) -> None:
        self._journal = journal
        self._spec = spec
        self._interrupt = interrupt
        self._memory = memory
        self._deliveries = deliveries
        self._codec = codec
        self._clock = clock
        self._limits = limits
        self._history = history
        self._call = ModelCall(journal, model, interrupt, clock, wait_s=limits.inference_wait_s)
        self._answer: Message | None = None
        self._storing: Step | None = None
        self._recalled: Recalled | None = None
        # What the recall changes; committed together with the model call's start.
        self._uncommitted = Changes()

    async def work(self) -> None:
        """Take the run to its end. Raises Fenced when another owner has it."""
        try:
            try:
                await self._steps()
            except ModelFailed as failed:
                await self._fail(failed.failure, failed.usage)
            except WallTimeSpent:
                spent = "the run's budget of wall time is used up"
                await self.fail(DeadlineExceeded("total", spent, {"budget": "wall_time"}))
            except JanusError as error:
                await self.fail(error)
        except CancelRequested as asked:
            await self._cancelled(asked.reason)

    async def fail(self, error: JanusError) -> None:
        """End the run as failed."""
        await self._fail(self._codec.failure(error), None)

    async def _steps(self) -> None:
        journal = self._journal
        if journal.run.state is RunState.QUEUED:
            await self._start()
        if journal.run.state is RunState.CANCELLING:
            raise CancelRequested(journal.run.cancel_reason or "")
        started = journal.run.started_at
        spent = self._clock.now() - started if started is not None else timedelta()
        self._interrupt.limit(self._limits.wall_time_s - max(0.0, spent.total_seconds()))
        conversation = await self._conversation()
        query = _query(conversation, journal.run.id)
        recalls = self._spec.memory.recall_limit > 0 and bool(query)
        while not journal.is_over:
            match next_step(list(journal.steps.values()), recalls=recalls, stores=True):
                case StepKind.RECALL:
                    await self._recall(query, conversation)
                case StepKind.MODEL_CALL:
                    await self._ask(conversation, recalls)
                case StepKind.STORE:
                    await self._store()
                case step:
                    raise AssertionError(f"a turn has no step {step}")

    # -- steps -----------------------------------------------------------------------

    async def _start(self) -> None:
        """A run that waited gets its turn: its input joins the thread."""
        journal = self._journal
        waiting = await journal.read(lambda records: records.waiting_messages(journal.run.id))
        first = journal.thread.last_position + 1
        inputs = tuple(
            ThreadMessage(message, position, journal.run.id) for position, message in enumerate(waiting, first)
        )
        events: tuple[Event, ...] = (
            RunStarted(journal.run.thread_id, journal.run.agent, journal.run.agent_version),
            *(MessageCommitted(item.message, item.position) for item in inputs),
        )
        await journal.commit(Changes(trigger=Trigger.START, inputs=inputs, events=events))

    async def _recall(self, query: str, conversation: Sequence[ThreadMessage]) -> None:
        """Ask memory; a run goes on without one that is away or too slow.

        What the conversation holds anyway is not recalled: some more are asked
        for, so that enough others remain.
        """
        step = self._journal.begun(StepKind.RECALL)
        policy = self._spec.memory
        present = {item.message.id for item in conversation}
        limit = min(policy.recall_limit + min(len(present), _MOST_SPARE_HITS), _MOST_HITS)
        try:
            async with self._interrupt.may_cut():
                found = await self._memory.recall(self._recall_scope(), query, limit, self._limits.recall_timeout_s)
            others = [hit for hit in found.hits if hit.record_id not in present]
            best = prompts.hits_within(others[: policy.recall_limit], _MOST_RECALLED_BYTES)
            self._recalled = replace(found, hits=best)
        except NotFound:
            # A space that is not there is a mistake in the agent, not an outage.
            raise
        except JanusError as error:
            _log.warning("recall_failed", reason=error.reason, code=error.code)
            self._recalled = Recalled(degraded=("memory",))
        ended = self._journal.ended(step, summary=f"{len(self._recalled.hits)} recalled")
        self._journal.steps[ended.index] = ended
        self._uncommitted = Changes(steps=(ended,), events=(MemoryRecalled(self._recalled),))

    async def _ask(self, conversation: Sequence[ThreadMessage], recalls: bool) -> None:
        """The model call, and the commit of its answer."""
        journal, options = self._journal, self._journal.run.options
        if self._recalled is None and recalls:
            self._recalled = await self._recalled_before()
        hits = self._recalled.hits if self._recalled is not None else ()
        prompt = prompts.assemble(self._spec, options, conversation, hits)
        step = replace(journal.begun(StepKind.MODEL_CALL), summary=prompt.model)
        try:
            answer = await self._call.answer(prompt, step, self._starting(step))
        except InvalidArgument as error:
            raise _as_asked(error, "input" if options.model else "agent") from error
        if answer.unsupported:
            raise Unimplemented(
                message=f"the model's answer asks for {answer.unsupported}",
                metadata={"feature": answer.unsupported},
            )
        self._answer = answer.message
        ended = journal.ended(step, usage=answer.usage, summary=answer.model)
        changes = Changes(steps=(ended,), answer=answer.message, finish_reason=answer.finish_reason, owes=self._space())
        if self._spec.memory.do_not_store:
            await self._complete(changes, answer.usage)
            return
        self._storing = journal.begun(StepKind.STORE)
        await journal.commit(
            replace(
                changes,
                steps=(ended, self._storing),
                notes=tuple(self._call.notes),
                owes_after_s=_OUTBOX_DELAY_S,
            )
        )
        self._call.notes.clear()

    def _starting(self, step: Step) -> Changes:
        """What is journalled before the model is heard: the recall, and that the call began."""
        before = self._uncommitted
        if step.attempts > 1:
            again = AttemptRestarted(step.after, step.index, step.attempts)
            return replace(before, steps=(*before.steps, step), events=(*before.events, again))
        # The step's own events come after those that are committed with its start.
        if before.events:
            last = self._journal.log.last.sequence + len(before.events)
            step = replace(step, after=step.after._replace(epoch=self._journal.run.epoch, sequence=last))
        return replace(before, steps=(*before.steps, step))

    async def _store(self) -> None:
        """Have memory take the turns, or leave it to the outbox and say so; then the run is done."""
        journal = self._journal
        step = self._storing or journal.begun(StepKind.STORE)
        try:
            async with self._interrupt.may_cut():
                degraded = await self._deliveries.settle(
                    journal.tenant, journal.run.thread_id, self._limits.store_timeout_s
                )
            telemetry.store_debts_paid.labels("at once").inc()
        except (JanusError, WallTimeSpent) as error:
            # The answer is committed; that the turns are stored is the outbox's promise.
            _log.warning("store_left_to_outbox", reason=getattr(error, "reason", "WALL_TIME"))
            degraded = ("memory",)
        ended = journal.ended(step, summary=", ".join(degraded))
        called = journal.step(StepKind.MODEL_CALL)
        usage = called.usage if called is not None else None
        await self._complete(Changes(steps=(ended,)), usage or Usage(), degraded)

    # -- ends ------------------------------------------------------------------------

    async def _complete(self, changes: Changes, usage: Usage, degraded: tuple[str, ...] = ()) -> None:
        journal = self._journal
        finish_reason = changes.finish_reason
        if finish_reason is None:
            finish_reason = journal.run.finish_reason
        committed = await self._committed(degraded, journal.thread.last_position + (changes.answer is not None))
        await journal.commit(
            replace(
                changes,
                trigger=Trigger.COMPLETE,
                events=(*committed, RunCompleted(usage, finish_reason)),
                notes=tuple(self._call.notes),
                ending=Ending(usage),
            )
        )

    async def _fail(self, failure: Failure, usage: Usage | None) -> None:
        _log.info("run_failed", reason=failure.reason)
        await self._journal.commit(
            Changes(
                trigger=Trigger.FAIL,
                steps=self._journal.open_steps(usage=usage, error=failure.status),
                events=(*await self._committed(("memory",)), RunFailed(failure, usage)),
                notes=tuple(self._call.notes),
                owes=self._space(),
                ending=Ending(usage, failure.status),
            )
        )

    async def _cancelled(self, reason: str) -> None:
        if not reason:
            # Another replica passed the wish on; the words are in the journal.
            run_id = self._journal.run.id
            run = await self._journal.read(lambda records: records.run(run_id))
            reason = (run.cancel_reason if run is not None else "") or ""
        called = self._journal.step(StepKind.MODEL_CALL)
        usage = called.usage if called is not None else None
        await self._journal.commit(
            Changes(
                trigger=Trigger.CONFIRM_CANCEL,
                steps=self._journal.open_steps(),
                events=(*await self._committed(("memory",)), RunCancelled(reason, usage)),
                notes=tuple(self._call.notes),
                owes=self._space(),
                ending=Ending(usage),
            )
        )

    async def _committed(self, degraded: tuple[str, ...], position: int | None = None) -> tuple[MessageCommitted, ...]:
        """The event of an answer that is in the thread, or will be with this commit."""
        if position is None and self._journal.step(StepKind.STORE) is None:
            return ()
        if self._answer is None:
            run_id = self._journal.run.id
            output = await self._journal.read(lambda records: records.output(run_id))
            self._answer = output[-1].message if output else None
        if self._answer is None:
            return ()
        place = self._journal.thread.last_position if position is None else position
        return (MessageCommitted(self._answer, place, degraded),)

    # -- small things ----------------------------------------------------------------

    def _space(self) -> str:
        policy = self._spec.memory
        return "" if policy.do_not_store else policy.space

    def _recall_scope(self) -> MemoryScope:
        policy, thread = self._spec.memory, self._journal.thread
        match policy.recall_scope:
            case RecallScope.SPACE:
                return MemoryScope(policy.space)
            case RecallScope.THREAD:
                return MemoryScope(policy.space, thread.subject, thread.id)
        return MemoryScope(policy.space, thread.subject)

    async def _recalled_before(self) -> Recalled:
        """What an earlier owner was told by memory."""
        run_id = self._journal.run.id
        event = await self._journal.read(lambda records: records.event_of_kind(run_id, MemoryRecalled.kind))
        return self._codec.recalled(event.wire) if event is not None else Recalled()

    async def _conversation(self) -> tuple[ThreadMessage, ...]:
        """What the model is shown of the thread: the newest messages within the window."""
        run = self._journal.run
        if self._history is None:
            past = self._journal.thread.last_position + 1
            newest = await self._journal.read(
                lambda records: records.messages(
                    run.thread_id, after=past, limit=MOST_HISTORY, descending=True, most_bytes=MOST_HISTORY_BYTES
                )
            )
            self._history = newest[::-1]
        history = [item for item in self._history if not (item.is_output and item.run_id == run.id)]
        asked = sum(item.run_id == run.id for item in history)
        return prompts.window(history, self._spec.memory.window_tokens, keep=asked)


def _as_asked(error: InvalidArgument, owner: str) -> InvalidArgument:
    """The refusal of a model's name, with the path that the name came from."""
    found = [
        violation._replace(field=f"{owner}.model") if violation.field == "prompt.model" else violation
        for violation in error.violations
    ]
    return InvalidArgument.of(found, reason=error.reason, metadata=error.metadata)


def _query(conversation: Sequence[ThreadMessage], run_id: str) -> str:
    """What the run was asked, for memory to look for."""
    asked = [item.message.text for item in conversation if item.run_id == run_id]
    return "\n".join(text for text in asked if text).strip()[-_MOST_QUERY_CHARS:]

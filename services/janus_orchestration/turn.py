"""One turn of an agent: recall, model, tools, store, and how it ends.

What to do next comes from the journal alone, so the same code begins a turn,
goes on with one whose owner died, and with one that waited for somebody.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from janus_kit.clock import Clock
from janus_kit.errors import DeadlineExceeded, InvalidArgument, JanusError, Unimplemented
from janus_kit.ids import new_id
from janus_kit.telemetry.logging import get_logger
from janus_orchestration import agent_tools, budgets, telemetry
from janus_orchestration import prompt as prompts
from janus_orchestration.agents import DEFAULT_AGENT
from janus_orchestration.children import Children
from janus_orchestration.conversation import Conversation
from janus_orchestration.deliveries import Deliveries
from janus_orchestration.events import (
    AttemptRestarted,
    BudgetWarning,
    Event,
    Handoff,
    MessageCommitted,
    RunCancelled,
    RunCompleted,
    RunExpired,
    RunFailed,
    RunStarted,
)
from janus_orchestration.interrupt import CancelRequested, Interrupt, WallTimeSpent
from janus_orchestration.journal import Changes, Ending, Journal
from janus_orchestration.model import (
    AgentSpec,
    Answer,
    Failure,
    MemoryScope,
    Message,
    PendingKind,
    Prompt,
    Recalled,
    Role,
    RunState,
    Step,
    StepKind,
    StoreDebt,
    ThreadMessage,
    Usage,
)
from janus_orchestration.model_call import ModelCall, ModelFailed, ModelLost
from janus_orchestration.outage import waited_out
from janus_orchestration.ports import EventCodec, Fenced, Memory, Model, ToolCodec
from janus_orchestration.recalling import Recalling, summarizes
from janus_orchestration.removals import Removals
from janus_orchestration.state import Trigger, handed_to, next_step
from janus_orchestration.tool_round import ToolRound, WaitedTooLong
from janus_orchestration.tools import Offered, Toolbox

_log = get_logger(__name__)

# A debt is left alone by the outbox while the end of its run tries to pay it.
_OUTBOX_DELAY_S = 15.0
# So often in a row a model call is begun again that was lost with its service: it may be what the service dies of.
_MOST_LOSSES = 3


@dataclass(frozen=True)
class TurnLimits:
    """Times in seconds; see OrchestrationSettings."""

    wall_time_s: float
    recall_timeout_s: float
    store_timeout_s: float
    inference_wait_s: float
    max_agents: int


@dataclass(frozen=True)
class Helpers:
    """What every turn works with."""

    model: Model
    memory: Memory
    toolbox: Toolbox
    deliveries: Deliveries
    removals: Removals
    children: Children
    events: EventCodec
    tools: ToolCodec
    clock: Clock


class Turn:
    """Works on one run until it has ended or waits.

    ``history`` is the thread, newest last, where it is known: of a run that
    begins here. Steps that are in its journal already begin with it.
    """

    def __init__(
        self,
        journal: Journal,
        spec: AgentSpec,
        interrupt: Interrupt,
        helpers: Helpers,
        limits: TurnLimits,
        history: Sequence[ThreadMessage] | None = None,
    ) -> None:
        self._journal = journal
        self._spec = spec
        self._interrupt = interrupt
        self._helpers = helpers
        self._limits = limits
        self._budget = budgets.limits(spec.budgets, journal.run.options.budgets)
        self._conversation = Conversation(journal, spec.memory.window_tokens, history)
        self._recalling = Recalling(
            journal,
            spec.memory,
            interrupt,
            memory=helpers.memory,
            codec=helpers.events,
            timeout_s=limits.recall_timeout_s,
        )
        self._call = ModelCall(journal, helpers.model, interrupt, helpers.clock, wait_s=limits.inference_wait_s)
        self._round = ToolRound(
            journal, spec.memory, interrupt, codec=helpers.tools, clock=helpers.clock, limits=self._budget
        )
        self._answer: Message | None = None
        self._storing: Step | None = None
        self._begun = journal.step(StepKind.MODEL_CALL) if history is not None else None
        self._agent_tools: dict[str, Offered] | None = None
        # What the recall changes; committed together with the model call's start.
        self._uncommitted = Changes()

    async def work(self) -> None:
        """Take the run to its end, or to where it waits. Raises Fenced when another owner has it."""
        try:
            try:
                async with self._warned_of_time():
                    await self._steps()
            except ModelFailed as failed:
                await self._fail(failed.failure)
            except WaitedTooLong as waited:
                await self._expire(waited.kind)
            except WallTimeSpent:
                spent = "the run's budget of wall time is used up"
                await self.fail(DeadlineExceeded("total", spent, {"budget": budgets.WALL_TIME}))
            except JanusError as error:
                await self.fail(error)
        except CancelRequested as asked:
            await self._cancelled(asked.reason)

    @asynccontextmanager
    async def _warned_of_time(self) -> AsyncIterator[None]:
        """Within, it is told when 80 % of the budget of wall time are used."""
        most, worked = self._limits.wall_time_s, self._journal.worked.total_seconds()
        name = f"wall-time-{self._journal.run.id}"
        left_s = budgets.WARN_AT * most - worked
        warning: asyncio.Task[None] | None = None

        def warn() -> None:
            nonlocal warning
            warning = asyncio.create_task(self._warn_of_time(most), name=name)

        # A timer, and no task before its time: hardly a run lasts so long.
        timer = asyncio.get_running_loop().call_later(left_s, warn) if left_s > 0 else None
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            if warning is not None:
                warning.cancel()
                await asyncio.gather(warning, return_exceptions=True)

    async def _warn_of_time(self, most_s: float) -> None:
        with suppress(Fenced):
            await self._journal.say_beside(BudgetWarning(budgets.WALL_TIME, budgets.WARN_AT * most_s, most_s))

    def answered(self) -> None:
        """Something that the run waits for may have been answered."""
        self._round.answered()

    async def fail(self, error: JanusError) -> None:
        """End the run as failed, unless a cancel came first."""
        try:
            await self._fail(self._helpers.events.failure(error))
        except CancelRequested as asked:
            await self._cancelled(asked.reason)

    async def _steps(self) -> None:
        journal = self._journal
        if journal.run.state is RunState.QUEUED:
            await self._start()
        if journal.run.state is RunState.CANCELLING:
            raise CancelRequested(journal.run.cancel_reason or "")
        self._interrupt.check()
        self._interrupt.limit(self._limits.wall_time_s - journal.worked.total_seconds())
        await self._conversation.load()
        query = self._conversation.query
        policy = self._spec.memory
        recalls = (policy.recall_limit > 0 and bool(query)) or (
            policy.summarize and summarizes(policy, self._conversation.window())
        )
        while not journal.is_over:
            match next_step(list(journal.steps.values()), recalls=recalls, stores=True):
                case StepKind.RECALL:
                    self._uncommitted = await self._recalling.ask(query, self._conversation.window())
                case StepKind.MODEL_CALL:
                    await self._ask(recalls)
                case StepKind.TOOL_CALL:
                    if not await self._run_tools():
                        return
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
        events: tuple[Event, ...] = (
            RunStarted(journal.run.thread_id, journal.run.agent, journal.run.agent_version),
            *(MessageCommitted(message, position) for position, message in enumerate(waiting, first)),
        )
        await journal.commit(Changes(trigger=Trigger.START, joins=tuple(waiting), events=events))

    async def _ask(self, recalls: bool) -> None:
        """A model call, and the commit of its answer."""
        journal, options = self._journal, self._journal.run.options
        offered = await self._offered()
        prompt = prompts.assemble(
            self._spec,
            options,
            self._conversation.window(),
            await self._recalling.recalled() if recalls else Recalled(),
            [each.tool for each in offered.values()],
            self._conversation.asked,
        )
        begun, self._begun = self._begun, None
        step = begun or replace(journal.begun(StepKind.MODEL_CALL), summary=prompt.model)
        if refusal := budgets.refusal(journal.with_steps(step), self._budget):
            raise refusal
        try:
            answer, step = await self._answer_to(prompt, step, self._starting(step) if begun is None else None)
        except InvalidArgument as error:
            raise _as_asked(error, "input" if options.model else "agent") from error
        if answer.unsupported:
            raise Unimplemented(
                message=f"the model's answer asks for {answer.unsupported}",
                metadata={"feature": answer.unsupported},
            )
        ended = journal.ended(step, usage=self._call.usage, summary=answer.model)
        warned = self._warnings(ended)
        if answer.message is not None and (calls := self._helpers.tools.calls(answer.message)):
            await self._round.begin(ended, answer.message, calls, offered, warned, answer.finish_reason)
            return
        self._answer = answer.message
        changes = Changes(
            steps=(ended,),
            outputs=(answer.message,) if answer.message is not None else (),
            finish_reason=answer.finish_reason,
            events=warned,
            owes=self._space(),
        )
        if not self._space():
            await self._complete(changes)
            return
        self._storing = journal.begun(StepKind.STORE)
        await journal.commit(replace(changes, steps=(ended, self._storing), owes_after_s=_OUTBOX_DELAY_S))
        if answer.message is not None:
            place = journal.thread.last_position
            self._conversation.add([ThreadMessage(answer.message, place, journal.run.id, is_output=True)])

    async def _answer_to(self, prompt: Prompt, step: Step, starting: Changes | None) -> tuple[Answer, Step]:
        """The answer, and the step as it is then.

        A model that takes no picture, sound or document that is in the thread is asked again without it: what
        was said before, or a tool has answered, must not end every turn that follows. One whose service was gone
        before it had said all is asked again a few times.
        """
        model, losses = self._helpers.model, 0
        while True:
            try:
                return await self._call.answer(prompt, step, starting, after_loss=bool(losses)), step
            except (InvalidArgument, ModelFailed) as error:
                hidden = prompt.hidden | prompts.refused_kinds(*_refusal(error))
                if not model.hides(prompt, hidden - prompt.hidden):
                    raise
                _log.info("prompt_shows_less", hides=sorted(hidden))
                prompt = replace(prompt, hidden=hidden)
            except ModelLost as lost:
                losses += 1
                if losses > _MOST_LOSSES:
                    raise lost.error from lost
                _log.warning("model_call_lost", reason=lost.error.reason, step=step.index, attempt=step.attempts)
            step = replace(step, attempts=step.attempts + 1)
            starting = self._starting(step)

    def _starting(self, step: Step) -> Changes:
        """What is journalled before the model is heard: the recall, and that the call began."""
        before, self._uncommitted = self._uncommitted, Changes()
        events = (*before.events, *self._warnings(step))
        if step.attempts > 1:
            events = (*events, AttemptRestarted(step.after, step.index, step.attempts))
        elif events:
            # The step's own events come after those that are committed with its start.
            last = self._journal.log.last.sequence + len(events)
            step = replace(step, after=step.after._replace(epoch=self._journal.run.epoch, sequence=last))
        return replace(before, steps=(*before.steps, step), events=events)

    def _warnings(self, step: Step) -> tuple[Event, ...]:
        """Of budgets that come to their 80 % with this step."""
        steps = self._journal.steps.values()
        return budgets.warnings(budgets.used(steps), budgets.used(self._journal.with_steps(step)), self._budget)

    async def _run_tools(self) -> bool:
        """The calls of an answer, until all have their results; False when the run waits for some."""
        offered = await self._offered()
        joined = await self._round.work(offered, self._conversation.own_bytes)
        self._conversation.add(joined)
        return bool(joined)

    async def _store(self) -> None:
        """Have memory take the turns, or leave it to the outbox and say so; then the run is done."""
        journal = self._journal
        step = self._storing or journal.begun(StepKind.STORE)
        if step.index not in journal.steps:
            # After a handoff nothing was owed yet.
            await journal.commit(Changes(steps=(step,), owes=self._space(), owes_after_s=_OUTBOX_DELAY_S))
        try:
            async with self._interrupt.may_cut():
                degraded, owed = await self._helpers.deliveries.deliver(
                    journal.tenant, journal.run.thread_id, self._limits.store_timeout_s, self._only_debt()
                )
            telemetry.store_debts_paid.labels("at once").inc()
        except (JanusError, WallTimeSpent) as error:
            # The answer is committed; that the turns are stored is the outbox's promise.
            _log.warning("store_left_to_outbox", reason=getattr(error, "reason", "WALL_TIME"))
            degraded, owed = ("memory",), None
        ended = journal.ended(step, summary=", ".join(degraded))
        await self._complete(Changes(steps=(ended,), pays=owed), degraded)

    def _only_debt(self) -> tuple[StoreDebt, list[ThreadMessage]] | None:
        """The only debt of the thread and its messages, where both are known without asking the journal."""
        debt = self._journal.owed
        messages = self._conversation.between(debt.from_position, debt.to_position) if debt is not None else None
        return (debt, messages) if debt is not None and messages is not None else None

    # -- ends ------------------------------------------------------------------------

    async def _complete(self, changes: Changes, degraded: tuple[str, ...] = ()) -> None:
        journal = self._journal
        finish_reason = changes.finish_reason
        if finish_reason is None:
            finish_reason = journal.run.finish_reason
        usage = budgets.total(journal.with_steps(*changes.steps)) or Usage()
        committed = await self._committed(degraded, journal.thread.last_position + len(changes.outputs))
        events: tuple[Event, ...] = (*changes.events, *committed)
        steps = journal.with_steps(*changes.steps)
        hands_over = None
        if (agent := handed_to(steps)) is not None:
            hands_over = (agent, new_id("run"))
            events = (*events, Handoff(journal.run.agent, *hands_over))
        await journal.commit(
            replace(
                changes,
                trigger=Trigger.COMPLETE,
                hands_over=hands_over,
                left=budgets.left(steps, self._budget),
                events=(*events, RunCompleted(usage, finish_reason)),
                ending=Ending(usage),
            )
        )

    async def _fail(self, failure: Failure) -> None:
        _log.info("run_failed", reason=failure.reason)
        steps = self._journal.open_steps(usage=self._call.usage, error=failure.status)
        spent = budgets.total(self._journal.with_steps(*steps))
        await self._end(
            Trigger.FAIL,
            steps,
            RunFailed(failure, spent),
            Ending(spent, failure.status),
            "failed",
        )

    async def _cancelled(self, reason: str) -> None:
        # Another replica may have passed the wish on; what it is in full is in the journal.
        run_id = self._journal.run.id
        run = await self._journal.read(lambda records: records.run(run_id))
        words = (run.cancel_reason if run is not None else "") or reason
        if run is not None and run.rolls_back:
            await self._roll_back(words)
            return
        try:
            await self._end_cancelled(words)
        except CancelRequested:
            # Meanwhile its messages are to go as well.
            await self._roll_back(words)

    async def _roll_back(self, reason: str) -> None:
        """End with nothing of the run left in the thread, nor in memory if that answers."""
        journal = self._journal
        turn = await journal.turn()
        # Those who handed over to it said the first of them.
        made = [item for run_id in turn for item in await journal.messages_of(run_id)]
        space = self._space()
        if space and made and made[0].position <= journal.thread.memory_position:
            scope = MemoryScope(space, thread=journal.run.thread_id)
            try:
                # Before the next run may recall it; what is not reached now is told later.
                await self._helpers.removals.forget(
                    journal.tenant, scope, [item.message.id for item in made], self._limits.store_timeout_s
                )
            except JanusError as error:
                _log.warning("rollback_waits_for_memory", reason=error.reason)
        steps = journal.open_steps(usage=self._call.usage)
        spent = budgets.total(journal.with_steps(*steps))
        await journal.commit(
            Changes(
                trigger=Trigger.CONFIRM_CANCEL,
                steps=steps,
                takes_back=tuple(turn),
                events=(RunCancelled(reason, spent, rolled_back=True),),
                owes=space,
                ending=Ending(spent),
            )
        )

    async def _end_cancelled(self, reason: str) -> None:
        steps = self._journal.open_steps(usage=self._call.usage)
        spent = budgets.total(self._journal.with_steps(*steps))
        await self._end(
            Trigger.CONFIRM_CANCEL,
            steps,
            RunCancelled(reason, spent),
            Ending(spent),
            "was cancelled",
        )

    async def _expire(self, waited_for: PendingKind) -> None:
        error = DeadlineExceeded(waited_for.value, f"what the run waited for did not come in time: {waited_for.value}")
        failure = self._helpers.events.failure(error)
        steps = self._journal.open_steps(usage=self._call.usage, error=failure.status)
        spent = budgets.total(self._journal.with_steps(*steps))
        await self._end(
            Trigger.EXPIRE, steps, RunExpired(waited_for, failure, spent), Ending(spent, failure.status), "expired"
        )

    async def _end(self, trigger: Trigger, steps: tuple[Step, ...], last: Event, ending: Ending, how: str) -> None:
        """End before the work is done, with all that has happened in the thread."""
        closing = await self._round.closing(how)
        await self._journal.commit(
            replace(
                closing,
                trigger=trigger,
                steps=steps,
                events=(*closing.events, *await self._committed(("memory",)), last),
                owes=self._space(),
                ending=ending,
            )
        )

    async def _committed(self, degraded: tuple[str, ...], position: int | None = None) -> tuple[MessageCommitted, ...]:
        """The event of the last answer, that is in the thread or will be with this commit."""
        if position is None and self._journal.step(StepKind.STORE) is None:
            return ()
        if self._answer is None:
            made = await self._journal.messages_of(self._journal.run.id)
            # One that asked for tools is followed by their results, and was told of with them.
            if made and made[-1].is_output and made[-1].message.role is Role.ASSISTANT:
                self._answer = made[-1].message
        if self._answer is None:
            return ()
        place = self._journal.thread.last_position if position is None else position
        return (MessageCommitted(self._answer, place, degraded),)

    # -- small things ----------------------------------------------------------------

    async def _offered(self) -> dict[str, Offered]:
        toolbox, tenant = self._helpers.toolbox, self._journal.tenant
        found = await waited_out(lambda: toolbox.offered(tenant, self._spec))
        return {**found, **await self._others()}

    async def _others(self) -> dict[str, Offered]:
        """The tools that bring other agents in; the same for all of the run."""
        spec, journal = self._spec, self._journal
        if self._agent_tools is None:
            self._agent_tools = {}
            if names := [*spec.handoffs, *spec.sub_agents]:
                there = {DEFAULT_AGENT: ""} | await journal.read(lambda records: records.purposes(names))
                at_work = [each.agent for each in await journal.lineage()]
                self._agent_tools = agent_tools.offered(spec, there, at_work, self._limits.max_agents)
        return self._agent_tools

    def _space(self) -> str:
        """Where the turns are stored; empty for nowhere. What an agent was asked, nobody has said."""
        policy = self._spec.memory
        return "" if policy.do_not_store or self._journal.thread.parent_run else policy.space


def _refusal(error: InvalidArgument | ModelFailed) -> tuple[str, str]:
    """The reason, and the capability that is missing where one was named."""
    if isinstance(error, ModelFailed):
        return error.failure.reason, ""
    return error.reason, error.metadata.get("capability", "")


def _as_asked(error: InvalidArgument, owner: str) -> InvalidArgument:
    """The refusal of a model's name, with the path that the name came from."""
    found = [
        violation._replace(field=f"{owner}.model") if violation.field == "prompt.model" else violation
        for violation in error.violations
    ]
    return InvalidArgument.of(found, reason=error.reason, metadata=error.metadata)

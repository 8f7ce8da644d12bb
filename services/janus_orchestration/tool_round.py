"""The tool calls of one answer, from the answer to their results in the thread.

An answer that asks for tools is journalled with its calls and waits. It joins
the thread in the same commit as the message with all their results, so that
nobody ever finds a call there without its result. A run that ends before says
in their place what became of the calls that are open.

What a call waits for (a person's consent or answer, the client's result) is
journalled in the commit that asks for it. When nothing is left but waiting, the
run waits: its owner lets it go, and whoever claims it after an answer goes on
from the journal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from janus_kit.clock import Clock
from janus_orchestration import budgets, children, questions, state, telemetry
from janus_orchestration.calling import (
    Answered,
    Assignment,
    Begun,
    CallContext,
    Calls,
    Done,
    Progressed,
    Unknown,
    under_way,
)
from janus_orchestration.events import (
    ApprovalResolved,
    Event,
    MessageCommitted,
    ToolCallCompleted,
    ToolCallProgress,
    ToolCallRequested,
    ToolCallStarted,
)
from janus_orchestration.interrupt import Interrupt
from janus_orchestration.journal import Changes, Journal
from janus_orchestration.model import (
    MOST_BYTES,
    MemoryPolicy,
    Message,
    Pending,
    PendingKind,
    Step,
    StepKind,
    ThreadMessage,
    ToolCall,
    ToolOutput,
    Usage,
    Verdict,
)
from janus_orchestration.ports import Fenced, ToolCodec
from janus_orchestration.state import Trigger
from janus_orchestration.tools import Offered

_TOO_LARGE = "the result is larger than this run has room for"
_OWNER_GONE = "the process that ran the call is gone"
_NOTHING = Changes()


class WaitedTooLong(Exception):
    """What the run waited for did not come in time."""

    def __init__(self, kind: PendingKind) -> None:
        super().__init__(kind.value)
        self.kind = kind


@dataclass(frozen=True)
class _Asked:
    """An answer that waits for results; ``calls`` by step, in the answer's order."""

    step: int
    answer: Message
    calls: Mapping[int, ToolCall]


class ToolRound:
    """Works through the calls of a run's newest answer."""

    def __init__(
        self,
        journal: Journal,
        memory: MemoryPolicy,
        interrupt: Interrupt,
        *,
        codec: ToolCodec,
        clock: Clock,
        limits: budgets.Amounts,
    ) -> None:
        self._journal = journal
        self._memory = memory
        self._interrupt = interrupt
        self._codec = codec
        self._clock = clock
        self._limits = limits
        self._asked: _Asked | None = None
        self._offered: Mapping[str, Offered] = {}
        # By step, in their wire form; those of open steps are not journalled yet.
        self._results: dict[int, bytes] = {}
        # By step: what its call waits for, and the arguments that a person has consented to.
        self._waiting: dict[int, Pending] = {}
        self._consents: dict[int, bytes] = {}
        # By step: what an agent that was asked has used, and the agent that is handed over to.
        self._usages: dict[int, Usage] = {}
        self._hands_to: dict[int, str] = {}
        # The budget allows none of the calls.
        self._is_refused = False
        self._room = MOST_BYTES
        self._calls: Calls | None = None

    async def begin(
        self,
        asked: Step,
        answer: Message,
        calls: Sequence[ToolCall],
        offered: Mapping[str, Offered],
        events: Sequence[Event],
        finish_reason: int,
    ) -> None:
        """Journal an answer that asks for tools, and its calls. ``asked`` is the model call's step as it ends."""
        journal = self._journal
        now = self._clock.now()
        steps = [
            Step(index, StepKind.TOOL_CALL, 1, journal.log.last, now, summary=call.name)
            for index, call in enumerate(calls, max(journal.steps) + 1)
        ]
        self._asked = _Asked(asked.index, answer, {step.index: call for step, call in zip(steps, calls, strict=True)})
        self._offered, self._results, self._waiting, self._consents = offered, {}, {}, {}
        self._usages, self._hands_to = {}, {}
        self._room = MOST_BYTES - len(answer.wire)
        before = after = budgets.used(journal.with_steps(asked))
        if not budgets.refusal(journal.with_steps(asked, *steps), self._limits):
            after = budgets.used(journal.with_steps(asked, *steps))
            # Nobody is asked about calls that will not be begun.
            asking = (self._question(index, call) for index, call in self._asked.calls.items())
            self._waiting = {each.step: each for each in asking if each is not None}
        to_client = {index for index, each in self._waiting.items() if each.kind is PendingKind.TOOL}
        requested = [
            ToolCallRequested(asked.index, call, client_side=index in to_client)
            for index, call in self._asked.calls.items()
        ]
        told = [questions.told(each, asked.index) for index, each in self._waiting.items() if index not in to_client]
        warned = budgets.warnings(before, after, self._limits)
        await journal.commit(
            Changes(
                steps=(asked, *steps),
                waits=answer,
                asks=tuple(self._waiting.values()),
                left=budgets.left(journal.with_steps(asked, *steps), self._limits),
                finish_reason=finish_reason,
                events=(*events, *requested, *told, *warned),
            )
        )

    async def work(self, offered: Mapping[str, Offered], own_bytes: int) -> tuple[ThreadMessage, ...]:
        """Run the calls that are open; returns what joined the thread with the last result.

        Nothing has joined when the run waits now. ``own_bytes`` is the size of
        the run's messages so far: with all results they must still fit into a
        prompt. Raises when the run's budget does not allow these calls, and
        WaitedTooLong.
        """
        if refusal := budgets.refusal(self._journal.steps.values(), self._limits):
            self._is_refused = True
            raise refusal
        self._offered = offered
        begun_elsewhere = self._asked is None
        asked = self._asked or await self._read()
        self._room -= own_bytes
        if begun_elsewhere and (joined := await self._go_on(asked)):
            return joined
        context = CallContext(
            self._journal.tenant,
            self._journal.run.id,
            self._journal.run.epoch,
            asked.answer.id,
            self._journal.thread,
            self._memory,
        )
        runnable = [step.index for step in self._left() if step.index not in self._waiting]
        async with under_way(context, self._assignments(asked, runnable), self._codec.is_failure) as calls:
            self._calls = calls
            try:
                return await self._follow(asked, calls)
            finally:
                self._calls = None

    def answered(self) -> None:
        """Something that the run waits for may have been answered."""
        # Between calls nobody needs to be told: what was answered is found when the run comes to wait.
        if self._calls is not None:
            self._calls.answered()

    async def closing(self, how: str) -> Changes:
        """What a run that ends now owes the thread; ``how`` it ends, as in `was cancelled`."""
        left = self._left()
        if not left:
            return Changes()
        asked = self._asked or await self._read()
        # What was answered a moment ago was accepted, and is a result like any other.
        asked_about = {each.step: each for each in await self._journal.pending(asked.step) if not each.is_taken}
        for step in left:
            pending = asked_about.get(step.index)
            if step.index in self._results:
                continue
            if pending is not None and (given := await self._given(pending)) is not None:
                self._keep(pending.call, step, given)
            else:
                open_result = questions.left_open(pending, how, is_begun=not self._is_refused)
                self._results[step.index] = self._codec.result(asked.calls[step.index].call_id, open_result)
        return self._changes(asked, left, Changes())

    # -- what runs, and what waits ---------------------------------------------------

    async def _follow(self, asked: _Asked, calls: Calls) -> tuple[ThreadMessage, ...]:
        while True:
            if joined := await self._commit(asked):
                return joined
            if calls.is_idle:
                # Nothing is there to be cut; a run that is to stop must not wait instead.
                self._interrupt.check()
                kinds = {each.kind for each in self._waiting.values()}
                await self._journal.commit(Changes(trigger=state.waits_for(kinds)))
                return ()
            async with self._interrupt.may_cut():
                news = await calls.news()
            for told in news:
                match told:
                    case Begun(step, worker_id, attempt):
                        call_id = asked.calls[step.index].call_id
                        self._journal.tried(step.index, attempt)
                        await self._journal.say(ToolCallStarted(call_id, worker_id, attempt), keep=True)
                    case Progressed(step, fraction, message):
                        call_id = asked.calls[step.index].call_id
                        await self._journal.say(ToolCallProgress(call_id, fraction, message), keep=False)
                    case Done(step, output):
                        call = asked.calls[step.index]
                        self._keep(call, step, self._codec.result(call.call_id, self._heeded(step, output)))
                    case Unknown(step, why):
                        await self._journal.commit(self._asking(asked, [self._another_try(asked, step, why)]))
                    case Answered():
                        heard, runnable = await self._hear(asked)
                        if joined := await self._commit(asked, heard):
                            return joined
                        for assignment in self._assignments(asked, runnable):
                            calls.start(assignment)

    async def _go_on(self, asked: _Asked) -> tuple[ThreadMessage, ...]:
        """Take up what an earlier owner left: answers that have come, and calls that its death cut."""
        heard, runnable = await self._hear(asked)
        asks, again = [], []
        for step in self._left():
            index = step.index
            if index in self._waiting or index in self._results or index in runnable:
                continue
            call = asked.calls[index]
            offered = self._offered.get(call.name)
            if question := self._question(index, call):
                asks.append(question)
            elif offered is None or _is_known(offered):
                # Nothing is begun again. It is written all the same, as what is said of it comes after a commit.
                again.append(step)
            elif state.after_unknown(offered.tool.side_effect) is state.AfterUnknown.ASK:
                asks.append(self._another_try(asked, step, _OWNER_GONE))
            else:
                again.append(replace(step, attempts=step.attempts + 1))
        asking = self._asking(asked, asks)
        return await self._commit(
            asked,
            replace(
                heard,
                trigger=Trigger.RESUME if self._journal.is_waiting else None,
                steps=(*heard.steps, *again),
                asks=(*heard.asks, *asking.asks),
                left=asking.left,
                events=(*heard.events, *asking.events),
            ),
        )

    async def _hear(self, asked: _Asked) -> tuple[Changes, list[int]]:
        """What has been answered, as it is to be journalled, and the steps whose calls may run then.

        Raises WaitedTooLong. A run among whose calls some are running finds out
        when these have ended.
        """
        found = await self._journal.pending(asked.step)
        if self._journal.is_waiting:
            for each in found:
                if each.verdict is Verdict.EXPIRED:
                    raise WaitedTooLong(each.kind)
        takes: list[str] = []
        events: list[Event] = []
        again: list[Step] = []
        retries: list[tuple[int, float]] = []
        asks: list[Pending] = []
        runnable: list[int] = []
        for each in found:
            step = self._journal.steps[each.step]
            if each.verdict in (None, Verdict.EXPIRED):
                self._waiting[each.step] = each
                continue
            if each.verdict is Verdict.APPROVED:
                self._consents[each.step] = each.arguments_sha256
            if each.is_taken:
                continue
            takes.append(each.id)
            self._waiting.pop(each.step, None)
            telemetry.run_answers.labels(each.kind.value, each.verdict.value if each.in_time else "expired").inc()
            if each.kind is PendingKind.APPROVAL:
                events.append(ApprovalResolved(each.id, each.verdict, each.answered_by, each.answer.decode()))
            if (given := await self._given(each)) is not None:
                self._keep(each.call, step, given)
                continue
            if each.is_retry:
                again.append(replace(step, attempts=step.attempts + 1))
                if (offered := self._offered.get(each.call.name)) is not None:
                    retries.append((each.step, offered.timeout_s))
            if question := self._question(each.step, each.call):
                asks.append(question)
            else:
                runnable.append(each.step)
        asking = self._asking(asked, asks)
        return (
            Changes(
                steps=tuple(again),
                retries=tuple(retries),
                asks=asking.asks,
                left=asking.left,
                takes=tuple(takes),
                events=(*events, *asking.events),
            ),
            runnable,
        )

    def _question(self, index: int, call: ToolCall) -> Pending | None:
        """What a call has to wait for before it can run."""
        consent = self._consents.get(index, b"")
        return questions.before_running(index, call, self._offered.get(call.name), consent, self._clock.now())

    def _another_try(self, asked: _Asked, step: Step, why: str) -> Pending:
        call = asked.calls[step.index]
        return questions.before_another_try(step.index, call, self._offered[call.name], why, self._clock.now())

    def _asking(self, asked: _Asked, asks: Sequence[Pending]) -> Changes:
        self._waiting.update((each.step, each) for each in asks)
        left = budgets.left(self._journal.steps.values(), self._limits)
        return Changes(asks=tuple(asks), left=left, events=tuple(questions.told(each, asked.step) for each in asks))

    async def _given(self, pending: Pending) -> bytes | None:
        """The result that a verdict makes; None where there is none, or the call is to run."""
        call_id = pending.call.call_id
        match pending.verdict:
            case Verdict.ANSWERED if pending.kind is PendingKind.AGENT:
                output, run = await self._journal.read(lambda records: children.answer_of(records, pending))
                if run is not None and run.usage is not None:
                    self._usages[pending.step] = run.usage
                return self._codec.result(call_id, output)
            case Verdict.DECLINED:
                return self._codec.result(call_id, questions.declined(pending))
            case Verdict.ANSWERED if pending.kind is PendingKind.INPUT:
                return self._codec.result(call_id, questions.answered(pending))
            case Verdict.ANSWERED:
                return pending.answer
        return None

    # -- the journal -----------------------------------------------------------------

    def _left(self) -> list[Step]:
        return [step for step in state.tool_calls(list(self._journal.steps.values())) if step.ended_at is None]

    def _assignments(self, asked: _Asked, steps: Sequence[int]) -> list[Assignment]:
        calls = ((index, asked.calls[index]) for index in steps)
        return [Assignment(self._journal.steps[index], call, self._offered.get(call.name)) for index, call in calls]

    def _keep(self, call: ToolCall, step: Step, result: bytes) -> None:
        if len(result) > self._room:
            result = self._codec.result(call.call_id, ToolOutput(_TOO_LARGE, is_error=True))
        self._results[step.index] = result
        self._room -= len(result)

    def _heeded(self, step: Step, output: ToolOutput) -> ToolOutput:
        """What the model is told; a conversation is handed over once."""
        if not output.hands_to:
            return output
        if self._hands_to or state.handed_to(list(self._journal.steps.values())) is not None:
            return ToolOutput("the conversation has been handed over already", is_error=True)
        self._hands_to[step.index] = output.hands_to
        return output

    def _warnings(self, ended: Sequence[Step]) -> tuple[Event, ...]:
        """Of budgets that come to their 80 % by what agents that were asked have used."""
        before, after = self._journal.steps.values(), self._journal.with_steps(*ended)
        return budgets.warnings(budgets.used(before), budgets.used(after), self._limits)

    def _ended(self, step: Step) -> Step:
        ended = self._journal.ended(step, usage=self._usages.get(step.index))
        agent = self._hands_to.get(step.index)
        return ended if agent is None else replace(ended, kind=StepKind.HANDOFF, summary=agent)

    async def _commit(self, asked: _Asked, more: Changes = _NOTHING) -> tuple[ThreadMessage, ...]:
        """Journal the results that have come; with the last of them, what joins the thread."""
        ready = [step for step in self._left() if step.index in self._results]
        if not ready and more == _NOTHING:
            return ()
        changes = self._changes(asked, ready, more)
        first = self._journal.thread.last_position + 1
        await self._journal.commit(changes)
        return tuple(
            ThreadMessage(message, position, self._journal.run.id, is_output=True)
            for position, message in enumerate((*changes.joins, *changes.outputs), first)
        )

    def _changes(self, asked: _Asked, ready: Sequence[Step], more: Changes) -> Changes:
        now = self._clock.now()
        ended = [self._ended(step) for step in ready]
        changes = replace(
            more,
            steps=(*more.steps, *ended),
            events=(
                *more.events,
                *(
                    ToolCallCompleted(self._results[step.index], max(now, step.started_at) - step.started_at)
                    for step in ready
                ),
                *self._warnings(ended),
            ),
        )
        if len(ready) < len(self._left()):
            return changes
        message = self._codec.message([self._results[index] for index in asked.calls], now)
        first = self._journal.thread.last_position + 1
        committed = (MessageCommitted(asked.answer, first), MessageCommitted(message, first + 1))
        return replace(changes, joins=(asked.answer,), outputs=(message,), events=(*changes.events, *committed))

    async def _read(self) -> _Asked:
        """The answer that waits, its calls and their results, as an earlier owner journalled them."""
        journal, run_id = self._journal, self._journal.run.id
        steps = state.tool_calls(list(journal.steps.values()))
        called = journal.step(StepKind.MODEL_CALL)
        assert called is not None, "only a model asks for tools"
        waiting = await journal.read(lambda records: records.waiting_messages(run_id))
        if not waiting:
            # It has joined the thread: another owner has gone on meanwhile.
            raise Fenced(run_id)
        (answer,) = waiting
        told = await journal.read(
            lambda records: records.events_of_kind(run_id, ToolCallCompleted.kind, after=called.after.sequence)
        )
        results = dict(self._codec.recorded(event.wire) for event in told)
        calls = {step.index: call for step, call in zip(steps, self._codec.calls(answer), strict=True)}
        self._results = {index: results[call.call_id] for index, call in calls.items() if call.call_id in results}
        self._room = MOST_BYTES - len(answer.wire) - sum(map(len, self._results.values()))
        self._asked = _Asked(called.index, answer, calls)
        return self._asked


def _is_known(offered: Offered) -> bool:
    """Whether the source goes on with what an earlier owner may have begun, and counts its tries."""
    return offered.source is not None and offered.source.knows_calls

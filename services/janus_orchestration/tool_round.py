"""The tool calls of one answer, from the answer to their results in the thread.

An answer that asks for tools is journalled with its calls and waits. It joins
the thread in the same commit as the message with all their results, so that
nobody ever finds a call there without its result. A run that ends before says
in their place what became of the calls that are open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from janus_kit.clock import Clock
from janus_orchestration import budgets, state
from janus_orchestration.calling import Assignment, Begun, CallContext, Done, Progressed, under_way
from janus_orchestration.events import (
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
    Step,
    StepKind,
    ThreadMessage,
    ToolCall,
    ToolOutput,
)
from janus_orchestration.ports import ToolCodec
from janus_orchestration.tools import Offered

_TOO_LARGE = "the result is larger than this run has room for"


@dataclass(frozen=True)
class _Asked:
    """An answer that waits for results; ``calls`` by step, in the answer's order."""

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
        # By step, in their wire form; those of open steps are not journalled yet.
        self._results: dict[int, bytes] = {}

    async def begin(self, asked: Step, answer: Message, calls: Sequence[ToolCall], events: Sequence[Event]) -> None:
        """Journal an answer that asks for tools, and its calls. ``asked`` is the model call's step as it ends."""
        journal = self._journal
        now = self._clock.now()
        steps = [
            Step(index, StepKind.TOOL_CALL, 1, journal.log.last, now, summary=call.name)
            for index, call in enumerate(calls, max(journal.steps) + 1)
        ]
        before, after = budgets.used(journal.with_steps(asked)), budgets.used(journal.with_steps(asked, *steps))
        requested = [ToolCallRequested(asked.index, call) for call in calls]
        warned = budgets.warnings(before, after, self._limits)
        await journal.commit(Changes(steps=(asked, *steps), waits=answer, events=(*events, *requested, *warned)))
        self._asked = _Asked(answer, {step.index: call for step, call in zip(steps, calls, strict=True)})
        self._results = {}

    async def work(self, offered: Mapping[str, Offered], own_bytes: int) -> tuple[ThreadMessage, ...]:
        """Run the calls that are open; returns what joined the thread with the last result.

        ``own_bytes`` is the size of the run's messages so far: with all results
        they must still fit into a prompt. Raises when the run's budget does not
        allow these calls.
        """
        if refusal := budgets.refusal(self._journal.steps.values(), self._limits):
            raise refusal
        asked = self._asked or await self._taken_over()
        left = [
            Assignment(step, asked.calls[step.index], offered.get(asked.calls[step.index].name))
            for step in self._left()
        ]
        room = MOST_BYTES - own_bytes - len(asked.answer.wire) - sum(map(len, self._results.values()))
        context = CallContext(
            self._journal.tenant,
            self._journal.run.id,
            self._journal.run.epoch,
            asked.answer.id,
            self._journal.thread,
            self._memory,
        )
        async with under_way(context, left) as calls:
            joined: tuple[ThreadMessage, ...] = ()
            while not joined:
                async with self._interrupt.may_cut():
                    news = await calls.news()
                for told in news:
                    match told:
                        case Begun(step, worker_id, attempt):
                            call_id = asked.calls[step.index].call_id
                            await self._journal.say(ToolCallStarted(call_id, worker_id, attempt), keep=True)
                        case Progressed(step, fraction, message):
                            call_id = asked.calls[step.index].call_id
                            await self._journal.say(ToolCallProgress(call_id, fraction, message), keep=False)
                        case Done(step, output):
                            room -= self._keep(asked, step, output, room)
                joined = await self._commit(asked)
        return joined

    async def closing(self, why: str) -> Changes:
        """What a run that ends now owes the thread; ``why`` is the result of calls that have none."""
        left = self._left()
        if not left:
            return Changes()
        asked = self._asked or await self._read()
        for step in left:
            if step.index not in self._results:
                self._keep(asked, step, ToolOutput(why, is_error=True), MOST_BYTES)
        return self._changes(asked, left)

    def _left(self) -> list[Step]:
        return [step for step in state.tool_calls(list(self._journal.steps.values())) if step.ended_at is None]

    def _keep(self, asked: _Asked, step: Step, output: ToolOutput, room: int) -> int:
        call_id = asked.calls[step.index].call_id
        result = self._codec.result(call_id, output)
        if len(result) > room:
            result = self._codec.result(call_id, ToolOutput(_TOO_LARGE, is_error=True))
        self._results[step.index] = result
        return len(result)

    async def _commit(self, asked: _Asked) -> tuple[ThreadMessage, ...]:
        """Journal the results that have come; with the last of them, what joins the thread."""
        ready = [step for step in self._left() if step.index in self._results]
        if not ready:
            return ()
        changes = self._changes(asked, ready)
        first = self._journal.thread.last_position + 1
        await self._journal.commit(changes)
        return tuple(
            ThreadMessage(message, position, self._journal.run.id, is_output=True)
            for position, message in enumerate((*changes.joins, *changes.outputs), first)
        )

    def _changes(self, asked: _Asked, ready: Sequence[Step]) -> Changes:
        now = self._clock.now()
        changes = Changes(
            steps=tuple(self._journal.ended(step) for step in ready),
            events=tuple(
                ToolCallCompleted(self._results[step.index], max(now, step.started_at) - step.started_at)
                for step in ready
            ),
        )
        if len(ready) < len(self._left()):
            return changes
        message = self._codec.message([self._results[index] for index in asked.calls], now)
        first = self._journal.thread.last_position + 1
        committed = (MessageCommitted(asked.answer, first), MessageCommitted(message, first + 1))
        return replace(changes, joins=(asked.answer,), outputs=(message,), events=(*changes.events, *committed))

    async def _taken_over(self) -> _Asked:
        """The answer whose calls an earlier owner began; those without a result are begun again."""
        self._asked = await self._read()
        again = tuple(replace(step, attempts=step.attempts + 1) for step in self._left())
        await self._journal.commit(Changes(steps=again))
        return self._asked

    async def _read(self) -> _Asked:
        """The answer and the results, as journalled."""
        journal, run_id = self._journal, self._journal.run.id
        called = journal.step(StepKind.MODEL_CALL)
        after = called.after.sequence if called is not None else 0
        (answer,) = await journal.read(lambda records: records.waiting_messages(run_id))
        told = await journal.read(lambda records: records.events_of_kind(run_id, ToolCallCompleted.kind, after=after))
        results = dict(self._codec.recorded(event.wire) for event in told)
        steps = state.tool_calls(list(journal.steps.values()))
        calls = {step.index: call for step, call in zip(steps, self._codec.calls(answer), strict=True)}
        self._results = {index: results[call.call_id] for index, call in calls.items() if call.call_id in results}
        return _Asked(answer, calls)

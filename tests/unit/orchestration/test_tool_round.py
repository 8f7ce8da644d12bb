"""Calls that run, wait and are answered, with owners that die at any commit, against what has really happened."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.fakes.orchestration_service import assert_pairs

from janus_api.content.v1 import message_pb2 as content
from janus_orchestration import budgets, state
from janus_orchestration.events import Event, RunCancelled, RunExpired, ToolCallRequested
from janus_orchestration.interrupt import CancelRequested, Interrupt
from janus_orchestration.journal import Changes, Ending, Journal
from janus_orchestration.model import (
    Cursor,
    Failure,
    MemoryPolicy,
    Message,
    Pending,
    PendingKind,
    Recorded,
    Run,
    RunOptions,
    RunState,
    SideEffect,
    Step,
    StepKind,
    Thread,
    Tool,
    ToolOutput,
    Verdict,
)
from janus_orchestration.ports import Fenced, OutcomeUnknown, Stale, ToolReport, ToolTask
from janus_orchestration.state import Trigger
from janus_orchestration.tool_round import ToolRound, WaitedTooLong
from janus_orchestration.tools import Offered
from janus_orchestration.wire.content import completed
from janus_orchestration.wire.events import ProtobufEvents
from janus_orchestration.wire.tools import ProtobufTools

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = budgets.limits(None)
LONG = timedelta(seconds=60)


class Died(Exception):
    """The owner was killed."""


class Clock:
    """Time stands still: what is due is the test's to say."""

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


@dataclass
class Disk:
    """What is committed."""

    run: Run
    thread: Thread
    steps: dict[int, Step] = field(default_factory=dict)
    waiting: list[Message] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    pending: dict[str, Pending] = field(default_factory=dict)
    due: set[str] = field(default_factory=set)
    events: list[Recorded] = field(default_factory=list)
    has_owner: bool = True

    def copied(self) -> Disk:
        return Disk(
            self.run,
            self.thread,
            dict(self.steps),
            list(self.waiting),
            list(self.messages),
            dict(self.pending),
            set(self.due),
            list(self.events),
            self.has_owner,
        )


class Records:
    """A transaction on the disk, as far as a journal needs it."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    async def lock_thread(self, thread_id: str) -> Thread:
        return self.disk.thread

    async def lock_run(self, run_id: str) -> Run:
        return self.disk.run

    async def lock_thread_and_run(self, thread_id: str, run_id: str) -> tuple[Thread, Run]:
        return self.disk.thread, self.disk.run

    def expect(self, run: Run, thread: Thread | None) -> None:
        there = self.disk.run
        if (there.epoch, there.revision, there.state) != (run.epoch, run.revision, run.state):
            raise Stale(run.id)
        assert thread in (None, self.disk.thread)

    async def write_run(self, run: Run) -> None:
        self.disk.run = run

    async def put_steps(self, run_id: str, steps: Sequence[Step]) -> None:
        self.disk.steps.update((step.index, step) for step in steps)

    async def add_waiting_messages(self, run: Run, messages: Sequence[Message], *, is_output: bool) -> None:
        self.disk.waiting.extend(messages)

    async def waiting_messages(self, run_id: str) -> list[Message]:
        return list(self.disk.waiting)

    async def commit_waiting_messages(self, run: Run, thread: Thread) -> None:
        self.disk.messages.extend(self.disk.waiting)
        self.disk.waiting = []

    async def commit_messages(self, thread: Thread, messages: Sequence[Message], **_: Any) -> None:
        self.disk.messages.extend(messages)

    async def write_thread(self, thread: Thread) -> None:
        assert thread.last_position == len(self.disk.messages)
        self.disk.thread = thread

    async def add_events(self, run: Run, events: Sequence[Recorded]) -> None:
        self.disk.events.extend(events)

    async def events_of_kind(self, run_id: str, kind: str, *, after: int = 0) -> list[Recorded]:
        return [each for each in self.disk.events if each.kind == kind and each.cursor.sequence > after]

    async def drop_calls(self, *_: Any) -> None: ...

    async def hold_calls(self, *_: Any) -> None: ...

    async def reopen_calls(self, *_: Any) -> None: ...

    async def set_epoch_start(self, *_: Any) -> None: ...

    async def end_turn(self, *_: Any) -> None:
        self.disk.has_owner = False

    async def add_pending(self, run_id: str, pending: Sequence[Pending]) -> None:
        self.disk.pending.update((each.id, each) for each in pending)

    async def pending(self, run_id: str, after_step: int) -> list[Pending]:
        return [each for each in self.disk.pending.values() if each.step > after_step]

    async def take_pending(self, run_id: str, ids: Sequence[str]) -> None:
        self.disk.pending.update((each, replace(self.disk.pending[each], is_taken=True)) for each in ids)

    async def expire_pending(self, run_id: str) -> None:
        for each in list(self.disk.pending.values()):
            if each.id in self.disk.due and each.verdict is None:
                self.disk.pending[each.id] = replace(each, verdict=each.on_expiry)

    async def let_go(self, run_id: str, epoch: int) -> None:
        self.disk.has_owner = False


class Log:
    """Numbers events; there is nobody to send them to."""

    def __init__(self, run: Run) -> None:
        self.run_id, self.last = run.id, Cursor(run.epoch, run.last_sequence)
        self.notes: list[Recorded] = []

    async def flushed(self) -> None: ...

    def _recorded(self, event: Event, sequence: int, durable: bool) -> Recorded:
        cursor = Cursor(self.last.epoch, sequence)
        wire = ProtobufEvents().encode(self.run_id, cursor, NOW, event)
        return Recorded(cursor, event.kind, wire, durable, event.terminal)

    def draft(self, events: Sequence[Event]) -> list[Recorded]:
        return [self._recorded(event, place, True) for place, event in enumerate(events, self.last.sequence + 1)]

    def publish(self, committed: Sequence[Recorded]) -> None:
        if committed:
            self.last = committed[-1].cursor

    async def say(self, event: Event, *, keep: bool) -> None:
        said = self._recorded(event, self.last.sequence + 1, keep)
        self.last = said.cursor
        if keep:
            self.notes.append(said)


class Owner:
    """A process that works on the run."""

    def __init__(self, machine: Waiting) -> None:
        disk = machine.disk
        nothing: Any = machine
        log: Any = Log(disk.run)
        steps = list(disk.steps.values())
        self.journal = Journal(
            "tenant",
            disk.run,
            disk.thread,
            steps,
            log,
            store=nothing,
            clock=Clock(),
            children=nothing,
            extracts=False,
            starts_epoch=True,
        )
        self.interrupt = Interrupt()
        self.round = ToolRound(
            self.journal, MemoryPolicy(), self.interrupt, codec=ProtobufTools(), clock=Clock(), limits=LIMITS
        )


class Waiting(RuleBasedStateMachine):
    """A run whose model asks for all sorts of tools, and everything that can happen to it."""

    def __init__(self) -> None:
        super().__init__()
        run = Run("run_1", "t", "a", 1, RunState.RUNNING, RunOptions(), "", 1, 0, 0, 0, NOW, started_at=NOW)
        self.disk = Disk(run, Thread("t", "a", "", "", "", NOW, NOW))
        self.owner: Owner | None = None
        self.commits_left: int | None = None
        self.dies_after = False
        self.behaviour = "works"
        self.asked = 0
        # What has really been run: (idempotency key, name), once for every try.
        self.tries: Counter[tuple[str, str]] = Counter()
        side = SideEffect.IDEMPOTENT
        self.offered = {
            name: Offered(
                Tool(name, "", "{}", SideEffect.AT_MOST_ONCE if "once" in name else side, LONG, answered_by=by),
                None if by else self,
                60,
                8,
                needs_approval="consent" in name,
                without_approval=Verdict.APPROVED if name == "consent.or_time" else Verdict.DECLINED,
            )
            for name, by in {
                "plain": None,
                "consent": None,
                "consent.or_time": None,
                "once": None,
                "once.consent": None,
                "client": PendingKind.TOOL,
                "client.consent": PendingKind.TOOL,
            }.items()
        }
        question = Tool("ask", "", "{}", side, LONG, answered_by=PendingKind.INPUT)
        self.offered["ask"] = Offered(question, None, 60, 8)

    knows_calls = False

    # -- the world of the owner --------------------------------------------------------

    @asynccontextmanager
    async def tenant(self, tenant: str) -> AsyncIterator[Any]:
        """A store that may be the last thing that an owner ever saw."""
        records = Records(self.disk.copied())
        yield records
        is_last = self.commits_left == 0
        if self.commits_left is not None:
            self.commits_left -= 1
        if is_last and not self.dies_after:
            raise Died
        self.disk = records.disk
        if is_last:
            raise Died

    async def find(self, tenant: str, names: Collection[str]) -> Sequence[Tool]:
        return ()

    async def call(self, tenant: str, task: ToolTask, report: ToolReport) -> ToolOutput:
        await report.started("w1")
        self.tries[(task.idempotency_key, task.call.name)] += 1
        if self.behaviour == "hangs":
            await asyncio.Event().wait()
        if self.behaviour == "unknown":
            raise OutcomeUnknown("the worker vanished")
        return ToolOutput("done")

    # -- what happens ------------------------------------------------------------------

    def is_open(self) -> bool:
        return any(step.ended_at is None for step, _ in self.calls())

    def is_over(self) -> bool:
        return state.is_terminal(self.disk.run.state)

    def awaited(self) -> list[Pending]:
        return [each for each in self.disk.pending.values() if each.verdict is None and not each.is_taken]

    def alive(self) -> Owner:
        """The owner, or another one that takes the run over."""
        if self.owner is None or not self.disk.has_owner:
            self.disk.run = replace(self.disk.run, epoch=self.disk.run.epoch + 1)
            self.disk.has_owner = True
            self.owner = Owner(self)
        return self.owner

    def do(self, work: Any) -> None:
        try:
            asyncio.run(work)
        except Died:
            self.owner = None
        finally:
            self.commits_left = None

    @precondition(lambda self: not self.is_over() and not self.is_open() and self.disk.run.state is RunState.RUNNING)
    @rule(data=st.data(), dies=st.sampled_from([None, None, "before", "after"]))
    def the_model_asks(self, data: st.DataObject, dies: str | None) -> None:
        names = data.draw(st.lists(st.sampled_from(["nobody.has", "broken", *self.offered]), min_size=1, max_size=5))
        self.asked += 1
        message = content.Message(role=content.ROLE_ASSISTANT, id=f"msg_{self.asked}")
        for place, name in enumerate(names):
            # Models use the ids of calls again.
            arguments = "{" if name == "broken" else f'{{"question": "{self.asked}?"}}'
            call = content.ToolCall(call_id=f"c{place}", name=name.replace("broken", "plain"), arguments_json=arguments)
            message.parts.add().tool_call.CopyFrom(call)
        answer = completed(message, NOW)
        owner = self.alive()
        self.do(self._ask(owner, answer, dies))

    async def _ask(self, owner: Owner, answer: Message, dies: str | None) -> None:
        begun = owner.journal.begun(StepKind.MODEL_CALL)
        await owner.journal.commit(Changes(steps=(begun,)))
        self.commits_left, self.dies_after = (None if dies is None else 0), dies == "after"
        calls = ProtobufTools().calls(answer)
        await owner.round.begin(replace(begun, ended_at=NOW), answer, calls, self.offered, [], 0)

    @precondition(lambda self: not self.is_over() and (self.is_open() or self.disk.run.state is RunState.CANCELLING))
    @rule(
        behaviour=st.sampled_from(["works", "works", "hangs", "unknown"]),
        commits=st.sampled_from([None, None, None, 0, 1, 2, 3]),
        dies_after=st.booleans(),
    )
    def an_owner_works(self, behaviour: str, commits: int | None, dies_after: bool) -> None:
        self.behaviour, self.commits_left, self.dies_after = behaviour, commits, dies_after
        self.do(self._work(self.alive()))

    async def _work(self, owner: Owner) -> None:
        try:
            if not self.is_open() or owner.journal.run.state is RunState.CANCELLING:
                raise CancelRequested("")
            working = asyncio.ensure_future(owner.round.work(self.offered, 0))
            if self.behaviour == "hangs":
                await asyncio.wait([working], timeout=0.02)
                if not working.done():
                    # Killed in the middle of calls.
                    working.cancel()
                    await asyncio.wait([working])
                    raise Died
            if not await working:
                assert owner.journal.is_waiting
                assert not self.disk.has_owner
        except WaitedTooLong as waited:
            failure = Failure(b"", False, "")
            await self._end(owner, Trigger.EXPIRE, "expired", RunExpired(waited.kind, failure, None))
        except CancelRequested:
            await self._end(owner, Trigger.CONFIRM_CANCEL, "was cancelled", RunCancelled("", None))

    async def _end(self, owner: Owner, trigger: Trigger, how: str, last: Event) -> None:
        closing = await owner.round.closing(how)
        steps = owner.journal.open_steps()
        changes: Changes = replace(
            closing, trigger=trigger, steps=steps, events=(*closing.events, last), ending=Ending()
        )
        await owner.journal.commit(changes)

    @precondition(lambda self: not self.is_over() and self.awaited())
    @rule(data=st.data(), approves=st.booleans())
    def somebody_answers(self, data: st.DataObject, approves: bool) -> None:
        each = data.draw(st.sampled_from(self.awaited()))
        match each.kind:
            case PendingKind.APPROVAL:
                verdict, answer = (Verdict.APPROVED if approves else Verdict.DECLINED), b"because"
            case PendingKind.TOOL:
                verdict, answer = Verdict.ANSWERED, ProtobufTools().result(each.call.call_id, ToolOutput("given"))
            case PendingKind.INPUT:
                verdict, answer = Verdict.ANSWERED, b'"given"'
        self.disk.pending[each.id] = replace(each, verdict=verdict, answer=answer, in_time=True)

    @precondition(lambda self: not self.is_over() and self.awaited())
    @rule(data=st.data())
    def time_runs_out(self, data: st.DataObject) -> None:
        self.disk.due.add(data.draw(st.sampled_from(self.awaited())).id)

    @precondition(lambda self: self.disk.run.state is not RunState.CANCELLING and not self.is_over())
    @rule(really=st.sampled_from([False, False, False, True]))
    def somebody_cancels(self, really: bool) -> None:
        if really:
            after = state.advance(self.disk.run.state, Trigger.REQUEST_CANCEL)
            self.disk.run = replace(self.disk.run, state=after, cancel_reason="")

    @precondition(lambda self: self.is_over())
    @rule()
    def look_again(self) -> None:
        assert all(step.ended_at is not None for step in self.disk.steps.values()), "it ends with nothing under way"
        assert not self.disk.waiting

    # -- what must hold ----------------------------------------------------------------

    def calls(self) -> list[tuple[Step, str]]:
        return [(step, step.summary) for step in self.disk.steps.values() if step.kind is StepKind.TOOL_CALL]

    @invariant()
    def the_thread_holds_whole_pairs(self) -> None:
        assert_pairs([content.Message.FromString(message.wire) for message in self.disk.messages])
        ids = [message.id for message in self.disk.messages]
        assert len(ids) == len(set(ids))

    @invariant()
    def what_has_ended_has_one_result_and_nothing_else_has(self) -> None:
        told = Counter(event.kind for event in self.disk.events)
        ended = [step for step, _ in self.calls() if step.ended_at is not None]
        assert told["tool_call_completed"] == len(ended)
        taken = [each for each in self.disk.pending.values() if each.is_taken]
        approvals = [each for each in taken if each.kind is PendingKind.APPROVAL]
        assert told["approval_resolved"] == len(approvals)
        asked = [each for each in self.disk.pending.values() if each.kind is PendingKind.APPROVAL]
        assert told["approval_requested"] == len(asked)
        assert told["run_expired"] + told["run_cancelled"] == int(self.is_over())
        assert told[ToolCallRequested.kind] >= len(self.calls())

    @invariant()
    def nothing_is_run_without_what_it_needs(self) -> None:
        for step, name in self.calls():
            tries = self.tries[(f"run_1:{step.index}", name)]
            asked = [each for each in self.disk.pending.values() if each.step == step.index]
            consents = [each for each in asked if each.verdict is Verdict.APPROVED and not each.is_retry]
            retries = [each for each in asked if each.verdict is Verdict.APPROVED and each.is_retry]
            if "client" in name or name in ("ask", "nobody.has"):
                assert not tries
            if "consent" in name:
                assert not tries or consents
            if "once" in name:
                assert tries <= 1 + len(retries)
                assert all(each.in_time for each in retries), "only a person consents to another try"

    @invariant()
    def at_most_one_thing_is_awaited_for_a_call(self) -> None:
        steps = [each.step for each in self.awaited()]
        assert len(steps) == len(set(steps))

    @invariant()
    def a_run_waits_only_when_something_is_awaited(self) -> None:
        if self.disk.run.state in state.WAITING:
            assert any(not each.is_taken for each in self.disk.pending.values())

    def teardown(self) -> None:
        """With everything answered and nobody dying, every call gets its result."""
        for _ in range(12):
            if self.is_over() or not self.is_open():
                break
            for each in self.awaited():
                if each.id not in self.disk.due:
                    given = ProtobufTools().result(each.call.call_id, ToolOutput("given"))
                    answer = {PendingKind.TOOL: given, PendingKind.INPUT: b'"given"'}.get(each.kind, b"")
                    verdict = Verdict.APPROVED if each.kind is PendingKind.APPROVAL else Verdict.ANSWERED
                    self.disk.pending[each.id] = replace(each, verdict=verdict, answer=answer, in_time=True)
            self.behaviour = "works"
            self.do(self._work(self.alive()))
        assert self.is_over() or not self.is_open()
        self.the_thread_holds_whole_pairs()
        self.what_has_ended_has_one_result_and_nothing_else_has()
        self.nothing_is_run_without_what_it_needs()


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def asking() -> tuple[Waiting, Owner]:
    """A run whose model has asked for a tool."""
    world = Waiting()
    message = content.Message(role=content.ROLE_ASSISTANT, id="msg_1")
    message.parts.add().tool_call.CopyFrom(content.ToolCall(call_id="c1", name="client", arguments_json="{}"))
    owner = world.alive()
    world.do(world._ask(owner, completed(message, NOW), None))
    return world, owner


def test_a_run_that_is_to_stop_does_not_wait_first() -> None:
    world, owner = asking()
    owner.interrupt.cancel("enough")
    with pytest.raises(CancelRequested):
        asyncio.run(owner.round.work(world.offered, 0))


def test_an_owner_that_slept_while_another_finished_the_calls_is_fenced() -> None:
    world, _ = asking()
    sleeper = Owner(world)
    world.disk.waiting = []
    with pytest.raises(Fenced):
        asyncio.run(sleeper.round.work(world.offered, 0))

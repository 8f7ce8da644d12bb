"""The state machine of a run: the table, its corners, and a model that wanders through it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from janus_orchestration.model import Cursor, RunState, Step, StepKind
from janus_orchestration.state import (
    TERMINAL,
    WAITING,
    IllegalTransition,
    Trigger,
    advance,
    allowed,
    is_terminal,
    next_step,
    tool_calls,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_turn_goes_from_queued_to_completed() -> None:
    state = advance(RunState.QUEUED, Trigger.START)
    assert state is RunState.RUNNING
    assert advance(state, Trigger.COMPLETE) is RunState.COMPLETED


def test_nothing_follows_an_end() -> None:
    for state in TERMINAL:
        assert allowed(state) == frozenset()
        for trigger in Trigger:
            with pytest.raises(IllegalTransition):
                advance(state, trigger)


def test_a_cancel_wins_over_every_other_end() -> None:
    for trigger in set(Trigger) - {Trigger.CONFIRM_CANCEL, Trigger.REQUEST_CANCEL}:
        with pytest.raises(IllegalTransition):
            advance(RunState.CANCELLING, trigger)


def test_a_waiting_run_is_cancelled_at_once() -> None:
    assert advance(RunState.QUEUED, Trigger.REQUEST_CANCEL) is RunState.CANCELLED


def test_every_state_that_is_not_final_has_a_way_out() -> None:
    for state in set(RunState) - TERMINAL:
        assert allowed(state)


class Wandering(RuleBasedStateMachine):
    """Any trigger at any time, against a small model: phases that only go forward."""

    def __init__(self) -> None:
        super().__init__()
        self.state = RunState.QUEUED
        self.was_cancelled = False
        self.ends = 0

    @rule(trigger=st.sampled_from(list(Trigger)))
    def pull(self, trigger: Trigger) -> None:
        before = self.state
        if trigger not in allowed(before):
            with pytest.raises(IllegalTransition) as refused:
                advance(before, trigger)
            assert (refused.value.state, refused.value.trigger) == (before, trigger)
            return
        self.state = advance(before, trigger)
        if trigger is Trigger.REQUEST_CANCEL:
            self.was_cancelled = True
        if is_terminal(self.state):
            self.ends += 1

    @precondition(lambda self: not is_terminal(self.state))
    @rule(data=st.data())
    def pull_what_is_allowed(self, data: st.DataObject) -> None:
        trigger = data.draw(st.sampled_from(sorted(allowed(self.state))))
        before = self.state
        self.pull(trigger)
        assert self.state is not RunState.QUEUED or before is RunState.QUEUED, "nobody goes back to the queue"

    @invariant()
    def at_most_one_end(self) -> None:
        assert self.ends <= 1
        assert self.ends == int(is_terminal(self.state))

    @invariant()
    def cancelled_means_asked(self) -> None:
        assert self.was_cancelled or self.state not in (RunState.CANCELLING, RunState.CANCELLED)
        if self.was_cancelled:
            assert self.state in (RunState.CANCELLING, RunState.CANCELLED)

    @invariant()
    def waiting_and_ended_never_mix(self) -> None:
        assert not WAITING & TERMINAL


TestWandering = Wandering.TestCase
TestWandering.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


RECALL, MODEL, TOOL, STORE = StepKind.RECALL, StepKind.MODEL_CALL, StepKind.TOOL_CALL, StepKind.STORE
HANDOFF = StepKind.HANDOFF


def journal(*kinds: StepKind, cut: int = 0) -> list[Step]:
    """Steps in order; the last ``cut`` of them have no end."""
    return [
        Step(place, kind, 1, Cursor(), NOW, NOW if place <= len(kinds) - cut else None)
        for place, kind in enumerate(kinds, 1)
    ]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], RECALL),
        (journal(RECALL, cut=1), RECALL),
        (journal(RECALL), MODEL),
        (journal(RECALL, MODEL, cut=1), MODEL),
        (journal(RECALL, MODEL), STORE),
        (journal(RECALL, MODEL, STORE, cut=1), STORE),
        (journal(RECALL, MODEL, STORE), None),
        # The model was asked without a recall: it is not asked anything else now.
        (journal(MODEL, cut=1), MODEL),
        (journal(MODEL, TOOL, TOOL, cut=1), TOOL),
        (journal(MODEL, TOOL, TOOL), MODEL),
        (journal(MODEL, TOOL, MODEL, cut=1), MODEL),
        (journal(MODEL, TOOL, MODEL), STORE),
        (journal(MODEL, TOOL, MODEL, TOOL, cut=1), TOOL),
        (journal(MODEL, HANDOFF, TOOL, cut=1), TOOL),
        (journal(MODEL, HANDOFF, TOOL), STORE),
        (journal(MODEL, TOOL, MODEL, HANDOFF, STORE), None),
    ],
)
def test_the_journal_alone_says_what_is_next(steps: list[Step], expected: StepKind | None) -> None:
    assert next_step(steps, recalls=True, stores=True) is expected


def test_steps_that_an_agent_does_not_have_are_left_out() -> None:
    assert next_step([], recalls=False, stores=True) is MODEL
    assert next_step(journal(MODEL), recalls=False, stores=False) is None


def test_only_the_newest_answers_calls_are_open() -> None:
    steps = journal(MODEL, TOOL, MODEL, TOOL, TOOL, cut=2)
    assert [step.index for step in tool_calls(steps[::-1])] == [4, 5]
    assert tool_calls(journal(MODEL, TOOL, MODEL)) == []


class Turning(RuleBasedStateMachine):
    """A turn that obeys its journal, with owners that die anywhere, against what has really been done."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, Step] = {}
        self.asked = 0  # calls that the newest answer asked for and that have no result yet
        self.is_final = False  # an answer came that asks for nothing
        self.done: list[StepKind] = []

    def next(self) -> StepKind | None:
        # The order in which steps are read does not matter.
        return next_step(list(self.steps.values())[::-1], recalls=True, stores=True)

    def put(self, kind: StepKind, *, ended: bool) -> None:
        cut = [step for step in self.steps.values() if step.kind is kind and step.ended_at is None]
        if cut:
            before = cut[0]
            attempts = before.attempts if ended else before.attempts + 1
            self.steps[before.index] = replace(before, attempts=attempts, ended_at=NOW if ended else None)
        else:
            index = len(self.steps) + 1
            self.steps[index] = Step(index, kind, 1, Cursor(), NOW, NOW if ended else None)
        if ended:
            self.done.append(kind)

    @precondition(lambda self: self.next() in (RECALL, MODEL, STORE))
    @rule()
    def die_in_the_middle(self) -> None:
        kind = self.next()
        assert kind is not None
        self.put(kind, ended=False)
        assert self.next() is kind, "what was cut is done again"

    @precondition(lambda self: self.next() is RECALL)
    @rule()
    def recall(self) -> None:
        self.put(RECALL, ended=True)

    @precondition(lambda self: self.next() is MODEL)
    @rule(calls=st.integers(0, 3))
    def answer(self, calls: int) -> None:
        assert not self.asked, "the model is asked while calls have no result"
        assert not self.is_final, "the model is asked after its last word"
        self.put(MODEL, ended=True)
        self.asked, self.is_final = calls, calls == 0
        # In the same commit.
        for index in range(len(self.steps) + 1, len(self.steps) + 1 + calls):
            self.steps[index] = Step(index, TOOL, 1, Cursor(), NOW)

    @precondition(lambda self: self.next() is TOOL)
    @rule(data=st.data())
    def results_come(self, data: st.DataObject) -> None:
        left = [step for step in tool_calls(list(self.steps.values())) if step.ended_at is None]
        assert len(left) == self.asked > 0
        some = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
        for step in some:
            self.steps[step.index] = replace(step, ended_at=NOW)
        self.asked -= len(some)

    @precondition(lambda self: self.next() is TOOL)
    @rule()
    def die_among_the_calls(self) -> None:
        for step in tool_calls(list(self.steps.values())):
            if step.ended_at is None:
                self.steps[step.index] = replace(step, attempts=step.attempts + 1)

    @precondition(lambda self: self.next() is STORE)
    @rule()
    def store(self) -> None:
        self.put(STORE, ended=True)

    @precondition(lambda self: self.next() is None)
    @rule()
    def look_again(self) -> None:
        assert all(step.ended_at is not None for step in self.steps.values()), "it ends with nothing under way"

    @invariant()
    def is_done_in_order_and_once(self) -> None:
        assert self.done.count(RECALL) <= 1
        assert self.done.count(STORE) <= 1
        assert RECALL not in self.done[1:]
        assert STORE not in self.done[:-1]
        assert (self.next() is None) == (STORE in self.done)
        assert (self.next() in (STORE, None)) == self.is_final


TestTurning = Turning.TestCase
TestTurning.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)

"""The state machine of a run: the table, its corners, and a model that wanders through it."""

from __future__ import annotations

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


def step(kind: StepKind, *, ended: bool) -> Step:
    return Step(1, kind, 1, Cursor(), NOW, NOW if ended else None)


@pytest.mark.parametrize(
    ("journal", "expected"),
    [
        ([], StepKind.RECALL),
        ([step(StepKind.RECALL, ended=False)], StepKind.RECALL),
        ([step(StepKind.RECALL, ended=True)], StepKind.MODEL_CALL),
        ([step(StepKind.RECALL, ended=True), step(StepKind.MODEL_CALL, ended=False)], StepKind.MODEL_CALL),
        ([step(StepKind.RECALL, ended=True), step(StepKind.MODEL_CALL, ended=True)], StepKind.STORE),
        ([step(kind, ended=True) for kind in (StepKind.RECALL, StepKind.MODEL_CALL, StepKind.STORE)], None),
        # The model was asked without a recall: it is not asked anything else now.
        ([step(StepKind.MODEL_CALL, ended=False)], StepKind.MODEL_CALL),
    ],
)
def test_the_journal_alone_says_what_is_next(journal: list[Step], expected: StepKind | None) -> None:
    assert next_step(journal, recalls=True, stores=True) is expected


def test_steps_that_an_agent_does_not_have_are_left_out() -> None:
    assert next_step([], recalls=False, stores=True) is StepKind.MODEL_CALL
    assert next_step([step(StepKind.MODEL_CALL, ended=True)], recalls=False, stores=False) is None
